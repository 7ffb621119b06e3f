"""How long fine-tuning on texts would take, from a few timed steps."""

from __future__ import annotations

import keras
import numpy as np

from common.progress import median_seconds
from common.texts.batches import Tokens, shuffled_by_length


def seconds_of_steps(
    model: keras.Model, encoder: keras.Model, tokens: Tokens, labels: np.ndarray, batch_size: int, seed: int = 0
) -> tuple[float, float]:
    """Return the seconds of a training step, and of embedding one text; this changes the weights of the model.

    Args:
        model: {"token_ids", "padding_mask"} -> class probabilities, with its trainable weights as in training.
        encoder: its part up to the embeddings.
        tokens: of the training texts.
        labels: of these texts, int [n].
        batch_size: rows per step.
        seed: of the batches; that of median length represents all.
    """
    rows = median_batch(tokens, batch_size, seed)
    targets = np.eye(model.output_shape[-1], dtype="float32")[labels[tokens.owners[rows]]]
    inputs = tokens.batch(rows)
    model.compile("adam", "categorical_crossentropy", jit_compile=False)
    step = median_seconds(lambda: model.train_on_batch(inputs, targets))
    return step, median_seconds(lambda: encoder.predict_on_batch(inputs)) / len(rows)


def median_batch(tokens: Tokens, batch_size: int, seed: int) -> np.ndarray:
    """Return the rows of the training batch of median length, which represents all in time estimates."""
    order = shuffled_by_length(tokens, batch_size, (seed, 0))
    return sorted(order, key=lambda rows: tokens.row_lengths[rows].max())[len(order) // 2]
