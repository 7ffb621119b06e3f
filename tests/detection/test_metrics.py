"""AP against a slow reference and against pycocotools; thresholds, matches and confusion matrices by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from common.detection.dataset import BoxExamples
from common.detection.matching import NOT_JUDGED, UNMATCHED, confusion, match, recommend_threshold, threshold_table
from common.detection.metrics import (
    RESAMPLES,
    SIZES,
    Detections,
    _mean_precision,
    _ranked,
    _resampled,
    compare,
    evaluate,
    paired_gain,
    precision_recall,
)

CAT, DOG = 0, 1
NAMES = ("cat", "dog")
HERE, THERE, FAR = (0, 0, 10, 10), (20, 0, 40, 10), (60, 60, 90, 90)


def truths(*images: list[tuple], size=(100, 100), orientations=None) -> BoxExamples:
    """Each image is a list of (box, label) or (box, label, True) for a crowd."""
    n = len(images)
    return BoxExamples(
        np.array([f"{place}.jpg" for place in range(n)], dtype=object),
        tuple(np.array([one[0] for one in image], "float32").reshape(-1, 4) for image in images),
        tuple(np.array([one[1] for one in image], "int64") for image in images),
        tuple(np.array([len(one) > 2 for one in image], bool) for image in images),
        np.tile(np.array(size, "int64"), (n, 1)),
        np.ones(n, "int64") if orientations is None else np.array(orientations, "int64"),
    )


def finds(*images: list[tuple]) -> Detections:
    """Each image is a list of (box, label, score)."""
    return Detections(
        tuple(np.array([one[0] for one in image], "float32").reshape(-1, 4) for image in images),
        tuple(np.array([one[2] for one in image], "float32") for image in images),
        tuple(np.array([one[1] for one in image], "int64") for image in images),
    )


def iou(one, other) -> float:
    wide = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    high = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return wide * high / (sum(areas) - wide * high)


def slow_ap(examples: BoxExamples, detections: Detections, label: int, threshold: float) -> float | None:
    """AP of one class from its definition: match greedily by score, then mean the best precision at 101 recalls."""
    pairs = zip(examples.labels, examples.crowds, strict=True)
    total = sum(int(((labels == label) & ~crowds).sum()) for labels, crowds in pairs)
    if not total:
        return None
    everything = [
        (-float(score), image, number)
        for image in range(len(examples))
        for number, score in enumerate(detections.scores[image])
        if detections.labels[image][number] == label
    ]
    taken, verdicts = set(), []
    for _, image, number in sorted(everything):  # equal scores: the earlier image, the earlier detection
        box = detections.boxes[image][number].astype(float)
        best, best_overlap, on_crowd = None, threshold, False
        for place, truth in enumerate(examples.boxes[image].astype(float)):
            if examples.labels[image][place] != label:
                continue
            if examples.crowds[image][place]:
                inside = max(0, min(box[2], truth[2]) - max(box[0], truth[0]))
                inside *= max(0, min(box[3], truth[3]) - max(box[1], truth[1]))
                on_crowd |= inside / ((box[2] - box[0]) * (box[3] - box[1])) >= threshold
            elif (image, place) not in taken and iou(box, truth) >= best_overlap:
                best, best_overlap = place, iou(box, truth)
        if best is not None:
            taken.add((image, best))
        if best is not None or not on_crowd:
            verdicts.append(best is not None)
    points = []
    for k in range(1, len(verdicts) + 1):
        points.append((sum(verdicts[:k]) / total, sum(verdicts[:k]) / k))
    return float(np.mean([max((p for r, p in points if r >= recall), default=0) for recall in np.linspace(0, 1, 101)]))


def library(examples: BoxExamples, detections: Detections, classes: int) -> np.ndarray:
    """pycocotools as its own demo uses it, from a dictionary and a table of results: its twelve numbers."""
    annotations = [
        {"image_id": image + 1, "category_id": int(label) + 1, "iscrowd": int(crowd),
         "bbox": [float(x) for x in (*box[:2], *(box[2:] - box[:2]))], "area": float((box[2:] - box[:2]).prod())}
        for image in range(len(examples))
        for box, label, crowd in zip(
            examples.boxes[image].astype(float), examples.labels[image], examples.crowds[image],
            strict=True,
        )
    ]  # fmt: skip
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image + 1} for image in range(len(examples))],
        "categories": [{"id": label + 1} for label in range(classes)],
        "annotations": [one | {"id": number} for number, one in enumerate(annotations, start=1)],
        "info": {},
    }
    coco.createIndex()
    results = [
        [image + 1, *box[:2], *(box[2:] - box[:2]), score, label + 1]
        for image in range(len(detections))
        for box, score, label in zip(
            detections.boxes[image].astype(float),
            detections.scores[image],
            detections.labels[image],
            strict=True,
        )
    ]
    run = COCOeval(coco, coco.loadRes(np.array(results, dtype=float)), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    return run.stats


def scenes(seed: int, images: int = 12, classes: int = 3, ties: bool = False) -> tuple[BoxExamples, Detections]:
    """Random objects of all sizes, some crowds and empty images; a detector with every kind of error."""
    rng = np.random.default_rng(seed)
    there, found = [], []
    for _ in range(images):
        objects, detected = [], []
        for _ in range(rng.integers(0, 7)):
            corner, sides = rng.uniform(0, 150, 2), rng.choice([8, 25, 60, 140], 2) * rng.uniform(0.7, 1.3, 2)
            box, label = np.concatenate([corner, corner + sides]), int(rng.integers(classes))
            objects.append((box, label, True) if rng.random() < 0.15 else (box, label))
            for _ in range(rng.integers(0, 3)):
                moved = box + rng.normal(0, 0.12, 4) * np.tile(sides, 2)
                moved = np.concatenate([np.minimum(moved[:2], moved[2:]), np.maximum(moved[:2], moved[2:])])
                name = label if rng.random() < 0.8 else int(rng.integers(classes))
                detected.append((moved, name, rng.integers(1, 5) / 5 if ties else rng.random()))
        for _ in range(rng.integers(0, 3)):
            corner = rng.uniform(0, 150, 2)
            detected.append((np.concatenate([corner, corner + rng.uniform(5, 90, 2)]), int(rng.integers(classes)),
                            rng.integers(1, 5) / 5 if ties else rng.random() * 0.7))  # fmt: skip
        there.append(objects)
        found.append(detected)
    return truths(*there, size=(400, 400)), finds(*found)


@pytest.mark.parametrize(
    ("there", "found", "ap50"),
    [
        ([[(HERE, CAT)], [(THERE, CAT)]], [[(HERE, CAT, 0.9)], [(THERE, CAT, 0.2)]], 1.0),
        ([[(HERE, CAT)], [(THERE, CAT)]], [[], []], 0.0),
        # Found twice: the second is a false positive, but comes after all objects are found.
        ([[(HERE, CAT)]], [[(HERE, CAT, 0.9), (HERE, CAT, 0.8)]], 1.0),
        # Of two detections of one object, the higher score matches, even if the other overlaps more.
        ([[(HERE, CAT)], [(THERE, CAT)]], [[(HERE, CAT, 0.5), ((0, 0, 10, 9), CAT, 0.9)], [(THERE, CAT, 0.1)]],
         (51 * 1 + 50 * 2 / 3) / 101),
        # Another class at the right place matches nothing; a false positive of its own class, which has no AP here.
        ([[(HERE, CAT)]], [[(HERE, DOG, 0.9)]], 0.0),
        # Detections on a crowd are ignored, however many.
        ([[(HERE, CAT), (FAR, CAT, True)]], [[(FAR, CAT, 0.9), ((62, 62, 70, 70), CAT, 0.8), (HERE, CAT, 0.7)]], 1.0),
        # A crowd alone is nothing to find.
        ([[(FAR, CAT, True)]], [[(FAR, CAT, 0.9)]], None),
        # An image without objects: a detection there is a false positive, and a confident one halves the precision.
        ([[(HERE, CAT)], []], [[(HERE, CAT, 0.5)], [(THERE, CAT, 0.9)]], 0.5),
        ([[], []], [[], []], None),
        # Half of the objects found, without a false positive: 51 of the 101 recalls, 0.00 to 0.50, are reached.
        ([[(HERE, CAT), (FAR, CAT)]], [[(HERE, CAT, 0.9)]], 51 / 101),
    ],
)  # fmt: skip
def test_ap_of_cases_that_can_be_counted_by_hand(there, found, ap50):
    examples, detections = truths(*there), finds(*found)
    metrics = evaluate(examples, detections, NAMES)
    assert metrics["ap50"] == (None if ap50 is None else pytest.approx(ap50, abs=1e-6))
    assert metrics["per_class"][CAT]["ap50"] == metrics["ap50"]
    assert metrics["per_class"][DOG] == {"class": "dog", "ap50": None, "ap": None, "boxes": 0}
    slow = slow_ap(examples, detections, CAT, 0.5)
    assert slow == (None if ap50 is None else pytest.approx(ap50))


def test_ap_counts_how_well_a_box_lies():
    """A box that overlaps its object by 0.8 is right at seven of COCO's ten limits, 0.50 to 0.80."""
    examples, detections = truths([(HERE, CAT)]), finds([((0, 0, 8, 10), CAT, 0.9)])
    metrics = evaluate(examples, detections, NAMES)
    assert (metrics["ap50"], metrics["ap75"], metrics["ap"]) == (1.0, 1.0, 0.7)
    assert metrics["ar100"] == 0.7


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ties", [False, True])
def test_numbers_are_those_of_the_slow_count_and_of_pycocotools(seed, ties, capsys):
    examples, detections = scenes(seed, ties=ties)
    metrics = evaluate(examples, detections, ("a", "b", "c", "never"))
    assert capsys.readouterr().out == ""
    stats = library(examples, detections, 4)
    sizes = [metrics["by_size"][name]["ap"] for name in SIZES]
    ours = [metrics["ap"], metrics["ap50"], metrics["ap75"], *sizes]
    np.testing.assert_allclose([-1 if one is None else one for one in ours], stats[:6], atol=1e-6)
    assert metrics["ar100"] == pytest.approx(stats[8], abs=1e-6)
    assert metrics["per_class"][3]["ap50"] is None
    for label in range(3):
        slow = slow_ap(examples, detections, label, 0.5)
        assert metrics["per_class"][label]["ap50"] == pytest.approx(slow, abs=1e-6)
    assert sum(one["boxes"] for one in metrics["by_size"].values()) == sum(
        int((~crowds).sum()) for crowds in examples.crowds
    )


