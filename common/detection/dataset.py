"""Pictures with boxes from Pascal VOC, COCO, a table, YOLO, TensorFlow Datasets or the demo scenes.

Which pixels a box is measured in: those of the picture as it is shown, with the camera's note to turn it (EXIF)
followed, because that is what people draw boxes on. TensorFlow's decoders ignore the note. So each picture has its
`orientations` number, for a loader that turns the pixels, and `BoxExamples.as_stored` gives the same boxes in the
pixels that TensorFlow decodes, for a loader that does not.

How a turned photo was labelled is told by the size that its annotation states: that of the stored pixels means that the
labelling tool ignored the note, and the boxes are turned. Without a stated size, or where both sizes are the same
(upside down, square), boxes are taken as drawn on the picture as it is shown. All three are counted in the notes.
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
from common.data.splits import PARTS, assign_parts, some, untested_classes
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
from common.detection.readers.rows import BoxRow, Noticed, guess_kind
from common.detection.readers.table import csv_rows
from common.detection.readers.tfds import demo_rows, tfds_rows
from common.detection.readers.voc import voc_rows
from common.detection.readers.yolo import yolo_rows
from common.errors import UserError, did_you_mean
from common.flags import parse_data

DATA_KINDS = ("demo", "voc", "coco", "csv", "yolo", "tfds")

_NOT_WANTED = "boxes of classes that --class-names leaves out: what they hold counts as background"


@dataclass(frozen=True)
class BoxExamples:
    """The pictures of one part and the boxes in them.

    Attributes:
        paths: file of each picture, str, object [n].
        boxes: xmin, ymin, xmax, ymax in pixels of each picture as it is shown (see the module), n arrays of
            float32 [k, 4]; 0 <= min < max <= width or height. A picture without objects has k = 0.
        labels: class number of each box, n arrays of int64 [k].
        crowds: whether a box stands for a group or for something too hard to judge, n arrays of bool [k]: training
            does not learn from such a box, and evaluation neither asks for it nor punishes what is found in it.
        sizes: height and width of each picture as it is shown, in pixels, int64 [n, 2].
        orientations: the camera's note (EXIF) on each picture, int64 [n]: 1 is upright, 2 to 8 are the ways in
            which the stored pixels are to be turned and mirrored to be as shown.
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
        """Return some of the pictures."""
        boxes, labels, crowds = (
            tuple(values[place] for place in places) for values in (self.boxes, self.labels, self.crowds)
        )
        return BoxExamples(self.paths[places], boxes, labels, crowds, self.sizes[places], self.orientations[places])

    def as_stored(self) -> BoxExamples:
        """Return the same with boxes and sizes in the pixels as stored, which is what TensorFlow decodes."""
        back = [UNDOES_TURN.get(int(orientation), int(orientation)) for orientation in self.orientations]
        boxes = tuple(
            turn_boxes(one, tuple(size), turn) for one, size, turn in zip(self.boxes, self.sizes, back, strict=True)
        )
        lying = (self.orientations >= 5)[:, None]
        sizes = np.where(lying, self.sizes[:, ::-1], self.sizes)
        return replace(self, boxes=boxes, sizes=sizes, orientations=np.ones_like(self.orientations))


@dataclass(frozen=True)
class Note:
    """Something that was noticed while reading: what, how often, and where first."""

    reason: str
    count: int
    first: str

    def __str__(self) -> str:
        return f"{self.count:,} {self.reason}. The first: {self.first}."


