"""Write what was measured into the tables of the READMEs, between the markers `<!-- NAME -->` and `<!-- end -->`.

    python benchmarks/tables.py

The other scripts write the numbers, into recipes/*/results.json and benchmarks/results/; nothing is typed by hand.
What a recipe declares (BASELINES, SCORES, GALLERY) is read from its recipe.py: a new recipe needs no line here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from recipes.commands._discovery import Recipe, find_recipes  # noqa: E402 (the script's folder is on sys.path)

RESULTS = ROOT / "benchmarks" / "results"
LOWER_IS_BETTER = ("wer", "cer")
WITH_A_NETWORK = ("frozen", "scratch", "zero_shot")  # the other baselines are cheap
TABLE = re.compile(r"<!-- ([\w:]+) -->\n.*?<!-- end -->", re.DOTALL)


def write_tables(pages: Iterable[Path] | None = None) -> None:
    """Replace what stands between the markers of each table.

    Args:
        pages: of Markdown; every README of the repository by default.

    Raises:
        SystemExit: a page names a table that there is not.
    """
    tables: dict[str, Callable[[], list[str]]] = {
        "gallery": gallery, "sources": sources, "side_by_side": side_by_side, "serving": serving,
        "ways_to_send": ways_to_send, "conversions": conversions, "few_shot": few_shot, "padding": padding,
        "boxes_of_classes": boxes_of_classes, "detection_steps": detection_steps, "new_voice": new_voice,
        "speech_checks": speech_checks, "wav2vec2_parity": wav2vec2_parity,
    }  # fmt: skip
    for page in readmes() if pages is None else pages:

        def written(found: re.Match, page: Path = page) -> str:
            kind, _, recipe = found[1].partition(":")
            if kind != "results" and kind not in tables:
                raise SystemExit(f"{page}: there is no table {kind!r}. Allowed: results:RECIPE, {', '.join(tables)}")
            lines = results_of(recipe) if kind == "results" else tables[kind]()
            return "\n".join([f"<!-- {found[1]} -->", *lines, "<!-- end -->"])

        text = page.read_text("utf-8")
        page.write_text(TABLE.sub(written, text), "utf-8")


def readmes() -> list[Path]:
    """Return every README of the repository that may hold tables."""
    return [ROOT / "README.md", *sorted(ROOT.glob("recipes/*/README.md")), *sorted(ROOT.glob("common/**/README.md"))]


def rows_of(recipe: str) -> list[dict]:
    """Return the measured rows of a recipe."""
    file = ROOT / "recipes" / recipe / "results.json"
    return json.loads(file.read_text("utf-8"))["runs"] if file.exists() else []


def _read(name: str) -> dict:
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else {}


def gallery() -> list[str]:
    """Return the table of all recipes, those first that name the row of results.json that shows what they reach."""
    heads = ["scenario", "in", "out", "result", "frozen source", "best without a network", "from scratch", "minutes"]
    recipes = sorted(find_recipes(ROOT / "recipes"), key=lambda recipe: not recipe.literal("GALLERY")["row"])
    return [_line(heads), "|---" * len(heads) + "|", *(_line(_gallery_cells(recipe)) for recipe in recipes)]


def _gallery_cells(recipe: Recipe) -> list[str]:
    shown, rows = recipe.literal("GALLERY"), rows_of(recipe.name)
    cells = [f"[{recipe.name}](recipes/{recipe.name}/README.md)", shown["in"], shown["out"]]
    if not shown["row"] or not rows:
        return [*cells, "not measured yet" if shown["row"] else "", "", "", "", ""]
    row = next((row for row in rows if row["name"] == shown["row"]), None)
    if row is None:
        raise SystemExit(
            f"{recipe.file}: GALLERY names the row {shown['row']!r}, and results.json has none of that name"
        )
    # Training from scratch takes long: where a row NAME_scratch measured it, the row NAME goes without.
    beside = next((other["baselines"] for other in rows if other["name"] == f"{row['name']}_scratch"), {})
    score, baselines = recipe.literal("SCORES")[0], beside | row["baselines"]
    cheap = [name for name in baselines if name not in WITH_A_NETWORK]
    best = (min if score in LOWER_IS_BETTER else max)(
        cheap, key=lambda name: baselines[name][score]["mean"], default=None
    )
    frozen = _score(baselines.get("frozen"), score)
    if not frozen and "zero_shot" in baselines:
        frozen = f"{_score(baselines['zero_shot'], score)} (no adaptation)"
    return [
        *cells, f"`{score}` **{_score(row['metric'], score)}**: {row['title']}", frozen,
        f"{_score(baselines[best], score)} (`{best}`)" if best else "", _score(baselines.get("scratch"), score),
        f"{row['command_seconds']['mean'] / 60:.1f}",
    ]  # fmt: skip


def results_of(name: str) -> list[str]:
    """Return the table of a recipe's results, with a column for each baseline that was measured."""
    recipe = Recipe(name, ROOT / "recipes" / name / "recipe.py")
    rows = [row for row in rows_of(name) if not row["name"].startswith("digits_")]
    score, titles = recipe.literal("SCORES")[0], recipe.literal("BASELINES", {})
    measured = dict.fromkeys(baseline for row in rows for baseline in row["baselines"])
    columns = sorted(measured, key=lambda baseline: [*titles, *measured].index(baseline))
    heads = ["measured on", *(titles.get(baseline, baseline) for baseline in columns), f"result, `{score}`"]
    heads += ["whole command", "proof: agreement, largest difference"]
    lines = [_line(heads), "|---" * len(heads) + "|"]
    for row in rows:
        cells = [row["title"], *(_score(row["baselines"].get(baseline), score) for baseline in columns)]
        cells += [f"**{_score(row['metric'], score)}**", f"{row['command_seconds']['mean']:.0f} s"]
        cells += [f"{row['proof']['agreement']:.4g}, {row['proof']['max_abs_diff']:.0e}"]
        lines.append(_line(cells))
    return lines


