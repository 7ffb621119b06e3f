"""BERT against committed outputs of the reference implementation: token ids of hard strings, hidden states.

benchmarks/refresh_text_references.py wrote both; nothing here needs PyTorch, transformers or a network.
"""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.sources.catalogue import CATALOGUE
from common.sources.entries import missing_files
from common.texts.models import build_encoder
from common.texts.sources import load_text_source
from common.texts.tokenizers.wordpiece import WordPiece

DATA = Path(__file__).parent / "data"
MINILM = CATALOGUE["minilm"]

# The reference has tables of Unicode 8, and Python of a later version, so these characters are of different kinds. All
# other strings must give the same ids.
LATER_UNICODE = {
    "x\u08e2y": "ARABIC DISPUTED END OF AYAH: a format character since Unicode 9",
    "x\u1885y": "MONGOLIAN LETTER ALI GALI BALUDA: a letter, and since Unicode 9 an accent",
    "x\u0afay": "GUJARATI SIGN SUKUN: an accent of Unicode 10",
    "x\u2e4fy": "CORNISH VERSE DIVIDER: punctuation of Unicode 12",
    "x\u166dy": "CANADIAN SYLLABICS CHI SIGN: punctuation, and since Unicode 12 a symbol",
    "x\u1734y": "HANUNOO SIGN PAMUDPOD: an accent, and since Unicode 14 a spacing mark",
}


@pytest.fixture(scope="module")
def hard() -> dict:
    """The strings with the ids of the reference, and the subset of the real vocabulary that can occur in them."""
    return json.loads((DATA / "hard_strings.json").read_text("ascii"))


@pytest.fixture(scope="module")
def tokenize(hard) -> WordPiece:
    """Our tokenizer, with impossible words in place of those that do not occur in the strings."""
    vocabulary = [f" {number}" for number in range(hard["vocabulary_size"])]
    for token, number in hard["vocabulary"].items():
        vocabulary[number] = token
    return WordPiece(vocabulary)


@pytest.fixture(scope="module")
def states() -> dict[str, np.ndarray]:
    """Token ids of sentences, and the hidden states of the reference."""
    with np.load(DATA / "minilm_hidden_states.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture
def fetched() -> None:
    """Skip if the real files are not in the cache: nothing is downloaded here."""
    if missing_files(MINILM):
        pytest.skip("needs the real vocabulary and weights: python -m recipes fetch minilm")


def differences(tokenize: WordPiece, hard: dict) -> dict[str, tuple[list[int], list[int]]]:
    """Return the texts whose ids differ from the reference, with our ids and its."""
    texts = [row["text"] for row in hard["strings"]]
    ours = tokenize(tf.constant(texts)).to_list()
    pairs = zip(hard["strings"], ours, strict=True)
    return {row["text"]: (ids, row["ids"]) for row, ids in pairs if ids != row["ids"]}


def test_there_are_many_hard_strings(hard):
    texts = [row["text"] for row in hard["strings"]]
    # Names of writing systems have a capital; the others are kinds of text: emoji, code.
    scripts = {row["script"] for row in hard["strings"] if row["script"][0].isupper()}
    assert len(set(texts)) == len(texts) >= 200
    assert len(scripts) >= 12
    assert set(LATER_UNICODE) < set(texts)


def test_ids_are_those_of_the_reference(hard, tokenize):
    different = differences(tokenize, hard)
    assert {text: ids for text, ids in different.items() if text not in LATER_UNICODE} == {}
    # If this fails, the reference or Python has new tables, and an exception can be removed.
    assert set(different) == set(LATER_UNICODE)


def test_ids_are_those_of_the_reference_with_the_whole_vocabulary(hard, fetched):
    lines = (MINILM.folder / "vocab.txt").read_text("utf-8").splitlines()
    assert len(lines) == hard["vocabulary_size"]
    assert set(differences(WordPiece(lines), hard)) == set(LATER_UNICODE)


def test_a_graph_gives_the_same_ids_of_a_batch_and_of_one_text(hard, tokenize):
    texts = [row["text"] for row in hard["strings"]]
    expected = tokenize(tf.constant(texts)).to_list()
    in_graph = tf.function(tokenize.__call__, input_signature=[tf.TensorSpec([None], tf.string)])
    assert in_graph(tf.constant(texts)).to_list() == expected
    alone = [in_graph(tf.constant([text])).to_list()[0] for text in texts]
    assert alone == expected


def test_unassigned_characters_stay(tokenize):
    # The reference keeps characters that its tables lack. If dropped, ids would depend on the version of Python.
    unknown = tokenize.unknown
    assert tokenize(["x\u0378y", "x\U0003ffffy", "\uffff"]).to_list() == [[unknown]] * 3


def test_hidden_states_of_every_layer_are_those_of_the_reference(states, fetched):
    source = load_text_source("minilm")
    start, end = source.tokenize.start, source.tokenize.end
    ids = [[start, *of_sentence, end] for of_sentence in source.tokenize(states["sentences"]).to_list()]
    kept = zip(states["token_ids"], states["padding_mask"], strict=True)
    assert ids == [row[mask == 1].tolist() for row, mask in kept]

    inputs = {"token_ids": states["token_ids"], "padding_mask": states["padding_mask"]}
    layers = [source.backbone.get_layer("embeddings_dropout"), *source.backbone.transformer_layers]
    every_layer = keras.Model(source.backbone.input, [layer.output for layer in layers])
    outputs = every_layer(inputs | {"segment_ids": np.zeros_like(states["token_ids"])}, training=False)
    sentences = np.arange(len(states["token_ids"]))[:, None]
    ours = np.stack([np.asarray(output)[sentences, states["positions"]] for output in outputs], axis=2)
    assert ours.shape == states["hidden_states"].shape
    largest = np.abs(ours - states["hidden_states"]).max(axis=(0, 1, 3))
    message = f"largest difference in the embeddings and after each layer: {', '.join(f'{d:.1e}' for d in largest)}"
    print(message)
    assert (largest < 1e-4).all(), message

    embeddings = np.asarray(build_encoder(source)(inputs, training=False))
    np.testing.assert_allclose(embeddings, states["embeddings"], atol=1e-4)
