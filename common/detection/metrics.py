"""How good found boxes are: COCO's numbers with intervals, curves, thresholds, and what became of each single box.

Which box found which object is decided by pycocotools everywhere, so that no two numbers of a report disagree: greedily
by score, each class for itself. Truths are measured in the pixels as stored, which is what TensorFlow decodes and
detectors answer in; `evaluate` and its neighbours turn the boxes of photos that lie on their side by themselves.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from common.detection.dataset import BoxExamples

RESAMPLES = 200
SIZES = ("small", "medium", "large")  # of COCO: up to 32 x 32 pixels, up to 96 x 96, and above
_IOUS = {"ap50": [0], "ap": slice(None), "ap75": [5]}  # which of COCO's ten, 0.50 to 0.95, each is the mean over
_RECALLS = np.linspace(0, 1, 101)
_EVERYTHING = [[0.0, 1e10]]
# What a number says that is not the number of a box or of a detection.
NOBODY = -1  # a box that nobody found, a detection that found nothing
NOT_JUDGED = -2  # a crowd, a detection that lies on one, a detection below the threshold


@dataclass(frozen=True)
class Detections:
    """What a detector said of some pictures.

    Attributes:
        boxes: xmin, ymin, xmax, ymax in pixels of each picture as it is stored, n arrays of float32 [k, 4].
        scores: how sure each box is, 0 to 1, n arrays of float32 [k].
        labels: class number of each box, n arrays of int64 [k].
    """

    boxes: tuple[np.ndarray, ...]
    scores: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]

    def __post_init__(self):
        for place, (boxes, scores, labels) in enumerate(zip(self.boxes, self.scores, self.labels, strict=True)):
            if boxes.shape != (len(scores), 4) or len(labels) != len(scores):
                raise ValueError(
                    f"detections need one box, one score and one label each; picture {place} has boxes of shape "
                    f"{boxes.shape}, {len(scores)} scores and {len(labels)} labels"
                )
            if not (np.isfinite(boxes).all() and np.isfinite(scores).all() and (boxes[:, 2:] >= boxes[:, :2]).all()):
                raise ValueError(f"detections need finite numbers and min <= max; picture {place} has others")

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
    """Precision and recall of one class, from the surest detection down.

    Attributes:
        scores: of each detection that is judged, float [k], falling.
        recall: share of the objects found by the detections up to this one, float [k].
        precision: share of these detections that are right, float [k].
    """

    scores: np.ndarray
    recall: np.ndarray
    precision: np.ndarray

    @property
    def envelope(self) -> np.ndarray:
        """Return the best precision at this recall or more, float [k]: AP50 is the area under it."""
        return np.maximum.accumulate(self.precision[::-1])[::-1]


@dataclass(frozen=True)
class Matching:
    """What became of the boxes of one picture.

    Attributes:
        found_by: of each true box the number of the detection that found it, NOBODY, or NOT_JUDGED (a crowd);
            int64 [boxes].
        finds: of each detection the number of the box that it found, NOBODY, or NOT_JUDGED (below the threshold, or on
            a crowd); int64 [detections].
        misnamed: box and detection of each pair that is in one place and differs in name, int64 [pairs, 2]. Both count
            as a miss and a false alarm as well.
    """

    found_by: np.ndarray
    finds: np.ndarray
    misnamed: np.ndarray

    @property
    def missed(self) -> np.ndarray:
        """Return the numbers of the boxes that nobody found."""
        return np.flatnonzero(self.found_by == NOBODY)

    @property
    def false_alarms(self) -> np.ndarray:
        """Return the numbers of the detections that found nothing."""
        return np.flatnonzero(self.finds == NOBODY)


# --- numbers ----------------------------------------------------------------------------------------------


def evaluate(examples: BoxExamples, detections: Detections, class_names: Sequence[str], seed: int = 0) -> dict:
    """Return COCO's metrics, with 95 % intervals from pictures drawn again (percentile method).

    A class without boxes in these pictures has no AP and does not count in the mean. Crowds are neither asked for nor
    is what lies on them punished. Of each picture and class the 100 surest detections count.

    Args:
        examples: the truth.
        detections: of the same pictures.
        class_names: name of each class number.
        seed: decides the resampling.

    Returns:
        {"ap50", "ap", "ap75", each with its "..._ci95": [low, high] where there are two pictures to draw from, "ar100",
        "per_class": rows of "class", "ap50", "ap", "boxes", "by_size": {"small", "medium", "large": {"ap", "boxes"}}}.
        None is what cannot be measured here.
    """
    truths = examples.as_stored()
    run = _compare(truths, detections, range(len(class_names)))
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
    """Return the gain in AP50 of one detector over another on the same pictures, with its 95 % interval.

    Returns:
        (gain, low, high), as shares of 1; None where there is nothing to draw from.
    """
    truths, drawn, measured = examples.as_stored(), [], []
    for detections in (ours, theirs):
        ranked = _ranked(_compare(truths, detections, range(classes), ious=[0.5], areas=_EVERYTHING))
        measured.append(_mean_precision(ranked, np.ones(len(truths), np.int64)))
        drawn.append(_resampled(ranked, len(truths), seed))
    if not len(drawn[0]):
        return None
    low, high = _interval(drawn[0][:, 0] - drawn[1][:, 0])
    return _rounded(measured[0][0] - measured[1][0]), low, high


def precision_recall(examples: BoxExamples, detections: Detections, label: int) -> Curve | None:
    """Return the curve of one class at IoU 0.5; None where these pictures have no box of it."""
    [ranked] = _ranked(_compare(examples.as_stored(), detections, [label], ious=[0.5], areas=_EVERYTHING))
    if not ranked.truths.sum():
        return None
    judged = ranked.right[0] | ranked.wrong[0]
    right = ranked.right[0][judged].cumsum()
    return Curve(ranked.scores[judged], right / ranked.truths.sum(), right / np.arange(1, len(right) + 1))


# --- thresholds -------------------------------------------------------------------------------------------


def threshold_table(
    examples: BoxExamples, detections: Detections, thresholds: Sequence[float] | None = None
) -> list[dict]:
    """Say for each threshold what an answer is worth that keeps only the detections above it, at IoU 0.5.

    Args:
        examples: the truth: validation pictures, wherever a threshold is to be chosen.
        detections: of the same pictures.
        thresholds: None is 0.01 to 0.99.

    Returns:
        One row a threshold: "threshold", "precision" (None where nothing is found at all), "recall", "f1",
        "false_alarms" a picture; all classes counted together.
    """
    thresholds = [number / 100 for number in range(1, 100)] if thresholds is None else thresholds
    matchings = match(examples, detections, min(thresholds))
    scores = np.concatenate([np.zeros(0, np.float32), *detections.scores])
    finds = np.concatenate([np.zeros(0, np.int64), *(one.finds for one in matchings)])
    # A match does not change when detections of lower scores go, so that one matching serves all thresholds.
    right, wrong = scores[finds >= 0], scores[finds == NOBODY]
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
    """Return the threshold of the best F1; of several the highest, which raises fewer false alarms elsewhere.

    Where not one detection is right at any threshold there is nothing to choose by, and it is 0.5.
    """
    best = max(rows, key=lambda row: (row["f1"] or 0, row["threshold"]))
    return best["threshold"] if best["f1"] else 0.5


# --- box by box -------------------------------------------------------------------------------------------


def match(examples: BoxExamples, detections: Detections, threshold: float, iou: float = 0.5) -> list[Matching]:
    """Say of each picture which boxes were found, and by which detection, as COCO does: by score, class by class.

    Args:
        examples: the truth.
        detections: of the same pictures.
        threshold: detections below it are not judged.
        iou: how much a detection must overlap the box that it finds.

    Returns:
        One Matching a picture; its numbers count the boxes and detections as they were given.
    """
    truths, kept = examples.as_stored(), detections.of(threshold)
    places = [np.flatnonzero(scores >= np.float32(threshold)) for scores in detections.scores]
    labels = sorted({int(label) for one in (*truths.labels, *kept.labels) for label in one})
    most = max((len(scores) for scores in kept.scores), default=0)  # all are judged, and not only COCO's hundred
    run = _compare(truths, kept, labels, ious=[iou], areas=_EVERYTHING, most=max(most, 1))

    box_of, detection_of = (np.concatenate([[0], *map(np.arange, map(len, one.boxes))]) for one in (truths, kept))
    found_by = [np.where(crowds, NOT_JUDGED, NOBODY) for crowds in truths.crowds]
    finds = [np.full(len(scores), NOT_JUDGED) for scores in detections.scores]
    for seen in filter(None, run.evalImgs):
        picture = seen["image_id"] - 1
        numbers = places[picture][detection_of[np.array(seen["dtIds"], dtype=int)]]
        boxes = seen["dtMatches"][0].astype(int)
        finds[picture][numbers] = np.where(seen["dtIgnore"][0], NOT_JUDGED, np.where(boxes > 0, box_of[boxes], NOBODY))
    for found, finding in zip(found_by, finds, strict=True):
        found[finding[finding >= 0]] = np.flatnonzero(finding >= 0)
    return [
        Matching(*pair, _misnamed(truths.boxes[place], detections.boxes[place], detections.scores[place], *pair, iou))
        for place, pair in enumerate(zip(found_by, finds, strict=True))
    ]


def _misnamed(truths, boxes, scores, found_by, finds, iou: float) -> np.ndarray:
    """Return pairs of a missed box and a false alarm in the same place, the surest first; int64 [pairs, 2]."""
    missed, pairs = np.flatnonzero(found_by == NOBODY), []
    alarms = np.flatnonzero(finds == NOBODY)
    alarms = alarms[np.argsort(-scores[alarms], kind="stable")]
    overlaps = _overlaps(boxes[alarms], truths[missed])
    for row, alarm in enumerate(alarms):
        best = overlaps[row].argmax() if len(missed) else 0
        if len(missed) and overlaps[row, best] >= iou:
            pairs.append((missed[best], alarm))
            overlaps[:, best] = 0  # each box is one object: it has one wrong name
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def confusion(examples: BoxExamples, detections: Detections, matchings: Sequence[Matching], classes: int) -> np.ndarray:
    """Count which class was taken for which.

    Returns:
        int64 [classes + 1, classes + 1]: rows are the true classes, columns the answers. The last row is what was found
        where nothing is, the last column what nobody found. Crowds are not in it.
    """
    counts = np.zeros((classes + 1, classes + 1), np.int64)
    for truths, answers, one in zip(examples.labels, detections.labels, matchings, strict=True):
        found = np.flatnonzero(one.found_by >= 0)
        np.add.at(counts, (truths[found], truths[found]), 1)
        boxes, alarms = one.misnamed.T
        np.add.at(counts, (truths[boxes], answers[alarms]), 1)
        np.add.at(counts, (truths[np.setdiff1d(one.missed, boxes)], classes), 1)
        np.add.at(counts, (classes, answers[np.setdiff1d(one.false_alarms, alarms)]), 1)
    return counts


# --- what pycocotools needs and gives ---------------------------------------------------------------------


def _compare(truths: BoxExamples, detections: Detections, labels: Sequence[int], *, ious=None, areas=None, most=None):
    """Let pycocotools match the boxes of some classes; classes and pictures are numbered from 1 there."""
    if len(truths) != len(detections):
        raise ValueError(f"{len(truths)} pictures and detections of {len(detections)} do not belong together")
    with contextlib.redirect_stdout(io.StringIO()):  # it tells what it does, and lets nobody turn that off
        run = COCOeval(_coco(truths.boxes, truths.labels, labels, iscrowd=truths.crowds),
                       _coco(detections.boxes, detections.labels, labels, score=detections.scores), "bbox")  # fmt: skip
        run.params.iouThrs = run.params.iouThrs if ious is None else np.array(ious)
        run.params.areaRng = run.params.areaRng if areas is None else areas
        run.params.maxDets = run.params.maxDets if most is None else [most]
        run.evaluate()
    return run


def _coco(boxes: Sequence[np.ndarray], labels: Sequence[np.ndarray], wanted: Sequence[int], **more) -> COCO:
    """Return boxes as pycocotools keeps them. A box that is not of a wanted class keeps its number all the same."""
    annotations, number, wanted = [], 0, set(wanted)
    [(name, values)] = more.items()
    for picture, (some, of_class, extra) in enumerate(zip(boxes, labels, values, strict=True), start=1):
        wide = some.astype(np.float64)  # pycocotools counts in doubles
        sides = wide[:, 2:] - wide[:, :2]
        for box, (width, height), label, value in zip(wide, sides, of_class.tolist(), extra.tolist(), strict=True):
            number += 1  # from 1 on: to pycocotools, a match with box 0 is no match
            if label in wanted:
                annotations.append({"id": number, "image_id": picture, "category_id": label + 1, name: value,
                                    "bbox": [*box[:2].tolist(), width, height], "area": width * height})  # fmt: skip
    coco = COCO()
    coco.dataset = {
        "images": [{"id": picture + 1} for picture in range(len(boxes))],
        "categories": [{"id": label + 1} for label in sorted(wanted)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the IoU of each box with each other one, float64 [k, m]."""
    if not (len(boxes) and len(others)):
        return np.zeros((len(boxes), len(others)))
    corners = [np.asarray(some, np.float64) for some in (boxes, others)]
    sides = [np.concatenate([one[:, :2], one[:, 2:] - one[:, :2]], axis=1) for one in corners]
    return mask.iou(*sides, [0] * len(others))


