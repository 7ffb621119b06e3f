"""Render pages: what the reports and model cards of all recipes share.

A number that is absent is shown as "not measured", never guessed, and a proof is shown as passed only where
every part of it was measured and holds.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from common.files import write_atomically

NOT_MEASURED = "not measured"
PROBABILITY_TOLERANCE = 1e-4  # for a proof without its own: processes differ by rounding only
MAX_CLASSES_IN_MATRIX = 30  # a larger table is unreadable: a heat map and the most confused pairs replace it
MAX_PAIRS = 20
TEMPLATES = Path(__file__).with_name("templates")
_TITLES = {"finetune": "fine-tuning", "scratch": "from scratch"}  # of stages; others use their names
_COLOURS = {"head": "#b7791f", "finetune": "#2563a8", "scratch": "#6b7280"}
_OF_BASELINES = ("scratch", "frozen", "spectrogram")  # stages that start anew; others continue the one before


def render_card(out: Path, context: dict, source_card: dict, templates: Path) -> Path:
    """Write OUT/model_card.md and return its path.

    Args:
        out: folder of the run.
        context: of the report, as `shared_context` returns it and other kinds of reports extend it.
        source_card: "spec", "licence", "origin" and "data" of the pretrained model.
        templates: folder with a model_card.md.
    """
    name, version = newest_export(out, context["metrics"])
    context = context | {
        "source_card": source_card,
        "version_folder": f"serving/{name}/{version}",
    }
    return render(Path(out) / "model_card.md", context, templates)


def newest_export(out: Path, metrics: dict) -> tuple[str, str]:
    """Return name and version of the newest export of a run; TF Serving too takes the highest number."""
    exports = [path for path in Path(out).glob("serving/*/*") if path.is_dir() and path.name.isdecimal()]
    newest = max(exports, key=lambda path: int(path.name), default=None)
    if newest is None:
        return str(metrics.get("recipe") or "model"), "1"
    return newest.parent.name, newest.name


def shared_context(title, metrics, config, class_names, sentences, titles: Mapping[str, str]) -> dict:
    """Return what the templates of every kind of report use: title, metrics, settings, sentences, headline, proof.

    Args:
        title, metrics, config, class_names, sentences: as shown in every report.
        titles: of the baselines, by name.
    """
    seconds = metrics.get("seconds") or {}
    parts = [as_number(seconds.get(part)) for part in ("features", "head", "finetune")]
    known = [part for part in parts if part is not None]
    training = sum(known) if known else None
    headline = [{**(metrics.get("test") or {}), "name": "Exported model", "seconds": training}]
    for key, values in (metrics.get("baselines") or {}).items():
        headline.append({**(values or {}), "name": titles.get(key, key)})
    context = {"title": title, "metrics": metrics, "config": config, "class_names": list(class_names)}
    proof = judge_proof(metrics.get("proof") or {})
    return context | {"sentences": sentences, "headline": headline, "proof": proof}


def judge_proof(
    proof: dict, *, examples: str = "Test examples", same: str = "Labels identical to the evaluation",
    number: str = "probability", tolerance: float = PROBABILITY_TOLERANCE,
) -> dict:  # fmt: skip
    """Return the result of each check of the proof; a check that was not measured counts as failed.

    Args:
        proof: as a recipe measured it.
        examples, same, number: names of what was sent, what had to be identical, and which number was compared.
        tolerance: of that number, for a proof without its own.

    Returns:
        {"passed", "measured", "failed", "held"}: the last two are sentences.
    """
    count, agreement = as_number(proof.get("examples")), as_number(proof.get("agreement"))
    difference, allowed = as_number(proof.get("max_abs_diff")), proof.get("tolerance", tolerance)
    foreign = proof.get("ops_outside_tf_serving")
    largest = NOT_MEASURED if difference is None else f"{difference:.2g}"
    lacking = NOT_MEASURED if foreign is None else ", ".join(map(str, foreign)) or "none"
    checks = {
        f"{examples} sent to the SavedModel by a fresh process: {_count(count)}": bool(count),
        f"{same}: {_percent(agreement)}": agreement == 1,
        f"Largest difference in a {number}: {largest} (allowed: at most {allowed:g})": (
            difference is not None and difference <= allowed
        ),
        f"Operations missing in the stock TF Serving server: {lacking}": foreign is not None and not foreign,
    }
    if proof.get("error"):  # the numbers beside an error are placeholders
        checks = {f"It failed before the comparison: {proof['error']}": False}
    elif proof.get("passed") is False and all(checks.values()):
        checks["The run marked its proof as failed"] = False
    failed, held = ([text for text, holds in checks.items() if holds == passed] for passed in (False, True))
    return {"passed": not failed, "measured": bool(proof), "failed": failed, "held": held}


def draw_curve(history: list[dict], columns: dict[str, str]) -> str | None:
    """Plot columns of the history, stage after stage; None where no value was measured."""
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    done = of_its_first = 0
    for stage in dict.fromkeys(row.get("stage") for row in history):
        rows = [row for row in history if row.get("stage") == stage]
        # Fine-tuning continues where the head stopped, a baseline starts anew, and its second part continues its first.
        of_baseline = str(stage).startswith(_OF_BASELINES)
        start = of_its_first if str(stage).endswith("_low_rate") else 0 if of_baseline else done
        done, of_its_first = done if of_baseline else start + len(rows), start + len(rows)
        name, colour = _TITLES.get(stage, str(stage).replace("_", " ")), _COLOURS.get(stage)
        for column, split in columns.items():
            values = np.array([as_number(row.get(column)) for row in rows], dtype=float)  # None becomes NaN
            if np.isfinite(values).any():
                line = {
                    "color": colour,
                    "linestyle": ":" if column == "loss" else "-",
                    "label": f"{name}{split}",
                }
                axes.plot(np.arange(1, len(rows) + 1) + start, values, marker="o", markersize=3, **line)
    if not axes.lines:
        return None
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    longest = max(len(line.get_label()) for line in axes.lines)
    figure.legend(loc="outside lower center", ncols=3 if longest <= 22 else 2, frameon=False, fontsize=8)
    return png_of_figure(figure)


def confused_pairs(confusion: np.ndarray, shares: np.ndarray) -> list[tuple[int, int, int, float]]:
    """Return (true class, predicted class, count, share of the true class) of the most frequent confusions."""
    wrong = confusion - np.diag(confusion.diagonal())
    largest = np.argsort(-wrong, axis=None, kind="stable")[:MAX_PAIRS]
    cells = zip(*np.unravel_index(largest, wrong.shape), strict=True)
    return [(i, j, int(wrong[i, j]), shares[i, j]) for i, j in cells if wrong[i, j]]


def jpeg_of_image(image: Image.Image) -> str:
    """Return an image as a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def png_of_figure(figure: Figure) -> str:
    """Return a figure as a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def as_number(value: object) -> float | None:
    """Return a value as a number, or None where it is not a finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError, jinja2.UndefinedError):
        return None
    return number if math.isfinite(number) else None


