"""Problems of a data set: near-duplicates across its splits, and suspected label errors."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from common.classification.calibration import apply_temperature, fit_temperature
from common.data.splits import LARGE_GROUP, SPLITS
from common.images.dataset import ImageSet
from common.linear_head import mean_and_std

_SAME_IMAGE = 0.998  # correlation of thumbnails that only resized or recompressed copies of one image reach
_SUSPICIOUS_SHARE = 0.02  # of near-duplicates: unrelated images have some too
_WITHOUT_LAST_NUMBER = r"([^/]*[^/\d])\d+\.[^/.]+$"  # a file name up to its last number
_BLOCK = 2048  # rows in memory at once


@dataclass(frozen=True)
class NearDuplicate:
    """An image and its near-duplicate in an earlier split, both as indices into all splits concatenated."""

    place: int
    other: int
    similarity: float


@dataclass(frozen=True)
class SuspectedLabel:
    """An image whose label the other images contradict; `place` is an index into all splits concatenated.

    `confident`: the suggested class is at least as probable as it is on average for its own images.
    """

    place: int
    suggested: int
    probability_of_given: float
    confident: bool


def near_duplicates(thumbnails: Sequence[np.ndarray], features: Sequence[np.ndarray] = ()) -> list[NearDuplicate]:
    """Find slightly changed copies of an image in two splits of a data set: they make its test result too good.

    Thumbnails detect a different size, compression or brightness; features also detect crops and mirror images.
    How similar different images are depends on the data set, so a pair counts only where its similarity is an
    outlier.

    Args:
        thumbnails: of each split, uint8 [n, pixels].
        features: of each split, float32 [n, width]; without them thumbnails alone are compared, in a second or so.

    Returns:
        For each image with near-duplicates in an earlier split, the nearest of them; the most similar first.
    """
    found = []
    for split in range(1, len(thumbnails)):
        start = sum(map(len, thumbnails[:split]))
        by_thumbnail = _outliers(*_nearest(thumbnails, split, _centred), far_out=5.0)
        by_features = _outliers(*_nearest(features, split, _as_float), far_out=4.0) if len(features) else {}
        # Thumbnails last: where both find a pair, the thumbnails are more reliable.
        found += [
            NearDuplicate(start + row, other, similarity)
            for row, (other, similarity) in sorted({**by_features, **by_thumbnail}.items())
        ]
    return sorted(found, key=lambda pair: -pair.similarity)


def group_advice(data: ImageSet) -> tuple[str, ...]:
    """Return a sentence if near-duplicates across the splits that were made by content suggest `--group`.

    A flag that would keep them together is named if the file names without their last number, such as burst_12_ of
    burst_12_03.jpg, do so without making one group too large.
    """
    parts = [getattr(data, split) for split in SPLITS]
    labels = np.concatenate([part.labels for part in parts])
    paths = np.concatenate([part.paths for part in parts])
    split_of = np.repeat(SPLITS, [len(part) for part in parts])
    pairs = near_duplicates([part.thumbnails for part in parts])
    pairs = [pair for pair in pairs if split_of[pair.place] in data.by_content]
    can = data.name.startswith(("folder:", "csv:"))
    if not can or len(pairs) < max(3, _SUSPICIOUS_SHARE * np.isin(split_of, data.by_content).sum()):
        return ()
    names = [match.group(1) if (match := re.search(_WITHOUT_LAST_NUMBER, path)) else path for path in paths]
    together = sum(names[pair.place] == names[pair.other] for pair in pairs)
    groups_of_class = Counter(label for label, _ in set(zip(labels.tolist(), names, strict=True)))
    small = max(Counter(names).values()) <= LARGE_GROUP * len(names) and min(groups_of_class.values()) >= len(SPLITS)
    helps = small and together > len(pairs) / 2
    flag = "--group COLUMN" if data.name.startswith("csv:") else "--group 'PATTERN WITH ONE (...)'"
    if data.name.startswith("folder:") and helps:
        flag = f"--group {shlex.quote(_WITHOUT_LAST_NUMBER)}"
    return (
        f"{len(pairs):,} images of {' and '.join(data.by_content)} are almost the same as one in another split, such "
        f"as {paths[pairs[0].place]} and {paths[pairs[0].other]}: the scores would be too good. If images belong "
        f"together (a burst, a patient, a document), keep them in one split: {flag}",
    )


def _nearest(splits: Sequence[np.ndarray], split: int, read: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Return for each row of a split the index of the most similar row of the splits before it, and the cosine."""
    place, best = np.zeros(len(splits[split]), int), np.full(len(splits[split]), -1.0, "float32")
    for start, rows in _blocks([splits[split]], read):
        offset = 0
        for earlier in splits[:split]:
            for first, others in _blocks([earlier], read):
                similarity = rows @ others.T
                nearest = similarity.argmax(axis=1)
                value = similarity[np.arange(len(rows)), nearest]
                better = value > best[start : start + len(rows)]
                best[start : start + len(rows)][better] = value[better]
                place[start : start + len(rows)][better] = (offset + first + nearest)[better]
            offset += len(earlier)
    return place, best


