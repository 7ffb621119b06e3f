"""The report of a run that pretrains a masked language model, and the table that it prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from common.reporting import draw_curve, lower_first, render

TEMPLATES = Path(__file__).with_name("templates")
_CURVES = {
    "Masked tokens predicted": {"train_accuracy": ", training", "val_accuracy": ", validation"},
    "Cosine to the teacher": {"train_cosine_to_teacher": ", training", "val_cosine_to_teacher": ", validation"},
}


def table(metrics: Mapping, titles: Mapping[str, str]) -> list[str]:
    """Return the table that a run prints at its end.

    Args:
        metrics: what metrics.json holds.
        titles: of the baselines, by name.
    """
    lines = [f"  {'':34}masked tokens (95 % interval)          cosine to the teacher"]
    for title, score in _rows(metrics, titles):
        low, high = score["accuracy_ci95"]
        accuracy = f"{score['accuracy']:.3f} ({low:.3f} to {high:.3f})"
        cosine = f"{score['cosine_to_teacher']:.3f}" if "cosine_to_teacher" in score else "no teacher"
        lines.append(f"  {title:34}{accuracy:39}{cosine}")
    return lines


def _rows(metrics: Mapping, titles: Mapping[str, str]) -> list[tuple[str, dict]]:
    rows = [(lower_first(titles.get(name, name)), score) for name, score in metrics["baselines"].items()]
    return [*rows, ("result", metrics["test"])]


def findings(scores: Mapping) -> list[str]:
    """Return the findings of a run, in plain sentences.

    Args:
        scores: "test", "baselines" and "left_out" of metrics.json.
    """
    test, reference, copies = scores["test"], scores["baselines"]["most_frequent"], scores["left_out"]["copies"]
    sentences = [f"{copies:,} copies of sentences were left out."] if copies else []
    more = "It needs more sentences, or more --epochs."
    if test["accuracy_ci95"][0] <= reference["accuracy"]:
        sentences.append(f"It predicts masked tokens no better than always predicting the most frequent token. {more}")
    if "cosine_to_teacher" in test and test["cosine_to_teacher_ci95"][0] <= reference["cosine_to_teacher"]:
        sentences.append(f"Its embeddings are no closer to the teacher's than the mean embedding is. {more}")
    return sentences


def write_report(
    out: Path, *, title: str, metrics: dict, config: dict, history: list[dict], sentences: Sequence[str], examples,
    titles: Mapping[str, str],
) -> Path:  # fmt: skip
    """Write OUT/report.html, one file that needs nothing else to be read.

    Args:
        out: the run folder.
        title: of the page.
        metrics: what metrics.json holds.
        config: setting name to value.
        history: one row per epoch: "epoch", and {"train_", "val_"} with "accuracy" and "cosine_to_teacher".
        sentences: findings in plain words.
        examples: as returned by `masked_lm.masked_examples`.
        titles: of the baselines, by name.

    Returns:
        The path of the report.
    """
    curves = {name: draw_curve(history, columns) for name, columns in _CURVES.items()}
    context = {
        "title": title, "rows": _rows(metrics, titles), "metrics": metrics, "config": config, "sentences": sentences,
        "examples": examples, "curves": {name: curve for name, curve in curves.items() if curve},
    }  # fmt: skip
    return render(out / "report.html", context, TEMPLATES, "masked_lm_report.html")
