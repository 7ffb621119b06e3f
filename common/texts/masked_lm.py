"""Learning from sentences in which some words are hidden (masked language modelling, arXiv:1810.04805)."""

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

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # the first tokens of the vocabulary: none of them is hidden
UNKNOWN, MASK = SPECIAL.index("[UNK]"), SPECIAL.index("[MASK]")
INPUTS = {**batches.INPUTS, "hidden": tf.TensorSpec((None, None), tf.int32)}
_HIDDEN = 0.15  # share of the tokens that are hidden, as in BERT
_RESAMPLES = 1000


def choose_vocabulary(tokenize: WordPiece, sentences: Sequence[str], size: int) -> list[str]:
    """Return the special tokens, then those of a tokenizer that the sentences use most; single letters always."""
    tokens, counts = tokenize.vocabulary(), Counter()
    # In lower case, as the small encoder reads them: this tokenizer may know capital letters.
    for row in batches.TextReader(tokenize, max_length=512).read([sentence.lower() for sentence in sentences]).ids:
        counts.update(row.tolist())
    single = [token for token in tokens if len(token.removeprefix("##")) == 1 and token.isascii()]
    used = [tokens[number] for number, _ in counts.most_common()]
    return list(dict.fromkeys([*SPECIAL, *single, *(t for t in used if not t.startswith("[unused"))]))[:size]


def hide_words(batch: dict[str, np.ndarray], rng: np.random.Generator):
    """Hide some words of each sentence.

    Args:
        batch: as Tokens gives it, int32 [n, length].
        rng: chooses them.

    Returns:
        (inputs of the model, hidden tokens int32 [n, places], float32 [n, places]: 0 where a place is not used).
    """
    ids = batch["token_ids"]
    may_hide = ids >= len(SPECIAL)
    possible = may_hide.sum(axis=1)
    wanted = np.minimum(np.maximum(np.round(_HIDDEN * possible), 1), possible)
    places = max(1, round(_HIDDEN * (ids.shape[1] - 2)))  # no row needs more: [CLS] and [SEP] stay
    hidden = np.argsort(np.where(may_hide, rng.random(ids.shape), 2.0), axis=1)[:, :places].astype(np.int32)
    used = np.arange(places) < wanted[:, None]
    words = np.take_along_axis(ids, hidden, axis=1)
    shown = ids.copy()
    np.put_along_axis(shown, hidden, np.where(used, MASK, words), axis=1)
    return {**batch, "token_ids": shown, "hidden": hidden}, words, used.astype(np.float32)


def build_guesser(backbone: keras.Model, teacher_width: int) -> keras.Model:
    """Return {"token_ids", "padding_mask", "hidden" places} -> {"words": logits of the hidden tokens, "teacher"}.

    Args:
        backbone: a BERT.
        teacher_width: of what a teacher says of a sentence; 0 without one, and without the output `teacher`.
    """
    backbone.get_layer("pooled_dense").trainable = False  # nothing reads it
    encoder = build_encoder(TextSource("", backbone, None, backbone.max_sequence_length, {}))
    states = encoder.get_layer("pool").input[0]
    hidden = keras.Input((None,), dtype="int32", name="hidden")
    there = keras.ops.take_along_axis(states, hidden[..., None], axis=1)
    outputs = {"words": backbone.get_layer("token_embedding")(there, reverse=True)}
    if teacher_width:
        outputs["teacher"] = keras.layers.Dense(teacher_width, name="teacher")(encoder.output)
    return keras.Model({**encoder.input, "hidden": hidden}, outputs)


def masked_batches(
    tokens: batches.Tokens, wanted: np.ndarray | None, batch_size: int, *, seed: int, first: tuple[int, int] = (0, 0)
) -> tf.data.Dataset:
    """Stream batches without end, from (epoch, step) on; the same ones, whenever they are asked for.

    Args:
        tokens: n sentences.
        wanted: what the teacher said of each, float32 [n, width]; None without one.
        batch_size: sentences in a batch.
        seed: decides the order and the hidden words.
        first: the first batch; a run that was killed goes on with it.

    Returns:
        Dataset of (inputs, targets, weights) for `fit` of what `build_guesser` gives.
    """

    def generate():
        epoch, step = first
        while True:
            order = batches.shuffled_by_length(tokens, batch_size, (seed, epoch))
            for number in range(step, len(order)):
                rng = np.random.default_rng((seed, epoch, number))
                inputs, words, used = hide_words(tokens.batch(order[number]), rng)
                targets, weights = {"words": words}, {"words": used}
                if wanted is not None:
                    targets["teacher"], weights["teacher"] = wanted[order[number]], np.ones(len(words), np.float32)
                yield inputs, targets, weights
            epoch, step = epoch + 1, 0

    targets = {"words": tf.TensorSpec((None, None), tf.int32)}
    weights = {"words": tf.TensorSpec((None, None), tf.float32)}
    if wanted is not None:
        targets["teacher"] = tf.TensorSpec((None, wanted.shape[1]), tf.float32)
        weights["teacher"] = tf.TensorSpec((None,), tf.float32)
    return tf.data.Dataset.from_generator(generate, output_signature=(INPUTS, targets, weights)).prefetch(8)