def _outliers(place: np.ndarray, similarity: np.ndarray, far_out: float) -> dict[int, tuple[int, float]]:
    # Fisher's transformation spreads values just below 1, so that distances there can be compared.
    spread = np.arctanh(np.clip(similarity.astype("float64"), -0.9999999, 0.9999999))
    median, high = np.quantile(spread, [0.5, 0.9])
    stands_out = (spread > median + far_out * (high - median)) & (similarity > 0.85)
    rows = np.nonzero(stands_out | (similarity >= _SAME_IMAGE))[0]
    return {int(row): (int(place[row]), float(similarity[row])) for row in rows}


def _as_float(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, "float32")
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def _centred(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, "float32")
    return _as_float(rows - rows.mean(axis=1, keepdims=True))


def _blocks(splits: Sequence[np.ndarray], read: Callable) -> Iterator[tuple[int, np.ndarray]]:
    offset = 0
    for split in splits:
        for start in range(0, len(split), _BLOCK):
            yield offset + start, read(split[start : start + _BLOCK])
        offset += len(split)


def suspected_labels(features: Sequence[np.ndarray], labels: np.ndarray, classes: int) -> list[SuspectedLabel]:
    """Find labels that are probably wrong (confident learning, arXiv:1911.00068) on features of a frozen source.

    A label is suspected where another class is more probable, and confidently so where that class is at least as
    probable as it is on average for its own images. The probabilities of each image come from a classifier that was
    fitted without it.

    Args:
        features: of each split, float32 [n, width].
        labels: as given, of all splits, int [all].
        classes: number of classes.

    Returns:
        The suspects, the least probable given label first.
    """
    probabilities = leave_one_out_probabilities(features, labels, classes)
    given = probabilities[np.arange(len(labels)), labels]
    usual = np.array([given[labels == k].mean() if np.any(labels == k) else 2.0 for k in range(classes)])
    confident = np.where(probabilities >= usual, probabilities, 0.0)
    sure = (confident.max(axis=1) > 0) & (confident.argmax(axis=1) != labels)
    suggested = np.where(sure, confident.argmax(axis=1), probabilities.argmax(axis=1))
    suspects = np.nonzero(suggested != labels)[0]
    return [
        SuspectedLabel(int(i), int(suggested[i]), float(given[i]), bool(sure[i]))
        for i in suspects[np.argsort(given[suspects], kind="stable")]
    ]


def _eigen(count: int, width: int, blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues of (rows.T @ rows), float64 [k], and their eigenvectors, float32 [width, k].

    Args:
        count: rows in all.
        width: of a row. With fewer rows there are at most `count` eigenvalues that are not 0, and only those are found:
            they are those of the smaller matrix (rows @ rows.T).
        blocks: float32 [n, width], some rows at a time.
    """
    if count < width:
        rows = np.concatenate(list(blocks))
        values, vectors = np.linalg.eigh((rows @ rows.T).astype("float64"))
        own = values > 1e-6 * max(values[-1], 1e-12)
        return values[own], (rows.T @ (vectors[:, own] / np.sqrt(values[own]))).astype("float32")
    gram = np.zeros((width, width))
    for block in blocks:
        gram += block.T @ block
    values, vectors = np.linalg.eigh(gram)
    return np.maximum(values, 0), vectors.astype("float32")


def leave_one_out_probabilities(features: Sequence[np.ndarray], labels: np.ndarray, classes: int) -> np.ndarray:
    """Return class probabilities of each image from all the others: cross-validation with one fold per image.

    A ridge regression onto the classes needs no fit per fold: its prediction without one example follows from its
    prediction with it and that example's leverage (Hastie, Tibshirani, Friedman, The Elements of Statistical
    Learning, section 7.10). The ridge is the one whose leave-one-out predictions have the least squared error.

    Args:
        features: of each split, float32 [n, width]; read in blocks.
        labels: of all splits, int [all].
        classes: number of classes.

    Returns:
        float32 [all, classes].
    """
    count, width = len(labels), features[0].shape[1]
    mean, std = mean_and_std(features)

    def read(rows: np.ndarray) -> np.ndarray:
        return ((np.asarray(rows) - mean) / std).astype("float32")

    targets = np.eye(classes, dtype="float32")[labels]
    base = targets.mean(axis=0)
    values, vectors = _eigen(count, width, (rows for _, rows in _blocks(features, read)))
    moments = np.zeros((width, classes))
    for start, rows in _blocks(features, read):
        moments += rows.T @ (targets[start : start + len(rows)] - base)
    moments = vectors.T @ moments

    best = (np.inf, np.empty(0))
    for ridge in count * np.geomspace(1e-2, 1e2, 9):
        left_out = np.empty((count, classes), "float32")
        shrink = 1 / (values + ridge)
        for start, rows in _blocks(features, read):
            rows, own = rows @ vectors, slice(start, start + len(rows))
            leverage = np.square(rows) @ shrink[:, None] + 1 / count
            predicted = rows @ (moments * shrink[:, None]) + base
            left_out[own] = (predicted - leverage * targets[own]) / np.maximum(1 - leverage, 1e-6)
        best = min(best, (float(np.square(left_out - targets).mean()), left_out), key=lambda pair: pair[0])
    # Predictions lie between about 0 and 1; the temperature does the rest.
    scores = 10 * (best[1] - best[1].max(axis=1, keepdims=True))
    powers = np.exp(scores)
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    return apply_temperature(probabilities, fit_temperature(labels, probabilities))