def test_boxes_by_size_without_boxes_of_a_size():
    metrics = evaluate(truths([(HERE, CAT), (FAR, DOG)]), finds([(HERE, CAT, 0.9)]), NAMES)
    assert metrics["by_size"]["small"] == {"ap": 0.5, "boxes": 2}
    assert metrics["by_size"]["large"] == {"ap": None, "boxes": 0}


@pytest.mark.parametrize("seed", range(3))
def test_resampling_equals_pycocotools_on_the_drawn_images(seed):
    """The fast count on matches of before gives what matching the drawn images anew would give."""
    examples, detections = scenes(seed)
    ranked = _ranked(compare(examples, detections, range(3)))
    np.testing.assert_allclose(
        _mean_precision(ranked, np.ones(12, int))[0], evaluate(examples, detections, "abc")["ap50"], atol=1e-6
    )
    drawn = np.random.default_rng(seed).integers(0, 12, 12)
    again = Detections(*(tuple(values[i] for i in drawn) for values in
                         (detections.boxes, detections.scores, detections.labels)))  # fmt: skip
    stats = library(examples.take(drawn), again, 3)
    quick = _mean_precision(ranked, np.bincount(drawn, minlength=12))
    np.testing.assert_allclose([quick.mean(), quick[0], quick[5]], stats[:3], atol=1e-9)


