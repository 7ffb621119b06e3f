"""Readers of (image, label, split) rows: class folders, a table, TensorFlow Datasets, the demos."""

from __future__ import annotations

import csv
import hashlib
import importlib
import io
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.data.splits import SPLIT_OF_NAME
from common.data.tables import check_columns
from common.errors import UserError
from common.images.files import IMAGE_SUFFIXES, Row, write_image

READABLE = "JPEG, PNG, GIF, BMP, and WebP without transparency"
DEMO = Path(__file__).with_name("demo_clothing") / "images.csv"


@dataclass(frozen=True)
class ImageColumns:
    """The columns of a table of images: their names, or their numbers (from 1) in a table without a header."""

    path: str = "path"
    label: str = "label"
    split: str = "split"

    @property
    def by_place(self) -> bool:
        """Return whether the columns are given by number."""
        return self.path.isdecimal() and self.label.isdecimal()


DEMO_COLUMNS = ImageColumns("file", "class")


def folder_rows(root: Path) -> list[Row]:
    """Read class folders, or train/val/test with class folders inside.

    Raises:
        UserError: split and class folders are mixed, or a folder cannot be read.
    """
    try:
        return _folder_rows(root)
    except OSError as error:  # skipping the folder would silently remove images of a class
        raise UserError(
            f"--data folder:{root} has a folder that cannot be read: {error.filename} ({error.strerror}). "
            f"Remove it, or make it readable: chmod -R u+rX {shlex.quote(str(root))}"
        ) from error


def _folder_rows(root: Path) -> list[Row]:
    folders = _subfolders(root)
    if any(folder.name.lower() in SPLIT_OF_NAME for folder in folders):
        others = [folder.name for folder in folders if folder.name.lower() not in SPLIT_OF_NAME]
        if others:
            raise UserError(
                f"--data folder:{root} mixes splits and classes: {', '.join(map(repr, others[:5]))} next to "
                "train/val/test. Allowed: either class folders, or train, val and test with class folders inside. "
                "If a class has the name of a split, use a table: --data csv:PATH."
            )
        return [row for split in folders for row in _class_rows(split, SPLIT_OF_NAME[split.name.lower()])]
    return _class_rows(root, None)


def _subfolders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_rows(root: Path, split: str | None) -> list[Row]:
    """Return a row per image: without a label outside class folders; an empty class folder has a row of its own."""
    rows = [Row(str(path), "", split) for path in sorted(root.iterdir()) if _is_image(path)]
    for folder in _subfolders(root):
        rows += [Row(str(path), folder.name, split) for path in _images_in(folder) or [folder]]
    return rows


def _images_in(folder: Path) -> list[Path]:
    """Return all images below a folder. Links are followed, except in cycles."""
    found, seen = [], {os.path.realpath(parent) for parent in folder.absolute().parents}
    for base, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        if os.path.realpath(base) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(base))
        folders[:] = (name for name in folders if not name.startswith("."))
        found += [path for path in (Path(base, name) for name in files) if _is_image(path)]
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def _is_image(path: Path) -> bool:
    """Return whether a file has the name of an image; broken links count, to be reported."""
    named = path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    return named and (path.is_file() or path.is_symlink())


def groups_by_path(root: Path, rows: Sequence[Row], group: str) -> list[Row]:
    """Return the rows with their groups: what the one pair of parentheses of a pattern matches in their paths.

    Args:
        root: the folder of the images; paths are searched from there on, as in `train/cat/burst_12_03.jpg`.
        rows: of the images.
        group: a regular expression with one group.

    Raises:
        UserError: it matches no path.
    """
    matches = [re.search(group, Path(row.path).relative_to(root).as_posix()) for row in rows]
    if rows and not any(matches):
        shown = Path(rows[0].path).relative_to(root).as_posix()
        raise UserError(
            f"--group matches none of the {len(rows):,} paths of --data folder:{root}. It must be a regular expression "
            f"that matches a part of them. Received: {group!r}; the first path: {shown!r}."
        )
    return [replace(row, group=match.group(1) or "" if match else "") for row, match in zip(rows, matches, strict=True)]


