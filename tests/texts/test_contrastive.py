"""Contrasting pairs: the loss by hand, its effect on embeddings, and a killed run."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.checkpoints import load_stage
from common.texts import contrastive
from common.texts.batches import TextReader, run_on_tokens
from common.texts.tokenizers.wordpiece import WordPiece

CHOICE = Path(__file__).parents[2] / "benchmarks" / "results" / "few_shot_choice.json"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(20))]


def toy_encoder() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask")}
    vectors = keras.layers.Embedding(len(VOCABULARY), 8, embeddings_initializer="normal")(inputs["token_ids"])
    mask = keras.ops.cast(inputs["padding_mask"], "float32")[..., None]
    hidden = keras.layers.Dropout(0.1)(keras.ops.sum(vectors * mask, axis=1) / keras.ops.sum(mask, axis=1))
    return keras.Model(inputs, keras.layers.Dense(6)(hidden))


@pytest.fixture(scope="module")
def examples():
    """Texts of three classes, each with words of its own and some of all."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    words = [[f"w{label * 5 + rng.integers(5)}", f"w{rng.integers(15, 20)}", f"w{rng.integers(15, 20)}"]
             for label in labels]  # fmt: skip
    return TextReader(WordPiece(VOCABULARY), 16).read([" ".join(some) for some in words]), labels


@pytest.mark.parametrize("temperature", [contrastive.TEMPERATURE, 0.7])
def test_the_loss_by_hand(temperature):
    embeddings, labels = np.random.default_rng(0).normal(size=(6, 4)).astype("float32"), np.array([0, 1, 0, 2, 1, 0])
    directions = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    expected = []
    for i in range(6):
        others = [j for j in range(6) if j != i]
        total = sum(np.exp(directions[i] @ directions[j] / temperature) for j in others)
        alike = [
            np.log(np.exp(directions[i] @ directions[j] / temperature) / total)
            for j in others
            if labels[i] == labels[j]
        ]
        expected.append(-np.mean(alike) if alike else 0.0)  # the only text of its class has no pair
    found = contrastive.contrastive_loss(np.eye(3, dtype="float32")[labels], embeddings, temperature)
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-5)


def test_temperature_and_steps_are_those_of_the_committed_choice():
    chosen = json.loads(CHOICE.read_text("utf-8"))["chosen"]
    assert chosen["temperature"] == contrastive.TEMPERATURE
    for texts in (4, 16, 64, 1000):
        assert contrastive.default_steps(texts) == max(chosen["at_least"], int(texts * chosen["per_text"]))


def test_the_choice_follows_its_rule():
    """The first value within half a point of the best: the temperature of the paper, the smallest number of steps."""
    found = json.loads(CHOICE.read_text("utf-8"))
    for rows in (found["temperatures"], found["steps"]):
        best = max(row["accuracy"] for row in rows)
        first = next(row for row in rows if row["accuracy"] >= best - 0.005)
        keys = ("temperature",) if rows is found["temperatures"] else ("at_least", "per_text")
        assert all(first[key] == found["chosen"][key] for key in keys)


def test_texts_of_one_class_become_similar(examples):
    tokens, labels = examples
    encoder = toy_encoder()

    def loss() -> float:
        return float(contrastive.contrastive_loss(np.eye(3, dtype="float32")[labels], run_on_tokens(encoder, tokens)))

    before = loss()
    rows = contrastive.tune_on_pairs(encoder, tokens, labels, steps=60, learning_rate=0.02, batch_size=24)
    assert loss() < before - 0.5
    assert rows[0]["stage"] == "pairs" and rows[0]["loss"] < before


def test_what_is_frozen_stays(examples):
    encoder = toy_encoder()
    frozen = next(layer for layer in encoder.layers if isinstance(layer, keras.layers.Embedding))
    frozen.trainable = False
    before = frozen.get_weights()[0]
    contrastive.tune_on_pairs(encoder, *examples, steps=3, learning_rate=0.02)
    np.testing.assert_array_equal(frozen.get_weights()[0], before)


def test_batches_hold_as_many_of_each_class(examples):
    _, labels = examples
    for texts, _ in contrastive._balanced(labels, 12, 4, seed=1, first=0):
        assert np.bincount(labels[texts]).tolist() == [4, 4, 4]
    assert [len(texts) for texts, _ in contrastive._balanced(labels, 100, 2, seed=1, first=0)] == [60, 60]


def test_a_killed_run_ends_as_if_nothing_had_happened(examples, tmp_path, monkeypatch):
    def tuned(path=None):
        encoder = toy_encoder()
        contrastive.tune_on_pairs(
            encoder, *examples, steps=6, learning_rate=0.02, batch_size=12, checkpoint=path, save_every=0
        )
        return encoder.get_weights()

    undisturbed, balanced, path = tuned(), contrastive._balanced, tmp_path / "pairs.npz"

    def killed_after_three_steps(labels, size, steps, seed, first):
        yield from balanced(labels, size, 3, seed, first)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(contrastive, "_balanced", killed_after_three_steps)
        with pytest.raises(tf.errors.OpError):  # its form inside the tf.data stream
            tuned(path)
    assert load_stage(path)[0].step == 3
    for one, other in zip(undisturbed, tuned(path), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
