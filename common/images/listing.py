"""The images of a data set as they are listed: files and labels, nothing decoded, without TensorFlow."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from common.data.folders import printable
from common.data.splits import SPLITS, limit_per_class, some
from common.errors import UserError
from common.flags import parse_data
from common.images import readers
from common.images.files import Row, read_bytes
from common.images.readers import ImageColumns

DATA_KINDS = ("demo", "demo:digits", "folder", "csv", "tfds")
MEASURED = 500  # images whose headers tell how large the images are
# Times --limit images are read: of a given split, and of images of which 15 % become a split of their own.
SPARE, SPARE_TO_DIVIDE = 2, 10


@dataclass(frozen=True)
class ImageList:
    """The listed images.

    Attributes:
        data: value of `--data`.
        rows: the images.
        grouped: whether rows have groups.
    """

    data: str
    rows: list[Row]
    grouped: bool = False

    @property
    def shorter_side(self) -> int | None:
        """Median of the shorter sides in pixels, of images that are not listed as test; None if none can be read."""
        known = [row for row in self.rows if row.split != "test"]
        step = max(1, len(known) // MEASURED)
        sides = [side for row in known[::step] if (side := _shorter_side(row.path))]
        return int(np.median(sides)) if sides else None


def list_images(
    data: str, out: Path, *, columns: ImageColumns | None = None, group: str | None = None, limit: int | None = None
) -> ImageList:
    """List the images of a data set.

    Args:
        data: `demo` (photos of clothes), `demo:digits`, `folder:PATH` (class folders, or train/val/test with class
            folders inside), `csv:PATH` or `tfds:NAME`.
        out: the run folder; `demo:digits` and `tfds` write their images into it, since images are read from files.
        columns: names of the columns of a table; None: path, label, split.
        group: splits that are not given are made of whole groups: the column of a table that names the group of an
            image, or, for a folder, a regular expression on its path. The groups of `demo` are the senders.
        limit: for a quick look at so many images per split: more than are needed for it are not listed.

    Raises:
        UserError: no image, one class only, an invalid table or group.
    """
    kind, value = parse_data(data, DATA_KINDS)
    path = Path(value).expanduser()
    if data == "demo":
        rows, group = readers.csv_rows(readers.DEMO, readers.DEMO_COLUMNS, "sender_id"), "sender_id"
    elif kind == "demo":
        rows = readers.digit_rows(out / "data")
    elif kind == "csv":
        rows = readers.csv_rows(path, columns or ImageColumns(), group)
    elif kind == "folder":
        rows = readers.folder_rows(path)
        rows = readers.groups_by_path(path, rows, group) if group else rows
    else:
        rows = readers.tfds_rows(value, out / "data")
    if not rows:
        raise UserError(
            f"--data {data!r} has no images. Allowed: {readers.READABLE}; in a folder, one folder per class."
        )
    classes = sorted({row.label for row in rows if row.label})
    if len(classes) < 2:
        reasons = [f"{printable(row.path)} {read_bytes(row)[1]}" for row in rows if not row.label]
        skipped = f"; {len(reasons):,} file(s) skipped, the first: {reasons[0]}" if reasons else ""
        raise UserError(
            f"--data {data!r} has {len(classes)} class(es); at least 2 are required. "
            f"Received: {some(classes)}{skipped}."
        )
    return ImageList(data, _enough(rows, limit) if limit else rows, bool(group))


def refuse_early(settings) -> None:
    """Raise UserError for a table or folder that cannot work, before TensorFlow is imported, which takes seconds.

    Args:
        settings: of a recipe: `data`, and `path_column`, `label_column`, `split_column`, `group` where it has them.
    """
    if parse_data(settings.data, DATA_KINDS)[0] in ("folder", "csv"):
        columns = ImageColumns(*(getattr(settings, f"{name}_column", name) for name in ("path", "label", "split")))
        list_images(settings.data, Path(settings.out), columns=columns, group=getattr(settings, "group", None))


def _enough(rows: Sequence[Row], limit: int) -> list[Row]:
    """Return what is needed for so many images in each split: spare ones too, and more where a split is divided."""
    complete, of_group, turns, chosen = set(SPLITS) <= {row.split for row in rows}, Counter(), [], []
    for row in rows:  # the first image of each group, then the second of each: few groups could not be split
        turns.append(of_group[row.group] if row.group else 0)
        of_group[row.group] += 1
    for split in (None, *SPLITS):
        own = sorted((number for number, row in enumerate(rows) if row.split == split), key=turns.__getitem__)
        names = {name: number for number, name in enumerate(sorted({rows[number].label for number in own}))}
        labels = np.array([names[rows[number].label] for number in own], dtype=np.int64)
        times = SPARE if split in ("val", "test") or (complete and split) else SPARE_TO_DIVIDE
        chosen += [own[place] for place in limit_per_class(labels, max(limit, len(names)) * times)]
    return [rows[number] for number in sorted(chosen)]


def _shorter_side(path: str) -> int | None:
    """Return the shorter side of an image in pixels, from its header; None where it cannot be read."""
    if not os.path.isfile(path):  # opening a pipe would never end
        return None
    try:
        with warnings.catch_warnings():  # of a large image, which is not decoded here
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return min(image.size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