def _percent(value: object) -> str:
    if (number := as_number(value)) is None:
        return NOT_MEASURED
    # Rounding must not turn an imperfect result into a perfect one; for error rates, perfect is 0.
    if 0 < number < 0.0005:
        return "< 0.1 %"
    return "> 99.9 %" if 0.9995 <= number < 1 else f"{100 * number:.1f} %"


def _interval(pair: object) -> str:
    ends = [as_number(end) for end in pair] if isinstance(pair, (list, tuple, np.ndarray)) else []
    return NOT_MEASURED if len(ends) != 2 or None in ends else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} %"


def _duration(value: object) -> str:
    if (number := as_number(value)) is None:
        return NOT_MEASURED
    return f"{number:.1f} s" if number < 60 else f"{int(number // 60)} min {int(number % 60)} s"


def _count(value: object) -> str:
    number = as_number(value)
    return NOT_MEASURED if number is None else f"{number:,.0f}"


def _escape_markdown(value: object) -> str:
    """Keep a user's name from becoming a heading, a link, a table cell or HTML."""
    if isinstance(value, Markup):
        return value
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[\\`*\[\]|~#]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)


def render(path: Path, context: dict, templates: Path, template: str | None = None) -> Path:
    """Render a template into a file.

    Args:
        path: of the file to write; .md is escaped for Markdown, everything else for HTML.
        context: values of the template.
        templates: folder of the template; what it extends and includes may also lie in common/templates.
        template: its name, where it differs from that of the path.

    Returns:
        The path.
    """
    text = _environment(templates, markdown=path.suffix == ".md").get_template(template or path.name).render(context)
    content = text.encode("utf-8", "backslashreplace")  # a file name that is not UTF-8 holds lone surrogates
    return write_atomically(path, lambda partial: partial.write_bytes(content))


def render_chapter(template: Path, context: dict) -> Markup:
    """Return a chapter of a report in HTML, rendered from a template of one wing."""
    return Markup(_environment(template.parent, markdown=False).get_template(template.name).render(context))


def _environment(templates: Path, *, markdown: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([templates, TEMPLATES]),
        autoescape=not markdown,
        finalize=_escape_markdown if markdown else None,  # sees all that is printed, as autoescape does
        undefined=jinja2.ChainableUndefined,  # metrics may lack any part; the filters say "not measured"
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {"percent": _percent, "interval": _interval, "duration": _duration, "number": _count}
    # JSON is YAML: quoted like this, no licence or title can break out of the front matter.
    filters["yaml"] = lambda value: Markup(json.dumps(str(value), ensure_ascii=False))
    environment.filters.update(filters)
    return environment


def lower_first(title: str) -> str:
    """Return a title as it appears within a sentence; abbreviations such as SVM stay as they are."""
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]
