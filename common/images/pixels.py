"""Decoded and resized images, kept for all passes of a run: in memory, or on disk where there are many."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import tensorflow as tf

from common.errors import UserError
from common.images.decoding import THUMBNAIL_SIDE, decode_image, decode_scaled, fit_to_size, thumbnail
from common.images.files import Row, camera_turns, read_bytes
from common.images.readers import READABLE

IN_MEMORY = 2**30  # bytes of pixels that are kept in memory; more are kept on disk


@dataclass(frozen=True)
class Pixels:
    """Images of one size, as training, evaluation and serving read them.

    Attributes:
        paths: file of each image, str [n].
        hashes: SHA-256 of each file, str [n].
        size: (height, width).
        resize: as for `decode_image`.
        kept: uint8 [files, height, width, 3]; None where there was no room: each pass decodes the files again.
        places: where in `kept` each image is, int64 [n].
    """

    paths: np.ndarray
    hashes: np.ndarray
    size: tuple[int, int]
    resize: str
    kept: np.ndarray | None
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, places: np.ndarray | slice) -> Pixels:
        """Return the images at these places."""
        return replace(self, paths=self.paths[places], hashes=self.hashes[places], places=self.places[places])

    def __add__(self, other: Pixels) -> Pixels:
        """Return these images, then others of the same data set."""
        if self.kept is not other.kept or (self.size, self.resize) != (other.size, other.resize):
            raise ValueError("only images of one data set, decoded at one size, can be put together")
        joined = {name: np.concatenate([getattr(self, name), getattr(other, name)])
                  for name in ("paths", "hashes", "places")}  # fmt: skip
        return replace(self, **joined)

    def batches(self, indices: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
        """Return batches of (pixels float32 [batch, height, width, 3] from 0 to 255, indices int64 [batch]).

        Args:
            indices: int64 scalars, into these images.
            batch_size: images per batch; the last one may be smaller.
        """
        if self.kept is None:
            paths = tf.constant(self.paths)
            images = indices.map(
                lambda index: (decode_image(tf.io.read_file(paths[index]), self.size, self.resize), index),
                num_parallel_calls=os.cpu_count(),
            )
            return images.batch(batch_size)

        def read(chosen: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            images = tf.numpy_function(lambda some: self.kept[self.places[some]], [chosen], tf.uint8)
            return tf.cast(tf.ensure_shape(images, (None, *self.size, 3)), tf.float32), chosen

        return indices.batch(batch_size).map(read, num_parallel_calls=2)


@dataclass(frozen=True)
class Checked:
    """What reading each of n files once has found.

    Attributes:
        pixels: of all files; those of unreadable ones are black.
        thumbnails: tiny grey copies, uint8 [n, THUMBNAIL_SIDE squared].
        turned: whether an EXIF orientation says to rotate the image, bool [n].
        reasons: why a file cannot be used, or "".
    """

    pixels: Pixels
    thumbnails: np.ndarray
    turned: np.ndarray
    reasons: list[str]


def read_images(
    paths: Sequence[str], size: tuple[int, int], resize: str = "crop", folder: Path | None = None
) -> Pixels:
    """Decode and resize image files.

    Args:
        paths: n files.
        size: (height, width), in pixels.
        resize: as for `decode_image`.
        folder: as for `check_images`.

    Raises:
        UserError: a file cannot be read or decoded.
    """
    found = check_images([Row(str(path), "?", None) for path in paths], size, resize, folder)
    for path, reason in zip(paths, found.reasons, strict=True):
        if reason:
            raise UserError(f"{path} {reason}.")
    return found.pixels


def check_images(
    rows: Sequence[Row], size: tuple[int, int], resize: str = "crop", folder: Path | None = None
) -> Checked:
    """Read, hash, decode and resize every file once, so that an unreadable one is found before training.

    Args:
        rows: n images.
        size: (height, width), in pixels.
        resize: as for `decode_image`.
        folder: where more than IN_MEMORY bytes are kept, in a file that vanishes with this process; None: always in
            memory.
    """
    kept = _room_for_pixels((len(rows), *size, 3), folder)
    thumbnails, turned = np.zeros((len(rows), THUMBNAIL_SIDE**2), "uint8"), np.zeros(len(rows), bool)
    hashes, reasons, shown = [], [], 0.0
    decode = _decoder(size, resize)

    def read_one(numbered: tuple[int, Row]) -> tuple[str, bool, str]:
        number, row = numbered
        encoded, reason = read_bytes(row)
        if reason:
            return "", False, reason
        try:
            small, tiny = decode(tf.constant(encoded))
        except tf.errors.OpError as error:
            said = _message_of_node(error.message)
            return "", False, f"cannot be decoded ({said}). Allowed: {READABLE}; convert it to JPEG or PNG"
        thumbnails[number] = tiny.numpy()
        if kept is not None:
            kept[number] = small.numpy()
        return hashlib.sha256(encoded).hexdigest(), camera_turns(encoded), ""

    # Threads: reading and decoding release the GIL. A futures executor would hold 2 kB per file.
    with ThreadPool(max(2, os.cpu_count() or 2)) as pool:
        for done, (content, turn, reason) in enumerate(pool.imap(read_one, enumerate(rows), chunksize=16), start=1):
            hashes.append(content)
            reasons.append(reason)
            turned[done - 1] = turn
            if sys.stderr.isatty() and time.monotonic() - shown > 0.2:
                print(f"\r  reading images: {done:,} of {len(rows):,}", end="", file=sys.stderr, flush=True)
                shown = time.monotonic()
    if shown:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    paths, hashes = np.array([row.path for row in rows], dtype=str), np.array(hashes, dtype=str)
    return Checked(Pixels(paths, hashes, size, resize, kept, np.arange(len(rows))), thumbnails, turned, reasons)


def _decoder(size: tuple[int, int], resize: str) -> Callable:
    """Return bytes of a file -> (pixels uint8 [height, width, 3], thumbnail), as one graph for all files."""

    @tf.function(input_signature=[tf.TensorSpec((), tf.string)])
    def decode(encoded):
        with tf.device("/CPU:0"):  # not each image to a GPU and back
            image = decode_scaled(encoded, size)
            return tf.cast(fit_to_size(image, size, resize), tf.uint8), thumbnail(image)

    return decode


def _room_for_pixels(shape: tuple[int, ...], folder: Path | None) -> np.ndarray | None:
    """Return an array for the pixels: in memory, or on disk where it is large; None where there is no room."""
    needed = int(np.prod(shape))
    if folder is None or needed <= IN_MEMORY:
        return np.zeros(shape, "uint8")
    folder.mkdir(parents=True, exist_ok=True)
    # Without a name: its space is free again when this process ends, however it ends.
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            if 2 * needed > shutil.disk_usage(folder).free:  # features, checkpoints and the export need room as well
                raise OSError(errno.ENOSPC, "more than half of what is free")
            if hasattr(os, "posix_fallocate"):  # not on macOS. A memory map without space would kill the process later
                os.posix_fallocate(file.fileno(), 0, needed)
            return np.memmap(file, "uint8", "w+", shape=shape)
        except OSError as error:
            print(
                f"  decoded images would take {needed / 1e9:,.1f} GB in {folder} ({error.strerror}): each pass decodes "
                "the files again, which is slower"
            )
            return None


def _message_of_node(message: str) -> str:
    """Return what the failed operation says, without the traceback before it and the names of nodes."""
    said = message.partition("\n\t [[")[0].splitlines()[-1]
    return said.split("}} ")[-1].partition(" [Op:")[0][:160]
