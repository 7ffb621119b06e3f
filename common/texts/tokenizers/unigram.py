"""SentencePiece's unigram tokenizer, which DeBERTa v3 has, in core TensorFlow ops: the same ids as the reference."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf
from sentencepiece import sentencepiece_model_pb2 as proto

from common.texts.tokenizers.neighbours import earlier, later

_BLANK = "\u2581"  # what SentencePiece writes for a space
_UNKNOWN_COSTS = 10.0  # more than the worst token, as in the reference
_FAR = 1 << 21  # above every code point
_BYTES, _LABEL = np.arange(1, 256), (1 << 31) | 0xFF
_NOT_THERE = -1


class Unigrams(tf.Module):
    """Text to token ids: of all ways to cut it, the one whose tokens are likeliest (https://arxiv.org/abs/1804.10959).

    Scores are added as the reference adds them, one token after the other in float32, so that of two ways that are as
    likely as each other it is the same one; after tens of thousands of characters it may be the other one. Special
    tokens written in a text (`[CLS]`) are text.

    Args:
        model: content of the file spm.model, or vocabulary.spm of a KerasHub preset.
        start, end, padding: tokens before and after each text, and the one that fills a row up.

    Raises:
        ValueError: the file asks for something that is not done here, and ids would be others.
    """

    def __init__(self, model: bytes, *, start: str = "[CLS]", end: str = "[SEP]", padding: str = "[PAD]"):
        super().__init__(name="unigrams")
        described = proto.ModelProto.FromString(model)
        _check(described)
        kinds = proto.ModelProto.SentencePiece
        ids = {piece.piece: number for number, piece in enumerate(described.pieces)}
        missing = [token for token in (start, end, padding) if token not in ids]
        if missing:
            raise ValueError(f"The vocabulary has no {', '.join(missing)}.")
        self.size = len(described.pieces)
        self.start, self.end, self.padding = ids[start], ids[end], ids[padding]
        self._tokens = np.array([piece.piece for piece in described.pieces], object)
        self.unknown = next(i for i, piece in enumerate(described.pieces) if piece.type == kinds.UNKNOWN)

        normal = {piece.piece: i for i, piece in enumerate(described.pieces) if piece.type == kinds.NORMAL}
        scores = np.full(self.size + 1, -np.inf, np.float32)  # the last one: no token
        scores[list(normal.values())] = [described.pieces[i].score for i in normal.values()]
        scores[self.unknown] = scores[list(normal.values())].min() - np.float32(_UNKNOWN_COSTS)
        self._scores, self._pieces = tf.constant(scores), _Prefixes(normal)

        rules = _read_rules(described.normalizer_spec.precompiled_charsmap)
        self._rules = _Prefixes({before: number for number, before in enumerate(rules)})
        self._after = tf.constant([*rules.values(), ""])

    def vocabulary(self) -> list[str]:
        """Return the token of each id."""
        return self._tokens.tolist()

    def __call__(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Tokenize.

        Args:
            texts: string [batch], UTF-8; bytes that are not become the replacement character.

        Returns:
            int32 [batch, (tokens)], without special tokens.
        """
        points = tf.strings.unicode_decode(self._normalised(texts), "UTF-8")
        ending = self._tokens_ending(points)
        length = self._best_lengths(points, ending)
        place = tf.range(tf.size(length))
        text = tf.cast(points.value_rowids(), tf.int32)
        # From the end of each text backwards, from token to token.
        last = later(text, 1, _NOT_THERE) != text
        before = tf.where(place - length >= tf.gather(tf.cast(points.row_starts(), tf.int32), text), place - length, -1)
        chosen = tf.where(_visited(before, last))[:, 0]
        tokens = tf.gather_nd(ending, tf.stack([tf.gather(place, chosen), tf.gather(length, chosen) - 1], axis=1))
        text = tf.gather(text, chosen)
        # Unknown characters in a row are one unknown token.
        repeated = (tokens == self.unknown) & (earlier(tokens, 1, -1) == tokens) & (earlier(text, 1, -1) == text)
        rows = tf.cast(text[~repeated], tf.int64)
        return tf.RaggedTensor.from_value_rowids(tokens[~repeated], rows, points.nrows(), validate=False)

    def _normalised(self, texts: tf.Tensor) -> tf.Tensor:
        """Replace what the model's table says (it composes accents, among others), and mark where words begin."""
        points = tf.strings.unicode_decode(texts, "UTF-8", errors="replace")
        # The mark between two texts keeps a rule from matching across.
        marked = tf.concat([points, tf.fill([tf.shape(texts)[0], 1], _NOT_THERE)], axis=1)
        point = marked.flat_values
        place = tf.range(tf.size(point))
        rule, length = tf.fill(tf.shape(point), _NOT_THERE), tf.ones_like(point)
        for steps, found in enumerate(self._rules.found(point), start=1):  # the longest that matches
            rule, length = tf.where(found >= 0, found, rule), tf.where(found >= 0, steps, length)
        after = tf.where(place + length < tf.size(point), place + length, -1)
        begins = _visited(after, place == 0)  # what a rule took from the left no other rule may have
        written = tf.strings.unicode_encode(tf.maximum(point, 0)[:, None], "UTF-8")
        written = tf.where(rule >= 0, tf.gather(self._after, tf.where(rule >= 0, rule, 0)), written)
        written = tf.where(begins & (point >= 0), written, "")
        plain = tf.strings.reduce_join(marked.with_values(written), axis=1)
        plain = tf.strings.regex_replace(tf.strings.regex_replace(plain, "^ +", ""), " +", _BLANK)
        plain = tf.where(plain == "", "", tf.strings.join([_BLANK, plain]))
        return tf.strings.regex_replace(plain, f"{_BLANK}+$", "")

    def _tokens_ending(self, points: tf.RaggedTensor) -> tf.Tensor:
        """Return the token that ends at each character and has 1, 2, ... characters: int32 [characters, longest]."""
        point, text = points.flat_values, tf.cast(points.value_rowids(), tf.int32)
        columns = []
        for steps, found in enumerate(self._pieces.found(point), start=1):
            same_text = later(text, steps - 1, _NOT_THERE) == text
            found = tf.where((found >= 0) & same_text, found, self.size)
            if steps == 1:
                found = tf.where(found == self.size, self.unknown, found)
            columns.append(earlier(found, steps - 1, self.size))
        return tf.stack(columns, axis=1)

    @tf.function(input_signature=[tf.RaggedTensorSpec([None, None], tf.int32), tf.TensorSpec([None, None], tf.int32)])
    def _best_lengths(self, points: tf.RaggedTensor, ending: tf.Tensor) -> tf.Tensor:
        """Return how long the last token is, in the likeliest way to cut a text up to each character: int32 [n].

        All texts are gone through at once, one character after the other (Viterbi's algorithm).
        """
        longest = self._pieces.longest
        starts, lengths = tf.cast(points.row_starts(), tf.int32), tf.cast(points.row_lengths(), tf.int32)
        steps = tf.reduce_max(tf.concat([lengths, [1]], axis=0))
        ending = tf.concat([ending, tf.fill([1, longest], self.size)], axis=0)  # what stands behind all texts
        last = tf.size(points.flat_values)
        of_column = tf.range(1, longest + 1)

        def go_on(step, best, chosen):
            return step < steps

        def advance(step, best, chosen):
            # best: the score of the likeliest way up to 1, 2, ... characters before, float32 [batch, longest].
            tokens = tf.gather(ending, tf.minimum(starts + step, last))
            ways = best + tf.gather(self._scores, tokens)
            highest = tf.reduce_max(ways, axis=1, keepdims=True)
            # Of equals the one that begins first, as in the reference.
            length = tf.reduce_max(tf.where(ways == highest, of_column, 1), axis=1)
            return step + 1, tf.concat([highest, best[:, :-1]], axis=1), chosen.write(step, length)

        batch = tf.size(starts)
        first = tf.concat([tf.zeros([batch, 1]), tf.fill([batch, longest - 1], -np.inf)], axis=1)
        chosen = tf.TensorArray(tf.int32, size=steps, element_shape=[None])
        _, _, chosen = tf.while_loop(go_on, advance, [0, first, chosen])
        table = tf.transpose(tf.reshape(chosen.stack(), [steps, batch]))
        return tf.boolean_mask(table, tf.sequence_mask(lengths, steps))


class _Prefixes(tf.Module):
    """Finds which of many strings begin at each character of a text, by going down the tree of their beginnings.

    Args:
        strings: with the number that is found.
    """

    def __init__(self, strings: Mapping[str, int]):
        super().__init__(name="prefixes")
        nodes = {"": 0}
        for string in strings:
            for end in range(1, len(string) + 1):
                nodes.setdefault(string[:end], len(nodes))
        self.longest = max(map(len, nodes))
        inner = [string for string in nodes if string]
        keys = np.array([nodes[s[:-1]] * _FAR + ord(s[-1]) for s in inner] or [-1], np.int64)
        values = np.array([nodes[s] for s in inner] or [0], np.int32)  # a lookup table cannot be empty
        self._next = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), _NOT_THERE)
        self._found = tf.constant([strings.get(s, _NOT_THERE) for s in nodes], tf.int32)

    def found(self, points: tf.Tensor) -> list[tf.Tensor]:
        """Return, for strings of 1, 2, ... characters, the number of the one that begins at each place, or -1."""
        node, found = tf.zeros_like(points), []
        for steps in range(self.longest):
            point = later(points, steps, _NOT_THERE)
            node = self._next.lookup(tf.cast(node, tf.int64) * _FAR + tf.cast(point, tf.int64))
            found.append(tf.where(node >= 0, tf.gather(self._found, tf.maximum(node, 0)), _NOT_THERE))
        return found


