"""Boxes in Pascal VOC XML."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

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
    size_of,
    suggest_kind,
    unusable_row,
)
from common.errors import UserError, first_line
from common.images.files import IMAGE_SUFFIXES

# The XML of a scene with 1,000 objects has 0.3 MB; a larger file is not an annotation.
_LARGEST_XML = 20 * 2**20

_MASKS = ("SegmentationClass", "SegmentationObject")  # folders of VOC with images of the same names


def voc_rows(root: Path, noticed: Noticed) -> list[BoxRow]:
    """Read Pascal VOC's XML files and images, anywhere under a folder.

    Supported are the layout of VOC (Annotations, JPEGImages, ImageSets/Main), XML beside images, and train, valid and
    test folders. An image belongs to the XML file of the same name, or to the one that names it in <filename>; only
    images under the folder are used, whatever paths an XML file contains. Coordinates are used as written: the first
    pixel is 0 (in the VOC challenge itself it was 1). An object marked `difficult` is treated like a crowd, as in
    VOC's own evaluation.

    Args:
        root: the folder.
        noticed: notes for the user are added here.

    Raises:
        UserError: no XML files, or contradictory lists of splits.
    """
    need_folder("voc", root)
    files = [file for file in files_under(root) if file.parent.name not in _MASKS]
    annotations = [file for file in files if file.suffix.lower() == ".xml"]
    if not annotations:
        raise UserError(
            f"--data voc:{root} holds no .xml file. Required: one per image, beside it or in a folder "
            f"Annotations.{suggest_kind(root)}"
        )
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        by_stem[image.stem].append(image)
    stems, listed = {file.stem for file in annotations}, _voc_lists(root, files)
    if listed:
        unlisted = [path_under(root, file) for file in annotations if file.stem not in listed]
        noticed["XML files in no list of a split, skipped"] += unlisted
        noticed["names in the list of a split without an XML file, skipped"] += sorted(set(listed) - stems)
        annotations = [file for file in annotations if file.stem in listed]
    rows = []
    for file in annotations:
        split = listed[file.stem] if listed else split_of_folders(file.relative_to(root))
        rows.append(_voc_row(root, file, by_stem, split, noticed))
    used = {row.path for row in rows}
    how = UNLABELLED.format(how="give it an XML file without objects")
    lonely = [file for file in images if str(file) not in used and file.stem not in stems]
    return rows + [unusable_row(file, None, path_under(root, file), how) for file in lonely]


def _voc_lists(root: Path, files: Sequence[Path]) -> dict[str, str]:
    """Return the split of each name in ImageSets/Main/train.txt and the like, or in such lists in the root folder."""
    names = ("train.txt", "val.txt", "valid.txt", "test.txt", "trainval.txt")
    lists = [file for file in files if file.name.lower() in names]
    here = [file for file in lists if file.parent in (root, root / "ImageSets")]
    lists = [file for file in lists if file.parent.name == "Main"] or here
    listed: dict[str, str] = {}
    # trainval last: names in train or val keep their split, the others belong to train.
    for file in sorted(lists, key=lambda file: (file.stem.lower() == "trainval", file)):
        stem = file.stem.lower()
        split = "train" if stem == "trainval" else SPLIT_OF_NAME[stem]
        for line in file.read_text("utf-8-sig", errors="replace").splitlines():
            name = inside_folder(line).name
            if Path(name).suffix.lower() in {*IMAGE_SUFFIXES, ".xml"}:
                name = Path(name).stem
            if not name:
                continue
            if stem != "trainval" and listed.get(name, split) != split:
                raise UserError(
                    f"--data voc:{root}: {name!r} is in the lists of {listed[name]} and of {split}. Required: disjoint "
                    f"lists. Remove it from one, for example from {path_under(root, file)}."
                )
            listed.setdefault(name, split)
    return listed


def _voc_row(root: Path, file: Path, by_stem: dict[str, list[Path]], split: str | None, noticed: Noticed) -> BoxRow:
    place = path_under(root, file)
    try:
        if file.stat().st_size > _LARGEST_XML:
            return unusable_row(file, split, place, f"is larger than {_LARGEST_XML // 2**20} MB: not an annotation")
        tree = fromstring(file.read_bytes())
    except DefusedXmlException as error:
        return unusable_row(
            file, split, place, f"is refused: it declares entities, a security risk ({type(error).__name__})"
        )
    except (OSError, SyntaxError, ValueError, LookupError) as error:  # LookupError: unknown encoding
        return unusable_row(file, split, place, f"cannot be read as XML: {first_line(error)}")
    if tree.tag != "annotation":
        return unusable_row(file, split, place, f"is not a Pascal VOC annotation: it begins with <{tree.tag[:40]}>")
    image, problem = _voc_image(root, file, (tree.findtext("filename") or "").strip(), by_stem, noticed)
    if problem:
        return unusable_row(file, split, place, problem)
    boxes, labels, crowds = [], [], []
    for number, element in enumerate(tree.findall("object"), start=1):
        boxes.append([number_of(element.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")])
        labels.append(element.findtext("name") or "")
        crowds.append((element.findtext("difficult") or "").strip() == "1")
        if crowds[-1]:
            noticed["objects marked difficult, ignored like crowds"].append(f"{place}, object {number}")
    size = size_of(tree.findtext("size/height"), tree.findtext("size/width"))
    return box_row(image, boxes, labels, split, place, crowds=crowds, size=size)


def _voc_image(
    root: Path, file: Path, named: str, by_stem: dict[str, list[Path]], noticed: Noticed
) -> tuple[Path | None, str]:
    """Return the image of an XML file, or why there is none.

    The name of the XML file has priority over <filename>, which often stays when both files are renamed.
    """
    name = named.replace("\\", "/").split("/")[-1]
    stem = Path(name).stem
    mine = by_stem.get(file.stem, [])
    if mine and stem != file.stem and stem in by_stem:
        noticed["XML files whose <filename> is another image: the image named like the XML file was used"].append(
            path_under(root, file)
        )
    found = mine or by_stem.get(stem, [])
    if not found:
        also = f" or {name!r}" if name and stem != file.stem else ""
        return None, f"has no image: none is named {file.stem!r}{also}"
    found = [image for image in found if image.name == name] or found
    # Of several, the nearest: beside the XML, or in a folder of the same name (images/train/1.jpg).
    folders = set(file.parent.parts)
    near = [len(folders & set(image.parent.parts)) - (image.parent != file.parent) for image in found]
    nearest = [image for image, score in zip(found, near, strict=True) if score == max(near)]
    if len(nearest) > 1:
        return None, f"matches several images: {some([path_under(root, image) for image in nearest])}"
    return nearest[0], ""
