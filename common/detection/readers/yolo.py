"""Boxes in the folders of YOLO: data.yaml, images, labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common.data.folders import files_under, part_of_folders
from common.data.splits import PART_OF_NAME, some
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
from common.images.files import PICTURE_SUFFIXES


def yolo_rows(root: Path, noticed: Noticed) -> list[BoxRow]:
    """Read YOLO's folders: images, labels with a text file for each picture, and data.yaml with the names.

    The label file of images/train/1.jpg is labels/train/1.txt; beside the picture is allowed as well. A line is
    class, centre x, centre y, width, height, in shares of the picture. A polygon becomes the box around it. Parts are
    as in data.yaml, else as the folders are called.

    Args:
        root: the folder.
        noticed: what is told of beside the rows is added here.

    Raises:
        UserError: no data.yaml, or no names in it.
    """
    need_folder("yolo", root)
    names, settings = _yolo_names(root)
    files = files_under(root)
    pictures = [file for file in files if file.suffix.lower() in PICTURE_SUFFIXES]
    parts = _yolo_parts(root, settings, pictures)
    texts = {file for file in files if file.suffix.lower() == ".txt"}
    rows, used = [], set()
    for picture in pictures:
        part = parts.get(picture) if parts else part_of_folders(picture.relative_to(root))
        place = path_under(root, picture)
        if parts and part is None:
            noticed["pictures that data.yaml names in no part, left out"].append(place)
            used.update(_yolo_label_files(root, picture))
            continue
        label = next((file for file in _yolo_label_files(root, picture) if file in texts), None)
        if label is None:
            rows.append(unusable_row(picture, part, place, UNLABELLED.format(how="give it an empty text file")))
            continue
        used.add(label)
        rows.append(_yolo_row(root, picture, label, names, "kpt_shape" in settings, part, noticed))
    lost = [file for file in sorted(texts - used) if "labels" in file.relative_to(root).parent.parts]
    noticed["label files without a picture"] += [path_under(root, file) for file in lost]
    return rows


def _yolo_names(root: Path) -> tuple[dict[int, str], dict[str, Any]]:
    """Return the name of each class number, and all that stands in data.yaml."""
    import yaml  # here: few users need it

    found = [file for file in sorted(root.iterdir()) if file.suffix.lower() in (".yaml", ".yml")]
    file = next((file for file in found if file.stem.lower() == "data"), found[0] if len(found) == 1 else None)
    if file is None:
        raise UserError(
            f"--data yolo:{root} has no data.yaml, which says how the classes are called. Needed: a line such as "
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
            f"--data yolo:{root}: {file.name} has no names. Needed: names: [cat, dog], or a number and a name on each "
            f"line. Found: {found}."
        )
    return {int(key): str(name) for key, name in names.items()}, settings


def _yolo_parts(root: Path, settings: dict[str, Any], pictures: list[Path]) -> dict[Path, str]:
    """Return the part of each picture by data.yaml; empty where it names no folder that is there."""
    parts: dict[Path, str] = {}
    for name, entries in settings.items():
        part = PART_OF_NAME.get(str(name).lower())
        for entry in entries if isinstance(entries, list) else [entries]:
            target = _yolo_target(root, settings.get("path"), entry) if part else None
            if target is None:
                continue
            if target.is_file():  # a list of pictures
                # Paths there begin anywhere, often on another machine: what counts is how they end.
                text = target.read_text("utf-8", errors="replace").replace("\\", "/")
                lines = [line.strip().split("/") for line in text.splitlines()]
                ends = {"/".join(line[at:]) for line in lines for at in range(len(line))}
                chosen = [picture for picture in pictures if picture.relative_to(root).as_posix() in ends]
                if not chosen:
                    raise UserError(
                        f"--data yolo:{root}: {path_under(root, target)}, which data.yaml names for {part}, lists no "
                        f"picture of that folder. Its first line: {text.strip().splitlines()[:1]}. Needed: lines that "
                        "end as the paths of pictures under the folder do, or no such entry."
                    )
            else:
                chosen = [picture for picture in pictures if target in picture.parents]
            for picture in chosen:
                if parts.setdefault(picture, part) != part:
                    raise UserError(
                        f"--data yolo:{root}: data.yaml puts {path_under(root, picture)} into {parts[picture]} and "
                        "into "
                        f"{part}. Needed: parts that share no picture, or validation measures what was learnt."
                    )
    return parts


def _yolo_target(root: Path, path: Any, entry: Any) -> Path | None:
    """Return the folder or list that data.yaml means, as it lies under the root, or None.

    Many files say ../train/images though train lies beside them, and `path` is that of another machine.
    """
    if not isinstance(entry, str) or not inside_folder(entry).name:
        return None
    bases = [root, root / inside_folder(path)] if isinstance(path, str) else [root]
    return next((base / inside_folder(entry) for base in bases if (base / inside_folder(entry)).exists()), None)


def _yolo_label_files(root: Path, picture: Path) -> list[Path]:
    """Return where the label file of a picture may be."""
    parts = list(picture.relative_to(root).with_suffix(".txt").parts)
    beside = [picture.with_suffix(".txt")]
    at = [place for place, part in enumerate(parts[:-1]) if part.lower() == "images"]
    if not at:
        return [*beside, root / "labels" / Path(*parts)]
    parts[at[-1]] = "labels"
    return [root.joinpath(*parts), *beside]


def _yolo_row(
    root: Path, picture: Path, label: Path, names: dict[int, str], keypoints: bool, part: str | None, noticed: Noticed
) -> BoxRow:
    place = path_under(root, label)
    try:
        lines = label.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return unusable_row(picture, part, place, f"has a label file that cannot be read: {first_line(error)}")
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
            box = [np.min(xs), np.min(ys), np.max(xs), np.max(ys)]  # of numpy: one NaN makes it NaN
            noticed["polygons, read as the boxes around them"].append(f"{place}:{number}")
        else:
            box = [np.nan] * 4
        boxes.append(box)
        known = np.isfinite(values[0]) and values[0] == int(values[0])
        labels.append(names.get(int(values[0]), "") if known else "")
    return box_row(picture, boxes, labels, part, place, relative=True)
