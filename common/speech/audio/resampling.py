"""The resampler of training, evaluation and serving: by Fourier transform, in NumPy; `in_graph` has the same.

The usual resamplers are libraries that a served graph cannot call. The Fourier transform is available in both:
transform the clip, cut its spectrum at the lower Nyquist frequency (or pad it with zeros), and transform back.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.fft

# Up to this share of the lower Nyquist frequency tones pass unchanged; above, they fade out down to 0 at the Nyquist
# frequency. A sharp cutoff would ring around every click.
PASSED = 0.91
# Silence after a clip, in samples of the lower rate. In a Fourier transform the end of a clip is followed by its
# beginning; after so many samples the ringing of a click is below the precision of float32.
SILENCE = 1000
# Lengths with a fast transform: products of 2, 3 and 5, in order.
FAST_LENGTHS = np.array(
    sorted(2**a * 3**b * 5**c for a in range(31) for b in range(20) for c in range(14) if 2**a * 3**b * 5**c < 2**31),
    np.int64,
)


def resample(samples: np.ndarray, from_rate: float, to_rate: float) -> np.ndarray:
    """Change the rate of a clip without aliasing: frequencies too high for the new rate are filtered out.

    Args:
        samples: float32 [n].
        from_rate: of the samples, Hz.
        to_rate: new rate, Hz. If a rate is not an integer, the ratio is rounded so that the clip, with the silence
            after it, becomes a whole number of samples: an error of less than one sample over the clip.

    Returns:
        float32 [ceil(n * to_rate / from_rate)].
    """
    samples = np.asarray(samples, np.float32)
    if from_rate == to_rate or not len(samples):
        return samples
    before, after, kept = _lengths(len(samples), from_rate, to_rate)
    spectrum = scipy.fft.rfft(samples, before)  # in float32, unlike numpy.fft
    held = min(before, after) // 2 + 1
    spectrum = spectrum[:held] * _fade(np.arange(held) / (min(before, after) / 2)).astype(np.float32)
    return scipy.fft.irfft(spectrum, after)[:kept] * np.float32(after / before)


def _lengths(count: int, from_rate: float, to_rate: float) -> tuple[int, int, int]:
    """Return the samples with silence, the same at the new rate, and those of the clip alone at the new rate."""
    silence = math.ceil(SILENCE * from_rate / min(from_rate, to_rate))
    if from_rate != int(from_rate) or to_rate != int(to_rate):
        before = _fast(count + silence)
        # Slightly less: 0.1, for example, is not exact in binary and would add a sample.
        return before, round(before * to_rate / from_rate), math.ceil(count * to_rate / from_rate - 1e-6)
    from_rate, to_rate = int(from_rate), int(to_rate)
    divisor = math.gcd(from_rate, to_rate)
    # The smallest blocks that become a whole number of samples.
    block, becomes = from_rate // divisor, to_rate // divisor
    blocks = _fast(-(-(count + silence) // block))
    return blocks * block, blocks * becomes, -(-count * becomes // block)


def _fast(length: int) -> int:
    return int(FAST_LENGTHS[np.searchsorted(FAST_LENGTHS, length)])


def _fade(share: np.ndarray) -> np.ndarray:
    """Return the gain at a frequency, given as a share of the lower Nyquist frequency."""
    return 0.5 + 0.5 * np.cos(np.pi * np.clip((share - PASSED) / (1 - PASSED), 0, 1))
