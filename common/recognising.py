"""From a trained speech model to text or labels, the same in evaluation and serving, and the proof of it."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import soundfile
import tensorflow as tf

from common import exporting, runs
from common.characters import Characters
from common.data.audio import UnreadableSound, read_frames
from common.data.sound_in_graph import check_levels, checked, prepare_wav_in_graph
from common.data.speech_batches import Clips, ordered_batches, padded
from common.errors import UserError
from common.models.wav2vec2 import Wav2Vec2Config, normalise
from common.progress import ProgressLine

TOLERANCE = 1e-3  # of a confidence, in the proof; texts must be identical
BATCH_SECONDS = 60.0
_IN_GRAPH = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")  # what the served graph decodes, in WAV files

# (audio float32 [batch, time] at 16 kHz, samples int32 [batch]) -> (logits float32 [batch, frames, vocabulary], frames
# int32 [batch])
Listener = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


@dataclass(frozen=True)
class Recogniser:
    """A model that writes what is said, with what turns its logits into text.

    Attributes:
        model: {"samples", "lengths"} to logits, float32 [batch, frames, vocabulary], as `build_recogniser` gives it.
        config: of its backbone.
        characters: what the model writes.
        normalises: whether clips get zero mean and unit variance first, as in its pre-training.
    """

    model: keras.Model
    config: Wav2Vec2Config
    characters: Characters
    normalises: bool


@dataclass(frozen=True)
class CommandModel:
    """A model that says which of its classes a clip is.

    Attributes:
        model: {"samples", "lengths"} to logits, float32 [batch, classes], as `build_classifier` gives it.
        config: of its backbone.
        class_names: of the classes.
        normalises: whether clips get zero mean and unit variance first, as in its pre-training.
    """

    model: keras.Model
    config: Wav2Vec2Config
    class_names: tuple[str, ...]
    normalises: bool


_CLIPS = [tf.TensorSpec((None, None), tf.float32), tf.TensorSpec((None,), tf.int32)]


def build_listener(recogniser: Recogniser) -> Listener:
    """Return a function of batches, traced once for all lengths.

    Args:
        recogniser: any.

    Returns:
        (audio float32 [batch, time] at 16 kHz, samples int32 [batch]) -> (logits float32 [batch, frames, vocabulary],
        frames int32 [batch]). What lies behind the samples of a clip changes nothing. A clip too short for a frame has
        0 of them.
    """

    @tf.function(input_signature=_CLIPS)
    def listen(audio, samples):
        return _logits(recogniser, audio, samples), recogniser.config.frame_lengths(samples)

    return listen


def build_command_listener(commands: CommandModel) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Return (audio float32 [batch, time] at 16 kHz, samples int32 [batch]) -> probabilities float32 [batch, classes],
    traced once for all lengths."""
    return tf.function(lambda audio, samples: tf.nn.softmax(_logits(commands, audio, samples)), input_signature=_CLIPS)


def _logits(spoken: Recogniser | CommandModel, audio: tf.Tensor, samples: tf.Tensor) -> tf.Tensor:
    if spoken.normalises:
        audio = normalise(audio, samples)
    return spoken.model({"samples": audio, "lengths": samples}, training=False)


