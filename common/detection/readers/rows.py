"""Pictures and their boxes as the user wrote them: Pascal VOC, COCO, a table, YOLO, TensorFlow Datasets, the demo.

Nothing is judged here: a box with its corners swapped is a row like any other. `box_sets` looks at the pictures and
says what can be used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.data.folders import files_under
from common.errors import UserError

# What was noticed while reading: for each reason the places where it was seen. It never stops a run by itself.
Noticed = defaultdict[str, list[str]]

UNLABELLED = "has no annotation: left out, as nobody looked at it. To say that it shows no object, {how}"


@dataclass(frozen=True)
class BoxRow:
    """One picture as the user gave it, with its boxes.

    Attributes:
        path: of the picture.
        boxes: xmin, ymin, xmax, ymax as written, float64 [k, 4]; NaN where no number was found. In pixels, or in
            shares of the picture's width and height where `relative`.
        labels: class name of each box as written, "" where there is none; k of them.
        crowds: whether a box stands for a group, or for something too hard to judge: evaluation ignores it, training
            does not learn from it; k of them.
        part: train, val or test; None where no split was given.
        place: where the annotation stands, for messages.
        size: (height, width) in pixels that the annotation states, or None.
        relative: see `boxes`.
        problem: why the picture cannot be used, or "".
    """

    path: str
    boxes: np.ndarray
    labels: tuple[str, ...]
    crowds: tuple[bool, ...]
    part: str | None
    place: str
    size: tuple[int, int] | None = None
    relative: bool = False
    problem: str = ""


def box_row(path: Any, boxes: Sequence, labels: Sequence[str], part: str | None, place: str, **more: Any) -> BoxRow:
    """Return a row; without `crowds`, no box is one."""
    crowds = tuple(more.pop("crowds", [False] * len(labels)))
    return BoxRow(str(path), np.array(boxes, np.float64).reshape(-1, 4), tuple(labels), crowds, part, place, **more)


def unusable_row(path: Any, part: str | None, place: str, problem: str) -> BoxRow:
    return box_row(path, (), (), part, place, problem=problem)


# --- Pascal VOC -------------------------------------------------------------------------------------------


# --- COCO -------------------------------------------------------------------------------------------------


# --- a table ----------------------------------------------------------------------------------------------


# --- YOLO -------------------------------------------------------------------------------------------------


# --- TensorFlow Datasets and the demo ---------------------------------------------------------------------


# --- shared -----------------------------------------------------------------------------------------------


def path_under(root: Path, file: Path) -> str:
    return file.relative_to(root).as_posix()


def inside_folder(text: str) -> Path:
    """Return a path that cannot leave the folder that it is joined to; of an absolute one only the last name stays."""
    pieces = [piece for piece in text.strip().replace("\\", "/").split("/") if piece not in (".", "..")]
    return Path(pieces[-1] if pieces[0] == "" or pieces[0].endswith(":") else "/".join(pieces)) if pieces else Path()


def number_of(text: Any) -> float:
    """Return a number, or NaN where there is none."""
    try:
        return float(text)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def size_of(height: Any, width: Any) -> tuple[int, int] | None:
    """Return a size in pixels, or None where none is stated: some tools write 0."""
    sides = [number_of(height), number_of(width)]
    return tuple(int(side) for side in sides) if all(1 <= side < 2**31 for side in sides) else None


def need_folder(kind: str, path: Path) -> None:
    if not path.is_dir():
        raise UserError(f"--data {kind}: needs a folder, and this is a file: {str(path)!r}.{suggest_kind(path, kind)}")


def suggest_kind(path: Path, but: str = "") -> str:
    """Return how a path could be read instead, as the end of a message."""
    kind = guess_kind(path)
    return f" Try: --data {kind}:{path}" if kind and kind != but else ""


def guess_kind(path: Path) -> str | None:
    """Return how the boxes in a folder or file seem to be written: voc, coco, csv, yolo; None where nothing tells."""
    if path.is_file():
        return {".json": "coco", ".csv": "csv"}.get(path.suffix.lower())
    suffixes = {file.suffix.lower() for file in files_under(path)}
    of_suffix = {".xml": "voc", ".yaml": "yolo", ".yml": "yolo", ".json": "coco"}
    return next((kind for suffix, kind in of_suffix.items() if suffix in suffixes), None)
