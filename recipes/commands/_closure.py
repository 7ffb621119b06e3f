"""The files of the repository that a file needs: its imports, followed transitively, including those in functions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

# A module that is imported on demand, by name: `common.images.hub_sources`, `common.images.convert:NAME`.
_ON_DEMAND = re.compile(r"(common(?:\.\w+)+)(?::\w+)?")


def closure(root: Path, files: Iterable[Path], *, on_demand: bool = False) -> list[Path]:
    """Return the files of a repository that the given files reach by their imports, including themselves.

    Imports within functions are included, and so is the `__init__.py` of each package.

    Args:
        root: of the repository.
        files: to start from.
        on_demand: whether to also follow modules named in strings, which are imported on demand.

    Returns:
        The files, sorted.
    """
    reached: set[Path] = set()
    waiting = list(files)
    while waiting:
        file = waiting.pop()
        if file in reached:
            continue
        reached.add(file)
        for name in _imported(ast.parse(file.read_bytes()), on_demand):
            waiting += _files_of(root, name)
    return sorted(reached)


def count_lines(files: Iterable[Path]) -> int:
    """Return the number of lines of some text files."""
    return sum(len(file.read_text("utf-8").splitlines()) for file in files)


def _imported(tree: ast.Module, on_demand: bool) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        elif on_demand and isinstance(node, ast.Constant) and isinstance(node.value, str):
            if named := _ON_DEMAND.fullmatch(node.value):
                yield named[1]


def _files_of(root: Path, module: str) -> Iterator[Path]:
    """Yield the file of a module and the `__init__.py` of each package above it; nothing for modules from elsewhere."""
    path = root.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            yield file
            packages = path.relative_to(root).parents
            yield from (init for folder in packages if (init := root / folder / "__init__.py").is_file())
