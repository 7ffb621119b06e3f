"""Labelled pictures from class folders, a table, TensorFlow Datasets or the demo digits."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import tensorflow as tf

from common.data import splits
from common.data.folders import printable
from common.data.splits import PARTS, some, split_labelled, untested_classes
from common.errors import UserError
from common.flags import parse_data
from common.images.batches import THUMBNAIL_SIDE, thumbnail
from common.images.files import Row, camera_turns, read_bytes
from common.images.readers import csv_rows, demo_rows, folder_rows, tfds_rows

DATA_KINDS = ("demo", "folder", "csv", "tfds")
_READABLE = "JPEG, PNG, GIF, BMP, and WebP without transparency"


@dataclass(frozen=True)
class Examples:
    """The pictures of one part.

    Attributes:
        paths: file of each picture, str [n].
        labels: class number of each picture, int64 [n].
        thumbnails: a tiny grey copy of each picture, uint8 [n, pixels].
    """

    paths: np.ndarray
    labels: np.ndarray
    thumbnails: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class ImageSet:
    """A labelled set of pictures, split, checked and ready to stream.

    Attributes:
        name: what the user asked for.
        class_names: name of each class number, sorted.
        train: what is trained on.
        val: what every choice is made on.
        test: what is read once, at the end.
        skipped: (file, reason) of everything left out.
        mirrors: whether a mirrored picture still shows the same class (not so for digits and letters).
        turned: how many of the pictures the camera asks to turn, which training and serving both ignore.
    """

    name: str
    class_names: tuple[str, ...]
    train: Examples
    val: Examples
    test: Examples
    skipped: tuple[tuple[str, str], ...] = ()
    mirrors: bool = True
    turned: int = 0

    def counts(self) -> dict[str, int]:
        """Return the number of examples in each part and of skipped files."""
        return {part: len(getattr(self, part)) for part in PARTS} | {"skipped": len(self.skipped)}

    def safe_augmentations(self) -> tuple[str, ...]:
        """Return the random changes that leave the class of these pictures as it is."""
        return ("flip", "crop", "color") if self.mirrors else ("rotate",)  # half a digit is no digit

    def advice(self) -> tuple[str, ...]:
        """Return what somebody who reads the result should know of these pictures, in sentences."""
        sentences = list(untested_classes(self.class_names, self.test.labels, "picture"))
        if self.turned:
            sentences.append(
                f"{self.turned:,} of {sum(len(getattr(self, part)) for part in PARTS):,} pictures carry the camera's "
                "note (EXIF) to turn them, which training and serving both ignore: the model sees them as they are "
                "stored. To turn them for good (ImageMagick): mogrify -auto-orient FILES"
            )
        return tuple(sentences)

    def fingerprint(self) -> str:
        """Return a hash of paths, sizes, times and labels: the same set of files gives the same text."""
        digest = hashlib.sha256()
        for part in PARTS:
            examples = getattr(self, part)
            for path, label in zip(examples.paths, examples.labels, strict=True):
                status = os.stat(path)
                digest.update(f"{part}\0{path}\0{status.st_size}\0{status.st_mtime_ns}\0{label}\n".encode())
        return digest.hexdigest()[:16]


def load_image_set(
    data: str, out: Path, *, limit: int | None = None, strict: bool = False, val_share: float = splits.VALIDATION_SHARE
) -> ImageSet:
    """Read a data set, check every file, and split it.

    A picture whose exact content carries two labels teaches and tells nothing: it leaves every part. Only a test
    part that was given stays as its author made it.

    Args:
        data: `demo`, `folder:PATH` (class folders, or train/val/test with class folders inside),
            `csv:PATH` (columns path, label and maybe split) or `tfds:NAME`.
        out: the run folder; `demo` and `tfds` write their pictures into it, since everything streams from files.
        limit: keep at most this many pictures of each part, for a quick look.
        strict: make an unreadable file an error and not a counted skip.
        val_share: the share of the training part that becomes validation where none is given.

    Returns:
        The ImageSet; exact copies across parts have left the lower part.

    Raises:
        UserError: nothing readable, one class only, a class or a part without pictures, or a broken table.
    """
    kind, value = parse_data(data, DATA_KINDS)
    rows, mirrors = {
        "demo": lambda: (demo_rows(out / "data"), False),
        "folder": lambda: (folder_rows(Path(value).expanduser()), True),
        "csv": lambda: (csv_rows(Path(value).expanduser()), True),
        "tfds": lambda: (tfds_rows(value, out / "data"), True),
    }[kind]()
    if not rows:
        raise UserError(
            f"--data {data!r} holds no pictures. Allowed: {_READABLE}; in a folder, one folder for each class."
        )
    return replace(_checked(data, rows, limit, strict, val_share), mirrors=mirrors)


def _checked(data: str, rows: list[Row], limit: int | None, strict: bool, val_share: float) -> ImageSet:
    """Leave out unreadable files and copies, split, and refuse a set that cannot work."""
    asked_for = {row.label for row in rows if row.label}
    hashes, thumbnails, turned, reasons = _read_all(rows)
    skipped = [(printable(row.path), reason) for row, reason in zip(rows, reasons, strict=True) if reason]
    first = f"{skipped[0][0]}: {skipped[0][1]}" if skipped else ""
    if strict and skipped:
        raise UserError(f"--strict: {len(skipped)} file(s) cannot be used; the first is {first}")
    kept = [index for index, reason in enumerate(reasons) if not reason]
    rows, hashes = [rows[i] for i in kept], [hashes[i] for i in kept]
    thumbnails, turned = thumbnails[kept], turned[kept]
    left_out = f"{len(skipped)} file(s) left out{first and ', the first is ' + first}"
    if unreadable := asked_for - {row.label for row in rows} if len({row.label for row in rows}) > 1 else ():
        raise UserError(
            f"--data {data!r} has no readable picture for {some(sorted(unreadable))}. Each class needs at least one: "
            f"add some, or remove the class. {left_out}."
        )
    split = split_labelled(
        data, "picture", [row.label for row in rows], [row.part for row in rows], hashes,
        limit=limit, val_share=val_share, left_out=left_out,
    )  # fmt: skip
    skipped += [(row.path, reason) for row, reason in zip(rows, split.reasons, strict=True) if reason]
    parts = {
        part: Examples(np.array([rows[i].path for i in indices], dtype=str), split.labels[indices], thumbnails[indices])
        for part, indices in split.indices.items()
    }
    chosen_turned = sum(int(turned[indices].sum()) for indices in split.indices.values())
    return ImageSet(data, split.class_names, **parts, skipped=tuple(skipped), turned=chosen_turned)


# --- reading -------------------------------------------------------------------------------------------


def _read_all(rows: Sequence[Row]) -> tuple[list[str], np.ndarray, np.ndarray, list[str]]:
    """Hash and decode every file once, so that a bad one is known before training.

    Returns:
        (content hash of each file, its thumbnail, whether its camera asks to turn it, the reason why it cannot be
        used or "").
    """
    hashes, reasons, shown = [], [], 0.0
    thumbnails, turned = np.zeros((len(rows), THUMBNAIL_SIDE**2), "uint8"), np.zeros(len(rows), bool)
    # Threads: reading and decoding let go of the GIL. A futures executor would hold 2 kB for each file.
    with ThreadPool(max(2, os.cpu_count() or 2)) as pool:
        for done, (content, small, turn, reason) in enumerate(pool.imap(_read_one, rows, chunksize=16), start=1):
            hashes.append(content)
            reasons.append(reason)
            thumbnails[done - 1], turned[done - 1] = small, turn
            if sys.stderr.isatty() and time.monotonic() - shown > 0.2:
                print(f"\r  checking pictures: {done:,} of {len(rows):,}", end="", file=sys.stderr, flush=True)
                shown = time.monotonic()
    if shown:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return hashes, thumbnails, turned, reasons


def _read_one(row: Row) -> tuple[str, np.ndarray | int, bool, str]:
    """Return one row of what `_read_all` returns."""
    encoded, reason = read_bytes(row)
    if reason:
        return "", 0, False, reason
    try:
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    except tf.errors.OpError as error:
        reason = f"cannot be decoded ({_first_line(error.message)}). Allowed: {_READABLE}; convert it to JPEG or PNG"
        return "", 0, False, reason
    return hashlib.sha256(encoded).hexdigest(), thumbnail(image), camera_turns(encoded), ""


def _first_line(message: str) -> str:
    return message.split("}} ")[-1].splitlines()[0].removesuffix(" [Op:DecodeImage]")[:160]
