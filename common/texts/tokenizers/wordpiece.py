"""BERT's tokenizer in core TensorFlow ops, with the ids of Hugging Face's, in training and in any server."""

from __future__ import annotations

import functools
import sys
import unicodedata
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

_MAX_WORD = 100  # characters; longer words are unknown, as in the reference
_KEEP, _REMOVE, _SPACE, _ALONE, _REPLACE = range(5)
# The Unicode blocks that BERT treats as Chinese (https://github.com/google-research/bert/blob/master/tokenization.py).
_CHINESE = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


class WordPiece(tf.Module):
    """Text to BERT's token ids (https://arxiv.org/abs/1609.08144, section 4.1, with the normalisation of BERT).

    KerasHub's tokenizer normalises characters in another way, needs ops outside core TensorFlow, and drops accents only
    if told to; pinned in tests/texts/test_wordpiece.py. Special tokens written in a text (`[CLS]`) are text.

    Args:
        vocabulary: the token of each id, as in the lines of vocab.txt.
        lowercase: whether the model is uncased.
        strip_accents: whether accents are dropped; None drops them if text is lowercased, as in BERT.
        split_chinese: whether each Chinese character is its own word.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        lowercase: bool = True,
        strip_accents: bool | None = None,
        split_chinese: bool = True,
    ):
        super().__init__(name="wordpiece")
        self.size = len(vocabulary)
        ids = {token: number for number, token in enumerate(vocabulary)}
        missing = [token for token in ("[UNK]", "[CLS]", "[SEP]", "[PAD]") if token not in ids]
        if missing:
            raise ValueError(f"The vocabulary has no {', '.join(missing)}; it is not a BERT vocabulary.")
        self.unknown, self.start, self.end, self.padding = (ids[t] for t in ("[UNK]", "[CLS]", "[SEP]", "[PAD]"))
        self._ids = _table(list(ids), np.fromiter(ids.values(), np.int32), default=-1)
        self._longest = max(len(token.removeprefix("##")) for token in vocabulary)

        strips = lowercase if strip_accents is None else strip_accents
        starts, kinds, replaced = _folding(lowercase, strips, split_chinese)
        self._starts, self._kinds = tf.constant(starts, tf.int32), tf.constant(kinds, tf.int32)
        self._replaced = _table(np.fromiter(replaced, np.int32), list(replaced.values()), default="")

    def vocabulary(self) -> list[str]:
        """Return the token of each id."""
        tokens, ids = (tensor.numpy() for tensor in self._ids.export())  # stored only in the table, which is saved
        found = [""] * self.size
        for token, number in zip(tokens, ids, strict=True):
            found[number] = token.decode()
        return found

    def __call__(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Tokenize.

        Args:
            texts: string [batch], UTF-8; invalid bytes become the replacement character, which is dropped.

        Returns:
            int32 [batch, (tokens)], without special tokens.
        """
        words = tf.strings.split(self._folded(texts))
        different, which = tf.unique(words.flat_values)  # most words occur many times
        pieces = tf.gather(self._pieces(different), which)
        # The pieces of a sentence are those of its words: [batch, (words), (pieces)] with the inner level dropped.
        return words.with_values(pieces).merge_dims(1, 2)

    def _folded(self, texts: tf.Tensor) -> tf.Tensor:
        """Lowercase, drop accents and control characters, put spaces around single-character words."""
        points = tf.strings.unicode_decode(texts, "UTF-8", errors="replace")
        flat = points.flat_values
        kind = tf.gather(self._kinds, tf.searchsorted(self._starts, flat, side="right") - 1)
        character = tf.strings.unicode_encode(flat[:, None], "UTF-8")
        folded = tf.where(kind == _REPLACE, self._replaced.lookup(flat), character)
        folded = tf.where(kind == _REMOVE, "", tf.where(kind == _SPACE, " ", folded))
        folded = tf.where(kind == _ALONE, tf.strings.join([" ", folded, " "]), folded)
        return tf.strings.reduce_join(points.with_values(folded), axis=1)

    def _pieces(self, words: tf.Tensor) -> tf.RaggedTensor:
        """Split each word [n] from the left into the longest pieces in the vocabulary: int32 [n, (pieces)]."""
        length = tf.strings.length(words, unit="UTF8_CHAR")
        known = length <= _MAX_WORD
        words = tf.where(known, words, "")  # unknown anyway, so not searched
        length = tf.where(known, length, 0)
        lengths = tf.range(1, self._longest + 1)

        def more(at, known, found):
            return tf.reduce_any(known & (at < length))

        def cut(at, known, found):
            active = known & (at < length)
            which = tf.where(active)[:, 0]
            word, begin = tf.gather(words, which), tf.gather(at, which)
            count = tf.shape(which)[0]
            rest = tf.strings.substr(word, begin, tf.fill([count], self._longest), unit="UTF8_CHAR")
            # All prefixes of the rest; prefixes longer than the rest equal the rest.
            beginnings = tf.strings.substr(
                tf.repeat(rest[:, None], self._longest, axis=1),
                tf.zeros([count, self._longest], tf.int32),
                tf.tile(lengths[None], [count, 1]),
                unit="UTF8_CHAR",
            )
            prefixed = tf.where(begin[:, None] > 0, tf.strings.join(["##", beginnings]), beginnings)
            ids = self._ids.lookup(prefixed)
            long_enough = lengths[None] <= tf.gather(length, which)[:, None] - begin[:, None]
            best = tf.reduce_max(tf.where((ids >= 0) & long_enough, lengths[None], 0), axis=1)
            chosen = tf.gather(ids, tf.maximum(best - 1, 0), batch_dims=1)
            column = tf.scatter_nd(which[:, None], tf.where(best > 0, chosen, 0) + 1, tf.shape(at, tf.int64))
            at = tf.tensor_scatter_nd_add(at, which[:, None], best)
            known = tf.tensor_scatter_nd_update(known, which[:, None], best > 0)
            return at, known, tf.concat([found, column[:, None]], axis=1)

        empty = tf.zeros([tf.shape(words)[0], 0], tf.int32)
        shapes = [tf.TensorShape([None]), tf.TensorShape([None]), tf.TensorShape([None, None])]
        _, known, found = tf.while_loop(more, cut, [tf.zeros_like(length), known, empty], shapes)
        # 0 marks "no piece"; a word that cannot be split completely is one unknown token.
        unknown = tf.concat([tf.fill([tf.shape(words)[0], 1], self.unknown + 1), tf.zeros_like(found)], axis=1)
        found = tf.where(known[:, None], tf.pad(found, [[0, 0], [0, 1]]), unknown)
        return tf.RaggedTensor.from_row_lengths((found[found > 0]) - 1, tf.math.count_nonzero(found, axis=1))


