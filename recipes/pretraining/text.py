"""Make a small text encoder of your own: from plain texts, with a stronger encoder as teacher.

    python -m recipes.pretraining.text --texts REVIEWS.jsonl.gz --teacher minilm --out runs/bert_mini
    python -m recipes run bert_sentiment --source preset:runs/bert_mini/preset

A small BERT reads sentences in which some words are hidden. It learns to guess those (masked language modelling,
arXiv:1810.04805), and to say of the sentence what the teacher says of the whole one (distillation of sentence
embeddings, arXiv:1503.02531). Its vocabulary holds only the pieces that the texts really use. No labels are needed.
`bundled:bert_mini` was made by this file; its card.json holds the command, the texts, the seconds and the scores.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
import tyro

from common import runs, training
from common.data import texts as batches
from common.errors import UserError
from common.progress import ProgressLine
from common.text_models import build_encoder
from common.text_sources import BertBackbone, TextSource, load_text_source
from common.wordpiece import WordPiece

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_HELD_OUT = 0.02  # share of the sentences that nothing learns from
_HIDDEN = 0.15  # share of the tokens that are hidden, as in BERT
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|<br\s*/?>|\n+")


@dataclass(frozen=True)
class Config:
    """Make a small text encoder from plain texts."""

    texts: tuple[str, ...]
    """Files: .txt (a text on each line) or .jsonl (a text in --text-column), .gz or not."""
    out: str = "runs/bert_mini"
    """Folder for everything this writes; the preset is in OUT/preset."""
    text_column: str = "text"
    """Column of .jsonl files; its value is a text or a list of texts."""
    teacher: str = "minilm"
    """The stronger encoder, whose tokenizer is used as well: a short name, or preset:..."""
    sentences: int = 100_000
    """At most this many sentences, drawn from all."""
    vocabulary: int = 7000
    """Tokens that the small encoder knows: those that the texts use most."""
    width: int = 192
    """Width of the hidden states."""
    layers: int = 3
    """Transformer layers; more is slower and stronger."""
    epochs: int = 6
    """Passes over the sentences."""
    batch_size: int = 128
    """Sentences in a step."""
    learning_rate: float = 1e-3
    """Peak of the learning rate; it warms up and then falls along a cosine."""
    guess_weight: float = 0.1
    """How much guessing hidden words counts against the teacher."""
    max_length: int = 64
    """Tokens that are read of a sentence in training."""
    licence: str = "as the texts"
    """Licence written into the card of the preset."""
    seed: int = 0
    """Decides initial weights, order and hidden words."""


def read_sentences(config: Config) -> list[str]:
    """Return different sentences of 4 to 60 words, drawn from all files.

    Raises:
        UserError: a file cannot be read, or lacks the column.
    """
    found: dict[str, None] = {}
    for text in (text for file in config.texts for text in _texts(Path(file), config.text_column)):
        for sentence in _SENTENCE_END.split(text):
            sentence = " ".join(sentence.split())
            if 4 <= sentence.count(" ") + 1 <= 60:
                found[sentence] = None
    if len(found) < 100:
        raise UserError(
            f"--texts hold {len(found)} sentences; at least 100 are needed, and some ten thousand are useful."
        )
    order = np.random.default_rng(config.seed).permutation(len(found))[: config.sentences]
    sentences = list(found)
    return [sentences[i] for i in order]


def _texts(file: Path, column: str) -> Iterator[str]:
    try:
        content = file.read_bytes()
        lines = (gzip.decompress(content) if file.suffix == ".gz" else content).decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--texts {file} cannot be read: {error}.") from error
    if ".jsonl" not in file.suffixes:
        yield from lines
        return
    for line in filter(None, lines):
        value = json.loads(line).get(column)
        if value is None:
            raise UserError(f"--texts {file} has no column {column!r}. Found: {', '.join(json.loads(line))}.")
        yield from value if isinstance(value, list) else [value]


def choose_vocabulary(teacher: TextSource, ids: Sequence[np.ndarray], size: int) -> list[str]:
    """Return the special tokens, then the teacher's tokens that the sentences use most; single letters always."""
    tokens = teacher.tokenize.vocabulary()
    counts = Counter(int(number) for row in ids for number in row)
    single = [token for token in tokens if len(token.removeprefix("##")) == 1 and token.isascii()]
    used = [tokens[number] for number, _ in counts.most_common()]
    return list(dict.fromkeys([*SPECIAL, *single, *(t for t in used if not t.startswith("[unused"))]))[:size]


