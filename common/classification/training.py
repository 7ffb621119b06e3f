"""One stage of training a classifier, and the weights of the examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np

from common.checkpoints import fit_with_checkpoints
from common.training import EpochLines, KeepBest, use_xla

# Largest class over the smallest above which `auto` softens. There, softened weights lost nothing on validation splits,
# and balanced ones did: benchmarks/results/class_weights_choice.json.
IMBALANCE = 3


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
    keep_best: bool = True,
    xla: bool = True,
    begin: Callable[[], None] | None = None,
    checkpoint: Path | None = None,
    save_every: float = 30.0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> list[dict]:
    """Train a classifier for one stage; it ends with its best weights on validation, or with its last ones.

    Args:
        model: returns probabilities [batch, classes]; compiled here, so that freezing takes effect.
        batches_from: returns the batches for `fit`, from (epoch, step) on; always the same ones.
        stage: name for the progress lines and the history.
        epochs: maximum number of epochs.
        steps: batches per epoch.
        optimizer: including its schedule.
        loss: Keras loss on probabilities and one-hot targets.
        validation: dataset of (inputs, one-hot targets).
        score: used instead of `validation`: measures loss, accuracy and cross_entropy of the model on validation. For
            models whose predictions combine several rows.
        patience: epochs without improvement before stopping.
        start_counts: whether the initial model is also a candidate.
        keep_best: whether it ends with the weights of the best epoch on validation; else with the last ones. With
            `patience` it always does: the last epochs of a stage that stopped early are those without improvement.
        xla: whether XLA may compile the step on an accelerator; not for batches of varying shapes.
        begin: sets the weights at the start of training, where they differ from those of `model`.
        checkpoint: file from which a killed run continues; None for no checkpoints.
        save_every: seconds between saves.
        callbacks: more Keras callbacks.

    Returns:
        One row per epoch: stage, epoch, loss, accuracy, val_loss, val_accuracy, val_cross_entropy.
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
        callbacks = [add, *callbacks]  # first, so that the others receive its values
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
        keep=KeepBest(patience, rival) if keep_best or patience else None,
        validation=validation,
        checkpoint=checkpoint,
        save_every=save_every,
        callbacks=callbacks,
    )


def balanced_class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return weights that give every class the same total; float32 [classes], mean 1 over examples."""
    counts = np.bincount(labels, minlength=classes)
    return (len(labels) / (classes * np.maximum(counts, 1))).astype("float32")


def choose_class_weights(train_labels: np.ndarray, class_weights: str) -> str:
    """Return the weights that `auto` stands for: `softened` where classes differ much in size, else `none`.

    Args:
        train_labels: of the training split, int [m].
        class_weights: `auto`, or `none`, `softened` or `balanced`, which are returned as they are.
    """
    if class_weights != "auto":
        return class_weights
    counts = np.bincount(train_labels)
    counts = counts[counts > 0]
    return "softened" if counts.max() > IMBALANCE * counts.min() else "none"


def describe_class_weights(data, class_weights: str) -> str:
    """Return one line on the weights of the classes: what was chosen, and why.

    Args:
        data: a labelled set with `train.labels` and `class_names`.
        class_weights: as for `sample_weights`.
    """
    chosen = choose_class_weights(data.train.labels, class_weights)
    if class_weights != "auto":
        return f"class weights: {chosen}"
    counts = np.bincount(data.train.labels)
    low, high = np.min(counts[counts > 0]), np.max(counts)
    if low == high:
        return f"class weights: {chosen} (each class has {high:,} training examples)"
    above = "more than" if chosen != "none" else "at most"
    return (
        f"class weights: {chosen} (the largest class, {data.class_names[counts.argmax()]}, has {high:,} training "
        f"examples, {above} {IMBALANCE} times the {low:,} of the smallest, {data.class_names[list(counts).index(low)]})"
    )


def sample_weights(labels: np.ndarray, train_labels: np.ndarray, classes: int, class_weights: str) -> np.ndarray:
    """Return the weight of each example in training, float32 [n].

    Args:
        labels: of the examples, int [n].
        train_labels: of the training split, int [m].
        classes: number of classes.
        class_weights: `none` (all 1), `balanced` (every class has the same total weight), `softened` (the square root
            of that), or `auto` (as `choose_class_weights` decides).
    """
    chosen = choose_class_weights(train_labels, class_weights)
    if chosen == "none":
        return np.ones(len(labels), "float32")
    weights = balanced_class_weights(train_labels, classes)
    if chosen == "softened":
        weights = np.sqrt(weights)
        weights /= np.mean(weights[train_labels])  # mean 1 over examples, as without weights
    return weights[labels]
