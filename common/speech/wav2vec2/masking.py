"""Normalisation of samples and masking of spans (SpecAugment) for wav2vec 2.0."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


def normalise(samples: Any, lengths: Any, epsilon: float = 1e-7) -> Any:
    """Give each clip zero mean and unit variance, computed from its real samples only.

    Args:
        samples: float32 [batch, time].
        lengths: real samples per clip, int32 [batch].
        epsilon: added to the variance, the same as in Hugging Face's feature extractor.

    Returns:
        float32 [batch, time], 0 beyond the end of a clip.
    """
    samples = ops.cast(samples, "float32")
    real = real_places(lengths, ops.shape(samples)[1])
    return ops.where(real, standardised(samples, real, epsilon, axis=1), 0.0)


def standardised(values: Any, real: Any, epsilon: float, axis: int) -> Any:
    """Subtract the mean and divide by the standard deviation along an axis, both of the real values."""
    count = ops.maximum(ops.sum(ops.cast(real, values.dtype), axis=axis, keepdims=True), 1.0)
    mean = ops.sum(ops.where(real, values, 0.0), axis=axis, keepdims=True) / count
    centred = ops.where(real, values - mean, 0.0)
    variance = ops.sum(ops.square(centred), axis=axis, keepdims=True) / count
    return centred * ops.rsqrt(variance + epsilon)


def real_places(lengths: Any, size: Any) -> Any:
    """Return which of `size` positions are below each length: bool [batch, size]."""
    return ops.arange(size, dtype="int32")[None] < ops.cast(lengths, "int32")[:, None]


def draw_spans(lengths: Any, size: Any, probability: float, span: int, minimum: int, seed: Any) -> Any:
    """Draw spans to mask in each clip, as wav2vec 2.0 does: they start anywhere and may overlap.

    Args:
        lengths: positions per clip, int32 [batch].
        size: positions of the longest one; int or int32 tensor.
        probability: share of positions that the spans would cover if none overlapped.
        span: positions per span.
        minimum: minimum number of spans per clip, as far as they fit without overlap.
        seed: keras.random.SeedGenerator; an int would repeat the same draw.

    Returns:
        Masked positions, bool [batch, size]; every span lies within its clip.
    """
    lengths = ops.cast(lengths, "int32")
    # Rounded up or down at random, so that the expected number is exact.
    wanted = probability / span * ops.cast(lengths, "float32") + keras.random.uniform((), seed=seed)
    count = ops.minimum(ops.maximum(ops.cast(ops.floor(wanted), "int32"), minimum), lengths // span)
    scores = keras.random.uniform((ops.shape(lengths)[0], size), seed=seed)
    scores = ops.where(real_places(lengths - span + 1, size), scores, -1.0)  # a later span would exceed the clip
    rank = ops.argsort(ops.argsort(-scores, axis=1), axis=1)
    begun = ops.cumsum(ops.cast(rank < count[:, None], "int32"), axis=1)
    ended = ops.pad(begun, [[0, 0], [span, 0]])[:, :size]
    return begun > ended
