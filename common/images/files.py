"""Image files: suffixes, what TensorFlow cannot decode, EXIF orientation."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError

# Some of these the decoder cannot read: they are looked at, so that leaving them out is counted and explained.
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp",
                     ".heic", ".heif", ".avif", ".jxl", ".tif", ".tiff"}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One picture as the user gave it; `part` is None where no split was given, `label` empty where there is none."""

    path: str
    label: str
    part: str | None


def write_picture(path: Path, encoded: bytes) -> None:
    """Write the bytes of a picture, aside and renamed into place; one that is there stays."""
    if path.exists():  # a second run into the same folder
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(encoded)
    partial.replace(path)


def read_image(name: str, *_) -> bytes:
    """Return the bytes of an image file, for the export of a run.

    Raises:
        UserError: it cannot be read, or not decoded.
    """
    try:
        encoded = Path(name).read_bytes()
    except OSError as problem:
        raise UserError(problem.strerror or str(problem)) from problem
    if reason := why_unusable(encoded):
        raise UserError(reason)
    return encoded


def read_bytes(row: Row) -> tuple[bytes, str]:
    """Return (the bytes of a file, ""), or (nothing, why it cannot be read)."""
    if not row.label:
        return b"", "has no label (it stands in no class folder, or its cell in the table is empty)"
    if os.path.isdir(row.path):
        return b"", "is a folder, not a picture"
    if os.path.exists(row.path) and not os.path.isfile(row.path):  # a pipe or /dev/zero would never end
        return b"", "is no file but a device, pipe or socket"
    try:
        row.path.encode()
        encoded = Path(row.path).read_bytes()
    except UnicodeEncodeError:
        return b"", "has a name that is not UTF-8; rename it"
    except (OSError, ValueError) as error:
        return b"", f"cannot be read: {getattr(error, 'strerror', None) or error}"
    return encoded, why_unusable(encoded)


def why_unusable(encoded: bytes) -> str:
    """Say why a file is no picture for `decode_image`, where its first bytes tell more than the decoder would.

    Args:
        encoded: the bytes of the file.

    Returns:
        The reason, with advice, or "".
    """
    if not encoded:
        return "is empty (0 bytes)"
    if encoded[4:8] == b"ftyp" and (brand := _STILL_PICTURES.search(encoded[8:64])):
        kind = "an AVIF picture" if brand[0] == b"avif" else "a HEIC photo, as phones take them"
        return f"is {kind}, which neither training nor serving can read; convert it to JPEG"
    if encoded.startswith(b"BM") and _has_coloured_palette(encoded):
        return "is a BMP with a palette, whose colours the decoder does not read; convert it to PNG"
    return ""


# Brands of the container that films and still pictures share (ISO/IEC 14496-12); those of films are not here.
_STILL_PICTURES = re.compile(b"avif|heic|heix|heim|heis|hevc|hevx|mif1|msf1")


def _has_coloured_palette(bmp: bytes) -> bool:
    """Return whether the bytes of a BMP picture are places in a palette; the decoder takes them for grey levels."""
    start, end = 14 + int.from_bytes(bmp[14:18], "little"), int.from_bytes(bmp[10:14], "little")
    palette = bmp[start : min(end, start + 1024)]
    return bmp[28:30] == b"\x08\x00" and any(
        palette[at : at + 3] != bytes([at // 4] * 3) for at in range(0, len(palette), 4)
    )


def camera_turns(encoded: bytes) -> bool:
    """Return whether a camera noted in a picture (EXIF) that it is to be turned or mirrored before it is shown.

    Args:
        encoded: the bytes of a JPEG, PNG or WebP file.
    """
    # Not with Pillow: it decodes a whole PNG to get at its note, and warns of damaged notes and of large pictures.
    note = _EXIF.search(encoded[:_NOTE_BYTES] + encoded[-_NOTE_BYTES:])
    if not note:
        return False
    tiff, order = note[1], "little" if note[1].startswith(b"II") else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    table = number(4, 4)
    first, end = table + 2, min(table + 2 + 12 * number(table, 2), len(tiff))
    # 2 to 8 are the ways to turn and mirror; 1 is upright, and other numbers mean nothing.
    return any(number(at, 2) == _ORIENTATION and 2 <= number(at + 8, 2) <= 8 for at in range(first, end, 12))


_ORIENTATION = 0x0112

# A note stands near the beginning of a JPEG or PNG file and at the end of a WebP; a JPEG allows it this much room.
_NOTE_BYTES = 2**16

_EXIF = re.compile(rb"(?:Exif\0\0|eXIf|EXIF....(?:Exif\0\0)?)((?:II\*\0|MM\0\*).*)", re.DOTALL)
