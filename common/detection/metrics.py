"""COCO's average precision of detections, with 95 % intervals, paired gains, and curves of precision over recall.

pycocotools decides every match, so that all numbers of a report agree: greedily by score, per class. Boxes are compared
in pixels of the stored image, which TensorFlow decodes and detectors return; all public functions convert the labelled
boxes of photos with an EXIF orientation.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from common.detection.dataset import BoxExamples

RESAMPLES = 200
SIZES = ("small", "medium", "large")  # of COCO: up to 32 x 32 pixels, up to 96 x 96, and above
_IOUS = {"ap50": [0], "ap": slice(None), "ap75": [5]}  # which of COCO's ten IoUs, 0.50 to 0.95, are averaged
_RECALLS = np.linspace(0, 1, 101)
ALL_SIZES = [[0.0, 1e10]]


@dataclass(frozen=True)
class Detections:
    """What a detector found in some images.

    Attributes:
        boxes: xmin, ymin, xmax, ymax in pixels of each image as stored, n arrays of float32 [k, 4].
        scores: confidence of each box, 0 to 1, n arrays of float32 [k].
        labels: class number of each box, n arrays of int64 [k].
    """

    boxes: tuple[np.ndarray, ...]
    scores: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]

    def __post_init__(self):
        for place, (boxes, scores, labels) in enumerate(zip(self.boxes, self.scores, self.labels, strict=True)):
            if boxes.shape != (len(scores), 4) or len(labels) != len(scores):
                raise ValueError(
                    f"Detections need one box, one score and one label each. Received for image {place}: boxes of "
                    f"shape {boxes.shape}, {len(scores)} scores, {len(labels)} labels."
                )
            if not (np.isfinite(boxes).all() and np.isfinite(scores).all() and (boxes[:, 2:] >= boxes[:, :2]).all()):
                raise ValueError(f"Detections must be finite, with min <= max. Received others for image {place}.")

    def __len__(self) -> int:
        return len(self.boxes)

    def of(self, threshold: float) -> Detections:
        """Return those with at least this score."""
        keep = [scores >= np.float32(threshold) for scores in self.scores]
        chosen = [
            tuple(one[kept] for one, kept in zip(values, keep, strict=True))
            for values in (self.boxes, self.scores, self.labels)
        ]
        return Detections(*chosen)


@dataclass(frozen=True)
class Curve:
    """Precision and recall of one class, in descending order of scores.

    Attributes:
        scores: of each judged detection, float [k], descending.
        recall: share of the objects found by the detections up to this one, float [k].
        precision: share of these detections that are correct, float [k].
    """

    scores: np.ndarray
    recall: np.ndarray
    precision: np.ndarray

    @property
    def envelope(self) -> np.ndarray:
        """Return the best precision at each recall or above, float [k]: AP50 is the area under it."""
        return np.maximum.accumulate(self.precision[::-1])[::-1]


# --- numbers ----------------------------------------------------------------------------------------------


def evaluate(examples: BoxExamples, detections: Detections, class_names: Sequence[str], seed: int = 0) -> dict:
    """Return COCO's metrics, with 95 % intervals from resampled images (percentile bootstrap).

    A class without boxes in these images has no AP and is not part of the mean. Crowds need not be found, and
    detections on them are ignored. Per image and class, the 100 detections with the highest scores count.

    Args:
        examples: the labelled boxes.
        detections: of the same images.
        class_names: name of each class number.
        seed: of the resampling.

    Returns:
        {"ap50", "ap", "ap75", each with "..._ci95": [low, high] if there are at least two images, "ar100",
        "per_class": rows of "class", "ap50", "ap", "boxes", "by_size": {"small", "medium", "large": {"ap", "boxes"}}}.
        None where it cannot be measured.
    """
    truths = examples.as_stored()
    run = compare(truths, detections, range(len(class_names)))
    with contextlib.redirect_stdout(io.StringIO()):
        run.accumulate()
    precision, recall = run.eval["precision"][..., -1], run.eval["recall"][..., -1]  # [iou, recall, class, size]
    drawn = _resampled(_ranked(run), len(truths), seed)

    metrics: dict = {}
    for name, ious in _IOUS.items():
        metrics[name] = _mean(precision[ious, :, :, 0])
        if len(drawn):
            metrics[f"{name}_ci95"] = _interval(drawn[:, ious].mean(axis=1))
    metrics["ar100"] = _mean(recall[:, :, 0])

    judged = [~crowds for crowds in truths.crowds]
    labels = np.concatenate([np.zeros(0, np.int64), *_where(truths.labels, judged)])
    boxes = np.concatenate([np.zeros((0, 4)), *_where(truths.boxes, judged)])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    metrics["per_class"] = [
        {
            "class": name,
            "ap50": _mean(precision[_IOUS["ap50"], :, number, 0]),
            "ap": _mean(precision[:, :, number, 0]),
            "boxes": int((labels == number).sum()),
        }
        for number, name in enumerate(class_names)
    ]
    metrics["by_size"] = {
        name: {
            "ap": _mean(precision[:, :, :, place]),
            "boxes": int(((areas >= run.params.areaRng[place][0]) & (areas <= run.params.areaRng[place][1])).sum()),
        }
        for place, name in enumerate(SIZES, start=1)
    }
    return metrics


def paired_gain(
    examples: BoxExamples, ours: Detections, theirs: Detections, classes: int, seed: int = 0
) -> tuple[float, float, float] | None:
    """Return the gain in AP50 of one detector over another on the same images, with its 95 % interval.

    Returns:
        (gain, low, high), as fractions of 1; None where nothing can be resampled.
    """
    truths, drawn, measured = examples.as_stored(), [], []
    for detections in (ours, theirs):
        ranked = _ranked(compare(truths, detections, range(classes), ious=[0.5], areas=ALL_SIZES))
        measured.append(_mean_precision(ranked, np.ones(len(truths), np.int64)))
        drawn.append(_resampled(ranked, len(truths), seed))
    if not len(drawn[0]):
        return None
    low, high = _interval(drawn[0][:, 0] - drawn[1][:, 0])
    return _rounded(measured[0][0] - measured[1][0]), low, high


def precision_recall(examples: BoxExamples, detections: Detections, label: int) -> Curve | None:
    """Return the curve of one class at IoU 0.5; None if these images have no box of it."""
    [ranked] = _ranked(compare(examples.as_stored(), detections, [label], ious=[0.5], areas=ALL_SIZES))
    if not ranked.truths.sum():
        return None
    judged = ranked.right[0] | ranked.wrong[0]
    right = ranked.right[0][judged].cumsum()
    return Curve(ranked.scores[judged], right / ranked.truths.sum(), right / np.arange(1, len(right) + 1))


# --- pycocotools: its inputs and outputs ------------------------------------------------------------------


def compare(truths: BoxExamples, detections: Detections, labels: Sequence[int], *, ious=None, areas=None, most=None):
    """Match the boxes of some classes with pycocotools, which numbers classes and images from 1."""
    if len(truths) != len(detections):
        raise ValueError(f"Detections must be of the same images: {len(truths)}. Received: those of {len(detections)}.")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress, with no option to disable that
        run = COCOeval(_coco(truths.boxes, truths.labels, labels, iscrowd=truths.crowds),
                       _coco(detections.boxes, detections.labels, labels, score=detections.scores), "bbox")  # fmt: skip
        run.params.iouThrs = run.params.iouThrs if ious is None else np.array(ious)
        run.params.areaRng = run.params.areaRng if areas is None else areas
        run.params.maxDets = run.params.maxDets if most is None else [most]
        run.evaluate()
    return run


def _coco(boxes: Sequence[np.ndarray], labels: Sequence[np.ndarray], chosen: Sequence[int], **more) -> COCO:
    """Return boxes in the format of pycocotools. Boxes of other classes are omitted, but keep their numbers."""
    annotations, number, chosen = [], 0, set(chosen)
    [(name, values)] = more.items()
    for image, (some, of_class, extra) in enumerate(zip(boxes, labels, values, strict=True), start=1):
        wide = some.astype(np.float64)  # pycocotools computes in float64
        sides = wide[:, 2:] - wide[:, :2]
        for box, (width, height), label, value in zip(wide, sides, of_class.tolist(), extra.tolist(), strict=True):
            number += 1  # from 1: pycocotools takes a match with box 0 for none
            if label in chosen:
                annotations.append({"id": number, "image_id": image, "category_id": label + 1, name: value,
                                    "bbox": [*box[:2].tolist(), width, height], "area": width * height})  # fmt: skip
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image + 1} for image in range(len(boxes))],
        "categories": [{"id": label + 1} for label in sorted(chosen)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


@dataclass(frozen=True)
class _Ranked:
    """The detections of one class in all images, highest score first.

    Attributes:
        scores: float [k].
        images: index of the image of each, int [k].
        right: whether it matches a box, at each IoU, bool [ious, k].
        wrong: whether it matches none, bool [ious, k]; detections on a crowd are neither.
        truths: number of boxes to find in each image, int [images].
    """

    scores: np.ndarray
    images: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    truths: np.ndarray


def _ranked(run: COCOeval) -> list[_Ranked]:
    """Return the matches of each class, of boxes of every size, from the results of `COCOeval.evaluate`."""
    images, sizes, ious = len(run.params.imgIds), len(run.params.areaRng), len(run.params.iouThrs)
    ranked = []
    for number in range(len(run.params.catIds)):
        first = number * sizes * images  # by class, then by size, of which "all" is the first
        seen = [one for one in run.evalImgs[first : first + images] if one]
        truths = np.zeros(images, np.int64)
        for one in seen:
            truths[one["image_id"] - 1] = np.count_nonzero(one["gtIgnore"] == 0)
        scores = np.concatenate([[], *(one["dtScores"] for one in seen)])
        places = np.concatenate([np.zeros(0, int), *(np.full(len(one["dtIds"]), one["image_id"] - 1) for one in seen)])
        matched, ignored = (
            np.concatenate([np.zeros((ious, 0), bool), *(one[key].astype(bool) for one in seen)], axis=1)
            for key in ("dtMatches", "dtIgnore")
        )
        order = np.argsort(-scores, kind="stable")
        ranked.append(
            _Ranked(
                scores[order], places[order], (matched & ~ignored)[:, order], (~matched & ~ignored)[:, order], truths
            )
        )
    return ranked


def _resampled(ranked: Sequence[_Ranked], images: int, seed: int) -> np.ndarray:
    """Return AP at each IoU for each bootstrap sample of the images, float [at most RESAMPLES, ious].

    An image drawn twice counts twice; matches are reused. Fewer than two images cannot be resampled, and samples
    without any box have no AP.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES if images > 1 else 0):
        times = np.bincount(rng.integers(0, images, images), minlength=images)
        drawn.append(_mean_precision(ranked, times))
    drawn = np.array(drawn).reshape(-1, len(ranked[0].right))
    return drawn[np.isfinite(drawn).all(axis=1)]


