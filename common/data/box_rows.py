"""Pictures and their boxes as the user wrote them: Pascal VOC, COCO, a table, YOLO, TensorFlow Datasets, the demo.

Nothing is judged here: a box with its corners swapped is a row like any other. `box_sets` looks at the pictures and
says what can be used.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from common.data.digit_scenes import write_scenes
from common.data.folders import files_under
from common.data.image_rows import PICTURE_SUFFIXES, write_picture
from common.data.labelled import PART_OF_NAME, some
from common.data.tfds_sets import prepared_builder
from common.errors import UserError, first_line

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


def _row(path: Any, boxes: Sequence, labels: Sequence[str], part: str | None, place: str, **more: Any) -> BoxRow:
    """Return a row; without `crowds`, no box is one."""
    crowds = tuple(more.pop("crowds", [False] * len(labels)))
    return BoxRow(str(path), np.array(boxes, np.float64).reshape(-1, 4), tuple(labels), crowds, part, place, **more)


def _unusable(path: Any, part: str | None, place: str, problem: str) -> BoxRow:
    return _row(path, (), (), part, place, problem=problem)


# --- Pascal VOC -------------------------------------------------------------------------------------------

# A picture of a whole scene with 1,000 objects has 0.3 MB; what is larger is no annotation.
_LARGEST_XML = 20 * 2**20
_MASKS = ("SegmentationClass", "SegmentationObject")  # these folders of VOC hold pictures of the same names


def voc_rows(root: Path, noticed: Noticed) -> list[BoxRow]:
    """Read Pascal VOC's xml files, wherever they and the pictures lie under a folder.

    The layout of VOC (Annotations, JPEGImages, ImageSets/Main), xml beside pictures, and train, valid and test
    folders are all read. A picture belongs to the xml of its name, or to the one that names it in <filename>; only
    pictures under the folder are taken, whatever path stands in an xml. Numbers are taken as they are: the first
    pixel is 0 (in the VOC challenge itself it was 1). An object marked `difficult` is set aside like a crowd, as
    VOC's own evaluation does.

    Args:
        root: the folder.
        noticed: what is told of beside the rows is added here.

    Raises:
        UserError: no xml there, or the lists of parts contradict each other.
    """
    _need_folder("voc", root)
    files = [file for file in files_under(root) if file.parent.name not in _MASKS]
    annotations = [file for file in files if file.suffix.lower() == ".xml"]
    if not annotations:
        raise UserError(
            f"--data voc:{root} holds no .xml file. Needed: one for each picture, beside it or in a folder "
            f"Annotations.{_also(root)}"
        )
    pictures = [file for file in files if file.suffix.lower() in PICTURE_SUFFIXES]
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for picture in pictures:
        by_stem[picture.stem].append(picture)
    stems, listed = {file.stem for file in annotations}, _voc_lists(root, files)
    if listed:
        unlisted = [_under(root, file) for file in annotations if file.stem not in listed]
        noticed["xml files that no list of parts names, left out"] += unlisted
        noticed["names in a list of parts that have no xml"] += sorted(set(listed) - stems)
        annotations = [file for file in annotations if file.stem in listed]
    rows = []
    for file in annotations:
        part = listed[file.stem] if listed else _part_of_folders(file.relative_to(root))
        rows.append(_voc_row(root, file, by_stem, part, noticed))
    used = {row.path for row in rows}
    how = UNLABELLED.format(how="give it an xml without objects")
    lonely = [file for file in pictures if str(file) not in used and file.stem not in stems]
    return rows + [_unusable(file, None, _under(root, file), how) for file in lonely]


def _voc_lists(root: Path, files: Sequence[Path]) -> dict[str, str]:
    """Return the part of each name in ImageSets/Main/train.txt and so on, or in such lists right in the folder."""
    names = ("train.txt", "val.txt", "valid.txt", "test.txt", "trainval.txt")
    lists = [file for file in files if file.name.lower() in names]
    here = [file for file in lists if file.parent in (root, root / "ImageSets")]
    lists = [file for file in lists if file.parent.name == "Main"] or here
    listed: dict[str, str] = {}
    # trainval last: who is in train or in val stays there, and the others are for training.
    for file in sorted(lists, key=lambda file: (file.stem.lower() == "trainval", file)):
        stem = file.stem.lower()
        part = "train" if stem == "trainval" else PART_OF_NAME[stem]
        for line in file.read_text("utf-8-sig", errors="replace").splitlines():
            name = _inside(line).name
            if Path(name).suffix.lower() in {*PICTURE_SUFFIXES, ".xml"}:
                name = Path(name).stem
            if not name:
                continue
            if stem != "trainval" and listed.get(name, part) != part:
                raise UserError(
                    f"--data voc:{root}: {name!r} stands in the lists of {listed[name]} and of {part}. Needed: lists "
                    f"that share no picture. Remove it from one, for example from {_under(root, file)}."
                )
            listed.setdefault(name, part)
    return listed


def _voc_row(root: Path, file: Path, by_stem: dict[str, list[Path]], part: str | None, noticed: Noticed) -> BoxRow:
    place = _under(root, file)
    try:
        if file.stat().st_size > _LARGEST_XML:
            return _unusable(file, part, place, f"is larger than {_LARGEST_XML // 2**20} MB, which no annotation is")
        tree = fromstring(file.read_bytes())
    except DefusedXmlException as error:
        return _unusable(file, part, place, f"is refused: it declares entities, as attacks do ({type(error).__name__})")
    except (OSError, SyntaxError, ValueError, LookupError) as error:  # LookupError: an encoding that does not exist
        return _unusable(file, part, place, f"cannot be read as xml: {first_line(error)}")
    if tree.tag != "annotation":
        return _unusable(file, part, place, f"is no annotation of Pascal VOC: it begins with <{tree.tag[:40]}>")
    picture, problem = _voc_picture(root, file, (tree.findtext("filename") or "").strip(), by_stem, noticed)
    if problem:
        return _unusable(file, part, place, problem)
    boxes, labels, crowds = [], [], []
    for number, thing in enumerate(tree.findall("object"), start=1):
        boxes.append([_number(thing.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")])
        labels.append(thing.findtext("name") or "")
        crowds.append((thing.findtext("difficult") or "").strip() == "1")
        if crowds[-1]:
            noticed["objects marked difficult, set aside like crowds"].append(f"{place}, object {number}")
    size = _size(tree.findtext("size/height"), tree.findtext("size/width"))
    return _row(picture, boxes, labels, part, place, crowds=crowds, size=size)


def _voc_picture(
    root: Path, file: Path, named: str, by_stem: dict[str, list[Path]], noticed: Noticed
) -> tuple[Path | None, str]:
    """Return the picture of an xml, or why there is none.

    The xml's own name comes before <filename>: who renames pictures renames the xml with them, and not its inside.
    """
    name = named.replace("\\", "/").split("/")[-1]
    stem = Path(name).stem
    mine = by_stem.get(file.stem, [])
    if mine and stem != file.stem and stem in by_stem:
        noticed["xml files whose <filename> is another picture: the one with the xml's own name was taken"].append(
            _under(root, file)
        )
    found = mine or by_stem.get(stem, [])
    if not found:
        also = f", and none {name!r}" if name and stem != file.stem else ""
        return None, f"has no picture: none is called {file.stem!r}{also}"
    found = [picture for picture in found if picture.name == name] or found
    # Of several, the nearest: beside the xml, or in a folder that is called like the xml's (images/train/1.jpg).
    folders = set(file.parent.parts)
    near = [len(folders & set(picture.parent.parts)) - (picture.parent != file.parent) for picture in found]
    nearest = [picture for picture, score in zip(found, near, strict=True) if score == max(near)]
    if len(nearest) > 1:
        return None, f"could be of several pictures: {some([_under(root, picture) for picture in nearest])}"
    return nearest[0], ""


# --- COCO -------------------------------------------------------------------------------------------------


def coco_rows(path: Path, noticed: Noticed) -> list[BoxRow]:
    """Read COCO's json: one file, or a folder with a file for each part.

    Names such as `instances_train2017.json`, `train.json` and `train/_annotations.coco.json` tell the part. Pictures
    are looked for beside the json, in `images`, and in folders that are called like the part; a path that leaves the
    folder is cut to its last name. A picture without annotations is an example without objects.

    Args:
        path: of the file or folder.
        noticed: what is told of beside the rows is added here.

    Raises:
        UserError: no such json, or one with ids that stand twice.
    """
    if path.is_file():
        root = path.parent.parent if path.parent.name.lower() == "annotations" else path.parent
        return _coco_file_rows(path, root, None, noticed)
    jsons = [file for file in files_under(path) if file.suffix.lower() == ".json"]
    parts: dict[str | None, list[Path]] = defaultdict(list)
    for file in jsons:
        if re.match("captions_|panoptic_|stuff_|image_info_", file.name):  # other files of COCO, without boxes
            continue
        parts[_part_of_words(file.name) or _part_of_folders(file.relative_to(path))].append(file)
    # COCO's person_keypoints hold the same pictures once more.
    chosen = {part: [f for f in found if f.name.startswith("instances")] or found for part, found in parts.items()}
    if any(chosen):
        others = [_under(path, file) for file in chosen.pop(None, [])]
        noticed["json files that name no part beside those that do, left out"] += others
    if not chosen or any(len(found) > 1 for found in chosen.values()):
        raise UserError(
            f"--data coco:{path} needs one json for each part: instances_train.json, train.json or "
            f"train/_annotations.coco.json, the same for val and test; or one json for all. Found: "
            f"{some([_under(path, file) for file in jsons])}. Or name one: --data coco:FILE.json{_also(path, 'coco')}"
        )
    return [row for part, (file,) in chosen.items() for row in _coco_file_rows(file, path, part, noticed)]


def _coco_file_rows(file: Path, root: Path, part: str | None, noticed: Noticed) -> list[BoxRow]:
    images, annotations, categories = _coco_lists(file)
    names = {key: str(category.get("name") or "") for key, category in _by_id(file, "category", categories).items()}
    by_id = _by_id(file, "image", images)
    by_image: dict[Any, list[dict]] = {key: [] for key in by_id}
    # No own ids is fine, and nothing asks for them; ids that stand twice mean files that were glued together.
    _by_id(file, "annotation", [annotation for annotation in annotations if annotation.get("id") is not None])
    for annotation in annotations:
        image = annotation.get("image_id")
        if not isinstance(image, int | str) or image not in by_image:
            noticed["annotations of pictures that the json does not list"].append(f"{file.name}, image {image!r}")
            continue
        by_image[image].append(annotation)
    used = [annotation.get("category_id") for annotation in annotations]
    used = {category for category in used if isinstance(category, int | str)}
    unused = [f"{file.name}, {name!r}" for key, name in names.items() if key not in used]
    noticed["categories that no annotation is of, no classes"] += unused
    bases = _coco_bases(file.parent, root, part or _part_of_words(file.name))
    return [_coco_row(file, bases, by_id[key], mine, names, part) for key, mine in by_image.items()]


def _coco_row(file: Path, bases: list[Path], image: dict, annotations: list[dict], names: dict, part) -> BoxRow:
    place = f"{file.name}, image {image['id']!r}"
    name = _inside(str(image.get("file_name") or ""))
    if not name.name:
        return _unusable(file, part, place, "has no file_name")
    path = next((base / name for base in bases if (base / name).is_file()), bases[0] / name)
    boxes, labels, crowds = [], [], []
    for annotation in annotations:
        corner = annotation.get("bbox")
        x, y, width, height = map(_number, corner) if isinstance(corner, list) and len(corner) == 4 else [np.nan] * 4
        boxes.append([x, y, x + width, y + height])
        category = annotation.get("category_id")
        labels.append(names.get(category, "") if isinstance(category, int | str) else "")
        crowds.append(bool(annotation.get("iscrowd")))
    size = _size(image.get("height"), image.get("width"))
    return _row(path, boxes, labels, part, place, crowds=crowds, size=size)


def _coco_lists(file: Path) -> tuple[list[dict], list[dict], list[dict]]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--data coco:{file} cannot be read as json: {first_line(error)}.") from error
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) and all(isinstance(one, dict) for one in content[key]) for key in keys
    ):
        found = some(list(content)) if isinstance(content, dict) else type(content).__name__
        raise UserError(
            f"--data coco:{file} is no COCO file of boxes. Needed: an object with the lists images, annotations and "
            f"categories. Found: {found}."
        )
    return tuple(content[key] for key in keys)


def _by_id(file: Path, what: str, entries: list[dict]) -> dict[Any, dict]:
    """Return entries by their ids.

    Raises:
        UserError: an id stands twice, or is none.
    """
    found: dict[Any, dict] = {}
    twice = []
    for entry in entries:
        key = entry.get("id")
        if not isinstance(key, int | str):
            raise UserError(f"--data coco:{file}: the {what} {str(entry)[:100]} has no id. Needed: a whole number.")
        if key in found:
            twice.append(key)
        found[key] = entry
    if twice:
        raise UserError(
            f"--data coco:{file}: {len(twice):,} {what} id(s) stand twice: {some(sorted(set(twice), key=str))}. Each "
            f"needs its own, or boxes would go to the wrong picture. Number them anew where files were joined."
        )
    return found


def _coco_bases(beside: Path, root: Path, part: str | None) -> list[Path]:
    """Return the folders in which pictures may lie: beside the json, then in the folder, `images` and the part's."""
    bases = []
    for base in (beside, root):
        for folder in (base, base / "images"):
            inner = sorted(one for one in folder.iterdir() if one.is_dir()) if part and folder.is_dir() else []
            of_part = [one for one in inner if _part_of_words(one.name) == part]
            bases += [folder, *of_part, *(one / "images" for one in of_part)]
    return list(dict.fromkeys(bases))


