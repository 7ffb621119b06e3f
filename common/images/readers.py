"""What the user has as rows of (picture, label, part): class folders, a table, TensorFlow Datasets, the demo digits."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.data.splits import PART_OF_NAME
from common.data.tfds import prepared_builder
from common.errors import UserError
from common.images.files import PICTURE_SUFFIXES, Row, write_picture


def folder_rows(root: Path) -> list[Row]:
    """Read class folders, or train/val/test with class folders inside.

    Raises:
        UserError: parts and classes stand side by side, or a folder cannot be read.
    """
    try:
        return _folder_rows(root)
    except OSError as error:  # a folder left out would be a class that lacks pictures, and nobody would know
        raise UserError(
            f"--data folder:{root} has a folder that cannot be read: {error.filename} ({error.strerror}). "
            f"Remove it, or make it readable: chmod -R u+rX {shlex.quote(str(root))}"
        ) from error


def _folder_rows(root: Path) -> list[Row]:
    folders = _subfolders(root)
    if any(folder.name.lower() in PART_OF_NAME for folder in folders):
        strangers = [folder.name for folder in folders if folder.name.lower() not in PART_OF_NAME]
        if strangers:
            raise UserError(
                f"--data folder:{root} mixes parts and classes: {', '.join(map(repr, strangers[:5]))} stand beside "
                "train/val/test. Allowed: either class folders, or train, val and test with class folders inside. "
                "A class that is really called so needs a table: --data csv:PATH."
            )
        return [row for part in folders for row in _class_rows(part, PART_OF_NAME[part.name.lower()])]
    return _class_rows(root, None)


def _subfolders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_rows(root: Path, part: str | None) -> list[Row]:
    """Return a row for each picture: without a label outside the class folders; an empty class has its folder's row."""
    rows = [Row(str(path), "", part) for path in sorted(root.iterdir()) if _is_picture(path)]
    for folder in _subfolders(root):
        rows += [Row(str(path), folder.name, part) for path in _pictures(folder) or [folder]]
    return rows


def _pictures(folder: Path) -> list[Path]:
    """Return the pictures anywhere under a folder. Links are followed, but never round in a circle."""
    found, seen = [], {os.path.realpath(parent) for parent in folder.absolute().parents}
    for base, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        if os.path.realpath(base) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(base))
        folders[:] = (name for name in folders if not name.startswith("."))
        found += [path for path in (Path(base, name) for name in files) if _is_picture(path)]
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def _is_picture(path: Path) -> bool:
    """Return whether a file's name is that of a picture; a broken link counts, to be reported."""
    named = path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")
    return named and (path.is_file() or path.is_symlink())


def csv_rows(table: Path) -> list[Row]:
    """Read a table with the columns path (relative to the table), label and maybe split.

    Raises:
        UserError: it is no such table.
    """
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = list(_table_rows(table, csv.DictReader(file, skipinitialspace=True)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"--data csv:{table} cannot be read as a table with commas, in UTF-8: {error}. "
            "A spreadsheet program writes one with 'Save as', 'CSV UTF-8'."
        ) from error
    if len({row.part is None for row in rows}) > 1:
        raise UserError(
            f"--data csv:{table}: some lines have a split and some have none. Fill all or remove the column."
        )
    return rows


def _table_rows(table: Path, reader: csv.DictReader) -> Iterator[Row]:
    columns = reader.fieldnames or []
    if not {"path", "label"} <= set(columns):
        raise UserError(
            f"--data csv:{table} lacks a column. Needed: path, label, and split if there is one. "
            f"Received: {', '.join(columns) or 'an empty file'}."
        )
    if twice := [name for name, count in Counter(columns).items() if count > 1 and name in ("path", "label", "split")]:
        raise UserError(f"--data csv:{table} has more than one column {twice[0]!r}. Rename or remove the others.")
    for line in reader:
        if None in line:  # a comma that should have been quoted would shift a name into the wrong column
            raise UserError(
                f"--data csv:{table}, line {reader.line_num}: {len(columns)} cells are needed, one for each column; "
                f"more were received, the last is {line[None][-1]!r}. Put a cell that holds a comma in quotes."
            )
        part = (line.get("split") or "").strip().lower()
        if part and part not in PART_OF_NAME:
            raise UserError(
                f"--data csv:{table}, line {reader.line_num}: unknown split {part!r}. Allowed: train, val, test."
            )
        path, label = str(table.parent / (line["path"] or "")), (line["label"] or "").strip()
        yield Row(path, label, PART_OF_NAME.get(part))


def tfds_rows(name: str, folder: Path) -> list[Row]:
    """Write the pictures of a TensorFlow data set into a folder, as the files they are, and list them.

    Raises:
        UserError: it cannot be loaded, or has no image with a class label.
    """
    builder = prepared_builder(name)
    import tensorflow_datasets as tfds  # here: installed, as there is a builder, and it takes seconds to import

    features, parts = builder.info.features, {s: PART_OF_NAME.get(s.lower()) for s in builder.info.splits}
    if not {"image", "label"} <= set(features) or not isinstance(features["label"], tfds.features.ClassLabel):
        raise UserError(f"--data tfds:{name} has no image with a class label. Received: {features}.")
    if not any(parts.values()):
        raise UserError(f"--data tfds:{name} has no split named train, validation or test. Received: {list(parts)}.")
    folder = folder / builder.info.full_name  # so that another data set in the same run folder is not taken for this
    rows = []
    decoders = {"image": tfds.decode.SkipDecoding()}  # the file's own bytes are what serving will see
    for split, part in parts.items():
        if part is None:
            continue
        for index, example in enumerate(builder.as_dataset(split=split, decoders=decoders).as_numpy_iterator()):
            label = features["label"].int2str(int(example["label"]))
            path = folder / split / label.replace(os.sep, "_") / f"{index:07d}.img"
            write_picture(path, example["image"])
            rows.append(Row(str(path), label, part))
    return rows


def demo_rows(folder: Path) -> list[Row]:
    """scikit-learn's handwritten digits (8x8): 10 training pictures a class, 5 to choose on, the rest as test.

    Few labels are what transfer learning is for; with all of them, training from scratch is enough.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures = (digits.images * (255 / 16)).round().astype(np.uint8)
    rows, seen = [], Counter()
    by_hash = sorted(range(len(pictures)), key=lambda i: hashlib.sha256(pictures[i].tobytes()).hexdigest())
    for index in by_hash:
        label = int(digits.target[index])
        seen[label] += 1
        part = "train" if seen[label] <= 10 else "val" if seen[label] <= 15 else "test"
        encoded = io.BytesIO()
        Image.fromarray(pictures[index]).save(encoded, "PNG")
        path = folder / part / str(label) / f"{index:04d}.png"
        write_picture(path, encoded.getvalue())
        rows.append(Row(str(path), str(label), part))
    return rows
