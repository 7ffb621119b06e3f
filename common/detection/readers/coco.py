"""Boxes in COCO JSON."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from common.data.folders import files_under, split_of_folders, split_of_words
from common.data.splits import some
from common.detection.readers.rows import (
    BoxRow,
    Noticed,
    box_row,
    inside_folder,
    number_of,
    path_under,
    size_of,
    suggest_kind,
    unusable_row,
)
from common.errors import UserError, first_line


def coco_rows(path: Path, noticed: Noticed) -> list[BoxRow]:
    """Read COCO's JSON: one file, or a folder with a file per split.

    Names such as `instances_train2017.json`, `train.json` and `train/_annotations.coco.json` give the split. Images
    are searched beside the JSON, in `images`, and in folders named like the split; of a path outside the folder only
    the file name is used. An image without annotations is an example without objects.

    Args:
        path: of the file or folder.
        noticed: notes for the user are added here.

    Raises:
        UserError: no such JSON, or one with duplicate ids.
    """
    if path.is_file():
        root = path.parent.parent if path.parent.name.lower() == "annotations" else path.parent
        return _coco_file_rows(path, root, None, noticed)
    jsons = [file for file in files_under(path) if file.suffix.lower() == ".json"]
    by_split: dict[str | None, list[Path]] = defaultdict(list)
    for file in jsons:
        if re.match("captions_|panoptic_|stuff_|image_info_", file.name):  # other files of COCO, without boxes
            continue
        by_split[split_of_words(file.name) or split_of_folders(file.relative_to(path))].append(file)
    # COCO's person_keypoints list the same images again.
    chosen = {split: [f for f in found if f.name.startswith("instances")] or found for split, found in by_split.items()}
    if any(chosen):
        others = [path_under(path, file) for file in chosen.pop(None, [])]
        noticed["JSON files without a split in their names, beside others with one, skipped"] += others
    if not chosen or any(len(found) > 1 for found in chosen.values()):
        raise UserError(
            f"--data coco:{path} needs one JSON file per split: instances_train.json, train.json or "
            f"train/_annotations.coco.json, the same for val and test; or one JSON file for all. Found: "
            f"{some([path_under(path, file) for file in jsons])}. Or select one: --data coco:FILE.json"
            f"{suggest_kind(path, 'coco')}"
        )
    return [row for split, (file,) in chosen.items() for row in _coco_file_rows(file, path, split, noticed)]


def _coco_file_rows(file: Path, root: Path, split: str | None, noticed: Noticed) -> list[BoxRow]:
    images, annotations, categories = _coco_lists(file)
    names = {key: str(category.get("name") or "") for key, category in _by_id(file, "category", categories).items()}
    by_id = _by_id(file, "image", images)
    by_image: dict[Any, list[dict]] = {key: [] for key in by_id}
    # Ids of annotations are optional and not used; duplicates mean that files were concatenated.
    _by_id(file, "annotation", [annotation for annotation in annotations if annotation.get("id") is not None])
    for annotation in annotations:
        image = annotation.get("image_id")
        if not isinstance(image, int | str) or image not in by_image:
            noticed["annotations of unlisted images, skipped"].append(f"{file.name}, image {image!r}")
            continue
        by_image[image].append(annotation)
    used = [annotation.get("category_id") for annotation in annotations]
    used = {category for category in used if isinstance(category, int | str)}
    unused = [f"{file.name}, {name!r}" for key, name in names.items() if key not in used]
    noticed["categories without annotations, not used as classes"] += unused
    bases = _coco_bases(file.parent, root, split or split_of_words(file.name))
    return [_coco_row(file, bases, by_id[key], mine, names, split) for key, mine in by_image.items()]


def _coco_row(file: Path, bases: list[Path], image: dict, annotations: list[dict], names: dict, split) -> BoxRow:
    place = f"{file.name}, image {image['id']!r}"
    name = inside_folder(str(image.get("file_name") or ""))
    if not name.name:
        return unusable_row(file, split, place, "has no file_name")
    path = next((base / name for base in bases if (base / name).is_file()), bases[0] / name)
    boxes, labels, crowds = [], [], []
    for annotation in annotations:
        corner = annotation.get("bbox")
        x, y, width, height = map(number_of, corner) if isinstance(corner, list) and len(corner) == 4 else [np.nan] * 4
        boxes.append([x, y, x + width, y + height])
        category = annotation.get("category_id")
        labels.append(names.get(category, "") if isinstance(category, int | str) else "")
        crowds.append(bool(annotation.get("iscrowd")))
    size = size_of(image.get("height"), image.get("width"))
    return box_row(path, boxes, labels, split, place, crowds=crowds, size=size)


def _coco_lists(file: Path) -> tuple[list[dict], list[dict], list[dict]]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--data coco:{file} cannot be read as JSON: {first_line(error)}.") from error
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) and all(isinstance(one, dict) for one in content[key]) for key in keys
    ):
        found = some(list(content)) if isinstance(content, dict) else type(content).__name__
        raise UserError(
            f"--data coco:{file} is not a COCO file of boxes. Required: an object with the lists images, annotations "
            f"and categories. Found: {found}."
        )
    return tuple(content[key] for key in keys)


def _by_id(file: Path, what: str, entries: list[dict]) -> dict[Any, dict]:
    """Return entries by their ids.

    Raises:
        UserError: an id is duplicate or invalid.
    """
    found: dict[Any, dict] = {}
    twice = []
    for entry in entries:
        key = entry.get("id")
        if not isinstance(key, int | str):
            raise UserError(f"--data coco:{file}: the {what} {str(entry)[:100]} has no id. Required: a whole number.")
        if key in found:
            twice.append(key)
        found[key] = entry
    if twice:
        raise UserError(
            f"--data coco:{file}: {len(twice):,} {what} id(s) are duplicate: {some(sorted(set(twice), key=str))}. "
            "Required: unique ids, or boxes would go to the wrong image. Renumber them where files were joined."
        )
    return found


def _coco_bases(beside: Path, root: Path, split: str | None) -> list[Path]:
    """Return the folders that may hold the images: that of the JSON, the root, `images` and that of the split."""
    bases = []
    for base in (beside, root):
        for folder in (base, base / "images"):
            inner = sorted(one for one in folder.iterdir() if one.is_dir()) if split and folder.is_dir() else []
            of_split = [one for one in inner if split_of_words(one.name) == split]
            bases += [folder, *of_split, *(one / "images" for one in of_split)]
    return list(dict.fromkeys(bases))
