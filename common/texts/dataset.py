"""Labelled texts from tables, JSON lines, folders, TensorFlow Datasets or the demos."""

from __future__ import annotations

import hashlib
import importlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.data import splits
from common.data.folders import READ_EARLY, bytes_under
from common.data.splits import SPLITS, split_labelled, untested_classes
from common.errors import UserError
from common.flags import parse_data
from common.texts.readers import Columns, TextRow, demo_rows, folder_rows, table_rows, tfds_rows

DATA_KINDS = ("demo", "demo:reviews", "csv", "tsv", "jsonl", "folder", "tfds")


@dataclass(frozen=True)
class TextExamples:
    """The texts of one split.

    Attributes:
        texts: str, object [n].
        labels: class number of each text, int64 [n].
    """

    texts: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def names(self) -> list[str]:
        """What identifies each text: the text."""
        return list(self.texts)

    def take(self, places: np.ndarray) -> TextExamples:
        """Return the texts at these places."""
        return TextExamples(self.texts[places], self.labels[places])


@dataclass(frozen=True)
class TextSet:
    """A labelled set of texts, split and checked.

    Attributes:
        name: the value of --data.
        class_names: name of each class number, sorted.
        train: the training split.
        val: the validation split, on which every choice is made.
        test: the test split, evaluated once, at the end.
        skipped: (place, reason) of every skipped text.
        merged: spellings of a label that count as the first, such as ("Positive", "positive").
        notes: sentences on the groups of `--group`.
    """

    name: str
    class_names: tuple[str, ...]
    train: TextExamples
    val: TextExamples
    test: TextExamples
    skipped: tuple[tuple[str, str], ...] = ()
    merged: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()

    counts = splits.count_examples

    def advice(self) -> tuple[str, ...]:
        """Return sentences about these texts that matter for the result."""
        sentences = [*untested_classes(self.class_names, self.test.labels, "text"), *self.notes]
        for spellings in self.merged:
            sentences.append(
                f"The labels {', '.join(map(repr, spellings))} differ only in case and count as {spellings[0]!r}."
            )
        return tuple(sentences)

    def fingerprint(self) -> str:
        """Return a hash of all texts, labels and splits."""
        digest = hashlib.sha256()
        for split in SPLITS:
            examples = getattr(self, split)
            for text, label in zip(examples.texts, examples.labels, strict=True):
                digest.update(f"{split}\0{label}\0{len(text)}\0{text}".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]


def refuse_early(settings) -> None:
    """Raise UserError for a table or folder that cannot work, before TensorFlow is imported, which takes seconds.

    Args:
        settings: of a recipe: `data`, `text_column`, `label_column`, `split_column`, `encoding`, `group`, `strict`.
    """
    kind, value = parse_data(settings.data, DATA_KINDS)
    if kind in ("demo", "tfds") or bytes_under(Path(value).expanduser(), READ_EARLY) > READ_EARLY:
        return
    names = [getattr(settings, f"{name}_column") for name in ("text", "label", "split")]
    load_text_set(
        settings.data, columns=Columns(*names, settings.encoding, settings.group), strict=settings.strict,
    )  # fmt: skip


