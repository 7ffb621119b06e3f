"""The end of a detection run: measures on the test split, and hands everything to `common.results`."""

from __future__ import annotations

from collections.abc import Mapping

from common import results
from common.detection import findings, report
from common.detection.dataset import BoxSet
from common.detection.metrics import Detections, evaluate, match, recommend_threshold, threshold_table
from common.results import Outcome


def conclude(
    recipe: str, config, data: BoxSet, outcome: Outcome, *, detections: Detections, val_detections: Detections,
    baselines: dict[str, tuple[Detections, float]], titles: Mapping[str, str],
) -> dict:  # fmt: skip
    """Measure on the test split and write what a run promises to write.

    Args:
        recipe: its name.
        config: its settings, a dataclass with `out`, `data` and `seed`.
        data: the images with boxes.
        outcome: what the run did.
        detections: of the exported model on the test split, down to scores that nobody would use: AP needs them.
        val_detections: the same on the validation split, where the threshold is chosen.
        baselines: for each name its detections on the test split and the seconds it took.
        titles: of the baselines, by name.

    Returns:
        What metrics.json holds.
    """
    thresholds = threshold_table(data.val, val_detections)
    threshold = recommend_threshold(thresholds)
    [at_threshold] = threshold_table(data.test, detections, [threshold])
    matchings = match(data.test, detections, threshold)
    test, boxes = evaluate(data.test, detections, data.class_names), data.box_counts()
    for row in test["per_class"]:
        row["train_boxes"] = boxes["train"][row["class"]]
    test |= {"at_threshold": at_threshold}
    scores = {
        "test": test,
        "baselines": {
            name: evaluate(data.test, said, data.class_names) | {"seconds": round(spent, 2)}
            for name, (said, spent) in baselines.items()
        },
        "threshold": threshold,
        "boxes": {split: sum(found.values()) for split, found in boxes.items()},
    }
    of_baselines = {name: said for name, (said, _) in baselines.items()}
    sentences = [
        *findings.findings(data.test, detections, of_baselines, len(data.class_names), titles),
        *findings.findings_of_boxes(test, detections, data, matchings),
        *data.advice(),
    ]

    def write_files(out, **told) -> None:
        told |= {"class_names": data.class_names, "titles": titles}
        report.write_report(
            out, history=outcome.history, examples=data.test, detections=detections, matchings=matchings,
            threshold=threshold, thresholds=thresholds, skipped=data.skipped, **told,
        )  # fmt: skip
        report.write_model_card(out, source_card=outcome.source_card, **told)

    return results.conclude(
        recipe, config, outcome, scores, counts=data.counts(), skipped=data.skipped, sentences=sentences,
        write_files=write_files, table=lambda found: findings.table(found, titles),
        proved="answers all {examples} test images as evaluated (largest difference of a score {max_abs_diff:.1e})",
    )  # fmt: skip
