"""Data sets of images with bounding boxes: Pascal VOC, COCO, a table, YOLO, TensorFlow Datasets or the demos.

Boxes are in pixels of the image as displayed, rotated by its EXIF orientation, because labelling tools display images
like that. TensorFlow's decoders ignore the orientation. So `orientations` is kept for loaders that rotate the pixels,
and `BoxExamples.as_stored` returns the boxes in the pixels that TensorFlow decodes, for loaders that do not.

The size in the annotation of a rotated photo tells how it was labelled: if it is that of the stored pixels, the
labelling tool ignored the orientation, and the boxes are rotated. Without a size, or where both sizes are equal
(upside down, square), boxes are assumed to be drawn on the displayed image. All three cases are counted in the notes.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.data import splits
from common.data.folders import printable
from common.data.splits import SPLITS, assign_splits, some, untested_classes
from common.detection.checks import (
    CUT,
    FAULTS,
    OUTSIDE,
    UNDOES_TURN,
    Header,
    image_problems,
    read_headers,
    refuse_the_wrong_unit,
    turn_boxes,
    with_usable_boxes,
)
from common.detection.readers.coco import coco_rows
from common.detection.readers.rows import BoxRow, Noticed, parse_boxes
from common.detection.readers.table import csv_rows
from common.detection.readers.tfds import scene_rows, tfds_rows
from common.detection.readers.voc import voc_rows
from common.detection.readers.yolo import yolo_rows
from common.errors import UserError, did_you_mean

DEMO = Path(__file__).with_name("demo_cells") / "boxes.csv"  # benchmarks/demos.py wrote it
_NOT_WANTED = "boxes of classes not in --class-names, left out: they count as background"


@dataclass(frozen=True)
class BoxExamples:
    """The images of one split and their boxes.

    Attributes:
        paths: file of each image, str, object [n].
        boxes: xmin, ymin, xmax, ymax in pixels of each image as displayed (see the module), n arrays of float32
            [k, 4]; 0 <= min < max <= width or height. An image without objects has k = 0.
        labels: class number of each box, n arrays of int64 [k].
        crowds: whether a box stands for a group or a difficult object, n arrays of bool [k]: training ignores it, and
            so does evaluation, with all detections in it.
        sizes: height and width of each image as displayed, in pixels, int64 [n, 2].
        orientations: EXIF orientation of each image, int64 [n]: 1 is upright, 2 to 8 are the rotations and
            reflections from the stored to the displayed image.
    """

    paths: np.ndarray
    boxes: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]
    crowds: tuple[np.ndarray, ...]
    sizes: np.ndarray
    orientations: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, places: np.ndarray) -> BoxExamples:
        """Return the images with these indices."""
        boxes, labels, crowds = (
            tuple(values[place] for place in places) for values in (self.boxes, self.labels, self.crowds)
        )
        return BoxExamples(self.paths[places], boxes, labels, crowds, self.sizes[places], self.orientations[places])

    def as_stored(self) -> BoxExamples:
        """Return the examples with boxes and sizes in stored pixels, which TensorFlow decodes."""
        back = [UNDOES_TURN.get(int(orientation), int(orientation)) for orientation in self.orientations]
        boxes = tuple(
            turn_boxes(one, tuple(size), turn) for one, size, turn in zip(self.boxes, self.sizes, back, strict=True)
        )
        lying = (self.orientations >= 5)[:, None]
        sizes = np.where(lying, self.sizes[:, ::-1], self.sizes)
        return replace(self, boxes=boxes, sizes=sizes, orientations=np.ones_like(self.orientations))


@dataclass(frozen=True)
class Note:
    """A note made while reading: what, how often, and where first."""

    reason: str
    count: int
    first: str

    def __str__(self) -> str:
        return f"{self.count:,} {self.reason}. First: {self.first}."


@dataclass(frozen=True)
class BoxSet:
    """A data set of images with boxes, split and checked.

    Attributes:
        name: the value of --data.
        class_names: name of each class number, sorted.
        train: the train split.
        val: the val split; every choice is based on it.
        test: the test split, used once, at the end.
        skipped: (file, reason) of every skipped image.
        notes: notes on boxes and annotations.
        mirrors: whether a mirrored image shows the same classes (not for digits and letters).
    """

    name: str
    class_names: tuple[str, ...]
    train: BoxExamples
    val: BoxExamples
    test: BoxExamples
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[Note, ...] = ()
    mirrors: bool = True

    counts = splits.count_examples

    def box_counts(self) -> dict[str, dict[str, int]]:
        """Return the number of boxes per split and class, without crowds."""
        return {
            split: dict(zip(self.class_names, _per_class(getattr(self, split), len(self.class_names)), strict=True))
            for split in SPLITS
        }

    def advice(self) -> tuple[str, ...]:
        """Return sentences on properties of the data that affect the interpretation of the result."""
        tested = np.flatnonzero(_per_class(self.test, len(self.class_names)))
        sentences = list(untested_classes(self.class_names, tested, "image"))
        sentences += map(str, self.notes)
        drawn = [one for split in SPLITS for one in getattr(self, split).boxes if len(one)]
        boxes, farthest = sum(map(len, drawn)), max((float(one.max()) for one in drawn), default=np.inf)
        if farthest <= 100 and np.median(self.train.sizes) > 200:
            sentences.append(
                f"No box extends beyond {farthest:.6g}, and the images are larger. If the boxes are in percent of "
                "width and height, convert them: they are used as pixels."
            )
        reaching = sum(note.count for note in self.notes if note.reason in (CUT, OUTSIDE))
        if reaching > 0.1 * boxes:
            sentences.append(
                f"{reaching:,} boxes extend beyond their images, and {boxes:,} are used. Check the order of the "
                "numbers (COCO: x, y, width, height) and whether these are the images that were labelled."
            )
        return tuple(sentences)

    def fingerprint(self) -> str:
        """Return a hash of paths, file sizes, times, boxes and labels: equal for equal data sets."""
        digest = hashlib.sha256()
        for split in SPLITS:
            examples = getattr(self, split)
            for place, path in enumerate(examples.paths):
                status = os.stat(path)
                digest.update(f"{split}\0{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
                for values in (examples.boxes, examples.labels, examples.crowds):
                    digest.update(values[place].tobytes() + b"\n")
        return digest.hexdigest()[:16]


def load_box_set(
    data: str,
    out: Path,
    *,
    limit: int | None = None,
    strict: bool = False,
    class_names: Sequence[str] | None = None,
    val_share: float = splits.VALIDATION_SHARE,
) -> BoxSet:
    """Read a data set, check every image and every box, and split it.

    Labels that differ only in case or spaces are one class. Every change is reported: unusable boxes are skipped, boxes
    that extend beyond an edge are clipped, and both are counted in `notes`. An image is skipped if its annotation
    states a different size, as its boxes would not match the objects. Of exact copies in
    several splits, the one in test is kept before that in val, and that in val before that in train.

    Args:
        data: `demo`, `demo:scenes`, `voc:FOLDER`, `coco:FILE` or `coco:FOLDER`, `csv:TABLE`, `yolo:FOLDER` or
            `tfds:NAME`; see `common.detection.readers` for the layouts.
        out: the run folder; `demo:scenes` and `tfds` write their images into it.
        limit: use at most this many images of each split.
        strict: raise an error for an unusable image or box instead of counting it.
        class_names: use the boxes of these classes only.
        val_share: fraction of the train split that becomes the val split where none is given.

    Returns:
        The BoxSet.

    Raises:
        UserError: nothing readable, a split without boxes, a class without training boxes, boxes in the wrong unit, an
            unknown class name, or an invalid annotation file.
    """
    kind, value = parse_boxes(data)
    path, noticed = Path(value).expanduser(), defaultdict(list)
    rows = {
        "demo": lambda: scene_rows(out / "data") if value else csv_rows(DEMO, noticed),
        "voc": lambda: voc_rows(path, noticed),
        "coco": lambda: coco_rows(path, noticed),
        "csv": lambda: csv_rows(path, noticed),
        "yolo": lambda: yolo_rows(path, noticed),
        "tfds": lambda: tfds_rows(value, out / "data", noticed),
    }[kind]()
    if not rows:
        raise UserError(f"--data {data!r} lists no images.")
    refuse_the_wrong_unit(data, rows)
    rows = _with_chosen_classes(data, _with_one_spelling(rows, noticed), class_names, noticed)
    headers = read_headers(rows)
    problems = image_problems(rows, headers, noticed)
    skipped = [(printable(row.path), why) for row, why in zip(rows, problems, strict=True) if why]
    skips = f"{len(skipped)} image(s) skipped"
    skips += f"; first: {skipped[0][0]}: {skipped[0][1]}." if skipped else "."
    headers = [header for header, why in zip(headers, problems, strict=True) if not why]
    rows = [row for row, why in zip(rows, problems, strict=True) if not why]
    if not rows:
        raise UserError(f"--data {data!r} has no usable image. {skips}")
    rows = [with_usable_boxes(row, header, noticed) for row, header in zip(rows, headers, strict=True)]
    notes = tuple(Note(why, len(places), places[0]) for why, places in noticed.items() if places)
    if strict:
        _refuse_faults(skipped, notes)
    everything, names = _as_examples(rows, headers)
    if not names:
        raise UserError(f"--data {data!r} has no usable box. {' '.join([skips, *map(str, notes)])}")
    indices, copies = _split(data, everything, len(names), rows, headers, limit, val_share)
    skipped += [(printable(rows[place].path), why) for place, why in copies.items()]
    by_split = {split: everything.take(places) for split, places in indices.items()}
    loaded = BoxSet(data, names, **by_split, skipped=tuple(skipped), notes=notes, mirrors=data != "demo:scenes")
    _refuse_unusable(loaded, limit, skips)
    return loaded


def _folded(label: str) -> str:
    return " ".join(label.split()).casefold()


def _with_one_spelling(rows: list[BoxRow], noticed: Noticed) -> list[BoxRow]:
    """Replace labels that differ only in case or spaces by their most common spelling."""
    spellings: dict[str, Counter] = defaultdict(Counter)
    for row in rows:
        for label in row.labels:
            spellings[_folded(label)][" ".join(label.split())] += 1
    chosen = {folded: max(sorted(found), key=found.get) for folded, found in spellings.items()}
    for row in rows:
        for label in row.labels:
            mine, usual = " ".join(label.split()), chosen[_folded(label)]
            if mine != usual:
                noticed[f"labels {mine!r}, which differ only in case and count as {usual!r}"].append(row.place)
    return [replace(row, labels=tuple(chosen[_folded(label)] for label in row.labels)) for row in rows]


def _with_chosen_classes(
    data: str, rows: list[BoxRow], class_names: Sequence[str] | None, noticed: Noticed
) -> list[BoxRow]:
    """Leave out the boxes of other classes.

    Raises:
        UserError: no box has such a class.
    """
    if class_names is None:
        return rows
    found = {_folded(label): label for row in rows for label in row.labels if label}
    for name in class_names:
        if _folded(name) not in found:
            raise UserError(
                f"--class-names must be classes of --data {data!r}. Allowed: {some(sorted(found.values()))}. "
                f"Received: {name!r}.{did_you_mean(name, found.values())}"
            )
    chosen = {found[_folded(name)] for name in class_names}
    kept_rows = []
    for row in rows:
        keep = [place for place, label in enumerate(row.labels) if not label or label in chosen]
        for label in row.labels:
            if label and label not in chosen:
                noticed[_NOT_WANTED].append(f"{row.place} ({label})")
        labels, crowds = (tuple(values[place] for place in keep) for values in (row.labels, row.crowds))
        kept_rows.append(replace(row, boxes=row.boxes[keep], labels=labels, crowds=crowds))
    return kept_rows


def _as_examples(rows: Sequence[BoxRow], headers: Sequence[Header]) -> tuple[BoxExamples, tuple[str, ...]]:
    """Return all images with class numbers, and the class names."""
    names = tuple(sorted({label for row in rows for label in row.labels}))
    numbers = {name: number for number, name in enumerate(names)}
    examples = BoxExamples(
        np.array([row.path for row in rows], dtype=object),
        tuple(row.boxes for row in rows),
        tuple(np.array([numbers[label] for label in row.labels], dtype=np.int64) for row in rows),
        tuple(np.array(row.crowds, dtype=bool) for row in rows),
        np.array([header.displayed for header in headers], dtype=np.int64),
        np.array([header.orientation for header in headers], dtype=np.int64),
    )
    return examples, names


# --- splits -----------------------------------------------------------------------------------------------


def _split(
    data: str,
    examples: BoxExamples,
    classes: int,
    rows: Sequence[BoxRow],
    headers: Sequence[Header],
    limit: int | None,
    val_share: float,
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """Return the images of each split, and the reason for each copy left out."""
    strata, contents = _rarest_classes(examples, classes), [header.content for header in headers]
    assigned = assign_splits(data, [row.split for row in rows], contents, strata, val_share)
    leaves = splits.drop_copies_across_splits(assigned, contents)
    copies = {
        int(place): f"exact copy of an image in another split; removed from {assigned[place]}"
        for place in np.flatnonzero(leaves)
    }
    indices = {split: np.flatnonzero((assigned == split) & ~leaves) for split in SPLITS}
    if limit:
        indices = {split: places[splits.limit_per_class(strata[places], limit)] for split, places in indices.items()}
    return indices, copies


def _rarest_classes(examples: BoxExamples, classes: int) -> np.ndarray:
    """Return the rarest class in each image, int64 [n]; `classes` where it has none.

    Stratified by it, every split has rare classes and images without objects.
    """
    per_class = _per_class(examples, classes)
    return np.array(
        [
            min(set(labels[~crowds].tolist()), key=lambda label: (per_class[label], label), default=classes)
            for labels, crowds in zip(examples.labels, examples.crowds, strict=True)
        ],
        dtype=np.int64,
    )


def _per_class(examples: BoxExamples, classes: int) -> list[int]:
    """Return the number of boxes per class, without crowds."""
    found = [labels[~crowds] for labels, crowds in zip(examples.labels, examples.crowds, strict=True)]
    return np.bincount(np.concatenate([*found, np.zeros(0, np.int64)]), minlength=classes).tolist()


# --- refused data sets ------------------------------------------------------------------------------------


def _refuse_faults(skipped: list[tuple[str, str]], notes: Sequence[Note]) -> None:
    if skipped:
        path, why = skipped[0]
        raise UserError(f"--strict: {len(skipped)} image(s) cannot be used; first: {path}: {why}")
    if faults := [str(note) for note in notes if note.reason in FAULTS]:
        raise UserError(f"--strict: {' '.join(faults)} Without --strict they are skipped and counted.")


def _refuse_unusable(loaded: BoxSet, limit: int | None, skips: str) -> None:
    counts = loaded.box_counts()
    for split, found in counts.items():
        if not sum(found.values()):
            images = len(getattr(loaded, split))
            raise UserError(
                f"--data {loaded.name!r} has no boxes in the {split} split ({images} image(s)). Required: images "
                f"with objects in train, val and test; crowds and difficult objects do not count. {skips}"
            )
    if missing := [name for name, count in counts["train"].items() if not count]:
        usable = shlex.join(name for name, count in counts["train"].items() if count)
        advice = f" --limit {limit} may be too small for {len(loaded.class_names)} classes." if limit else ""
        raise UserError(
            f"--data {loaded.name!r} has no training box for {some(missing)}. Required: one per class.{advice} "
            f"Move images into the train split, or try: --class-names {usable}. {skips}"
        )
