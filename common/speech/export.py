"""From a trained speech model to a SavedModel that takes sounds, and the proof that it answers as evaluated."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile
import tensorflow as tf

from common import exporting, files
from common.errors import UserError
from common.proof.prove import FreshProcess, prove
from common.speech.audio.decode import SAMPLE_RATE, UnreadableSound, read_frames
from common.speech.audio.in_graph import check_levels, checked, prepare_wav_in_graph
from common.speech.inference import CLIP_SPECS, Recogniser, build_forward, write_text

TOLERANCE = 1e-3  # of a confidence, in the proof; texts must be identical
LONGEST_SECONDS = 60.0  # of a served clip, unless trained on longer ones; memory grows with the square
MOST_AT_ONCE = 10  # clips of that length per request, or shorter ones of the same total length
AUDIO = tf.TensorSpec([None], tf.string, name="audio")
_IN_GRAPH = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")  # WAV subtypes that the served graph decodes


def export_recogniser(
    recogniser: Recogniser, folder: Path, *, example: Path | None = None, longest_seconds: float = LONGEST_SECONDS
) -> Path:
    """Export a recogniser as FOLDER/<next integer>/: bytes of WAV files of any rate in, text out.

    Args:
        recogniser: float32.
        folder: of the servable; its name is the name of the model on the server.
        example: a sound for the warm-up requests of each signature. It stays in the export.
        longest_seconds: of a clip; longer ones are refused, and more than ten times as much per request.

    Returns:
        The folder of the new version. Signatures: `serving_default` (`audio`, string [batch], WAV files) and `tensors`
        (`samples` float32 [batch, time], mono at 16 kHz, and the number of real samples per row, `lengths` int32
        [batch]) return `text` string [batch] and `confidence` float32 [batch], as defined in `write_text`. `logits`
        (`audio`) is for decoding with a language model: `logits` float32 [batch, frames, vocabulary], the number of
        real `frames` int32 [batch], and the `characters` of the tokens, string [batch, vocabulary], "" for the blank.

    Raises:
        UserError: the disk is full, or the example cannot be read.
        tf.errors.InvalidArgumentError: the graph refuses the example, such as one that is too long.
    """
    characters = recogniser.characters
    if len(characters) != recogniser.model.output.shape[-1]:
        raise ValueError(
            f"The model has {recogniser.model.output.shape[-1]} outputs, but {len(characters)} characters."
        )
    exporting.check_float32(recogniser.model)
    forward, symbols = build_forward(recogniser), tf.constant(list(characters.symbols))
    decoded = wav_decoder(longest_seconds)

    # Two signatures call it, so that its graph is built and stored once.
    @exporting.graph_function(*CLIP_SPECS)
    def answer(audio, samples):
        text, confidence = write_text(*forward(audio, samples), characters)
        return {"text": text, "confidence": confidence}

    def logits_and_characters(audio):
        logits, frames = forward(*decoded(audio))
        return {"logits": logits, "frames": frames, "characters": tf.tile(symbols[None], [tf.shape(logits)[0], 1])}

    signatures = {
        "serving_default": exporting.graph_function(AUDIO)(lambda audio: answer(*decoded(audio))),
        "tensors": tensors_signature(answer, longest_seconds),
        "logits": exporting.graph_function(AUDIO)(logits_and_characters),
    }
    return exporting.save_servable(recogniser.model, folder, signatures, warmup_requests(signatures, decoded, example))


def wav_decoder(longest_seconds: float) -> Callable:
    """Return a graph of WAV files, string [batch] -> (samples float32 [batch, time] at 16 kHz, lengths int32 [batch]).

    It fails for files that `prepare_wav_in_graph` or the limits of a request refuse.
    """

    @exporting.graph_function(AUDIO)
    def decoded(audio):
        spec = tf.RaggedTensorSpec([None], tf.float32)
        ragged = tf.map_fn(prepare_wav_in_graph, audio, fn_output_signature=spec)
        lengths = ragged.row_lengths()
        flat = _refuse_too_much(ragged.flat_values, tf.size(lengths), tf.reduce_max(lengths), longest_seconds)
        return ragged.with_flat_values(flat).to_tensor(), tf.cast(lengths, tf.int32)

    return decoded


def _refuse_too_much(value: tf.Tensor, clips: tf.Tensor, longest: tf.Tensor, longest_seconds: float) -> tf.Tensor:
    """Return the value; fail if a request would need too much memory on the server.

    Args:
        value: any tensor of the request.
        clips: number of clips.
        longest: samples of the longest clip.
        longest_seconds: maximum length of a clip.
    """
    seconds = tf.cast(longest, tf.float32) / SAMPLE_RATE  # with no clips it is below 0
    value = checked(
        value, seconds <= longest_seconds, f"A clip may have at most {longest_seconds:g} seconds. Send longer ones in "
        "pieces, as `python -m recipes predict` does for transcripts. Received, seconds:", seconds,
    )  # fmt: skip
    whole = seconds * tf.cast(clips, tf.float32)
    most = MOST_AT_ONCE * longest_seconds
    return checked(
        value, whole <= most, f"A request may have at most {most:g} seconds of sound, each clip padded to the longest. "
        "Send fewer clips at a time. Received, seconds:", whole,
    )  # fmt: skip


def tensors_signature(answer: Callable, longest_seconds: float) -> tf.types.experimental.PolymorphicFunction:
    """Return the signature that takes samples; their mean is removed, as for files."""

    def tensors(samples, lengths):
        time = tf.shape(samples)[1]
        fitting = tf.reduce_all(tf.logical_and(lengths >= 0, lengths <= time))
        samples = checked(samples, fitting, "`lengths` must be 0 to the length of a row of `samples`:", lengths, time)
        samples = _refuse_too_much(samples, tf.shape(samples)[0], time, longest_seconds)
        real = tf.sequence_mask(lengths, time)
        samples = check_levels(tf.where(real, samples, 0.0))  # beyond its end a row may have any content
        total = tf.reduce_sum(tf.cast(samples, tf.float64), axis=1)
        mean = tf.cast(total / tf.cast(tf.maximum(lengths, 1), tf.float64), tf.float32)
        return answer(tf.where(real, samples - mean[:, None], 0.0), lengths)

    specs = [tf.TensorSpec((None, None), tf.float32, name="samples"), tf.TensorSpec([None], tf.int32, name="lengths")]
    return exporting.graph_function(*specs)(tensors)


def warmup_requests(signatures: dict, decoded: Callable, example: Path | None) -> dict[str, dict[str, np.ndarray]]:
    """Return the warm-up request of each signature; `decoded` as returned by `wav_decoder`."""
    if example is None:
        return {}
    encoded = np.array([served_wav(example)], dtype=object)
    samples, lengths = (tensor.numpy() for tensor in decoded(tf.constant(encoded)))
    requests = {name: {"audio": encoded} for name in signatures}
    return requests | {"tensors": {"samples": samples, "lengths": lengths}}


def served_wav(path: Path) -> bytes:
    """Return a sound as the bytes of a WAV file that the served graph decodes; arguments as for `as_served_wav`."""
    with tempfile.TemporaryDirectory() as folder:
        return as_served_wav(path, Path(folder)).read_bytes()


def read_clip(name: str, *_) -> bytes:
    """Return a sound as input of the export of a run; arguments and errors as for `as_served_wav`."""
    return served_wav(Path(name))


# --- proof ------------------------------------------------------------------------------------------------


def as_served_wav(path: Path | str, folder: Path) -> Path:
    """Return a sound as a file that the served graph decodes: the file itself, or converted without loss.

    A graph has no decoder for flac, ogg and mp3, nor for WAV files with other than plain samples. These are written as
    floats with the same rate and channels.

    Args:
        path: any sound that `decode.decode_sound` reads.
        folder: for the converted file.

    Returns:
        `path`, or a new file in the folder.

    Raises:
        UserError: it cannot be read.
    """
    path = Path(path)
    try:
        info = soundfile.info(str(path))
        with path.open("rb") as file:
            if file.read(4) == b"RIFF" and info.format in ("WAV", "WAVEX") and info.subtype in _IN_GRAPH:
                return path
    except (soundfile.SoundFileError, OSError):
        pass  # reading it below reports why, or succeeds
    try:
        frames, rate = read_frames(path)
    except UnreadableSound as error:
        raise UserError(f"{path} {error}.") from error
    number = sum(1 for _ in folder.iterdir())
    rewritten = folder / f"{number}_{path.stem[:80]}.wav"
    soundfile.write(str(rewritten), frames, rate, subtype="FLOAT", format="WAV")
    return rewritten


def prove_recogniser(
    version: Path, paths: Sequence[str], texts: Sequence[str], confidences: np.ndarray,
    process: FreshProcess | None = None,
) -> dict:  # fmt: skip
    """Send the raw files to the SavedModel in a fresh process that imports only tensorflow, and compare every text.

    Args:
        version: folder of the SavedModel.
        paths: n sound files; those that a graph cannot decode are converted first, see `as_served_wav`.
        texts: of the evaluation.
        confidences: of the texts, float32 [n].
        process: as for `prove`.

    Returns:
        {"examples", "agreement" (share of identical texts), "max_abs_diff" (of a confidence), "ops_outside_tf_serving",
        "tolerance", "rewritten" (files), "passed"}; "first_difference" (path, expected and served text) where texts
        differ, and "error" where the process failed.

    Raises:
        UserError: a file cannot be read, or there is not enough disk space for the converted ones.
    """
    with tempfile.TemporaryDirectory() as folder:
        sent = files_to_send(paths, Path(folder))
        requests = {"paths": list(map(str, sent)), "texts": list(texts)}
        proof = prove("transcripts", version, requests, {"confidences": confidences}, TOLERANCE, process)
    if (first := proof.pop("first_different", None)) is not None:
        place, served = first
        proof["first_difference"] = {"path": str(paths[place]), "expected": texts[place], "served": served}
    return {"examples": len(paths), "rewritten": count_rewritten(paths, sent), **proof}


def files_to_send(paths: Sequence[str], folder: Path) -> list[Path]:
    """Return the files to send; those that a graph cannot decode are converted into the folder."""
    sounds = folder / "sounds"
    sounds.mkdir()
    with files.room_for("the proof, which converts sounds that a graph cannot decode to WAV files", folder):
        return [as_served_wav(path, sounds) for path in paths]


def count_rewritten(paths: Sequence[str], sent: Sequence[Path]) -> int:
    return sum(Path(path) != one for path, one in zip(paths, sent, strict=True))
