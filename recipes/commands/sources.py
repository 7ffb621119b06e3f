"""Recommended pretrained models, with short names; --for NAME: for one recipe."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.errors import UserError
from common.sources.catalogue import CATALOGUE
from recipes.commands._discovery import find_recipe, find_recipes

TAKES = "[--for NAME]"


def main(arguments: list[str], root: Path) -> int:
    """Print the catalogue: the short names for --source."""
    parser = argparse.ArgumentParser(prog="python -m recipes sources", description=main.__doc__)
    parser.add_argument("--for", dest="recipe", metavar="RECIPE", help="only sources that suit this recipe")
    wanted = parser.parse_args(arguments).recipe
    suits = {recipe.name: recipe.literal("SOURCES", ()) for recipe in find_recipes(root)}
    if wanted and not suits[find_recipe(root, wanted).name]:
        raise UserError(f"No source is recommended for {wanted}. All of them: python -m recipes sources")
    for entry in CATALOGUE.values():
        recipes = [name for name, sources in suits.items() if entry.name in sources]
        if wanted and wanted not in recipes:
            continue
        fetched = "nothing to download" if entry.source.startswith("bundled:") else f"about {entry.megabytes} MB"
        facts = (
            f"{entry.parameters / 1e6:.1f} M parameters",
            f"takes {entry.takes}",
            fetched,
            f"licence: {entry.licence}",
        )
        print(f"{entry.name:20}{entry.about}\n{'':20}{'; '.join(facts)}")
        print(f"{'':20}trained on {entry.trained_on}")
        print(f"{'':20}from {entry.source or ', or '.join(entry.places)}; verified by {entry.verified_by}")
        print(f"{'':20}for {', '.join(recipes) or 'no recipe here'}")
    print("\nAny other: keras:NAME, preset:NAME_OR_FOLDER, hub:HANDLE_OR_FOLDER, kaggle:HANDLE (README, Sources).")
    print("Ahead of time: python -m recipes fetch SOURCE")
    return 0
