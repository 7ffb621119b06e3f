"""Unigrams in core ops: the ids of the reference tokenizer (`sentencepiece`), on difficult text."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
import tensorflow as tf
from sentencepiece import sentencepiece_model_pb2 as proto

from common.proof.fresh_process.ops import ops_outside_tf_serving
from common.texts.tokenizers.unigram import Unigrams, _read_rules
from tests.texts.test_byte_pair import PIECES, hard_texts, settled_characters

# Characters that the replacement table composes, decomposes or drops, and the symbol for a space.
REPLACED = ["ﷺ", "ﬁ", "①", "㍿", "\u0301", "\u1100\u1161\u11a8", "क\u093c", "\u2581", "\u2581\u2581", "\x7f", "\u00ad"]
TIED = ["!!", "...", "'ll", "ll", "l", "aa", "the ", "- ", "=", "23", "97", "000"]  # segmentations with equal scores


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Strings in many writing systems, and random combinations."""
    rng = random.Random(0)
    known = [chr(point) for point in settled_characters()]
    mixed = ["".join(rng.choices(PIECES + REPLACED, k=rng.randint(0, 12))) for _ in range(4000)]
    tied = ["".join(rng.choices(TIED, k=rng.randint(1, 60))) for _ in range(1000)]
    return hard_texts() + mixed + tied + ["".join(rng.choices(known, k=rng.randint(1, 15))) for _ in range(2000)]


def train(texts: list[str], **settings) -> bytes:
    """Train a small model with the special tokens of DeBERTa v3, to which rare characters are unknown."""
    written, names = io.BytesIO(), {"pad": "[PAD]", "bos": "[CLS]", "eos": "[SEP]", "unk": "[UNK]"}
    special = {f"{name}_piece": piece for name, piece in names.items()}
    special |= {f"{name}_id": number for number, name in enumerate(names)}
    sizes = {"vocab_size": 4000, "hard_vocab_limit": False, "character_coverage": 0.98}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=written, minloglevel=2, **special | sizes | settings
    )
    return written.getvalue()


@pytest.fixture(scope="module")
def model(texts) -> bytes:
    return train(texts[:300] * 3 + texts[4500:5500])


@pytest.fixture(scope="module")
def ours(model) -> Unigrams:
    return Unigrams(model)


def differences(ours, model: bytes, texts: list[str]) -> list[tuple]:
    expected = sentencepiece.SentencePieceProcessor(model_proto=model).encode(texts)
    got = ours(tf.constant(texts)).to_list()
    return [(text, a, b) for text, a, b in zip(texts, got, expected, strict=True) if a != b]


def test_ids_are_those_of_the_reference(ours, model, texts):
    assert differences(ours, model, texts) == []
    unknown = sum(row.count(ours.unknown) for row in ours(tf.constant(texts)).to_list())
    assert unknown > 1000  # the texts contain characters outside the vocabulary


@pytest.mark.parametrize("name", ["nmt_nfkc_cf", "nfkc", "identity"])
def test_every_replacement_table_is_applied(name, texts):
    some = texts[:1000]
    model = train(some, normalization_rule_name=name)
    assert differences(Unigrams(model), model, some) == []


def test_the_table_is_read_whole(model):
    table = proto.ModelProto.FromString(model).normalizer_spec.precompiled_charsmap
    rules, reference = _read_rules(table), sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc")
    assert len(rules) > 200_000
    some = random.Random(0).sample(sorted(rules), 5000)
    spaces = {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "escape_whitespaces": False}
    reference = sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc", **spaces)
    assert [rules[text] for text in some] == [reference.normalize(text) for text in some]


@pytest.mark.parametrize("letters", ["a", TIED, "日本語テキスト中文字符"])
def test_a_long_text_takes_little_time_and_memory(letters, ours, model):
    text = "".join(random.Random(0).choices(letters, k=20_000))
    assert differences(ours, model, [text, "short", ""]) == []


@pytest.mark.slow
def test_it_is_exported_with_core_ops_alone(ours, texts, tmp_path):
    module = tf.Module()
    module.tokenize = ours
    serve = tf.function(lambda text: {"ids": module.tokenize(text).to_tensor(-1)},
                        input_signature=[tf.TensorSpec([None], tf.string, name="text")])  # fmt: skip
    tf.saved_model.save(module, str(tmp_path / "exported"), {"serving_default": serve})
    assert ops_outside_tf_serving(tmp_path / "exported") == []
    some = texts[:500]
    np.save(tmp_path / "expected.npy", ours(tf.constant(some)).to_tensor(-1).numpy())
    (tmp_path / "texts.json").write_text(json.dumps(some))
    program = """
import json, sys, numpy as np, tensorflow as tf
folder = sys.argv[1]
texts = json.load(open(folder + "/texts.json"))
loaded = tf.saved_model.load(folder + "/exported")
serve = loaded.signatures["serving_default"]
np.testing.assert_array_equal(serve(text=tf.constant(texts))["ids"], np.load(folder + "/expected.npy"))
"""
    finished = subprocess.run([sys.executable, "-I", "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_bytes_that_are_no_text_do_no_harm(ours):
    assert ours(tf.constant([b"fine \xff\xfe text", b"\xed\xa0\x80", b"\xf5", b"a\x00b"])).shape[0] == 4


def test_no_texts_and_empty_ones(ours):
    for tokenize in (ours, tf.function(ours.__call__, input_signature=[tf.TensorSpec([None], tf.string)])):
        assert tokenize(tf.constant([], tf.string)).to_list() == []
        assert tokenize(tf.constant(["", "  ", "\n"])).to_list() == [[], [], []]
    assert ours(tf.constant(["", "a", ""])).row_lengths().numpy().astype(bool).tolist() == [False, True, False]


def test_special_tokens_in_a_text_are_text(ours):
    assert (ours.padding, ours.start, ours.end) == (0, 1, 2)
    assert not {0, 1, 2} & set(ours(["[CLS] a [SEP][PAD]"]).to_list()[0])
    assert ours.vocabulary()[:4] == ["[PAD]", "[CLS]", "[SEP]", "[UNK]"] and len(ours.vocabulary()) == ours.size


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "bpe"}, "a model type other than unigram"),
        ({"byte_fallback": True}, "bytes for unknown characters"),
        ({"user_defined_symbols": ["<x>"]}, "user-defined or byte tokens"),
        ({"add_dummy_prefix": False}, "no space added at the beginning"),
        ({"bos_piece": "<s>"}, r"has no \[CLS\]"),
    ],
)
def test_unsupported_features_are_refused(settings, message, texts):
    with pytest.raises(ValueError, match=message):
        Unigrams(train(texts[:340], **settings))