def write_text(logits: tf.Tensor, frames: tf.Tensor, characters: Characters) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the text of the best path (CTC, Graves et al. 2006) as `Characters.collapse` does, in any graph.

    The confidence is the geometric mean of the probability of the best token over the frames in which one is written.
    Frames of the blank do not count: they are many, nearly certain, and would tell how much silence a clip holds.
    Where nothing is written they alone count: how sure it is of that. It is no calibrated probability of the text.

    Args:
        logits: float32 [batch, frames, vocabulary].
        frames: how many of them are real, int32 [batch].
        characters: the vocabulary.

    Returns:
        (text UTF-8, string [batch]; confidence 0 to 1, float32 [batch], 0 for a clip without frames).
    """
    # `Characters.decode` splits at every white space that Unicode knows; here all of it is written as a space.
    symbols = tf.constant([" " if symbol.isspace() else symbol for symbol in characters.symbols])
    best = tf.argmax(logits, axis=-1, output_type=tf.int32)
    before = tf.pad(best, [[0, 0], [1, 0]], constant_values=-1)[:, :-1]
    real = tf.sequence_mask(frames, tf.shape(best)[1])
    written = tf.logical_and(real, best != characters.blank)
    pieces = tf.where(tf.logical_and(written, best != before), tf.gather(symbols, best), "")
    text = tf.strings.strip(tf.strings.regex_replace(tf.strings.reduce_join(pieces, axis=1), " +", " "))

    counted = tf.where(tf.reduce_any(written, axis=1, keepdims=True), written, real)
    of_best = tf.reduce_max(logits, axis=-1) - tf.reduce_logsumexp(logits, axis=-1)
    count = tf.reduce_sum(tf.cast(counted, tf.float32), axis=1)
    mean = tf.reduce_sum(tf.where(counted, of_best, 0.0), axis=1) / tf.maximum(count, 1.0)
    return text, tf.where(count > 0, tf.exp(mean), 0.0)


# --- evaluation -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transcripts:
    """What a recogniser wrote of n clips.

    Attributes:
        texts: of each.
        confidences: of each, float32 [n], as `write_text` defines them.
        log_probabilities: of each frame's tokens, n float32 [frames, vocabulary], for `ctc_decoding`; empty where they
            were not asked for.
    """

    texts: tuple[str, ...]
    confidences: np.ndarray
    log_probabilities: tuple[np.ndarray, ...]


def transcribe(
    listen: Listener, clips: Clips, seconds: np.ndarray, characters: Characters, batch_seconds: float = BATCH_SECONDS,
    *, keep_log_probabilities: bool = True, title: str = "transcribing",
) -> Transcripts:  # fmt: skip
    """Write down what is said in clips.

    Args:
        listen: as `build_listener` gives it.
        clips: n clips.
        seconds: length of each, float64 [n].
        characters: the vocabulary.
        batch_seconds: the most that a batch may hold, padding included.
        keep_log_probabilities: they take 4 bytes for each frame and token, which is much where tokens are thousands.
        title: of the progress line; none where it is empty.
    """
    write = _writer(characters)
    texts, kept = [""] * len(clips), [np.zeros((0, len(characters)), np.float32)] * len(clips)
    confidences = np.zeros(len(clips), np.float32)
    for places, batch in _batches(clips, seconds, batch_seconds, title):
        logits, frames = listen(tf.constant(batch["audio"]), tf.constant(batch["samples"]))
        answers = (tensor.numpy() for tensor in (*write(logits, frames), frames))
        for place, text, confidence, logs, count in zip(places, *answers, strict=True):
            texts[place], confidences[place] = text.decode("utf-8"), confidence
            if keep_log_probabilities:
                kept[place] = logs[:count].copy()  # and not a view, which would keep the padding
    return Transcripts(tuple(texts), confidences, tuple(kept) if keep_log_probabilities else ())


@functools.cache  # traced once for each vocabulary, and not at every look at validation
def _writer(characters: Characters) -> Callable:
    """Return (logits, frames) -> (text, confidence, log probabilities)."""
    return tf.function(
        lambda logits, frames: (*write_text(logits, frames, characters), tf.nn.log_softmax(logits)),
        input_signature=[tf.TensorSpec((None, None, len(characters)), tf.float32), tf.TensorSpec((None,), tf.int32)],
    )


def classify(
    listen: Callable, clips: Clips, seconds: np.ndarray, batch_seconds: float = BATCH_SECONDS,
    *, title: str = "listening",
) -> np.ndarray:  # fmt: skip
    """Return the probabilities of the classes of n clips, float32 [n, classes]; arguments as for `transcribe`.

    Args:
        listen: as `build_command_listener` gives it.
        clips, seconds, batch_seconds, title: as for `transcribe`.
    """
    found: dict[int, np.ndarray] = {}
    for places, batch in _batches(clips, seconds, batch_seconds, title):
        found |= zip(places, listen(tf.constant(batch["audio"]), tf.constant(batch["samples"])).numpy(), strict=True)
    return np.stack([found[place] for place in range(len(clips))])


def _batches(
    clips: Clips, seconds: np.ndarray, batch_seconds: float, title: str
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Yield the places of some clips and a batch of them; clips of about one length together, the longest first.

    The longest first: where the memory does not suffice, it is known at once.
    """
    order = np.argsort(-np.asarray(seconds), kind="stable")
    progress, done = (ProgressLine(title, len(clips)) if title else None), 0
    for chosen in ordered_batches(np.asarray(seconds)[order], batch_seconds):
        places = [int(place) for place in order[chosen]]
        yield places, padded([clips[place] for place in places])
        done += len(places)
        if progress:
            progress.update(done)
    if progress:
        progress.close()


