"""Choices on validation, calibration ranges, and training to a plateau."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.classification.calibration import (
    apply_temperature,
    ece_if_calibrated95,
    expected_calibration_error,
    fit_temperature,
)
from common.classification.choice import (
    BOLD,
    ERRORS,
    FEWEST_ERRORS,
    best_on_validation,
    calibrated_losses,
    keep_what_helps,
    too_few_errors,
)
from common.classification.plateau import fit_to_plateau
from common.linear_head import START_PENALTY

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


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
    assert calibrated_losses(labels, overconfident).mean() < calibrated_losses(labels, modest).mean()
    assert best_on_validation(labels, {"modest": modest, "overconfident": overconfident}) == "overconfident"


def test_a_calibrated_model_lies_within_the_simulated_range_and_an_overconfident_one_above_it(labels):
    right = np.random.default_rng(2).random(500) < 0.7
    low, high = ece_if_calibrated95(probabilities_of(labels, right, 0.7))
    assert 0 <= low <= expected_calibration_error(labels, probabilities_of(labels, right, 0.7)) <= high
    assert expected_calibration_error(labels, probabilities_of(labels, right, 0.95)) > high
    few = ece_if_calibrated95(probabilities_of(labels, right, 0.7)[:50])
    assert few[1] > high  # fewer examples allow more


def test_a_few_examples_without_a_mistake_do_not_make_every_probability_one():
    labels = np.arange(12) % 4
    probabilities = probabilities_of(labels, np.ones(12, bool), 0.9)
    scaled = apply_temperature(probabilities, fit_temperature(labels, probabilities))
    assert scaled.max() == pytest.approx(13 / 14, abs=1e-3)


def net_of(weight: float) -> keras.Model:
    """Return a classifier of 2 classes whose one feature counts this much."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2, activation="softmax")])
    model.set_weights([np.array([[weight, -weight]], "float32"), np.zeros(2, "float32")])
    return model


@pytest.mark.parametrize(("count", "kept"), [(400, True), (6, False)])
def test_fine_tuning_is_kept_as_far_as_validation_supports(count, kept):
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(count, 1)).astype("float32"), np.arange(count) % 2
    inputs[:, 0] = np.where(labels == 0, 1, -1) + rng.normal(size=count)  # the feature tells the classes apart
    model, start = net_of(1.0), net_of(-1.0).get_weights()  # start has it the wrong way round; half-way knows nothing
    frozen = np.full((count, 2), 0.5, "float32")
    predict = lambda: model.predict(inputs, verbose=0)  # noqa: E731
    share, probabilities, sentence = keep_what_helps(model, start, frozen, predict, labels)
    if kept:
        assert share > 0.5 and np.allclose(probabilities, predict(), atol=1e-6)
        assert f"kept at {share:.0%} of the way" in sentence and f"on {count} validation examples" in sentence
    else:  # from six examples no standard error can be told
        assert share == 0.0 and probabilities is frozen and "is not kept" in sentence
        assert "On so few, all differences count as chance" in sentence
    for share in (0.25, 0.5, 0.75, 1.0):
        assert f" at {share:.0%}" in sentence and " with the frozen source" in sentence


def test_the_head_that_was_fitted_at_the_share_that_is_kept_comes_back():
    labels = np.arange(200) % 2
    inputs = np.where(labels == 0, 1.0, -1.0)[:, None].astype("float32")
    backbone, head = keras.layers.Dense(1, use_bias=False), keras.layers.Dense(2, activation="softmax")
    model = keras.Sequential([keras.Input((1,)), backbone, head])
    model.set_weights([np.array([[-3.0]]), np.array([[1.0, -1.0]]), np.zeros(2)])
    start = model.get_weights()
    backbone.set_weights([np.array([[1.0]])])  # fine-tuned: half-way it is -1, and the features are turned round

    def refit() -> np.ndarray:
        sign = np.sign(backbone.get_weights()[0][0, 0])
        head.set_weights([sign * np.array([[2.0, -2.0]]), np.zeros(2)])
        return model.predict(inputs, verbose=0)

    share, probabilities, _ = keep_what_helps(
        model, start, np.full((200, 2), 0.5), refit, labels, order=BOLD, head=head
    )
    assert share == BOLD[0] and (probabilities.argmax(axis=1) == labels).all()
    np.testing.assert_allclose(model.predict(inputs, verbose=0), probabilities, atol=1e-6)
    assert np.sign(head.get_weights()[0][0, 0]) == np.sign(backbone.get_weights()[0][0, 0])


def test_what_is_worse_than_the_frozen_source_is_not_kept(labels):
    model, inputs = net_of(2.0), np.where(np.arange(200) % 2, 1.0, -1.0)[:, None].astype("float32")
    wrong_way = np.arange(200) % 2  # the fine-tuned model says the opposite
    frozen = np.where(wrong_way[:, None] == np.arange(2), 0.8, 0.2).astype("float32")
    share, probabilities, sentence = keep_what_helps(
        model, net_of(0.0).get_weights(), frozen, lambda: model.predict(inputs, verbose=0), wrong_way
    )
    assert share == 0.0 and probabilities is frozen and "is not kept" in sentence


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
    _, ended = fit_to_plateau(model, lambda epoch, step: data.repeat(), epochs=1, **options)
    assert ended == "reached its limit, after 2 epochs"


def test_fine_tuning_is_not_tried_where_validation_could_not_show_a_gain(labels):
    def sentence(errors: int, count: int) -> str:
        return too_few_errors(labels[:count], probabilities_of(labels[:count], np.arange(count) >= errors, 0.9))

    assert "makes 4 errors on 36 validation examples" in sentence(4, 36) and "--unfreeze all" in sentence(4, 36)
    assert sentence(5, 36) == "" and sentence(30, 36) == ""
    assert "makes 1 error on 36" in sentence(1, 36)
    assert "9 validation examples are too few to show" in sentence(9, 9) and "error" not in sentence(9, 9)


def test_the_rule_and_the_head_to_start_from_are_those_that_training_splits_chose():
    """No test image is read by benchmarks/choose_unfreeze.py. Of rules that differ by less than 0.3 points, the one
    that costs least where it is wrong was chosen."""
    found = json.loads((RESULTS / "unfreeze_choice.json").read_text("utf-8"))["mean"]
    rules = found[f"all draws, {START_PENALTY}"]
    rule = f"fine-tuned first, {ERRORS:g} SE, {FEWEST_ERRORS} errors"
    ours = rules[rule]
    names = [name for name in rules if " SE, " in name]
    assert rules["draws"] == 36 and len(names) >= 20 and BOLD == (1.0, 0.5, 0.0)
    assert ours["accuracy"] >= max(rules[name]["accuracy"] for name in names) - 0.003
    assert ours["accuracy"] > rules["0.0"]["accuracy"] + 0.02  # of the frozen source
    assert rules["1.0"]["accuracy"] > rules["1.0 without a new head"]["accuracy"]
    for other in (30.0, 0.3):
        best, theirs = (found[f"draws of {other}, {one}"] for one in (START_PENALTY, other))
        assert best["draws"] == theirs["draws"] == 12 and best[rule]["accuracy"] >= theirs[rule]["accuracy"]
