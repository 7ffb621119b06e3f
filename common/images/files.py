"""Image files: suffixes, files that TensorFlow cannot decode, EXIF orientation."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError

# The decoder cannot read some of these: they are listed so that skipping them is counted and explained.
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp",
                     ".heic", ".heif", ".avif", ".jxl", ".tif", ".tiff"}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """An image as listed by the user; `split` is None, `label` and `group` are "" where none was given."""

    path: str
    label: str
    split: str | None
    group: str = ""


def write_image(path: Path, encoded: bytes) -> None:
    """Write the bytes of an image, atomically; an existing file is kept."""
    if path.exists():  # a second run into the same folder
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(encoded)
    partial.replace(path)


def read_image(name: str, *_) -> bytes:
    """Return the bytes of an image file, as input of an exported model.

    Raises:
        UserError: it cannot be read or decoded.
    """
    try:
        encoded = Path(name).read_bytes()
    except OSError as problem:
        raise UserError(problem.strerror or str(problem)) from problem
    if reason := why_unusable(encoded):
        raise UserError(reason)
    return encoded


def read_bytes(row: Row) -> tuple[bytes, str]:
    """Return (the bytes of a file, ""), or (b"", the reason why it cannot be read)."""
    if not row.label:
        return b"", "has no label (it is in no class folder, or its cell in the table is empty)"
    if os.path.isdir(row.path):
        return b"", "is a folder, not an image"
    if os.path.exists(row.path) and not os.path.isfile(row.path):  # reading a pipe or /dev/zero would never end
        return b"", "is not a file but a device, pipe or socket"
    try:
        row.path.encode()
        encoded = Path(row.path).read_bytes()
    except UnicodeEncodeError:
        return b"", "has a name that is not UTF-8; rename it"
    except (OSError, ValueError) as error:
        return b"", f"cannot be read: {getattr(error, 'strerror', None) or error}"
    return encoded, why_unusable(encoded)


def why_unusable(encoded: bytes) -> str:
    """Return why `decode_image` cannot read a file, where its first bytes tell more than the decoder would.

    Args:
        encoded: the bytes of the file.

    Returns:
        The reason, with advice, or "".
    """
    if not encoded:
        return "is empty (0 bytes)"
    if encoded[4:8] == b"ftyp" and (brand := _STILL_IMAGES.search(encoded[8:64])):
        kind = "an AVIF image" if brand[0] == b"avif" else "a HEIC photo, as taken by phones"
        return f"is {kind}, which neither training nor serving can read; convert it to JPEG"
    if encoded.startswith(b"BM") and _has_coloured_palette(encoded):
        return "is a BMP with a palette, whose colours the decoder ignores; convert it to PNG"
    return ""


# Brands of the container that videos and still images share (ISO/IEC 14496-12); those of videos are not listed.
_STILL_IMAGES = re.compile(b"avif|heic|heix|heim|heis|hevc|hevx|mif1|msf1")


def _has_coloured_palette(bmp: bytes) -> bool:
    """Return whether the bytes of a BMP image are indices into a palette; the decoder treats them as grey levels."""
    start, end = 14 + int.from_bytes(bmp[14:18], "little"), int.from_bytes(bmp[10:14], "little")
    palette = bmp[start : min(end, start + 1024)]
    return bmp[28:30] == b"\x08\x00" and any(
        palette[at : at + 3] != bytes([at // 4] * 3) for at in range(0, len(palette), 4)
    )


def camera_turns(encoded: bytes) -> bool:
    """Return whether the EXIF orientation of an image says to rotate or mirror it for display.

    Args:
        encoded: the bytes of a JPEG, PNG or WebP file.
    """
    # Not with Pillow: it decodes a whole PNG to read its EXIF, and warns of damaged EXIF and of large images.
    ends = encoded[:_EXIF_BYTES] + encoded[-_EXIF_BYTES:]
    # The search for the pattern alone takes a millisecond, in which no other thread of Python runs.
    exif = _EXIF.search(ends) if b"II*\0" in ends or b"MM\0*" in ends else None
    if not exif:
        return False
    tiff, order = exif[1], "little" if exif[1].startswith(b"II") else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    table = number(4, 4)
    first, end = table + 2, min(table + 2 + 12 * number(table, 2), len(tiff))
    # 2 to 8 are rotations and reflections; 1 is upright, and other numbers are undefined.
    return any(number(at, 2) == _ORIENTATION and 2 <= number(at + 8, 2) <= 8 for at in range(first, end, 12))


_ORIENTATION = 0x0112

# EXIF is near the beginning of a JPEG or PNG file and at the end of a WebP file; in a JPEG it has at most this size.
_EXIF_BYTES = 2**16

_EXIF = re.compile(rb"(?:Exif\0\0|eXIf|EXIF....(?:Exif\0\0)?)((?:II\*\0|MM\0\*).*)", re.DOTALL)