def sources() -> list[str]:
    """Return the table of sources side by side: the rows `digits_SOURCE`."""
    lines = ["| source | digits, frozen | digits, fine-tuned |", "|---|---|---|"]
    for row in rows_of("image_classification"):
        if row["name"].startswith("digits_"):
            cells = [
                row["title"].partition(": ")[2],
                _score(row["baselines"]["frozen"], "accuracy"),
                _score(row["metric"], "accuracy"),
            ]
            lines.append(_line(cells))
    return lines


def side_by_side() -> list[str]:
    """Return the table of benchmarks/side_by_side.py."""
    lines = [
        "| data | tutorial, head | tutorial, end | logistic regression | ours | ours reaches tutorial's head, end |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in _read("side_by_side").get("data", {}).items():
        for run in found["seeds"]:
            points, marks = run["points"], run["marks"]
            head = next(point for point in reversed(points["tutorial"]) if point["stage"] == "head")
            ends = [head, points["tutorial"][-1], points["logistic_regression"][-1], points["ours"][-1]]
            cells = [f"{point['accuracy']:.3f} after {point['seconds']:.0f} s" for point in ends]
            sooner = [marks[stage]["ours_times_sooner"] for stage in ("head", "finetune")]
            cells.append(", ".join(f"{times:.1f} times sooner" if times else "not reached" for times in sooner))
            lines.append(_line([f"{name}, seed {run['seed']}", *cells]))
    return lines


def serving() -> list[str]:
    """Return the table of what the stand-in for TensorFlow Serving costs and withstands, of benchmarks/serving.py."""
    found = _read("serving")["parts"]
    lines = ["| what | measured |", "|---|---|"]
    for model, title in (("bytes", "a model that only counts bytes, 100 kB in"), ("resnet50", "ResNet50")):
        row = found["overhead"][model]
        lines.append(_line([
            f"sequential requests, {title}: median in-process, gRPC, REST",
            ", ".join(f"{row[way]['median_ms']:.1f} ms" for way in ("in_process", "grpc", "rest")),
        ]))  # fmt: skip
    for model, row in found["batching"].items():
        if model == "date":
            continue
        gain = row["in_process_ms_per_example"]["gain_over_threads"]
        title = (
            f"16 concurrent clients, {model}: with batching relative to without (a batch in-process: {gain:.1f} times)"
        )
        lines.append(_line([title, f"{row['on_over_off']:.2f} times the requests per second"]))
    abuse, versions, memory = found["abuse"], found["versions"], found["abuse"]["memory_mb"]
    bad = sum(sum(answers.values()) for answers in abuse["answers_to_bad_requests"].values())
    lines.append(_line([
        f"{abuse['requests']:,} requests of {abuse['clients']} clients, {bad:,} of them malformed, huge or aborted",
        f"{abuse['failed']} failed; {memory['before']} MB before, {memory['after']} MB after",
    ]))  # fmt: skip
    answers = sum(versions["answers"].values())
    lines.append(_line([
        "a new, a broken and a slowly copied version dropped in under load",
        f"{versions['failed']} of {answers:,} requests failed",
    ]))  # fmt: skip
    warmup = found["warmup"]
    lines.append(_line([
        "first request, MobileNetV2, relative to the steady median: without and with the warm-up file",
        " and ".join(f"{warmup[name]['first_over_steady']:.1f} times" for name in ("without_warm_up", "with_warm_up")),
    ]))  # fmt: skip
    return lines


def ways_to_send() -> list[str]:
    """Return the table of the ways to send one image to a ResNet50."""
    lines = ["| one image, ResNet50 | request | median |", "|---|---|---|"]
    for way, row in _read("serving")["parts"]["overhead"]["ways_to_send_a_picture"].items():
        lines.append(_line([way, f"{row['bytes'] / 1000:.0f} kB", f"{row['median_ms']:.0f} ms"]))
    return lines


def conversions() -> list[str]:
    """Return the table of benchmarks/conversions.py."""
    lines = [
        "| model | form | size | relative to float | same labels | accuracy: converted, SavedModel |"
        " one image: converted, SavedModel |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, forms in _read("conversions").get("runs", {}).items():
        for form, row in forms.items():
            smaller = row.get("times_smaller_than_float")
            verdict = "" if row["passed"] else ", **refused**"
            lines.append(_line([
                name, form, f"{row['bytes'] / 1e6:.2f} MB", f"1/{smaller:.2f}" if smaller else "",
                f"{row['agreement']:.3f}{verdict}", f"{row['accuracy']:.3f}, {row['saved_model_accuracy']:.3f}",
                f"{row['milliseconds']:.1f} ms, {row['saved_model_milliseconds']:.1f} ms",
            ]))  # fmt: skip
    return lines


def few_shot() -> list[str]:
    """Return the table of benchmarks/few_shot.py."""
    names = {"probe": "logistic regression", "setfit": "SetFit (PyTorch)", "ours": "ours"}
    lines = ["| labelled sentences per class | " + " | ".join(names.values()) + " |", "|---" * (len(names) + 1) + "|"]
    for shots, found in _read("few_shot").get("shots", {}).items():
        cells = []
        for way in names:
            cpu = found[way].get("cpu_seconds")
            seconds = f"{cpu['mean']:.0f} s of the CPU" if cpu else f"{found[way]['seconds']['mean']:.0f} s"
            cells.append(f"{_score(found[way], 'accuracy')} after {seconds}")
        split = found.get("split", "development")  # what older results were measured on
        lines.append(_line([f"{shots}, {len(found['seeds'])} draws, {split} split", *cells]))
    return lines


def padding() -> list[str]:
    """Return the table of benchmarks/padding.py."""
    lines = ["| batches | sentences per second | accuracy |", "|---|---|---|"]
    for row in _read("padding").get("ways", {}).values():
        lines.append(_line([row["title"], f"{row['sentences_a_second']:.0f}", f"{row['accuracy']:.3f}"]))
    return lines


def boxes_of_classes() -> list[str]:
    """Return AP50 of each class of the blood cells, for each detector."""
    rows = [row for row in rows_of("object_detection") if row["name"] in ("bccd", "bccd_yolov8", "bccd_retinanet")]
    classes = list(rows[0]["per_class"]) if rows else []
    lines = [_line(["AP50 of each class", *classes]), "|---" * (len(classes) + 1) + "|"]
    for row in rows:
        lines.append(_line([row["title"], *(_score(row["per_class"][name], "ap50") for name in classes)]))
    return lines


def detection_steps() -> list[str]:
    """Return the table of benchmarks/detection_steps.py."""
    lines = ["| detector | our training step | the library's own `fit` |", "|---|---|---|"]
    for name, row in _read("detection_steps").get("seconds_of_a_step", {}).items():
        lines.append(_line([name, *(f"{row[way]:.2f} s" for way in ("ours", "library"))]))
    return lines


def new_voice() -> list[str]:
    """Return the table of benchmarks/new_voice.py."""
    found = _read("new_voice")
    lines = [
        "| word error rate for | trained on the other four | from scratch on its few clips | both, in turn |",
        "|---|---|---|---|",
    ]
    for speaker, row in (found.get("wer", {}) | {"mean": found.get("mean")}).items() if found else ():
        lines.append(_line([speaker, *(f"{row[name]:.3f}" for name in ("zero_shot", "scratch", "adapted"))]))
    return lines


def speech_checks() -> list[str]:
    """Return the table of benchmarks/speech_checks.py."""
    found, lines = _read("speech_checks"), ["| what | measured |", "|---|---|"]
    if found:
        padding, hour = found["padding"], found["an_hour"]
        lines.append(_line([
            f"clips with the same transcript alone and with {padding['seconds']} s of padding",
            f"{padding['same_transcript']} of {padding['clips']}",
        ]))  # fmt: skip
        for title, row in found["real_voices"].items():
            lines.append(_line([f"word error rate, {title}, no adaptation, served", f"{row['wer']:.3f}"]))
        lines.append(_line([
            f"a recording of {hour['seconds_of_sound']} s",
            f"{hour['seconds']:.0f} s; peak memory {hour['after_an_hour']} MB; for its first minute "
            f"{hour['peak_memory_mb_after_a_minute']} MB",
        ]))  # fmt: skip
    return lines


def wav2vec2_parity() -> list[str]:
    """Return the table of benchmarks/wav2vec2_parity.py."""
    lines = [
        "| wav2vec 2.0 | largest difference: hidden states, logits | our training step | PyTorch's |",
        "|---|---|---|---|",
    ]
    for size, row in _read("wav2vec2_parity").get("sizes", {}).items():
        parity = row["parity"]
        cells = [f"{parity[name]:.0e}" for name in ("max_abs_diff_states", "max_abs_diff_logits")]
        steps = [f"{row[part]['median_seconds_a_step']:.2f} s" for part in ("ours", "theirs")]
        lines.append(_line([f"{size}, {parity['parameters']:,} parameters", ", ".join(cells), *steps]))
    return lines


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _score(metrics: dict | None, name: str) -> str:
    if not metrics:
        return ""
    score = metrics[name]
    if len(score.get("seeds", ())) == 1:
        return f"{score['mean']:.3f}, one seed"
    return f"{score['mean']:.3f} ± {score['std']:.3f}"


if __name__ == "__main__":
    write_tables()
