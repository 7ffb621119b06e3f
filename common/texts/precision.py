"""The number format of fine-tuning: bfloat16 where this machine multiplies matrices faster in it."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import tensorflow as tf

from common.files import write_json

LONG = 200  # steps from which a second model in bfloat16, which takes seconds to build, pays
FASTER = 1.3  # times; half of a step is something else


def choose_precision(asked: str, steps: int, kept: Path | None = None) -> str:
    """Return the Keras dtype policy of fine-tuning; weights and optimizer are float32 in each.

    Args:
        asked: auto, float32 or bfloat16. `auto` is bfloat16 for LONG trainings where products of matrices are FASTER.
        steps: of the training.
        kept: file of what `auto` has chosen, for further seeds and a resumed run; None keeps nothing.
    """
    if asked != "auto":
        return "mixed_bfloat16" if asked == "bfloat16" else "float32"
    if kept and kept.exists():
        return json.loads(kept.read_text("utf-8"))["policy"]
    policy = "float32"
    if steps >= LONG and (times := speedup_of_bfloat16()) >= FASTER:
        print(f"  finetune in bfloat16: here, products of matrices are {times:.1f} times as fast in it")
        policy = "mixed_bfloat16"
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, {"policy": policy})
    return policy


def speedup_of_bfloat16(rows: int = 1024, width: int = 768, repeats: int = 9) -> float:
    """Return how many times as fast products of matrices are in bfloat16, by timing both in turn.

    Args:
        rows: tokens of a batch.
        width: of an encoder; the product is that of its feed-forward layers.
        repeats: of each; medians count.
    """
    seconds = {"float32": [], "bfloat16": []}
    pairs = {name: (tf.ones((rows, width), name), tf.ones((width, 4 * width), name)) for name in seconds}
    for repeat in range(repeats + 1):
        for name, (left, right) in pairs.items():
            began = time.monotonic()
            float(tf.cast(tf.linalg.matmul(left, right)[0, 0], tf.float32))  # waits for the product, copies no more
            if repeat:  # the first prepares kernels
                seconds[name].append(time.monotonic() - began)
    return statistics.median(seconds["float32"]) / statistics.median(seconds["bfloat16"])
