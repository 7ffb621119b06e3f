"""SentencePiece's unigram tokenizer, as in DeBERTa v3, in core TensorFlow ops, with the ids of the reference."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf
from sentencepiece import sentencepiece_model_pb2 as proto

from common.texts.tokenizers.neighbours import earlier, later

_BLANK = "\u2581"  # SentencePiece's symbol for a space
_UNKNOWN_COSTS = 10.0  # below the worst token, as in the reference
_FAR = 1 << 21  # above every code point
_BYTES, _LABEL = np.arange(1, 256), (1 << 31) | 0xFF
_NOT_THERE = -1


class Unigrams(tf.Module):
    """Text to token ids by the most probable segmentation (https://arxiv.org/abs/1804.10959).

    Scores are summed as in the reference, token by token in float32, so that ties are resolved alike; after tens of
    thousands of characters they may be resolved differently. Special tokens written in a text (`[CLS]`) are text.

    Args:
        model: content of the file spm.model, or vocabulary.spm of a KerasHub preset.
        start, end, padding: the tokens before and after each text, and the padding token.

    Raises:
        ValueError: the file requires an unsupported feature, and ids would differ.
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
            texts: string [batch], UTF-8; invalid bytes become the replacement character.

        Returns:
            int32 [batch, (tokens)], without special tokens.
        """
        points = tf.strings.unicode_decode(self._normalised(texts), "UTF-8")
        ending = self._tokens_ending(points)
        length = self._best_lengths(points, ending)
        place = tf.range(tf.size(length))
        text = tf.cast(points.value_rowids(), tf.int32)
        # Backwards from the end of each text, token by token.
        last = later(text, 1, _NOT_THERE) != text
        before = tf.where(place - length >= tf.gather(tf.cast(points.row_starts(), tf.int32), text), place - length, -1)
        chosen = tf.where(_visited(before, last))[:, 0]
        tokens = tf.gather_nd(ending, tf.stack([tf.gather(place, chosen), tf.gather(length, chosen) - 1], axis=1))
        text = tf.gather(text, chosen)
        # Consecutive unknown characters are one unknown token.
        repeated = (tokens == self.unknown) & (earlier(tokens, 1, -1) == tokens) & (earlier(text, 1, -1) == text)
        rows = tf.cast(text[~repeated], tf.int64)
        return tf.RaggedTensor.from_value_rowids(tokens[~repeated], rows, points.nrows(), validate=False)

    def _normalised(self, texts: tf.Tensor) -> tf.Tensor:
        """Apply the replacements of the model's table (composed accents, among others), and mark where words begin."""
        points = tf.strings.unicode_decode(texts, "UTF-8", errors="replace")
        # The mark between two texts prevents matches across them.
        marked = tf.concat([points, tf.fill([tf.shape(texts)[0], 1], _NOT_THERE)], axis=1)
        point = marked.flat_values
        place = tf.range(tf.size(point))
        rule, length = tf.fill(tf.shape(point), _NOT_THERE), tf.ones_like(point)
        for steps, found in enumerate(self._rules.found(point), start=1):  # the longest match
            rule, length = tf.where(found >= 0, found, rule), tf.where(found >= 0, steps, length)
        after = tf.where(place + length < tf.size(point), place + length, -1)
        begins = _visited(after, place == 0)  # leftmost match first, without overlaps
        written = tf.strings.unicode_encode(tf.maximum(point, 0)[:, None], "UTF-8")
        written = tf.where(rule >= 0, tf.gather(self._after, tf.where(rule >= 0, rule, 0)), written)
        written = tf.where(begins & (point >= 0), written, "")
        plain = tf.strings.reduce_join(marked.with_values(written), axis=1)
        plain = tf.strings.regex_replace(tf.strings.regex_replace(plain, "^ +", ""), " +", _BLANK)
        plain = tf.where(plain == "", "", tf.strings.join([_BLANK, plain]))
        return tf.strings.regex_replace(plain, f"{_BLANK}+$", "")

    def _tokens_ending(self, points: tf.RaggedTensor) -> tf.Tensor:
        """Return the tokens of 1, 2, ... characters that end at each character: int32 [characters, longest]."""
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
        """Return the length of the last token in the best segmentation up to each character: int32 [n].

        All texts are processed in parallel, character by character (Viterbi's algorithm).
        """
        longest = self._pieces.longest
        starts, lengths = tf.cast(points.row_starts(), tf.int32), tf.cast(points.row_lengths(), tf.int32)
        steps = tf.reduce_max(tf.concat([lengths, [1]], axis=0))
        ending = tf.concat([ending, tf.fill([1, longest], self.size)], axis=0)  # beyond the end of all texts
        last = tf.size(points.flat_values)
        of_column = tf.range(1, longest + 1)

        def more(step, best, chosen):
            return step < steps

        def advance(step, best, chosen):
            # best: the best score up to 1, 2, ... characters before, float32 [batch, longest].
            tokens = tf.gather(ending, tf.minimum(starts + step, last))
            ways = best + tf.gather(self._scores, tokens)
            highest = tf.reduce_max(ways, axis=1, keepdims=True)
            # Of ties the longest token, as in the reference.
            length = tf.reduce_max(tf.where(ways == highest, of_column, 1), axis=1)
            return step + 1, tf.concat([highest, best[:, :-1]], axis=1), chosen.write(step, length)

        batch = tf.size(starts)
        first = tf.concat([tf.zeros([batch, 1]), tf.fill([batch, longest - 1], -np.inf)], axis=1)
        chosen = tf.TensorArray(tf.int32, size=steps, element_shape=[None])
        _, _, chosen = tf.while_loop(more, advance, [0, first, chosen])
        table = tf.transpose(tf.reshape(chosen.stack(), [steps, batch]))
        return tf.boolean_mask(table, tf.sequence_mask(lengths, steps))


class _Prefixes(tf.Module):
    """Finds which of many strings begin at each character of a text, by a trie.

    Args:
        strings: with the number of each.
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
        """Return, for 1, 2, ... characters, the number of the string that begins at each character, or -1."""
        node, found = tf.zeros_like(points), []
        for steps in range(self.longest):
            point = later(points, steps, _NOT_THERE)
            node = self._next.lookup(tf.cast(node, tf.int64) * _FAR + tf.cast(point, tf.int64))
            found.append(tf.where(node >= 0, tf.gather(self._found, tf.maximum(node, 0)), _NOT_THERE))
        return found


def _visited(following: tf.Tensor, visited: tf.Tensor) -> tf.Tensor:
    """Return which places are reached from the starting places.

    Args:
        following: the place after each place, int32 [n]; -1 ends a path.
        visited: the starting places, bool [n].
    """
    count = tf.size(following)
    following, visited = tf.where(following < 0, count, following), tf.cast(visited, tf.int32)
    following, visited = tf.concat([following, [count]], axis=0), tf.concat([visited, [0]], axis=0)

    def more(following, visited):
        return tf.reduce_any(following < count)

    def double(following, visited):
        # Mark the places reached by one step; then double the length of each step.
        visited = tf.tensor_scatter_nd_max(visited, following[:, None], visited)
        return tf.gather(following, following), visited

    shapes = [tf.TensorShape([None]), tf.TensorShape([None])]
    _, visited = tf.while_loop(more, double, [following, visited], shapes)
    return visited[:-1] > 0


def _check(described: proto.ModelProto) -> None:
    """Refuse a model with unsupported features."""
    trained, normalised, kinds = described.trainer_spec, described.normalizer_spec, proto.ModelProto.SentencePiece
    wrong = {
        "a model type other than unigram": trained.model_type != proto.TrainerSpec.UNIGRAM,
        "bytes for unknown characters": trained.byte_fallback,
        "spaces at the end of words": trained.treat_whitespace_as_suffix,
        "user-defined or byte tokens": any(p.type in (kinds.USER_DEFINED, kinds.BYTE) for p in described.pieces),
        "unescaped spaces": not normalised.escape_whitespaces,
        "no space added at the beginning": not normalised.add_dummy_prefix,
        "repeated spaces kept": not normalised.remove_extra_whitespaces,
    }
    found = [what for what, is_so in wrong.items() if is_so]
    if found:
        raise ValueError(f"The SentencePiece model uses unsupported features: {', '.join(found)}.")


def _read_rules(table: bytes) -> dict[str, str]:
    """Return the replacements in the table of a SentencePiece model.

    The table is a trie of bytes packed as a double array (https://github.com/s-yata/darts-clone), followed by the
    zero-terminated replacements. Each node holds the base index of its children; the child for a byte is at that index
    XOR the byte, and holds the byte.
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
