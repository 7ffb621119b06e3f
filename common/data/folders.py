"""Folders as people have them: links, hidden files, names that are not UTF-8."""

from __future__ import annotations

import os
import re
from pathlib import Path

from common.data.splits import PART_OF_NAME
from common.errors import UserError


def files_under(root: Path) -> list[Path]:
    """Return the files anywhere under a folder but hidden ones. Links are followed, but never round in a circle.

    Args:
        root: the folder.

    Returns:
        Folder after folder, in the order of their names, the files of each sorted.

    Raises:
        UserError: a folder cannot be read.
    """
    found, seen = [], {os.path.realpath(parent) for parent in root.absolute().parents}

    def refuse(error: OSError) -> None:
        raise UserError(f"--data names a folder that cannot be read: {error.filename} ({error.strerror}).") from error

    for base, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        if os.path.realpath(base) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(base))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(base, name) for name in sorted(files) if not name.startswith(".")]
    return found


def printable(path: str) -> str:
    """Return a path that every file and terminal takes: names on disk need not be UTF-8."""
    return os.fsencode(path).decode(errors="replace")


def part_of_words(name: str) -> str | None:
    """Return the part that a name such as instances_train2017.json speaks of, if it is one."""
    parts = {PART_OF_NAME[word] for word in re.split(r"[^a-z]+", name.lower()) if word in PART_OF_NAME}
    return parts.pop() if len(parts) == 1 else None


def part_of_folders(file: Path) -> str | None:
    """Return the part after which a folder of the path is called."""
    return next((PART_OF_NAME[name.lower()] for name in file.parent.parts if name.lower() in PART_OF_NAME), None)
