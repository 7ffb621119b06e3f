"""Output of `check` for labelled data: counts per class and split."""

from __future__ import annotations

import numpy as np

from common.data.splits import SPLITS


def describe_counts(data) -> str:
    """Return a table of examples per class and split, and the skipped files with reasons.

    Args:
        data: ImageSet, TextSet or a SpeechSet with classes.
    """
    counts = {split: np.bincount(getattr(data, split).labels, minlength=len(data.class_names)) for split in SPLITS}
    width = max(5, *(len(name) for name in data.class_names))
    lines = [f"  {'class':{width}}  {'train':>7}{'val':>7}{'test':>7}"]
    for number, name in enumerate(data.class_names):
        lines.append(f"  {name:{width}}  " + "".join(f"{counts[split][number]:7,}" for split in SPLITS))
    lines.append(f"  {'all':{width}}  " + "".join(f"{counts[split].sum():7,}" for split in SPLITS))
    lines.append(f"  skipped: {len(data.skipped)}")
    lines += [f"    {path}: {reason}" for path, reason in data.skipped[:10]]
    lines += [f"  {sentence}" for sentence in data.advice()]
    rare, common = counts["train"].min(), counts["train"].max()
    if common >= 3 * rare:
        lines.append(f"  The largest class is {common / rare:.0f} times the smallest")
    return "\n".join(lines)
