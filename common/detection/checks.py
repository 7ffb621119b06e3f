"""What is wrong with boxes: units, order, area, doubles, turned images."""

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

# Why a box is left out. Each is counted, told with its first place, and an error with --strict.
_NO_NAME = "boxes without a class name, left out"

_NO_NUMBER = "boxes with a number that is missing, infinite or none at all, left out"

_INVERTED = "boxes whose min is above their max, left out: which number is wrong, nobody knows, so none are swapped"

_NO_AREA = "boxes without area, left out"

OUTSIDE = "boxes wholly outside their picture, left out"

_TWICE = "boxes that stand twice, one left out"

FAULTS = (_NO_NAME, _NO_NUMBER, _INVERTED, _NO_AREA, OUTSIDE, _TWICE)

# What is repaired or decided, and told.
CUT = "boxes partly outside their picture, cut at its edge"

_DRAWN_AS_STORED = "pictures that the camera asks to turn (EXIF), labelled as they are stored: boxes turned with them"

_DRAWN_AS_SHOWN = "pictures that the camera asks to turn (EXIF), labelled as they are shown: boxes kept"

_DRAWN_UNKNOWN = (
    "pictures that the camera asks to turn (EXIF), without a stated size that tells how they were labelled: "
    "boxes taken as drawn on the picture as it is shown"
)

_SIZE_SWAPPED = "annotations that state width and height the wrong way round: boxes kept, as they fit"