@dataclass(frozen=True)
class _Ranked:
    """The detections of one class in all pictures, the surest first.

    Attributes:
        scores: float [k].
        pictures: place of the picture of each, int [k].
        right: whether it found a box, at each IoU, bool [ious, k].
        wrong: whether it found nothing, bool [ious, k]; what lies on a crowd is neither.
        truths: number of boxes to find in each picture, int [pictures].
    """

    scores: np.ndarray
    pictures: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    truths: np.ndarray


def _ranked(run: COCOeval) -> list[_Ranked]:
    """Return the matches of each class, boxes of every size counted, as `COCOeval.evaluate` left them."""
    pictures, sizes, ious = len(run.params.imgIds), len(run.params.areaRng), len(run.params.iouThrs)
    ranked = []
    for number in range(len(run.params.catIds)):
        first = number * sizes * pictures  # class after class, in it size after size, and "every size" is the first
        seen = [one for one in run.evalImgs[first : first + pictures] if one]
        truths = np.zeros(pictures, np.int64)
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


def _resampled(ranked: Sequence[_Ranked], pictures: int, seed: int) -> np.ndarray:
    """Return AP at each IoU of pictures drawn again and again, float [at most RESAMPLES, ious].

    A picture that is drawn twice counts twice: nothing is matched again. Fewer than two pictures have no spread that
    could be drawn, and draws without any box have no AP.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES if pictures > 1 else 0):
        times = np.bincount(rng.integers(0, pictures, pictures), minlength=pictures)
        drawn.append(_mean_precision(ranked, times))
    drawn = np.array(drawn).reshape(-1, len(ranked[0].right))
    return drawn[np.isfinite(drawn).all(axis=1)]


def _mean_precision(ranked: Sequence[_Ranked], times: np.ndarray) -> np.ndarray:
    """Return AP at each IoU where each picture counts so many times, float [ious]; NaN where there are no boxes."""
    found = [_precision(one, times) for one in ranked if times @ one.truths]
    return np.mean(found, axis=0) if found else np.full(len(ranked[0].right), np.nan)


def _precision(ranked: _Ranked, times: np.ndarray) -> np.ndarray:
    """Return COCO's AP of one class: the best precision at each of 101 recalls or above, in the mean; float [ious]."""
    weights = times[ranked.pictures]
    right, wrong = np.cumsum(ranked.right * weights, axis=1), np.cumsum(ranked.wrong * weights, axis=1)
    precision = right / np.maximum(right + wrong, 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    envelope = np.concatenate([envelope, np.zeros((len(envelope), 1))], axis=1)  # a recall that is never reached
    recall = right / (times @ ranked.truths)
    return np.array([row[np.searchsorted(up, _RECALLS)].mean() for row, up in zip(envelope, recall, strict=True)])


def _where(values: Sequence[np.ndarray], keep: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [one[kept] for one, kept in zip(values, keep, strict=True)]


def _mean(values: np.ndarray) -> float | None:
    """Return the mean of what was measured; pycocotools writes -1 for what was not."""
    measured = values[values > -1]
    return _rounded(measured.mean()) if len(measured) else None


def _interval(values: np.ndarray) -> list[float]:
    return [_rounded(bound) for bound in np.percentile(values, [2.5, 97.5])]


def _rounded(value: float) -> float:
    # Metric and interval are sums in another order: without this an interval may lie beside a number by 1e-16.
    return round(float(value), 6)
