"""Batches of token ids, with texts of similar length together, so that padding is short."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from common.checkpoints import save_array
from common.progress import ProgressLine
from common.training import pipeline_of

_CHARACTERS_AT_ONCE = 500_000  # per call of the tokenizer, counting each text as long as the longest
_OVERLAP = 4  # windows overlap by a fourth, so that a cut sentence is whole in the next one
_MULTIPLE = 8  # batches are padded to a multiple of this, for few different shapes and full registers
_SORTED_TOGETHER = 50  # batches; texts are sorted by length within so many, and shuffled beyond
INPUTS = {name: tf.TensorSpec((None, None), tf.int32) for name in ("token_ids", "padding_mask")}


@dataclass(frozen=True)
class Tokens:
    """Texts as rows of tokens; a long text may be several rows.

    Attributes:
        ids: of each row, int32 [tokens], special tokens included.
        owners: the text that each row belongs to, int64 [rows], ascending.
        lengths: tokens of each whole text, special tokens included, int64 [texts].
        max_length: maximum number of tokens of a row.
        padding: the padding token.
    """

    ids: tuple[np.ndarray, ...]
    owners: np.ndarray
    lengths: np.ndarray
    max_length: int
    padding: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def row_lengths(self) -> np.ndarray:
        """Return the number of tokens of each row, int64 [rows]."""
        return np.array([len(row) for row in self.ids], np.int64)

    @property
    def rows_of_text(self) -> np.ndarray:
        """Return the number of rows of each text, int64 [texts]."""
        return np.bincount(self.owners, minlength=len(self.lengths))

    @property
    def cut(self) -> int:
        """Return the number of truncated texts."""
        return int(((self.lengths > self.max_length) & (self.rows_of_text == 1)).sum())

    def batch(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """Return token ids and padding mask of some rows, int32 [n, tokens of the longest, rounded up]."""
        length = -(-max(len(self.ids[i]) for i in rows) // _MULTIPLE) * _MULTIPLE
        length = min(length, self.max_length)  # the model may have no positions beyond
        token_ids = np.full((len(rows), length), self.padding, np.int32)
        mask = np.zeros((len(rows), length), np.int32)
        for at, row in enumerate(rows):
            token_ids[at, : len(self.ids[row])] = self.ids[row]
            mask[at, : len(self.ids[row])] = 1
        return {"token_ids": token_ids, "padding_mask": mask}

    def of_texts(self, texts: Sequence[int]) -> Tokens:
        """Return the tokens of some of the texts, in the order given."""
        first = np.concatenate([[0], np.cumsum(self.rows_of_text)])
        rows = [row for text in texts for row in range(first[text], first[text + 1])]
        owners = np.repeat(np.arange(len(texts)), self.rows_of_text[texts])
        return Tokens(tuple(self.ids[row] for row in rows), owners, self.lengths[texts], self.max_length, self.padding)


class TextReader(tf.Module):
    """Raw texts to rows of tokens: the same function in training and in the served graph.

    Args:
        tokenize: as in TextSource, with the ids of the tokens `start`, `end` (None where there is none) and
            `padding`. A tf.Module, whose tables are saved in an export.
        max_length: maximum number of tokens of a row, special tokens included.
        long_text: how longer texts are handled: `truncate` drops the end, `windows` makes rows that overlap by a
            fourth, whose embeddings are averaged.
    """

    def __init__(self, tokenize: Callable, max_length: int, long_text: str = "truncate"):
        super().__init__(name="text_reader")
        self.tokenize, self.max_length, self.windows = tokenize, max_length, long_text == "windows"
        self.special = [token for token in (tokenize.start, tokenize.end) if token is not None]

    def rows(self, texts: tf.Tensor) -> tuple[tf.RaggedTensor, tf.Tensor, tf.Tensor]:
        """Return rows int32 [rows, (tokens)], the text of each row int64 [rows], the length of each text [texts]."""
        tokens = self.tokenize(texts)
        room, lengths = self.max_length - len(self.special), tokens.row_lengths()
        whole = lengths + len(self.special)
        if self.windows:
            tokens, owners = _windows(tokens, room, step=max(1, room - room // _OVERLAP))
        else:
            tokens, owners = tokens[:, :room], tf.range(tf.size(lengths, tf.int64))
        start, end = (
            [] if token is None else [tf.fill([tf.size(owners), 1], token)]
            for token in (self.tokenize.start, self.tokenize.end)
        )
        return tf.concat([*start, tokens, *end], axis=1), owners, whole

    def batch(self, texts: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Turn raw texts into model inputs, in any TensorFlow graph.

        Args:
            texts: string [batch].

        Returns:
            ({"token_ids", "padding_mask"}, int32 [rows, tokens of the longest]; the text of each row, int64 [rows]).
        """
        rows, owners, _ = self.rows(texts)
        token_ids = rows.to_tensor(self.tokenize.padding)
        mask = tf.sequence_mask(rows.row_lengths(), tf.shape(token_ids)[1], tf.int32)
        return {"token_ids": token_ids, "padding_mask": mask}, owners

    def read(self, texts: Sequence[str]) -> Tokens:
        """Return the tokens of n texts, tokenized in chunks."""
        ids, owners, lengths = [], [], []
        for first, end in _chunks(texts):
            encoded = [text.encode("utf-8", "replace") for text in texts[first:end]]
            rows, owner, length = self.rows(tf.constant(encoded))
            ids += [np.array(row, np.int32) for row in rows.to_list()]
            owners.append(owner.numpy() + first)
            lengths.append(length.numpy())
        return Tokens(
            tuple(ids), np.concatenate(owners), np.concatenate(lengths), self.max_length, self.tokenize.padding
        )


