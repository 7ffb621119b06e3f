"""Text files and tables of users: compressed, in any encoding."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from common.errors import UserError, did_you_mean


def check_encoding(encoding: str) -> None:
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        raise UserError(f"--encoding {encoding!r} is unknown. Allowed: utf-8, latin-1, cp1252, utf-16 ...") from error


def read_text_file(kind: str, file: Path, encoding: str) -> str:
    """Return the content of a file, compressed (`.gz`) or not.

    Args:
        kind: of `--data`, for messages.
        file: to read.
        encoding: of the text.

    Raises:
        UserError: it cannot be read, or is not of that encoding.
    """
    check_encoding(encoding)
    try:
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = gzip.decompress(content)
        return content.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"--data {kind}:{file} is not {encoding}: line {line} holds the byte {content[error.start]:#x}. For "
            f"Western European text from older programs: --encoding latin-1"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--data {kind}:{file} cannot be read: {reason}.") from error


def check_columns(data: str, found: Iterable[str], flags: Mapping[str, str]) -> None:
    """Raise UserError unless a table has the columns that these flags name.

    Args:
        data: value of `--data`, for messages.
        found: columns of the table.
        flags: the column that each flag names, for example {"--text-column": "text"}.
    """
    found = list(found)
    for flag, name in flags.items():
        if name not in found:
            there = ", ".join(repr(one[:40]) for one in found[:10]) or "none"
            by_number = " ".join(f"{flag} {place}" for place, flag in enumerate(list(flags)[:2], start=1))
            raise UserError(
                f"--data {data} has no column {name!r}. Found: {there}.{did_you_mean(name, found)} Name the "
                f"column: {flag} NAME. For a table without a header: {by_number}"
            )
