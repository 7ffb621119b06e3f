"""Boxes in Pascal VOC xml."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

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
    size_of,
    suggest_kind,
    unusable_row,
)
from common.errors import UserError, first_line
from common.images.files import PICTURE_SUFFIXES

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
    need_folder("voc", root)
    files = [file for file in files_under(root) if file.parent.name not in _MASKS]
    annotations = [file for file in files if file.suffix.lower() == ".xml"]
    if not annotations:
        raise UserError(
            f"--data voc:{root} holds no .xml file. Needed: one for each picture, beside it or in a folder "
            f"Annotations.{suggest_kind(root)}"
        )
    pictures = [file for file in files if file.suffix.lower() in PICTURE_SUFFIXES]
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for picture in pictures:
        by_stem[picture.stem].append(picture)
    stems, listed = {file.stem for file in annotations}, _voc_lists(root, files)
    if listed:
        unlisted = [path_under(root, file) for file in annotations if file.stem not in listed]
        noticed["xml files that no list of parts names, left out"] += unlisted
        noticed["names in a list of parts that have no xml"] += sorted(set(listed) - stems)
        annotations = [file for file in annotations if file.stem in listed]
    rows = []
    for file in annotations:
        part = listed[file.stem] if listed else part_of_folders(file.relative_to(root))
        rows.append(_voc_row(root, file, by_stem, part, noticed))
    used = {row.path for row in rows}
    how = UNLABELLED.format(how="give it an xml without objects")
    lonely = [file for file in pictures if str(file) not in used and file.stem not in stems]
    return rows + [unusable_row(file, None, path_under(root, file), how) for file in lonely]


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
            name = inside_folder(line).name
            if Path(name).suffix.lower() in {*PICTURE_SUFFIXES, ".xml"}:
                name = Path(name).stem
            if not name:
                continue
            if stem != "trainval" and listed.get(name, part) != part:
                raise UserError(
                    f"--data voc:{root}: {name!r} stands in the lists of {listed[name]} and of {part}. Needed: lists "
                    f"that share no picture. Remove it from one, for example from {path_under(root, file)}."
                )
            listed.setdefault(name, part)
    return listed


def _voc_row(root: Path, file: Path, by_stem: dict[str, list[Path]], part: str | None, noticed: Noticed) -> BoxRow:
    place = path_under(root, file)
    try:
        if file.stat().st_size > _LARGEST_XML:
            return unusable_row(file, part, place, f"is larger than {_LARGEST_XML // 2**20} MB, which no annotation is")
        tree = fromstring(file.read_bytes())
    except DefusedXmlException as error:
        return unusable_row(
            file, part, place, f"is refused: it declares entities, as attacks do ({type(error).__name__})"
        )
    except (OSError, SyntaxError, ValueError, LookupError) as error:  # LookupError: an encoding that does not exist
        return unusable_row(file, part, place, f"cannot be read as xml: {first_line(error)}")
    if tree.tag != "annotation":
        return unusable_row(file, part, place, f"is no annotation of Pascal VOC: it begins with <{tree.tag[:40]}>")
    picture, problem = _voc_picture(root, file, (tree.findtext("filename") or "").strip(), by_stem, noticed)
    if problem:
        return unusable_row(file, part, place, problem)
    boxes, labels, crowds = [], [], []
    for number, thing in enumerate(tree.findall("object"), start=1):
        boxes.append([number_of(thing.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")])
        labels.append(thing.findtext("name") or "")
        crowds.append((thing.findtext("difficult") or "").strip() == "1")
        if crowds[-1]:
            noticed["objects marked difficult, set aside like crowds"].append(f"{place}, object {number}")
    size = size_of(tree.findtext("size/height"), tree.findtext("size/width"))
    return box_row(picture, boxes, labels, part, place, crowds=crowds, size=size)


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
            path_under(root, file)
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
        return None, f"could be of several pictures: {some([path_under(root, picture) for picture in nearest])}"
    return nearest[0], ""
