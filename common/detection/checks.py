"""Checks of images and boxes: units, order, area, duplicates, rotated images."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.pool import ThreadPool

import numpy as np
import tensorflow as tf
from PIL import Image

from common.detection.readers.rows import BoxRow, Noticed
from common.errors import UserError, first_line
from common.images.files import Row, camera_turns, read_bytes
from common.progress import ProgressLine

# Why a box is skipped. Each reason is counted and reported with its first place; with --strict it is an error.
_NO_NAME = "boxes without a class name, skipped"

_NO_NUMBER = "boxes with a missing, infinite or invalid number, skipped"

_INVERTED = "boxes whose min is above their max, skipped: ambiguous, so not swapped"

_NO_AREA = "boxes without area, skipped"

OUTSIDE = "boxes entirely outside their image, skipped"

_DUPLICATE = "duplicate boxes, skipped"

FAULTS = (_NO_NAME, _NO_NUMBER, _INVERTED, _NO_AREA, OUTSIDE, _DUPLICATE)

# What is corrected or assumed, and reported.
CUT = "boxes partly outside their image, clipped at its edge"

_DRAWN_AS_STORED = "images with an EXIF orientation, labelled as stored: boxes rotated with them"

_DRAWN_AS_DISPLAYED = "images with an EXIF orientation, labelled as displayed: boxes kept"

_DRAWN_UNKNOWN = (
    "images with an EXIF orientation, without a size that tells how they were labelled: "
    "boxes assumed to be drawn on the displayed image"
)

_SIZE_SWAPPED = "annotations with width and height swapped: boxes kept, as they fit"


def turn_boxes(boxes: np.ndarray, size: tuple[int, int], orientation: int) -> np.ndarray:
    """Return boxes rotated and mirrored as an EXIF orientation requires.

    Args:
        boxes: xmin, ymin, xmax, ymax in pixels, [k, 4].
        size: height and width of the image before the rotation.
        orientation: of EXIF, 1 to 8.

    Returns:
        The same type and shape.
    """
    height, width = size
    xmin, ymin, xmax, ymax = boxes.T
    if orientation >= 5:  # these four swap x and y first
        xmin, ymin, xmax, ymax, height, width = ymin, xmin, ymax, xmax, width, height
    if orientation in (2, 3, 6, 7):
        xmin, xmax = width - xmax, width - xmin
    if orientation in (3, 4, 7, 8):
        ymin, ymax = height - ymax, height - ymin
    return np.stack([xmin, ymin, xmax, ymax], axis=-1).astype(boxes.dtype)


UNDOES_TURN = {6: 8, 8: 6}  # the quarter turns are inverses; all others are their own


def refuse_the_wrong_unit(data: str, rows: Sequence[BoxRow]) -> None:
    """Refuse a data set if nearly all of its boxes are in a unit other than that of the format."""
    for relative in (False, True):
        boxes = np.concatenate([row.boxes for row in rows if row.relative == relative] or [np.zeros((0, 4))])
        boxes = boxes[np.isfinite(boxes).all(axis=1)]
        if not len(boxes):
            continue
        fractions, beyond = ((boxes >= -0.05) & (boxes <= 1.05)).all(axis=1), boxes.max(axis=1) > 2
        if not relative and fractions.mean() >= 0.9 and (boxes[fractions] % 1).any():
            raise UserError(
                f"--data {data!r} needs boxes in pixels. Received: {_of_all(fractions)} between 0 and 1, probably "
                "fractions of width and height. Multiply x by the image's width and y by its height; only yolo: takes "
                "fractions."
            )
        if relative and beyond.mean() >= 0.9:
            raise UserError(
                f"--data {data!r} needs boxes as fractions of the image's width and height, 0 to 1. "
                f"Received: {_of_all(beyond)} beyond 2, probably pixels. Divide x by the width and y by the height."
            )


def _of_all(found: np.ndarray) -> str:
    return f"all {len(found):,}" if found.all() else f"{found.sum():,} of {len(found):,}"


@dataclass(frozen=True)
class Header:
    """Properties of an image file.

    Attributes:
        content: hash of the file.
        size: height and width as stored, in pixels.
        orientation: of EXIF, 1 to 8.
        problem: why it cannot be used, or "".
    """

    content: str = ""
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    problem: str = ""

    @property
    def displayed(self) -> tuple[int, int]:
        """Return height and width of the image as displayed."""
        return self.size[::-1] if self.orientation >= 5 else self.size


def read_headers(rows: Sequence[BoxRow]) -> list[Header]:
    headers, progress = [], ProgressLine("checking images", len(rows))
    with ThreadPool(max(2, os.cpu_count() or 2)) as pool:  # threads: reading and hashing release the GIL
        for header in pool.imap(_read_header, rows, chunksize=16):
            headers.append(header)
            progress.update(len(headers))
    progress.close()
    return headers


def _read_header(row: BoxRow) -> Header:
    """Hash a file, read its size, and decode it once, so that a corrupt one is found before training."""
    if row.problem:
        return Header(problem=row.problem)
    encoded, problem = read_bytes(Row(row.path, "boxes", None))
    if problem:
        return Header(problem=problem)
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            size = image.size[::-1]
            # Pillow decodes a whole PNG to read its orientation, so it is read only where there is one.
            orientation = int(image.getexif().get(0x0112, 1)) if camera_turns(encoded) else 1
        if image.format == "JPEG":  # all bytes, few pixels: finds damage in a fifth of the time
            tf.io.decode_jpeg(encoded, channels=3, ratio=8)
        else:
            size = tuple(tf.io.decode_image(encoded, channels=3, expand_animations=False).shape[:2])
    except Exception as error:  # Pillow and TensorFlow raise many types
        reason = first_line(error).split("}} ")[-1][:160]
        return Header(
            problem=f"cannot be read as an image ({reason}). Allowed: JPEG, PNG, GIF, BMP, and WebP without "
            "transparency; convert it to JPEG or PNG"
        )
    return Header(hashlib.sha256(encoded).hexdigest(), size, orientation if 1 <= orientation <= 8 else 1)


def image_problems(rows: Sequence[BoxRow], headers: Sequence[Header], noticed: Noticed) -> list[str]:
    """Return why each image cannot be used, or ""."""
    some_given = any(row.split for row in rows)
    # Either a script swapped width and height: then the boxes of all such images fit. Or the images were rotated
    # after labelling, in an unknown direction.
    swapped = [one for one in zip(rows, headers, strict=True) if _states_size_swapped(*one)]
    fits = not any((row.boxes[:, 2:] > np.array(header.size[::-1]) + 1).any() for row, header in swapped)
    seen: dict[str, str] = {}
    problems = []
    for row, header in zip(rows, headers, strict=True):
        path = os.path.normpath(row.path)
        if header.problem:
            problem = header.problem
        elif some_given and row.split is None:
            problem = "is in no split, while other images are in train, val or test"
        elif path in seen:
            problem = f"has two annotations; that of {seen[path]} was used, not that of {row.place}"
        elif row.size in (None, header.displayed, header.size):
            problem = ""
        elif _states_size_swapped(row, header):
            problem = "" if fits else f"is rotated: {_sizes_text(row, header)}, and the boxes of such images do not fit"
            noticed[_SIZE_SWAPPED] += [row.place] if fits else []
        else:
            problem = f"differs from its annotation: {_sizes_text(row, header)}. Label it again, or scale its boxes"
        if not problem:
            seen[path] = row.place
        problems.append(problem)
    return problems


def _states_size_swapped(row: BoxRow, header: Header) -> bool:
    upright = header.orientation < 5 and header.size[0] != header.size[1]
    return not header.problem and upright and row.size == header.size[::-1]


def _sizes_text(row: BoxRow, header: Header) -> str:
    (height, width), (stated_height, stated_width) = header.displayed, row.size
    return f"{row.place} has {stated_width}x{stated_height}, the file is {width}x{height}"


def with_usable_boxes(row: BoxRow, header: Header, noticed: Noticed) -> BoxRow:
    """Return the row with its usable boxes, float32 in pixels of the displayed image."""
    written, edges = _as_displayed(row, header, noticed), np.tile(header.displayed[::-1], 2)
    with np.errstate(invalid="ignore", over="ignore"):  # they are reported below
        cut = written.clip(0, edges).astype(np.float32)
        sides, left = written[:, 2:] - written[:, :2], cut[:, 2:] - cut[:, :2]
    why = np.full(len(cut), "", dtype=object)
    for reason, found in (
        (_NO_NAME, np.array([not label for label in row.labels], dtype=bool)),
        (_NO_NUMBER, ~np.isfinite(written).all(axis=1)),
        (_INVERTED, (sides < 0).any(axis=1)),
        (_NO_AREA, (sides == 0).any(axis=1)),
        (OUTSIDE, (left <= 0).any(axis=1)),
        (_DUPLICATE, _duplicates(cut, row)),
    ):
        why[(why == "") & found] = reason
    keep = np.flatnonzero(why == "")
    why[keep[(abs(written[keep] - cut[keep]) > 0.5).any(axis=1)]] = CUT  # up to half a pixel is rounding
    for place in np.flatnonzero(why != ""):
        numbers = ", ".join(f"{number:.6g}" for number in row.boxes[place])
        noticed[why[place]].append(f"{row.place}, box {place + 1} ({row.labels[place]}: {numbers})")
    labels, crowds = (tuple(values[place] for place in keep) for values in (row.labels, row.crowds))
    return replace(row, boxes=cut[keep], labels=labels, crowds=crowds)


def _as_displayed(row: BoxRow, header: Header, noticed: Noticed) -> np.ndarray:
    """Return the boxes in pixels of the displayed image, float64 [k, 4]."""
    stored = row.size == header.size != header.displayed
    if header.orientation != 1:
        known = row.size is not None and header.size != header.displayed
        noticed[_DRAWN_AS_STORED if stored else _DRAWN_AS_DISPLAYED if known else _DRAWN_UNKNOWN].append(row.place)
    if row.relative:
        with np.errstate(over="ignore", invalid="ignore"):
            return row.boxes * np.tile(header.displayed[::-1], 2)
    return turn_boxes(row.boxes, header.size, header.orientation) if stored else row.boxes


def _duplicates(boxes: np.ndarray, row: BoxRow) -> np.ndarray:
    """Return whether each box repeats an earlier one with the same label and crowd, bool [k]."""
    seen, twice = set(), []
    for box, label, crowd in zip(boxes, row.labels, row.crowds, strict=True):
        key = (box.tobytes(), label, crowd)
        twice.append(key in seen)
        seen.add(key)
    return np.array(twice, dtype=bool)
