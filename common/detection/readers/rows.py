"""Images with boxes as the user provides them: Pascal VOC, COCO, a table, YOLO, TensorFlow Datasets, the demos.

Nothing is checked here: a box with swapped corners is a row like any other. `common.detection.checks` reads the images
and decides what can be used.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.data.folders import files_under
from common.errors import UserError
from common.flags import parse_data

DATA_KINDS = ("demo", "demo:scenes", "voc", "coco", "csv", "yolo", "tfds")

# Notes made while reading: for each reason the places where it occurred. They never stop a run by themselves.
Noticed = defaultdict[str, list[str]]

UNLABELLED = "has no annotation: skipped, as it may be unlabelled. To mark it as an image without objects, {how}"


@dataclass(frozen=True)
class BoxRow:
    """One image as the user provides it, with its boxes.

    Attributes:
        path: of the image.
        boxes: xmin, ymin, xmax, ymax as written, float64 [k, 4]; NaN for invalid numbers. In pixels, or as
            fractions of the image's width and height where `relative`.
        labels: class name of each box as written, "" where there is none; k of them.
        crowds: whether a box stands for a group or a difficult object: evaluation and training ignore it; k of
            them.
        split: train, val or test; None where none was given.
        place: location of the annotation, for messages.
        size: (height, width) in pixels according to the annotation, or None.
        relative: see `boxes`.
        problem: why the image cannot be used, or "".
    """

    path: str
    boxes: np.ndarray
    labels: tuple[str, ...]
    crowds: tuple[bool, ...]
    split: str | None
    place: str
    size: tuple[int, int] | None = None
    relative: bool = False
    problem: str = ""


def box_row(path: Any, boxes: Sequence, labels: Sequence[str], split: str | None, place: str, **more: Any) -> BoxRow:
    """Return a row; by default no box is a crowd."""
    crowds = tuple(more.pop("crowds", [False] * len(labels)))
    return BoxRow(str(path), np.array(boxes, np.float64).reshape(-1, 4), tuple(labels), crowds, split, place, **more)


def unusable_row(path: Any, split: str | None, place: str, problem: str) -> BoxRow:
    return box_row(path, (), (), split, place, problem=problem)


def path_under(root: Path, file: Path) -> str:
    return file.relative_to(root).as_posix()


def inside_folder(text: str) -> Path:
    """Return a path that cannot leave the folder it is joined to; an absolute one is reduced to its file name."""
    pieces = [piece for piece in text.strip().replace("\\", "/").split("/") if piece not in (".", "..")]
    return Path(pieces[-1] if pieces[0] == "" or pieces[0].endswith(":") else "/".join(pieces)) if pieces else Path()


def number_of(text: Any) -> float:
    """Return a number, or NaN if it is invalid."""
    try:
        return float(text)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def size_of(height: Any, width: Any) -> tuple[int, int] | None:
    """Return a size in pixels, or None if none is given: some tools write 0."""
    sides = [number_of(height), number_of(width)]
    return tuple(int(side) for side in sides) if all(1 <= side < 2**31 for side in sides) else None


def need_folder(kind: str, path: Path) -> None:
    if not path.is_dir():
        raise UserError(f"--data {kind}: needs a folder. Received a file: {str(path)!r}.{suggest_kind(path, kind)}")


def suggest_kind(path: Path, but: str = "") -> str:
    """Return the remedy of a message: how to read the path instead."""
    kind = guess_kind(path)
    return f" Try: --data {kind}:{path}" if kind and kind != but else ""


def guess_kind(path: Path) -> str | None:
    """Return the likely format of a folder or file: voc, coco, csv, yolo; None where it is unknown."""
    if path.is_file():
        return {".json": "coco", ".csv": "csv"}.get(path.suffix.lower())
    suffixes = {file.suffix.lower() for file in files_under(path)}
    of_suffix = {".xml": "voc", ".yaml": "yolo", ".yml": "yolo", ".json": "coco"}
    return next((kind for suffix, kind in of_suffix.items() if suffix in suffixes), None)


def parse_boxes(data: str) -> tuple[str, str]:
    """Parse --data; for a path without a format, raise an error that suggests one."""
    bare = data.removeprefix("folder:")
    if bare not in DATA_KINDS and os.path.exists(os.path.expanduser(bare)):
        kind = guess_kind(Path(bare).expanduser()) or "voc"
        takes_path = [f"{one}:PATH" for one in DATA_KINDS if not one.startswith(("demo", "tfds"))]
        raise UserError(
            "--data must name the format of the boxes. Allowed: "
            f"{', '.join(takes_path)}. Received: {data!r}. Try: --data {kind}:{bare}"
        )
    return parse_data(data, DATA_KINDS)
