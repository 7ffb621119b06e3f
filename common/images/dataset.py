"""Labelled images from class folders, a table, TensorFlow Datasets or the demos."""

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
from common.data.splits import SPLITS, some, split_labelled, untested_classes
from common.errors import UserError
from common.flags import parse_data
from common.images import readers
from common.images.batches import THUMBNAIL_SIDE, thumbnail
from common.images.files import Row, camera_turns, read_bytes
from common.images.readers import ImageColumns

DATA_KINDS = ("demo", "demo:digits", "folder", "csv", "tfds")
_READABLE = "JPEG, PNG, GIF, BMP, and WebP without transparency"


@dataclass(frozen=True)
class Examples:
    """The images of one split.

    Attributes:
        paths: file of each image, str [n].
        labels: class number of each image, int64 [n].
        thumbnails: tiny grey copy of each image, uint8 [n, pixels].
        groups: number of the group of each image, int64 [n]; None without `--group`.
    """

    paths: np.ndarray
    labels: np.ndarray
    thumbnails: np.ndarray
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def names(self) -> list[str]:
        """What identifies each image: its path."""
        return [printable(path) for path in self.paths]

    def take(self, places: np.ndarray) -> Examples:
        """Return the images at these places."""
        groups = None if self.groups is None else self.groups[places]
        return Examples(self.paths[places], self.labels[places], self.thumbnails[places], groups)


@dataclass(frozen=True)
class ImageSet:
    """A labelled set of images, split, checked and ready to stream.

    Attributes:
        name: value of `--data`.
        class_names: name of each class number, sorted.
        train: training split.
        val: validation split; every choice is made on it.
        test: test split, used once, at the end.
        skipped: (file, reason) of each skipped file.
        mirrors: whether a mirrored image still shows the same class (not so for digits and letters).
        turned: number of images with an EXIF orientation, which training and serving both ignore.
        shorter_side: of the training images, in pixels, the median; None where it was not measured.
        notes: sentences on the groups of `--group`.
        by_content: the splits that were made without groups.
    """

    name: str
    class_names: tuple[str, ...]
    train: Examples
    val: Examples
    test: Examples
    skipped: tuple[tuple[str, str], ...] = ()
    mirrors: bool = True
    turned: int = 0
    shorter_side: int | None = None
    notes: tuple[str, ...] = ()
    by_content: tuple[str, ...] = ()

    counts = splits.count_examples

    def safe_augmentations(self) -> tuple[str, ...]:
        """Return the augmentations that preserve the class of these images."""
        return ("flip", "crop", "color") if self.mirrors else ("rotate",)  # half a digit is no digit

    def advice(self) -> tuple[str, ...]:
        """Return sentences on properties of these images that matter when reading the results."""
        sentences = [*untested_classes(self.class_names, self.test.labels, "image"), *self.notes]
        if self.turned:
            sentences.append(
                f"{self.turned:,} of {sum(len(getattr(self, split)) for split in SPLITS):,} images have an EXIF "
                "orientation, which training and serving both ignore: the model processes them as stored. "
                "To rotate them permanently (ImageMagick): mogrify -auto-orient FILES"
            )
        return tuple(sentences)

    def fingerprint(self) -> str:
        """Return a hash of paths, sizes, times and labels: equal for the same set of files."""
        digest = hashlib.sha256()
        for split in SPLITS:
            examples = getattr(self, split)
            for path, label in zip(examples.paths, examples.labels, strict=True):
                status = os.stat(path)
                digest.update(f"{split}\0{path}\0{status.st_size}\0{status.st_mtime_ns}\0{label}\n".encode())
        return digest.hexdigest()[:16]


def load_image_set(
    data: str,
    out: Path,
    *,
    columns: ImageColumns = ImageColumns(),  # noqa: B008 - frozen
    group: str | None = None,
    limit: int | None = None,
    strict: bool = False,
    val_share: float = splits.VALIDATION_SHARE,
) -> ImageSet:
    """Read a data set, check every file, and split it.

    Images whose exact content has two labels are useless: they are removed from every split, except from a given
    test split, which stays as it is.

    Args:
        data: `demo` (photos of clothes), `demo:digits`, `folder:PATH` (class folders, or train/val/test with class
            folders inside), `csv:PATH` or `tfds:NAME`.
        out: the run folder; `demo:digits` and `tfds` write their images into it, since images are streamed from files.
        columns: names of the columns of a table.
        group: splits that are not given are made of whole groups: the column of a table that names the group of an
            image, or, for a folder, a regular expression on its path. The groups of `demo` are the senders.
        limit: keep at most this many images of each split.
        strict: treat an unreadable file as an error instead of a counted skip.
        val_share: the share of the train split that becomes validation where none is given.

    Returns:
        The ImageSet; exact copies across splits are removed from the split of lower priority.

    Raises:
        UserError: no readable image, one class only, a class or a split without images, an invalid table or group.
    """
    kind, value = parse_data(data, DATA_KINDS)
    path = Path(value).expanduser()
    if data == "demo":
        rows, group = readers.csv_rows(readers.DEMO, readers.DEMO_COLUMNS, "sender_id"), "sender_id"
    elif kind == "demo":
        rows = readers.digit_rows(out / "data")
    elif kind == "csv":
        rows = readers.csv_rows(path, columns, group)
    elif kind == "folder":
        rows = readers.folder_rows(path)
        rows = readers.groups_by_path(path, rows, group) if group else rows
    else:
        rows = readers.tfds_rows(value, out / "data")
    if not rows:
        raise UserError(f"--data {data!r} has no images. Allowed: {_READABLE}; in a folder, one folder per class.")
    return replace(_checked(data, rows, group, limit, strict, val_share), mirrors=data != "demo:digits")


