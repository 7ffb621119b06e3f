"""Bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 1000
FEW_GROUPS = 10  # a bootstrap over fewer declares winners by chance


def interval95(values: Sequence[float]) -> list[float]:
    """Return the 2.5th and the 97.5th percentile of the resampled values (percentile method)."""
    return [float(bound) for bound in np.percentile(values, [2.5, 97.5])]


def ratio_interval95(
    counts: np.ndarray, totals: np.ndarray, groups: Sequence[str] = (), seed: int = 0
) -> list[float] | None:
    """Return the 95 % interval of sum(counts) / sum(totals), such as a rate of errors, or a difference of two.

    A bootstrap over examples, or over groups, each with all its examples. With fewer than FEW_GROUPS, which are too few
    to resample, the interval is Student's, for the ratio of sums over groups (Cochran, 1977, Sampling Techniques,
    section 6.3).

    Args:
        counts: of each example, float [n].
        totals: of each example, float [n].
        groups: of each example, such as its speaker; (): examples are independent.
        seed: of the resampling; the same one draws the same examples or groups.

    Returns:
        [low, high]; None for a single example or group.
    """
    if len(groups):
        number = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
        counts, totals = np.bincount(number, counts), np.bincount(number, totals)
    units = len(counts)
    if units < 2:
        return None
    if len(groups) and units < FEW_GROUPS:
        from scipy.stats import t  # here: slow to import, and most intervals do not need it

        ratio = counts.sum() / totals.sum()
        spread = np.sqrt(units / (units - 1) * np.sum((counts - ratio * totals) ** 2)) / totals.sum()
        return [float(bound) for bound in ratio + spread * t.ppf([0.025, 0.975], units - 1)]
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(0, units, units) for _ in range(RESAMPLES))
    return interval95([counts[chosen].sum() / totals[chosen].sum() for chosen in drawn])
