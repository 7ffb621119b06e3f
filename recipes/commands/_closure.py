"""Which files of the repository a file needs: its imports, followed to the end, wherever they stand in the code."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path


def closure(root: Path, files: Iterable[Path]) -> list[Path]:
    """Return the files of a repository that some of its files reach by their imports, themselves included.

    Imports within functions count as well, and so do the packages' own `__init__.py`.

    Args:
        root: of the repository.
        files: where to begin.

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
        waiting += _imported(root, file)
    return sorted(reached)


def count_lines(files: Iterable[Path]) -> int:
    """Return the number of lines of some text files."""
    return sum(len(file.read_text("utf-8").splitlines()) for file in files)


def _imported(root: Path, file: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            yield from _files_of(root, name)


def _files_of(root: Path, module: str) -> Iterator[Path]:
    """Yield the file of a module and the `__init__.py` of each package above it; nothing for what is from elsewhere."""
    path = root.joinpath(*module.split("."))
    own = [path.with_suffix(".py"), path / "__init__.py"]
    for file in own:
        if file.is_file():
            yield file
            packages = path.relative_to(root).parents
            yield from (init for folder in packages if (init := root / folder / "__init__.py").is_file())
