"""One stage of training a speech model: the head alone, or the encoder with it at a lower learning rate."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from pathlib import Path

import keras

from common import training
from common.checkpoints import fit_with_checkpoints
from common.progress import median_seconds
from common.speech.audio.decode import SAMPLE_RATE
from common.speech.batches import Clips
from common.speech.models import Learner
from common.speech.sources import SpeechSource

VALIDATIONS = 30  # per stage, about; small data sets train for hundreds of epochs


def train_stage(
    source: SpeechSource, model: keras.Model, batches_from: Callable, validate: Callable[[], dict[str, float]], *,
    stage: str, epochs: int, steps: int, head_rate: float, encoder_rate: float, weight_decay: float,
    rank: Callable[[dict], tuple], choose: bool, score: str, checkpoint: Path, save_every: float,
) -> list[dict]:  # fmt: skip
    """Train the unfrozen weights, and leave the model with those that were best on validation.

    Args:
        source: its backbone is part of the model.
        model: {"samples", "lengths"} to logits.
        batches_from: (epoch, step) -> batches of (inputs, targets) from there on.
        validate: returns the current scores of the model on validation.
        stage: its name; `scratch` trains all weights at the encoder's rate, since none are pretrained.
        epochs, steps: number of epochs, and of steps per epoch.
        head_rate, encoder_rate: peak learning rates.
        weight_decay: of all weights.
        rank: of an epoch by its logs; higher is better.
        choose: whether the epoch is chosen on validation; otherwise the last one is kept.
        score: name of the score to print.
        checkpoint, save_every: as returned by `Run.saves`.

    Returns:
        A history row per epoch.
    """
    between, keep = max(1, epochs // VALIDATIONS), None

    def scores() -> dict[str, float]:
        return {f"val_{name}": value for name, value in validate().items()}

    def watch(epoch, logs):
        if (epoch + 1) % between == 0 or epoch + 1 == epochs:
            logs.update(scores())

    if choose:
        rival = (scores(), model.get_weights()) if stage == "finetune" and not checkpoint.exists() else None
        keep = training.KeepBest(None, rival, rank=rank)
    scratch = stage == "scratch"
    optimizer = training.DiscriminativeAdamW(
        learning_rate=training.warmup_cosine(encoder_rate if scratch else head_rate, epochs * steps),
        weight_decay=weight_decay, global_clipnorm=1.0,
        slower=[] if scratch else [(source.backbone.weights, encoder_rate / head_rate)],
    )  # fmt: skip
    learner = Learner(model, source.backbone.config)
    learner.compile(optimizer=optimizer, jit_compile=False)
    return fit_with_checkpoints(
        learner, batches_from, epochs=epochs, lines=training.EpochLines(stage, epochs, steps, (score,)), keep=keep,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=watch)], checkpoint=checkpoint, save_every=save_every,
    )  # fmt: skip


def seconds_of_training(source: SpeechSource, model: keras.Model, stream, seconds) -> float:
    """Estimate the seconds of one epoch; this changes the weights of the model.

    Args:
        source: its backbone is part of the model.
        model: {"samples", "lengths"} to logits.
        stream: batches of (inputs, targets).
        seconds: of the training clips, float64 [n]; the clips of a batch have similar lengths.
    """
    learner = Learner(model, source.backbone.config)
    learner.compile(optimizer=training.DiscriminativeAdamW(learning_rate=1e-9), jit_compile=False)
    inputs, targets = next(stream.as_numpy_iterator())
    step = median_seconds(lambda: learner.train_on_batch(inputs, targets))
    return step * seconds.sum() / (inputs["samples"].size / SAMPLE_RATE)


def seconds_of_validation(predict: Callable, paths, seconds) -> float:
    """Estimate the seconds of predictions for clips, from 20 of them.

    Args:
        predict: (clips, their seconds) -> anything.
        paths: n files.
        seconds: float64 [n].
    """
    some = Clips(paths[:20], title="")
    return median_seconds(lambda: predict(some, seconds[:20])) * seconds.sum() / seconds[:20].sum()


def stage_epochs(steps: int, head_epochs: int | None, epochs: int | None) -> dict[str, int]:
    """Return the epochs per stage: 10 to 20 for fine-tuning, depending on the steps per epoch; more for few clips.

    Args:
        steps: per epoch.
        head_epochs, epochs: chosen by the user; None for these defaults.
    """
    head = max(2, ceil(60 / steps)) if head_epochs is None else head_epochs
    finetune = max(10, min(20, ceil(1500 / steps)), ceil(300 / steps)) if epochs is None else epochs
    return {"head": head, "finetune": finetune, "frozen": head + finetune, "scratch": head + finetune}
