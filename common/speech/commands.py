"""Models that classify whole clips: build, predict, export, prove."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from common import exporting
from common.classification.export import labelled, prove_labels
from common.proof.prove import FreshProcess
from common.speech.batches import Clips
from common.speech.export import (
    AUDIO,
    LONGEST_SECONDS,
    count_rewritten,
    files_to_send,
    tensors_signature,
    warmup_requests,
    wav_decoder,
)
from common.speech.inference import BATCH_SECONDS, CLIP_SPECS, clip_batches, logits_of
from common.speech.sources import SpeechSource
from common.speech.wav2vec2.config import Wav2Vec2Config
from common.speech.wav2vec2.utterance_head import UtteranceHead
from common.speech.wav2vec2.utterance_head import build_classifier as classifier_of


@dataclass(frozen=True)
class CommandModel:
    """A model that classifies clips.

    Attributes:
        model: {"samples", "lengths"} to logits, float32 [batch, classes], as returned by `build_classifier`.
        config: of its backbone.
        class_names: of the classes.
        normalises: whether clips are first set to zero mean and unit variance, as in pretraining.
    """

    model: keras.Model
    config: Wav2Vec2Config
    class_names: tuple[str, ...]
    normalises: bool


def build_command_forward(commands: CommandModel) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Return (audio float32 [batch, time] at 16 kHz, samples int32 [batch]) -> probabilities float32 [batch, classes],
    traced once for all lengths."""
    return exporting.graph_function(*CLIP_SPECS)(
        lambda audio, samples: tf.nn.softmax(logits_of(commands.model, commands.normalises, audio, samples))
    )


def classify(
    forward: Callable, clips: Clips, seconds: np.ndarray, batch_seconds: float = BATCH_SECONDS,
    *, title: str = "classifying",
) -> np.ndarray:  # fmt: skip
    """Return the probabilities of the classes of n clips, float32 [n, classes]; arguments as for `transcribe`.

    Args:
        forward: as returned by `build_command_forward`.
        clips, seconds, batch_seconds, title: as for `transcribe`.
    """
    found: dict[int, np.ndarray] = {}
    for places, batch in clip_batches(clips, seconds, batch_seconds, title):
        found |= zip(places, forward(tf.constant(batch["audio"]), tf.constant(batch["samples"])).numpy(), strict=True)
    return np.stack([found[place] for place in range(len(clips))])


def build_command_classifier(commands: CommandModel) -> Callable[..., np.ndarray]:
    """Return (clips, their seconds, title="") -> probabilities by the current weights, float32 [n, classes]."""
    forward = build_command_forward(commands)
    return lambda clips, seconds, title="": classify(forward, clips, seconds, title=title)


def export_commands(
    commands: CommandModel, folder: Path, *, example: Path | None = None, longest_seconds: float = LONGEST_SECONDS
) -> Path:
    """Export a classifier of clips as FOLDER/<next integer>/: bytes of WAV files of any rate in, labels out.

    Args:
        commands: float32.
        folder, example, longest_seconds: as for `export_recogniser`.

    Returns:
        The folder of the new version. Signatures: `serving_default` (`audio`) and `tensors` (`samples`, `lengths`), as
        for `export_recogniser`, give `label` string [batch], `probabilities` float32 [batch, classes] and `class_names`
        string [batch, classes].

    Raises:
        UserError, tf.errors.InvalidArgumentError: as for `export_recogniser`.
    """
    exporting.check_float32(commands.model)
    forward, names = build_command_forward(commands), tf.constant(list(commands.class_names))

    def answer(audio, samples):
        return labelled(names, forward(audio, samples))

    decoded = wav_decoder(longest_seconds)
    serve = exporting.graph_function(AUDIO)(lambda audio: answer(*decoded(audio)))
    signatures = {"serving_default": serve, "tensors": tensors_signature(answer, longest_seconds)}
    return exporting.save_servable(commands.model, folder, signatures, warmup_requests(signatures, decoded, example))


def prove_commands(
    version: Path, paths: Sequence[str], probabilities: np.ndarray, class_names: Sequence[str],
    process: FreshProcess | None = None,
) -> dict:  # fmt: skip
    """Send the raw files to the SavedModel in a fresh process that imports only tensorflow, and compare every label.

    Args:
        version: folder of the SavedModel.
        paths: n sound files; those that a graph cannot decode are converted first, see `as_served_wav`.
        probabilities: of the evaluation, float32 [n, classes].
        class_names: one per probability.
        process: as for `prove`.

    Returns:
        As `prove_labels`, and "rewritten" (files).

    Raises:
        UserError: as for `prove_recogniser`.
    """
    with tempfile.TemporaryDirectory() as folder:
        sent = files_to_send(paths, Path(folder))
        proof = prove_labels(version, "audio", "paths", list(map(str, sent)), probabilities, class_names, process)
    return {**proof, "rewritten": count_rewritten(paths, sent)}


def build_classifier(source: SpeechSource, classes: int) -> keras.Model:
    """Return a network that classifies the whole clip: {"samples", "lengths"} -> logits, float32 [batch, classes]."""
    return classifier_of(source.backbone, UtteranceHead(classes, dropout=0.1, name="head"))