def _table(keys, values, default) -> tf.lookup.StaticHashTable:
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), default)


@functools.cache
def _folding(lowercase: bool, strip_accents: bool, split_chinese: bool):
    """Return how every Unicode character is normalised.

    Returns:
        (first code point of each run of one kind, the kinds, {code point: replacement} of replaced characters).
    """
    kinds = np.fromiter(
        (_kind(chr(point), lowercase, strip_accents, split_chinese) for point in range(sys.maxunicode + 1)), np.int8
    )
    starts = np.concatenate([[0], np.flatnonzero(np.diff(kinds)) + 1])
    replaced = {
        int(p): _replacement(chr(p), lowercase, strip_accents, split_chinese) for p in np.flatnonzero(kinds == _REPLACE)
    }
    return starts, kinds[starts], replaced or {0: ""}  # a lookup table cannot be empty


def _kind(character: str, lowercase: bool, strip_accents: bool, split_chinese: bool) -> int:
    category = unicodedata.category(character)
    if character in "\t\n\r" or category[0] == "Z":
        return _SPACE
    if category == "Cn":  # assigned after Python's tables were made, or not at all: the reference keeps both
        return _ALONE if split_chinese and _is_chinese(character) else _KEEP
    if category[0] == "C" or character == "\ufffd":
        return _REMOVE
    folded = _fold(character, lowercase, strip_accents)
    if folded != character:
        return _REPLACE if folded else _REMOVE
    return _ALONE if _is_punctuation(character) or (split_chinese and _is_chinese(character)) else _KEEP


def _fold(character: str, lowercase: bool, strip_accents: bool) -> str:
    if strip_accents:
        parts = unicodedata.normalize("NFD", character)
        character = "".join(part for part in parts if unicodedata.category(part) != "Mn")
    return "".join(part.lower() for part in character) if lowercase else character


def _replacement(character: str, lowercase: bool, strip_accents: bool, split_chinese: bool) -> str:
    folded = _fold(character, lowercase, strip_accents)
    if split_chinese and _is_chinese(character):
        return f" {folded} "
    return "".join(f" {part} " if _is_punctuation(part) else part for part in folded)


def _is_chinese(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _CHINESE)


def _is_punctuation(character: str) -> bool:
    symbols = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"  # all punctuation to BERT, only some to Unicode
    return character in symbols or unicodedata.category(character)[0] == "P"
