"""One stage of training a speech model: the head alone, the encoder with it, or a network from scratch to a plateau."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
# Learning rates of networks without pretraining; validation splits of the demo and of FSDD were used to choose them.
FROM_SCRATCH = {"scratch": 5e-4, "spectrogram": 2e-3}
_PLATEAU, _MOST, _FIXED = 200, 6000, 1500  # steps: of a plateau, at most, and where nothing is chosen on validation


class KeepBestToPlateau(training.KeepBest):
    """Keep the best epoch; divide the learning rate by 3 at each plateau of validation, and stop at the third in a row.

    Args:
        wait: epochs without improvement that are a plateau.
        rank: as for KeepBest.
    """

    def __init__(self, wait: int, rank: Callable[[dict], tuple]):
        super().__init__(3 * wait, rank=rank)
        self.wait = wait

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        waited = epoch + 1 - self.best_epoch
        if waited and waited % self.wait == 0:  # the rate is a variable of the optimizer: checkpoints hold it
            self.model.optimizer.learning_rate = self.model.optimizer.learning_rate / 3


def train_stage(
    source: SpeechSource, model: keras.Model, batches_from: Callable, validate: Callable[[], dict[str, float]], *,
    stage: str, epochs: int, steps: int, head_rate: float, encoder_rate: float, weight_decay: float,
    rank: Callable[[dict], tuple], choose: bool, score: str, checkpoint: Path, save_every: float,
    patience: int | None = None,
) -> list[dict]:  # fmt: skip
    """Train the unfrozen weights, and leave the model with those that were best on validation.

    Pretrained weights have warm-up and cosine decay over all epochs. A network of `FROM_SCRATCH` trains all weights at
    its own rate until validation stops improving; `epochs` is only the most that it may take.

    Args:
        source: its backbone is part of the model.
        model: {"samples", "lengths"} to logits.
        batches_from: (epoch, step) -> batches of (inputs, targets) from there on.
        validate: returns the current scores of the model on validation.
        stage: its name. `finetune` keeps the weights it starts with unless an epoch improves on them.
        epochs, steps: number of epochs, and of steps per epoch.
        head_rate, encoder_rate: peak learning rates.
        weight_decay: of all weights.
        rank: of an epoch by its logs; higher is better.
        choose: whether the epoch is chosen on validation; otherwise the last one is kept.
        score: name of the score to print.
        checkpoint, save_every: as returned by `Run.saves`.
        patience: epochs without improvement before a stage of pretrained weights stops; None never stops early.

    Returns:
        A history row per epoch.
    """
    scratch, wait = stage in FROM_SCRATCH, ceil(_PLATEAU / steps)
    to_plateau = scratch and choose
    between, keep = max(1, wait // 5 if to_plateau else epochs // VALIDATIONS), None

    def scores() -> dict[str, float]:
        return {f"val_{name}": value for name, value in validate().items()}

    def watch(epoch, logs):
        if (epoch + 1) % between == 0 or epoch + 1 == epochs:
            logs.update(scores())

    if to_plateau:
        keep = KeepBestToPlateau(max(wait, between), rank)
    elif choose:
        rival = (scores(), model.get_weights()) if stage == "finetune" and not checkpoint.exists() else None
        keep = training.KeepBest(patience, rival, rank=rank)
    rate = FROM_SCRATCH[stage] if scratch else head_rate
    optimizer = training.DiscriminativeAdamW(
        learning_rate=rate if to_plateau else training.warmup_cosine(rate, epochs * steps),
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


def stage_epochs(
    steps: int, head_epochs: int | None, epochs: int | None, *, choose: bool = True, head_steps: int = 60
) -> dict[str, int]:
    """Return the epochs per stage: 10 to 20 for fine-tuning, depending on the steps per epoch; more for few clips.

    Args:
        steps: per epoch.
        head_epochs, epochs: chosen by the user; None for these defaults. Networks from scratch follow them too, unless
            there is no fine-tuning.
        choose: whether networks from scratch stop at a plateau of validation, of these epochs at most.
        head_steps: at least so many steps for the head.
    """
    head = max(2, ceil(head_steps / steps)) if head_epochs is None else head_epochs
    finetune = max(10, min(20, ceil(1500 / steps)), ceil(300 / steps)) if epochs is None else epochs
    scratch = head + finetune if epochs else max(10, ceil((_MOST if choose else _FIXED) / steps))
    return {"head": head, "finetune": finetune, "frozen": head + finetune, **dict.fromkeys(FROM_SCRATCH, scratch)}


def how_it_ended(rows: Sequence[dict], epochs: int, choose: bool) -> str:
    """Return how the training of a network from scratch ended, in words.

    Args:
        rows: its history.
        epochs: the most that it might take.
        choose: whether it was to stop at a plateau of validation.
    """
    if not choose:
        return f"trained for {len(rows)} epochs, fixed in advance"
    return (
        f"stopped at a plateau after {len(rows)} epochs"
        if len(rows) < epochs
        else (f"was still improving after {len(rows)} epochs, the most allowed")
    )
