"""Shift values to align each with its neighbours, in core TensorFlow ops."""

from __future__ import annotations

import tensorflow as tf


def later(values: tf.Tensor, steps: int, fill) -> tf.Tensor:
    """Return the value so many steps after each value, [n]; `fill` beyond the end."""
    return tf.concat([values, tf.fill([steps], tf.cast(fill, values.dtype))], axis=0)[steps:]


def earlier(values: tf.Tensor, steps: int, fill) -> tf.Tensor:
    """Return the value so many steps before each value, [n]; `fill` before the start."""
    return tf.concat([tf.fill([steps], tf.cast(fill, values.dtype)), values], axis=0)[: tf.size(values)]