def build(config: Config, size: int, teacher_width: int) -> tuple[BertBackbone, keras.Model]:
    """Return (backbone, model of {"token_ids", "padding_mask"} to [hidden states, what the teacher would say])."""
    backbone = BertBackbone(
        vocabulary_size=size, num_layers=config.layers, num_heads=max(1, config.width // 48), hidden_dim=config.width,
        intermediate_dim=4 * config.width, max_sequence_length=256, dropout=0.0,
    )  # fmt: skip
    source = TextSource("", backbone, None, 256, {})
    encoder = build_encoder(source)
    states = encoder.get_layer("pool").input[0]
    said = keras.layers.Dense(teacher_width, name="teacher")(encoder.output)
    return backbone, keras.Model(encoder.input, [states, said])


def train(config: Config, backbone, model, tokens: batches.Tokens, wanted: np.ndarray, mask_id: int) -> list[dict]:
    """Train on the teacher's embeddings and on hidden words; return a history row for each epoch."""
    variables = [v for v in model.trainable_variables if "pooled_dense" not in v.path]
    table = backbone.get_layer("token_embedding").embeddings
    steps = -(-len(tokens) // config.batch_size)
    schedule = training.warmup_cosine(config.learning_rate, config.epochs * steps)
    optimizer = keras.optimizers.AdamW(learning_rate=schedule, weight_decay=0.01, global_clipnorm=1.0)
    optimizer.build(variables)

    @tf.function(input_signature=[batches.INPUTS, tf.TensorSpec([None, wanted.shape[1]])])
    def train_on(inputs, targets):
        ids, mask = inputs["token_ids"], inputs["padding_mask"]
        drawn = tf.random.uniform(tf.shape(ids))
        hidden = (drawn < _HIDDEN) & (mask > 0) & (ids >= len(SPECIAL))
        shown = tf.where(hidden, mask_id, ids)
        with tf.GradientTape() as tape:
            states, said = model({"token_ids": shown, "padding_mask": mask}, training=True)
            apart = tf.reduce_mean(keras.losses.cosine_similarity(targets, said)) + 1.0
            logits = tf.matmul(tf.boolean_mask(states, hidden), table.value, transpose_b=True)
            guesses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.boolean_mask(ids, hidden), logits)
            guessed = tf.math.divide_no_nan(tf.reduce_sum(guesses), tf.cast(tf.size(guesses), tf.float32))
            loss = apart + config.guess_weight * guessed
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return apart, guessed

    history, progress = [], ProgressLine("bert_mini", config.epochs * steps)
    for epoch in range(config.epochs):
        losses = []
        for number, chosen in enumerate(batches.shuffled_by_length(tokens, config.batch_size, (config.seed, epoch))):
            inputs = {name: tf.constant(array) for name, array in tokens.batch(chosen).items()}
            losses.append([float(one) for one in train_on(inputs, tf.constant(wanted[chosen]))])
            apart, guessed = losses[-1]
            progress.update(epoch * steps + number + 1, f" steps, teacher {1 - apart:.3f}, hidden words {guessed:.2f}")
        apart, guessed = np.mean(losses, axis=0)
        history.append({"epoch": epoch + 1, "cosine": 1 - float(apart), "hidden_word_loss": float(guessed)})
        print(f"  epoch {epoch + 1}: {history[-1]}", flush=True)
    progress.close()
    return history


def held_out_scores(model, tokens: batches.Tokens, wanted: np.ndarray) -> dict[str, float]:
    """Return how near the small encoder comes to the teacher on sentences that neither learned from here."""
    said = np.zeros_like(wanted)
    for chosen in batches.batches_by_length(tokens, 128):
        said[chosen] = model.predict_on_batch(tokens.batch(chosen))[1]
    ours, theirs = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (said, wanted))
    return {"sentences": len(tokens), "cosine_to_teacher": round(float(np.mean(np.sum(ours * theirs, axis=1))), 4)}


def save_preset(config: Config, backbone: BertBackbone, vocabulary: Sequence[str]) -> Path:
    """Write the encoder as a KerasHub preset with its vocabulary; weights as float16, half the size."""
    half = BertBackbone.from_config(backbone.get_config() | {"dtype": "float16"})
    half.set_weights(backbone.get_weights())
    preset = Path(config.out) / "preset"
    half.save_to_preset(str(preset))
    (preset / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    return preset


def main(config: Config) -> None:
    """Run the whole story: sentences -> teacher -> training -> preset and card."""
    out = Path(config.out)
    if (out / "metrics.json").exists():
        raise UserError(f"--out {str(out)!r} holds a finished run. Name another folder, or remove it first.")
    runs.write_json(out / "config.json", dataclasses.asdict(config))
    clock = runs.Stopwatch()
    keras.utils.set_random_seed(config.seed)
    with clock("data"):
        sentences = read_sentences(config)
    print(f"{len(sentences):,} sentences")
    teacher = load_text_source(config.teacher)
    with clock("teacher"):
        theirs = batches.tokenize_texts(teacher.tokenize, sentences, config.max_length)
        encoder = build_encoder(teacher)
        wanted = batches.run_on_tokens(encoder, theirs, title="teacher")
    vocabulary = choose_vocabulary(teacher, theirs.ids, config.vocabulary)
    tokenize = WordPiece(vocabulary)
    tokens = batches.tokenize_texts(tokenize, sentences, config.max_length)
    held_out = max(20, int(_HELD_OUT * len(sentences)))
    parts = [batches.Tokens(tokens.ids[part], 0, tokens.padding) for part in (slice(held_out, None), slice(held_out))]
    backbone, model = build(config, len(vocabulary), wanted.shape[1])
    print(f"{backbone.count_params():,} parameters, {2 * backbone.count_params() / 1e6:.1f} MB as float16")
    with clock("training"):
        history = train(config, backbone, model, parts[0], wanted[held_out:], vocabulary.index("[MASK]"))
    scores = held_out_scores(model, parts[1], wanted[:held_out])
    preset = save_preset(config, backbone, vocabulary)
    command = " ".join(["python -m recipes.pretraining.text", *sys.argv[1:]])
    card = {"licence": config.licence, "data": f"{len(sentences):,} sentences of {', '.join(config.texts)}",
            "teacher": config.teacher, "command": command, "seconds": clock.report(), "held_out": scores,
            "history": history, "versions": runs.versions()}  # fmt: skip
    runs.write_json(preset / "card.json", card)
    runs.write_json(out / "metrics.json", card)
    print(f"held out: {scores}\nUse it: python -m recipes run bert_sentiment --source preset:{preset}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, prog="python -m recipes.pretraining.text"))
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
