"""The end of a detection run: evaluation on the test split; `common.results` writes the files."""

from __future__ import annotations

from collections.abc import Mapping

from common import results
from common.detection import findings, report
from common.detection.dataset import BoxSet
from common.detection.matching import match, recommend_threshold, threshold_table
from common.detection.metrics import Detections, evaluate
from common.results import Outcome


def conclude(
    recipe: str, config, data: BoxSet, outcome: Outcome, *, detections: Detections, val_detections: Detections,
    baselines: dict[str, tuple[Detections, float]], titles: Mapping[str, str],
) -> dict:  # fmt: skip
    """Evaluate on the test split and write every file of a finished run.

    Args:
        recipe: its name.
        config: its settings, a dataclass with `out`, `data` and `seed`.
        data: the images with boxes.
        outcome: of training, export and proof.
        detections: of the exported model on the test split, including low scores, which AP needs.
        val_detections: the same on the val split, which the threshold is chosen on.
        baselines: for each name its detections on the test split and its seconds of training.
        titles: of the baselines, by name.

    Returns:
        The contents of metrics.json.
    """
    thresholds = threshold_table(data.val, val_detections)
    threshold = recommend_threshold(thresholds)
    matchings = match(data.test, detections, threshold)
    test, boxes = evaluate(data.test, detections, data.class_names), data.box_counts()
    for row in test["per_class"]:
        row["train_boxes"] = boxes["train"][row["class"]]
    [test["at_threshold"]] = threshold_table(data.test, detections, [threshold])
    scores = {
        "test": test,
        "baselines": {
            name: evaluate(data.test, found, data.class_names) | {"seconds": round(spent, 2)}
            for name, (found, spent) in baselines.items()
        },
        "threshold": threshold,
        "boxes": {split: sum(counts.values()) for split, counts in boxes.items()},
    }
    of_baselines = {name: found for name, (found, _) in baselines.items()}
    sentences = [
        *findings.findings(data.test, detections, of_baselines, len(data.class_names), titles),
        *findings.findings_of_boxes(test, detections, data, matchings),
        *data.advice(),
    ]

    def write_files(out, **shared) -> None:
        shared |= {"class_names": data.class_names, "titles": titles}
        report.write_report(
            out, history=outcome.history, examples=data.test, detections=detections, matchings=matchings,
            threshold=threshold, thresholds=thresholds, skipped=data.skipped, **shared,
        )  # fmt: skip
        report.write_model_card(out, source_card=outcome.source_card, **shared)

    return results.conclude(
        recipe, config, outcome, scores, counts=data.counts(), skipped=data.skipped, sentences=sentences,
        write_files=write_files, table=lambda found: findings.table(found, titles),
        proved="answers all {examples} test images as evaluated (largest difference of scores {max_abs_diff:.1e})",
    )  # fmt: skip