# --- a table ----------------------------------------------------------------------------------------------

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
        return _unusable(table, part, place, "has no path")
    sizes = {_size(line.get("height"), line.get("width")) for _, line in lines}
    if len(sizes) > 1:
        return _unusable(table.parent / path, part, place, f"has lines with different sizes: {sorted(map(str, sizes))}")
    lines_of_boxes = [line for _, line in lines if line["label"] or any(line[side] for side in _SIDES)]
    boxes = [[_number(line[side]) for side in _SIDES] for line in lines_of_boxes]
    labels = [line["label"] for line in lines_of_boxes]
    return _row(table.parent / path, boxes, labels, part, place, size=sizes.pop())


# --- YOLO -------------------------------------------------------------------------------------------------


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
    _need_folder("yolo", root)
    names, settings = _yolo_names(root)
    files = files_under(root)
    pictures = [file for file in files if file.suffix.lower() in PICTURE_SUFFIXES]
    parts = _yolo_parts(root, settings, pictures)
    texts = {file for file in files if file.suffix.lower() == ".txt"}
    rows, used = [], set()
    for picture in pictures:
        part = parts.get(picture) if parts else _part_of_folders(picture.relative_to(root))
        place = _under(root, picture)
        if parts and part is None:
            noticed["pictures that data.yaml names in no part, left out"].append(place)
            used.update(_yolo_label_files(root, picture))
            continue
        label = next((file for file in _yolo_label_files(root, picture) if file in texts), None)
        if label is None:
            rows.append(_unusable(picture, part, place, UNLABELLED.format(how="give it an empty text file")))
            continue
        used.add(label)
        rows.append(_yolo_row(root, picture, label, names, "kpt_shape" in settings, part, noticed))
    lost = [file for file in sorted(texts - used) if "labels" in file.relative_to(root).parent.parts]
    noticed["label files without a picture"] += [_under(root, file) for file in lost]
    return rows


