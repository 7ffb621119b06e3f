"""Bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 1000


def interval95(values: Sequence[float]) -> list[float]:
    """Return the 2.5th and the 97.5th percentile of the resampled values (percentile method)."""
    return [float(bound) for bound in np.percentile(values, [2.5, 97.5])]
