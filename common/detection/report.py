"""The report and the model card of a detection run.

A number that is absent is shown as "not measured", never guessed, and a proof is shown as passed only where every part
of it was measured and holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from common import reporting
from common.detection.dataset import BoxExamples
from common.detection.drawing import colour_of
from common.detection.metrics import (
    Curve,
    Detections,
    Matching,
    precision_recall,
)
from common.detection.metrics import confusion as detection_confusion
from common.detection.report_pictures import draw_images

TEMPLATES = Path(__file__).with_name("templates")
SCORE_TOLERANCE = 1e-3  # for a proof that does not say its own: of boxes that are sorted, cut and sorted again
MAX_CURVES = 8  # lines in one figure that an eye can tell apart
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
    """Write OUT/report.html, one file that needs nothing else to be read.

    Args:
        out: the run folder; made if it is missing.
        title: the heading.
        metrics: what metrics.json holds; any part may be absent.
        config: setting name to value.
        history: one row an epoch: "stage", "epoch", "loss", "val_loss", "val_ap50"; each may be absent.
        class_names: name of each class number.
        examples: the test part.
        detections: of these pictures.
        matchings: as `metrics.match` gives them at the threshold.
        threshold: the recommended one.
        thresholds: as `metrics.threshold_table` gives them on the validation part.
        skipped: (path, reason) of every file that could not be used.
        sentences: findings in plain words, shown near the top.
        titles: of the baselines, by name.

    Returns:
        The path of the report.

    Raises:
        ValueError: examples, detections and matchings do not belong together.
    """
    if not len(examples) == len(detections) == len(matchings):
        raise ValueError(
            f"a report needs detections and a matching for each picture; received {len(examples)} pictures, "
            f"detections of {len(detections)} and {len(matchings)} matchings"
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
        "pictures": draw_images(stored, detections, matchings, class_names, threshold),
        "some_not_judged": any(crowds.any() for crowds in examples.crowds),
        "missed_pictures": sum(bool(len(one.missed)) for one in matchings),
        "alarm_pictures": sum(bool(len(one.false_alarms)) for one in matchings),
        "object_count": sum(int((~crowds).sum()) for crowds in examples.crowds),
        "test_count": len(examples),
        "skipped": skipped,
    }
    return reporting.render(Path(out) / "report.html", context, TEMPLATES)


def write_model_card(
    out: Path, *, title: str, metrics: dict, config: dict, class_names: Sequence[str],
    sentences: Sequence[str], source_card: dict, titles: Mapping[str, str],
) -> Path:  # fmt: skip
    """Write OUT/model_card.md: what the model is for, where it comes from, how good it is, how to serve it.

    Args:
        out, title, metrics, config, class_names, sentences, titles: as for `write_report`.
        source_card: "spec", "licence", "origin" and "data" of the pretrained model.

    Returns:
        The path of the card.
    """
    context = _context(title, metrics, config, class_names, sentences, titles)
    return reporting.render_card(out, context, source_card, TEMPLATES)


def _context(title, metrics, config, class_names, sentences, titles) -> dict:
    """Return what both files show; the words of the proof are those of boxes."""
    context = reporting.shared_context(title, metrics, config, class_names, sentences, titles)
    return context | {"proof": _judge_proof(metrics.get("proof") or {}), "decimal": _decimal}


def _judge_proof(proof: dict) -> dict:
    same = "Boxes that are the same as in the evaluation, of the same class and overlapping by at least 0.99"
    return reporting.judge_proof(proof, examples="Test pictures", same=same, number="score", tolerance=SCORE_TOLERANCE)


def _decimal(value: object) -> str:
    number = reporting.as_number(value)
    return reporting.NOT_MEASURED if number is None else f"{number:.2f}"


# --- tables and figures -----------------------------------------------------------------------------------


def _per_class(metrics: dict, confusion: np.ndarray) -> list[dict]:
    """Return a row a class, the weakest first: that is the one a reader looks for. Unmeasured classes come last."""
    given = (metrics.get("test") or {}).get("per_class") or []
    rows = [
        {**row, "found": int(confusion[number, number]),
         "alarms": int(confusion[:, number].sum() - confusion[number, number])}
        for number, row in enumerate(given)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: float("inf") if row["ap50"] is None else row["ap50"])


def _chosen_rows(rows: Sequence[dict], threshold: float) -> list[dict]:
    """Return every tenth row and the recommended one, which is marked."""
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
    axes.set(xlabel="threshold", ylabel="on validation pictures")
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
    axes.set(xlabel="recall", ylabel="precision")  # the page names the lines: it has letters for every language
    return reporting.png_of_figure(figure)


def _css(label: int) -> str:
    return "rgb({} {} {})".format(*colour_of(label))


# --- pictures ---------------------------------------------------------------------------------------------
