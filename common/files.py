"""Files: written atomically, as JSON or as tables, and the error for a full disk."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from common.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], None]) -> Path:
    """Write a temporary file and rename it into place: a reader sees the old file or the new one, never a partial one.

    Args:
        path: of the file.
        write: called with the path of the temporary file.

    Returns:
        The path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)  # on a full disk every byte counts
        raise
    return path


# The disk is full, the user's quota is exceeded, or a file is larger than the user may write.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def room_for(what: str, folder: Path, needed: int | None = None) -> Iterator[None]:
    """Turn the error of a full disk, from any library, into one that says where space is missing and how much.

    Args:
        what: is written inside this block.
        folder: where; it need not exist yet.
        needed: approximate bytes; None where unknown.

    Raises:
        UserError: the disk is full.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # h5py, zipfile and TensorFlow each raise their own error, some without a number
        says = [os.strerror(number) for number in _NO_ROOM]
        said = next((text for text in says if text in str(error)), None)
        if said is None:
            raise
        free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free
        wants = f"about {needed / 1e6:,.1f} MB are needed, " if needed else ""
        raise UserError(
            f"Not enough disk space for {what} in {folder}: {wants}{free / 1e6:,.1f} MB are free. System error: {said}."
            f" Free some disk space there."
        ) from error


def write_json(path: Path, content: Mapping) -> Path:
    """Write a JSON file atomically; keys keep their order, non-ASCII characters are kept."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def flatten(content: Mapping, prefix: str = "") -> dict[str, object]:
    """Return the leaves of nested dicts under names like `seconds.total`."""
    flat: dict[str, object] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def write_table(path: Path, rows: Sequence[Mapping], columns: Sequence[str]) -> Path:
    """Write rows as a CSV file, atomically; the header is written even without rows."""

    def write(partial: Path) -> None:
        with open(partial, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    return write_atomically(path, write)
