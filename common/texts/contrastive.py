"""Fine-tune a text encoder on a handful of labelled texts by contrasting pairs.

The idea is from SetFit (arXiv:2209.11055), the loss from supervised contrastive learning (arXiv:2004.11362).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from common import training
from common.checkpoints import fit_with_checkpoints
from common.texts.batches import INPUTS, Tokens, run_on_tokens

# Both chosen by benchmarks/choose_few_shot.py, on validation splits of trec6, product_sentences and banking77, and on
# sentences held out from the training split of SST-2: benchmarks/results/few_shot_choice.json.
TEMPERATURE = 0.1  # of the cosines
AT_LEAST, PER_TEXT = 40, 1.0  # steps


def default_steps(texts: int) -> int:
    """Return the number of few-shot steps for this number of training texts."""
    return max(AT_LEAST, int(texts * PER_TEXT))


def tune_on_pairs(
    encoder: keras.Model,
    tokens: Tokens,
    labels: np.ndarray,
    *,
    steps: int,
    learning_rate: float,
    batch_size: int = 32,
    weight_decay: float = 0.01,
    gradient_norm: float = 1.0,
    temperature: float = TEMPERATURE,
    seed: int = 0,
    stage: str = "pairs",
    checkpoint: Path | None = None,
    save_every: float = 30.0,
) -> list[dict]:
    """Pull the embeddings of texts of one class together and push those of different classes apart, by cosine.

    SetFit draws pairs and encodes both texts of each. Here all pairs within a batch count, so each encoded text
    contributes as many pairs as the batch has other texts.

    Args:
        encoder: {"token_ids", "padding_mask"} to embeddings; its trainable weights are trained.
        tokens: n texts.
        labels: class of each, int [n].
        steps: number of batches.
        learning_rate: peak, after warm-up; decays to 0.
        batch_size: texts per step, about equally many per class; at least 4.
        weight_decay: of AdamW.
        gradient_norm: gradients are clipped to this global norm.
        temperature: as for `contrastive_loss`.
        seed: of the draws.
        stage: name in the history.
        checkpoint: file from which a killed run continues; None for none.
        save_every: seconds between checkpoints.

    Returns:
        One history row: stage, epoch, loss.
    """
    optimizer = training.DiscriminativeAdamW(
        learning_rate=training.warmup_cosine(learning_rate, steps),
        weight_decay=weight_decay,
        global_clipnorm=gradient_norm,
    )
    loss = functools.partial(contrastive_loss, temperature=temperature)
    model = _encode_halves(encoder)
    encoder.jit_compile = False  # many lengths, here and when it is run afterwards
    model.compile(optimizer, loss=loss, jit_compile=False)
    classes = np.eye(labels.max() + 1, dtype=np.float32)
    first_rows, lengths = np.cumsum(tokens.rows_of_text) - tokens.rows_of_text, tokens.row_lengths

    def batches_from(_epoch: int, step: int) -> tf.data.Dataset:
        def generate():
            for texts, rng in _balanced(labels, batch_size, steps, seed, first=step):
                # One row per text: several rows of one text would be trivially similar.
                rows = first_rows[texts] + rng.integers(tokens.rows_of_text[texts])
                by_length = np.argsort(lengths[rows], kind="stable")
                short, long = np.array_split(rows[by_length], 2)
                yield (tokens.batch(short), tokens.batch(long)), classes[labels[texts[by_length]]]

        specs = ((INPUTS, INPUTS), tf.TensorSpec((None, len(classes)), tf.float32))
        return training.pipeline_of(generate, specs)

    return fit_with_checkpoints(
        model, batches_from, epochs=1, lines=training.EpochLines(stage, 1, steps), checkpoint=checkpoint,
        save_every=save_every,
    )  # fmt: skip


def _encode_halves(encoder: keras.Model) -> keras.Model:
    """Return a model that encodes the short and the long texts of a batch apart, with the weights of the encoder.

    The embeddings, and so the loss, are those of the whole batch, but the short half has little padding. Drawing texts
    of similar length for each batch would need less still, and costs accuracy: pairs of different length are missing.
    """
    halves = tuple({name: keras.Input((None,), dtype="int32") for name in INPUTS} for _ in ("short", "long"))
    return keras.Model(halves, keras.ops.concatenate([encoder(half) for half in halves], axis=0))


def tune_if_better(
    encoder: keras.Model, head: keras.layers.Dense, fit_head: Callable[[dict], list[dict]], history: Sequence[dict],
    tokens: dict[str, Tokens], labels: np.ndarray, **options,
) -> list[dict]:  # fmt: skip
    """Tune an encoder on pairs and refit its head; undo both if validation does not improve.

    Args:
        encoder: as for `tune_on_pairs`.
        head: classifier of its embeddings.
        fit_head: fits the head on embeddings of train and val, and returns history rows.
        history: of the head on the untouched encoder.
        tokens: of train and val.
        labels, **options: as for `tune_on_pairs`.

    Returns:
        History rows.
    """
    untouched = encoder.get_weights(), head.get_weights()
    rows = tune_on_pairs(encoder, tokens["train"], labels, **options)
    embeddings = {split: run_on_tokens(encoder, tokens[split]) for split in ("train", "val")}
    tuned = [row | {"stage": "tuned_head"} for row in fit_head(embeddings)]
    if _best(tuned) < _best(history):
        print("pairs: no improvement on validation; keeping the original encoder")
        encoder.set_weights(untouched[0])
        head.set_weights(untouched[1])
    return rows + tuned


def _best(rows: Sequence[dict]) -> tuple[float, float]:
    """Return the rank of the head that was kept: the one with the lowest cross-entropy."""
    return training.by_accuracy(min(rows, key=lambda row: row["val_cross_entropy"]))


def contrastive_loss(classes: tf.Tensor, embeddings: tf.Tensor, temperature: float = TEMPERATURE) -> tf.Tensor:
    """Return the supervised contrastive loss: low where each text is closest to the texts of its class in the batch.

    For each text, softmax turns the cosines to the others into probabilities; the loss is the mean negative logarithm
    of those of its own class.

    Args:
        classes: one-hot, float32 [n, classes].
        embeddings: float32 [n, width].
        temperature: of the softmax; a low one makes the most similar texts count most.
    """
    directions = keras.ops.normalize(embeddings, axis=1)
    itself = keras.ops.eye(keras.ops.shape(classes)[0])
    cosines = keras.ops.matmul(directions, keras.ops.transpose(directions)) / temperature - 1e9 * itself
    same = keras.ops.matmul(classes, keras.ops.transpose(classes)) * (1.0 - itself)
    of_its_class = keras.ops.sum(same * keras.ops.log_softmax(cosines, axis=1), axis=1)
    return -keras.ops.mean(of_its_class / keras.ops.maximum(keras.ops.sum(same, axis=1), 1.0))


def _balanced(
    labels: np.ndarray, size: int, steps: int, seed: int, first: int
) -> Iterator[tuple[np.ndarray, np.random.Generator]]:
    """Yield the texts of each step from `first` on, and the generator that drew them.

    They are about equally many per class, or all texts if there are at most `size`.
    """
    for step in range(first, steps):
        rng = np.random.default_rng((seed, step))
        if len(labels) <= size:
            yield np.arange(len(labels)), rng
            continue
        classes = rng.permutation(np.unique(labels))
        each = max(2, size // len(classes))
        chosen = [rng.permutation(np.nonzero(labels == one)[0])[:each] for one in classes[: size // each]]
        yield np.concatenate(chosen), rng
