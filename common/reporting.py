"""Tell what a finished classification run did: report.html for people, model_card.md for the model.

A number that is absent is shown as "not measured", never guessed, and a proof is shown as passed only where
every part of it was measured and holds.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from common.playback import embed_sounds
from common.runs import write_atomically

NOT_MEASURED = "not measured"
PROBABILITY_TOLERANCE = 1e-4  # for a proof that does not say its own: processes differ by rounding only
MAX_CLASSES_IN_MATRIX = 30  # a larger table cannot be read: a heat map and the most confused pairs replace it
MAX_PAIRS = 20
MAX_MISTAKES = 12
MAX_CHARACTERS = 600  # of a text that is shown
THUMBNAIL_PIXELS = 160
STAGES = {
    "head": ("head", "#b7791f"),
    "finetune": ("fine-tuning", "#2563a8"),
    "pairs": ("telling pairs apart", "#2563a8"),
    "tuned_head": ("head of the tuned encoder", "#b7791f"),
    "scratch": ("scratch", "#6b7280"),
}
BASELINES = {"frozen": "Frozen source, linear head", "scratch": "From scratch", "none": "No adaptation",
             "words": "Counted words (TF-IDF), logistic regression",
             "vectors": "Mean of word vectors, logistic regression"}  # fmt: skip


def write_report(
    out: Path, *, title: str, metrics: dict, config: dict, history: list[dict], class_names: Sequence[str],
    labels: np.ndarray, probabilities: np.ndarray, per_class: list[dict], skipped: Sequence[tuple[str, str]],
    sentences: Sequence[str], image_paths: Sequence[str] | None = None, texts: Sequence[str] | None = None,
    sound_paths: Sequence[str] | None = None, explanation=None,
) -> Path:  # fmt: skip
    """Write OUT/report.html, one file that needs nothing else to be read.

    Args:
        out: the run folder; made if it is missing.
        title: the heading.
        metrics: what metrics.json holds; any part may be absent.
        config: setting name to value.
        history: one row an epoch: "stage", "epoch", "loss", "val_loss", "val_accuracy".
        class_names: the classes, in the order of the columns of `probabilities`.
        labels: int [examples], the true classes of the test examples.
        probabilities: float32 [examples, classes], what the model answered.
        per_class: rows of "class", "precision", "recall", "f1", "support".
        skipped: (path, reason) of every file that could not be used.
        sentences: findings in plain words, shown near the top.
        image_paths: [examples] files of the test images; one that cannot be read any more gets no picture.
        texts: [examples] test texts, instead of images.
        sound_paths: [examples] files of the test clips, instead of images; the mistakes can be played.
        explanation: an `explaining.Explanation` or `text_explaining.TextExplanation`; None leaves its chapters out.

    Returns:
        The path of the report.

    Raises:
        ValueError: labels, probabilities, examples and class_names do not belong together.
    """
    labels, probabilities = np.asarray(labels, dtype=np.int64), np.asarray(probabilities)
    classes = len(class_names)
    given = {"images": image_paths, "texts": texts, "clips": sound_paths}
    [(what, examples)] = [(name, those) for name, those in given.items() if those is not None]
    if probabilities.shape != (len(labels), classes) or len(examples) != len(labels):
        raise ValueError(
            "a report needs one label, one path or text and one probability per class for each example; received "
            f"{len(labels)} labels, {len(examples)} examples, probabilities of shape {probabilities.shape} "
            f"and {classes} class names"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}; received {labels.min()}..{labels.max()}")

    predicted = probabilities.argmax(axis=1)
    confusion = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    small = classes <= MAX_CLASSES_IN_MATRIX
    context = shared_context(title, metrics, config, class_names, sentences) | {
        "curves": {
            "Loss": draw_curve(history, {"loss": ", training", "val_loss": ", validation"}),
            "Validation accuracy": draw_curve(history, {"val_accuracy": ""}),
        },
        "confusion": confusion.tolist() if small else None,
        "shares": shares.tolist() if small else None,
        "heat_map": None if small else _heat_map(shares),
        "pairs": [] if small else confused_pairs(confusion, shares),
        "numbers": {name: number for number, name in enumerate(class_names)},
        # Weakest first: that is the row a reader looks for among two hundred.
        "per_class": sorted(per_class, key=lambda row: as_number(row.get("f1")) or 0),
        "what": what,
        "mistakes": _mistakes(what, labels, predicted, probabilities.max(axis=1, initial=0), examples),
        "mistake_count": int((predicted != labels).sum()),
        "test_count": len(labels),
        "skipped": skipped,
        "explained": _explained(explanation) if explanation and what == "images" else None,
        "read": _read(explanation) if explanation and what == "texts" else None,
    }
    return render(Path(out) / "report.html", context)


def write_model_card(
    out: Path, *, title: str, metrics: dict, config: dict, class_names: Sequence[str],
    sentences: Sequence[str], source_card: dict,
) -> Path:  # fmt: skip
    """Write OUT/model_card.md: what the model is for, where it comes from, how good it is, how to serve it.

    Args:
        out, title, metrics, config, class_names, sentences: as for `write_report`.
        source_card: "spec", "licence", "origin" and "data" of the pretrained model.

    Returns:
        The path of the card.
    """
    return render_card(out, shared_context(title, metrics, config, class_names, sentences), source_card)


def render_card(out: Path, context: dict, source_card: dict, template: str | None = None) -> Path:
    """Write OUT/model_card.md and return its path.

    Args:
        out: folder of the run.
        context: of the report, as `shared_context` gives it and other kinds of reports change it.
        source_card: "spec", "licence", "origin" and "data" of the pretrained model.
        template: of another card than that of classes.
    """
    name, version = newest_export(out, context["metrics"])
    context = context | {
        "source_card": source_card,
        "version_folder": f"serving/{name}/{version}",
    }
    return render(Path(out) / "model_card.md", context, template)


def newest_export(out: Path, metrics: dict) -> tuple[str, str]:
    """Return name and version of what a run really exported; TF Serving itself takes the highest number."""
    exports = [path for path in Path(out).glob("serving/*/*") if path.is_dir() and path.name.isdecimal()]
    newest = max(exports, key=lambda path: int(path.name), default=None)
    if newest is None:
        return str(metrics.get("recipe") or "model"), "1"
    return newest.parent.name, newest.name


def shared_context(title, metrics, config, class_names, sentences) -> dict:
    """Return what the templates of every kind of report ask for: command, versions, seconds, data, proof."""
    seconds = metrics.get("seconds") or {}
    parts = [as_number(seconds.get(part)) for part in ("features", "head", "finetune")]
    known = [part for part in parts if part is not None]
    training = sum(known) if known else None
    headline = [{**(metrics.get("test") or {}), "name": "Exported model", "seconds": training}]
    for key, values in (metrics.get("baselines") or {}).items():
        headline.append({**(values or {}), "name": BASELINES.get(key, key)})
    context = {"title": title, "metrics": metrics, "config": config, "class_names": list(class_names)}
    proof = judge_proof(metrics.get("proof") or {})
    return context | {"sentences": sentences, "headline": headline, "proof": proof}


def judge_proof(
    proof: dict, *, examples: str = "Test examples", same: str = "Labels that are the same as in the evaluation",
    number: str = "probability", tolerance: float = PROBABILITY_TOLERANCE,
) -> dict:  # fmt: skip
    """Say of each part of the proof what was found and whether it holds; what was not measured does not.

    Args:
        proof: as a recipe measured it.
        examples, same, number: what was sent, what had to come again, and which number was compared.
        tolerance: of that number, for a proof that does not say its own.

    Returns:
        {"passed", "measured", "failed", "held"}: the last two are sentences.
    """
    count, agreement = as_number(proof.get("examples")), as_number(proof.get("agreement"))
    difference, allowed = as_number(proof.get("max_abs_diff")), proof.get("tolerance", tolerance)
    foreign = proof.get("ops_outside_tf_serving")
    largest = NOT_MEASURED if difference is None else f"{difference:.2g}"
    lacking = NOT_MEASURED if foreign is None else ", ".join(map(str, foreign)) or "none"
    checks = {
        f"{examples} that a fresh process sent to the SavedModel: {_count(count)}": bool(count),
        f"{same}: {_percent(agreement)}": agreement == 1,
        f"Largest difference of a {number}: {largest} (allowed: up to {allowed:g})": (
            difference is not None and difference <= allowed
        ),
        f"Operations that the stock TF Serving server lacks: {lacking}": foreign is not None and not foreign,
    }
    if proof.get("error"):  # the numbers beside an error are placeholders: nothing was compared
        checks = {f"It stopped with an error before it could compare: {proof['error']}": False}
    elif proof.get("passed") is False and all(checks.values()):
        checks["The run marked its proof as failed"] = False
    failed, held = ([text for text, holds in checks.items() if holds == wanted] for wanted in (False, True))
    return {"passed": not failed, "measured": bool(proof), "failed": failed, "held": held}


def draw_curve(history: list[dict], columns: dict[str, str]) -> str | None:
    """Draw columns of the history, stage after stage; None where not one value was measured."""
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    done = 0
    for stage in dict.fromkeys(row.get("stage") for row in history):
        rows = [row for row in history if row.get("stage") == stage]
        # Fine-tuning goes on where the head stopped; training from scratch is another run, from the start.
        start = 0 if stage == "scratch" else done
        done = start + len(rows) if stage != "scratch" else done
        name, colour = STAGES.get(stage, (stage, None))
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


def _heat_map(shares: np.ndarray) -> str:
    figure = Figure(figsize=(6.2, 5.4), layout="constrained")
    axes = figure.subplots()
    # The square root lifts rare confusions out of the white; on a straight scale only the diagonal shows.
    image = axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted class, by number", ylabel="true class, by number")
    bar = figure.colorbar(image, ax=axes, label="share of the true class")
    bar.set_ticks([0, 0.1, 0.5, 1], labels=["0 %", "1 %", "25 %", "100 %"])
    return png_of_figure(figure)


def confused_pairs(confusion: np.ndarray, shares: np.ndarray) -> list[tuple[int, int, int, float]]:
    """Return (true class, answer, how often, share of that class) of the most frequent confusions."""
    wrong = confusion - np.diag(confusion.diagonal())
    largest = np.argsort(-wrong, axis=None, kind="stable")[:MAX_PAIRS]
    cells = zip(*np.unravel_index(largest, wrong.shape), strict=True)
    return [(i, j, int(wrong[i, j]), shares[i, j]) for i, j in cells if wrong[i, j]]


def _mistakes(what, labels, predicted, confidence, examples) -> list[dict]:
    """Collect the wrong answers given with the highest probability; of images, those that can still be read."""
    found = []
    for index in np.argsort(-confidence, kind="stable"):
        if len(found) == MAX_MISTAKES:
            break
        if predicted[index] == labels[index]:
            continue
        answer = {"true": labels[index], "predicted": predicted[index], "probability": confidence[index]}
        if what == "texts":
            found.append({"text": _short(examples[index]), **answer})
            continue
        path = str(examples[index])
        if what == "clips":
            found.append({"path": path, "name": Path(path).name, **answer})
        elif picture := _thumbnail(path):
            found.append({"picture": picture, "name": Path(path).name, **answer})
    if what == "clips":
        sounds = embed_sounds([mistake["path"] for mistake in found])
        return [mistake | sound for mistake, sound in zip(found, sounds, strict=True)]
    return found


def _short(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + " ..."


def _read(explanation) -> dict:
    """Turn a TextExplanation into what the template shows."""
    moved = []
    for one in explanation.moved:
        largest = max((abs(change) for _, change in one["words"]), default=0) or 1.0
        words = [
            {"word": word, "change": change, "strength": round(abs(change) / max(largest, 0.05), 2)}
            for word, change in one["words"]
        ]
        moved.append({**one, "words": words, "rest": _short(one["rest"])})
    return {
        "reliability": _reliability_plot(explanation.reliability),
        "lengths": _length_plot(explanation.lengths),
        "by_length": explanation.by_length,
        "moved": moved,
    }


def _length_plot(lengths: np.ndarray) -> str:
    figure = Figure(figsize=(5.6, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.hist(lengths, bins=min(40, max(5, int(np.ptp(lengths)) + 1)), color="#2563a8")
    axes.set_xlabel("tokens")
    axes.set_ylabel("test texts")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return png_of_figure(figure)


def _explained(explanation) -> dict:
    """Turn an Explanation into what the template shows."""
    near, suspects = explanation.near_duplicates, [one for one in explanation.suspects if one["confident"]]
    return {
        "reliability": _reliability_plot(explanation.reliability),
        "looks": [
            {**look, "picture": _overlay(look["pixels"], look["heat"]), "name": Path(look["path"]).name}
            for look in explanation.looks
        ],
        "near": [
            {**pair, "picture": _thumbnail(pair["path"]), "other_picture": _thumbnail(pair["other_path"]),
             "name": Path(pair["path"]).name, "other_name": Path(pair["other_path"]).name}
            for pair in near[:MAX_MISTAKES]
        ],
        "near_count": len(near),
        "suspects": [
            {**one, "picture": _thumbnail(one["path"]), "name": Path(one["path"]).name}
            for one in suspects[:MAX_MISTAKES]
        ],
        "suspect_count": len(suspects),
    }  # fmt: skip


def _reliability_plot(rows: list[dict]) -> str:
    """Draw accuracy over confidence, and below it how many answers each range holds."""
    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="#8a8f98", linestyle=":", label="means what it says")
    means = [row["confidence"] for row in rows]
    upper.plot(means, [row["accuracy"] for row in rows], marker="o", color="#2563a8", label="this model")
    upper.set(ylabel="share of right answers", ylim=(0, 1.03), xlim=(0, 1.01))
    upper.legend(frameon=False, fontsize=8)
    widths = [row["high"] - row["low"] for row in rows]
    lower.bar([row["low"] for row in rows], [row["count"] for row in rows], widths, align="edge", color="#9db7d5")
    lower.set(xlabel="probability of the answer", ylabel="answers")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return png_of_figure(figure)


def _overlay(pixels: np.ndarray, heat: np.ndarray) -> str:
    """Return a picture with the heat map over it: what spoke for the answer keeps its colour and glows."""
    strength = heat[..., None]
    glow = np.stack([np.full_like(heat, 255), 200 * (1 - heat), np.zeros_like(heat)], axis=-1)
    mixed = pixels * (0.45 + 0.55 * strength) * (1 - 0.4 * strength) + glow * 0.4 * strength
    return jpeg_of_picture(Image.fromarray(np.clip(mixed, 0, 255).astype("uint8")))


def _thumbnail(path: str) -> str | None:
    try:
        with Image.open(path) as image:
            # Not turned by its EXIF note: TensorFlow's decoder ignores it, so this is how the model saw it.
            image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
            small = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return jpeg_of_picture(small)


def jpeg_of_picture(image: Image.Image) -> str:
    """Return a picture as a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def png_of_figure(figure: Figure) -> str:
    """Return a figure as a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def as_number(value: object) -> float | None:
    """Return a value as a number, or None where it is none that could be printed."""
    try:
        number = float(value)
    except (TypeError, ValueError, jinja2.UndefinedError):
        return None
    return number if math.isfinite(number) else None


def _percent(value: object) -> str:
    if (number := as_number(value)) is None:
        return NOT_MEASURED
    # Rounding must not make a flawless result of one that is not; of errors, the flawless number is 0.
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


def render(path: Path, context: dict, template: str | None = None) -> Path:
    """Write a template, filled in; the one that has the name of the path where none is named."""
    markdown = path.suffix == ".md"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
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
    text = environment.get_template(template or path.name).render(context)
    content = text.encode("utf-8", "backslashreplace")  # a file name that is not UTF-8 holds lone surrogates
    return write_atomically(path, lambda partial: partial.write_bytes(content))