# --- export -----------------------------------------------------------------------------------------------


def export_recogniser(recogniser: Recogniser, folder: Path, *, example: Path | None = None) -> Path:
    """Write a recogniser as FOLDER/<next integer>/: bytes of WAV files of any rate and length in, text out.

    Args:
        recogniser: float32.
        folder: the servable's folder; its name is the name of the model on the server.
        example: a sound that a server asks each signature about when it loads the model. It stays in the export.

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
        logits, frames = listen(*_decoded(audio))
        return {
            "logits": logits,
            "frames": frames,
            "characters": tf.tile(symbols[None], [tf.shape(logits)[0], 1]),
        }

    audio = [tf.TensorSpec([None], tf.string, name="audio")]
    signatures = {
        "serving_default": tf.function(lambda audio: answer(*_decoded(audio)), input_signature=audio),
        "tensors": _of_tensors(answer),
        "logits": tf.function(say_logits, input_signature=audio),
    }
    return exporting.save_servable(recogniser.model, folder, signatures, _requests(signatures, example))


def export_commands(commands: CommandModel, folder: Path, *, example: Path | None = None) -> Path:
    """Write a classifier of clips as FOLDER/<next integer>/: bytes of WAV files of any rate and length in, labels out.

    Args:
        commands: float32.
        folder, example: as for `export_recogniser`.

    Returns:
        The folder of the new version. Signatures: `serving_default` (`audio`) and `tensors` (`samples`, `lengths`), as
        for `export_recogniser`, give `label` string [batch], `probabilities` float32 [batch, classes] and `class_names`
        string [batch, classes].

    Raises:
        UserError: the disk is full, or the example cannot be read.
    """
    exporting.check_float32(commands.model)
    listen, names = build_command_listener(commands), tf.constant(list(commands.class_names))

    def answer(audio, samples):
        return exporting.labelled(names, listen(audio, samples))

    audio = [tf.TensorSpec([None], tf.string, name="audio")]
    serve = tf.function(lambda audio: answer(*_decoded(audio)), input_signature=audio)
    signatures = {"serving_default": serve, "tensors": _of_tensors(answer)}
    return exporting.save_servable(commands.model, folder, signatures, _requests(signatures, example))


def _decoded(audio: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return WAV files, string [batch], as (samples float32 [batch, time] at 16 kHz, lengths int32 [batch])."""
    spec = tf.RaggedTensorSpec([None], tf.float32)
    ragged = tf.map_fn(prepare_wav_in_graph, audio, fn_output_signature=spec)
    return ragged.to_tensor(), tf.cast(ragged.row_lengths(), tf.int32)


def _of_tensors(answer: Callable) -> tf.types.experimental.PolymorphicFunction:
    """Return the signature of samples; they lose their mean, as those of files do."""

    def tensors(samples, lengths):
        time = tf.shape(samples)[1]
        fitting = tf.reduce_all(tf.logical_and(lengths >= 0, lengths <= time))
        samples = checked(samples, fitting, "`lengths` must be 0 to the length of a row of `samples`:", lengths, time)
        real = tf.sequence_mask(lengths, time)
        samples = check_levels(tf.where(real, samples, 0.0))  # behind its end a row may hold anything
        total = tf.reduce_sum(tf.cast(samples, tf.float64), axis=1)
        mean = tf.cast(total / tf.cast(tf.maximum(lengths, 1), tf.float64), tf.float32)
        return answer(tf.where(real, samples - mean[:, None], 0.0), lengths)

    specs = [tf.TensorSpec((None, None), tf.float32, name="samples"), tf.TensorSpec([None], tf.int32, name="lengths")]
    return tf.function(tensors, input_signature=specs)


