"""Masked language modelling (arXiv:1810.04805): train an encoder to predict masked tokens of sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from common.texts import batches
from common.texts.models import build_encoder
from common.texts.sources import BertBackbone, TextSource
from common.texts.tokenizers.wordpiece import WordPiece
from common.training import pipeline_of

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # the first tokens of the vocabulary, never masked
UNKNOWN, MASK = SPECIAL.index("[UNK]"), SPECIAL.index("[MASK]")
INPUTS = {**batches.INPUTS, "masked": tf.TensorSpec((None, None), tf.int32)}
_MASKED = 0.15  # share of masked tokens, as in BERT
_RESAMPLES = 1000


def choose_vocabulary(tokenize: WordPiece, sentences: Sequence[str], size: int) -> list[str]:
    """Return the special tokens, all single letters, and the most frequent tokens of the sentences."""
    tokens, counts = tokenize.vocabulary(), Counter()
    # In lower case, as the small encoder reads them: this tokenizer may be cased.
    for row in batches.TextReader(tokenize, max_length=512).read([sentence.lower() for sentence in sentences]).ids:
        counts.update(row.tolist())
    single = [token for token in tokens if len(token.removeprefix("##")) == 1 and token.isascii()]
    used = [tokens[number] for number, _ in counts.most_common()]
    return list(dict.fromkeys([*SPECIAL, *single, *(t for t in used if not t.startswith("[unused"))]))[:size]


def mask_tokens(batch: dict[str, np.ndarray], rng: np.random.Generator):
    """Mask some tokens of each sentence.

    Args:
        batch: as returned by `Tokens.batch`, int32 [n, length].
        rng: chooses the tokens.

    Returns:
        (inputs of the model, masked tokens int32 [n, slots], weights float32 [n, slots]: 0 for an unused slot).
    """
    ids = batch["token_ids"]
    maskable = ids >= len(SPECIAL)
    possible = maskable.sum(axis=1)
    counts = np.minimum(np.maximum(np.round(_MASKED * possible), 1), possible)
    slots = max(1, round(_MASKED * (ids.shape[1] - 2)))  # no row needs more: [CLS] and [SEP] stay
    masked = np.argsort(np.where(maskable, rng.random(ids.shape), 2.0), axis=1)[:, :slots].astype(np.int32)
    used = np.arange(slots) < counts[:, None]
    words = np.take_along_axis(ids, masked, axis=1)
    visible = ids.copy()
    np.put_along_axis(visible, masked, np.where(used, MASK, words), axis=1)
    return {**batch, "token_ids": visible, "masked": masked}, words, used.astype(np.float32)


def build_masked_lm(backbone: keras.Model, teacher_width: int) -> keras.Model:
    """Return {"token_ids", "padding_mask", "masked" positions} -> {"words": logits of the masked tokens, "teacher"}.

    Args:
        backbone: a BERT.
        teacher_width: width of the teacher's embeddings; 0 without a teacher, and without the output `teacher`.
    """
    backbone.get_layer("pooled_dense").trainable = False  # unused
    encoder = build_encoder(TextSource("", backbone, None, backbone.max_sequence_length, {}))
    states = encoder.get_layer("pool").input[0]
    masked = keras.Input((None,), dtype="int32", name="masked")
    masked_states = keras.ops.take_along_axis(states, masked[..., None], axis=1)
    outputs = {"words": backbone.get_layer("token_embedding")(masked_states, reverse=True)}
    if teacher_width:
        outputs["teacher"] = keras.layers.Dense(teacher_width, name="teacher")(encoder.output)
    return keras.Model({**encoder.input, "masked": masked}, outputs)


def masked_batches(
    tokens: batches.Tokens, embeddings: np.ndarray | None, batch_size: int, *, seed: int, first: tuple = (0, 0),
    shares: np.ndarray | None = None,
) -> tf.data.Dataset:  # fmt: skip
    """Stream batches without end, from (epoch, step) on, reproducibly.

    Args:
        tokens: n sentences.
        embeddings: of the teacher, float32 [n, width]; None without a teacher.
        batch_size: sentences per batch.
        seed: of the order and the masks.
        first: the first batch, with which a resumed run continues.
        shares: as for `shuffled_by_length`.

    Returns:
        Dataset of (inputs, targets, weights) to fit the model of `build_masked_lm`.
    """

    def generate():
        epoch, step = first
        while True:
            order = batches.shuffled_by_length(tokens, batch_size, (seed, epoch), shares=shares)
            for number in range(step, len(order)):
                rng = np.random.default_rng((seed, epoch, number))
                inputs, words, used = mask_tokens(tokens.batch(order[number]), rng)
                targets, weights = {"words": words}, {"words": used}
                if embeddings is not None:
                    targets["teacher"], weights["teacher"] = embeddings[order[number]], np.ones(len(words), np.float32)
                yield inputs, targets, weights
            epoch, step = epoch + 1, 0

    targets = {"words": tf.TensorSpec((None, None), tf.int32)}
    weights = {"words": tf.TensorSpec((None, None), tf.float32)}
    if embeddings is not None:
        targets["teacher"] = tf.TensorSpec((None, embeddings.shape[1]), tf.float32)
        weights["teacher"] = tf.TensorSpec((None,), tf.float32)
    specs = (INPUTS, targets, weights)
    return pipeline_of(generate, specs)


def predictor_of(model: keras.Model) -> Callable:
    """Return the predict function for `score`: inputs -> (tokens [n, slots], embeddings [n, width] or None)."""

    # With a signature it is traced once; `predict_on_batch` is traced again for every new shape, and warns.
    @tf.function(input_signature=[INPUTS])
    def run(inputs):
        outputs = model(inputs, training=False)
        return {**outputs, "words": tf.argmax(outputs["words"], axis=-1, output_type=tf.int32)}

    def predict(inputs):
        outputs = run({name: tf.constant(array) for name, array in inputs.items()})
        return outputs["words"].numpy(), outputs["teacher"].numpy() if "teacher" in outputs else None

    return predict


def most_frequent_predictor(tokens: batches.Tokens, embeddings: np.ndarray | None) -> Callable:
    """Return the constant predict function for `score`: the most frequent token and the mean direction.

    Args:
        tokens: of the training split.
        embeddings: of the teacher for it, or None.
    """
    counts = np.bincount(np.concatenate(tokens.ids), minlength=len(SPECIAL) + 1)
    most_frequent = len(SPECIAL) + int(np.argmax(counts[len(SPECIAL) :]))
    mean = None if embeddings is None else np.mean(_directions(embeddings), axis=0, keepdims=True)
    return lambda inputs: (np.array([[most_frequent]]), mean)


def score(predict: Callable, tokens: batches.Tokens, embeddings: np.ndarray | None) -> dict:
    """Measure the accuracy on masked tokens, and the cosine similarity to the teacher's embeddings.

    Args:
        predict: as returned by `predictor_of`.
        tokens: n sentences. The same tokens of them are masked in every call.
        embeddings: of the teacher, float32 [n, width]; None without a teacher.

    Returns:
        {"accuracy", "cosine_to_teacher"}, each with a bootstrap 95 % interval over sentences (`..._ci95`).
    """
    rng = np.random.default_rng(0)
    right, masked, cosines = (np.zeros(len(tokens)) for _ in range(3))
    for chosen in batches.batches_by_length(tokens, 64):
        inputs, words, used = mask_tokens(tokens.batch(chosen), rng)
        predicted, vectors = predict(inputs)
        right[chosen], masked[chosen] = np.sum(used * (predicted == words), axis=1), used.sum(axis=1)
        if embeddings is not None:
            cosines[chosen] = np.sum(_directions(vectors) * _directions(embeddings[chosen]), axis=1)
    scores = _share_with_interval("accuracy", right, masked)
    if embeddings is not None:
        scores |= _share_with_interval("cosine_to_teacher", cosines, np.ones(len(tokens)))
    return scores


def _directions(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _share_with_interval(name: str, some: np.ndarray, of: np.ndarray) -> dict:
    drawn = np.random.default_rng(0).integers(0, len(of), (_RESAMPLES, len(of)))
    shares = some[drawn].sum(axis=1) / np.maximum(of[drawn].sum(axis=1), 1)
    bounds = [float(bound) for bound in np.percentile(shares, [2.5, 97.5])]
    return {name: float(some.sum() / max(of.sum(), 1)), f"{name}_ci95": bounds}


def masked_examples(
    tokens: batches.Tokens, vocabulary: Sequence[str], predict: Callable | None = None, count: int = 12
) -> list[list[dict]]:
    """Return the first sentences as pieces, to be displayed.

    Args:
        tokens: the sentences.
        vocabulary: the token of each id.
        predict: as returned by `predictor_of`; None for no predictions.
        count: maximum number of sentences.

    Returns:
        For each sentence its pieces: {"text", "masked": bool, "prediction": text or None}.
    """
    rows = np.arange(min(count, len(tokens)))
    inputs, _, used = mask_tokens(tokens.batch(rows), np.random.default_rng(0))
    predicted = predict(inputs)[0] if predict else None
    sentences = []
    for row in rows:
        pieces = [{"text": vocabulary[token], "masked": False, "prediction": None} for token in tokens.ids[row]]
        for slot in np.flatnonzero(used[row]):
            prediction = vocabulary[predicted[row, slot]] if predict else None
            pieces[inputs["masked"][row, slot]] |= {"masked": True, "prediction": prediction}
        sentences.append(pieces[1:-1])  # without [CLS] and [SEP]
    return sentences


def save_encoder(preset: Path, backbone: BertBackbone, vocabulary: Sequence[str]) -> Path:
    """Write an encoder as a KerasHub preset with its vocabulary; weights as float16, half the size.

    Args:
        preset: folder to write.
        backbone: float32.
        vocabulary: the token of each id.

    Returns:
        The folder.
    """
    half = BertBackbone.from_config(backbone.get_config() | {"dtype": "float16"})
    half.set_weights(backbone.get_weights())
    half.save_to_preset(str(preset))
    (preset / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    return preset
