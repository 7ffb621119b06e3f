"""Detections matched to labelled objects, box by box: misses, false positives, confusion matrix and threshold.

pycocotools decides every match, as in `metrics`, so that all numbers of a report agree: greedily by score, per class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask

from common.detection.dataset import BoxExamples
from common.detection.metrics import ALL_SIZES, Detections, compare

# In place of the number of a box or of a detection.
UNMATCHED = -1  # an object without a detection, a detection without an object
NOT_JUDGED = -2  # a crowd, a detection that lies on one, a detection below the threshold


@dataclass(frozen=True)
class Matching:
    """The matches of one image.

    Attributes:
        found_by: for each labelled box the number of the matching detection, UNMATCHED, or NOT_JUDGED (a crowd);
            int64 [boxes].
        finds: for each detection the number of the matching box, UNMATCHED, or NOT_JUDGED (below the threshold, or on
            a crowd); int64 [detections].
        misnamed: box and detection of each pair in the same place with different classes, int64 [pairs, 2]. Each counts
            as a miss and as a false positive as well.
    """

    found_by: np.ndarray
    finds: np.ndarray
    misnamed: np.ndarray

    @property
    def missed(self) -> np.ndarray:
        """Return the numbers of the boxes without a detection."""
        return np.flatnonzero(self.found_by == UNMATCHED)

    @property
    def false_positives(self) -> np.ndarray:
        """Return the numbers of the detections without an object."""
        return np.flatnonzero(self.finds == UNMATCHED)


def match(examples: BoxExamples, detections: Detections, threshold: float, iou: float = 0.5) -> list[Matching]:
    """Match the detections of each image to its objects as COCO does: by score, per class.

    Args:
        examples: the labelled boxes.
        detections: of the same images.
        threshold: detections below it are not judged.
        iou: least overlap of a detection with its object.

    Returns:
        One Matching per image; its numbers refer to the boxes and detections in the given order.
    """
    truths, kept = examples.as_stored(), detections.of(threshold)
    places = [np.flatnonzero(scores >= np.float32(threshold)) for scores in detections.scores]
    labels = sorted({int(label) for one in (*truths.labels, *kept.labels) for label in one})
    most = max((len(scores) for scores in kept.scores), default=0)  # all are judged, not only COCO's hundred
    run = compare(truths, kept, labels, ious=[iou], areas=ALL_SIZES, most=max(most, 1))

    box_of, detection_of = (np.concatenate([[0], *map(np.arange, map(len, one.boxes))]) for one in (truths, kept))
    found_by = [np.where(crowds, NOT_JUDGED, UNMATCHED) for crowds in truths.crowds]
    finds = [np.full(len(scores), NOT_JUDGED) for scores in detections.scores]
    for seen in filter(None, run.evalImgs):
        image = seen["image_id"] - 1
        numbers = places[image][detection_of[np.array(seen["dtIds"], dtype=int)]]
        boxes = seen["dtMatches"][0].astype(int)
        finds[image][numbers] = np.where(seen["dtIgnore"][0], NOT_JUDGED, np.where(boxes > 0, box_of[boxes], UNMATCHED))
    for found, finding in zip(found_by, finds, strict=True):
        found[finding[finding >= 0]] = np.flatnonzero(finding >= 0)
    return [
        Matching(*pair, _misnamed(truths.boxes[place], detections.boxes[place], detections.scores[place], *pair, iou))
        for place, pair in enumerate(zip(found_by, finds, strict=True))
    ]


def _misnamed(truths, boxes, scores, found_by, finds, iou: float) -> np.ndarray:
    """Return pairs of a missed box and a false positive in the same place, highest score first; int64 [pairs, 2]."""
    missed, pairs = np.flatnonzero(found_by == UNMATCHED), []
    wrong = np.flatnonzero(finds == UNMATCHED)
    wrong = wrong[np.argsort(-scores[wrong], kind="stable")]
    overlaps = _overlaps(boxes[wrong], truths[missed])
    for row, detection in enumerate(wrong):
        best = overlaps[row].argmax() if len(missed) else 0
        if len(missed) and overlaps[row, best] >= iou:
            pairs.append((missed[best], detection))
            overlaps[:, best] = 0  # each box is one object and has one wrong class
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the IoU of each box with each other one, float64 [k, m]."""
    if not (len(boxes) and len(others)):
        return np.zeros((len(boxes), len(others)))
    corners = [np.asarray(some, np.float64) for some in (boxes, others)]
    sides = [np.concatenate([one[:, :2], one[:, 2:] - one[:, :2]], axis=1) for one in corners]
    return mask.iou(*sides, [0] * len(others))


def confusion(examples: BoxExamples, detections: Detections, matchings: Sequence[Matching], classes: int) -> np.ndarray:
    """Return the confusion matrix of the objects.

    Returns:
        int64 [classes + 1, classes + 1]: rows are true classes, columns detected classes. The last row counts
        detections without an object, the last column missed objects. Crowds are excluded.
    """
    counts = np.zeros((classes + 1, classes + 1), np.int64)
    for truths, detected, one in zip(examples.labels, detections.labels, matchings, strict=True):
        found = np.flatnonzero(one.found_by >= 0)
        np.add.at(counts, (truths[found], truths[found]), 1)
        boxes, wrong = one.misnamed.T
        np.add.at(counts, (truths[boxes], detected[wrong]), 1)
        np.add.at(counts, (truths[np.setdiff1d(one.missed, boxes)], classes), 1)
        np.add.at(counts, (classes, detected[np.setdiff1d(one.false_positives, wrong)]), 1)
    return counts


def threshold_table(
    examples: BoxExamples, detections: Detections, thresholds: Sequence[float] | None = None
) -> list[dict]:
    """Return precision, recall and F1 at IoU 0.5 of the detections at or above each threshold.

    Args:
        examples: the labelled boxes; of the validation split where a threshold is to be chosen.
        detections: of the same images.
        thresholds: 0.01 to 0.99 by default.

    Returns:
        One row per threshold: "threshold", "precision" (None without detections), "recall", "f1", "false_alarms" (false
        positives per image); all classes together.
    """
    thresholds = [number / 100 for number in range(1, 100)] if thresholds is None else thresholds
    matchings = match(examples, detections, min(thresholds))
    scores = np.concatenate([np.zeros(0, np.float32), *detections.scores])
    finds = np.concatenate([np.zeros(0, np.int64), *(one.finds for one in matchings)])
    # Removing detections of lower scores changes no match, so one matching serves all thresholds.
    right, wrong = scores[finds >= 0], scores[finds == UNMATCHED]
    truths = sum(int((one.found_by != NOT_JUDGED).sum()) for one in matchings)
    rows = []
    for threshold in thresholds:
        hits, misses = (int((some >= np.float32(threshold)).sum()) for some in (right, wrong))
        rows.append(
            {
                "threshold": float(threshold),
                "precision": hits / (hits + misses) if hits + misses else None,
                "recall": hits / truths if truths else None,
                "f1": 2 * hits / (hits + misses + truths) if truths else None,
                "false_alarms": misses / len(examples) if len(examples) else None,
            }
        )
    return rows


def recommend_threshold(rows: Sequence[dict]) -> float:
    """Return the threshold with the best F1; of equal ones the highest, which gives the fewest false positives.

    Without a single correct detection at any threshold it is 0.5.
    """
    best = max(rows, key=lambda row: (row["f1"] or 0, row["threshold"]))
    return best["threshold"] if best["f1"] else 0.5
