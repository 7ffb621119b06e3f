"""Folders as people have them: links, hidden files, names that are not UTF-8."""

from __future__ import annotations

import os
from pathlib import Path

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
