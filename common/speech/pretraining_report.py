"""The results of a run that pretrained a speech model: the printed table, and report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from common.reporting import draw_curve, lower_first, render

TEMPLATES = Path(__file__).with_name("templates")
_COLUMNS = {
    "wer": "word error rate",
    "cer": "character error rate",
    "contrastive_loss": "contrastive loss",
    "codes_used": "codes used",
}
_CURVES = {
    "Error rates on validation": {"val_wer": ", words", "val_cer": ", characters"},
    "Contrastive loss on validation": {"val_contrastive_loss": ", loss"},
    "Codes used on validation": {"val_codes_used": ", codes"},
    "Loss in training": {"loss": ", loss"},
}


def table(metrics: Mapping, titles: Mapping[str, str]) -> list[str]:
    """Return the table that a run prints at its end.

    Args:
        metrics: content of metrics.json.
        titles: of the baselines, by name.
    """
    columns = _columns(metrics)
    lines = [f"  {'':18}" + "".join(f"{_COLUMNS[name]:>22}" for name in columns)]
    for title, scores in _rows(metrics, titles):
        lines.append(f"  {title:18}" + "".join(f"{scores[name]:>22.3f}" for name in columns))
    return lines


def _columns(metrics: Mapping) -> list[str]:
    return [name for name in _COLUMNS if name in metrics["test"]]


def _rows(metrics: Mapping, titles: Mapping[str, str]) -> list[tuple[str, dict]]:
    rows = [(lower_first(titles.get(name, name)), score) for name, score in metrics["baselines"].items()]
    return [*rows, ("result", metrics["test"])]


def write_report(
    out: Path, *, title: str, metrics: dict, config: dict, history: list[dict], sentences: Sequence[str],
    skipped: Sequence[tuple[str, str]], titles: Mapping[str, str],
) -> Path:  # fmt: skip
    """Write OUT/report.html, a single self-contained file.

    Args:
        out: the run folder.
        title: of the page.
        metrics: content of metrics.json.
        config: setting name to value.
        history: one row per epoch, with the scores on validation.
        sentences: findings.
        skipped: (file, reason) of skipped files.
        titles: of the baselines, by name.

    Returns:
        The path of the report.
    """
    curves = {name: draw_curve(history, columns) for name, columns in _CURVES.items()}
    context = {
        "title": title, "metrics": metrics, "config": config, "sentences": sentences,
        "columns": {name: _COLUMNS[name] for name in _columns(metrics)}, "rows": _rows(metrics, titles),
        "skipped": skipped,
        "curves": {name: image for name, image in curves.items() if image},
    }  # fmt: skip
    return render(out / "report.html", context, TEMPLATES, "pretraining_report.html")
