"""Read texts as rows of (text, label, split): tables, JSON lines, folders, TensorFlow Datasets, the demos."""

from __future__ import annotations

import csv
import importlib
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data.splits import SPLIT_OF_NAME
from common.data.tables import check_columns, check_encoding, read_text_file
from common.errors import UserError

PRODUCTS = Path(__file__).with_name("demo_products")  # a table per split; benchmarks/demos.py wrote them
REVIEWS = Path(__file__).with_name("demo_reviews.tsv")
_ENDINGS = {"csv": (".csv",), "tsv": (".tsv", ".tab"), "jsonl": (".jsonl", ".ndjson")}
_UNLABELLED = "unsup"  # the folder of unlabelled reviews in aclImdb


@dataclass(frozen=True)
class TextRow:
    """One text of the input.

    Attributes:
        text: as it was read.
        label: class name, "" where there is none.
        split: train, val or test; None where none was given.
        place: file and line, for messages.
        group: what it belongs to; "" where it is unknown.
    """

    text: str
    label: str
    split: str | None
    place: str
    group: str = ""


@dataclass(frozen=True)
class Columns:
    """The columns of a table: their names, or their numbers (from 1) in a table without a header.

    Only the column of splits may be missing, where it has its usual name. `group`: what a text belongs to, if anything.
    """

    text: str = "text"
    label: str = "label"
    split: str = "split"
    encoding: str = "utf-8"
    group: str | None = None

    @property
    def by_place(self) -> bool:
        """Return whether the columns are given by number."""
        return self.text.isdecimal() and self.label.isdecimal()


def table_rows(kind: str, path: Path, columns: Columns) -> list[TextRow]:
    """Read one table, or a folder with a table per split (`train.tsv`, `dev.tsv`, `test.tsv`).

    Args:
        kind: csv, tsv or jsonl; each may be compressed (`.gz`).
        path: of the file or folder.
        columns: names of the columns, and the encoding.

    Raises:
        UserError: it is not such a table, or a column is missing.
    """
    if not path.is_dir():
        return list(_file_rows(kind, path, columns, None))
    files = {file: _split_of_file(kind, file) for file in sorted(path.iterdir())}
    tables = {file: split for file, split in files.items() if split}
    if not tables:
        found = ", ".join(file.name for file in files if file.is_file()) or "no file"
        raise UserError(
            f"--data {kind}:{path} is a folder without tables of splits. Allowed: train{_ENDINGS[kind][0]}, and val "
            f"or test. Received: {found}."
        )
    return [row for file, split in tables.items() for row in _file_rows(kind, file, columns, split)]


def _split_of_file(kind: str, file: Path) -> str | None:
    name = file.name.lower().removesuffix(".gz")
    ending = next((ending for ending in _ENDINGS[kind] if name.endswith(ending)), None)
    return SPLIT_OF_NAME.get(name.removesuffix(ending)) if ending and file.is_file() else None


def _file_rows(kind: str, file: Path, columns: Columns, split: str | None) -> Iterator[TextRow]:
    content = read_text_file(kind, file, columns.encoding)
    lines = _json_lines(file, content) if kind == "jsonl" else _table_lines(kind, file, content, columns)
    for number, cells in lines:
        _check_columns(kind, file, cells, columns)
        given = str(cells.get(columns.split) or "").strip().lower()
        if given and given not in SPLIT_OF_NAME:
            raise UserError(f"--data {kind}:{file}, line {number}: unknown split {given!r}. Allowed: train, val, test.")
        text, label = cells[columns.text], cells[columns.label]
        group = _label(cells[columns.group]).strip() if columns.group else ""
        yield TextRow(
            "" if text is None else str(text), _label(label), split or SPLIT_OF_NAME.get(given),
            f"{file.name}:{number}", group,
        )  # fmt: skip


def _label(label: Any) -> str:
    if label is None or label == -1:  # how data sets mark a missing label
        return ""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def _table_lines(kind: str, file: Path, content: str, columns: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(sys.maxsize)  # a text may be long
    stream = io.StringIO(content, newline="")
    # Tab-separated tables are written without quoting: a quotation mark is a character like any other.
    dialect = dict(delimiter="\t", quoting=csv.QUOTE_NONE) if kind == "tsv" else dict(delimiter=",")
    reader = csv.reader(stream, strict=True, **dialect)
    names: Sequence[str] | None = None
    try:
        for cells in reader:
            if not cells:
                continue
            if names is None:
                names = [str(place) for place in range(1, len(cells) + 1)] if columns.by_place else _stripped(cells)
                if not columns.by_place:
                    continue
            if len(cells) != len(names):
                raise UserError(
                    f"--data {kind}:{file}, line {reader.line_num}: {len(names)} cells are required, one per "
                    f"column. Received: {len(cells)}."
                    + (" Put a text that contains a comma in quotes." if kind == "csv" else "")
                )
            yield reader.line_num, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"--data {kind}:{file}, line {reader.line_num}, is not a valid row: {error}.") from error
    if names is not None and reader.line_num <= 1 and not columns.by_place:
        _check_columns(kind, file, dict.fromkeys(names), columns)


