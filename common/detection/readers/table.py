"""Boxes in a csv table, one line a box."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from common.data.splits import PART_OF_NAME, some
from common.detection.readers.rows import BoxRow, Noticed, box_row, number_of, size_of, unusable_row
from common.errors import UserError

_SIDES = ("xmin", "ymin", "xmax", "ymax")

# TensorFlow's own tables say filename and class.
_SPELLINGS = {"path": ("path", "filename"), "label": ("label", "class"), **{side: (side,) for side in _SIDES}}


def csv_rows(table: Path, noticed: Noticed) -> list[BoxRow]:
    """Read a table with one line for each box: path, xmin, ymin, xmax, ymax, label, and maybe split, width, height.

    Paths start at the table. A line with a path alone is a picture without objects. TensorFlow's spelling
    (filename, width, height, class, xmin, ymin, xmax, ymax) is read as well.

    Args:
        table: the file.
        noticed: what is told of beside the rows is added here.

    Raises:
        UserError: it is no such table.
    """
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = _csv_columns(table, reader.fieldnames or [])
            lines = [(reader.line_num, line) for line in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"--data csv:{table} cannot be read as a table with commas, in UTF-8: {error}. "
            "A spreadsheet program writes one with 'Save as', 'CSV UTF-8'."
        ) from error
    by_path: dict[str, list[tuple[int, dict]]] = defaultdict(list)
    for number, line in lines:
        if None in line:  # a comma that should have been quoted would shift a number into the wrong column
            raise UserError(
                f"--data csv:{table}, line {number}: {len(reader.fieldnames)} cells are needed, one for each column; "
                f"more were received, the last is {line[None][-1]!r}. Put a cell that holds a comma in quotes."
            )
        line = {name: (line[column] or "").strip() for name, column in columns.items()}
        by_path[line["path"]].append((number, line))
    rows = [_csv_row(table, path, mine) for path, mine in by_path.items()]
    if len({row.part is None for row in rows}) > 1:
        raise UserError(
            f"--data csv:{table}: some lines have a split and some have none. Fill all or remove the column."
        )
    return rows


def _csv_columns(table: Path, found: Sequence[str]) -> dict[str, str]:
    """Return which column of the table holds what."""
    spelled = {name.strip().lower(): name for name in reversed(found)}
    wanted = {**_SPELLINGS, "split": ("split",), "width": ("width",), "height": ("height",)}
    columns = {
        name: spelled[next(one for one in spellings if one in spelled)]
        for name, spellings in wanted.items()
        if any(one in spelled for one in spellings)
    }
    if missing := [name for name in _SPELLINGS if name not in columns]:
        raise UserError(
            f"--data csv:{table} lacks {', '.join(missing)}. Needed: path, xmin, ymin, xmax, ymax, label, and split if "
            f"there is one (filename and class are read as path and label). "
            f"Found: {', '.join(found) or 'an empty file'}."
        )
    if twice := [column for column in columns.values() if list(found).count(column) > 1]:
        raise UserError(f"--data csv:{table} has more than one column {twice[0]!r}. Rename or remove the others.")
    return columns


def _csv_row(table: Path, path: str, lines: list[tuple[int, dict]]) -> BoxRow:
    place = f"{table.name}:{lines[0][0]}"
    splits = {line.get("split", "").lower() for _, line in lines}
    if unknown := splits - {"", *PART_OF_NAME}:
        raise UserError(f"--data csv:{table}: unknown split {min(unknown)!r} of {path!r}. Allowed: train, val, test.")
    if len({PART_OF_NAME.get(split) for split in splits}) > 1:
        raise UserError(f"--data csv:{table}: the lines of {path!r} are in several parts: {some(sorted(splits))}.")
    part = PART_OF_NAME.get(splits.pop())
    if not path:
        return unusable_row(table, part, place, "has no path")
    sizes = {size_of(line.get("height"), line.get("width")) for _, line in lines}
    if len(sizes) > 1:
        return unusable_row(
            table.parent / path, part, place, f"has lines with different sizes: {sorted(map(str, sizes))}"
        )
    lines_of_boxes = [line for _, line in lines if line["label"] or any(line[side] for side in _SIDES)]
    boxes = [[number_of(line[side]) for side in _SIDES] for line in lines_of_boxes]
    labels = [line["label"] for line in lines_of_boxes]
    return box_row(table.parent / path, boxes, labels, part, place, size=sizes.pop())
