"""The linear head: what it is fitted on, in any scale, and that it is the optimum scikit-learn finds."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from common import linear_head
from common.classification.training import balanced_class_weights
from common.linear_head import (
    PENALTIES,
    START_PENALTY,
    chosen_penalty,
    fit_final_head,
    fit_linear_head,
    fit_on_both,
    linear_head_weights,
    mean_and_std,
    predict_head,
)

CLASSES = 3


# --- standardisation --------------------------------------------------------------------------------------


def test_mean_and_std_read_in_pieces_are_numpys():
    values = np.random.default_rng(0).normal(3, [0.01, 1, 100], (2, 103, 3)).astype("float32")
    mean, std = mean_and_std(values, chunk=10)
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean, values.reshape(-1, 3).astype("float64").mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(std, values.reshape(-1, 3).astype("float64").std(axis=0), rtol=1e-5)


@pytest.mark.parametrize("level", [0.0, 0.1, 300.7, -12345.678])
def test_a_feature_that_never_changes_has_std_1(level):
    # The sums of a large constant cancel only up to rounding; what is left must not be divided by.
    values = np.random.default_rng(0).normal(size=(1, 5000, 2)).astype("float32")
    values[..., 0] = level
    assert mean_and_std(values)[1][0] == 1
    assert mean_and_std(values[..., :1])[1] == 1


def test_small_features_are_no_constants():
    values = np.random.default_rng(0).normal(1e-7, 1e-8, (1, 1000, 4)).astype("float32")
    np.testing.assert_allclose(mean_and_std(values)[1], values[0].std(axis=0), rtol=1e-3)


# --- the head ---------------------------------------------------------------------------------------------


def head_of(width: int, classes: int = CLASSES) -> keras.layers.Dense:
    """The head of a whole model: a built Dense layer."""
    head = keras.layers.Dense(classes, activation="softmax")
    head.build((None, width))
    return head


def blobs(count: int, distance: float = 3.0, width: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of three classes around three centres, in scales and places that differ from feature to feature."""
    centres = np.random.default_rng(1).normal(size=(CLASSES, width)) * distance
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    rows = (centres[labels] + rng.normal(size=(count, width))) * np.geomspace(0.01, 100, width) + np.arange(width) * 50
    return rows.astype("float32"), labels


