"""Train, evaluate, export and prove; --resume OUT continues a run that was stopped."""

from __future__ import annotations

import sys
from pathlib import Path

from common.errors import UserError
from common.runs import has_progress, settle
from recipes.commands._discovery import asks_for_help, named_recipe
from recipes.commands._execution import complain, failures_as_user_errors, load_recipe, parse_flags, refuse_early

TAKES = "NAME [flags]"


def main(arguments: list[str], root: Path) -> int:
    """Parse the flags, and only if they are valid import the recipe and run it."""
    if asks_for_help(arguments, __doc__, f"run {TAKES}"):
        return 0
    recipe, flags = named_recipe("run", arguments, root)
    config = parse_flags("run", recipe, flags)
    resumable = hasattr(config, "resume")
    # Errors are reported before importing TensorFlow, which takes seconds.
    settings = settle(config) if resumable else config
    refuse_early(recipe, settings)
    module = load_recipe(recipe)
    how = f" Continue it: python -m recipes run {recipe.name} --resume {settings.out}" if resumable else ""
    try:
        with failures_as_user_errors(recipe, settings):
            metrics = module.main(module.Config(**vars(config)))
    except KeyboardInterrupt:
        print(f"\ninterrupted.{how}", file=sys.stderr)
        return 130
    except UserError as problem:  # a folder with progress was rejected before: the progress is of this run
        if resumable and config.resume is None and has_progress(Path(settings.out)):
            raise UserError(f"{problem} The progress of the run is kept.{how}") from problem
        raise
    proof = metrics.get("proof") or {}
    if not proof.get("passed", True):
        complain(f"the proof failed: the export in {config.out} does not reproduce the evaluation. Do not serve it.")
        return 1
    return 0