def _yolo_names(root: Path) -> tuple[dict[int, str], dict[str, Any]]:
    """Return the name of each class number, and all that stands in data.yaml."""
    import yaml  # here: few users need it

    found = [file for file in sorted(root.iterdir()) if file.suffix.lower() in (".yaml", ".yml")]
    file = next((file for file in found if file.stem.lower() == "data"), found[0] if len(found) == 1 else None)
    if file is None:
        raise UserError(
            f"--data yolo:{root} has no data.yaml, which says how the classes are called. Needed: a line such as "
            f"names: [cat, dog]. Found: {some([one.name for one in sorted(root.iterdir())])}.{_also(root)}"
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
                        f"--data yolo:{root}: {_under(root, target)}, which data.yaml names for {part}, lists no "
                        f"picture of that folder. Its first line: {text.strip().splitlines()[:1]}. Needed: lines that "
                        "end as the paths of pictures under the folder do, or no such entry."
                    )
            else:
                chosen = [picture for picture in pictures if target in picture.parents]
            for picture in chosen:
                if parts.setdefault(picture, part) != part:
                    raise UserError(
                        f"--data yolo:{root}: data.yaml puts {_under(root, picture)} into {parts[picture]} and into "
                        f"{part}. Needed: parts that share no picture, or validation measures what was learnt."
                    )
    return parts