def _requests(signatures: dict, example: Path | None) -> dict[str, dict[str, np.ndarray]]:
    """Return what a server asks each signature when it loads the model."""
    if example is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        encoded = np.array([as_served_wav(example, Path(folder)).read_bytes()], dtype=object)
    samples, lengths = (tensor.numpy() for tensor in _decoded(tf.constant(encoded)))
    requests = {name: {"audio": encoded} for name in signatures}
    return requests | {"tensors": {"samples": samples, "lengths": lengths}}


# --- proof ------------------------------------------------------------------------------------------------


def as_served_wav(path: Path | str, folder: Path) -> Path:
    """Return a sound as a file that the served graph decodes: itself, or rewritten without loss.

    A graph has no decoder for flac, ogg and mp3, nor for WAV files that hold something else than plain samples. These
    are written as floats at their own rate and with their own channels.

    Args:
        path: any sound that `audio.decode_sound` reads.
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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sent = _sent(paths, folder)
        questions, answers, result = (folder / one for one in ("inputs.json", "expected.npz", "proof.json"))
        questions.write_text(json.dumps({"paths": list(map(str, sent)), "texts": list(texts)}), "utf-8")
        np.savez(answers, confidences=confidences)
        script = Path(__file__).with_name("speech_proof.py")
        # -I: no PYTHONPATH and no current directory, so that nothing of this project can be imported.
        command = [sys.executable, "-I", str(script), *map(str, (version, questions, answers, result))]
        finished = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        )
        known = {"examples": len(paths), "tolerance": TOLERANCE, "rewritten": _rewritten(paths, sent)}
        if finished.returncode or not result.exists():
            error = (finished.stderr.strip().splitlines() or ["no message"])[-1]
            return {**known, "agreement": 0.0, "max_abs_diff": None, "ops_outside_tf_serving": [], "passed": False,
                    "error": error}  # fmt: skip
        proof = json.loads(result.read_text("utf-8"))
    if (first := proof.pop("first_different")) is not None:
        place, served = first
        proof["first_difference"] = {"path": str(paths[place]), "expected": texts[place], "served": served}
    passed = proof["agreement"] == 1.0 and proof["max_abs_diff"] <= TOLERANCE and not proof["ops_outside_tf_serving"]
    return {**known, **proof, "passed": passed}


def prove_commands(version: Path, paths: Sequence[str], probabilities: np.ndarray, class_names: Sequence[str]) -> dict:
    """Send the raw files to the SavedModel in a fresh process that imports only tensorflow, and compare every label.

    Args:
        version: folder of the SavedModel.
        paths: n sound files; those that no graph decodes are rewritten first, see `as_served_wav`.
        probabilities: what evaluation saw for them, float32 [n, classes].
        class_names: one for each probability.

    Returns:
        As `exporting.prove_image_classifier`, and "rewritten" (files).

    Raises:
        UserError: as for `prove_recogniser`.
    """
    with tempfile.TemporaryDirectory() as folder:
        sent = _sent(paths, Path(folder))
        proof = exporting.prove_sound_classifier(version, list(map(str, sent)), probabilities, class_names)
    return {**proof, "rewritten": _rewritten(paths, sent)}


def _sent(paths: Sequence[str], folder: Path) -> list[Path]:
    """Return the files to send, those that no graph decodes rewritten in the folder."""
    sounds = folder / "sounds"
    sounds.mkdir()
    with runs.room_for("the proof, which writes sounds that no graph decodes as WAV files", folder):
        return [as_served_wav(path, sounds) for path in paths]


def _rewritten(paths: Sequence[str], sent: Sequence[Path]) -> int:
    return sum(Path(path) != one for path, one in zip(paths, sent, strict=True))
