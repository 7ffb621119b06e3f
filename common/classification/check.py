"""Look before you run: what the data holds, what the model will see, and how long it will take."""

from __future__ import annotations

import numpy as np

from common.data.splits import PARTS


def describe_counts(data) -> str:
    """Return a table of the examples of each class in each split of a labelled set, and what was skipped and why."""
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
