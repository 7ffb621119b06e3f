"""Look at the neighbours of values in a row, in core TensorFlow ops."""

from __future__ import annotations

import tensorflow as tf


def later(values: tf.Tensor, steps: int, fill) -> tf.Tensor:
    """Return what stands so many steps after each value, [n]; `fill` where there is nothing."""
    return tf.concat([values, tf.fill([steps], tf.cast(fill, values.dtype))], axis=0)[steps:]


def earlier(values: tf.Tensor, steps: int, fill) -> tf.Tensor:
    """Return what stands so many steps before each value, [n]; `fill` where there is nothing."""
    return tf.concat([tf.fill([steps], tf.cast(fill, values.dtype)), values], axis=0)[: tf.size(values)]