def _mean_precision(ranked: Sequence[_Ranked], times: np.ndarray) -> np.ndarray:
    """Return AP at each IoU with each image counted so many times, float [ious]; NaN without boxes."""
    found = [_precision(one, times) for one in ranked if times @ one.truths]
    return np.mean(found, axis=0) if found else np.full(len(ranked[0].right), np.nan)


def _precision(ranked: _Ranked, times: np.ndarray) -> np.ndarray:
    """Return COCO's AP of one class: the mean over 101 recalls of the best precision at or above each; float [ious]."""
    weights = times[ranked.images]
    right, wrong = np.cumsum(ranked.right * weights, axis=1), np.cumsum(ranked.wrong * weights, axis=1)
    precision = right / np.maximum(right + wrong, 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    envelope = np.concatenate([envelope, np.zeros((len(envelope), 1))], axis=1)  # recalls that are not reached
    recall = right / (times @ ranked.truths)
    return np.array([row[np.searchsorted(up, _RECALLS)].mean() for row, up in zip(envelope, recall, strict=True)])


def _where(values: Sequence[np.ndarray], keep: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [one[kept] for one, kept in zip(values, keep, strict=True)]


def _mean(values: np.ndarray) -> float | None:
    """Return the mean of the measured values; pycocotools marks others with -1."""
    measured = values[values > -1]
    return _rounded(measured.mean()) if len(measured) else None


def _interval(values: np.ndarray) -> list[float]:
    return [_rounded(bound) for bound in np.percentile(values, [2.5, 97.5])]


def _rounded(value: float) -> float:
    # Metric and interval are summed in different orders: without rounding, they could miss each other by 1e-16.
    return round(float(value), 6)