@dataclass(frozen=True)
class BoxSet:
    """A set of pictures with boxes, split and checked.

    Attributes:
        name: what the user asked for.
        class_names: name of each class number, sorted.
        train: what is trained on.
        val: what every choice is made on.
        test: what is read once, at the end.
        skipped: (file, reason) of every picture left out.
        notes: what was noticed of boxes and annotations.
        mirrors: whether a mirrored picture still shows the same classes (not so for digits and letters).
    """

    name: str
    class_names: tuple[str, ...]
    train: BoxExamples
    val: BoxExamples
    test: BoxExamples
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[Note, ...] = ()
    mirrors: bool = True

    def counts(self) -> dict[str, int]:
        """Return the number of pictures in each part and of those left out."""
        return {part: len(getattr(self, part)) for part in PARTS} | {"skipped": len(self.skipped)}

    def box_counts(self) -> dict[str, dict[str, int]]:
        """Return the number of boxes of each class in each part; crowds are no boxes."""
        return {
            part: dict(zip(self.class_names, _per_class(getattr(self, part), len(self.class_names)), strict=True))
            for part in PARTS
        }

    def advice(self) -> tuple[str, ...]:
        """Return what somebody who reads the result should know of these boxes, in sentences."""
        tested = np.flatnonzero(_per_class(self.test, len(self.class_names)))
        sentences = list(untested_classes(self.class_names, tested, "picture"))
        sentences += map(str, self.notes)
        drawn = [one for part in PARTS for one in getattr(self, part).boxes if len(one)]
        boxes, farthest = sum(map(len, drawn)), max((float(one.max()) for one in drawn), default=np.inf)
        if farthest <= 100 and np.median(self.train.sizes) > 200:
            sentences.append(
                f"No box reaches beyond {farthest:.6g}, and the pictures are larger. If the boxes are in percent of "
                "width and height, multiply them: they are taken as pixels."
            )
        reaching = sum(note.count for note in self.notes if note.reason in (CUT, OUTSIDE))
        if reaching > 0.1 * boxes:
            sentences.append(
                f"{reaching:,} boxes reach out of their pictures, and {boxes:,} are used. Are the numbers in the order "
                "that the format wants (COCO: x, y, width, height), and the pictures those that were labelled?"
            )
        return tuple(sentences)

    def fingerprint(self) -> str:
        """Return a hash of paths, file sizes, times, boxes and labels: the same set gives the same text."""
        digest = hashlib.sha256()
        for part in PARTS:
            examples = getattr(self, part)
            for place, path in enumerate(examples.paths):
                status = os.stat(path)
                digest.update(f"{part}\0{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
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
    """Read a data set, check every picture and every box, and split it.

    Labels that differ in case or spaces only are one class. Nothing is changed in silence: boxes that cannot be used
    are left out, those that reach over an edge are cut there, and each such thing is counted in `notes`. A picture
    whose stated size is another one than its own is left out, for its boxes would lie beside the objects. Exact copies
    of a picture across parts leave the lower part.

    Args:
        data: `demo`, `voc:FOLDER`, `coco:FILE` or `coco:FOLDER`, `csv:TABLE`, `yolo:FOLDER` or `tfds:NAME`; see
            `box_rows` for the layouts.
        out: the run folder; `demo` and `tfds` write their pictures into it, since everything streams from files.
        limit: keep at most this many pictures of each part, for a quick look.
        strict: make a picture or a box that cannot be used an error and not a counted skip.
        class_names: use the boxes of these classes only.
        val_share: the share of the training part that becomes validation where none is given.

    Returns:
        The BoxSet.

    Raises:
        UserError: nothing readable, a part without boxes, a class without training boxes, boxes in the wrong unit, a
            class name that no box has, or a broken annotation file.
    """
    kind, value = _parse(data)
    path, noticed = Path(value).expanduser(), defaultdict(list)
    rows = {
        "demo": lambda: demo_rows(out / "data"),
        "voc": lambda: voc_rows(path, noticed),
        "coco": lambda: coco_rows(path, noticed),
        "csv": lambda: csv_rows(path, noticed),
        "yolo": lambda: yolo_rows(path, noticed),
        "tfds": lambda: tfds_rows(value, out / "data", noticed),
    }[kind]()
    if not rows:
        raise UserError(f"--data {data!r} lists no pictures.")
    refuse_the_wrong_unit(data, rows)
    rows = _with_wanted_classes(data, _with_one_spelling(rows, noticed), class_names, noticed)
    headers = read_headers(rows)
    problems = image_problems(rows, headers, noticed)
    skipped = [(printable(row.path), why) for row, why in zip(rows, problems, strict=True) if why]
    left_out = f"{len(skipped)} picture(s) left out"
    left_out += f", the first is {skipped[0][0]}: {skipped[0][1]}." if skipped else "."
    headers = [header for header, why in zip(headers, problems, strict=True) if not why]
    rows = [row for row, why in zip(rows, problems, strict=True) if not why]
    if not rows:
        raise UserError(f"--data {data!r} has no picture that can be used. {left_out}")
    rows = [with_usable_boxes(row, header, noticed) for row, header in zip(rows, headers, strict=True)]
    notes = tuple(Note(why, len(places), places[0]) for why, places in noticed.items() if places)
    if strict:
        _refuse_faults(skipped, notes)
    everything, names = _as_examples(rows, headers)
    if not names:
        raise UserError(f"--data {data!r} has no box that can be used. {' '.join([left_out, *map(str, notes)])}")
    indices, copies = _split(data, everything, len(names), rows, headers, limit, val_share)
    skipped += [(printable(rows[place].path), why) for place, why in copies.items()]
    parts = {part: everything.take(places) for part, places in indices.items()}
    loaded = BoxSet(data, names, **parts, skipped=tuple(skipped), notes=notes, mirrors=kind != "demo")
    _refuse_what_cannot_work(loaded, limit, left_out)
    return loaded


# --- what the user asked for ------------------------------------------------------------------------------


def _parse(data: str) -> tuple[str, str]:
    """Read --data; a path without its kind gets a guess of what to type."""
    bare = data.removeprefix("folder:")
    if bare not in DATA_KINDS and os.path.exists(os.path.expanduser(bare)):
        kind = guess_kind(Path(bare).expanduser()) or "voc"
        raise UserError(
            f"--data must say how the boxes are written: {', '.join(kind + ':PATH' for kind in DATA_KINDS[1:-1])}. "
            f"Received: {data!r}. Try: --data {kind}:{bare}"
        )
    return parse_data(data, DATA_KINDS)


def _folded(label: str) -> str:
    return " ".join(label.split()).casefold()


def _with_one_spelling(rows: list[BoxRow], noticed: Noticed) -> list[BoxRow]:
    """Give labels that differ in case or spaces only the spelling that is most common among them."""
    spellings: dict[str, Counter] = defaultdict(Counter)
    for row in rows:
        for label in row.labels:
            spellings[_folded(label)][" ".join(label.split())] += 1
    chosen = {folded: max(sorted(found), key=found.get) for folded, found in spellings.items()}
    for row in rows:
        for label in row.labels:
            mine, usual = " ".join(label.split()), chosen[_folded(label)]
            if mine != usual:
                noticed[f"labels {mine!r}, which differ in case only and count as {usual!r}"].append(row.place)
    return [replace(row, labels=tuple(chosen[_folded(label)] for label in row.labels)) for row in rows]


def _with_wanted_classes(
    data: str, rows: list[BoxRow], class_names: Sequence[str] | None, noticed: Noticed
) -> list[BoxRow]:
    """Leave the boxes of other classes out.

    Raises:
        UserError: no box has such a class.
    """
    if class_names is None:
        return rows
    found = {_folded(label): label for row in rows for label in row.labels if label}
    for name in class_names:
        if _folded(name) not in found:
            raise UserError(
                f"--class-names has a class that no box of --data {data!r} is of: {name!r}. Found: "
                f"{some(sorted(found.values()))}.{did_you_mean(name, found.values())}"
            )
    wanted = {found[_folded(name)] for name in class_names}
    kept_rows = []
    for row in rows:
        keep = [place for place, label in enumerate(row.labels) if not label or label in wanted]
        for label in row.labels:
            if label and label not in wanted:
                noticed[_NOT_WANTED].append(f"{row.place} ({label})")
        labels, crowds = (tuple(values[place] for place in keep) for values in (row.labels, row.crowds))
        kept_rows.append(replace(row, boxes=row.boxes[keep], labels=labels, crowds=crowds))
    return kept_rows


# --- looking at the pictures ------------------------------------------------------------------------------


# --- looking at the boxes ---------------------------------------------------------------------------------


def _as_examples(rows: Sequence[BoxRow], headers: Sequence[Header]) -> tuple[BoxExamples, tuple[str, ...]]:
    """Return all pictures with numbers for classes, and the names of the classes."""
    names = tuple(sorted({label for row in rows for label in row.labels}))
    numbers = {name: number for number, name in enumerate(names)}
    examples = BoxExamples(
        np.array([row.path for row in rows], dtype=object),
        tuple(row.boxes for row in rows),
        tuple(np.array([numbers[label] for label in row.labels], dtype=np.int64) for row in rows),
        tuple(np.array(row.crowds, dtype=bool) for row in rows),
        np.array([header.shown for header in headers], dtype=np.int64),
        np.array([header.orientation for header in headers], dtype=np.int64),
    )
    return examples, names


# --- parts ------------------------------------------------------------------------------------------------


def _split(
    data: str,
    examples: BoxExamples,
    classes: int,
    rows: Sequence[BoxRow],
    headers: Sequence[Header],
    limit: int | None,
    val_share: float,
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """Return the pictures of each part, and why a copy is in none."""
    strata, contents = _rarest_classes(examples, classes), [header.content for header in headers]
    parts = assign_parts(data, [row.part for row in rows], contents, strata, val_share)
    leaves = splits.drop_copies_across_parts(parts, contents)
    copies = {
        int(place): f"exact copy of a picture in another part; left {parts[place]}" for place in np.flatnonzero(leaves)
    }
    indices = {part: np.flatnonzero((parts == part) & ~leaves) for part in PARTS}
    if limit:
        indices = {part: places[splits.limit_per_class(strata[places], limit)] for part, places in indices.items()}
    return indices, copies


def _rarest_classes(examples: BoxExamples, classes: int) -> np.ndarray:
    """Return the rarest class in each picture, int64 [n]; `classes` where it shows none.

    Split by this, a rare class comes into every part, and pictures without objects do.
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
    """Return the number of boxes of each class, crowds aside."""
    found = [labels[~crowds] for labels, crowds in zip(examples.labels, examples.crowds, strict=True)]
    return np.bincount(np.concatenate([*found, np.zeros(0, np.int64)]), minlength=classes).tolist()


# --- sets that cannot work --------------------------------------------------------------------------------


def _refuse_faults(skipped: list[tuple[str, str]], notes: Sequence[Note]) -> None:
    if skipped:
        path, why = skipped[0]
        raise UserError(f"--strict: {len(skipped)} picture(s) cannot be used; the first is {path}: {why}")
    if faults := [str(note) for note in notes if note.reason in FAULTS]:
        raise UserError(f"--strict: {' '.join(faults)} Without --strict they are left out and counted.")


def _refuse_what_cannot_work(loaded: BoxSet, limit: int | None, left_out: str) -> None:
    counts = loaded.box_counts()
    for part, found in counts.items():
        if not sum(found.values()):
            pictures = len(getattr(loaded, part))
            raise UserError(
                f"--data {loaded.name!r} leaves no boxes in the {part} part ({pictures} picture(s)). Needed: pictures "
                f"with objects in train, val and test; crowds and difficult objects do not count. {left_out}"
            )
    if missing := [name for name, count in counts["train"].items() if not count]:
        learnt = shlex.join(name for name, count in counts["train"].items() if count)
        advice = f" --limit {limit} may be too small for {len(loaded.class_names)} classes." if limit else ""
        raise UserError(
            f"--data {loaded.name!r} has no training box for {some(missing)}. Each class needs at least one.{advice} "
            f"Move pictures into the train part, or go without: --class-names {learnt}. {left_out}"
        )
