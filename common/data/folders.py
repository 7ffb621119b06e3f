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
