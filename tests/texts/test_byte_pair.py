"""Byte pairs in core ops: the ids of the reference tokenizer (Hugging Face's `tokenizers`), on difficult text."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers

from common.proof.fresh_process.ops import ops_outside_tf_serving
from common.texts.tokenizers.byte_pair import BytePairs, _letters_of_bytes
from tests.texts.test_wordpiece import HARD

END = "<|endoftext|>"
# ruff: noqa: RUF001 (these letters are ambiguous on purpose)
PIECES = [
    "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'", "''", "'S", "ll", "re", "'l", "'v", " ", "  ", " ", "\n", "\t",
    "\r\n", "\u00a0", "\u3000", "\u2028", "\x1c", "\x85", "\x00", "\u200b", "a", "B", "the", " the", "World", "é",
    "e\u0301", "ß", "ſ", "日本", "1", "23", "½", "²", "Ⅻ", "!", "?!", "...", "—", "_", "😀", "👩‍🚀", "\ufffd", "İ",
]  # fmt: skip


def settled_characters() -> list[int]:
    """Characters of the same kind since Unicode 3.2: Python's tables and the reference's differ in version."""
    old = unicodedata.ucd_3_2_0
    kinds = {point: old.category(chr(point)) for point in range(1, sys.maxunicode + 1)}
    return [p for p, k in kinds.items() if k not in ("Cn", "Cs", "Co") and k == unicodedata.category(chr(p))]


def hard_texts() -> list[str]:
    """Strings in many writing systems and of many kinds."""
    written = json.loads((Path(__file__).parent / "data" / "hard_strings.json").read_text("ascii"))["strings"]
    return HARD + [row["text"] for row in written]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Hard strings, and ends of words, spaces, marks and any characters put together at random."""
    rng = random.Random(0)
    mixed = ["".join(rng.choices(PIECES, k=rng.randint(0, 12))) for _ in range(5000)]
    known = [chr(point) for point in settled_characters()]
    return hard_texts() + mixed + ["".join(rng.choices(known, k=rng.randint(1, 15))) for _ in range(2000)]


@pytest.fixture(scope="module")
def trained(texts) -> dict:
    """Vocabulary and rules, trained on the hard texts."""
    trainee = ByteLevelBPETokenizer()
    trainee.train_from_iterator(texts[:400] * 5, vocab_size=1500, special_tokens=[END], show_progress=False)
    return json.loads(trainee.to_str())["model"]


def ours_of(vocabulary: dict[str, int], merges, **settings) -> BytePairs:
    rules = [" ".join(rule) for rule in merges]
    return BytePairs(vocabulary, rules, **{"start": None, "end": END, "padding": END} | settings)


def reference_of(vocabulary: dict[str, int], merges, prefix_space: bool = False) -> Tokenizer:
    reference = Tokenizer(models.BPE(vocabulary, [tuple(rule) for rule in merges]))
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    return reference


def differences(ours: BytePairs, reference: Tokenizer, texts: list[str]) -> list[tuple]:
    expected = [encoded.ids for encoded in reference.encode_batch(texts)]
    got = ours(tf.constant(texts)).to_list()
    return [(text, a, b) for text, a, b in zip(texts, got, expected, strict=True) if a != b]


@pytest.mark.parametrize("prefix_space", [False, True])
def test_ids_are_those_of_the_reference(prefix_space, texts, trained):
    ours = ours_of(trained["vocab"], trained["merges"], prefix_space=prefix_space)
    assert differences(ours, reference_of(trained["vocab"], trained["merges"], prefix_space), texts) == []


@pytest.mark.slow
def test_every_character_is_split_as_in_the_reference():
    points = settled_characters()
    assert len(points) > 90_000
    ours, cut = ours_of(every_byte(), []), pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [f"a{chr(p)}b {chr(p)}{chr(p)}'s" for p in points]
    words, counts = ours._words(tf.constant(texts))
    ends = np.cumsum(counts)
    found = np.array([word.decode() for word in words.numpy()], object)
    different = []
    for text, first, last in zip(texts, ends - counts, ends, strict=True):
        expected = [text[begin:end] for _, (begin, end) in cut.pre_tokenize_str(text)]
        if found[first:last].tolist() != expected:
            different.append((text, found[first:last].tolist(), expected))
    assert different == []


