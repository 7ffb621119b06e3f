"""WordPiece in core ops: the ids of the reference tokenizer (Hugging Face's `tokenizers`), on difficult text."""

from __future__ import annotations

import subprocess
import sys
import unicodedata

import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from tokenizers import BertWordPieceTokenizer

from common.texts.tokenizers.wordpiece import WordPiece

# ruff: noqa: RUF001 (these letters are ambiguous on purpose)
HARD = [
    "The quick brown fox.", "Wörld café naïve Ångström", "don't stop—now…", "日本語テキスト and 中文字符",
    "emoji 😀 ok", "한국어 문장", "a" * 100, "a" * 101, "tab\tnew\nline\r\x00\u200bzero", "ＦＵＬＬ width １２３",
    "price $4.50 50% @user #tag http://x.y/z?a=b", "İstanbul ıspanak STRASSE ß ﬁnal", "e\u0301clair e\u0323\u0301",
    "x²+y³=½", "«quoted» “curly” ‘single’", "русский Язык й ё", "עברית שלום", "हिन्दी भाषा", "ไทย", "", "   ",
    "unaffable-ness_under__score", "A\u00a0B\u3000C\u2028D", "\u00adsoft\u00adhyphen", "ǅ Ǆ", "\ufffd replaced", "ΣΑΣ",
    "'", "##ing", "\u0301", "ŉ", "Đ đ Ø ø Ł ł",
]  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary() -> list[str]:
    """Every letter of the hard texts, whole and as a continuation, and some longer pieces."""
    letters = sorted({part for text in HARD for c in text for form in (c, c.lower(), unicodedata.normalize("NFD", c))
                      for part in form if part.strip() and unicodedata.category(part) not in ("Cc", "Cf")})  # fmt: skip
    pieces = ["the", "qui", "##ck", "world", "w", "##or", "cafe", "caf", "##ing", "straße", "ist", "##anbul", "aaaa"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces, *letters, *(f"##{c}" for c in letters if c != "ø")]
    return list(dict.fromkeys(tokens))


@pytest.mark.parametrize(("lowercase", "strip_accents"), [(True, None), (False, None), (True, False), (False, True)])
@pytest.mark.parametrize("split_chinese", [True, False])
def test_ids_are_those_of_the_reference(lowercase, strip_accents, split_chinese, vocabulary):
    ids = {token: number for number, token in enumerate(vocabulary)}
    settings = {"lowercase": lowercase, "strip_accents": strip_accents}
    reference = BertWordPieceTokenizer(ids, handle_chinese_chars=split_chinese, **settings)
    expected = [encoded.ids for encoded in reference.encode_batch(HARD, add_special_tokens=False)]
    ours = WordPiece(vocabulary, split_chinese=split_chinese, **settings)
    assert ours(tf.constant(HARD)).to_list() == expected


def test_every_character_is_normalised_as_in_the_reference(vocabulary):
    # The reference has tables of an older Unicode than Python: characters whose kind has changed are left out.
    reference = BertWordPieceTokenizer({token: i for i, token in enumerate(vocabulary)}, lowercase=True)
    old = unicodedata.ucd_3_2_0
    kinds = {point: old.category(chr(point)) for point in range(1, sys.maxunicode + 1)}
    points = [p for p, k in kinds.items() if k not in ("Cn", "Cs", "Co") and k == unicodedata.category(chr(p))]
    assert len(points) > 90_000
    ours = WordPiece(vocabulary)
    texts = [f"x{chr(point)}y" for point in points]
    folded = [text.decode() for text in ours._folded(tf.constant(texts)).numpy()]
    different = []
    for point, text, got in zip(points, texts, folded, strict=True):
        expected = [
            word for word, _ in reference.pre_tokenizer.pre_tokenize_str(reference.normalizer.normalize_str(text))
        ]
        if got.split() != expected:
            different.append((hex(point), unicodedata.name(chr(point), "?"), got, expected))
    assert different == []


def test_keras_hubs_tokenizer_still_needs_replacing(vocabulary):
    # If this fails, KerasHub has changed: check whether WordPiece is still needed.
    reference = BertWordPieceTokenizer({token: i for i, token in enumerate(vocabulary)}, lowercase=True)
    theirs = keras_hub.models.BertTokenizer(vocabulary, lowercase=True)
    text = "Wörld café"
    assert [int(i) for i in theirs([text])[0]] != reference.encode(text, add_special_tokens=False).ids


def test_it_is_exported_with_core_ops_alone(vocabulary, tmp_path):
    module = tf.Module()
    module.tokenize = WordPiece(vocabulary)
    serve = tf.function(lambda text: {"ids": module.tokenize(text).to_tensor(-1)},
                        input_signature=[tf.TensorSpec([None], tf.string, name="text")])  # fmt: skip
    tf.saved_model.save(module, str(tmp_path / "exported"), {"serving_default": serve})
    np.save(tmp_path / "expected.npy", serve(tf.constant(HARD))["ids"].numpy())
    (tmp_path / "texts.txt").write_bytes(b"\x1e".join(text.encode() for text in HARD))
    program = """
import sys, numpy as np, tensorflow as tf
folder = sys.argv[1]
texts = open(folder + "/texts.txt", "rb").read().split(b"\\x1e")
loaded = tf.saved_model.load(folder + "/exported")
np.testing.assert_array_equal(loaded.signatures["serving_default"](text=tf.constant(texts))["ids"],
                              np.load(folder + "/expected.npy"))
"""
    finished = subprocess.run([sys.executable, "-I", "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_bytes_that_are_no_text_do_no_harm(vocabulary):
    texts = [b"fine \xff\xfe text", b"\xed\xa0\x80", b"\xf5"]
    assert WordPiece(vocabulary)(tf.constant(texts)).shape[0] == 3


def test_no_texts_and_one_text(vocabulary):
    tokenize = WordPiece(vocabulary)
    assert tokenize(tf.constant([], tf.string)).to_list() == []
    assert tokenize(tf.constant(["the"])).to_list() == [[vocabulary.index("the")]]


def test_a_vocabulary_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"\[CLS\]"):
        WordPiece(["[UNK]", "<s>"])


def test_byte_pairs_of_keras_hub_are_those_of_the_reference(tmp_path):
    from tokenizers import ByteLevelBPETokenizer

    reference = ByteLevelBPETokenizer()
    reference.train_from_iterator(HARD * 5, vocab_size=600, special_tokens=["<|endoftext|>"], show_progress=False)
    reference.save_model(str(tmp_path))
    theirs = keras_hub.models.GPT2Tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    texts = [text for text in HARD if text.strip()]
    different = [t for t in texts if [int(i) for i in theirs([t])[0]] != reference.encode(t).ids]
    assert different == []