def _visited(following: tf.Tensor, visited: tf.Tensor) -> tf.Tensor:
    """Say which places are come to from those where one begins.

    Args:
        following: the place after each place, int32 [n]; -1 ends the way.
        visited: where a way begins, bool [n].
    """
    count = tf.size(following)
    following, visited = tf.where(following < 0, count, following), tf.cast(visited, tf.int32)
    following, visited = tf.concat([following, [count]], axis=0), tf.concat([visited, [0]], axis=0)

    def more(following, visited):
        return tf.reduce_any(following < count)

    def double(following, visited):
        # Who stands where a way leads has been come to; then each step is twice as long.
        visited = tf.tensor_scatter_nd_max(visited, following[:, None], visited)
        return tf.gather(following, following), visited

    shapes = [tf.TensorShape([None]), tf.TensorShape([None])]
    _, visited = tf.while_loop(more, double, [following, visited], shapes)
    return visited[:-1] > 0


def _check(described: proto.ModelProto) -> None:
    """Refuse what would need other code than there is here."""
    trained, normalised, kinds = described.trainer_spec, described.normalizer_spec, proto.ModelProto.SentencePiece
    wrong = {
        "another model than unigram": trained.model_type != proto.TrainerSpec.UNIGRAM,
        "bytes for unknown characters": trained.byte_fallback,
        "spaces at the end of words": trained.treat_whitespace_as_suffix,
        "tokens that are cut out first": any(p.type in (kinds.USER_DEFINED, kinds.BYTE) for p in described.pieces),
        "spaces as they are": not normalised.escape_whitespaces,
        "no space at the beginning": not normalised.add_dummy_prefix,
        "several spaces in a row": not normalised.remove_extra_whitespaces,
    }
    found = [what for what, is_so in wrong.items() if is_so]
    if found:
        raise ValueError(f"The SentencePiece model wants what cannot be done here: {', '.join(found)}.")


def _read_rules(table: bytes) -> dict[str, str]:
    """Return what is replaced by what, from the table in a SentencePiece model.

    The table is a tree of bytes, packed as an array (https://github.com/s-yata/darts-clone), and then the replacements,
    each ended by a zero. Each node names the place of its children; the one by a byte stands there, with the bits of
    the byte turned, and names the byte.
    """
    if not table:
        return {}
    size = int.from_bytes(table[:4], "little")
    units, texts = np.frombuffer(table[4 : 4 + size], "<u4").astype(np.int64), table[4 + size :]
    children = np.arange(len(units)) ^ ((units >> 10) << ((units & (1 << 9)) >> 6))
    rules, waiting = {}, [(b"", 0)]
    while waiting:
        string, node = waiting.pop()
        places = children[node] ^ _BYTES
        places = places[places < len(units)]
        for place in places[(units[places] & _LABEL) == places ^ children[node]]:
            waiting.append((string + bytes([place ^ children[node]]), place))
            if (units[place] >> 8) & 1:
                begin = int(units[children[place]]) & 0x7FFFFFFF
                rules[waiting[-1][0].decode()] = texts[begin : texts.index(0, begin)].decode()
    return rules