def load_text_set(
    data: str,
    *,
    columns: Columns = Columns(),  # noqa: B008 - frozen
    limit: int | None = None,
    strict: bool = False,
    val_share: float = splits.VALIDATION_SHARE,
) -> TextSet:
    """Read a data set, check every text, and split it.

    Labels are stripped, and labels that differ only in case are one class. Texts are compared without surrounding
    whitespace: copies across splits leave the lower split, and a text with two labels leaves every split.

    Args:
        data: `demo`, `demo:reviews`, `csv:PATH`, `tsv:PATH`, `jsonl:PATH` (a file, or a folder with a file per split),
            `folder:PATH` (class folders of .txt files, or train/test with class folders inside) or `tfds:NAME`.
        columns: names of the columns, and the encoding. With a column of groups, splits that are not given are made of
            whole groups.
        limit: keep at most this many texts per split, for a quick look.
        strict: raise an error for an unusable text instead of skipping and counting it.
        val_share: the share of the training split that becomes validation where none is given.

    Returns:
        The TextSet.

    Raises:
        UserError: no readable text, one class only, a class or a split without texts, or a malformed table.
    """
    kind, value = parse_data(data, DATA_KINDS)
    path = Path(value).expanduser()
    if kind == "demo":
        rows = demo_rows(value)
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
    first = f"; the first is {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
    if strict and skipped:
        raise UserError(f"--strict: {len(skipped)} text(s) cannot be used{first}")
    kept = [row for row, reason in zip(rows, reasons, strict=True) if not reason]
    hashes = [_content_hash(row.text) for row in kept]
    split = split_labelled(
        data, "text", [row.label for row in kept], [row.split for row in kept], hashes,
        limit=limit, val_share=val_share, left_out=f"{len(skipped)} text(s) skipped{first}",
        groups=[row.group for row in kept] if columns.group else None,
    )  # fmt: skip
    skipped += [(row.place, reason) for row, reason in zip(kept, split.reasons, strict=True) if reason]
    texts = np.array([row.text for row in kept], dtype=object)
    sets = {name: TextExamples(texts[indices], split.labels[indices]) for name, indices in split.indices.items()}
    return TextSet(data, split.class_names, **sets, skipped=tuple(skipped), merged=merged, notes=split.notes)


def draw_shots(data: TextSet, shots: int, seed: int) -> TextSet:
    """Return the set with N training texts per class and at most as many for validation; test stays the same.

    Raises:
        UserError: a class has fewer.
    """
    draw = importlib.import_module("common.data.shots").draw_shots  # few need it
    train, val = draw(data.train.labels, data.val.labels, data.class_names, shots, seed, "text")
    return replace(data, train=data.train.take(train), val=data.val.take(val))


def folds_of(data: TextSet, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divide the training texts into folds for cross-validation, class by class, by the hash of each text.

    Args:
        data: the set whose training split is divided.
        count: number of folds.

    Returns:
        For each fold the indices of the other texts and of its own.

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
                f"--folds {count}: the class {name!r} has {len(contents)} different training texts; at least one per "
                f"fold is required. Allowed: 2 to the number of different texts of the smallest class."
            )
        folds[of_class] = which % count  # assigned in turn, in the order of their hashes
    return [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in range(count)]


def with_fold(data: TextSet, tokens: Mapping, embeddings: Mapping, rest: np.ndarray, fold: np.ndarray) -> tuple:
    """Return data, tokens and embeddings to train without one fold, which replaces the test split.

    Args:
        data: a text set.
        tokens: of the texts of each split.
        embeddings: of each split, float32 [n, width].
        rest, fold: rows of the training split, as returned by `folds_of`.

    Returns:
        (data, tokens, embeddings), with the same validation split.
    """
    of, embedded = tokens["train"].of_texts, embeddings["train"]
    return (
        replace(data, train=data.train.take(rest), test=data.train.take(fold)),
        {"train": of(rest), "val": tokens["val"], "test": of(fold)},
        {"train": embedded[rest], "val": embeddings["val"], "test": embedded[fold]},
    )


def _content_hash(text: str) -> str:
    return hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()


def _why_unusable(row: TextRow) -> str:
    if not row.label:
        return "has no label"
    if not any(character.isprintable() and not character.isspace() for character in row.text):
        return "is empty, or has no visible character"
    return ""


def _with_one_spelling(rows: list[TextRow]) -> tuple[list[TextRow], tuple[tuple[str, ...], ...]]:
    """Strip the labels; where labels differ only in case, use the most common spelling."""
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
    renamed = [replace(row, label=chosen[label.casefold()]) for row, label in zip(rows, stripped, strict=True)]
    return renamed, merged