def _yolo_target(root: Path, path: Any, entry: Any) -> Path | None:
    """Return the folder or list that data.yaml means, as it lies under the root, or None.

    Many files say ../train/images though train lies beside them, and `path` is that of another machine.
    """
    if not isinstance(entry, str) or not _inside(entry).name:
        return None
    bases = [root, root / _inside(path)] if isinstance(path, str) else [root]
    return next((base / _inside(entry) for base in bases if (base / _inside(entry)).exists()), None)


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
    place = _under(root, label)
    try:
        lines = label.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return _unusable(picture, part, place, f"has a label file that cannot be read: {first_line(error)}")
    boxes, labels = [], []
    for number, line in enumerate(lines, start=1):
        cells = line.split()
        if not cells:
            continue
        values = [_number(cell) for cell in cells]
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
    return _row(picture, boxes, labels, part, place, relative=True)


# --- TensorFlow Datasets and the demo ---------------------------------------------------------------------


def tfds_rows(name: str, folder: Path, noticed: Noticed) -> list[BoxRow]:
    """Write the pictures of a TensorFlow data set into a folder, as the files they are, and list them with their boxes.

    A split without any box is left out: COCO and VOC keep the boxes of their test part to themselves.

    Raises:
        UserError: it cannot be loaded, or has no image with boxes and labels.
    """
    builder = prepared_builder(name)
    import tensorflow_datasets as tfds  # here: installed, as there is a builder, and it takes seconds to import

    features, parts = builder.info.features, {s: PART_OF_NAME.get(s.lower()) for s in builder.info.splits}
    objects = next((key for key, feature in features.items() if _holds_boxes(tfds, feature)), None)
    if "image" not in features or objects is None:
        raise UserError(
            f"--data tfds:{name} has no image with a list of bbox (ymin, xmin, ymax, xmax, in shares of the picture) "
            f"and label. Received: {features}."
        )
    if not any(parts.values()):
        raise UserError(f"--data tfds:{name} has no split named train, validation or test. Received: {list(parts)}.")
    folder = folder / builder.info.full_name  # so that another data set in the same run folder is not taken for this
    inner = features[objects].feature
    rows = []
    decoders = {"image": tfds.decode.SkipDecoding()}  # the file's own bytes are what serving will see
    for split, part in parts.items():
        if part is None:
            continue
        examples = builder.as_dataset(split=split, decoders=decoders)
        if not any(len(example[objects]["bbox"]) for example in examples.as_numpy_iterator()):
            noticed["splits without any box, left out"].append(split)
            continue
        for index, example in enumerate(examples.as_numpy_iterator()):
            path = folder / split / f"{index:07d}.img"
            write_picture(path, example["image"])
            found = example[objects]
            labels = [inner["label"].int2str(int(label)) if label >= 0 else "" for label in found["label"]]
            crowds = found.get("is_crowd", found.get("is_difficult", np.zeros(len(labels), bool)))
            boxes = found["bbox"].reshape(-1, 4)[:, [1, 0, 3, 2]]
            rows.append(_row(path, boxes, labels, part, f"{split}:{index}", crowds=map(bool, crowds), relative=True))
    return rows