def test_intervals_hold_their_numbers_repeat_and_narrow_with_more_images():
    few, many = scenes(1, images=15), scenes(1, images=120)
    metrics = [evaluate(*one, "abc") for one in (few, many)]
    widths = []
    for one in metrics:
        for name in ("ap50", "ap", "ap75"):
            low, high = one[f"{name}_ci95"]
            assert low <= one[name] <= high
        widths.append(one["ap50_ci95"][1] - one["ap50_ci95"][0])
    assert widths[1] < 0.7 * widths[0]
    assert evaluate(*few, "abc") == metrics[0]
    assert evaluate(*few, "abc", seed=1)["ap50_ci95"] != metrics[0]["ap50_ci95"]


def test_one_image_has_no_interval():
    metrics = evaluate(truths([(HERE, CAT)]), finds([(HERE, CAT, 0.9)]), NAMES)
    assert metrics["ap50"] == 1.0 and "ap50_ci95" not in metrics


def test_a_bootstrap_of_many_images_takes_little_time():
    examples, detections = scenes(2, images=400)
    ranked = _ranked(compare(examples, detections, range(3)))
    began = time.perf_counter()
    assert len(_resampled(ranked, 400, 0)) == RESAMPLES
    assert time.perf_counter() - began < 5  # pycocotools itself would need minutes


