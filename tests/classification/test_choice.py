"""Choices on validation, calibration ranges, and training to a plateau."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.classification.calibration import ece_if_calibrated95, expected_calibration_error
from common.classification.choice import best_on_validation, calibrated_cross_entropy, describe_choice
from common.classification.plateau import fit_to_plateau


def probabilities_of(labels: np.ndarray, right: np.ndarray, confidence: float) -> np.ndarray:
    """Return probabilities of 4 classes, with this confidence in the true class or in the next one."""
    predicted = np.where(right, labels, (labels + 1) % 4)
    found = np.full((len(labels), 4), (1 - confidence) / 3, "float32")
    found[np.arange(len(labels)), predicted] = confidence
    return found


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4, 500)


def test_overconfidence_alone_does_not_decide_between_models(labels):
    rng = np.random.default_rng(1)
    better, worse = rng.random(500) < 0.8, rng.random(500) < 0.6
    overconfident, modest = probabilities_of(labels, better, 0.999), probabilities_of(labels, worse, 0.6)
    plain = [-np.log(p[np.arange(500), labels]).mean() for p in (overconfident, modest)]
    assert plain[0] > plain[1]  # without calibration the worse model would win
    assert calibrated_cross_entropy(labels, overconfident) < calibrated_cross_entropy(labels, modest)
    assert best_on_validation(labels, {"modest": modest, "overconfident": overconfident}) == "overconfident"
    assert "is kept: on 500 validation examples" in describe_choice(labels, modest, overconfident)
    assert "is not kept" in describe_choice(labels, overconfident, modest)


def test_a_calibrated_model_lies_within_the_simulated_range_and_an_overconfident_one_above_it(labels):
    right = np.random.default_rng(2).random(500) < 0.7
    low, high = ece_if_calibrated95(probabilities_of(labels, right, 0.7))
    assert 0 <= low <= expected_calibration_error(labels, probabilities_of(labels, right, 0.7)) <= high
    assert expected_calibration_error(labels, probabilities_of(labels, right, 0.95)) > high
    few = ece_if_calibrated95(probabilities_of(labels, right, 0.7)[:50])
    assert few[1] > high  # fewer examples allow more


def test_a_plateau_ends_training_and_the_second_rate_starts_from_the_best_epoch(tmp_path):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(64, 5)).astype("float32")
    wrong = rng.random(64) < 0.3  # labels that cannot be learned: validation must get worse at some time
    targets = np.eye(2, dtype="float32")[((inputs[:, 0] > 0) ^ wrong).astype(int)]
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2, activation="softmax")])
    data = tf.data.Dataset.from_tensor_slices((inputs[:32], targets[:32])).batch(16)
    val = tf.data.Dataset.from_tensor_slices((inputs[32:], targets[32:])).batch(32)
    rates = []

    def optimizer(rate):
        rates.append(rate)
        return keras.optimizers.Adam(rate)

    options = dict(
        validation=val, steps=2, optimizer=optimizer, rate=0.5, stage="scratch_0", save=lambda stage: {}, patience=2,
    )  # fmt: skip
    rows, ended = fit_to_plateau(model, lambda epoch, step: data.repeat(), epochs=50, **options)
    assert rates == pytest.approx([0.5, 0.05]) and len(rows) < 100
    assert ended == f"stopped at a plateau after {len(rows)} epochs"
    assert {row["stage"] for row in rows} == {"scratch_0", "scratch_0_low_rate"}
    assert (
        model.evaluate(val, verbose=0, return_dict=True)["accuracy"] >= max(row["val_accuracy"] for row in rows) - 1e-6
    )
    rows, ended = fit_to_plateau(model, lambda epoch, step: data.repeat(), epochs=1, **options)
    assert ended == "was still improving after 2 epochs" or ended.startswith("stopped")
