"""From a trained speech model to a SavedModel that takes sounds, and the proof that it answers as evaluation did."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile
import tensorflow as tf

from common import exporting, files
from common.errors import UserError
from common.proof.prove import prove
from common.speech.audio.decode import SAMPLE_RATE, UnreadableSound, read_frames
from common.speech.audio.in_graph import check_levels, checked, prepare_wav_in_graph
from common.speech.inference import Recogniser, build_listener, write_text

TOLERANCE = 1e-3  # of a confidence, in the proof; texts must be identical
LONGEST_SECONDS = 60.0  # that a server hears at once, unless it learned from longer clips; memory grows with the square
MOST_AT_ONCE = 10  # clips of that length in one request, or as many shorter ones as take the same room
_IN_GRAPH = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")  # what the served graph decodes, in WAV files


def export_recogniser(
    recogniser: Recogniser, folder: Path, *, example: Path | None = None, longest_seconds: float = LONGEST_SECONDS
) -> Path:
    """Write a recogniser as FOLDER/<next integer>/: bytes of WAV files of any rate in, text out.

    Args:
        recogniser: float32.
        folder: the servable's folder; its name is the name of the model on the server.
        example: a sound that a server asks each signature about when it loads the model. It stays in the export.
        longest_seconds: of a clip; a server refuses a longer one, and more than ten times as much in one request.

    Returns:
        The folder of the new version. Signatures: `serving_default` (`audio`, string [batch], WAV files) and `tensors`
        (`samples` float32 [batch, time], mono at 16 kHz, and how many of each row are real, `lengths` int32 [batch])
        give `text` string [batch] and `confidence` float32 [batch], as `write_text` defines it. `logits` (`audio`) is
        for who decodes with a language model: `logits` float32 [batch, frames, vocabulary], how many `frames` are real,
        int32 [batch], and the `characters` that the tokens stand for, string [batch, vocabulary], empty for the blank.

    Raises:
        UserError: the disk is full, or the example cannot be read.
    """
    characters = recogniser.characters
    if len(characters) != recogniser.model.output.shape[-1]:
        raise ValueError(
            f"The model writes {recogniser.model.output.shape[-1]} tokens, and its characters are {len(characters)}."
        )
    exporting.check_float32(recogniser.model)
    listen, symbols = build_listener(recogniser), tf.constant(list(characters.symbols))

    def answer(audio, samples):
        text, confidence = write_text(*listen(audio, samples), characters)
        return {"text": text, "confidence": confidence}

    def say_logits(audio):
        logits, frames = listen(*decoded_wavs(audio, longest_seconds))
        return {
            "logits": logits,
            "frames": frames,
            "characters": tf.tile(symbols[None], [tf.shape(logits)[0], 1]),
        }

    audio = [tf.TensorSpec([None], tf.string, name="audio")]
    signatures = {
        "serving_default": tf.function(
            lambda audio: answer(*decoded_wavs(audio, longest_seconds)), input_signature=audio
        ),
        "tensors": tensors_signature(answer, longest_seconds),
        "logits": tf.function(say_logits, input_signature=audio),
    }
    return exporting.save_servable(recogniser.model, folder, signatures, warmup_requests(signatures, example))


def decoded_wavs(audio: tf.Tensor, longest_seconds: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Return WAV files, string [batch], as (samples float32 [batch, time] at 16 kHz, lengths int32 [batch])."""
    spec = tf.RaggedTensorSpec([None], tf.float32)
    ragged = tf.map_fn(prepare_wav_in_graph, audio, fn_output_signature=spec)
    lengths = ragged.row_lengths()
    flat = _refuse_too_much(ragged.flat_values, tf.size(lengths), tf.reduce_max(lengths), longest_seconds)
    return ragged.with_flat_values(flat).to_tensor(), tf.cast(lengths, tf.int32)


def _refuse_too_much(value: tf.Tensor, clips: tf.Tensor, longest: tf.Tensor, longest_seconds: float) -> tf.Tensor:
    """Return the value; fail where a request holds more than the memory of a server should be asked for.

    Args:
        value: any tensor of the request.
        clips: how many.
        longest: samples of the longest.
        longest_seconds: that a clip may have.
    """
    seconds = tf.cast(longest, tf.float32) / SAMPLE_RATE  # of no clip it is below 0
    value = checked(
        value, seconds <= longest_seconds, f"A clip may have {longest_seconds:g} seconds. Send a longer recording in "
        "pieces; `python -m recipes predict` does so where a recording is transcribed. Received, seconds:", seconds,
    )  # fmt: skip
    whole = seconds * tf.cast(clips, tf.float32)
    most = MOST_AT_ONCE * longest_seconds
    return checked(
        value, whole <= most, f"A request may hold {most:g} seconds of sound, each clip as long as the longest. "
        "Send fewer at a time. Received, seconds:", whole,
    )  # fmt: skip


