"""Labelled pictures from class folders, a table, TensorFlow Datasets or the demo digits."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tensorflow as tf

from common.data import splits
from common.errors import UserError
from common.specs import parse_data

DATA_KINDS = ("demo", "folder", "csv", "tfds")
PARTS = ("train", "val", "test")
_PART_OF_FOLDER = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
                   "dev": "val", "test": "test"}  # fmt: skip
_PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".heic", ".tif", ".tiff"}


@dataclass(frozen=True)
class Examples:
    """The pictures of one part.

    Attributes:
        paths: file of each picture, str [n].
        labels: class number of each picture, int64 [n].
    """

    paths: np.ndarray
    labels: np.ndarray

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
    """

    name: str
    class_names: tuple[str, ...]
    train: Examples
    val: Examples
    test: Examples
    skipped: tuple[tuple[str, str], ...] = ()
    mirrors: bool = True

    def counts(self) -> dict[str, int]:
        """Return the number of examples in each part and of skipped files."""
        return {part: len(getattr(self, part)) for part in PARTS} | {"skipped": len(self.skipped)}

    def fingerprint(self) -> str:
        """Return a hash of paths, sizes, times and labels: the same set of files gives the same text."""
        digest = hashlib.sha256()
        for part in PARTS:
            examples = getattr(self, part)
            for path, label in zip(examples.paths, examples.labels, strict=True):
                status = os.stat(path)
                digest.update(f"{part}\0{path}\0{status.st_size}\0{status.st_mtime_ns}\0{label}\n".encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class _Row:
    """One picture as the user gave it; `part` is None where no split was given."""

    path: str
    label: str
    part: str | None


def load_image_set(
    data: str, out: Path, *, limit: int | None = None, strict: bool = False, val_share: float = splits.VALIDATION_SHARE
) -> ImageSet:
    """Read a data set, check every file, and split it.

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
        UserError: nothing readable, one class only, an empty part, or a broken table.
    """
    kind, value = parse_data(data, DATA_KINDS)
    rows, mirrors = {
        "demo": lambda: (_demo_rows(out / "data"), False),
        "folder": lambda: (_folder_rows(Path(value).expanduser()), True),
        "csv": lambda: (_csv_rows(Path(value).expanduser()), True),
        "tfds": lambda: (_tfds_rows(value, out / "data"), True),
    }[kind]()
    if not rows:
        raise UserError(
            f"--data {data!r} holds no pictures. Allowed: {', '.join(sorted(_PICTURE_SUFFIXES))} files "
            "in one folder for each class."
        )
    return replace(_checked(data, rows, limit, strict, val_share), mirrors=mirrors)


def _checked(data: str, rows: list[_Row], limit: int | None, strict: bool, val_share: float) -> ImageSet:
    """Leave out unreadable files and copies, split, and refuse a set that cannot work."""
    hashes, reasons = _read_all([row.path for row in rows])
    skipped = [(row.path, reason) for row, reason in zip(rows, reasons, strict=True) if reason]
    if strict and skipped:
        raise UserError(f"--strict: {len(skipped)} files cannot be used; the first is {skipped[0][0]}: {skipped[0][1]}")
    kept = [index for index, reason in enumerate(reasons) if not reason]
    rows, hashes = [rows[i] for i in kept], [hashes[i] for i in kept]
    class_names = tuple(sorted({row.label for row in rows}))
    if len(class_names) < 2:
        raise UserError(
            f"--data {data!r} has {len(class_names)} class(es) with readable pictures; at least 2 are needed. "
            f"Received: {', '.join(map(repr, class_names)) or 'none'}; {len(skipped)} files were unreadable"
            f"{': ' + skipped[0][0] + ': ' + skipped[0][1] if skipped else ''}."
        )
    labels = np.array([class_names.index(row.label) for row in rows], dtype=np.int64)
    parts = _assign_parts(data, rows, hashes, labels, val_share)
    copies = splits.drop_copies_across_parts(parts, hashes)
    skipped += [
        (rows[i].path, f"exact copy of a picture in another part; left {parts[i]}") for i in np.nonzero(copies)[0]
    ]

    chosen = {}
    for part in PARTS:
        indices = np.nonzero((parts == part) & ~copies)[0]
        if limit:
            indices = indices[splits.limit_per_class(labels[indices], limit)]
        chosen[part] = Examples(np.array([rows[i].path for i in indices], dtype=str), labels[indices])
        if not len(indices):
            raise UserError(
                f"--data {data!r} leaves no pictures in the {part} part. Counts: {_count_text(rows, parts)}."
            )
    missing = [name for number, name in enumerate(class_names) if number not in chosen["train"].labels]
    if missing:
        raise UserError(
            f"--data {data!r}: no training pictures for {', '.join(map(repr, missing[:10]))}. Each class needs "
            f"at least one. Counts: {_count_text(rows, parts)}."
        )
    return ImageSet(data, class_names, **chosen, skipped=tuple(skipped))


def _count_text(rows: list[_Row], parts: np.ndarray) -> str:
    per_part = Counter((part, row.label) for row, part in zip(rows, parts, strict=True))
    return ", ".join(f"{part}/{label} {count}" for (part, label), count in sorted(per_part.items())[:20])


def _assign_parts(data: str, rows: list[_Row], hashes: list[str], labels: np.ndarray, val_share: float) -> np.ndarray:
    """Keep the parts that were given; carve the others out of the training part by content hash."""
    parts = np.array([row.part for row in rows], dtype=object)
    given = {part for part in parts if part}
    if not given:
        shares = {"test": splits.TEST_SHARE, "val": val_share, "train": 1.0}
        return splits.split_by_hash(hashes, labels, shares)
    if "train" not in given:
        raise UserError(f"--data {data!r} gives {sorted(given)} but no train part. Allowed: train, and val or test.")
    if "test" not in given and "val" in given:
        # A given val was held out by its author; choices are then made on a part of train instead.
        parts[parts == "val"] = "test"
        given = {"train", "test"}
    carve = {part: share for part, share in (("test", splits.TEST_SHARE), ("val", val_share))
             if part not in given}  # fmt: skip
    if carve:
        train = np.nonzero(parts == "train")[0]
        parts[train] = splits.split_by_hash([hashes[i] for i in train], labels[train], {**carve, "train": 1.0})
    return parts


# --- reading -------------------------------------------------------------------------------------------


def _read_all(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hash and decode every file once, so that a bad one is known before training.

    Returns:
        (content hash of each file, reason why it cannot be used or "").
    """
    hashes, reasons = [], []
    with ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 2)) as pool:
        for done, (content, reason) in enumerate(pool.map(_read_one, paths), start=1):
            hashes.append(content)
            reasons.append(reason)
            if done % 500 == 0 and sys.stderr.isatty():
                print(f"\r  checking pictures: {done:,} of {len(paths):,}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty() and len(paths) >= 500:
        print("\r\033[K", end="", file=sys.stderr)
    return hashes, reasons


def _read_one(path: str) -> tuple[str, str]:
    try:
        encoded = Path(path).read_bytes()
    except OSError as error:
        return "", f"cannot be read: {error.strerror}"
    if not encoded:
        return "", "is empty (0 bytes)"
    try:
        tf.io.decode_image(encoded, channels=3, expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        return "", f"cannot be decoded as JPEG, PNG, GIF or BMP: {_first_line(error.message)}"
    return hashlib.sha256(encoded).hexdigest(), ""


def _first_line(message: str) -> str:
    return message.split("} } ")[-1].splitlines()[0].removesuffix(" [Op:DecodeImage]")[:160]


# --- where the rows come from ---------------------------------------------------------------------------


def _folder_rows(root: Path) -> list[_Row]:
    folders = _subfolders(root)
    if any(folder.name.lower() in _PART_OF_FOLDER for folder in folders):
        strangers = [folder.name for folder in folders if folder.name.lower() not in _PART_OF_FOLDER]
        if strangers:
            raise UserError(
                f"--data folder:{root} mixes parts and classes: {', '.join(map(repr, strangers[:5]))} stand beside "
                "train/val/test. Allowed: either class folders, or train, val and test with class folders inside."
            )
        return [row for part in folders for row in _class_rows(_subfolders(part), _PART_OF_FOLDER[part.name.lower()])]
    return _class_rows(folders, None)


def _subfolders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_rows(folders: Iterable[Path], part: str | None) -> list[_Row]:
    return [
        _Row(str(path), folder.name, part)
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _PICTURE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]


def _csv_rows(table: Path) -> list[_Row]:
    with open(table, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if not {"path", "label"} <= set(columns):
            raise UserError(
                f"--data csv:{table} lacks a column. Needed: path, label, and split if there is one. "
                f"Received: {', '.join(columns) or 'an empty file'}."
            )
        rows = []
        for number, line in enumerate(reader, start=2):
            part = (line.get("split") or "").strip().lower()
            if part and part not in _PART_OF_FOLDER:
                raise UserError(
                    f"--data csv:{table}, line {number}: unknown split {part!r}. Allowed: train, val, test."
                )
            if not line["path"] or not line["label"]:
                raise UserError(f"--data csv:{table}, line {number}: path or label is empty.")
            rows.append(_Row(str(table.parent / line["path"]), line["label"].strip(), _PART_OF_FOLDER.get(part)))
    if len({row.part is None for row in rows}) > 1:
        raise UserError(
            f"--data csv:{table}: some lines have a split and some have none. Fill all or remove the column."
        )
    return rows


def _tfds_rows(name: str, folder: Path) -> list[_Row]:
    import tensorflow_datasets as tfds  # here: it takes seconds to import and few users need it

    print(f"Loading {name} with TensorFlow Datasets; it may download into {Path(tfds.core.constants.DATA_DIR)}")
    try:
        builder = tfds.builder(name)
        builder.download_and_prepare()
    except Exception as error:  # TFDS raises dozens of types for unknown names, no network and full disks
        raise UserError(
            f"--data tfds:{name} cannot be loaded: {str(error).splitlines()[0][:300]}. Names: "
            "https://www.tensorflow.org/datasets/catalog/overview. Without a network, prepare it elsewhere and "
            "set TFDS_DATA_DIR, or use --data folder:PATH."
        ) from error
    features = builder.info.features
    if not {"image", "label"} <= set(features):
        raise UserError(f"--data tfds:{name} has no image and label. Received: {', '.join(features)}.")
    rows = []
    decoders = {"image": tfds.decode.SkipDecoding()}  # the file's own bytes are what serving will see
    for split in builder.info.splits:
        part = _PART_OF_FOLDER.get(split.lower())
        if part is None:
            continue
        for index, example in enumerate(builder.as_dataset(split=split, decoders=decoders).as_numpy_iterator()):
            label = features["label"].int2str(int(example["label"]))
            path = folder / part / label.replace(os.sep, "_") / f"{index:07d}.img"
            _write_picture(path, example["image"])
            rows.append(_Row(str(path), label, part))
    return rows


def _demo_rows(folder: Path) -> list[_Row]:
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
        _write_picture(path, encoded.getvalue())
        rows.append(_Row(str(path), str(label), part))
    return rows


def _write_picture(path: Path, encoded: bytes) -> None:
    if path.exists():  # a second run into the same folder
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(encoded)
    partial.replace(path)
