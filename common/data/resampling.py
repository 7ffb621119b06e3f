"""One resampler for training, evaluation and serving: by Fourier transform, in NumPy and in a TensorFlow graph.

Every usual resampler is a library that no served graph can call. The Fourier transform is in both worlds: transform
the clip, cut its spectrum where the lower of the two rates ends (or extend it by zeros), and transform back.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.fft
import tensorflow as tf

# Up to this share of the lower Nyquist frequency tones pass unchanged; from there they fade out, and at the Nyquist
# frequency nothing is left. A spectrum cut off at once would ring around every click.
_PASSED = 0.91
# Silence behind a clip, in samples of the lower rate. To a Fourier transform the end of a clip is followed by its
# beginning; after so many samples the ringing of a click is below the precision of float32.
_SILENCE = 1000
# Lengths that are transformed quickly: products of 2, 3 and 5, in order.
_FAST_LENGTHS = np.array(
    sorted(2**a * 3**b * 5**c for a in range(31) for b in range(20) for c in range(14) if 2**a * 3**b * 5**c < 2**31),
    np.int64,
)


def resample(samples: np.ndarray, from_rate: float, to_rate: float) -> np.ndarray:
    """Change the rate of a clip without aliasing: what the new rate cannot hold is filtered out first.

    Args:
        samples: float32 [n].
        from_rate: of the samples, Hz.
        to_rate: wanted, Hz. Where a rate is no whole number, the ratio is rounded so that the clip, with the silence
            behind it, becomes a whole number of samples: less than a sample from its beginning to its end.

    Returns:
        float32 [ceil(n * to_rate / from_rate)].
    """
    samples = np.asarray(samples, np.float32)
    if from_rate == to_rate or not len(samples):
        return samples
    before, after, kept = _lengths(len(samples), from_rate, to_rate)
    spectrum = scipy.fft.rfft(samples, before)  # in float32, other than numpy.fft
    held = min(before, after) // 2 + 1
    spectrum = spectrum[:held] * _fade(np.arange(held) / (min(before, after) / 2)).astype(np.float32)
    return scipy.fft.irfft(spectrum, after)[:kept] * np.float32(after / before)


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


def _lengths(count: int, from_rate: float, to_rate: float) -> tuple[int, int, int]:
    """Return the samples with the silence behind them, what these become, and what the clip alone becomes."""
    silence = math.ceil(_SILENCE * from_rate / min(from_rate, to_rate))
    if from_rate != int(from_rate) or to_rate != int(to_rate):
        before = _fast(count + silence)
        # A hair less: 0.1 and its like are no exact numbers, and would make one sample out of nothing.
        return before, round(before * to_rate / from_rate), math.ceil(count * to_rate / from_rate - 1e-6)
    from_rate, to_rate = int(from_rate), int(to_rate)
    divisor = math.gcd(from_rate, to_rate)
    # Blocks of the fewest samples that become a whole number of samples.
    block, becomes = from_rate // divisor, to_rate // divisor
    blocks = _fast(-(-(count + silence) // block))
    return blocks * block, blocks * becomes, -(-count * becomes // block)


def _lengths_in_graph(count: tf.Tensor, rate: tf.Tensor, to_rate: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return what `_lengths` returns for whole rates, int64."""
    to_rate = tf.constant(to_rate, tf.int64)
    silence = -(-_SILENCE * rate // tf.minimum(rate, to_rate))
    divisor, _ = tf.while_loop(lambda a, b: b > 0, lambda a, b: (b, a % b), (rate, to_rate))  # Euclid
    block, becomes = rate // divisor, to_rate // divisor
    wanted = -(-(count + silence) // block)
    blocks = tf.gather(_FAST_LENGTHS, tf.searchsorted(_FAST_LENGTHS, wanted[None])[0])
    return blocks * block, blocks * becomes, -(-count * becomes // block)


def _fast(length: int) -> int:
    return int(_FAST_LENGTHS[np.searchsorted(_FAST_LENGTHS, length)])


def _fade(share: np.ndarray) -> np.ndarray:
    """Return how much of a tone passes, given its frequency as a share of the lower Nyquist frequency."""
    return 0.5 + 0.5 * np.cos(np.pi * np.clip((share - _PASSED) / (1 - _PASSED), 0, 1))


def _fade_in_graph(share: tf.Tensor) -> tf.Tensor:
    faded = tf.clip_by_value((share - _PASSED) / (1 - _PASSED), 0.0, 1.0)
    return tf.cast(0.5 + 0.5 * tf.cos(np.pi * faded), tf.float32)
