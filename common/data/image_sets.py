"""Labelled pictures from class folders, a table, TensorFlow Datasets or the demo digits."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import tensorflow as tf

from common.data import splits
from common.errors import UserError
from common.specs import parse_data

DATA_KINDS = ("demo", "folder", "csv", "tfds")
PARTS = ("train", "val", "test")
_PART_OF_FOLDER = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
                   "dev": "val", "test": "test", "testing": "test"}  # fmt: skip
# Some of these the decoder cannot read: they are looked at, so that leaving them out is counted and explained.
_PICTURE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp",
                     ".heic", ".heif", ".avif", ".jxl", ".tif", ".tiff"}  # fmt: skip
_READABLE = "JPEG, PNG, GIF, BMP, and WebP without transparency"


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
    """One picture as the user gave it; `part` is None where no split was given, `label` empty where there is none."""

    path: str
    label: str
    part: str | None


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
        "demo": lambda: (_demo_rows(out / "data"), False),
        "folder": lambda: (_folder_rows(Path(value).expanduser()), True),
        "csv": lambda: (_csv_rows(Path(value).expanduser()), True),
        "tfds": lambda: (_tfds_rows(value, out / "data"), True),
    }[kind]()
    if not rows:
        raise UserError(
            f"--data {data!r} holds no pictures. Allowed: {_READABLE}; in a folder, one folder for each class."
        )
    return replace(_checked(data, rows, limit, strict, val_share), mirrors=mirrors)


def _checked(data: str, rows: list[_Row], limit: int | None, strict: bool, val_share: float) -> ImageSet:
    """Leave out unreadable files and copies, split, and refuse a set that cannot work."""
    asked_for = {row.label for row in rows if row.label}
    hashes, reasons = _read_all(rows)
    skipped = [(_printable(row.path), reason) for row, reason in zip(rows, reasons, strict=True) if reason]
    first = f"{skipped[0][0]}: {skipped[0][1]}" if skipped else ""
    if strict and skipped:
        raise UserError(f"--strict: {len(skipped)} file(s) cannot be used; the first is {first}")
    kept = [index for index, reason in enumerate(reasons) if not reason]
    rows, hashes = [rows[i] for i in kept], [hashes[i] for i in kept]
    class_names = tuple(sorted({row.label for row in rows}))
    if len(class_names) < 2:
        raise UserError(
            f"--data {data!r} has {len(class_names)} class(es) with readable pictures; at least 2 are needed. "
            f"Received: {_some(class_names)}; {len(skipped)} file(s) left out{first and ', the first is ' + first}."
        )
    if unreadable := asked_for - set(class_names):
        raise UserError(
            f"--data {data!r} has no readable picture for {_some(sorted(unreadable))}. Each class needs at least one: "
            f"add some, or remove the class. {len(skipped)} file(s) left out, the first is {first}."
        )
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = np.array([numbers[row.label] for row in rows], dtype=np.int64)
    parts = _assign_parts(data, rows, hashes, labels, val_share)
    reasons = _reasons_to_leave(rows, hashes, parts)
    skipped += [(row.path, reason) for row, reason in zip(rows, reasons, strict=True) if reason]
    stays = np.array([not reason for reason in reasons])

    chosen = {}
    for part in PARTS:
        indices = np.nonzero((parts == part) & stays)[0]
        if not len(indices):
            raise UserError(
                f"--data {data!r} leaves no pictures in the {part} part. A class is in every part where it has 3 "
                f"different pictures. Counts: {_count_text(rows, parts, stays)}; {len(skipped)} file(s) left out."
            )
        if limit:
            indices = indices[splits.limit_per_class(labels[indices], limit)]
        chosen[part] = Examples(np.array([rows[i].path for i in indices], dtype=str), labels[indices])
    trained = set(chosen["train"].labels.tolist())
    if missing := [name for number, name in enumerate(class_names) if number not in trained]:
        advice = f" --limit {limit} may be too small for {len(class_names)} classes." if limit else ""
        raise UserError(
            f"--data {data!r}: no training pictures for {_some(missing)}. Each class needs at least one.{advice} "
            f"Counts: {_count_text(rows, parts, stays)}; {len(skipped)} file(s) left out."
        )
    return ImageSet(data, class_names, **chosen, skipped=tuple(skipped))


def _reasons_to_leave(rows: list[_Row], hashes: list[str], parts: np.ndarray) -> list[str]:
    """Say why a readable picture must leave its part, or "" where it may stay."""
    labels_of: dict[str, set[str]] = defaultdict(set)
    for row, content in zip(rows, hashes, strict=True):
        labels_of[content].add(row.label)
    reasons = []
    copies = splits.drop_copies_across_parts(parts, hashes)
    for row, content, part, copied in zip(rows, hashes, parts, copies, strict=True):
        given_test = part == "test" and row.part not in (None, "train")
        if len(labels_of[content]) > 1 and not given_test:
            reasons.append(f"the same content is labelled {_some(sorted(labels_of[content]))}; left {part}")
        else:
            reasons.append(f"exact copy of a picture in another part; left {part}" if copied else "")
    return reasons


def _count_text(rows: list[_Row], parts: np.ndarray, stays: np.ndarray) -> str:
    per_part = Counter((part, row.label) for row, part, stay in zip(rows, parts, stays, strict=True) if stay)
    return ", ".join(f"{part}/{label} {count}" for (part, label), count in sorted(per_part.items())[:20]) or "none"


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "none"


def _printable(path: str) -> str:
    """Return a path that every file and terminal takes: names on disk need not be UTF-8."""
    return os.fsencode(path).decode(errors="replace")


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


def _read_all(rows: Sequence[_Row]) -> tuple[list[str], list[str]]:
    """Hash and decode every file once, so that a bad one is known before training.

    Returns:
        (content hash of each file, reason why it cannot be used or "").
    """
    hashes, reasons, shown = [], [], 0.0
    # Threads: reading and decoding let go of the GIL. A futures executor would hold 2 kB for each file.
    with ThreadPool(max(2, os.cpu_count() or 2)) as pool:
        for done, (content, reason) in enumerate(pool.imap(_read_one, rows, chunksize=16), start=1):
            hashes.append(content)
            reasons.append(reason)
            if sys.stderr.isatty() and time.monotonic() - shown > 0.2:
                print(f"\r  checking pictures: {done:,} of {len(rows):,}", end="", file=sys.stderr, flush=True)
                shown = time.monotonic()
    if shown:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return hashes, reasons


def _read_one(row: _Row) -> tuple[str, str]:
    if not row.label:
        return "", "has no label (it stands in no class folder, or its cell in the table is empty)"
    if os.path.isdir(row.path):
        return "", "is a folder, not a picture"
    try:
        row.path.encode()
        encoded = Path(row.path).read_bytes()
    except UnicodeEncodeError:
        return "", "has a name that is not UTF-8; rename it"
    except (OSError, ValueError) as error:
        return "", f"cannot be read: {getattr(error, 'strerror', None) or error}"
    if not encoded:
        return "", "is empty (0 bytes)"
    if encoded.startswith(b"BM") and _has_coloured_palette(encoded):
        return "", "is a BMP with a palette, whose colours the decoder does not read; convert it to PNG"
    try:
        tf.io.decode_image(encoded, channels=3, expand_animations=False)
    except tf.errors.OpError as error:
        return "", f"cannot be decoded ({_first_line(error.message)}). Allowed: {_READABLE}; convert it to JPEG or PNG"
    return hashlib.sha256(encoded).hexdigest(), ""


def _has_coloured_palette(bmp: bytes) -> bool:
    """Return whether the bytes of a BMP picture are places in a palette; the decoder takes them for grey levels."""
    start, end = 14 + int.from_bytes(bmp[14:18], "little"), int.from_bytes(bmp[10:14], "little")
    palette = bmp[start : min(end, start + 1024)]
    return bmp[28:30] == b"\x08\x00" and any(
        palette[at : at + 3] != bytes([at // 4] * 3) for at in range(0, len(palette), 4)
    )


def _first_line(message: str) -> str:
    return message.split("}} ")[-1].splitlines()[0].removesuffix(" [Op:DecodeImage]")[:160]


# --- where the rows come from ---------------------------------------------------------------------------


def _folder_rows(root: Path) -> list[_Row]:
    folders = _subfolders(root)
    if any(folder.name.lower() in _PART_OF_FOLDER for folder in folders):
        strangers = [folder.name for folder in folders if folder.name.lower() not in _PART_OF_FOLDER]
        if strangers:
            raise UserError(
                f"--data folder:{root} mixes parts and classes: {', '.join(map(repr, strangers[:5]))} stand beside "
                "train/val/test. Allowed: either class folders, or train, val and test with class folders inside. "
                "A class that is really called so needs a table: --data csv:PATH."
            )
        return [row for part in folders for row in _class_rows(part, _PART_OF_FOLDER[part.name.lower()])]
    return _class_rows(root, None)


def _subfolders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_rows(root: Path, part: str | None) -> list[_Row]:
    """Return a row for each picture: without a label outside the class folders; an empty class has its folder's row."""
    rows = [_Row(str(path), "", part) for path in sorted(root.iterdir()) if _is_picture(path)]
    for folder in _subfolders(root):
        rows += [_Row(str(path), folder.name, part) for path in _pictures(folder) or [folder]]
    return rows


