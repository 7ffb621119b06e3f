"""Labelled texts from tables, JSON lines, folders, TensorFlow Datasets or the demo reviews."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.data import splits
from common.data.splits import PARTS, split_labelled, untested_classes
from common.errors import UserError
from common.flags import parse_data
from common.texts.readers import Columns, TextRow, demo_rows, folder_rows, table_rows, tfds_rows

DATA_KINDS = ("demo", "csv", "tsv", "jsonl", "folder", "tfds")


@dataclass(frozen=True)
class TextExamples:
    """The texts of one part.

    Attributes:
        texts: str, object [n].
        labels: class number of each text, int64 [n].
    """

    texts: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, places: np.ndarray) -> TextExamples:
        """Return some of the texts."""
        return TextExamples(self.texts[places], self.labels[places])


@dataclass(frozen=True)
class TextSet:
    """A labelled set of texts, split and checked.

    Attributes:
        name: what the user asked for.
        class_names: name of each class number, sorted.
        train: what is trained on.
        val: what every choice is made on.
        test: what is read once, at the end.
        skipped: (place, reason) of everything left out.
        merged: spellings of labels that were taken for one, such as ("Positive", "positive").
    """

    name: str
    class_names: tuple[str, ...]
    train: TextExamples
    val: TextExamples
    test: TextExamples
    skipped: tuple[tuple[str, str], ...] = ()
    merged: tuple[tuple[str, ...], ...] = ()

    def counts(self) -> dict[str, int]:
        """Return the number of examples in each part and of what was left out."""
        return {part: len(getattr(self, part)) for part in PARTS} | {"skipped": len(self.skipped)}

    def advice(self) -> tuple[str, ...]:
        """Return what somebody who reads the result should know of these texts, in sentences."""
        sentences = list(untested_classes(self.class_names, self.test.labels, "text"))
        for spellings in self.merged:
            sentences.append(
                f"The labels {', '.join(map(repr, spellings))} differ in case only and count as {spellings[0]!r}."
            )
        return tuple(sentences)

    def fingerprint(self) -> str:
        """Return a hash of all texts, labels and parts."""
        digest = hashlib.sha256()
        for part in PARTS:
            examples = getattr(self, part)
            for text, label in zip(examples.texts, examples.labels, strict=True):
                digest.update(f"{part}\0{label}\0{len(text)}\0{text}".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]


def load_text_set(
    data: str,
    *,
    columns: Columns = Columns(),  # noqa: B008 - frozen
    limit: int | None = None,
    strict: bool = False,
    val_share: float = splits.VALIDATION_SHARE,
) -> TextSet:
    """Read a data set, check every text, and split it.

    Labels lose the spaces around them, and those that differ in case only are one class. Texts are compared without
    the spaces around them: copies across parts leave the lower part, and a text with two labels leaves every part.

    Args:
        data: `demo`, `csv:PATH`, `tsv:PATH`, `jsonl:PATH` (a file, or a folder with a file for each part),
            `folder:PATH` (class folders of .txt files, or train/test with class folders inside) or `tfds:NAME`.
        columns: which columns hold what.
        limit: keep at most this many texts of each part, for a quick look.
        strict: make a text that cannot be used an error and not a counted skip.
        val_share: the share of the training part that becomes validation where none is given.

    Returns:
        The TextSet.

    Raises:
        UserError: nothing readable, one class only, a class or a part without texts, or a broken table.
    """
    kind, value = parse_data(data, DATA_KINDS)
    path = Path(value).expanduser()
    if kind == "demo":
        rows = demo_rows()
    elif kind == "folder":
        rows = folder_rows(path, columns.encoding)
    elif kind == "tfds":
        rows = tfds_rows(value, columns)
    else:
        rows = table_rows(kind, path, columns)
    if not rows:
        raise UserError(f"--data {data!r} holds no texts.")
    rows, merged = _with_one_spelling(rows)
    reasons = [_why_unusable(row) for row in rows]
    skipped = [(row.place, reason) for row, reason in zip(rows, reasons, strict=True) if reason]
    first = f", the first is {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
    if strict and skipped:
        raise UserError(f"--strict: {len(skipped)} text(s) cannot be used{first}")
    kept = [row for row, reason in zip(rows, reasons, strict=True) if not reason]
    hashes = [_content_hash(row.text) for row in kept]
    split = split_labelled(
        data, "text", [row.label for row in kept], [row.part for row in kept], hashes,
        limit=limit, val_share=val_share, left_out=f"{len(skipped)} text(s) left out{first}",
    )  # fmt: skip
    skipped += [(row.place, reason) for row, reason in zip(kept, split.reasons, strict=True) if reason]
    texts = np.array([row.text for row in kept], dtype=object)
    parts = {part: TextExamples(texts[indices], split.labels[indices]) for part, indices in split.indices.items()}
    return TextSet(data, split.class_names, **parts, skipped=tuple(skipped), merged=merged)


def draw_shots(data: TextSet, shots: int, seed: int) -> TextSet:
    """Return the set with this many training texts of each class, drawn by the seed; the other parts stay.

    Raises:
        UserError: a class has fewer.
    """
    rng, chosen = np.random.default_rng(seed), []
    for number, name in enumerate(data.class_names):
        places = np.nonzero(data.train.labels == number)[0]
        if len(places) < shots:
            raise UserError(
                f"--shots {shots}: the class {name!r} has {len(places)} training texts. Allowed: as many as the "
                f"smallest class has, or no --shots at all."
            )
        chosen.append(rng.permutation(places)[:shots])
    places = np.sort(np.concatenate(chosen))
    return replace(data, train=data.train.take(places))


def folds_of(data: TextSet, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divide the training texts for cross-validation, class by class, by the hash of each text.

    Args:
        data: whose training part is divided.
        count: of the folds.

    Returns:
        For each fold the places of the rest and of the fold itself.

    Raises:
        UserError: a class has fewer texts than there are folds.
    """
    hashes = np.array([_content_hash(text) for text in data.train.texts])
    folds = np.zeros(len(hashes), np.int64)
    for number, name in enumerate(data.class_names):
        of_class = np.flatnonzero(data.train.labels == number)
        contents, which = np.unique(hashes[of_class], return_inverse=True)  # copies stay together
        if len(contents) < count:
            raise UserError(
                f"--folds {count}: the class {name!r} has {len(contents)} different training texts; at least one a "
                f"fold is needed. Allowed: --folds 2 to the number of texts of the smallest class."
            )
        folds[of_class] = which % count  # dealt out in turn, in the order of their hashes
    return [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in range(count)]


def _content_hash(text: str) -> str:
    return hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()


def _why_unusable(row: TextRow) -> str:
    if not row.label:
        return "has no label"
    if not any(character.isprintable() and not character.isspace() for character in row.text):
        return "is empty, or holds nothing that can be seen"
    return ""


def _with_one_spelling(rows: list[TextRow]) -> tuple[list[TextRow], tuple[tuple[str, ...], ...]]:
    """Strip the labels, and give those that differ in case only the spelling that is most common among them."""
    stripped = [row.label.strip() for row in rows]
    spellings: dict[str, Counter] = defaultdict(Counter)
    for label in stripped:
        spellings[label.casefold()][label] += 1
    chosen = {folded: max(sorted(found), key=found.get) for folded, found in spellings.items()}
    merged = tuple(
        (chosen[folded], *sorted(set(found) - {chosen[folded]}))
        for folded, found in spellings.items()
        if len(found) > 1
    )
    renamed = [
        TextRow(row.text, chosen[label.casefold()], row.part, row.place)
        for row, label in zip(rows, stripped, strict=True)
    ]
    return renamed, merged
