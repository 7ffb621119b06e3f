"""The number format of fine-tuning: bfloat16 where this machine multiplies matrices faster in it."""

from __future__ import annotations

import json
from pathlib import Path

from common.files import write_json
from common.training import speedup_of_bfloat16

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
