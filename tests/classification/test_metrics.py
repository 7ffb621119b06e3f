"""Numbers and sentences of the evaluation."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from common.classification.metrics import _macro_f1, classification_metrics, findings, per_class_table, table

TITLES = {"words": "Counted words"}


def answers(labels: np.ndarray, right: np.ndarray, classes: int) -> np.ndarray:
    """Probabilities that choose the label where `right`, and the next class elsewhere."""
    chosen = np.where(right, labels, (labels + 1) % classes)
    return np.eye(classes, dtype="float32")[chosen] * 0.9 + 0.1 / classes


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, 400)


def right(share: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(400) < share


def test_metrics_equal_scikit_learn_and_intervals_hold_them(labels):
    probabilities = answers(labels, right(0.8, 1), 3)
    metrics = classification_metrics(labels, probabilities)
    predicted = probabilities.argmax(axis=1)
    assert metrics["accuracy"] == pytest.approx(np.mean(predicted == labels))
    assert metrics["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert _macro_f1(labels, predicted, 3) == pytest.approx(metrics["macro_f1"])
    for name in ("accuracy", "macro_f1"):
        low, high = metrics[f"{name}_ci95"]
        assert low < metrics[name] < high
    # Normal approximation: 1.96 * sqrt(0.8 * 0.2 / 400) is 0.039 on each side.
    low, high = metrics["accuracy_ci95"]
    assert (high - low) / 2 == pytest.approx(0.039, abs=0.008)


def test_class_without_test_images_does_not_count_as_zero():
    labels = np.array([0, 0, 1, 1])
    metrics = classification_metrics(labels, answers(labels, np.array([True] * 4), 3))
    assert metrics["macro_f1"] == 1.0 and metrics["macro_f1_ci95"] == [1.0, 1.0]


def test_negative_transfer_is_said_plainly(labels):
    ours, scratch = answers(labels, right(0.6, 1), 3), answers(labels, right(0.9, 2), 3)
    (sentence,) = findings(labels, [ours], {"scratch": [scratch]}, TITLES)
    assert sentence.startswith("Negative transfer") and "--source" in sentence
    (sentence,) = findings(labels, [scratch], {"scratch": [ours]}, TITLES)
    assert sentence.startswith("The pretrained source gains")


def test_fine_tuning_is_judged_against_the_frozen_source(labels):
    weak, strong = answers(labels, right(0.6, 1), 3), answers(labels, right(0.9, 2), 3)
    assert "gains" in findings(labels, [strong], {"frozen": [weak]}, TITLES)[0]
    assert "hurts" in findings(labels, [weak], {"frozen": [strong]}, TITLES)[0]
    other = answers(labels, right(0.9, 3), 3)
    assert "too close to call" in findings(labels, [strong], {"frozen": [other]}, TITLES)[0]
    assert "is the frozen source" in findings(labels, [strong], {"frozen": [strong]}, TITLES)[0]


def test_gains_over_several_seeds_are_their_mean_and_a_single_seed_says_so(labels):
    weak, strong = answers(labels, right(0.6, 1), 3), answers(labels, right(0.9, 2), 3)
    (single,) = findings(labels, [strong], {"scratch": [weak]}, TITLES)
    assert "for this seed" in single
    (of_two,) = findings(labels, [strong, weak], {"scratch": [weak, weak]}, TITLES)
    gain = 100 * (np.mean(strong.argmax(1) == labels) - np.mean(weak.argmax(1) == labels)) / 2
    assert f"{gain:.1f} points in the mean of 2 seeds (+0.0 to +{2 * gain:.1f})" in of_two


def test_a_class_that_a_resample_lacks_does_not_lift_macro_f1():
    # 100 examples of one class, all right, and one each of 40 others, all wrong: the review met such a data set.
    labels = np.concatenate([np.zeros(100, int), np.arange(1, 41)])
    probabilities = np.eye(41, dtype="float32")[np.zeros(140, int)]
    found = classification_metrics(labels, probabilities)
    low, high = found["macro_f1_ci95"]
    assert low <= found["macro_f1"] <= high and high - low < 0.005


def test_a_few_discordant_examples_are_no_evidence():
    labels = np.zeros(200, int)
    theirs = answers(labels, np.ones(200, bool), 2)
    ours = theirs.copy()
    worse = theirs.copy()
    worse[:4] = worse[:4, ::-1]  # 4 images that only one of them has right: a bootstrap would call this significant
    (sentence,) = findings(labels, [ours], {"frozen": [worse]}, TITLES)
    assert "too close to call" in sentence
    worse[:12] = theirs[0, ::-1]
    assert "gains" in findings(labels, [ours], {"frozen": [worse]}, TITLES)[0]


def test_a_perfect_score_is_not_certain():
    labels = np.zeros(20, int)
    low, high = classification_metrics(labels, answers(labels, np.ones(20, bool), 2))["accuracy_ci95"]
    assert low == pytest.approx(0.839, abs=0.001) and high == pytest.approx(1.0)  # Wilson's interval for 20 of 20


def test_from_scratch_within_chance_is_no_gain(labels):
    one, other = answers(labels, right(0.80, 1), 3), answers(labels, right(0.79, 2), 3)
    (sentence,) = findings(labels, [one], {"scratch": [other]}, TITLES)
    assert "too close to call" in sentence and "gains" not in sentence


def test_cheap_baselines_are_called_by_their_titles(labels):
    weak, strong = answers(labels, right(0.6, 1), 3), answers(labels, right(0.9, 2), 3)
    (sentence,) = findings(labels, [strong], {"words": [weak]}, TITLES)
    assert sentence.startswith("The network gains") and sentence.endswith("over counted words.")
    (sentence,) = findings(labels, [weak], {"words": [strong]}, TITLES)
    assert sentence.startswith("A network is not needed here: counted words is better by")
    (sentence,) = findings(labels, [strong], {"words": [answers(labels, right(0.9, 3), 3)]}, TITLES)
    assert sentence.startswith("The network and counted words are too close to call")


def test_the_table_ends_with_the_result_and_the_seconds_of_its_stages():
    score = {"accuracy": 0.5, "accuracy_ci95": [0.4, 0.6], "macro_f1": 0.45}
    metrics = {
        "test": score | {"accuracy": 0.75},
        "baselines": {"words": score | {"seconds": 3.2}, "odd": score | {"seconds": 1}},
        "seconds": {"total": 100.0, "data": 50.0, "features": 4.0, "head": 5.0, "finetune": 11.0},
    }
    heading, *rows = table(metrics, TITLES)
    assert heading.split() == ["accuracy", "(95", "%", "interval)", "macro-F1", "seconds"]
    assert [row.split("0.")[0].strip() for row in rows] == ["counted words", "odd", "result"]
    assert rows[0].split()[2:] == ["0.500", "(0.400", "to", "0.600)", "0.450", "3"]
    assert rows[2].split()[1] == "0.750" and rows[2].split()[-1] == "20"


def test_per_class_table_counts_each_class(labels):
    rows = per_class_table(labels, answers(labels, right(0.8, 1), 3), ["a", "b", "c"])
    assert [row["class"] for row in rows] == ["a", "b", "c"]
    assert sum(row["support"] for row in rows) == len(labels)
