"""The recipes, one line each."""

from __future__ import annotations

import sys
from pathlib import Path

from recipes.commands._discovery import asks_for_help, find_recipes


def main(arguments: list[str], root: Path) -> int:
    """Print the name and the first line of the description of each recipe."""
    if asks_for_help(arguments, __doc__, "list"):
        return 0
    recipes = find_recipes(root)
    width = max((len(recipe.name) for recipe in recipes), default=0)
    for recipe in recipes:
        print(f"{recipe.name:{width}}  {recipe.docstring().splitlines()[0]}")
    if not recipes:
        print(f"no recipes in {root}", file=sys.stderr)
    return 0
