"""Unlabelled sentences from plain texts, without copies, split by the hash of their contents."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.data.folders import READ_EARLY, bytes_under
from common.data.tables import read_text_file
from common.errors import UserError
from common.flags import parse_data
from common.texts.readers import Columns, demo_rows, table_rows

DATA_KINDS = ("demo:reviews", "txt", "jsonl", "csv", "tsv")
FEWEST = 20  # minimum number of sentences
_LARGEST_SPLIT = 2000  # sentences in each of val and test: enough for evaluation
_END = re.compile(r"(?<=[.!?])\s+|<br\s*/?>|\n+")


@dataclass(frozen=True)
class Sentences:
    """Distinct sentences in three splits.

    Attributes:
        train: the training split.
        val: the validation split, evaluated after every epoch.
        test: the test split, evaluated once, at the end.
        left_out: number of sentences in no split, by reason.
        kinds: what each training sentence is, such as its source; empty where no column says so.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    left_out: dict[str, int]
    kinds: tuple[str, ...] = ()

    def all(self) -> tuple[str, ...]:
        """Return the sentences of train, val and test, in this order."""
        return self.train + self.val + self.test

    def split(self, rows: Sequence) -> tuple[Sequence, Sequence, Sequence]:
        """Divide rows in the order of `all` into train, val and test."""
        first, second = len(self.train), len(self.train) + len(self.val)
        return rows[:first], rows[first:second], rows[second:]

    def counts(self) -> dict[str, int]:
        """Return the number of sentences per split and of those left out."""
        sizes = {"train": len(self.train), "val": len(self.val), "test": len(self.test)}
        return sizes | {"skipped": sum(self.left_out.values())}

    def shares(self) -> np.ndarray | None:
        """Return how often to draw each training sentence, float64 [train], sum 1; None: all equally often.

        A kind is drawn in proportion to the square root of its number, so that large ones do not drown the small ones.
        """
        if len(set(self.kinds)) < 2:
            return None
        _, places, counts = np.unique(self.kinds, return_inverse=True, return_counts=True)
        shares = 1.0 / np.sqrt(counts[places])
        return shares / shares.sum()

    def describe(self) -> str:
        """Return the size of each split, and what was left out and why, in words."""
        found = [f"{count:,} {reason}" for reason, count in self.left_out.items() if count]
        sizes = f"{len(self.train):,} training sentences, {len(self.val):,} validation, {len(self.test):,} test"
        if self.kinds:
            counts = Counter(kind or "(none)" for kind in self.kinds)
            largest = (f"{kind[:40]} {count:,}" for kind, count in counts.most_common(10))
            sizes += f"; {len(counts)} kind(s), the largest: {', '.join(largest)}"
        return f"{sizes}; left out: {', '.join(found) or 'none'}"

    def fingerprint(self) -> str:
        """Return a hash of all sentences and splits."""
        lines = "\n".join([*self.train, "", *self.val, "", *self.test, *self.kinds])
        return hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def refuse_early(settings) -> None:
    """Raise UserError for files that cannot be read, before TensorFlow is imported, which takes seconds.

    Args:
        settings: of a recipe: `data`, `text_column`, `kind_column`, `encoding`.
    """
    kind, value = parse_data(settings.data, DATA_KINDS)
    if kind != "demo" and bytes_under(Path(value).expanduser(), READ_EARLY) <= READ_EARLY:
        load_sentences(
            settings.data, column=settings.text_column, encoding=settings.encoding, kind_column=settings.kind_column
        )


def load_sentences(
    data: str, *, column: str = "text", encoding: str = "utf-8", limit: int | None = None,
    kind_column: str | None = None,
) -> Sentences:  # fmt: skip
    """Cut texts into sentences of 4 to 60 words, leave out copies, and split the rest by the hash of each.

    Sentences that differ only in case or whitespace are copies of each other.

    Args:
        data: `demo:reviews`, or `txt:PATH` (one text per line), `jsonl:PATH`, `csv:PATH`, `tsv:PATH`: a file, .gz or
            not, or a folder of such files.
        column: name of the column of texts.
        encoding: of the files.
        limit: use at most this many sentences; which ones depends on the sentences alone.
        kind_column: name of a column that says what a text is, such as its source; None for none.

    Returns:
        The Sentences; a twentieth each is held out for validation and test.

    Raises:
        UserError: a file cannot be read or has no such column, or too few sentences are left.
    """
    different: dict[str, tuple[str, str]] = {}
    left_out = {"copies": 0, "shorter than 4 words": 0, "longer than 60 words": 0}
    for text, kind in read_texts(data, column, encoding, kind_column):
        for words in filter(None, map(str.split, _END.split(text))):
            sentence = " ".join(words)
            content = hashlib.sha256(sentence.lower().encode("utf-8", "surrogatepass")).hexdigest()
            if len(words) < 4:
                left_out["shorter than 4 words"] += 1
            elif len(words) > 60:
                left_out["longer than 60 words"] += 1
            elif content in different:
                left_out["copies"] += 1
            else:
                different[content] = sentence, kind
    if len(different) < FEWEST:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count) or "none"
        raise UserError(
            f"--data {data} holds {len(different)} different sentence(s) of 4 to 60 words. At least {FEWEST} are "
            f"required; tens of thousands are useful. Left out: {reasons}."
        )
    # In the order of the hashes: which sentences are used, and in which split, depends on the sentences alone.
    chosen = [different[content] for content in sorted(different)[:limit]]
    left_out["beyond --limit"] = len(different) - len(chosen)
    held = min(_LARGEST_SPLIT, max(1, len(chosen) // 20))
    sentences, kinds = zip(*chosen, strict=True)
    return Sentences(
        sentences[2 * held :], sentences[held : 2 * held], sentences[:held], left_out,
        kinds=kinds[2 * held :] if kind_column else (),
    )  # fmt: skip


def read_texts(data: str, column: str, encoding: str, kind_column: str | None = None) -> list[tuple[str, str]]:
    """Return the unprocessed texts of the files, each with its kind or ""; arguments as for `load_sentences`."""
    kind, value = parse_data(data, DATA_KINDS)
    if kind == "demo":
        return [(row.text, "") for row in demo_rows(value)]
    path = Path(value).expanduser()
    ending = re.compile(rf".+\.{kind}(\.gz)?", re.IGNORECASE)
    files = sorted(file for file in path.iterdir() if ending.fullmatch(file.name)) if path.is_dir() else [path]
    if not files:
        raise UserError(f"--data {data} is a folder without a .{kind} file. Allowed: .{kind} and .{kind}.gz")
    if kind == "txt":
        return [(line, "") for file in files for line in read_text_file(kind, file, encoding).split("\n")]
    columns = Columns(column, label=kind_column or column, split="", encoding=encoding)
    try:
        rows = [row for file in files for row in table_rows(kind, file, columns)]
    except UserError as error:  # no labels here, so the message must not name their flag
        said = str(error).replace(" --label-column 2", " --kind-column 2" if kind_column else "")
        raise UserError(said.replace("--label-column", "--kind-column")) from error
    return [(row.text, row.label if kind_column else "") for row in rows]
