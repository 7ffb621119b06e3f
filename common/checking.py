"""Look before you run: what the data holds, what the model will see, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from common.data.image_sets import ImageSet
from common.data.labelled import PARTS
from common.data.text_sets import TextSet
from common.data.texts import Tokens
from common.runs import write_atomically


def describe_counts(data: ImageSet | TextSet) -> str:
    """Return a table of the examples of each class in each part, and what was skipped and why."""
    counts = {part: np.bincount(getattr(data, part).labels, minlength=len(data.class_names)) for part in PARTS}
    width = max(5, *(len(name) for name in data.class_names))
    lines = [f"  {'class':{width}}  {'train':>7}{'val':>7}{'test':>7}"]
    for number, name in enumerate(data.class_names):
        lines.append(f"  {name:{width}}  " + "".join(f"{counts[part][number]:7,}" for part in PARTS))
    lines.append(f"  {'all':{width}}  " + "".join(f"{counts[part].sum():7,}" for part in PARTS))
    lines.append(f"  skipped: {len(data.skipped)}")
    lines += [f"    {path}: {reason}" for path, reason in data.skipped[:10]]
    lines += [f"  {sentence}" for sentence in data.advice()]
    rare, common = counts["train"].min(), counts["train"].max()
    if common >= 3 * rare:
        lines.append(
            f"  The largest class has {common / rare:.0f} times the smallest: consider --class-weights balanced"
        )
    return "\n".join(lines)


def write_sample_grid(path: Path, images: np.ndarray, titles: Sequence[str], columns: int = 6) -> Path:
    """Write pictures as the model will see them in training.

    Args:
        path: PNG file to write.
        images: float32 [n, height, width, 3], 0 to 255.
        titles: one for each.
        columns: pictures in a row.

    Returns:
        The path.
    """
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.8 * columns, 2.0 * rows), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, image, title in zip(figure.axes, images, titles, strict=False):
        axes.imshow(image.astype(np.uint8), interpolation="nearest")
        axes.set_title(title[:24], fontsize=8, parse_math=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    return path


def describe_lengths(tokens: Tokens) -> str:
    """Say how long the training texts are, and what becomes of the long ones."""
    lengths, long = tokens.lengths, int((tokens.lengths > tokens.max_length).sum())
    text = f"{np.median(lengths):.0f} tokens in the median training text, {lengths.max():,} in the longest"
    if tokens.cut:
        return f"{text}; {tokens.cut:,} lose their end (--max-length {tokens.max_length}, --long-text windows reads it)"
    return f"{text}; {long:,} are read in several windows" if long else text


def write_sample_texts(
    path: Path, data: TextSet, tokens: Tokens, vocabulary: Sequence[str] | None, count: int = 24
) -> Path:
    """Write training texts with the tokens that the encoder gets of them.

    Args:
        path: text file to write.
        data: the texts.
        tokens: of the training part.
        vocabulary: the token of each id; None writes the ids.
        count: texts at most.

    Returns:
        The path.
    """
    lines = []
    for number in range(min(count, len(data.train))):
        shown = [vocabulary[token] if vocabulary else str(token) for token in tokens.of_texts([number]).ids[0]]
        lines += [f"{data.class_names[data.train.labels[number]]}: {data.train.texts[number]}", " ".join(shown), ""]
    return write_atomically(path, lambda partial: partial.write_text("\n".join(lines), encoding="utf-8"))


def median_seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """Return the median seconds of a call; a first one, which traces and compiles, does not count."""
    call()
    seconds = []
    for _ in range(repeats):
        began = time.monotonic()
        call()
        seconds.append(time.monotonic() - began)
    return float(np.median(seconds))
