"""Batches of token ids: every text is included, padding is short, and a killed run resumes with the same batches."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import linear_head
from common.serving.servables import Servable
from common.texts import export
from common.texts.batches import TextReader, run_on_tokens, shuffled_by_length, training_batches
from common.texts.tokenizers.wordpiece import WordPiece

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "##s", "not", "a", "!"]


@pytest.fixture(scope="module")
def tokenize() -> WordPiece:
    return WordPiece(VOCABULARY)


def some_texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(["good", "bad", "films", "not", "a"], rng.integers(1, 60))) for _ in range(count)]


def test_texts_become_the_ids_of_the_serving_graph(tokenize: WordPiece):
    given = ["good films!", "", "not a Film", "unheard of", "ü" * 300]
    reader = TextReader(tokenize, 8)
    tokens = reader.read(given)
    assert tokens.ids[0].tolist() == [2, 5, 7, 8, 11, 3] and tokens.ids[1].tolist() == [2, 3] and not tokens.cut
    served, _ = reader.batch(tf.constant([text.encode() for text in given]))
    for row, ids in enumerate(tokens.ids):
        assert served["token_ids"][row, : len(ids)].numpy().tolist() == ids.tolist()
        assert served["padding_mask"][row].numpy().sum() == len(ids)


def test_a_long_text_is_truncated_and_counted(tokenize: WordPiece):
    tokens = TextReader(tokenize, 10).read(["good " * 50, "bad"])
    assert tokens.cut == 1 and len(tokens.ids[0]) == 10 and tokens.ids[0][-1] == tokenize.end


@pytest.mark.parametrize("size", [5, 10, 11])
def test_windows_read_every_token_of_a_long_text(tokenize: WordPiece, size: int):
    given = ["good bad films not a " * 7, "bad", "", "a " * (size - 2), "a " * (size - 1)]
    whole = TextReader(tokenize, 1000).read(given)
    windows = TextReader(tokenize, size, "windows").read(given)
    assert windows.lengths.tolist() == whole.lengths.tolist() and windows.cut == 0
    assert windows.rows_of_text[1:].tolist() == [1, 1, 1, 2] and windows.row_lengths.max() == size
    for text, ids in enumerate(whole.ids):
        rows = [windows.ids[row] for row in np.nonzero(windows.owners == text)[0]]
        assert all(row[0] == tokenize.start and row[-1] == tokenize.end for row in rows)
        step = max(1, size - 2 - (size - 2) // 4)
        joined = [token for row in rows[:-1] for token in row[1 : 1 + step]] + rows[-1][1:-1].tolist()
        assert joined == ids[1:-1].tolist()


@pytest.mark.slow
def test_an_export_with_windows_averages_their_embeddings(tokenize: WordPiece, tmp_path):
    model, given = toy_classifier(), [*some_texts(30), "bad " * 500, "good " * 29]
    reader = TextReader(tokenize, 16, "windows")
    tokens = reader.read(given)
    assert tokens.rows_of_text.max() > 40
    encoder, head = keras.Model(model.input, model.get_layer("head").input), model.get_layer("head")
    embedded = run_on_tokens(encoder, tokens)
    long = np.concatenate([encoder.predict_on_batch(tokens.batch(np.nonzero(tokens.owners == 30)[0]))])
    np.testing.assert_allclose(embedded[30], long.mean(axis=0), rtol=1e-5)
    expected = linear_head.predict_head(head, embedded)
    version = export.export_text_classifier(model, reader, tmp_path / "toy", ("bad", "good"), examples=given[:2])
    proof = export.prove_text_classifier(version, given, expected, ("bad", "good"))
    assert proof["passed"] and proof["max_abs_diff"] < 1e-6 and not proof["ops_outside_tf_serving"]
    # the end of the text matters, unlike with truncation
    served = Servable("toy", 1, version)
    asked = np.array([b"bad " * 300, b"bad " * 300 + b"good " * 300], object)
    answers = served.predict(served.signature("serving_default"), {"text": asked})["probabilities"]
    assert np.abs(answers[0] - answers[1]).max() > 1e-3


def test_rows_of_a_text_share_its_weight(tokenize: WordPiece):
    tokens = TextReader(tokenize, 8, "windows").read(["good " * 40, "bad", "a film"])
    batches = training_batches(tokens, np.eye(3, dtype="float32"), np.array([3.0, 1, 2], "float32"), 4, seed=0)
    inputs, targets, weights = next(iter(batches.unbatch().batch(len(tokens)).as_numpy_iterator()))
    assert inputs["token_ids"].shape[0] == len(tokens) > 5
    np.testing.assert_allclose([weights[targets[:, text] == 1].sum() for text in range(3)], [3, 1, 2], rtol=1e-6)


def test_every_text_once_per_epoch_and_little_padding(tokenize: WordPiece):
    tokens = TextReader(tokenize, 128).read(some_texts(500))
    batches = shuffled_by_length(tokens, 32, (0, 1))
    assert sorted(np.concatenate(batches)) == list(range(500))
    assert [b.tolist() for b in batches] == [b.tolist() for b in shuffled_by_length(tokens, 32, (0, 1))]
    assert [b.tolist() for b in batches] != [b.tolist() for b in shuffled_by_length(tokens, 32, (0, 2))]

    def padded(found) -> float:
        return sum(tokens.batch(b)["token_ids"].size for b in found) / tokens.lengths.sum()

    assert padded(batches) < 1.4 < 1.6 < padded(shuffled_by_length(tokens, 32, (0, 1), pool=0))


def test_a_resumed_run_gets_the_same_batches(tokenize: WordPiece):
    tokens = TextReader(tokenize, 128).read(some_texts(50))
    targets, weights = np.eye(2, dtype=np.float32)[np.arange(50) % 2], np.ones(50, np.float32)
    whole = training_batches(tokens, targets, weights, 8, seed=3).take(12)
    later = training_batches(tokens, targets, weights, 8, seed=3, first=(1, 2)).take(3)
    for one, other in zip(list(whole)[9:], later, strict=True):
        np.testing.assert_array_equal(one[0]["token_ids"], other[0]["token_ids"])
        np.testing.assert_array_equal(one[1], other[1])


def toy_classifier() -> keras.Model:
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask")}
    vectors = keras.layers.Embedding(len(VOCABULARY), 4)(inputs["token_ids"])
    mask = keras.ops.cast(inputs["padding_mask"], "float32")[..., None]
    mean = keras.ops.sum(vectors * mask, axis=1) / keras.ops.sum(mask, axis=1)
    dropped = keras.layers.Dropout(0.5)(mean)
    return keras.Model(inputs, keras.layers.Dense(2, activation="softmax", name="head")(dropped))


def test_outputs_do_not_depend_on_the_other_texts(tokenize: WordPiece):
    model, given = toy_classifier(), some_texts(70)
    tokens = TextReader(tokenize, 128).read(given)
    together = run_on_tokens(model, tokens)
    alone = np.concatenate([run_on_tokens(model, tokens.of_texts([i])) for i in range(70)])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_an_export_takes_raw_strings_and_is_proved(tokenize: WordPiece, tmp_path):
    model, given = toy_classifier(), [*some_texts(40), "", "\x00good\x00", "😀 films", "bad " * 500]
    expected = run_on_tokens(model, TextReader(tokenize, 32).read(given))
    names = ("bad", "good")
    version = export.export_text_classifier(
        model, TextReader(tokenize, 32), tmp_path / "toy", names, examples=given[:2]
    )
    proof = export.prove_text_classifier(version, given, expected, names)
    assert proof["passed"] and proof["agreement"] == 1.0 and proof["max_abs_diff"] < 1e-6
    assert proof["ops_outside_tf_serving"] == []
    servable = Servable("toy", 1, version)
    assert set(servable.signatures) == {"serving_default", "tensors", "embed"}
    embedded = servable.predict(servable.signature("embed"), {"text": np.array([b"good", b"bad films"], object)})
    assert embedded["embedding"].shape == (2, 4)


@pytest.mark.slow
def test_the_proof_detects_another_vocabulary(tokenize: WordPiece, tmp_path):
    model, given = toy_classifier(), some_texts(40)
    expected = run_on_tokens(model, TextReader(tokenize, 32).read(given))
    swapped = [*VOCABULARY[:5], "bad", "good", *VOCABULARY[7:]]
    reader = TextReader(WordPiece(swapped), 32)
    version = export.export_text_classifier(model, reader, tmp_path / "toy", ("a", "b"))
    assert not export.prove_text_classifier(version, given, expected, ("a", "b"))["passed"]
