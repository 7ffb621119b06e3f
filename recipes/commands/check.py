"""Check the data before training: what would be read, some examples, how long a run takes."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError
from recipes.commands._discovery import asks_for_help, named_recipe
from recipes.commands._execution import failures_as_user_errors, load_recipe, parse_flags, refuse_early

TAKES = "NAME [flags]"


def main(arguments: list[str], root: Path) -> int:
    """Parse the flags, and only if they are valid import the recipe and check its data."""
    if asks_for_help(arguments, __doc__, f"check {TAKES}"):
        return 0
    recipe, flags = named_recipe("check", arguments, root)
    if not recipe.defines_function("check"):
        raise UserError(f"{recipe.name} has no check. Type: python -m recipes run {recipe.name} --limit 100")
    config = parse_flags("check", recipe, flags)
    refuse_early(recipe, config)
    module = load_recipe(recipe)
    with failures_as_user_errors(recipe, config):
        module.check(module.Config(**vars(config)))
    return 0