def _holds_boxes(tfds, feature) -> bool:
    """Return whether a feature is a list of boxes with class labels, in the corners that TensorFlow Datasets agreed."""
    inner = getattr(feature, "feature", None)
    if not isinstance(inner, tfds.features.FeaturesDict) or not {"bbox", "label"} <= set(inner):
        return False
    usual = tfds.features.BBoxFeature().bbox_format
    return getattr(inner["bbox"], "bbox_format", None) == usual and isinstance(inner["label"], tfds.features.ClassLabel)


def demo_rows(folder: Path) -> list[BoxRow]:
    """Draw the scenes with handwritten digits into a folder, and list them with their boxes."""
    return [
        _row(scene.path, scene.boxes, scene.labels, scene.part, f"{scene.part}/{Path(scene.path).name}")
        for scene in write_scenes(folder / "scenes")
    ]


# --- shared -----------------------------------------------------------------------------------------------


def _under(root: Path, file: Path) -> str:
    return file.relative_to(root).as_posix()


def _inside(text: str) -> Path:
    """Return a path that cannot leave the folder that it is joined to; of an absolute one only the last name stays."""
    pieces = [piece for piece in text.strip().replace("\\", "/").split("/") if piece not in (".", "..")]
    return Path(pieces[-1] if pieces[0] == "" or pieces[0].endswith(":") else "/".join(pieces)) if pieces else Path()


def _part_of_words(name: str) -> str | None:
    """Return the part that a name such as instances_train2017.json speaks of, if it is one."""
    parts = {PART_OF_NAME[word] for word in re.split(r"[^a-z]+", name.lower()) if word in PART_OF_NAME}
    return parts.pop() if len(parts) == 1 else None


def _part_of_folders(file: Path) -> str | None:
    """Return the part after which a folder of the path is called."""
    return next((PART_OF_NAME[name.lower()] for name in file.parent.parts if name.lower() in PART_OF_NAME), None)


def _number(text: Any) -> float:
    """Return a number, or NaN where there is none."""
    try:
        return float(text)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def _size(height: Any, width: Any) -> tuple[int, int] | None:
    """Return a size in pixels, or None where none is stated: some tools write 0."""
    sides = [_number(height), _number(width)]
    return tuple(int(side) for side in sides) if all(1 <= side < 2**31 for side in sides) else None


def _need_folder(kind: str, path: Path) -> None:
    if not path.is_dir():
        raise UserError(f"--data {kind}: needs a folder, and this is a file: {str(path)!r}.{_also(path, kind)}")


def _also(path: Path, but: str = "") -> str:
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
