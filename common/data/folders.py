"""Folders of users: links, hidden files, names that are not UTF-8."""

from __future__ import annotations

import os
import re
from pathlib import Path

from common.data.splits import SPLIT_OF_NAME
from common.errors import UserError


def files_under(root: Path) -> list[Path]:
    """Return the files anywhere under a folder except hidden ones. Links are followed, but not in cycles.

    Args:
        root: the folder.

    Returns:
        Folder by folder, sorted by name, with the files of each sorted.

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


READ_EARLY = 2**24  # bytes of texts that may be read twice, to refuse early what cannot work: less than a second


def bytes_under(path: Path, most: int) -> int:
    """Return the bytes of a file, or of all files under a folder; counting ends beyond `most`."""
    total = 0
    for file in [path] if path.is_file() else files_under(path):
        total += file.stat().st_size if file.is_file() else 0
        if total > most:
            break
    return total


def printable(path: str) -> str:
    """Return a path that can be written to any file and terminal: names on disk need not be UTF-8."""
    return os.fsencode(path).decode(errors="replace")


def split_of_words(name: str) -> str | None:
    """Return the split that a name such as instances_train2017.json contains, if it is exactly one."""
    splits = {SPLIT_OF_NAME[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_OF_NAME}
    return splits.pop() if len(splits) == 1 else None


def split_of_folders(file: Path) -> str | None:
    """Return the split that a folder of the path is named after."""
    return next((SPLIT_OF_NAME[name.lower()] for name in file.parent.parts if name.lower() in SPLIT_OF_NAME), None)