def answers_of(model: keras.Model) -> Callable:
    """Return what `score` asks: inputs -> (guessed tokens [n, places], vectors [n, width] or None)."""

    # With a signature it is traced once; `predict_on_batch` is traced again for batches of other shapes, and complains.
    @tf.function(input_signature=[INPUTS])
    def look(inputs):
        said = model(inputs, training=False)
        return {**said, "words": tf.argmax(said["words"], axis=-1, output_type=tf.int32)}

    def answer(inputs):
        said = look({name: tf.constant(array) for name, array in inputs.items()})
        return said["words"].numpy(), said["teacher"].numpy() if "teacher" in said else None

    return answer


def most_frequent_answers(tokens: batches.Tokens, wanted: np.ndarray | None) -> Callable:
    """Return what `score` asks of somebody who reads nothing: the commonest token, and the mean of all directions.

    Args:
        tokens: of the training part.
        wanted: what the teacher said of it, or None.
    """
    counts = np.bincount(np.concatenate(tokens.ids), minlength=len(SPECIAL) + 1)
    commonest = len(SPECIAL) + int(np.argmax(counts[len(SPECIAL) :]))
    mean = None if wanted is None else np.mean(_directions(wanted), axis=0, keepdims=True)
    return lambda inputs: (np.array([[commonest]]), mean)


def score(answer: Callable, tokens: batches.Tokens, wanted: np.ndarray | None) -> dict:
    """Measure how many hidden words are guessed, and how near the vectors come to the teacher's.

    Args:
        answer: as `answers_of` gives it.
        tokens: n sentences. The same words of them are hidden, whoever is asked.
        wanted: what the teacher said of each, float32 [n, width]; None without one.

    Returns:
        {"accuracy", "cosine_to_teacher"}, each with a bootstrap 95 % interval over sentences (`..._ci95`).
    """
    rng = np.random.default_rng(0)
    right, hidden, cosines = (np.zeros(len(tokens)) for _ in range(3))
    for chosen in batches.batches_by_length(tokens, 64):
        inputs, words, used = hide_words(tokens.batch(chosen), rng)
        guessed, vectors = answer(inputs)
        right[chosen], hidden[chosen] = np.sum(used * (guessed == words), axis=1), used.sum(axis=1)
        if wanted is not None:
            cosines[chosen] = np.sum(_directions(vectors) * _directions(wanted[chosen]), axis=1)
    scores = _share_with_interval("accuracy", right, hidden)
    if wanted is not None:
        scores |= _share_with_interval("cosine_to_teacher", cosines, np.ones(len(tokens)))
    return scores


def _directions(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _share_with_interval(name: str, some: np.ndarray, of: np.ndarray) -> dict:
    drawn = np.random.default_rng(0).integers(0, len(of), (_RESAMPLES, len(of)))
    shares = some[drawn].sum(axis=1) / np.maximum(of[drawn].sum(axis=1), 1)
    bounds = [float(bound) for bound in np.percentile(shares, [2.5, 97.5])]
    return {name: float(some.sum() / max(of.sum(), 1)), f"{name}_ci95": bounds}


def show_hidden(
    tokens: batches.Tokens, vocabulary: Sequence[str], answer: Callable | None = None, count: int = 12
) -> list[list[dict]]:
    """Return the first sentences as pieces, to be shown.

    Args:
        tokens: the sentences.
        vocabulary: the token of each id.
        answer: who guesses, as `answers_of` gives it; None for nobody.
        count: sentences at most.

    Returns:
        For each sentence its pieces: {"text", "hidden": whether it is, "guess": a text or None}.
    """
    rows = np.arange(min(count, len(tokens)))
    inputs, _, used = hide_words(tokens.batch(rows), np.random.default_rng(0))
    guessed = answer(inputs)[0] if answer else None
    shown = []
    for row in rows:
        pieces = [{"text": vocabulary[token], "hidden": False, "guess": None} for token in tokens.ids[row]]
        for slot in np.flatnonzero(used[row]):
            guess = vocabulary[guessed[row, slot]] if answer else None
            pieces[inputs["hidden"][row, slot]] |= {"hidden": True, "guess": guess}
        shown.append(pieces[1:-1])  # without [CLS] and [SEP]
    return shown


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
