"""Baselines of a classifier: trained after the export, calibrated like the result, skipped where one fails."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from common.classification.calibration import apply_temperature, fit_temperature
from common.errors import UserError
from common.runs import Stopwatch


def run_baselines(
    names: Sequence[str], predict: Callable[[str, int], tuple[dict[str, np.ndarray], list[dict], str]],
    val_labels: np.ndarray, clock: Stopwatch, *, calibrate: bool, part_of_run: Mapping[str, Sequence[str]],
    seeds: Sequence[int], per_seed: Collection[str] = ("scratch",),
) -> tuple[dict[str, tuple[dict[int, np.ndarray], float]], list[dict], list[str]]:  # fmt: skip
    """Train baselines, one after the other. Call it after the export: one that is killed then costs nothing else.

    Args:
        names: of the baselines.
        predict: (name, seed) -> its probabilities on val and test, {"val", "test"}: float [n, classes]; its history
            rows; and a sentence on what it is, or "".
        val_labels: int [m].
        clock: of the run.
        calibrate: whether each gets the temperature that fits validation, as the result has: only then do their
            expected calibration errors compare.
        part_of_run: for baselines that are a stage of the run itself: the stages whose seconds are theirs.
        seeds: of the run; the first one is that of the exported model, whose history is returned.
        per_seed: names of those that differ from seed to seed. The others are trained once.

    Returns:
        {name: ({seed: probabilities on the test split}, seconds of all seeds)}, history rows, and sentences: what they
        are, and which were skipped since they cannot be trained on such data or in this memory.
    """
    found, history, notes = {}, [], []
    for name in names:
        try:
            with clock(f"baseline_{name}"):
                theirs = {seed: predict(name, seed) for seed in (seeds if name in per_seed else seeds[:1])}
        except (UserError, MemoryError) as error:  # the result matters more than what it is compared with
            notes.append(f"The baseline {name} was skipped: {str(error) or 'not enough memory.'}")
            continue
        spent, probabilities = clock.report(), {seed: of["test"] for seed, (of, *_) in theirs.items()}
        if calibrate:
            for seed, (of, *_) in theirs.items():
                probabilities[seed] = apply_temperature(of["test"], fit_temperature(val_labels, of["val"]))
        shared = {seed: probabilities.get(seed, probabilities[seeds[0]]) for seed in seeds}
        found[name] = shared, sum(spent[stage] for stage in part_of_run.get(name, (f"baseline_{name}",)))
        history += theirs[seeds[0]][1]
        notes += filter(None, [theirs[seeds[0]][2]])
    return found, history, notes


def stage_seconds(clock: Stopwatch) -> dict[str, float]:
    """Return the seconds of each stage of a run; all its baselines are one, `baselines`."""
    spent = clock.report()
    of_baselines = [spent.pop(stage) for stage in list(spent) if stage.startswith("baseline_")]
    return spent | {"baselines": round(sum(of_baselines), 2)}
