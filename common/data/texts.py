"""Texts to batches of token ids: short ones together, so that no text is padded to the longest of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from common.progress import ProgressLine

_MULTIPLE = 8  # batches are padded to a multiple of this: few different shapes, and registers are full
_SORTED_TOGETHER = 50  # batches; texts are sorted by length within that many, and shuffled beyond
INPUTS = {name: tf.TensorSpec((None, None), tf.int32) for name in ("token_ids", "padding_mask")}


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts.

    Attributes:
        ids: of each text, int32 [tokens], special tokens included.
        cut: how many texts were too long and lost their end.
        padding: the token that fills a row up.
    """

    ids: tuple[np.ndarray, ...]
    cut: int
    padding: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each text, int64 [n]."""
        return np.array([len(row) for row in self.ids], np.int64)

    def batch(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Return token ids and padding mask of some texts, int32 [n, tokens of the longest, rounded up]."""
        length = -(-max(len(self.ids[i]) for i in indices) // _MULTIPLE) * _MULTIPLE
        token_ids = np.full((len(indices), length), self.padding, np.int32)
        mask = np.zeros((len(indices), length), np.int32)
        for row, index in enumerate(indices):
            token_ids[row, : len(self.ids[index])] = self.ids[index]
            mask[row, : len(self.ids[index])] = 1
        return {"token_ids": token_ids, "padding_mask": mask}


def tokenize_texts(tokenize: Callable, texts: Sequence[str], max_length: int, chunk: int = 2048) -> Tokens:
    """Tokenise texts.

    Args:
        tokenize: as TextSource has it, with `start`, `end` and `padding` token ids.
        texts: n of them.
        max_length: tokens that are kept, special ones included; the end of a longer text is lost.
        chunk: texts at a time.

    Returns:
        The Tokens.
    """
    ids, cut = [], 0
    for first in range(0, len(texts), chunk):
        encoded = [text.encode("utf-8", "replace") for text in texts[first : first + chunk]]
        for row in tokenize(tf.constant(encoded)).to_list():
            cut += len(row) > max_length - 2
            ids.append(np.array([tokenize.start, *row[: max_length - 2], tokenize.end], np.int32))
    return Tokens(tuple(ids), cut, tokenize.padding)


def tokens_of_batch(tokenize, texts: tf.Tensor, max_length: int) -> dict[str, tf.Tensor]:
    """Turn raw texts into what the models take, in any TensorFlow graph.

    Args:
        tokenize: as TextSource has it.
        texts: string [batch].
        max_length: tokens that are kept, special ones included.

    Returns:
        {"token_ids", "padding_mask"}, int32 [batch, tokens of the longest].
    """
    rows = tokenize(texts)[:, : max_length - 2]
    batch = tf.shape(texts)[0]
    start, end = tf.fill([batch, 1], tokenize.start), tf.fill([batch, 1], tokenize.end)
    rows = tf.concat([start, rows, end], axis=1)
    token_ids = rows.to_tensor(tokenize.padding)
    mask = tf.sequence_mask(rows.row_lengths(), tf.shape(token_ids)[1], tf.int32)
    return {"token_ids": token_ids, "padding_mask": mask}


def batches_by_length(tokens: Tokens, batch_size: int) -> Iterator[np.ndarray]:
    """Yield the indices of each batch, shortest texts first."""
    order = np.argsort(tokens.lengths, kind="stable")
    for first in range(0, len(order), batch_size):
        yield order[first : first + batch_size]


def shuffled_by_length(tokens: Tokens, batch_size: int, seed: tuple[int, int], pool: int = _SORTED_TOGETHER):
    """Return the batches of one epoch: texts of about the same length together, in a random order.

    Args:
        tokens: n texts.
        batch_size: texts in a batch; the last of the epoch may have fewer.
        seed: (seed, epoch); the same one gives the same batches.
        pool: batches whose texts are sorted together; 0 does not sort at all.

    Returns:
        A list of index arrays.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(tokens))
    if pool:
        lengths, size = tokens.lengths, pool * batch_size
        pieces = (order[first : first + size] for first in range(0, len(order), size))
        order = np.concatenate([piece[np.argsort(lengths[piece], kind="stable")] for piece in pieces])
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def training_batches(
    tokens: Tokens,
    targets: np.ndarray,
    weights: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    first: tuple[int, int] = (0, 0),
    pool: int = _SORTED_TOGETHER,
) -> tf.data.Dataset:
    """Stream batches without end, from (epoch, step) on.

    Args:
        tokens: n texts.
        targets: float32 [n, classes].
        weights: how much each text counts, float32 [n].
        batch_size: texts in a batch.
        seed: decides the order.
        first: the first batch; a run that was killed goes on with the same ones.
        pool: as for `shuffled_by_length`.

    Returns:
        Dataset of ({"token_ids", "padding_mask"}, targets, weights).
    """

    def generate():
        epoch, step = first
        while True:
            for indices in shuffled_by_length(tokens, batch_size, (seed, epoch), pool)[step:]:
                yield tokens.batch(indices), targets[indices], weights[indices]
            epoch, step = epoch + 1, 0

    specs = (INPUTS, tf.TensorSpec((None, targets.shape[1]), tf.float32), tf.TensorSpec((None,), tf.float32))
    return tf.data.Dataset.from_generator(generate, output_signature=specs).prefetch(8)


def validation_batches(tokens: Tokens, targets: np.ndarray, batch_size: int = 64) -> tf.data.Dataset:
    """Stream ({"token_ids", "padding_mask"}, targets) of each text once, shortest first."""

    def generate():
        for indices in batches_by_length(tokens, batch_size):
            yield tokens.batch(indices), targets[indices]

    specs = (INPUTS, tf.TensorSpec((None, targets.shape[1]), tf.float32))
    batches = tf.data.Dataset.from_generator(generate, output_signature=specs)
    return batches.apply(tf.data.experimental.assert_cardinality(-(-len(tokens) // batch_size))).prefetch(8)


def run_on_tokens(model: keras.Model, tokens: Tokens, batch_size: int = 64, title: str = "") -> np.ndarray:
    """Return what a model says of each text, in the order of the texts, float32 [n, width]; show how far it is."""
    answers, done = None, 0
    progress = ProgressLine(title, len(tokens)) if title else None
    for indices in batches_by_length(tokens, batch_size):
        said = model.predict_on_batch(tokens.batch(indices))
        if answers is None:
            answers = np.zeros((len(tokens), said.shape[-1]), np.float32)
        answers[indices] = said
        done += len(indices)
        if progress:
            progress.update(done)
    if progress:
        progress.close()
    return answers