def every_byte() -> dict[str, int]:
    return {token: number for number, token in enumerate([*_letters_of_bytes(), END])}


@pytest.mark.parametrize("seed", range(8))
def test_any_rules_are_applied_as_in_the_reference(seed):
    # Few letters and many rules: adjacent matches, and rules that interfere with each other.
    rng = random.Random(seed)
    letters = ["ab", "abcd"][seed % 2]
    vocabulary, tokens, rules = every_byte(), list(letters), []
    for _ in range(rng.choice([8, 25, 60])):
        rule = (rng.choice(tokens), rng.choice(tokens))
        if len("".join(rule)) <= 10 and rule not in rules:
            rules.append(rule)
            if "".join(rule) not in vocabulary:
                vocabulary["".join(rule)] = len(vocabulary)
                tokens.append("".join(rule))
    if seed % 4 >= 2:
        rng.shuffle(rules)  # no trainer writes such rules, but the reference accepts them
    ours = ours_of(vocabulary, rules)
    words = ["".join(rng.choices(letters, k=k)) for k in (3, 10, 40, 100) for _ in range(30)]
    words += [letters[:n] * times for n in (1, 2, 3) for times in range(40)]
    assert differences(ours, reference_of(vocabulary, rules), words) == []


@pytest.mark.parametrize("letters", ["a", "=", "ab", "中文字符日本語テキスト", "etaoinshrdlu", "a b c\n\n"])
def test_a_text_of_one_long_word_takes_little_time(letters, trained):
    rng = random.Random(0)
    text = "".join(rng.choices(letters, k=100_000))
    ours = ours_of(trained["vocab"], trained["merges"])
    assert differences(ours, reference_of(trained["vocab"], trained["merges"]), [text, "short"]) == []


def test_special_tokens_in_a_text_are_text(trained):
    ids = ours_of(trained["vocab"], trained["merges"])([f"{END} a"]).to_list()[0]
    assert trained["vocab"][END] not in ids


@pytest.mark.slow
def test_it_is_exported_with_core_ops_alone(texts, trained, tmp_path):
    module = tf.Module()
    module.tokenize = ours_of(trained["vocab"], trained["merges"])
    serve = tf.function(lambda text: {"ids": module.tokenize(text).to_tensor(-1)},
                        input_signature=[tf.TensorSpec([None], tf.string, name="text")])  # fmt: skip
    tf.saved_model.save(module, str(tmp_path / "exported"), {"serving_default": serve})
    assert ops_outside_tf_serving(tmp_path / "exported") == []
    some = texts[:500]
    np.save(tmp_path / "expected.npy", module.tokenize(tf.constant(some)).to_tensor(-1).numpy())
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


def test_bytes_that_are_no_text_do_no_harm(trained):
    broken = [b"fine \xff\xfe text", b"\xed\xa0\x80", b"\xf5", b"a\x00b"]
    assert ours_of(trained["vocab"], trained["merges"])(tf.constant(broken)).shape[0] == 4


@pytest.mark.parametrize("prefix_space", [False, True])
def test_no_texts_and_empty_ones(prefix_space, trained):
    ours = ours_of(trained["vocab"], trained["merges"], prefix_space=prefix_space)
    for tokenize in (ours, tf.function(ours.__call__, input_signature=[tf.TensorSpec([None], tf.string)])):
        assert tokenize(tf.constant([], tf.string)).to_list() == []
        assert tokenize(tf.constant(["", ""])).to_list() == [[], []]
    assert ours(tf.constant(["", "a", ""])).row_lengths().numpy().astype(bool).tolist() == [False, True, False]


def test_the_vocabulary_is_returned(trained):
    tokenize = ours_of(trained["vocab"], trained["merges"])
    assert {token: number for number, token in enumerate(tokenize.vocabulary())} == trained["vocab"]


@pytest.mark.parametrize(
    ("vocabulary", "rules", "message"),
    [
        ({"[CLS]": 0, "a": 1}, [], r"has no <\|endoftext\|>"),
        (None, ["a bc"], "'a bc' merges or makes"),
        (None, ["a  b"], "merges or makes"),
    ],
)
def test_what_does_not_fit_together_is_refused(vocabulary, rules, message):
    with pytest.raises(ValueError, match=message):
        BytePairs(vocabulary or every_byte(), rules, start=None, end=END, padding=END)
