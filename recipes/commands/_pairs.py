"""Two finished runs compared on the same test examples, in pairs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.bootstrap import ratio_interval95

FILE = "predictions.csv"


def describe_difference(first: Path, second: Path) -> str:
    """Return a sentence that compares two finished runs on the same test examples, in pairs; "" where that cannot be.

    Args:
        first: folder of a run.
        second: folder of another one.
    """
    runs = [_read(folder / FILE) for folder in (first, second)]
    if not all(runs):
        return ""
    one, two = ([(row["example"], row["label"]) for row in rows] for rows in runs)
    if one != two:
        return f"{second} was tested on other examples than {first}: their scores are not comparable."
    errors = np.array([[float(row["errors"]) for row in rows] for rows in runs])
    words = np.array([float(row.get("words", 1)) for row in runs[0]])
    speakers = [row.get("speaker", "") for row in runs[0]]
    by_speaker = all(speakers) and len(set(speakers)) > 1
    change, low, high = paired_difference(errors[1] - errors[0], words, speakers if by_speaker else ())
    name, sign = ("word error rate", 1) if "words" in runs[0][0] else ("accuracy", -1)
    low, high = sorted((sign * low + 0.0, sign * high + 0.0))  # + 0.0: no negative zero
    points = f"{sign * change * 100 + 0.0:+.1f} points (95 % interval {low * 100:+.1f} to {high * 100:+.1f}"
    over = "speakers" if by_speaker else "examples"
    return (
        f"{second} against {first}, on the same {len(words):,} test examples: {name} {points}, in pairs, over {over})."
    )


def paired_difference(
    difference: np.ndarray, totals: np.ndarray, groups: Sequence[str] = (), seed: int = 0
) -> tuple[float, float, float]:
    """Return the difference of the error rates of two models on the same examples, with a bootstrap 95 % interval.

    A bootstrap of few differing examples is too sure: where McNemar's exact test finds no difference, the interval of
    single errors includes 0.

    Args:
        difference: errors of the second model minus those of the first, float [n].
        totals: what could be wrong in each example: 1, or its words, float [n].
        groups: of each example, such as its speaker; resampled as a whole. Empty: single examples are resampled.
        seed: of the resampling.

    Returns:
        (difference, low, high), as fractions.
    """
    from scipy.stats import binomtest  # here: `compare` of runs without predictions does not need it

    single = len(groups) == 0 and bool(np.all(totals == 1))
    better, worse = int(np.sum(difference < 0)), int(np.sum(difference > 0))
    low, high = ratio_interval95(difference, totals, groups, seed) or (-1.0, 1.0)  # a single example tells nothing
    if single and (better + worse == 0 or binomtest(better, better + worse).pvalue >= 0.05):
        low, high = min(low, 0.0), max(high, 0.0)
    return float(difference.sum() / totals.sum()), low, high


def _read(path: Path) -> list[dict[str, str]]:
    """Return the rows of predictions.csv, or none if a run has no such file: one from before, or of a detector."""
    if not path.is_file():
        return []
    csv.field_size_limit(2**31 - 1)  # a text may be long
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