def _chunks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each chunk: the longer its texts, the fewer of them."""
    first, longest = 0, 0
    for place, text in enumerate(texts):
        longest = max(longest, len(text))
        if place > first and (place - first + 1) * longest > _CHARACTERS_AT_ONCE:
            yield first, place
            first, longest = place, len(text)
    if len(texts):
        yield first, len(texts)


def _windows(tokens: tf.RaggedTensor, size: int, step: int) -> tuple[tf.RaggedTensor, tf.Tensor]:
    """Cut rows into windows of at most `size` tokens that begin `step` apart; the last one ends with its row.

    Returns:
        (windows int32 [windows, (tokens)], the row of each window int64 [windows]).
    """
    lengths = tokens.row_lengths()
    counts = 1 + (tf.maximum(lengths - size, 0) + step - 1) // step
    owners = tf.repeat(tf.range(tf.size(lengths, tf.int64)), counts)
    number = tf.ragged.range(counts).flat_values  # of each window within its row
    begin = tf.gather(tokens.row_starts(), owners) + number * step
    end = tf.minimum(begin + size, tf.gather(tokens.row_limits(), owners))
    return tf.gather(tokens.flat_values, tf.ragged.range(begin, end)), owners


def batches_by_length(tokens: Tokens, batch_size: int) -> Iterator[np.ndarray]:
    """Yield the rows of each batch, shortest first."""
    order = np.argsort(tokens.row_lengths, kind="stable")
    for first in range(0, len(order), batch_size):
        yield order[first : first + batch_size]


def shuffled_by_length(
    tokens: Tokens, batch_size: int, seed: tuple[int, int], pool: int = _SORTED_TOGETHER,
    shares: np.ndarray | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """Return the batches of one epoch: rows of about the same length together, in a random order.

    Args:
        tokens: the rows to draw from.
        batch_size: rows per batch; the last of the epoch may have fewer.
        seed: (seed, epoch); the same one gives the same batches.
        pool: number of batches whose rows are sorted together; 0 disables sorting.
        shares: how often to draw each row, float64 [rows], sum 1; an epoch has as many rows all the same. None: each
            occurs once.

    Returns:
        A list of index arrays.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(tokens))
    if shares is not None:  # systematic sampling: each row as often as its share says, rounded up or down
        places = np.searchsorted(np.cumsum(shares[order]), (np.arange(len(order)) + rng.random()) / len(order))
        order = rng.permutation(order[np.minimum(places, len(order) - 1)])
    if pool:
        lengths, size = tokens.row_lengths, pool * batch_size
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
        weights: of each text, float32 [n], divided among its rows.
        batch_size: rows per batch.
        seed: of the order.
        first: the first batch, with which a resumed run continues.
        pool: as for `shuffled_by_length`.

    Returns:
        Dataset of ({"token_ids", "padding_mask"}, targets, weights).
    """

    targets, weights = targets[tokens.owners], (weights / tokens.rows_of_text)[tokens.owners].astype(np.float32)

    def generate():
        epoch, step = first
        while True:
            for rows in shuffled_by_length(tokens, batch_size, (seed, epoch), pool)[step:]:
                yield tokens.batch(rows), targets[rows], weights[rows]
            epoch, step = epoch + 1, 0

    specs = (INPUTS, tf.TensorSpec((None, targets.shape[1]), tf.float32), tf.TensorSpec((None,), tf.float32))
    return pipeline_of(generate, specs)


def run_on_tokens(model: keras.Model, tokens: Tokens, batch_size: int = 64, title: str = "") -> np.ndarray:
    """Return the output of a model for each text, the mean over its rows, float32 [texts, width]; show progress."""
    outputs, done = None, 0
    progress = ProgressLine(title, len(tokens)) if title else None
    for rows in batches_by_length(tokens, batch_size):
        output = model.predict_on_batch(tokens.batch(rows))
        if outputs is None:
            outputs = np.zeros((len(tokens), output.shape[-1]), np.float32)
        outputs[rows] = output
        done += len(rows)
        if progress:
            progress.update(done)
    if progress:
        progress.close()
    first_rows = np.concatenate([[0], np.cumsum(tokens.rows_of_text)[:-1]])
    return np.add.reduceat(outputs, first_rows) / tokens.rows_of_text[:, None].astype(np.float32)


def run_once_on_tokens(model: keras.Model, tokens: Tokens, folder: Path, title: str, chunk: int = 1024) -> np.ndarray:
    """As `run_on_tokens`, saved in chunks: a resumed run computes only the missing ones.

    Args:
        model, tokens, title: as there.
        folder: for the files; of one run, model and set of texts.
        chunk: texts per file.
    """
    outputs, progress = [], ProgressLine(title, len(tokens.lengths))
    for first in range(0, len(tokens.lengths), chunk):
        file = folder / f"{title.replace(' ', '_')}_{first:07}.npy"
        some = np.arange(first, min(first + chunk, len(tokens.lengths)))
        if not file.exists():
            save_array(file, run_on_tokens(model, tokens.of_texts(some)))
        outputs.append(np.load(file, allow_pickle=False))
        progress.update(int(some[-1]) + 1)
    progress.close()
    return np.concatenate(outputs)