def accuracy(head: keras.layers.Dense, rows: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose most probable class is right."""
    return float((np.asarray(head(rows)).argmax(axis=1) == labels).mean())


def test_the_head_learns_a_separable_problem_from_features_of_any_scale():
    (train, train_labels), (val, val_labels) = blobs(200), blobs(200, seed=1)
    head = head_of(8)
    history = fit_linear_head(head, train[None], train_labels, val, val_labels)
    assert accuracy(head, val, val_labels) > 0.95
    assert {row["stage"] for row in history} == {"head"} and 1 <= len(history) <= len(PENALTIES)
    best = min(history, key=lambda row: row["val_cross_entropy"])
    assert best["val_accuracy"] == pytest.approx(accuracy(head, val, val_labels), abs=1e-6)


def test_the_head_is_the_optimum_of_penalised_logistic_regression():
    train, labels = blobs(200, distance=1.0)
    train = np.concatenate([train, np.full((200, 1), 300.7, "float32")], axis=1)  # one that says nothing
    head = head_of(9)
    fit_linear_head(head, train[None], labels, train, labels, penalties=(0.1,))
    mean, std = mean_and_std(train[None])
    rival = LogisticRegression(C=1 / (0.1 * 200), max_iter=1000, tol=1e-8).fit((train - mean) / std, labels)
    expected = rival.predict_proba((train - mean) / std)
    assert np.isfinite(head.get_weights()[0]).all() and 0.2 < expected.max(axis=1).min() < 0.9
    np.testing.assert_allclose(head(train), expected, atol=2e-3)


def test_features_read_in_pieces_give_the_same_head(monkeypatch):
    train, labels = blobs(6000, distance=0.5)
    heads = [head_of(8), head_of(8)]
    fit_linear_head(heads[0], train[None], labels, train, labels, penalties=(0.1, 0.01))
    monkeypatch.setattr(linear_head, "_IN_MEMORY", 0)
    fit_linear_head(heads[1], train[None], labels, train, labels, penalties=(0.1, 0.01))
    for one, other in zip(heads[0].get_weights(), heads[1].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_path_of_penalties_stops_when_validation_gets_worse():
    rng = np.random.default_rng(0)
    train, labels = rng.normal(size=(30, 50)).astype("float32"), rng.integers(0, CLASSES, 30)  # nothing to learn
    val, val_labels = rng.normal(size=(300, 50)).astype("float32"), rng.integers(0, CLASSES, 300)
    head = head_of(50)
    history = fit_linear_head(head, train[None], labels, val, val_labels, patience=2)
    best = int(np.argmin([row["val_cross_entropy"] for row in history]))
    assert len(history) == best + 3 < len(PENALTIES)
    assert [row["penalty"] for row in history] == sorted((row["penalty"] for row in history), reverse=True)
    said = np.asarray(head(val))
    assert -np.log(said[np.arange(300), val_labels]).mean() == pytest.approx(
        history[best]["val_cross_entropy"], rel=1e-4
    )


@pytest.mark.parametrize("views", [1, 3])
def test_the_final_head_is_fitted_on_both_splits_and_each_validation_example_is_answered_by_one_that_had_not_seen_it(
    views,
):
    (train, labels), (val, val_labels) = blobs(200, distance=1.0), blobs(60, distance=1.0, seed=1)
    weights = {"sample_weights": np.ones(200, "float32"), "val_weights": np.ones(60, "float32")}
    final, alone, both = head_of(8), head_of(8), head_of(8)
    history, val_probabilities, _ = fit_final_head(final, np.stack([train] * views), labels, val, val_labels, **weights)
    assert history == fit_linear_head(alone, np.stack([train] * views), labels, val, val_labels)
    penalty = chosen_penalty(history)
    rows = np.concatenate([train, val])[None]  # validation examples count as often as those of training
    fit_linear_head(both, rows, np.concatenate([labels, val_labels]), val, val_labels, penalties=(penalty,))
    np.testing.assert_allclose(final(val), both(val), atol=1e-2)
    assert 0.01 < np.abs(np.asarray(final(val)) - val_probabilities).max()
    for place in (0, 17, 59):  # its own label plays no part in the answer to an example, but in those to others
        other = val_labels.copy()
        other[place] = (other[place] + 1) % CLASSES
        options = dict(penalty=penalty, start=alone.get_weights(), **weights)
        again = fit_on_both(final, np.stack([train] * views), labels, val, other, **options)
        np.testing.assert_allclose(again[place], val_probabilities[place], atol=1e-5)
        assert np.abs(again - val_probabilities).max() > 1e-3


def test_a_start_near_the_optimum_changes_the_steps_not_the_head():
    rows, labels = blobs(200, distance=1.0)
    pieces = [(rows * 3 + 5, labels, np.ones(200, "float32"))]  # folded into the weights and back
    cold = linear_head_weights(pieces, CLASSES, 0.1)
    head = head_of(8)
    for start, near in ((cold, 0.01), ([2 * one for one in cold], 0.02)):
        head.set_weights(cold)
        expected = predict_head(head, pieces[0][0])
        head.set_weights(linear_head_weights(pieces, CLASSES, 0.1, start))
        np.testing.assert_allclose(predict_head(head, pieces[0][0]), expected, atol=near)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_cross_fitting_of_a_handful(count):
    (train, labels), (val, val_labels) = blobs(50), blobs(count, seed=1)
    weights = {"sample_weights": np.ones(50, "float32"), "val_weights": np.ones(count, "float32")}
    found = fit_on_both(head_of(8), train[None], labels, val, val_labels, penalty=1.0, **weights)
    assert found.shape == (count, CLASSES) and np.allclose(found.sum(axis=1), 1, atol=1e-5)


def test_a_group_is_answered_by_a_head_that_has_seen_none_of_it():
    (train, labels), (val, val_labels) = blobs(50, distance=1.0), blobs(60, distance=1.0, seed=1)
    groups = np.repeat(np.arange(100, 106), 10)  # any numbers
    options = {"sample_weights": np.ones(50, "float32"), "val_weights": np.ones(60, "float32"), "penalty": 0.1}
    options["val_groups"] = groups
    found = fit_on_both(head_of(8), train[None], labels, val, val_labels, **options)
    other = np.where(groups == 102, (val_labels + 1) % CLASSES, val_labels)
    again = fit_on_both(head_of(8), train[None], labels, val, other, **options)
    np.testing.assert_allclose(again[groups == 102], found[groups == 102], atol=1e-5)
    assert np.abs(again - found).max() > 0.05


def test_fine_tuning_starts_from_a_head_that_is_not_too_sure():
    (train, labels), (val, val_labels) = blobs(200, distance=1.0), blobs(60, distance=1.0, seed=1)
    head, weights = head_of(8), np.ones(200, "float32")
    given = {"sample_weights": weights, "val_weights": np.ones(60, "float32")}
    history, chosen, start = fit_final_head(head, train[None], labels, val, val_labels, **given)
    assert min(history, key=lambda row: row["val_cross_entropy"])["penalty"] < START_PENALTY
    head.set_weights(start)
    assert predict_head(head, val).max(axis=1).mean() < chosen.max(axis=1).mean() - 0.05
    for one, other in zip(start, linear_head_weights([(train, labels, weights)], CLASSES, START_PENALTY), strict=True):
        np.testing.assert_array_equal(one, other)  # of train alone
    # Where there is nothing to predict, validation chooses a stronger penalty, and fine-tuning starts from it.
    rng = np.random.default_rng(0)
    train, labels = rng.normal(size=(200, 8)).astype("float32"), rng.integers(0, CLASSES, 200)
    val, val_labels = rng.normal(size=(60, 8)).astype("float32"), rng.integers(0, CLASSES, 60)
    history, _, start = fit_final_head(head, train[None], labels, val, val_labels, **given)
    penalty = min(history, key=lambda row: row["val_cross_entropy"])["penalty"]
    assert penalty > START_PENALTY
    np.testing.assert_array_equal(start[0], linear_head_weights([(train, labels, weights)], CLASSES, penalty)[0])


def test_class_weights_help_the_rare_class():
    rng = np.random.default_rng(0)
    labels = np.array([0] * 285 + [1] * 15)
    rows = (rng.normal(size=(300, 4)) + labels[:, None] * 0.8).astype("float32")
    found = []
    for weights in (None, balanced_class_weights(labels, 2)[labels]):
        head = head_of(4, 2)
        fit_linear_head(head, rows[None], labels, rows, labels, sample_weights=weights)
        found.append((np.asarray(head(rows)).argmax(axis=1)[labels == 1] == 1).mean())
    assert found[1] > found[0] + 0.2


def test_several_views_are_all_learnt_from():
    # The labels can be told from the second view only: the first is the same for every picture.
    view, labels = blobs(150)
    views = np.stack([np.broadcast_to(view.mean(axis=0), view.shape), view])
    head = head_of(8)
    fit_linear_head(head, views, labels, view, labels)
    assert accuracy(head, view, labels) > 0.95


@pytest.mark.parametrize("count", [150, 600])
def test_the_head_is_as_good_as_scikit_learns_logistic_regression(count):
    # As pooled backbones give them: not negative, often 0, correlated, scales of three decades, classes that overlap.
    rng, width, classes, rank = np.random.default_rng(count), 128, 10, 20
    labels = rng.integers(0, classes, count + 1000)
    hidden = rng.normal(size=(classes, rank))[labels] + 1.5 * rng.normal(size=(count + 1000, rank))
    rows = hidden @ rng.normal(size=(rank, width)) / np.sqrt(rank) + rng.normal(size=width)
    rows = np.maximum(rows + 0.3 * rng.normal(size=rows.shape), 0) * np.geomspace(0.01, 10, width)
    rows = rows.astype("float32")
    train, val = rows[:count], rows[count:]

    scaler = StandardScaler().fit(train)
    rival = max(
        LogisticRegression(C=strength, max_iter=300)
        .fit(scaler.transform(train), labels[:count])
        .score(scaler.transform(val), labels[count:])
        for strength in (0.003, 0.03, 0.3)
    )
    head = head_of(width, classes)
    fit_linear_head(head, train[None], labels[:count], val, labels[count:])
    assert 0.5 < rival < 0.95  # neither hopeless nor easy
    assert accuracy(head, val, labels[count:]) > rival - 0.02
