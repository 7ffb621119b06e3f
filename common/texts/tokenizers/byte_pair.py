"""The tokenizer of GPT-2 and RoBERTa in core TensorFlow ops, with the ids of the reference, in any server."""

from __future__ import annotations

import functools
import sys
import unicodedata
from collections.abc import Iterable, Mapping

import numpy as np
import tensorflow as tf

from common.texts.tokenizers.neighbours import earlier, later

_LETTER, _NUMBER, _SPACE, _OTHER, _END = range(5)
_BLANK, _APOSTROPHE = ord(" "), ord("'")
# Unicode's White_Space; Python's str.isspace has four more.
_SPACES = {*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
_NEVER = 2**31 - 1  # the rank of a pair of tokens without a rule
_ANY_LENGTH = 2**14  # longer than any word


class BytePairs(tf.Module):
    """Text to token ids by byte-level byte pairs (GPT-2; https://arxiv.org/abs/1508.07909 for the rules).

    A text is split into words and a word into bytes; then neighbours are merged in the order of the rules.
    Special tokens written in a text (`<s>`) are text.

    Args:
        vocabulary: the id of each token; bytes that are not printable in Latin-1 are represented by other letters.
        merges: the rules by priority: two tokens separated by a space.
        start: the token before each text; None if the model was trained without one.
        end: the token after each text.
        padding: the padding token.
        prefix_space: whether a space is added before a text without one, so that its first word is like any other.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: Iterable[str],
        *,
        start: str | None,
        end: str,
        padding: str,
        prefix_space: bool = False,
    ):
        super().__init__(name="byte_pairs")
        letters = _letters_of_bytes()
        missing = [token for token in (start, end, padding, *letters) if token is not None and token not in vocabulary]
        if missing:
            raise ValueError(f"The vocabulary has no {', '.join(missing[:5])}; it is not a byte-level BPE vocabulary.")
        self.size = max(vocabulary.values()) + 1
        self.start = None if start is None else vocabulary[start]
        self.end, self.padding = vocabulary[end], vocabulary[padding]
        self._prefix_space = prefix_space
        self._tokens = np.full(self.size, "", object)  # an array, as lists and tuples of a module cannot be saved
        for token, number in vocabulary.items():
            self._tokens[number] = token

        rules = [tuple(line.split(" ")) for line in merges if not line.startswith("#version") and line.strip()]
        wrong = [rule for rule in rules if len(rule) != 2 or not {*rule, "".join(rule)} <= vocabulary.keys()]
        if wrong:
            raise ValueError(f"The rule {' '.join(wrong[0])!r} merges or makes a token that is not in the vocabulary.")
        ranks = {rule: rank for rank, rule in enumerate(rules)}
        keys = np.array([vocabulary[a] * self.size + vocabulary[b] for a, b in ranks] or [-1], np.int64)
        values = np.array(list(ranks.values()) or [0], np.int32)  # a lookup table cannot be empty
        table = tf.lookup.KeyValueTensorInitializer(keys, values)
        self._ranks = tf.lookup.StaticHashTable(table, _NEVER)
        self._made = tf.constant([vocabulary["".join(rule)] for rule in rules] or [0], tf.int32)
        self._of_byte = tf.constant([vocabulary[letter] for letter in letters], tf.int32)
        # A merge affects other places of a word only within the length of the longest token. Unordered rules can enable
        # earlier ones; then only one merge per word is applied at a time.
        self._one_at_a_time = not _is_ordered(rules)
        self._reach = _ANY_LENGTH if self._one_at_a_time else max((len("".join(rule)) for rule in rules), default=1)
        starts, kinds = _kinds()
        self._starts, self._kinds = tf.constant(starts, tf.int32), tf.constant(kinds, tf.int32)

    def vocabulary(self) -> list[str]:
        """Return the token of each id."""
        return self._tokens.tolist()

    def __call__(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Tokenize.

        Args:
            texts: string [batch], UTF-8; invalid bytes become the replacement character.

        Returns:
            int32 [batch, (tokens)], without special tokens.
        """
        words, counts = self._words(texts)
        different, which = tf.unique(words)  # most words occur many times
        pieces = tf.gather(self._pieces(different), which)
        # The pieces of a text are those of its words: [batch, (words), (pieces)] with the inner level dropped.
        return tf.RaggedTensor.from_row_lengths(pieces, counts).merge_dims(1, 2)

    def _words(self, texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Split texts into words: the words of all texts, string [n], and the number per text, [batch].

        GPT-2 splits with a regular expression with lookahead, which TensorFlow does not support:
        's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+
        Whether a word begins at a character depends on its neighbours only, so all are computed at once.
        """
        if self._prefix_space:
            first = tf.strings.substr(texts, 0, 1)
            texts = tf.where((first == " ") | (first == ""), texts, tf.strings.join([" ", texts]))
        points = tf.strings.unicode_decode(texts, "UTF-8", errors="replace")
        marked = tf.concat([points, tf.fill([tf.shape(texts)[0], 1], -1)], axis=1)  # -1 marks the end of a text
        point = marked.flat_values
        kind = tf.gather(self._kinds, tf.searchsorted(self._starts, point, side="right") - 1)
        kind_before, kind_after, before = earlier(kind, 1, _END), later(kind, 1, _END), earlier(point, 1, -1)

        # Runs of letters, of numbers and of others are words, each with one preceding blank.
        begins = (kind != kind_before) & (before != _BLANK)
        # The last of several spaces belongs to the next word, if there is one.
        last_space = (kind_after != _SPACE) & (kind_after != _END)
        begins = tf.where(kind == _SPACE, (kind_before != _SPACE) | last_space, begins) | (kind == _END)
        # English contractions are words, unless the apostrophe continues another word.
        apostrophe = (point == _APOSTROPHE) & (kind_before != _OTHER) & (before != _BLANK)
        next_point, next_but_one = later(point, 1, -1), later(point, 2, -1)
        short = apostrophe & tf.reduce_any(next_point[:, None] == [ord(letter) for letter in "stmd"], axis=1)
        pairs = [(next_point == ord(one)) & (next_but_one == ord(two)) for one, two in ("re", "ve", "ll")]
        long = apostrophe & tf.reduce_any(pairs, axis=0)
        begins &= ~earlier(short | long, 1, False)
        begins |= earlier(short, 2, False) | earlier(long, 3, False)

        counts = tf.reduce_sum(tf.cast(marked.with_flat_values(begins), tf.int64), axis=1) - 1  # without the mark
        begins = tf.where(begins[point >= 0])[:, 0]
        words = tf.RaggedTensor.from_row_starts(points.flat_values, begins, validate=False)
        return tf.strings.unicode_encode(words, "UTF-8"), counts

    def _pieces(self, words: tf.Tensor) -> tf.RaggedTensor:
        """Merge the bytes of each word [n] by the rules: int32 [n, (pieces)].

        The rule of highest priority is applied first, from the left. Words are independent, and so are places of a long
        word that are further apart than the longest token: a rule is applied in this round wherever no earlier rule
        applies within that reach. So there are about as many rounds as a word has letters, not as the batch has.
        """
        count = tf.size(words, tf.int64)
        word_of = tf.repeat(tf.range(count), tf.strings.length(words))
        characters = tf.io.decode_raw(tf.strings.reduce_join(words), tf.uint8)
        tokens = tf.gather(self._of_byte, tf.cast(characters, tf.int32))

        def more(places, tokens):
            return tf.size(places) > 0

        def join(places, tokens):
            # places: of the tokens in unfinished words; a token of -1 was merged into the one before.
            word, token = tf.gather(word_of, places), tf.cast(tf.gather(tokens, places), tf.int64)
            rank = self._ranks.lookup(token * self.size + later(token, 1, 0))
            rank = tf.where(word == later(word, 1, -1), rank, _NEVER)
            joined = (rank < _NEVER) & self._go_first(rank, word)
            gone = earlier(joined, 1, False)
            made = tf.gather(self._made, rank[joined])
            tokens = tf.tensor_scatter_nd_update(tokens, places[joined][:, None], made)
            tokens = tf.tensor_scatter_nd_update(tokens, places[gone][:, None], tf.fill(tf.shape(made), -1))
            unfinished = tf.math.unsorted_segment_max(tf.cast(joined, tf.int32), word, count)
            return places[(tf.gather(unfinished, word) > 0) & ~gone], tokens

        shapes = [tf.TensorShape([None]), tf.TensorShape([None])]
        _, tokens = tf.while_loop(more, join, [tf.range(tf.size(tokens)), tokens], shapes)
        there = tokens >= 0
        return tf.RaggedTensor.from_value_rowids(tokens[there], word_of[there], count, validate=False)

    def _go_first(self, rank: tf.Tensor, word: tf.Tensor) -> tf.Tensor:
        """Return where no other rule of the word must be applied first: bool [tokens]."""
        place, order = tf.range(tf.size(rank)), rank
        if self._one_at_a_time:  # no two are equal: leftmost first
            order = tf.cast(rank, tf.int64) * tf.size(rank, tf.int64) + tf.cast(place, tf.int64)
        waits = order > tf.minimum(self._smallest(order, word, earlier), self._smallest(order, word, later))
        # Where one rule matches several times in a row (a a a a), every second match, up to the first that waits.
        begins = (order != earlier(order, 1, -1)) | (word != earlier(word, 1, -1))
        run = tf.cumsum(tf.cast(begins, tf.int32)) - 1
        first = tf.gather(tf.where(begins)[:, 0], run)
        waiting = tf.where(waits, place, tf.int32.max)
        waiting = tf.math.unsorted_segment_min(waiting, run, tf.reduce_max(run) + 1)
        return (place < tf.gather(waiting, run)) & ((place - tf.cast(first, tf.int32)) % 2 == 0)

    def _smallest(self, order: tf.Tensor, word: tf.Tensor, moved) -> tf.Tensor:
        """Return the minimum over each place and those on one side of it, in its word and within reach."""
        steps = 1
        while steps < self._reach:  # each round doubles the range
            other = tf.where(moved(word, steps, -1) == word, moved(order, steps, 0), order.dtype.max)
            order, steps = tf.minimum(order, other), 2 * steps
        return order


def _is_ordered(rules: list[tuple[str, ...]]) -> bool:
    """Return whether each rule comes after the rules that make its tokens."""
    made_last = {"".join(rule): rank for rank, rule in enumerate(rules)}
    return all(made_last.get(token, -1) < rank for rank, rule in enumerate(rules) for token in rule)


@functools.cache
def _letters_of_bytes() -> list[str]:
    """Return the letter that represents each byte in GPT-2's vocabulary: itself, or another visible letter."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible} | {byte: chr(256 + number) for number, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]


@functools.cache
def _kinds() -> tuple[np.ndarray, np.ndarray]:
    """Return the first code point of each run of characters of one kind, and the kinds; the first is the mark, -1."""
    kinds = np.array([_END, *map(_kind, range(sys.maxunicode + 1))], np.int8)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(kinds)) + 1])
    return starts - 1, kinds[starts]


def _kind(point: int) -> int:
    if point in _SPACES:
        return _SPACE
    return {"L": _LETTER, "N": _NUMBER}.get(unicodedata.category(chr(point))[0], _OTHER)