def test_gain_is_paired():
    examples, detections = scenes(3, images=60)
    assert paired_gain(examples, detections, detections, 3) == (0.0, 0.0, 0.0)
    worse = Detections(tuple(box + 15 for box in detections.boxes), detections.scores, detections.labels)
    gain, low, high = paired_gain(examples, detections, worse, 3)
    difference = evaluate(examples, detections, "abc")["ap50"] - evaluate(examples, worse, "abc")["ap50"]
    assert gain == pytest.approx(difference, abs=2e-6) and 0 < low < gain < high
    assert paired_gain(truths([]), finds([]), finds([]), 3) is None


def test_curve_and_its_area():
    examples, detections = scenes(4, images=40)
    for label in range(3):
        curve = precision_recall(examples, detections, label)
        assert (np.diff(curve.scores) <= 0).all() and (np.diff(curve.recall) >= 0).all()
        envelope = [
            curve.envelope[np.argmax(curve.recall >= recall)] if recall <= curve.recall[-1] else 0
            for recall in np.linspace(0, 1, 101)
        ]
        assert np.mean(envelope) == pytest.approx(
            evaluate(examples, detections, "abc")["per_class"][label]["ap50"], abs=1e-6
        )
    assert precision_recall(examples, detections, 7) is None
    nothing = precision_recall(truths([(HERE, CAT)]), finds([]), CAT)
    assert len(nothing.recall) == 0


def test_threshold_table_by_hand():
    examples = truths([(HERE, CAT), (FAR, DOG)], [(THERE, CAT), (FAR, DOG, True)])
    detections = finds([(HERE, CAT, 0.9), (THERE, CAT, 0.6), (FAR, CAT, 0.3)], [(THERE, CAT, 0.5), (FAR, DOG, 0.95)])
    rows = threshold_table(examples, detections, (0.1, 0.5, 0.7, 0.99))
    assert [row["precision"] for row in rows] == [2 / 4, 2 / 3, 1.0, None]
    assert [row["recall"] for row in rows] == [2 / 3, 2 / 3, 1 / 3, 0.0]
    assert [row["f1"] for row in rows] == [pytest.approx(4 / 7), pytest.approx(4 / 6), pytest.approx(2 / 4), 0.0]
    assert [row["false_alarms"] for row in rows] == [1.0, 0.5, 0.0, 0.0]
    assert recommend_threshold(rows) == 0.5


@pytest.mark.parametrize("seed", range(3))
def test_one_matching_serves_all_thresholds(seed):
    examples, detections = scenes(seed, ties=seed == 2)
    rows = threshold_table(examples, detections)
    for row in rows[9::20]:
        assert threshold_table(examples, detections, [row["threshold"]]) == [row]
        matchings = match(examples, detections, row["threshold"])
        wrong = sum(len(one.false_positives) for one in matchings)
        assert row["false_alarms"] == pytest.approx(wrong / len(examples))


