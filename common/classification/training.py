"""One stage of training a classifier, and the weights of its examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np

from common.checkpoints import fit_with_checkpoints
from common.training import EpochLines, KeepBest, use_xla


def fit_stage(
    model: keras.Model,
    batches_from: Callable[[int, int], object],
    *,
    stage: str,
    epochs: int,
    steps: int,
    optimizer: keras.optimizers.Optimizer,
    loss="categorical_crossentropy",
    validation=None,
    score: Callable[[], dict[str, float]] | None = None,
    patience: int | None = None,
    start_counts: bool = False,
    xla: bool = True,
    begin: Callable[[], None] | None = None,
    checkpoint: Path | None = None,
    save_every: float = 30.0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> list[dict]:
    """Train a classifier for one stage and leave it with its best weights on validation.

    Args:
        model: gives probabilities [batch, classes]; compiled here, so that what is frozen is frozen.
        batches_from: gives what `fit` takes, from (epoch, step) on; the same ones, whenever it is asked.
        stage: name for the progress lines and the history.
        epochs: at most this many.
        steps: batches in an epoch.
        optimizer: with its schedule.
        loss: Keras loss on probabilities and one-hot targets.
        validation: dataset of (inputs, one-hot targets).
        score: instead of that, measures the model as it is on validation: loss, accuracy, cross_entropy. For models
            whose answers are made of several rows.
        patience: epochs without improvement before stopping.
        start_counts: whether the model as given competes too.
        xla: whether XLA may compile the step on an accelerator; not for batches of many shapes.
        begin: sets the weights that training begins with, where they are not those of the model as given.
        checkpoint: file that a killed run continues from; None for none.
        save_every: seconds between saves.
        callbacks: more Keras callbacks.

    Returns:
        One row an epoch: stage, epoch, loss, accuracy, val_loss, val_accuracy, val_cross_entropy.
    """
    model.compile(
        optimizer=optimizer,
        loss=loss,
        metrics=["accuracy", keras.metrics.CategoricalCrossentropy(name="cross_entropy")],
        jit_compile=use_xla() if xla else False,
    )
    if score:
        add = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda _, logs: logs.update({f"val_{name}": value for name, value in score().items()})
        )
        callbacks = [add, *callbacks]  # first, so that all others see it
    rival, resumed = None, checkpoint is not None and checkpoint.exists()
    if start_counts and not resumed:
        logs = score() if score else model.evaluate(validation, verbose=0, return_dict=True)
        rival = {f"val_{name}": value for name, value in logs.items()}, model.get_weights()
    if begin and not resumed:
        begin()
    return fit_with_checkpoints(
        model,
        batches_from,
        epochs=epochs,
        lines=EpochLines(stage, epochs, steps),
        keep=KeepBest(patience, rival),
        validation=validation,
        checkpoint=checkpoint,
        save_every=save_every,
        callbacks=callbacks,
    )


def balanced_class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return a weight for each class that makes all classes count the same; float32 [classes], mean 1 over examples."""
    counts = np.bincount(labels, minlength=classes)
    return (len(labels) / (classes * np.maximum(counts, 1))).astype("float32")


def sample_weights(labels: np.ndarray, train_labels: np.ndarray, classes: int, class_weights: str) -> np.ndarray:
    """Return the weight of each example in training, float32 [n].

    Args:
        labels: of the examples, int [n].
        train_labels: of the training split, int [m].
        classes: how many there are.
        class_weights: `none` (all 1), or `balanced` (every class has the same total weight).
    """
    if class_weights == "none":
        return np.ones(len(labels), "float32")
    return balanced_class_weights(train_labels, classes)[labels]