def _checked(
    data: str, rows: list[Row], group: str | None, limit: int | None, strict: bool, val_share: float
) -> ImageSet:
    """Skip unreadable files and copies, split, and reject a set that cannot be trained on."""
    listed = {row.label for row in rows if row.label}
    hashes, thumbnails, turned, sides, reasons = _read_all(rows)
    skipped = [(printable(row.path), reason) for row, reason in zip(rows, reasons, strict=True) if reason]
    first = f"{skipped[0][0]}: {skipped[0][1]}" if skipped else ""
    if strict and skipped:
        raise UserError(f"--strict: {len(skipped)} file(s) cannot be used; the first: {first}")
    kept = [index for index, reason in enumerate(reasons) if not reason]
    rows, hashes = [rows[i] for i in kept], [hashes[i] for i in kept]
    thumbnails, turned, sides = thumbnails[kept], turned[kept], sides[kept]
    left_out = f"{len(skipped)} file(s) skipped{first and ', the first: ' + first}"
    if unreadable := listed - {row.label for row in rows} if len({row.label for row in rows}) > 1 else ():
        raise UserError(
            f"--data {data!r} has no readable image for {some(sorted(unreadable))}. Each class needs at least one: "
            f"add images, or remove the class. {left_out}."
        )
    assigned = split_labelled(
        data, "image", [row.label for row in rows], [row.split for row in rows], hashes,
        limit=limit, val_share=val_share, left_out=left_out, groups=[row.group for row in rows] if group else None,
    )  # fmt: skip
    skipped += [(row.path, reason) for row, reason in zip(rows, assigned.reasons, strict=True) if reason]
    paths = np.array([row.path for row in rows], dtype=str)
    whole = Examples(paths, assigned.labels, thumbnails, assigned.groups)
    splits = {name: whole.take(chosen) for name, chosen in assigned.indices.items()}
    chosen_turned = sum(int(turned[indices].sum()) for indices in assigned.indices.values())
    return ImageSet(
        data, assigned.class_names, **splits, skipped=tuple(skipped), turned=chosen_turned,
        shorter_side=int(np.median(sides[assigned.indices["train"]])), notes=assigned.notes,
        by_content=assigned.by_content,
    )  # fmt: skip


def draw_shots(data: ImageSet, shots: int, seed: int) -> ImageSet:
    """Return the set with N training images per class and at most as many for validation; test stays the same.

    Raises:
        UserError: a class has fewer.
    """
    train, val = splits.draw_shots(data.train.labels, data.val.labels, data.class_names, shots, seed, "image")
    return replace(data, train=data.train.take(train), val=data.val.take(val))


# --- reading -------------------------------------------------------------------------------------------


def _read_all(rows: Sequence[Row]) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Hash and decode every file once, so that an unreadable one is found before training.

    Returns:
        (content hash of each file, its thumbnail, whether EXIF says to rotate it, its shorter side in pixels, the
        reason why it cannot be used or "").
    """
    hashes, reasons, shown = [], [], 0.0
    thumbnails, turned = np.zeros((len(rows), THUMBNAIL_SIDE**2), "uint8"), np.zeros(len(rows), bool)
    sides = np.zeros(len(rows), "int64")
    # Threads: reading and decoding release the GIL. A futures executor would hold 2 kB per file.
    with ThreadPool(max(2, os.cpu_count() or 2)) as pool:
        for done, (content, small, turn, side, reason) in enumerate(pool.imap(_read_one, rows, chunksize=16), start=1):
            hashes.append(content)
            reasons.append(reason)
            thumbnails[done - 1], turned[done - 1], sides[done - 1] = small, turn, side
            if sys.stderr.isatty() and time.monotonic() - shown > 0.2:
                print(f"\r  checking images: {done:,} of {len(rows):,}", end="", file=sys.stderr, flush=True)
                shown = time.monotonic()
    if shown:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return hashes, thumbnails, turned, sides, reasons


def _read_one(row: Row) -> tuple[str, np.ndarray | int, bool, int, str]:
    """Return one row of what `_read_all` returns."""
    encoded, reason = read_bytes(row)
    if reason:
        return "", 0, False, 0, reason
    try:
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    except tf.errors.OpError as error:
        reason = f"cannot be decoded ({_first_line(error.message)}). Allowed: {_READABLE}; convert it to JPEG or PNG"
        return "", 0, False, 0, reason
    side = min(image.shape[:2])
    return hashlib.sha256(encoded).hexdigest(), thumbnail(image), camera_turns(encoded), side, ""


def _first_line(message: str) -> str:
    return message.split("}} ")[-1].splitlines()[0].removesuffix(" [Op:DecodeImage]")[:160]
