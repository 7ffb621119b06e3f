"""Check that the pages say only what was measured, and that it was measured with the code of today: `make docs-check`.

    python benchmarks/docs_check.py      # FILE:LINE: NUMBER - not found; exits 1 if there is any, or a stale row

A number in README.md, recipes/*/README.md or common/**/README.md has to be in a file that a script of this repository
wrote, rounded as it is shown: results.json of the page's recipe, and what the page names of benchmarks/results and of
the cards of bundled models. Counts and limits may be constants of the code instead. Tables between markers have to be
as tables.py writes them, and the numbers in the titles of their rows those of the row's data or command.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import measure, tables  # noqa: E402 (the script's folder, not the checkout, is on sys.path)

# Numbers that are neither measured nor constants of the code, with the words around them.
FACTS = (
    r"95% confidence interval",  # the convention of every interval here
    r"a probability of 80%",  # the example that explains calibration
)
SKIPPED = (
    r"^```.*?^```",  # blocks of code
    r"`[^`\n]*`",  # flags, values, file names
    r"\]\([^)]*\)|<[^>]*>|https?://\S+",  # links
    r"^#* ?\d+\. |step \d",  # numbered headings and steps
    r"(?:Python|Keras|TensorFlow|WSL|wav2vec|setuptools) \d[\w.]*(?: to \d[\w.]*)?",  # versions, and names with one
)
UNITS = {  # unit: (what is in the key of a number that is measured in it, factors from the number to the unit)
    "%": ("", (100,)), "s": ("second", (1,)), "seconds": ("second", (1,)), "minutes": ("second", (1 / 60,)),
    "min": ("second", (1 / 60,)), "hours": ("second", (1 / 3600,)), "ms": ("_ms|millisecond", (1,)),
    "kB": ("bytes", (1e-3,)), "MB": ("bytes|_mb", (1, 1e-6)), "GB": ("bytes", (1e-9,)),
    "times": ("times|over|gain", (1,)),
}  # fmt: skip
NUMBER = re.compile(
    r"(?<![\w.,/-])(?P<number>\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?)(?![\w/]|[.,]\d)"
    rf"(?:\s?(?P<unit>%|of 100\b|(?:{'|'.join(UNITS)})\b))?"
)


@dataclass(frozen=True)
class Number:
    """A number as a page shows it: "12.5", of the unit "s", in line 3."""

    line: int
    text: str
    unit: str

    def is_found(self, measured: Iterable[tuple[str, float]], constants: set[float]) -> bool:
        """Return whether it was measured, as (key, value) has it, or, if it is a plain number, is a constant."""
        value, (key, factors) = float(self.text.replace(",", "")), UNITS.get(self.unit, ("", (1,)))
        if self.unit not in UNITS and "." not in self.text:
            return value / (100 if self.unit else 1) in constants or any(value == one for _, one in measured)
        decimals = len(self.text.partition(".")[2])
        return any(
            re.search(key, path) and abs(round(one * factor, decimals) - value) < 1e-9
            for path, one in measured
            for factor in factors
        )


def numbers_of(text: str) -> Iterator[Number]:
    """Yield the numbers of a page, apart from code, links, names, facts and the tables that tables.py writes."""
    for pattern in (tables.TABLE.pattern, *SKIPPED, *FACTS):
        text = re.sub(pattern, lambda found: "\n" * found[0].count("\n") + "_", text, flags=re.DOTALL | re.MULTILINE)
    for line, words in enumerate(text.splitlines(), 1):
        for found in NUMBER.finditer(words):
            yield Number(line, found["number"], found["unit"] or "")


def unknown_numbers(page: Path, root: Path, constants: set[float]) -> list[Number]:
    """Return the numbers of a page that nothing measured.

    Args:
        page: README.md of the repository, of a recipe or of a package.
        root: of the checkout.
        constants: numbers that the code has, as `constants_of` returns them.
    """
    text, of_recipe = page.read_text("utf-8"), page.parent.parent == root / "recipes"
    files = list((page.parent if of_recipe else root).glob("results.json" if of_recipe else "recipes/*/results.json"))
    files += [file for file in root.glob("benchmarks/results/*.json") if re.search(rf"\b{file.stem}\b", text)]
    files += [file for file in root.glob("common/bundled/*/card.json") if file.parent.name in text]
    measured = [number for file in files for number in _leaves("", json.loads(file.read_text("utf-8")))]
    return [number for number in numbers_of(text) if not number.is_found(measured, constants)]


def constants_of(root: Path) -> set[float]:
    """Return every number that the code of common/ and recipes/ has as a constant."""
    trees = [ast.parse(file.read_bytes()) for folder in ("common", "recipes") for file in (root / folder).rglob("*.py")]
    values = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return {float(value) for value in values if isinstance(value, int | float)}


def unknown_in_title(row: dict, constants: set[float]) -> list[Number]:
    """Return the numbers in the title of a row of results.json that neither its data nor its command explain."""
    counts = [row["counts"].get(name, 0) for name in ("train", "val", "skipped", "test")]
    given = [*counts, *accumulate(counts), *(float(number) for number in re.findall(r"\d+", row["command"]))]
    found = list(numbers_of(row["title"]))
    small = {constant for constant in constants if constant < 100}  # digits per class, kHz; a size of data is measured
    return [number for number in found if not number.is_found([("", one) for one in given], small)]


def changed_tables(page: Path) -> list[str]:
    """Return the names of the tables of a page that are not as tables.py writes them, marks of stale rows apart."""
    today = tables.TABLE.finditer(tables.without_marks(tables.rendered(page)))
    there = tables.TABLE.finditer(tables.without_marks(page.read_text("utf-8")))
    return [one[1] for one, other in zip(there, today, strict=True) if one[0] != other[0]]


def problems(root: Path = ROOT) -> Iterator[str]:
    """Yield a line for each stale row, each number that is not found, and each table that is not as it is written."""
    constants = constants_of(root)
    for recipe in sorted({measurement.recipe for measurement in measure.MEASUREMENTS}):
        file, rows = f"recipes/{recipe}/results.json", {row["name"]: row for row in tables.rows_of(recipe)}
        for name in sorted(measure.stale(recipe)):
            yield f"{file}: {name} - {'stale' if name in rows else 'not measured'}"
        for name, row in rows.items():
            for number in unknown_in_title(row, constants):
                yield f"{file}: {name}: {number.text} in its title - not found"
    for page in tables.readmes():
        name = page.relative_to(root).as_posix()
        for number in unknown_numbers(page, root, constants):
            yield f"{name}:{number.line}: {' '.join(filter(None, (number.text, number.unit)))} - not found"
        for table in changed_tables(page):
            yield f"{name}: table {table} - not as written by python benchmarks/tables.py"


def _leaves(path: str, content: object) -> Iterator[tuple[str, float]]:
    """Yield (keys, value) of every number in a JSON value, without lists of numbers: a page shows no single seeds."""
    if isinstance(content, dict):
        for key, inner in content.items():
            yield from _leaves(f"{path}.{key}", inner)
    elif isinstance(content, list):
        for inner in (one for one in content if isinstance(one, dict)):
            yield from _leaves(path, inner)
    elif isinstance(content, int | float):
        yield path, content


def main() -> int:
    """Print what is wrong, and return the exit status."""
    lines = list(problems())
    print("\n".join(lines) if lines else "Every number is held by a results file, and no row is stale.")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
