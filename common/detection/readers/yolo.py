"""Boxes in YOLO folders: data.yaml, images, labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common.data.folders import files_under, split_of_folders
from common.data.splits import SPLIT_OF_NAME, some
from common.detection.readers.rows import (
    UNLABELLED,
    BoxRow,
    Noticed,
    box_row,
    inside_folder,
    need_folder,
    number_of,
    path_under,
    suggest_kind,
    unusable_row,
)
from common.errors import UserError, first_line
from common.images.files import IMAGE_SUFFIXES


def yolo_rows(root: Path, noticed: Noticed) -> list[BoxRow]:
    """Read YOLO folders: images, labels with a text file per image, and data.yaml with the class names.

    The label file of images/train/1.jpg is labels/train/1.txt; beside the image is allowed as well. A line is
    class, centre x, centre y, width, height, as fractions of the image. Polygons become bounding boxes. Splits are
    those of data.yaml, else those of the folder names.

    Args:
        root: the folder.
        noticed: notes for the user are added here.

    Raises:
        UserError: no data.yaml, or one without names.
    """
    need_folder("yolo", root)
    names, settings = _yolo_names(root)
    files = files_under(root)
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    splits = _yolo_splits(root, settings, images)
    texts = {file for file in files if file.suffix.lower() == ".txt"}
    rows, used = [], set()
    for image in images:
        split = splits.get(image) if splits else split_of_folders(image.relative_to(root))
        place = path_under(root, image)
        if splits and split is None:
            noticed["images in no split of data.yaml, skipped"].append(place)
            used.update(_yolo_label_files(root, image))
            continue
        label = next((file for file in _yolo_label_files(root, image) if file in texts), None)
        if label is None:
            rows.append(unusable_row(image, split, place, UNLABELLED.format(how="give it an empty text file")))
            continue
        used.add(label)
        rows.append(_yolo_row(root, image, label, names, "kpt_shape" in settings, split, noticed))
    lost = [file for file in sorted(texts - used) if "labels" in file.relative_to(root).parent.parts]
    noticed["label files without an image, skipped"] += [path_under(root, file) for file in lost]
    return rows


def _yolo_names(root: Path) -> tuple[dict[int, str], dict[str, Any]]:
    """Return the name of each class number, and the contents of data.yaml."""
    import yaml  # here: few users need it

    found = [file for file in sorted(root.iterdir()) if file.suffix.lower() in (".yaml", ".yml")]
    file = next((file for file in found if file.stem.lower() == "data"), found[0] if len(found) == 1 else None)
    if file is None:
        raise UserError(
            f"--data yolo:{root} has no data.yaml with the class names. Required: a line such as "
            f"names: [cat, dog]. Found: {some([one.name for one in sorted(root.iterdir())])}.{suggest_kind(root)}"
        )
    try:
        settings = yaml.safe_load(file.read_bytes())
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--data yolo:{root}: {file.name} cannot be read: {first_line(error)}.") from error
    names = settings.get("names") if isinstance(settings, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    plain = isinstance(names, dict) and all(isinstance(name, str | int | float) for name in names.values())
    if not plain or not names or not all(str(key).isdecimal() for key in names):
        found = some([str(key)[:40] for key in settings]) if isinstance(settings, dict) else type(settings).__name__
        raise UserError(
            f"--data yolo:{root}: {file.name} has no names. Required: names: [cat, dog], or a number and a name "
            f"per line. Found: {found}."
        )
    return {int(key): str(name) for key, name in names.items()}, settings


def _yolo_splits(root: Path, settings: dict[str, Any], images: list[Path]) -> dict[Path, str]:
    """Return the split of each image in data.yaml; empty where it names no existing folder."""
    splits: dict[Path, str] = {}
    for name, entries in settings.items():
        split = SPLIT_OF_NAME.get(str(name).lower())
        for entry in entries if isinstance(entries, list) else [entries]:
            target = _yolo_target(root, settings.get("path"), entry) if split else None
            if target is None:
                continue
            if target.is_file():  # a list of images
                # Paths often start at a folder of another machine: only their ends are compared.
                text = target.read_text("utf-8", errors="replace").replace("\\", "/")
                lines = [line.strip().split("/") for line in text.splitlines()]
                ends = {"/".join(line[at:]) for line in lines for at in range(len(line))}
                chosen = [image for image in images if image.relative_to(root).as_posix() in ends]
                if not chosen:
                    raise UserError(
                        f"--data yolo:{root}: {path_under(root, target)}, the list of {split} in data.yaml, lists no "
                        f"image of that folder. Its first line: {text.strip().splitlines()[:1]}. Required: lines that "
                        "end like the paths of images under the folder, or no such entry."
                    )
            else:
                chosen = [image for image in images if target in image.parents]
            for image in chosen:
                if splits.setdefault(image, split) != split:
                    raise UserError(
                        f"--data yolo:{root}: data.yaml puts {path_under(root, image)} into {splits[image]} and "
                        f"into {split}. Required: disjoint splits, or training images would be used to validate."
                    )
    return splits


def _yolo_target(root: Path, path: Any, entry: Any) -> Path | None:
    """Return the folder or list under the root that an entry of data.yaml refers to, or None.

    Many files contain ../train/images although train lies beside them, and a `path` of another machine.
    """
    if not isinstance(entry, str) or not inside_folder(entry).name:
        return None
    bases = [root, root / inside_folder(path)] if isinstance(path, str) else [root]
    return next((base / inside_folder(entry) for base in bases if (base / inside_folder(entry)).exists()), None)


def _yolo_label_files(root: Path, image: Path) -> list[Path]:
    """Return the possible label files of an image."""
    parts = list(image.relative_to(root).with_suffix(".txt").parts)
    beside = [image.with_suffix(".txt")]
    at = [place for place, name in enumerate(parts[:-1]) if name.lower() == "images"]
    if not at:
        return [*beside, root / "labels" / Path(*parts)]
    parts[at[-1]] = "labels"
    return [root.joinpath(*parts), *beside]


def _yolo_row(
    root: Path, image: Path, label: Path, names: dict[int, str], keypoints: bool, split: str | None, noticed: Noticed
) -> BoxRow:
    place = path_under(root, label)
    try:
        lines = label.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return unusable_row(image, split, place, f"has an unreadable label file: {first_line(error)}")
    boxes, labels = [], []
    for number, line in enumerate(lines, start=1):
        cells = line.split()
        if not cells:
            continue
        values = [number_of(cell) for cell in cells]
        coordinates = values[1:5] if keypoints else values[1:]
        if len(coordinates) == 4:
            x, y, width, height = coordinates
            box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        elif len(coordinates) >= 6 and len(coordinates) % 2 == 0:
            xs, ys = coordinates[::2], coordinates[1::2]
            box = [np.min(xs), np.min(ys), np.max(xs), np.max(ys)]  # NumPy propagates NaN
            noticed["polygons, converted to their bounding boxes"].append(f"{place}:{number}")
        else:
            box = [np.nan] * 4
        boxes.append(box)
        known = np.isfinite(values[0]) and values[0] == int(values[0])
        labels.append(names.get(int(values[0]), "") if known else "")
    return box_row(image, boxes, labels, split, place, relative=True)
