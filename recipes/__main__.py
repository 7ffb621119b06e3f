"""The command line of the recipes.

Usage:
    python -m recipes list                      the recipes, one line each
    python -m recipes show NAME                 its description, its flags, its measured results
    python -m recipes check NAME [flags]        look at the data before training
    python -m recipes run NAME [flags]          train, evaluate, export and prove
    python -m recipes run NAME --resume OUT     go on with a run that was stopped
    python -m recipes predict RUN FILE...       classify files or texts, find objects, or write down what is said
    python -m recipes serve RUN                 answer over HTTP and gRPC, as TensorFlow Serving would
    python -m recipes convert RUN --to FORM     the export of a run as LiteRT (float or --int8) or ONNX, proved again
    python -m recipes compare RUN RUN...        finished runs side by side
    python -m recipes sources [--for NAME]      pretrained models that are recommended, under short names
    python -m recipes fetch SOURCE              fetch a pretrained model ahead of time
    python -m recipes doctor                    what is wrong with this installation, and what mends it
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError, nearest
from common.runs import has_progress, settle
from recipes.comparing import compare
from recipes.converting import convert
from recipes.discovery import Recipe, config_class, find_recipe, find_recipes
from recipes.doctor import examine
from recipes.execution import complain, load_recipe, trouble_told_plainly
from recipes.predicting import predict
from recipes.sourcing import fetch, list_sources

RECIPES = Path(__file__).resolve().parent
COMMANDS = ("list", "show", "check", "run", "predict", "serve", "convert", "compare", "sources", "fetch", "doctor")
HELP_FLAGS = ("-h", "--help")


def main(arguments: list[str] | None = None, root: Path = RECIPES) -> int:
    """Run one command.

    Args:
        arguments: what stands after `python -m recipes`; None reads the real command line.
        root: the folder that holds the recipe folders.

    Returns:
        The exit code: 0 well, 1 the work failed (the proof, a file), 2 the user must change something,
        130 interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    # TensorFlow reads these once, at its import. Whoever sets them before keeps what was set.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    try:
        return _dispatch(arguments, root)
    except UserError as problem:
        complain(problem)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if arguments[0] not in ("list", "show") and not set(HELP_FLAGS) & set(arguments):
            raise
        # `show NAME | head` has read enough; Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(arguments: list[str], root: Path) -> int:
    command, *rest = arguments or [""]
    if command in HELP_FLAGS:
        print(__doc__)
        return 0
    if command not in COMMANDS:
        print(__doc__, file=sys.stderr)
        if command:
            suggestion = nearest(command, COMMANDS)
            recipe = nearest(command, [recipe.name for recipe in find_recipes(root)])
            suggestion = suggestion or (recipe and f"run {recipe}")
            ending = f" Did you mean: python -m recipes {suggestion}" if suggestion else ""
            complain(f"there is no command {command!r}.{ending}")
        return 2
    if command == "predict":
        return predict(rest)
    if command == "serve":
        from recipes.serving import serve  # here: its flags need tyro, which `list` does without

        return serve(rest)
    if command == "convert":
        return convert(rest)
    if command == "compare":
        return compare(rest)
    if command == "sources":
        return list_sources(rest, root)
    if command == "fetch":
        return fetch(rest)
    if command == "doctor":
        return examine(rest)
    if rest and rest[0] in HELP_FLAGS:
        print(__doc__)
        return 0
    if command == "list":
        return list_recipes(root)
    if not rest or rest[0].startswith("-"):
        names = ", ".join(recipe.name for recipe in find_recipes(root))
        raise UserError(f"{command} needs the name of a recipe first: {names or 'there is none'}.")
    recipe = find_recipe(root, rest[0])
    if command == "show":
        return show_recipe(recipe)
    return run_recipe(command, recipe, rest[1:])


def list_recipes(root: Path) -> int:
    """Print the name and the first line of the description of each recipe."""
    recipes = find_recipes(root)
    width = max((len(recipe.name) for recipe in recipes), default=0)
    for recipe in recipes:
        print(f"{recipe.name:{width}}  {recipe.docstring().splitlines()[0]}")
    if not recipes:
        print(f"no recipes in {root}", file=sys.stderr)
    return 0


def show_recipe(recipe: Recipe) -> int:
    """Print the description, the flags and the measured results of one recipe."""
    import tyro  # only here and in run_recipe: `list` does without

    print(recipe.docstring(), end="\n\n", flush=True)
    with contextlib.suppress(SystemExit):  # tyro leaves the program after its help; we have more to say
        program = f"python -m recipes run {recipe.name}"
        tyro.cli(config_class(recipe.file), args=["--help"], prog=program, description="")
    results = recipe.file.with_name("results.json")
    if results.exists():
        print("\nMeasured results (results.json)")
        print("\n".join(f"  {line}" for line in _describe_results(results)))
    return 0


def run_recipe(command: str, recipe: Recipe, arguments: list[str]) -> int:
    """Parse the flags, and only when they are right import the recipe and run or check it."""
    import tyro

    light_class = config_class(recipe.file)
    if command == "check" and not recipe.defines_function("check"):
        raise UserError(f"{recipe.name} has no check. Type: python -m recipes run {recipe.name} --limit 100")
    # tyro would break the recipe's own message into the lines of a box: tyro only parses, the check follows.
    validate = getattr(light_class, "__post_init__", lambda config: None)
    light_class.__post_init__ = lambda config: None
    config = tyro.cli(
        light_class,
        args=arguments,
        prog=f"python -m recipes {command} {recipe.name}",
        description=recipe.docstring().splitlines()[0],
    )
    resumable = command == "run" and hasattr(config, "resume")
    try:
        validate(config)
        # What cannot start is refused before the seconds of importing TensorFlow.
        settings = settle(config) if resumable else config
    except (ValueError, OSError) as problem:
        raise UserError(str(problem)) from problem

    module = load_recipe(recipe)
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.init}
    config = module.Config(**fields)
    if command == "check":
        with trouble_told_plainly(recipe, settings):
            module.check(config)
        return 0
    how = f" Go on with it: python -m recipes run {recipe.name} --resume {settings.out}" if resumable else ""
    try:
        with trouble_told_plainly(recipe, settings):
            metrics = module.main(config)
    except KeyboardInterrupt:
        print(f"\ninterrupted.{how}", file=sys.stderr)
        return 130
    except UserError as problem:  # a folder with progress was refused before: this run has learned what is there
        if resumable and config.resume is None and has_progress(Path(settings.out)):
            raise UserError(f"{problem} What the run has saved is kept.{how}") from problem
        raise
    proof = metrics.get("proof") or {}
    if not proof.get("passed", True):
        complain(f"the proof failed: the export in {config.out} does not answer as evaluated. Do not serve it.")
        return 1
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
    """Print any JSON value; a {"mean", "std", "seeds"} is one line, however deep it lies."""
    if isinstance(value, dict) and isinstance(value.get("mean"), int | float):
        spread = f" ± {value['std']:.4g}" if isinstance(value.get("std"), int | float) else ""
        seeds = f" ({len(value['seeds'])} seeds)" if isinstance(value.get("seeds"), list) else ""
        yield f"{name} {value['mean']:.4g}{spread}{seeds}"
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(f"{name}.{key}" if name else str(key), inner)
    else:
        yield f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


if __name__ == "__main__":
    sys.exit(main())
