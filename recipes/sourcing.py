"""Sources before training: list those that are recommended, and fetch one ahead of time."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.catalogue import CATALOGUE
from common.errors import UserError
from common.specs import parse_source
from recipes.discovery import find_recipe
from recipes.execution import quiet_tensorflow


def list_sources(arguments: list[str], root: Path) -> int:
    """Print the catalogue: what can stand after --source as a short name."""
    parser = argparse.ArgumentParser(prog="python -m recipes sources", description=list_sources.__doc__)
    parser.add_argument("--for", dest="recipe", metavar="RECIPE", help="only those that suit this recipe")
    wanted = parser.parse_args(arguments).recipe
    if wanted and wanted not in {recipe for entry in CATALOGUE.values() for recipe in entry.recipes}:
        name = find_recipe(root, wanted).name
        raise UserError(f"No source is recommended for {name}. All of them: python -m recipes sources")
    for entry in CATALOGUE.values():
        if wanted and wanted not in entry.recipes:
            continue
        fetched = "nothing to download" if entry.source.startswith("bundled:") else f"about {entry.megabytes} MB"
        facts = (
            f"{entry.parameters / 1e6:.1f} M parameters",
            f"takes {entry.takes}",
            fetched,
            f"licence: {entry.licence}",
        )
        print(f"{entry.name:20}{entry.about}\n{'':20}{'; '.join(facts)}")
        print(f"{'':20}from {entry.source or ', or '.join(entry.places)}; verified by {entry.verified_by}")
        print(f"{'':20}for {', '.join(entry.recipes)}")
    print("\nAny other: keras:NAME, preset:NAME_OR_FOLDER, hub:HANDLE_OR_FOLDER, kaggle:HANDLE (README, Sources).")
    print("Ahead of time: python -m recipes fetch SOURCE")
    return 0


def fetch(arguments: list[str]) -> int:
    """Fetch a source ahead of time, go on with a fetch that broke off, verify it, and print how to use it offline."""
    parser = argparse.ArgumentParser(prog="python -m recipes fetch", description=fetch.__doc__)
    parser.add_argument("source", metavar="SOURCE", help="what would stand after --source")
    source = parser.parse_args(arguments).source
    parse_source(source)  # a mistake is told before the seconds of importing TensorFlow
    with quiet_tensorflow():
        from common.sources import fetch_source

    print(f"It is here. Without network: --source '{fetch_source(source)}'")
    return 0