def tensors_signature(answer: Callable, longest_seconds: float) -> tf.types.experimental.PolymorphicFunction:
    """Return the signature of samples; they lose their mean, as those of files do."""

    def tensors(samples, lengths):
        time = tf.shape(samples)[1]
        fitting = tf.reduce_all(tf.logical_and(lengths >= 0, lengths <= time))
        samples = checked(samples, fitting, "`lengths` must be 0 to the length of a row of `samples`:", lengths, time)
        samples = _refuse_too_much(samples, tf.shape(samples)[0], time, longest_seconds)
        real = tf.sequence_mask(lengths, time)
        samples = check_levels(tf.where(real, samples, 0.0))  # behind its end a row may hold anything
        total = tf.reduce_sum(tf.cast(samples, tf.float64), axis=1)
        mean = tf.cast(total / tf.cast(tf.maximum(lengths, 1), tf.float64), tf.float32)
        return answer(tf.where(real, samples - mean[:, None], 0.0), lengths)

    specs = [tf.TensorSpec((None, None), tf.float32, name="samples"), tf.TensorSpec([None], tf.int32, name="lengths")]
    return tf.function(tensors, input_signature=specs)


def warmup_requests(signatures: dict, example: Path | None) -> dict[str, dict[str, np.ndarray]]:
    """Return what a server asks each signature when it loads the model."""
    if example is None:
        return {}
    encoded = np.array([served_wav(example)], dtype=object)
    samples, lengths = (tensor.numpy() for tensor in decoded_wavs(tf.constant(encoded), math.inf))
    requests = {name: {"audio": encoded} for name in signatures}
    return requests | {"tensors": {"samples": samples, "lengths": lengths}}


def served_wav(path: Path) -> bytes:
    """Return a sound as the bytes of a WAV file that the served graph decodes; arguments as for `as_served_wav`."""
    with tempfile.TemporaryDirectory() as folder:
        return as_served_wav(path, Path(folder)).read_bytes()


def read_clip(name: str, *_) -> bytes:
    """Return a sound as the export of a run takes it; arguments and errors as for `as_served_wav`."""
    return served_wav(Path(name))


# --- proof ------------------------------------------------------------------------------------------------


def as_served_wav(path: Path | str, folder: Path) -> Path:
    """Return a sound as a file that the served graph decodes: itself, or rewritten without loss.

    A graph has no decoder for flac, ogg and mp3, nor for WAV files that hold something else than plain samples. These
    are written as floats at their own rate and with their own channels.

    Args:
        path: any sound that `decode.decode_sound` reads.
        folder: where the rewritten file goes.

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
        pass  # the reader below knows why, or passes over what is wrong
    try:
        frames, rate = read_frames(path)
    except UnreadableSound as error:
        raise UserError(f"{path} {error}.") from error
    number = sum(1 for _ in folder.iterdir())
    rewritten = folder / f"{number}_{path.stem[:80]}.wav"
    soundfile.write(str(rewritten), frames, rate, subtype="FLOAT", format="WAV")
    return rewritten


def prove_recogniser(version: Path, paths: Sequence[str], texts: Sequence[str], confidences: np.ndarray) -> dict:
    """Send the raw files to the SavedModel in a fresh process that imports only tensorflow, and compare every text.

    Args:
        version: folder of the SavedModel.
        paths: n sound files; those that no graph decodes are rewritten first, see `as_served_wav`.
        texts: what evaluation wrote of them.
        confidences: of the texts, float32 [n].

    Returns:
        {"examples", "agreement" (share of identical texts), "max_abs_diff" (of a confidence), "ops_outside_tf_serving",
        "tolerance", "rewritten" (files), "passed"}; "first_difference" (path, expected and served text) where texts
        differ, and "error" where the process failed.

    Raises:
        UserError: a file cannot be read, or there is no room for those that are rewritten.
    """
    with tempfile.TemporaryDirectory() as folder:
        sent = files_to_send(paths, Path(folder))
        questions = {"paths": list(map(str, sent)), "texts": list(texts)}
        proof = prove("transcripts", version, questions, {"confidences": confidences}, TOLERANCE)
    if (first := proof.pop("first_different", None)) is not None:
        place, served = first
        proof["first_difference"] = {"path": str(paths[place]), "expected": texts[place], "served": served}
    return {"examples": len(paths), "rewritten": count_rewritten(paths, sent), **proof}


def files_to_send(paths: Sequence[str], folder: Path) -> list[Path]:
    """Return the files to send, those that no graph decodes rewritten in the folder."""
    sounds = folder / "sounds"
    sounds.mkdir()
    with files.room_for("the proof, which writes sounds that no graph decodes as WAV files", folder):
        return [as_served_wav(path, sounds) for path in paths]


def count_rewritten(paths: Sequence[str], sent: Sequence[Path]) -> int:
    return sum(Path(path) != one for path, one in zip(paths, sent, strict=True))
