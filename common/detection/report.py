"""The report and the model card of a detection run.

A missing number is shown as "not measured", never guessed, and a proof is shown as passed only if every part of it was
measured and holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from common import reporting
from common.detection.dataset import BoxExamples
from common.detection.drawing import colour_of
from common.detection.matching import Matching
from common.detection.matching import confusion as detection_confusion
from common.detection.metrics import Curve, Detections, precision_recall
from common.detection.report_images import draw_images

TEMPLATES = Path(__file__).with_name("templates")
SCORE_TOLERANCE = 1e-3  # of scores, for a proof that states none
MAX_CURVES = 8  # distinguishable lines in one figure
SIZES = {
    "small": "small, up to 32 x 32",
    "medium": "medium, up to 96 x 96",
    "large": "large, above 96 x 96",
}


def write_report(
    out: Path, *, title: str, metrics: dict, config: dict, history: list[dict], class_names: Sequence[str],
    examples: BoxExamples, detections: Detections, matchings: Sequence[Matching], threshold: float,
    thresholds: Sequence[dict], skipped: Sequence[tuple[str, str]], sentences: Sequence[str], titles: Mapping[str, str],
) -> Path:  # fmt: skip
    """Write OUT/report.html, one self-contained file.

    Args:
        out: the run folder; created if missing.
        title: the heading.
        metrics: the contents of metrics.json; any of it may be absent.
        config: setting name to value.
        history: one row per epoch: "stage", "epoch", "loss", "val_loss", "val_ap50"; each may be absent.
        class_names: name of each class number.
        examples: the test split.
        detections: of these images.
        matchings: as `matching.match` returns them at the threshold.
        threshold: the recommended one.
        thresholds: as `matching.threshold_table` returns them on the val split.
        skipped: (path, reason) of every skipped file.
        sentences: the findings, shown near the top.
        titles: of the baselines, by name.

    Returns:
        The path of the report.

    Raises:
        ValueError: examples, detections and matchings are not of the same images.
    """
    if not len(examples) == len(detections) == len(matchings):
        raise ValueError(
            f"A report needs detections and a matching for each image. Received: {len(examples)} images, "
            f"detections of {len(detections)} and {len(matchings)} matchings."
        )
    classes, stored = len(class_names), examples.as_stored()
    confusion = detection_confusion(stored, detections, matchings, classes)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    small, per_class = classes <= reporting.MAX_CLASSES_IN_MATRIX, _per_class(metrics, confusion)
    weakest = [row["class"] for row in per_class if row["boxes"]][:MAX_CURVES]
    curves = {name: precision_recall(stored, detections, list(class_names).index(name))
              for name in weakest}  # fmt: skip
    context = _context(title, metrics, config, class_names, sentences, titles) | {
        "curves": {
            "Loss": reporting.draw_curve(history, {"loss": ", training", "val_loss": ", validation"}),
            "Validation AP50": reporting.draw_curve(history, {"val_ap50": ""}),
        },
        "threshold": threshold,
        "thresholds": _chosen_rows(thresholds, threshold),
        "threshold_plot": _threshold_plot(thresholds, threshold) if thresholds else None,
        "recall_plot": _recall_plot(curves, list(class_names), threshold) if curves else None,
        "curve_keys": [(name, _css(list(class_names).index(name))) for name in curves],
        "per_class": per_class,
        "sizes": SIZES,
        "confusion": confusion.tolist() if small else None,
        "shares": shares.tolist() if small else None,
        "pairs": [] if small else reporting.confused_pairs(confusion[:-1, :-1], shares[:-1, :-1]),
        "keys": [(name, _css(number)) for number, name in enumerate(class_names)] if classes <= 20 else [],
        "images": draw_images(stored, detections, matchings, class_names, threshold),
        "some_not_judged": any(crowds.any() for crowds in examples.crowds),
        "missed_images": sum(bool(len(one.missed)) for one in matchings),
        "false_positive_images": sum(bool(len(one.false_positives)) for one in matchings),
        "object_count": sum(int((~crowds).sum()) for crowds in examples.crowds),
        "test_count": len(examples),
        "skipped": skipped,
    }
    return reporting.render(Path(out) / "report.html", context, TEMPLATES)


def write_model_card(
    out: Path, *, title: str, metrics: dict, config: dict, class_names: Sequence[str],
    sentences: Sequence[str], source_card: dict, titles: Mapping[str, str],
) -> Path:  # fmt: skip
    """Write OUT/model_card.md: intended use, origin, results and serving of the model.

    Args:
        out, title, metrics, config, class_names, sentences, titles: as for `write_report`.
        source_card: "spec", "licence", "origin" and "data" of the pretrained model.

    Returns:
        The path of the card.
    """
    context = _context(title, metrics, config, class_names, sentences, titles)
    return reporting.render_card(out, context, source_card, TEMPLATES)


def _context(title, metrics, config, class_names, sentences, titles) -> dict:
    """Return the context of both templates, with the proof worded for boxes."""
    context = reporting.shared_context(title, metrics, config, class_names, sentences, titles)
    return context | {"proof": _judge_proof(metrics.get("proof") or {}), "decimal": _decimal}


def _judge_proof(proof: dict) -> dict:
    same = "Boxes equal to those of the evaluation: the same class and an IoU of at least 0.99"
    return reporting.judge_proof(proof, examples="Test images", same=same, number="score", tolerance=SCORE_TOLERANCE)


def _decimal(value: object) -> str:
    number = reporting.as_number(value)
    return reporting.NOT_MEASURED if number is None else f"{number:.2f}"


# --- tables and figures -----------------------------------------------------------------------------------


def _per_class(metrics: dict, confusion: np.ndarray) -> list[dict]:
    """Return one row per class, the lowest AP50 first and unmeasured classes last."""
    given = (metrics.get("test") or {}).get("per_class") or []
    rows = [
        {**row, "found": int(confusion[number, number]),
         "false_positives": int(confusion[:, number].sum() - confusion[number, number])}
        for number, row in enumerate(given)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: float("inf") if row["ap50"] is None else row["ap50"])


def _chosen_rows(rows: Sequence[dict], threshold: float) -> list[dict]:
    """Return every tenth row and the recommended one, marked as chosen."""
    chosen = [{**row, "chosen": row["threshold"] == threshold} for row in rows]
    return [row for row in chosen if row["chosen"] or round(row["threshold"] * 100) % 10 == 0]


def _axes(width: float, height: float):
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlim=(0, 1), ylim=(0, 1.03))
    return figure, axes


def _threshold_plot(rows: Sequence[dict], threshold: float) -> str:
    figure, axes = _axes(5.6, 4.2)
    for key, label, colour in (
        ("precision", "precision", "#2563a8"), ("recall", "recall", "#b7791f"), ("f1", "F1", "#1d7a46")
    ):  # fmt: skip
        values = np.array([row[key] for row in rows], dtype=float)  # None becomes NaN, which is not drawn
        axes.plot([row["threshold"] for row in rows], values, color=colour, label=label)
    axes.axvline(threshold, color="#6b7280", linestyle=":", label="recommended")
    axes.set(xlabel="threshold", ylabel="on the val split")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return reporting.png_of_figure(figure)


def _recall_plot(curves: dict[str, Curve], class_names: list[str], threshold: float) -> str:
    figure, axes = _axes(5.6, 4.4)
    for name, curve in curves.items():
        colour = [part / 255 for part in colour_of(class_names.index(name))]
        recall, precision = np.concatenate([[0.0], curve.recall]), curve.envelope
        precision = np.concatenate([precision[:1], precision]) if len(precision) else np.zeros(1)
        axes.plot(recall, precision, color=colour, drawstyle="steps-pre")
        kept = int((curve.scores >= np.float32(threshold)).sum())
        if kept:
            axes.plot(curve.recall[kept - 1], curve.precision[kept - 1], "o", color=colour, clip_on=False)
    axes.set(xlabel="recall", ylabel="precision")  # no legend here: the page has fonts for all scripts
    return reporting.png_of_figure(figure)


def _css(label: int) -> str:
    return "rgb({} {} {})".format(*colour_of(label))
