"""Previews of texts: samples with their tokens, lengths, and texts in a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from common.files import write_atomically
from common.texts.batches import Tokens
from common.texts.dataset import TextSet

MAX_CHARACTERS = 600  # of a text in a report


def describe_lengths(tokens: Tokens) -> str:
    """Describe the lengths of the training texts, and how long ones are handled."""
    lengths, long = tokens.lengths, int((tokens.lengths > tokens.max_length).sum())
    text = f"{np.median(lengths):.0f} tokens in the median training text, {lengths.max():,} in the longest"
    if tokens.cut:
        return f"{text}; {tokens.cut:,} are truncated (--max-length {tokens.max_length}; --long-text windows reads all)"
    return f"{text}; {long:,} are read in several windows" if long else text


def write_sample_texts(
    path: Path, data: TextSet, tokens: Tokens, vocabulary: Sequence[str] | None, count: int = 24
) -> Path:
    """Write training texts with the tokens that the encoder receives.

    Args:
        path: text file to write.
        data: the texts.
        tokens: of the training split.
        vocabulary: the token of each id; None writes the ids.
        count: maximum number of texts.

    Returns:
        The path.
    """
    lines = []
    for number in range(min(count, len(data.train))):
        shown = [vocabulary[token] if vocabulary else str(token) for token in tokens.of_texts([number]).ids[0]]
        lines += [f"{data.class_names[data.train.labels[number]]}: {data.train.texts[number]}", " ".join(shown), ""]
    return write_atomically(path, lambda partial: partial.write_text("\n".join(lines), encoding="utf-8"))


def write_masked_samples(path: Path, sentences: Sequence[Sequence[Mapping]], shown: int = 3) -> Path:
    """Write sentences with masked tokens in brackets, and print the first ones.

    Args:
        path: text file to write.
        sentences: as returned by `masked_lm.masked_examples`.
        shown: how many to print.

    Returns:
        The path.
    """
    lines = [
        " ".join(f"[{piece['text']}]" if piece["masked"] else piece["text"] for piece in pieces).replace(" ##", "")
        for pieces in sentences
    ]
    print("sentences as tokenized for the encoder, masked tokens in brackets:", *lines[:shown], sep="\n  ")
    return write_atomically(path, lambda partial: partial.write_text("\n".join(lines) + "\n", "utf-8"))


def short_texts(texts: Sequence[str]) -> Callable[[Sequence[int]], list[dict]]:
    """Return the preview function of a report: indices into `texts` -> "text" of each."""
    return lambda places: [{"text": shorten(str(texts[place]))} for place in places]


def shorten(text: str) -> str:
    """Return a text, shortened if it is long."""
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + " ..."
