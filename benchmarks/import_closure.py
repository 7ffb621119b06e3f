"""How much code a recipe needs: the lines of the files of this repository that its imports reach.

    python benchmarks/import_closure.py              # a line per recipe
    python benchmarks/import_closure.py --files      # and the files

On demand: with the modules that are imported by their names only when they are asked for (`--source hub:`, `convert`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from recipes.commands._closure import closure, count_lines  # noqa: E402  (after the path of the checkout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", action="store_true", help="list the files, with their lines")
    show_files = parser.parse_args().files
    commands = [ROOT / "recipes" / "__main__.py", *(ROOT / "recipes" / "commands").glob("*.py")]
    print(f"{'recipe':22}{'by imports':>12}{'and on demand':>15}{'and all commands':>18}")
    for recipe in sorted((ROOT / "recipes").glob("*/recipe.py")):
        files = closure(ROOT, [recipe])
        ways = [files, closure(ROOT, [recipe], on_demand=True), closure(ROOT, [recipe, *commands], on_demand=True)]
        print(
            f"{recipe.parent.name:22}{count_lines(ways[0]):>12,}{count_lines(ways[1]):>15,}{count_lines(ways[2]):>18,}"
        )
        if show_files:
            print(*(f"  {count_lines([file]):>5} {file.relative_to(ROOT)}" for file in files), sep="\n")


if __name__ == "__main__":
    main()
