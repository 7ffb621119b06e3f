"""The description of a recipe, its flags, its measured results."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipes.commands._discovery import asks_for_help, config_class, named_recipe

TAKES = "NAME"


def main(arguments: list[str], root: Path) -> int:
    """Print the description, the flags and the measured results of one recipe."""
    if asks_for_help(arguments, __doc__, "show NAME"):
        return 0
    recipe, _ = named_recipe("show", arguments, root)
    import tyro  # here: `list` does without

    print(recipe.docstring(), end="\n\n", flush=True)
    with contextlib.suppress(SystemExit):  # tyro exits after its help; the results follow
        program = f"python -m recipes run {recipe.name}"
        tyro.cli(config_class(recipe.file), args=["--help"], prog=program, description="")
    results = recipe.file.with_name("results.json")
    if results.exists():
        print("\nMeasured results (results.json)")
        print("\n".join(f"  {line}" for line in _describe_results(results)))
    return 0


def _describe_results(file: Path) -> Iterator[str]:
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        yield f"cannot be read: {problem}"
        return
    runs = results.get("runs") if isinstance(results, dict) else None
    for run in runs if isinstance(runs, list) else [results]:
        if isinstance(run, dict):
            yield str(run.pop("command", ""))
            if isinstance(run.get("metric"), dict):
                run = {**run.pop("metric"), **run}
        yield from (f"  {line}" for line in _flatten("", run))


def _flatten(name: str, value: Any) -> Iterator[str]:
    """Print any JSON value; a {"mean", "std", "seeds"} at any depth is one line."""
    if isinstance(value, dict) and isinstance(value.get("mean"), int | float):
        spread = f" ± {value['std']:.4g}" if isinstance(value.get("std"), int | float) else ""
        seeds = f" ({len(value['seeds'])} seeds)" if isinstance(value.get("seeds"), list) else ""
        yield f"{name} {value['mean']:.4g}{spread}{seeds}"
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(f"{name}.{key}" if name else str(key), inner)
    else:
        yield f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
