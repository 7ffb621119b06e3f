"""Transcripts from a trained speech model, the same in evaluation and serving."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from common.exporting import graph_function
from common.progress import ProgressLine
from common.speech.batches import Clips, ordered_batches, padded
from common.speech.ctc.characters import Characters
from common.speech.wav2vec2.config import Wav2Vec2Config
from common.speech.wav2vec2.masking import normalise

BATCH_SECONDS = 60.0

# (audio float32 [batch, time] at 16 kHz, samples int32 [batch]) -> (logits float32 [batch, frames, vocabulary], frames
# int32 [batch])
Forward = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


@dataclass(frozen=True)
class Recogniser:
    """A model that transcribes speech, with everything needed to decode its logits.

    Attributes:
        model: {"samples", "lengths"} to logits, float32 [batch, frames, vocabulary], as returned by `build_recogniser`.
        config: of its backbone.
        characters: the vocabulary of the logits.
        normalises: whether clips are first set to zero mean and unit variance, as in pretraining.
    """

    model: keras.Model
    config: Wav2Vec2Config
    characters: Characters
    normalises: bool


CLIP_SPECS = [tf.TensorSpec((None, None), tf.float32), tf.TensorSpec((None,), tf.int32)]


def build_forward(recogniser: Recogniser) -> Forward:
    """Return the forward function of a recogniser, traced once for all lengths.

    Padding has no influence on the outputs. A clip too short for one frame has 0 frames.
    """

    @graph_function(*CLIP_SPECS)
    def forward(audio, samples):
        return logits_of(recogniser.model, recogniser.normalises, audio, samples), recogniser.config.frame_lengths(
            samples
        )

    return forward


def logits_of(model: keras.Model, normalises: bool, audio: tf.Tensor, samples: tf.Tensor) -> tf.Tensor:
    """Return the logits of a network with any head; audio float32 [batch, time], samples int32 [batch]."""
    if normalises:
        audio = normalise(audio, samples)
    return model({"samples": audio, "lengths": samples}, training=False)


def write_text(logits: tf.Tensor, frames: tf.Tensor, characters: Characters) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the text of the best path (CTC, Graves et al. 2006) as `Characters.collapse` does, in any graph.

    The confidence is the geometric mean of the probability of the best token over the frames that are not blank. Blank
    frames do not count: they are many, nearly certain, and would measure the silence in a clip. If all frames are
    blank, they alone count. The confidence is not a calibrated probability of the text.

    Args:
        logits: float32 [batch, frames, vocabulary].
        frames: number of real frames, int32 [batch].
        characters: the vocabulary.

    Returns:
        (text UTF-8, string [batch]; confidence 0 to 1, float32 [batch], 0 for a clip without frames).
    """
    # `Characters.decode` splits at all Unicode white space; here each is replaced by a space.
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
    """Transcripts of n clips.

    Attributes:
        texts: of each.
        confidences: of each, float32 [n], as defined in `write_text`.
        log_probabilities: of the tokens per frame, n float32 [frames, vocabulary], for beam search; or ().
    """

    texts: tuple[str, ...]
    confidences: np.ndarray
    log_probabilities: tuple[np.ndarray, ...]


def transcribe(
    forward: Forward, clips: Clips, seconds: np.ndarray, characters: Characters, batch_seconds: float = BATCH_SECONDS,
    *, keep_log_probabilities: bool = True, title: str = "transcribing",
) -> Transcripts:  # fmt: skip
    """Transcribe clips.

    Args:
        forward: as returned by `build_forward`.
        clips: n clips.
        seconds: length of each, float64 [n].
        characters: the vocabulary.
        batch_seconds: maximum length of a batch, padding included.
        keep_log_probabilities: they take 4 bytes per frame and token, a lot for thousands of tokens.
        title: of the progress line; no line if empty.
    """
    write = _writer(characters)
    texts, kept = [""] * len(clips), [np.zeros((0, len(characters)), np.float32)] * len(clips)
    confidences = np.zeros(len(clips), np.float32)
    for places, batch in clip_batches(clips, seconds, batch_seconds, title):
        logits, frames = forward(tf.constant(batch["audio"]), tf.constant(batch["samples"]))
        outputs = (tensor.numpy() for tensor in (*write(logits, frames), frames))
        for place, text, confidence, logs, count in zip(places, *outputs, strict=True):
            texts[place], confidences[place] = text.decode("utf-8"), confidence
            if keep_log_probabilities:
                kept[place] = logs[:count].copy()  # a view would keep the padding
    return Transcripts(tuple(texts), confidences, tuple(kept) if keep_log_probabilities else ())


@functools.cache  # traced once per vocabulary, not at every validation
def _writer(characters: Characters) -> Callable:
    """Return (logits, frames) -> (text, confidence, log probabilities)."""
    return tf.function(
        lambda logits, frames: (*write_text(logits, frames, characters), tf.nn.log_softmax(logits)),
        input_signature=[tf.TensorSpec((None, None, len(characters)), tf.float32), tf.TensorSpec((None,), tf.int32)],
    )


def build_transcriber(recogniser: Recogniser) -> Callable[..., Transcripts]:
    """Return (clips, their seconds, title="", keep_log_probabilities=False) -> Transcripts by the current weights."""
    forward = build_forward(recogniser)
    return lambda clips, seconds, title="", keep_log_probabilities=False: transcribe(
        forward, clips, seconds, recogniser.characters, title=title, keep_log_probabilities=keep_log_probabilities
    )


def clip_batches(
    clips: Clips, seconds: np.ndarray, batch_seconds: float, title: str
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Yield the positions of clips and a batch of them; clips of similar length together.

    The longest come first, so that insufficient memory shows at once.
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
