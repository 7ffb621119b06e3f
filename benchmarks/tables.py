"""Write what was measured into the tables of the READMEs, between the markers `<!-- NAME -->` and `<!-- end -->`.

    python benchmarks/tables.py

The other scripts write the numbers, into recipes/*/results.json and benchmarks/results/; nothing is typed by hand.
What a recipe declares (BASELINES, SCORES, GALLERY) is read from its recipe.py: a new recipe needs no line here.
A row that was measured with other code than that of the checkout is marked as stale; see provenance.py.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.provenance import stale_rows  # noqa: E402 (the script's folder, not the checkout, is on sys.path)
from recipes.commands._discovery import Recipe, find_recipes  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
LOWER_IS_BETTER = ("wer", "cer")
WITH_A_NETWORK = ("frozen", "scratch", "zero_shot")  # the other baselines are cheap
STALE = " *(stale)*"
STALE_LEGEND = (
    "*(stale)*: measured with code, bundled weights or demo data that have changed since, or that are not recorded; "
    "`python benchmarks/measure.py --verify` measures it again."
)
TABLE = re.compile(r"<!-- ([\w:]+) -->\n.*?<!-- end -->", re.DOTALL)


def write_tables(pages: Iterable[Path] | None = None) -> None:
    """Replace what stands between the markers of each table.

    Args:
        pages: of Markdown; every README of the repository by default.

    Raises:
        SystemExit: a page names a table that there is not.
    """
    for page in readmes() if pages is None else pages:
        page.write_text(rendered(page), "utf-8")


def rendered(page: Path) -> str:
    """Return the text of a page with its tables as the results are today; raise SystemExit for an unknown table."""
    tables: dict[str, Callable[[], list[str]]] = {
        "gallery": gallery, "serving": serving, "ways_to_send": ways_to_send, "conversions": conversions,
        "few_shot": few_shot, "padding": padding, "boxes_of_classes": boxes_of_classes,
        "detection_steps": detection_steps, "new_voice": new_voice, "speech_checks": speech_checks,
        "wav2vec2_parity": wav2vec2_parity,
        "unfreeze_policies": unfreeze_policies,
    }  # fmt: skip

    def written(found: re.Match) -> str:
        kind, _, recipe = found[1].partition(":")
        if kind != "results" and kind not in tables:
            raise SystemExit(f"{page}: there is no table {kind!r}. Allowed: results:RECIPE, {', '.join(tables)}")
        lines = results_of(recipe) if kind == "results" else tables[kind]()
        return "\n".join([f"<!-- {found[1]} -->", *lines, "<!-- end -->"])

    return TABLE.sub(written, page.read_text("utf-8"))


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


def without_marks(text: str) -> str:
    """Return a page as it would be if no row were stale: the marks come and go with the code, the numbers do not."""
    return text.replace(STALE, "").replace(f"\n\n{STALE_LEGEND}", "")


def gallery() -> list[str]:
    """Return the table of all recipes: first the one to try first, last those that name no row of results.json."""
    heads = ["scenario", "in", "out", "result", "frozen source", "best without a network", "from scratch", "minutes"]
    recipes = sorted(find_recipes(ROOT / "recipes"), key=_place_in_gallery)
    shown = {recipe.name: row for recipe in recipes if (row := _gallery_row(recipe))}
    timed = on_one_processor(shown)
    lines = [_line(_gallery_cells(recipe, shown.get(recipe.name), recipe.name in timed)) for recipe in recipes]
    return _with_legends([_line(heads), "|---" * len(heads) + "|", *lines], shown, timed)


def _place_in_gallery(recipe: Recipe) -> tuple[bool, bool]:
    shown = recipe.literal("GALLERY")
    return not shown["row"], not shown.get("first", False)


def _gallery_row(recipe: Recipe) -> dict | None:
    name, rows = recipe.literal("GALLERY")["row"], rows_of(recipe.name)
    if not name or not rows:
        return None
    if found := next((row for row in rows if row["name"] == name), None):
        return found
    raise SystemExit(f"{recipe.file}: GALLERY names the row {name!r}, and results.json has none of that name")


def _gallery_cells(recipe: Recipe, row: dict | None, timed: bool) -> list[str]:
    shown = recipe.literal("GALLERY")
    cells = [f"[{recipe.name}](recipes/{recipe.name}/README.md)", shown["in"], shown["out"]]
    if row is None:
        return [*cells, "not measured yet" if shown["row"] else "", "", "", "", ""]
    # Training from scratch takes long: where a row NAME_scratch measured it, the row NAME goes without.
    separate = [other for other in rows_of(recipe.name) if other["name"] == f"{row['name']}_scratch"]
    score, baselines = recipe.literal("SCORES")[0], (separate[0]["baselines"] if separate else {}) | row["baselines"]
    cheap = [name for name in baselines if name not in WITH_A_NETWORK]
    best = (min if score in LOWER_IS_BETTER else max)(
        cheap, key=lambda name: baselines[name][score]["mean"], default=None
    )
    frozen = _score(baselines.get("frozen"), score)
    if not frozen and "zero_shot" in baselines:
        frozen = f"{_score(baselines['zero_shot'], score)} (no adaptation)"
    mark = STALE if stale_rows(ROOT, recipe.name, [row, *separate]) else ""
    return [
        *cells, f"`{score}` **{_score(row['metric'], score)}**: {row['title']}{mark}", frozen,
        f"{_score(baselines[best], score)} (`{best}`)" if best else "", _score(baselines.get("scratch"), score),
        f"{statistics.median(row['command_seconds']['seeds']) / 60:.1f}" if timed else "",
    ]  # fmt: skip


def results_of(name: str) -> list[str]:
    """Return the table of a recipe's results, with a column for each baseline that was measured."""
    recipe, rows = Recipe(name, ROOT / "recipes" / name / "recipe.py"), rows_of(name)
    score, titles = recipe.literal("SCORES")[0], recipe.literal("BASELINES", {})
    measured = dict.fromkeys(baseline for row in rows for baseline in row["baselines"])
    columns = sorted(measured, key=lambda baseline: [*titles, *measured].index(baseline))
    heads = ["measured on", *(titles.get(baseline, baseline) for baseline in columns), f"result, `{score}`"]
    heads += ["fine-tuning epochs", "whole command, median (min-max)", "proof: agreement, largest difference"]
    stale, timed = stale_rows(ROOT, name, rows), on_one_processor({row["name"]: row for row in rows})
    lines = [_line(heads), "|---" * len(heads) + "|"]
    for row in rows:
        cells = [_title(row, stale), *(_score(row["baselines"].get(baseline), score) for baseline in columns)]
        cells += [f"**{_score(row['metric'], score)}**", str(row.get("epochs", {}).get("finetune", ""))]
        cells += [_seconds(row["command_seconds"]["seeds"]) if row["name"] in timed else ""]
        cells += [f"{row['proof']['agreement']:.4g}, {row['proof']['max_abs_diff']:.0e}"]
        lines.append(_line(cells))
    return _with_legends(lines, {row["name"]: row for row in rows}, timed)


