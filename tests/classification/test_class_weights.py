"""What `--class-weights auto` chooses, what it says, and the evidence for it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from common.classification.training import IMBALANCE, choose_class_weights, describe_class_weights, sample_weights

EVIDENCE = Path(__file__).parents[2] / "benchmarks" / "results" / "class_weights_choice.json"


def labels_of(*counts: int) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts)


@pytest.mark.parametrize(("counts", "chosen"), [((30, 10), "none"), ((31, 10), "softened"), ((31, 0, 30), "none")])
def test_auto_looks_at_the_largest_and_the_smallest_class(counts, chosen):
    labels = labels_of(*counts)
    assert choose_class_weights(labels, "auto") == chosen
    np.testing.assert_array_equal(
        sample_weights(labels, labels, len(counts), "auto"), sample_weights(labels, labels, len(counts), chosen)
    )
    data = SimpleNamespace(train=SimpleNamespace(labels=labels), class_names=("ant", "bee", "cow"))
    sentence = describe_class_weights(data, "auto")
    assert (
        chosen in sentence and "ant" in sentence and f"{max(counts)}" in sentence and f"{IMBALANCE} times" in sentence
    )
    assert describe_class_weights(data, "balanced") == "class weights: balanced"


def test_equal_classes_are_said_to_be_equal():
    data = SimpleNamespace(train=SimpleNamespace(labels=labels_of(5, 5)), class_names=("ant", "bee"))
    assert describe_class_weights(data, "auto") == "class weights: none (each class has 5 training examples)"


def test_softened_is_between_none_and_balanced_with_mean_one():
    labels = labels_of(90, 10)
    found = {name: sample_weights(labels, labels, 2, name) for name in ("none", "softened", "balanced")}
    ratios = {name: weights[-1] / weights[0] for name, weights in found.items()}
    assert ratios == pytest.approx({"none": 1, "softened": 3, "balanced": 9}, rel=1e-5)
    assert all(weights.mean() == pytest.approx(1, rel=1e-5) for weights in found.values())


def test_the_choice_is_the_one_that_validation_splits_support():
    sets = json.loads(EVIDENCE.read_text("utf-8"))["sets"]
    unequal = [one for one in sets if one["largest"] > IMBALANCE * one["smallest"]]
    assert len(unequal) >= 4 and len({one["data"] for one in unequal}) >= 3
    for one in unequal:  # softened weights lose nothing, in neither score
        assert one["softened"]["accuracy"] >= one["none"]["accuracy"]
        assert one["softened"]["macro_f1"] >= one["none"]["macro_f1"]
    assert np.mean([one["softened"]["macro_f1"] - one["none"]["macro_f1"] for one in unequal]) > 0.005
    assert any(one["balanced"]["accuracy"] < one["none"]["accuracy"] for one in unequal)  # balanced ones may lose