def _pictures(folder: Path) -> list[Path]:
    """Return the pictures anywhere under a folder. Links are followed, but never round in a circle."""
    found, seen = [], {os.path.realpath(parent) for parent in folder.absolute().parents}
    for base, folders, files in os.walk(folder, followlinks=True):
        if os.path.realpath(base) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(base))
        folders[:] = (name for name in folders if not name.startswith("."))
        found += [path for path in (Path(base, name) for name in files) if _is_picture(path)]
    return sorted(found)


def _is_picture(path: Path) -> bool:
    """Return whether a file's name is that of a picture; a broken link counts, to be reported."""
    named = path.suffix.lower() in _PICTURE_SUFFIXES and not path.name.startswith(".")
    return named and (path.is_file() or path.is_symlink())


def _csv_rows(table: Path) -> list[_Row]:
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = list(_table_rows(table, csv.DictReader(file, skipinitialspace=True)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--data csv:{table} cannot be read as a table with commas, in UTF-8: {error}.") from error
    if len({row.part is None for row in rows}) > 1:
        raise UserError(
            f"--data csv:{table}: some lines have a split and some have none. Fill all or remove the column."
        )
    return rows


def _table_rows(table: Path, reader: csv.DictReader) -> Iterator[_Row]:
    columns = reader.fieldnames or []
    if not {"path", "label"} <= set(columns):
        raise UserError(
            f"--data csv:{table} lacks a column. Needed: path, label, and split if there is one. "
            f"Received: {', '.join(columns) or 'an empty file'}."
        )
    for line in reader:
        if None in line:  # a comma that should have been quoted would shift a name into the wrong column
            raise UserError(
                f"--data csv:{table}, line {reader.line_num}: {len(columns)} cells are needed, one for each column; "
                f"more were received, the last is {line[None][-1]!r}. Put a cell that holds a comma in quotes."
            )
        part = (line.get("split") or "").strip().lower()
        if part and part not in _PART_OF_FOLDER:
            raise UserError(
                f"--data csv:{table}, line {reader.line_num}: unknown split {part!r}. Allowed: train, val, test."
            )
        path, label = str(table.parent / (line["path"] or "")), (line["label"] or "").strip()
        yield _Row(path, label, _PART_OF_FOLDER.get(part))


def _tfds_rows(name: str, folder: Path) -> list[_Row]:
    try:
        import tensorflow_datasets as tfds  # here: it takes seconds to import and few users need it
    except ImportError as error:
        raise UserError(
            f"--data tfds:{name} needs TensorFlow Datasets: pip install tensorflow-datasets ({error})."
        ) from error

    print(f"Loading {name} with TensorFlow Datasets; it may download into {Path(tfds.core.constants.DATA_DIR)}")
    try:
        builder = tfds.builder(name)
        builder.download_and_prepare()
    except Exception as error:  # TFDS raises dozens of types for unknown names, no network and full disks
        said = next(iter(str(error).splitlines()), type(error).__name__)[:300]
        raise UserError(
            f"--data tfds:{name} cannot be loaded: {said}. Names: "
            "https://www.tensorflow.org/datasets/catalog/overview. Without a network, prepare it elsewhere and "
            "set TFDS_DATA_DIR, or use --data folder:PATH."
        ) from error
    features, parts = builder.info.features, {s: _PART_OF_FOLDER.get(s.lower()) for s in builder.info.splits}
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
