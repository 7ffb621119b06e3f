"""The report and the model card of a classification run.

A missing number is shown as "not measured", and a proof is shown as passed only where every check was measured and
passed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from common.reporting import (
    MAX_CLASSES_IN_MATRIX,
    as_number,
    confused_pairs,
    draw_curve,
    png_of_figure,
    render,
    render_card,
    shared_context,
)

TEMPLATES = Path(__file__).with_name("templates")
MAX_MISTAKES = 12


def write_report(
    out: Path, *, title: str, metrics: dict, config: dict, history: list[dict], class_names: Sequence[str],
    labels: np.ndarray, probabilities: np.ndarray, per_class: list[dict], skipped: Sequence[tuple[str, str]],
    sentences: Sequence[str], titles: Mapping[str, str], what: str,
    preview: Callable[[Sequence[int]], list[dict | None]], reliability: Sequence[dict] = (),
    chapters: Sequence[Markup] = (),
) -> Path:  # fmt: skip
    """Write OUT/report.html, one self-contained file.

    Args:
        out: the run folder; made if it is missing.
        title: the heading.
        metrics: contents of metrics.json; any entry may be missing.
        config: setting name to value.
        history: one row per epoch: "stage", "epoch", "loss", "val_loss", "val_accuracy".
        class_names: the classes, in the order of the columns of `probabilities`.
        labels: int [examples], the true classes of the test examples.
        probabilities: float32 [examples, classes], the model's predictions.
        per_class: rows of "class", "precision", "recall", "f1", "support".
        skipped: (path, reason) of every skipped file.
        sentences: findings, shown near the top.
        titles: of the baselines, by name.
        what: the examples in one word: images, texts, clips.
        preview: indices of test examples -> for each "image" or "sound" (data URIs) or "text", and "name"; None for
            one that can no longer be shown.
        reliability: rows as returned by `calibration.reliability`; empty omits the chapter.
        chapters: further chapters, in HTML, as returned by `reporting.render_chapter`.

    Returns:
        The path of the report.

    Raises:
        ValueError: labels, probabilities and class_names do not match.
    """
    labels, probabilities = np.asarray(labels, dtype=np.int64), np.asarray(probabilities)
    classes = len(class_names)
    if probabilities.shape != (len(labels), classes):
        raise ValueError(
            f"a report needs one label and one probability per class for each example; received {len(labels)} labels, "
            f"probabilities of shape {probabilities.shape} and {classes} class names"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}; received {labels.min()}..{labels.max()}")

    predicted = probabilities.argmax(axis=1)
    confusion = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    small = classes <= MAX_CLASSES_IN_MATRIX
    context = shared_context(title, metrics, config, class_names, sentences, titles) | {
        "curves": {
            "Loss": draw_curve(history, {"loss": ", training", "val_loss": ", validation"}),
            "Validation accuracy": draw_curve(history, {"val_accuracy": ""}),
        },
        "confusion": confusion.tolist() if small else None,
        "shares": shares.tolist() if small else None,
        "heat_map": None if small else _heat_map(shares),
        "pairs": [] if small else confused_pairs(confusion, shares),
        "numbers": {name: number for number, name in enumerate(class_names)},
        # Weakest first: with two hundred classes these rows matter most.
        "per_class": sorted(per_class, key=lambda row: as_number(row.get("f1")) or 0),
        "what": what,
        "mistakes": _mistakes(labels, predicted, probabilities.max(axis=1, initial=0), preview),
        "mistake_count": int((predicted != labels).sum()),
        "test_count": len(labels),
        "skipped": skipped,
        "reliability": _reliability_plot(reliability) if reliability else None,
        "chapters": chapters,
    }
    return render(Path(out) / "report.html", context, TEMPLATES)


def write_model_card(
    out: Path, *, title: str, metrics: dict, config: dict, class_names: Sequence[str],
    sentences: Sequence[str], source_card: dict, titles: Mapping[str, str],
) -> Path:  # fmt: skip
    """Write OUT/model_card.md: intended use, origin, results, serving.

    Args:
        out, title, metrics, config, class_names, sentences, titles: as for `write_report`.
        source_card: "spec", "licence", "origin" and "data" of the pretrained model.

    Returns:
        The path of the card.
    """
    context = shared_context(title, metrics, config, class_names, sentences, titles)
    return render_card(out, context, source_card, TEMPLATES)


def _heat_map(shares: np.ndarray) -> str:
    figure = Figure(figsize=(6.2, 5.4), layout="constrained")
    axes = figure.subplots()
    # The square root makes rare confusions visible; on a linear scale only the diagonal shows.
    image = axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted class, by number", ylabel="true class, by number")
    bar = figure.colorbar(image, ax=axes, label="share of the true class")
    bar.set_ticks([0, 0.1, 0.5, 1], labels=["0 %", "1 %", "25 %", "100 %"])
    return png_of_figure(figure)


def _mistakes(labels, predicted, confidence, preview) -> list[dict]:
    """Collect the most confident mistakes among those that can still be shown."""
    wrong = [int(index) for index in np.argsort(-confidence, kind="stable") if predicted[index] != labels[index]]
    found: list[dict] = []
    while wrong and len(found) < MAX_MISTAKES:
        some = wrong[: MAX_MISTAKES - len(found)]
        wrong = wrong[len(some) :]
        found += [
            {"true": labels[index], "predicted": predicted[index], "probability": confidence[index], **shown}
            for index, shown in zip(some, preview(some), strict=True)
            if shown
        ]
    return found


def _reliability_plot(rows: list[dict]) -> str:
    """Draw accuracy over confidence, and below it the number of predictions in each range."""
    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="#8a8f98", linestyle=":", label="perfect calibration")
    means = [row["confidence"] for row in rows]
    upper.plot(means, [row["accuracy"] for row in rows], marker="o", color="#2563a8", label="this model")
    upper.set(ylabel="accuracy", ylim=(0, 1.03), xlim=(0, 1.01))
    upper.legend(frameon=False, fontsize=8)
    widths = [row["high"] - row["low"] for row in rows]
    lower.bar([row["low"] for row in rows], [row["count"] for row in rows], widths, align="edge", color="#9db7d5")
    lower.set(xlabel="predicted probability", ylabel="predictions")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return png_of_figure(figure)
