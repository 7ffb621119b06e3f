"""The findings of a detection run, as sentences and as the printed table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from common.detection.dataset import BoxExamples, BoxSet
from common.detection.matching import Matching
from common.detection.metrics import Detections, paired_gain
from common.reporting import lower_first
from common.results import training_seconds

FEW_OBJECTS = 10  # with fewer, a single object changes AP by ten points


def findings(
    examples: BoxExamples,
    ours: Detections,
    baselines: Mapping[str, Detections],
    classes: int,
    titles: Mapping[str, str],
) -> list[str]:
    """State in sentences whether transfer and fine-tuning helped, in points of AP50.

    Args:
        examples: the test split.
        ours: of the exported model.
        baselines: the same for each baseline: `scratch`, `frozen`.
        classes: number of classes.
        titles: of the baselines, by name.

    Returns:
        Sentences; one begins with "Negative transfer" where training from scratch is better.
    """
    sentences = []
    for name, theirs in baselines.items():
        if name == "frozen" and _same(ours, theirs):
            sentences.append("The exported model is the frozen backbone with its trained head: nothing was fine-tuned.")
            continue
        found = paired_gain(examples, ours, theirs, classes)
        if found is None:
            sentences.append(f"{titles.get(name, name)}: a single test image allows no comparison.")
            continue
        gain, low, high = found
        points = f"{abs(gain) * 100:.1f} points of AP50 (95 % interval {low * 100:+.1f} to {high * 100:+.1f})"
        worse = gain < 0 and high < 0
        if name == "scratch" and worse:
            text = f"Negative transfer: training from scratch is better by {points}. Try another --source."
        elif name == "scratch" and gain <= 0:
            text = f"The pretrained source does not help: training from scratch is at least as good, by {points}."
        elif name == "scratch" and low <= 0:
            text = f"The pretrained source and training from scratch are too close to call: {points}."
        elif name == "scratch":
            text = f"The pretrained source gains {points} over training from scratch."
        elif low > 0:
            text = f"Fine-tuning gains {points} over the frozen backbone."
        elif worse:
            text = f"Fine-tuning hurts: the frozen backbone is better by {points}. Try --epochs 0."
        else:
            text = f"Fine-tuning and the frozen backbone are too close to call: {points}."
        sentences.append(text)
    return sentences


def findings_of_boxes(test: dict, detections: Detections, data: BoxSet, matchings: Sequence[Matching]) -> list[str]:
    """State the quality at the recommended threshold, the weakest class, and the most frequent confusion."""
    at = test["at_threshold"]
    sentences = []
    if at["recall"] is not None and at["precision"] is not None:
        sentences.append(
            f"At the threshold {at['threshold']:.2f} (best F1 on the val split), "
            f"{100 * at['recall']:.0f} of 100 test objects are found and {100 * at['precision']:.0f} of 100 boxes are "
            f"correct, with {at['false_alarms']:.2f} false positives per image."
        )
    measured = [row for row in test["per_class"] if row["boxes"]]
    if len(measured) > 1:
        row = min(measured, key=lambda row: row["ap50"])
        sentences.append(
            f"The weakest class is {row['class']}: AP50 {100 * row['ap50']:.1f} % on {row['boxes']} test objects; "
            f"the train split has {row['train_boxes']:,}."
        )
    few = [row["class"] for row in measured if row["boxes"] < FEW_OBJECTS]
    if few:
        names = ", ".join(few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
        sentences.append(
            f"Fewer than {FEW_OBJECTS} test objects: {names}. Their metrics are unreliable; label more of them."
        )
    pairs = Counter(
        (int(data.test.labels[image][box]), int(detections.labels[image][found]))
        for image, one in enumerate(matchings)
        for box, found in one.misnamed
    )
    if pairs:
        (true, detected), times = pairs.most_common(1)[0]
        often = f", most often {data.class_names[true]} detected as {data.class_names[detected]} ({times})"
        sentences.append(f"Boxes in the right place with the wrong class: {pairs.total()}{often if times > 1 else ''}.")
    return sentences


def _same(ours: Detections, theirs: Detections) -> bool:
    return all(
        one.shape == other.shape and np.allclose(one, other, atol=1e-5)
        for mine, others in ((ours.scores, theirs.scores), (ours.boxes, theirs.boxes))
        for one, other in zip(mine, others, strict=True)
    )


def table(metrics: Mapping, titles: Mapping[str, str]) -> list[str]:
    """Return the table printed at the end of a run: the baselines, then the result.

    Args:
        metrics: the contents of metrics.json.
        titles: of the baselines, by name.
    """
    rows = [(lower_first(titles.get(name, name)), score) for name, score in metrics["baselines"].items()]
    rows.append(("result", {"seconds": training_seconds(metrics), **metrics["test"]}))
    lines = [f"  {'':32}AP50 (95 % interval)        AP      AP75    seconds"]
    for title, score in rows:
        interval = score.get("ap50_ci95")
        ends = f"({interval[0]:.3f} to {interval[1]:.3f})" if interval else "(not measured)"
        lines.append(
            f"  {title:32}{_three(score['ap50'])} {ends:22}{_three(score['ap']):8}{_three(score['ap75']):8}"
            f"{score['seconds']:7.0f}"
        )
    return lines


def _three(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
