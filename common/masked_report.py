"""Tell what a run that learned to guess hidden words did: the table that it prints, and report.html."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import jinja2
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.runs import write_atomically

_ROWS = {"random_weights": "random weights", "most_frequent": "commonest token, mean of teacher", "test": "result"}
_CURVES = {
    "Hidden words guessed": ("train_accuracy", "val_accuracy"),
    "Cosine to the teacher": ("train_cosine_to_teacher", "val_cosine_to_teacher"),
}


def score_lines(metrics: dict) -> list[str]:
    """Return the lines of the table that a run prints at its end."""
    lines = [f"  {'':34}hidden words guessed (95 % interval)   cosine to the teacher"]
    for title, score in _scores(metrics):
        low, high = score["accuracy_ci95"]
        guessed = f"{score['accuracy']:.3f} ({low:.3f} to {high:.3f})"
        cosine = f"{score['cosine_to_teacher']:.3f}" if "cosine_to_teacher" in score else "no teacher"
        lines.append(f"  {title:34}{guessed:39}{cosine}")
    return lines


def _scores(metrics: dict) -> list[tuple[str, dict]]:
    scores = {**metrics["baselines"], "test": metrics["test"]}
    return [(title, scores[name]) for name, title in _ROWS.items()]


def write_report(
    out: Path, *, metrics: dict, config: dict, history: Sequence[dict], sentences: Sequence[str], examples
) -> Path:
    """Write OUT/report.html, one file that needs nothing else to be read.

    Args:
        out: the run folder.
        metrics: what metrics.json holds.
        config: setting name to value.
        history: one row an epoch: "epoch", and {"train_", "val_"} with "accuracy" and "cosine_to_teacher".
        sentences: findings in plain words.
        examples: as `masked_words.show_hidden` gives them.

    Returns:
        The path of the report.
    """
    templates = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("masked_report.html").render(
        rows=_scores(metrics), metrics=metrics, config=config, sentences=sentences, examples=examples,
        curves={title: _curve(history, columns) for title, columns in _CURVES.items() if columns[1] in history[0]},
    )  # fmt: skip
    content = page.encode("utf-8", "backslashreplace")  # a file name that is not UTF-8 holds lone surrogates
    return write_atomically(out / "report.html", lambda partial: partial.write_bytes(content))


def _curve(history: Sequence[dict], columns: tuple[str, str]) -> str:
    figure = Figure(figsize=(5.6, 3.2), layout="constrained")
    axes = figure.subplots()
    for column, label in zip(columns, ("training", "validation"), strict=True):
        axes.plot([row["epoch"] for row in history], [row[column] for row in history], marker="o", label=label)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
