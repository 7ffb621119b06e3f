"""Tune a text encoder on a handful of labelled texts by telling pairs apart.

The idea is SetFit's (arXiv:2209.11055), the loss that of supervised contrastive learning (arXiv:2004.11362).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from common import training
from common.checkpoints import fit_with_checkpoints
from common.texts.batches import INPUTS, Tokens, run_on_tokens

_TEMPERATURE = 0.3  # of the cosines; on draws 10 to 15 of SST-2 a little better than the paper's 0.1


def tune_on_pairs(
    encoder: keras.Model,
    tokens: Tokens,
    labels: np.ndarray,
    *,
    steps: int,
    learning_rate: float,
    batch_size: int = 32,
    weight_decay: float = 0.01,
    gradient_norm: float = 1.0,
    seed: int = 0,
    stage: str = "pairs",
    checkpoint: Path | None = None,
    save_every: float = 30.0,
) -> list[dict]:
    """Pull texts of one class together and push those of others apart, in the direction of their embeddings.

    SetFit draws pairs and reads both texts of each. Here all pairs within a batch count, so that each text that is
    read teaches as many pairs as the batch has other texts.

    Args:
        encoder: {"token_ids", "padding_mask"} to embeddings; what is trainable in it learns. Compiled here.
        tokens: n texts.
        labels: class of each, int [n].
        steps: batches.
        learning_rate: at its peak; it warms up and falls to 0.
        batch_size: texts in a step, about as many of each class; at least 4.
        weight_decay: pulls weights towards zero.
        gradient_norm: longer gradients are shortened to this.
        seed: decides which.
        stage: its name in the history.
        checkpoint: file that a killed run continues from; None for none.
        save_every: seconds between saves.

    Returns:
        One history row: stage, epoch, loss.
    """
    optimizer = training.DiscriminativeAdamW(
        learning_rate=training.warmup_cosine(learning_rate, steps),
        weight_decay=weight_decay,
        global_clipnorm=gradient_norm,
    )
    encoder.compile(optimizer, loss=contrastive_loss, jit_compile=False)  # many lengths
    classes = np.eye(labels.max() + 1, dtype=np.float32)
    first_rows = np.cumsum(tokens.rows_of_text) - tokens.rows_of_text

    def batches_from(_epoch: int, step: int) -> tf.data.Dataset:
        def generate():
            for texts, rng in _balanced(labels, batch_size, steps, seed, first=step):
                # One row of each text: those of one text would be alike for free.
                rows = first_rows[texts] + rng.integers(tokens.rows_of_text[texts])
                yield tokens.batch(rows), classes[labels[texts]]

        specs = (INPUTS, tf.TensorSpec((None, len(classes)), tf.float32))
        return tf.data.Dataset.from_generator(generate, output_signature=specs).prefetch(8)

    return fit_with_checkpoints(
        encoder, batches_from, epochs=1, lines=training.EpochLines(stage, 1, steps), checkpoint=checkpoint,
        save_every=save_every,
    )  # fmt: skip


def tune_if_better(
    encoder: keras.Model, head: keras.layers.Dense, fit_head: Callable[[dict], list[dict]], history: Sequence[dict],
    tokens: dict[str, Tokens], labels: np.ndarray, **options,
) -> list[dict]:  # fmt: skip
    """Tune an encoder on pairs, fit its head anew, and take both back where validation is no better for it.

    Args:
        encoder: as for `tune_on_pairs`.
        head: on its embeddings.
        fit_head: fits the head on embeddings of train and val, and returns history rows.
        history: of the head on the untouched encoder.
        tokens: of train and val.
        labels, **options: as for `tune_on_pairs`.

    Returns:
        History rows.
    """
    untouched = encoder.get_weights(), head.get_weights()
    rows = tune_on_pairs(encoder, tokens["train"], labels, **options)
    embeddings = {split: run_on_tokens(encoder, tokens[split]) for split in ("train", "val")}
    tuned = [row | {"stage": "tuned_head"} for row in fit_head(embeddings)]
    if _best(tuned) < _best(history):
        print("pairs: no better on validation; the untouched encoder stays")
        encoder.set_weights(untouched[0])
        head.set_weights(untouched[1])
    return rows + tuned


def _best(rows: Sequence[dict]) -> tuple[float, float]:
    """Return the rank of the head that a history ended with: the one with the lowest cross-entropy."""
    return training.by_accuracy(min(rows, key=lambda row: row["val_cross_entropy"]))


def contrastive_loss(classes: tf.Tensor, embeddings: tf.Tensor) -> tf.Tensor:
    """Return how little each text looks like those of its class, among all others of the batch.

    For each text the cosines to the others become shares by softmax; the loss is the mean of minus the logarithm of
    the shares of its own class.

    Args:
        classes: one-hot, float32 [n, classes].
        embeddings: float32 [n, width].
    """
    directions = keras.ops.normalize(embeddings, axis=1)
    itself = keras.ops.eye(keras.ops.shape(classes)[0])
    cosines = keras.ops.matmul(directions, keras.ops.transpose(directions)) / _TEMPERATURE - 1e9 * itself
    same = keras.ops.matmul(classes, keras.ops.transpose(classes)) * (1.0 - itself)
    of_its_class = keras.ops.sum(same * keras.ops.log_softmax(cosines, axis=1), axis=1)
    return -keras.ops.mean(of_its_class / keras.ops.maximum(keras.ops.sum(same, axis=1), 1.0))


def _balanced(
    labels: np.ndarray, size: int, steps: int, seed: int, first: int
) -> Iterator[tuple[np.ndarray, np.random.Generator]]:
    """Yield the texts of each step from `first` on, and the generator that drew them.

    They are about equally many of each class, or all texts where there are no more than `size`.
    """
    for step in range(first, steps):
        rng = np.random.default_rng((seed, step))
        if len(labels) <= size:
            yield np.arange(len(labels)), rng
            continue
        classes = rng.permutation(np.unique(labels))
        each = max(2, size // len(classes))
        chosen = [rng.permutation(np.nonzero(labels == one)[0])[:each] for one in classes[: size // each]]
        yield np.concatenate(chosen), rng
