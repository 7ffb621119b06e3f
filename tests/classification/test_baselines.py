"""Baselines: calibrated like the result, timed each and in all, skipped where one cannot be trained."""

from __future__ import annotations

import time

import numpy as np
import pytest

from common.classification.baselines import run_baselines, stage_seconds
from common.classification.calibration import apply_temperature, fit_temperature
from common.errors import UserError
from common.runs import Stopwatch

LABELS = np.arange(60) % 3


def overconfident() -> dict[str, np.ndarray]:
    probabilities = np.full((60, 3), 0.0005, np.float32)
    probabilities[np.arange(60), np.where(np.arange(60) < 40, LABELS, (LABELS + 1) % 3)] = 0.999
    return {"val": probabilities, "test": probabilities[:30]}


def predict(name: str, seed: int):
    time.sleep(0.02)
    if name == "large":
        raise MemoryError
    if name == "refused":
        raise UserError("Too many texts.")
    if name == "scratch":
        return (
            {split: np.roll(rows, seed, axis=1) for split, rows in overconfident().items()},
            [{"epoch": seed}],
            f"With {seed}.",
        )
    return overconfident(), [{"stage": name, "epoch": 1}], ""


def finished(names=("own", "other"), calibrate=False, seeds=(0,)):
    clock = Stopwatch()
    for stage in ("features", "head"):
        with clock(stage):
            time.sleep(0.03)
    found = run_baselines(
        names, predict, LABELS, clock, calibrate=calibrate, part_of_run={"own": ("features", "head")}, seeds=seeds
    )
    return clock, *found


def test_probabilities_rows_and_seconds_of_each():
    clock, found, rows, skipped = finished()
    np.testing.assert_array_equal(found["own"][0][0], overconfident()["test"])
    assert found["own"][1] >= 0.06 and 0.02 <= found["other"][1] < 0.06
    assert [row["stage"] for row in rows] == ["own", "other"] and skipped == []
    seconds = stage_seconds(clock)
    assert set(seconds) == {"total", "features", "head", "baselines"}
    assert seconds["baselines"] == pytest.approx(
        sum(clock.seconds[f"baseline_{n}"] for n in ("own", "other")), abs=0.02
    )


def test_a_baseline_is_calibrated_as_the_result_is():
    found = finished(calibrate=True)[1]["other"][0][0]
    theirs = overconfident()
    temperature = fit_temperature(LABELS, theirs["val"])
    assert temperature > 2
    np.testing.assert_allclose(found, apply_temperature(theirs["test"], temperature), rtol=1e-5)


def test_what_cannot_be_trained_is_skipped_with_a_sentence():
    _, found, _, skipped = finished(("large", "own", "refused"))
    assert set(found) == {"own"}
    assert skipped == [
        "The baseline large was skipped: not enough memory.", "The baseline refused was skipped: Too many texts.",
    ]  # fmt: skip


@pytest.mark.parametrize("calibrate", [False, True])
def test_what_depends_on_the_seed_is_trained_with_each_and_the_rest_once(calibrate):
    clock, found, rows, notes = finished(("other", "scratch"), calibrate, seeds=(2, 1))
    assert notes == ["With 2."]
    theirs = overconfident()
    for seed in (1, 2):
        expected = {split: np.roll(rows, seed, axis=1) for split, rows in theirs.items()}
        if calibrate:
            expected["test"] = apply_temperature(expected["test"], fit_temperature(LABELS, expected["val"]))
        np.testing.assert_allclose(found["scratch"][0][seed], expected["test"], rtol=1e-5)
    assert found["other"][0][1] is found["other"][0][2]
    assert rows == [{"stage": "other", "epoch": 1}, {"epoch": 2}]  # of the first seed, that of the export
    assert clock.seconds["baseline_scratch"] >= 0.04  # of both seeds
