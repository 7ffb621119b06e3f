"""Finished runs side by side: scores, time, memory, and the settings in which they differ."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from common.errors import UserError
from common.files import flatten
from recipes.commands._discovery import recipe_of_run
from recipes.commands._pairs import describe_difference

TAKES = "RUN RUN..."
NOT_A_SETTING = ("out", "resume", "save_every", "format")


def main(arguments: list[str], root: Path) -> int:
    """Print a table of finished runs."""
    parser = argparse.ArgumentParser(prog="python -m recipes compare", description=main.__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="the folder that a run wrote (its --out)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per run")
    options = parser.parse_args(arguments)
    found = [_read(run) for run in options.runs]
    if options.json:
        for run, (metrics, config) in zip(options.runs, found, strict=True):
            print(json.dumps({"run": str(run), "metrics": metrics, "config": config}, ensure_ascii=False))
        return 0
    columns = [
        _column(metrics, _scores_of(root, run, metrics)) for run, (metrics, _) in zip(options.runs, found, strict=True)
    ]
    lines = {name: [column.get(name, "") for column in columns] for column in columns for name in column}
    print("\n".join(_table([str(run) for run in options.runs], lines)))
    different = _differing([config for _, config in found])
    if different:
        print("\ndifferent settings")
        print("\n".join(_table(None, different)))
    in_pairs = [describe_difference(options.runs[0], run) for run in options.runs[1:]]
    tests = [(metrics.get("data"), metrics.get("counts", {}).get("test")) for metrics, _ in found]
    if any(test != tests[0] for test, sentence in zip(tests[1:], in_pairs, strict=True) if not sentence):
        print("\nThe runs were tested on different data: their scores are not comparable.")
    for sentence in filter(None, in_pairs):
        print(f"\n{sentence}")
    return 0


def _read(run: Path) -> tuple[dict, dict]:
    try:
        return tuple(json.loads((run / name).read_text("utf-8")) for name in ("metrics.json", "config.json"))
    except OSError as problem:
        raise UserError(
            f"{run} holds no finished run ({Path(problem.filename).name}: {problem.strerror}). Name the --out of one."
        ) from problem
    except ValueError as problem:
        raise UserError(f"{run} cannot be read: {problem}. Name the --out of a finished run.") from problem


def _scores_of(root: Path, run: Path, metrics: dict) -> list[str]:
    """Return the names of the scores of a run: the main ones of its recipe, or all."""
    try:
        first = recipe_of_run(root, run).literal("SCORES", ())
    except UserError:  # the recipe does not exist here
        first = ()
    numbers = [name for name, value in metrics.get("test", {}).items() if isinstance(value, int | float)]
    return [name for name in first if name in numbers] or numbers


def _column(metrics: dict, scores: list[str]) -> dict[str, str]:
    """Return the column of one run, by the name of the line."""
    test, seconds = metrics.get("test", {}), metrics.get("seconds", {})
    lines = {"recipe": str(metrics.get("recipe", "")), "data": str(metrics.get("data", ""))}
    lines["source"] = str(metrics.get("source", ""))
    for name in scores:
        if name in test:
            low, high = test.get(f"{name}_ci95", (None, None))
            lines[name] = f"{test[name]:.4f}" + (f" ({low:.3f} to {high:.3f})" if low is not None else "")
    for name, baseline in metrics.get("baselines", {}).items():
        first = next((score for score in scores if score in baseline), None)
        if first:
            lines[f"{name}: {first}"] = f"{baseline[first]:.4f}"
    if "total" in seconds:
        lines["seconds"] = f"{seconds['total']:.0f}"
    if "peak_memory_mb" in metrics:
        lines["peak memory, MB"] = f"{metrics['peak_memory_mb']:,.0f}"
    proof = metrics.get("proof")
    lines["proof"] = "not measured" if not proof else "passed" if proof.get("passed") else "FAILED"
    return lines


def _differing(configs: list[dict]) -> dict[str, list[str]]:
    flat = [flatten(config) for config in configs]
    names = dict.fromkeys(name for config in flat for name in config if name.split(".")[0] not in NOT_A_SETTING)
    rows = {name: [str(config.get(name, "")) for config in flat] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def _table(heads: list[str] | None, lines: dict[str, list[str]]) -> list[str]:
    rows = ([["", *heads]] if heads else []) + [[name, *values] for name, values in lines.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