def _stripped(cells: Sequence[str]) -> list[str]:
    return [cell.strip() for cell in cells]


def _json_lines(file: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(content.split("\n"), start=1):  # not splitlines: texts may contain other separators
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"--data jsonl:{file}, line {number}, is not valid JSON: {error}.") from error
        if not isinstance(cells, dict):
            raise UserError(f'--data jsonl:{file}, line {number}, must be an object: {{"text": ..., "label": ...}}.')
        yield number, cells


def _check_columns(kind: str, file: Path, cells: dict[str, Any], columns: Columns) -> None:
    flags = {"--text-column": columns.text, "--label-column": columns.label}
    if columns.split not in (Columns.split, ""):
        flags["--split-column"] = columns.split
    check_columns(f"{kind}:{file}", cells, flags | ({"--group": columns.group} if columns.group else {}))


def folder_rows(root: Path, encoding: str = "utf-8") -> list[TextRow]:
    """Read class folders of `.txt` files, or train/test with class folders inside (the layout of aclImdb).

    A folder `unsup` holds unlabelled texts and is ignored.

    Raises:
        UserError: the folder does not exist, or mixes folders of splits and of classes.
    """
    if not root.is_dir():
        raise UserError(f"--data folder:{root} does not exist.")
    check_encoding(encoding)
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    splits = [folder for folder in folders if folder.name.lower() in SPLIT_OF_NAME]
    if splits and len(splits) < len(folders):
        others = [folder.name for folder in folders if folder not in splits]
        raise UserError(
            f"--data folder:{root} mixes splits and classes: {', '.join(map(repr, others[:5]))} next to "
            f"train/val/test. Allowed: either class folders, or train, val and test with class folders inside."
        )
    if splits:
        return [row for split in splits for row in _class_rows(split, SPLIT_OF_NAME[split.name.lower()], encoding)]
    return _class_rows(root, None, encoding)


def _class_rows(root: Path, split: str | None, encoding: str) -> list[TextRow]:
    rows = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if folder.name == _UNLABELLED or folder.name.startswith("."):
            continue
        for file in sorted(folder.glob("*.txt")):
            place = f"{folder.name}/{file.name}"
            try:
                text = file.read_bytes().decode(encoding).removeprefix("\ufeff")
                rows.append(TextRow(text, folder.name, split, place))
            except (OSError, UnicodeDecodeError) as error:
                rows.append(TextRow("", folder.name, split, f"{place} ({error})"))
    return rows


def tfds_rows(name: str, columns: Columns) -> list[TextRow]:
    """Read a data set of TensorFlow Datasets with a text and a class label.

    Raises:
        UserError: it cannot be loaded, or a feature is missing.
    """
    builder = importlib.import_module("common.data.tfds").prepared_builder(name)  # few need it
    features = builder.info.features
    if not {columns.text, columns.label} <= set(features):
        raise UserError(
            f"--data tfds:{name} has no features {columns.text!r} and {columns.label!r}. Found: {', '.join(features)}. "
            f"Name them: --text-column NAME --label-column NAME"
        )
    rows, label = [], features[columns.label]
    for given in builder.info.splits:
        split = SPLIT_OF_NAME.get(given.lower())
        if split is None:
            continue
        for number, example in enumerate(builder.as_dataset(split=given).as_numpy_iterator()):
            found = int(example[columns.label])
            word = label.int2str(found) if hasattr(label, "int2str") and found >= 0 else _label(found)
            text = example[columns.text].decode("utf-8", "replace")
            rows.append(TextRow(text, word, split, f"{given}:{number}"))
    return rows


def demo_rows(name: str = "") -> list[TextRow]:
    """Return sentences of product reviews; with `reviews`, the reviews that were written for this project."""
    return table_rows("tsv", REVIEWS, Columns()) if name == "reviews" else table_rows("csv", PRODUCTS, Columns())


def encode_text(text: str, *_) -> bytes:
    """Return a text as the export of a run expects it."""
    return text.encode("utf-8", "replace")