def csv_rows(table: Path, columns: ImageColumns = ImageColumns(), group: str | None = None) -> list[Row]:
    """Read a table with columns for the path (relative to the table), the label and optionally the split.

    Args:
        table: the file.
        columns: their names.
        group: column of what an image belongs to, if any.

    Raises:
        UserError: it is not such a table.
    """
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            names = None
            if columns.by_place:
                names = [str(place) for place in range(1, len(next(csv.reader(file, skipinitialspace=True), [])) + 1)]
                file.seek(0)
            rows = list(_table_rows(table, csv.DictReader(file, names, skipinitialspace=True), columns, group))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"--data csv:{table} cannot be read as a comma-separated table in UTF-8: {error}. "
            "In a spreadsheet program: 'Save as', 'CSV UTF-8'."
        ) from error
    if len({row.split is None for row in rows}) > 1:
        raise UserError(
            f"--data csv:{table}: some lines have a split and some have none. Fill in all or remove the column."
        )
    return rows


def _table_rows(table: Path, reader: csv.DictReader, columns: ImageColumns, group: str | None) -> Iterator[Row]:
    found = reader.fieldnames or []
    flags = {"--path-column": columns.path, "--label-column": columns.label}
    if columns.split != ImageColumns.split:  # the default is optional
        flags["--split-column"] = columns.split
    check_columns(f"csv:{table}", found, flags | ({} if group is None else {"--group": group}))
    used = {columns.path, columns.label, columns.split, group}
    if twice := [name for name, count in Counter(found).items() if count > 1 and name in used]:
        raise UserError(f"--data csv:{table} has more than one column {twice[0]!r}. Rename or remove the others.")
    for line in reader:
        if None in line:  # a comma without quotes would shift values into wrong columns
            raise UserError(
                f"--data csv:{table}, line {reader.line_num}: {len(found)} cells are required, one per column; "
                f"received more, the last: {line[None][-1]!r}. Put cells that contain a comma in quotes."
            )
        split = (line.get(columns.split) or "").strip().lower()
        if split and split not in SPLIT_OF_NAME:
            raise UserError(
                f"--data csv:{table}, line {reader.line_num}: unknown split {split!r}. Allowed: train, val, test."
            )
        path, label = str(table.parent / (line[columns.path] or "")), (line[columns.label] or "").strip()
        yield Row(path, label, SPLIT_OF_NAME.get(split), (line[group] or "").strip() if group else "")


def tfds_rows(name: str, folder: Path) -> list[Row]:
    """Write the images of a TensorFlow data set into a folder, as original files, and list them.

    Raises:
        UserError: it cannot be loaded, or has no image with a class label.
    """
    builder = importlib.import_module("common.data.tfds").prepared_builder(name)  # few need it
    import tensorflow_datasets as tfds  # here: it takes seconds to import

    features, splits = builder.info.features, {s: SPLIT_OF_NAME.get(s.lower()) for s in builder.info.splits}
    if not {"image", "label"} <= set(features) or not isinstance(features["label"], tfds.features.ClassLabel):
        raise UserError(f"--data tfds:{name} has no image with a class label. Received: {features}.")
    if not any(splits.values()):
        raise UserError(f"--data tfds:{name} has no split named train, validation or test. Received: {list(splits)}.")
    folder = folder / builder.info.full_name  # keeps data sets in the same run folder apart
    rows = []
    decoders = {"image": tfds.decode.SkipDecoding()}  # the original bytes, as serving receives them
    for theirs, split in splits.items():
        if split is None:
            continue
        for index, example in enumerate(builder.as_dataset(split=theirs, decoders=decoders).as_numpy_iterator()):
            label = features["label"].int2str(int(example["label"]))
            path = folder / theirs / label.replace(os.sep, "_") / f"{index:07d}.img"
            write_image(path, example["image"])
            rows.append(Row(str(path), label, split))
    return rows


def digit_rows(folder: Path) -> list[Row]:
    """scikit-learn's handwritten digits (8x8): 10 per class for training, 5 for validation, the rest for testing.

    Transfer learning is for few labels; with all of them, training from scratch is enough.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    rows, seen = [], Counter()
    by_hash = sorted(range(len(images)), key=lambda i: hashlib.sha256(images[i].tobytes()).hexdigest())
    for index in by_hash:
        label = int(digits.target[index])
        seen[label] += 1
        split = "train" if seen[label] <= 10 else "val" if seen[label] <= 15 else "test"
        encoded = io.BytesIO()
        Image.fromarray(images[index]).save(encoded, "PNG")
        path = folder / split / str(label) / f"{index:04d}.png"
        write_image(path, encoded.getvalue())
        rows.append(Row(str(path), str(label), split))
    return rows