def turn_boxes(boxes: np.ndarray, size: tuple[int, int], orientation: int) -> np.ndarray:
    """Return boxes as they lie after a picture was turned and mirrored as its camera asks.

    Args:
        boxes: xmin, ymin, xmax, ymax in pixels, [k, 4].
        size: height and width of the picture before.
        orientation: EXIF's number, 1 to 8.

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


UNDOES_TURN = {6: 8, 8: 6}  # the two quarter turns undo each other, and each other way to turn undoes itself


def refuse_the_wrong_unit(data: str, rows: Sequence[BoxRow]) -> None:
    """Refuse a set of which nearly every box is in the unit that its format does not have: a few are always wrong."""
    for relative in (False, True):
        boxes = np.concatenate([row.boxes for row in rows if row.relative == relative] or [np.zeros((0, 4))])
        boxes = boxes[np.isfinite(boxes).all(axis=1)]
        if not len(boxes):
            continue
        shares, beyond = ((boxes >= -0.05) & (boxes <= 1.05)).all(axis=1), boxes.max(axis=1) > 2
        if not relative and shares.mean() >= 0.9 and (boxes[shares] % 1).any():
            raise UserError(
                f"--data {data!r} needs boxes in pixels, and {_of_all(shares)} lie between 0 and 1: they look like "
                "shares of width and height. Multiply x by the picture's width and y by its height; only yolo: takes "
                "shares."
            )
        if relative and beyond.mean() >= 0.9:
            raise UserError(
                f"--data {data!r} needs boxes in shares of the picture's width and height, 0 to 1, and "
                f"{_of_all(beyond)} reach beyond 2: they look like pixels. Divide x by the width and y by the height."
            )


def _of_all(found: np.ndarray) -> str:
    return f"all {len(found):,}" if found.all() else f"{found.sum():,} of {len(found):,}"


@dataclass(frozen=True)
class Header:
    """What is known of a picture file.

    Attributes:
        content: hash of the file.
        size: height and width as stored, in pixels.
        orientation: the camera's note (EXIF), 1 to 8.
        problem: why it cannot be used, or "".
    """

    content: str = ""
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    problem: str = ""

    @property
    def shown(self) -> tuple[int, int]:
        """Return height and width as the picture is shown."""
        return self.size[::-1] if self.orientation >= 5 else self.size


def read_headers(rows: Sequence[BoxRow]) -> list[Header]:
    headers, progress = [], ProgressLine("checking pictures", len(rows))
    with ThreadPool(max(2, os.cpu_count() or 2)) as pool:  # threads: reading and hashing let go of the GIL
        for header in pool.imap(_look_at, rows, chunksize=16):
            headers.append(header)
            progress.update(len(headers))
    progress.close()
    return headers


def _look_at(row: BoxRow) -> Header:
    """Hash a file, decode it once, so that a bad one is known before training, and read its size."""
    if row.problem:
        return Header(problem=row.problem)
    encoded, problem = read_bytes(Row(row.path, "boxes", None))
    if problem:
        return Header(problem=problem)
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            size = picture.size[::-1]
            # Pillow decodes a whole PNG for its note, so it is asked only where there is one.
            orientation = int(picture.getexif().get(0x0112, 1)) if camera_turns(encoded) else 1
        if picture.format == "JPEG":  # reads every byte and makes few pixels: damage shows in a fifth of the time
            tf.io.decode_jpeg(encoded, channels=3, ratio=8)
        else:
            size = tuple(tf.io.decode_image(encoded, channels=3, expand_animations=False).shape[:2])
    except Exception as error:  # Pillow raises a dozen types for what is broken, TensorFlow its own
        said = first_line(error).split("}} ")[-1][:160]
        return Header(
            problem=f"cannot be read as a picture ({said}). Allowed: JPEG, PNG, GIF, BMP, and WebP without "
            "transparency; convert it to JPEG or PNG"
        )
    return Header(hashlib.sha256(encoded).hexdigest(), size, orientation if 1 <= orientation <= 8 else 1)


def image_problems(rows: Sequence[BoxRow], headers: Sequence[Header], noticed: Noticed) -> list[str]:
    """Return why each picture cannot be used, or ""."""
    some_given = any(row.part for row in rows)
    # Either a script wrote height for width: then the boxes of all such pictures fit. Or the pictures were turned
    # after they had been labelled, nobody knows which way.
    swapped = [one for one in zip(rows, headers, strict=True) if _states_size_swapped(*one)]
    fits = not any((row.boxes[:, 2:] > np.array(header.size[::-1]) + 1).any() for row, header in swapped)
    seen: dict[str, str] = {}
    problems = []
    for row, header in zip(rows, headers, strict=True):
        path = os.path.normpath(row.path)
        if header.problem:
            problem = header.problem
        elif some_given and row.part is None:
            problem = "stands in no part, while other pictures stand in train, val or test"
        elif path in seen:
            problem = f"has two annotations; that of {seen[path]} was taken, and not that of {row.place}"
        elif row.size in (None, header.shown, header.size):
            problem = ""
        elif _states_size_swapped(row, header):
            problem = "" if fits else f"is turned: {_sizes_text(row, header)}, and boxes of such pictures do not fit"
            noticed[_SIZE_SWAPPED] += [row.place] if fits else []
        else:
            problem = f"is not as it was labelled: {_sizes_text(row, header)}. Label it anew, or scale its boxes"
        if not problem:
            seen[path] = row.place
        problems.append(problem)
    return problems


def _states_size_swapped(row: BoxRow, header: Header) -> bool:
    upright = header.orientation < 5 and header.size[0] != header.size[1]
    return not header.problem and upright and row.size == header.size[::-1]


def _sizes_text(row: BoxRow, header: Header) -> str:
    (height, width), (stated_height, stated_width) = header.shown, row.size
    return f"{row.place} says {stated_width}x{stated_height}, the file is {width}x{height}"


def with_usable_boxes(row: BoxRow, header: Header, noticed: Noticed) -> BoxRow:
    """Return the row with the boxes that can be used, float32 in pixels of the picture as it is shown."""
    written, edges = _as_shown(row, header, noticed), np.tile(header.shown[::-1], 2)
    with np.errstate(invalid="ignore", over="ignore"):  # they are what is looked for
        cut = written.clip(0, edges).astype(np.float32)
        sides, left = written[:, 2:] - written[:, :2], cut[:, 2:] - cut[:, :2]
    why = np.full(len(cut), "", dtype=object)
    for reason, found in (
        (_NO_NAME, np.array([not label for label in row.labels], dtype=bool)),
        (_NO_NUMBER, ~np.isfinite(written).all(axis=1)),
        (_INVERTED, (sides < 0).any(axis=1)),
        (_NO_AREA, (sides == 0).any(axis=1)),
        (OUTSIDE, (left <= 0).any(axis=1)),
        (_TWICE, _stand_twice(cut, row)),
    ):
        why[(why == "") & found] = reason
    keep = np.flatnonzero(why == "")
    why[keep[(abs(written[keep] - cut[keep]) > 0.5).any(axis=1)]] = CUT  # half a pixel is how numbers are rounded
    for place in np.flatnonzero(why != ""):
        numbers = ", ".join(f"{number:.6g}" for number in row.boxes[place])
        noticed[why[place]].append(f"{row.place}, box {place + 1} ({row.labels[place]}: {numbers})")
    labels, crowds = (tuple(values[place] for place in keep) for values in (row.labels, row.crowds))
    return replace(row, boxes=cut[keep], labels=labels, crowds=crowds)


def _as_shown(row: BoxRow, header: Header, noticed: Noticed) -> np.ndarray:
    """Return the boxes in pixels of the picture as it is shown, float64 [k, 4]."""
    stored = row.size == header.size != header.shown
    if header.orientation != 1:
        known = row.size is not None and header.size != header.shown
        noticed[_DRAWN_AS_STORED if stored else _DRAWN_AS_SHOWN if known else _DRAWN_UNKNOWN].append(row.place)
    if row.relative:
        with np.errstate(over="ignore", invalid="ignore"):
            return row.boxes * np.tile(header.shown[::-1], 2)
    return turn_boxes(row.boxes, header.size, header.orientation) if stored else row.boxes


def _stand_twice(boxes: np.ndarray, row: BoxRow) -> np.ndarray:
    """Return whether the same box, label and crowd stood before, bool [k]."""
    seen, twice = set(), []
    for box, label, crowd in zip(boxes, row.labels, row.crowds, strict=True):
        key = (box.tobytes(), label, crowd)
        twice.append(key in seen)
        seen.add(key)
    return np.array(twice, dtype=bool)
