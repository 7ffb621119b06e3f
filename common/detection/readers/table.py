"""Boxes in a CSV table, one line per box."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from common.data.splits import SPLIT_OF_NAME, some
from common.detection.readers.rows import BoxRow, Noticed, box_row, number_of, parse_boxes, size_of, unusable_row
from common.errors import UserError

_SIDES = ("xmin", "ymin", "xmax", "ymax")

# TensorFlow's own tables use filename and class.
_SPELLINGS = {"path": ("path", "filename"), "label": ("label", "class"), **{side: (side,) for side in _SIDES}}


def refuse_early(settings) -> None:
    """Raise UserError for a table that cannot work, before TensorFlow is imported, which takes seconds.

    Args:
        settings: of a recipe: `data`.
    """
    kind, value = parse_boxes(settings.data)
    if kind == "csv":
        csv_rows(Path(value).expanduser(), defaultdict(list))


def csv_rows(table: Path, noticed: Noticed) -> list[BoxRow]:
    """Read a table with one line per box: path, xmin, ymin, xmax, ymax, label; optionally split, width, height.

    Paths are relative to the table. A line with a path alone is an image without objects. TensorFlow's columns
    (filename, width, height, class, xmin, ymin, xmax, ymax) are read as well.

    Args:
        table: the file.
        noticed: notes for the user are added here.

    Raises:
        UserError: it is not such a table.
    """
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = _csv_columns(table, reader.fieldnames or [])
            lines = [(reader.line_num, line) for line in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"--data csv:{table} cannot be read as a comma-separated table in UTF-8: {error}. "
            "Try: 'Save as', 'CSV UTF-8' in a spreadsheet program."
        ) from error
    by_path: dict[str, list[tuple[int, dict]]] = defaultdict(list)
    for number, line in lines:
        if None in line:  # an unquoted comma would shift numbers into wrong columns
            raise UserError(
                f"--data csv:{table}, line {number}: {len(reader.fieldnames)} cells are required, one per column. "
                f"Received more; the last is {line[None][-1]!r}. Quote cells that contain a comma."
            )
        line = {name: (line[column] or "").strip() for name, column in columns.items()}
        by_path[line["path"]].append((number, line))
    rows = [_csv_row(table, path, mine) for path, mine in by_path.items()]
    if len({row.split is None for row in rows}) > 1:
        raise UserError(f"--data csv:{table}: some lines have a split and others none. Fill all or remove the column.")
    return rows


def _csv_columns(table: Path, found: Sequence[str]) -> dict[str, str]:
    """Return the table's own name of each column."""
    spelled = {name.strip().lower(): name for name in reversed(found)}
    wanted = {**_SPELLINGS, "split": ("split",), "width": ("width",), "height": ("height",)}
    columns = {
        name: spelled[next(one for one in spellings if one in spelled)]
        for name, spellings in wanted.items()
        if any(one in spelled for one in spellings)
    }
    if missing := [name for name in _SPELLINGS if name not in columns]:
        raise UserError(
            f"--data csv:{table} lacks {', '.join(missing)}. Required: path, xmin, ymin, xmax, ymax, label; split is "
            f"optional (filename and class are read as path and label). "
            f"Found: {', '.join(found) or 'an empty file'}."
        )
    if twice := [column for column in columns.values() if list(found).count(column) > 1]:
        raise UserError(f"--data csv:{table} has several columns {twice[0]!r}. Rename or remove the others.")
    return columns


def _csv_row(table: Path, path: str, lines: list[tuple[int, dict]]) -> BoxRow:
    place = f"{table.name}:{lines[0][0]}"
    splits = {line.get("split", "").lower() for _, line in lines}
    if unknown := splits - {"", *SPLIT_OF_NAME}:
        raise UserError(f"--data csv:{table}: unknown split {min(unknown)!r} of {path!r}. Allowed: train, val, test.")
    if len({SPLIT_OF_NAME.get(split) for split in splits}) > 1:
        raise UserError(f"--data csv:{table}: the lines of {path!r} are in several splits: {some(sorted(splits))}.")
    split = SPLIT_OF_NAME.get(splits.pop())
    if not path:
        return unusable_row(table, split, place, "has no path")
    sizes = {size_of(line.get("height"), line.get("width")) for _, line in lines}
    if len(sizes) > 1:
        return unusable_row(
            table.parent / path, split, place, f"has lines with different sizes: {sorted(map(str, sizes))}"
        )
    lines_of_boxes = [line for _, line in lines if line["label"] or any(line[side] for side in _SIDES)]
    boxes = [[number_of(line[side]) for side in _SIDES] for line in lines_of_boxes]
    labels = [line["label"] for line in lines_of_boxes]
    return box_row(table.parent / path, boxes, labels, split, place, size=sizes.pop())
