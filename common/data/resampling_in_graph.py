"""The resampler of common/data/resampling.py in core ops of TensorFlow: a served model hears what evaluation heard.

Apart from it, so that reading sounds does without TensorFlow.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from common.data.resampling import FAST_LENGTHS, PASSED, SILENCE


def resample_in_graph(samples: tf.Tensor, rate: tf.Tensor, to_rate: int) -> tf.Tensor:
    """Change the rate of a clip as `resample` does, in core ops of TensorFlow.

    Args:
        samples: float32 [n].
        rate: of the samples, whole number of Hz, an int tensor: the same graph takes any rate.
        to_rate: wanted, Hz.

    Returns:
        float32 [ceil(n * to_rate / rate)], as `resample` but for rounding.
    """

    def changed() -> tf.Tensor:
        before, after, kept = _lengths_in_graph(tf.size(samples, tf.int64), tf.cast(rate, tf.int64), to_rate)
        spectrum = tf.signal.rfft(samples, tf.cast(before, tf.int32)[None])
        lower = tf.minimum(before, after)
        held = lower // 2 + 1
        share = tf.cast(tf.range(held), tf.float64) / (tf.cast(lower, tf.float64) / 2)
        spectrum = spectrum[:held] * tf.cast(_fade_in_graph(share), tf.complex64)
        scale = tf.cast(after / before, tf.float32)  # int64 by int64 is float64
        return tf.signal.irfft(spectrum, tf.cast(after, tf.int32)[None])[:kept] * scale

    unchanged = tf.logical_or(tf.equal(rate, to_rate), tf.equal(tf.size(samples), 0))
    return tf.ensure_shape(tf.cond(unchanged, lambda: samples, changed), [None])


def _lengths_in_graph(count: tf.Tensor, rate: tf.Tensor, to_rate: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return what `_lengths` returns for whole rates, int64."""
    to_rate = tf.constant(to_rate, tf.int64)
    silence = -(-SILENCE * rate // tf.minimum(rate, to_rate))
    divisor, _ = tf.while_loop(lambda a, b: b > 0, lambda a, b: (b, a % b), (rate, to_rate))  # Euclid
    block, becomes = rate // divisor, to_rate // divisor
    wanted = -(-(count + silence) // block)
    blocks = tf.gather(FAST_LENGTHS, tf.searchsorted(FAST_LENGTHS, wanted[None])[0])
    return blocks * block, blocks * becomes, -(-count * becomes // block)


def _fade_in_graph(share: tf.Tensor) -> tf.Tensor:
    faded = tf.clip_by_value((share - PASSED) / (1 - PASSED), 0.0, 1.0)
    return tf.cast(0.5 + 0.5 * tf.cos(np.pi * faded), tf.float32)