def test_recommended_threshold():
    examples = truths([(HERE, CAT)])
    rows = threshold_table(examples, finds([(HERE, CAT, 0.8), (FAR, CAT, 0.3)]))
    assert recommend_threshold(rows) == 0.8  # 0.31 to 0.80 are equally good here
    assert recommend_threshold(threshold_table(examples, finds([(FAR, CAT, 0.9)]))) == 0.5
    assert recommend_threshold(threshold_table(truths([]), finds([]))) == 0.5


def test_what_became_of_each_box():
    examples = truths(
        [(HERE, CAT), (THERE, CAT), (FAR, DOG), ((0, 50, 30, 80), CAT, True)],
        [],
    )
    detections = finds(
        [
            ((0, 0, 10, 9), CAT, 0.4),  # finds HERE
            (FAR, CAT, 0.9),  # right place, wrong name
            ((2, 52, 12, 62), CAT, 0.8),  # lies on the crowd
            (THERE, CAT, 0.1),  # below the threshold
            (HERE, CAT, 0.35),  # a duplicate
        ],
        [(HERE, DOG, 0.7)],
    )
    first, second = match(examples, detections, 0.3)
    assert first.found_by.tolist() == [0, UNMATCHED, UNMATCHED, NOT_JUDGED]
    assert first.finds.tolist() == [0, UNMATCHED, NOT_JUDGED, NOT_JUDGED, UNMATCHED]
    assert first.missed.tolist() == [1, 2] and first.false_positives.tolist() == [1, 4]
    assert first.misnamed.tolist() == [[2, 1]]
    assert second.found_by.tolist() == [] and second.finds.tolist() == [UNMATCHED]
    counts = confusion(examples, detections, [first, second], 2)
    #                        cat dog nothing
    assert counts.tolist() == [[1, 0, 1], [1, 0, 0], [1, 1, 0]]


def test_a_stricter_overlap_finds_less():
    examples, detections = truths([(HERE, CAT)]), finds([((0, 0, 10, 6), CAT, 0.9)])
    assert match(examples, detections, 0.5)[0].missed.tolist() == []
    assert match(examples, detections, 0.5, iou=0.75)[0].missed.tolist() == [0]


def test_more_than_a_hundred_detections_are_all_judged_one_by_one():
    many = [((x, 60, x + 1, 61), CAT, 0.9) for x in range(120)]
    [one] = match(truths([(HERE, CAT)]), finds([*many, (HERE, CAT, 0.5)]), 0.1)
    assert len(one.false_positives) == 120 and one.found_by.tolist() == [120]


def test_photos_that_lie_on_their_side_are_judged_as_stored():
    """Shown 100 wide and 60 high, stored 60 wide and 100 high (EXIF 6): the detector answers in stored pixels."""
    examples = truths([((0, 0, 20, 10), CAT)], size=(60, 100), orientations=[6])
    stored = examples.as_stored().boxes[0][0]
    assert stored.tolist() != [0, 0, 20, 10]
    detections = finds([(stored, CAT, 0.9)])
    assert evaluate(examples, detections, NAMES)["ap50"] == 1.0
    assert match(examples, detections, 0.5)[0].missed.tolist() == []
    assert precision_recall(examples, detections, CAT).recall[-1] == 1.0


def test_detections_that_cannot_be():
    with pytest.raises(ValueError, match="finite"):
        finds([((0, 0, 5, 5), CAT, np.nan)])
    with pytest.raises(ValueError, match="min <= max"):
        finds([((5, 0, 0, 5), CAT, 0.5)])
    with pytest.raises(ValueError, match="one box, one score"):
        Detections((np.zeros((2, 4)),), (np.zeros(1),), (np.zeros(1, int),))
    with pytest.raises(ValueError, match=r"must be of the same images: 1\. Received: those of 2"):
        evaluate(truths([]), finds([], []), NAMES)


def test_detections_of_a_threshold():
    kept = finds([(HERE, CAT, 0.3), (FAR, DOG, 0.7)], []).of(0.3)
    assert len(kept) == 2 and kept.scores[0].dtype == np.float32
    assert kept.of(0.5).labels[0].tolist() == [DOG] and len(kept.of(0.9).boxes[0]) == 0
