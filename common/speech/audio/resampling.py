"""One resampler for training, evaluation and serving: by Fourier transform, in NumPy; resampling_in_graph has the same.

Every usual resampler is a library that no served graph can call. The Fourier transform is in both worlds: transform
the clip, cut its spectrum where the lower of the two rates ends (or extend it by zeros), and transform back.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.fft

# Up to this share of the lower Nyquist frequency tones pass unchanged; from there they fade out, and at the Nyquist
# frequency nothing is left. A spectrum cut off at once would ring around every click.
PASSED = 0.91
# Silence behind a clip, in samples of the lower rate. To a Fourier transform the end of a clip is followed by its
# beginning; after so many samples the ringing of a click is below the precision of float32.
SILENCE = 1000
# Lengths that are transformed quickly: products of 2, 3 and 5, in order.
FAST_LENGTHS = np.array(
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


def _lengths(count: int, from_rate: float, to_rate: float) -> tuple[int, int, int]:
    """Return the samples with the silence behind them, what these become, and what the clip alone becomes."""
    silence = math.ceil(SILENCE * from_rate / min(from_rate, to_rate))
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


def _fast(length: int) -> int:
    return int(FAST_LENGTHS[np.searchsorted(FAST_LENGTHS, length)])


def _fade(share: np.ndarray) -> np.ndarray:
    """Return how much of a tone passes, given its frequency as a share of the lower Nyquist frequency."""
    return 0.5 + 0.5 * np.cos(np.pi * np.clip((share - PASSED) / (1 - PASSED), 0, 1))
