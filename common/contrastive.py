"""Tune a text encoder on a handful of labelled texts by telling pairs apart: the idea of SetFit (arXiv:2209.11055)."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from common.data.texts import INPUTS, Tokens
from common.progress import ProgressLine


def tune_on_pairs(
    encoder: keras.Model,
    tokens: Tokens,
    labels: np.ndarray,
    *,
    steps: int,
    learning_rate: float,
    batch_size: int = 32,
    seed: int = 0,
) -> list[dict]:
    """Pull texts of one class together and push those of others apart, in the direction of their embeddings.

    SetFit draws pairs and reads both texts of each. Here all pairs within a batch count, so that each text that is
    read teaches as many pairs as the batch has other texts.

    Args:
        encoder: {"token_ids", "padding_mask"} to embeddings; what is trainable in it learns.
        tokens: n texts.
        labels: class of each, int [n].
        steps: batches.
        learning_rate: at its peak; it warms up and falls to 0.
        batch_size: texts in a step, about as many of each class.
        seed: decides which.

    Returns:
        One history row: stage, epoch, loss (mean of the last tenth).
    """
    variables = encoder.trainable_variables
    optimizer = keras.optimizers.AdamW(learning_rate=learning_rate, weight_decay=0.01, global_clipnorm=1.0)
    optimizer.build(variables)

    @tf.function(input_signature=[INPUTS, tf.TensorSpec([None], tf.int64)])
    def train_on(inputs, classes):
        with tf.GradientTape() as tape:
            directions = tf.math.l2_normalize(encoder(inputs, training=True), axis=1)
            cosine = tf.matmul(directions, directions, transpose_b=True)
            wanted = tf.cast(classes[:, None] == classes[None], tf.float32)
            pairs = 1.0 - tf.eye(tf.shape(classes)[0])  # a text and itself tell nothing
            loss = tf.reduce_sum(pairs * (cosine - wanted) ** 2) / tf.reduce_sum(pairs)
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss

    rng, losses = np.random.default_rng(seed), []
    progress = ProgressLine("pairs", steps)
    for step in range(steps):
        chosen = _balanced(rng, labels, batch_size)
        optimizer.learning_rate = learning_rate * _warm_up_and_fall(step, steps)
        inputs = {name: tf.constant(array) for name, array in tokens.batch(chosen).items()}
        losses.append(float(train_on(inputs, tf.constant(labels[chosen]))))
        progress.update(step + 1, f" steps, loss {losses[-1]:.3f}")
    progress.close()
    return [{"stage": "finetune", "epoch": 1, "loss": float(np.mean(losses[-max(1, steps // 10) :]))}]


def _balanced(rng: np.random.Generator, labels: np.ndarray, size: int) -> np.ndarray:
    """Return the places of about equally many texts of each class; all of them where there are no more."""
    if len(labels) <= size:
        return np.arange(len(labels))
    classes = rng.permutation(np.unique(labels))
    each = max(2, size // len(classes))
    chosen = [rng.permutation(np.nonzero(labels == one)[0])[:each] for one in classes[: size // each]]
    return np.concatenate(chosen)


def _warm_up_and_fall(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / max(1.0, 0.1 * steps)) * (1.0 - step / steps)