def on_one_processor(rows: dict[str, dict]) -> set[str]:
    """Return the names of the rows whose seconds can be compared: those of the processor that measured most of them.

    Args:
        rows: of results.json, by name. Where two processors measured as many, the one that measured last counts.
    """
    origins = {name: row["seconds_from"] for name, row in rows.items()}
    counts = Counter((one["processor"], one["cores"]) for one in origins.values())
    last = {
        (one["processor"], one["cores"]): one["date"] for one in sorted(origins.values(), key=lambda one: one["date"])
    }
    most = max(counts, key=lambda machine: (counts[machine], last[machine]), default=None)
    return {name for name, one in origins.items() if (one["processor"], one["cores"]) == most}


def _with_legends(lines: list[str], rows: dict[str, dict], timed: set[str]) -> list[str]:
    """Return the lines of a table, and below them what its marks and empty cells mean."""
    if timed != set(rows):
        one = rows[min(timed)]["seconds_from"]
        lines = [*lines, "", f"Durations are those on {one['cores']} cores of one processor, {one['processor']}; "
                 "rows that another processor measured have none."]  # fmt: skip
    return [*lines, "", STALE_LEGEND] if any(STALE in line for line in lines) else lines


def _title(row: dict, stale: set[str]) -> str:
    return row["title"] + (STALE if row["name"] in stale else "")


def _seconds(seeds: list[float]) -> str:
    middle = f"{statistics.median(seeds):.0f} s"
    return middle if len(seeds) == 1 else f"{middle} ({min(seeds):.0f}-{max(seeds):.0f})"


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


def unfreeze_policies() -> list[str]:
    """Return the table of benchmarks/unfreeze_policies.py."""
    found, policies = _read("unfreeze_policies"), ("frozen", "last_block", "all", "auto")
    lines = [_line(["data", *(f"`{policy}`" for policy in policies), "`auto` over `frozen`"]), "|---" * 6 + "|"]
    for name, cell in found.get("table", {}).items():
        gain = cell["auto_over_frozen"]
        cells = [f"{cell[policy]['accuracy']:.3f}" for policy in policies]
        lines.append(_line([name, *cells, f"{gain['points']:+.1f} ± {gain['standard_error']:.1f} points"]))
    if found.get("mean"):
        lines.append(_line(["mean", *(f"**{found['mean'][policy]:.3f}**" for policy in policies), ""]))
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
    stale = stale_rows(ROOT, "object_detection", rows)
    for row in rows:
        lines.append(_line([_title(row, stale), *(_score(row["per_class"][name], "ap50") for name in classes)]))
    return [*lines, "", STALE_LEGEND] if stale else lines


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
