"""Pretrain your own small text encoder on plain texts, and use it as a source in every other text recipe.

    python -m recipes run pretraining_text --data jsonl:REVIEWS.jsonl.gz --teacher minilm --out runs/encoder
    python -m recipes run bert_sentiment --source preset:runs/encoder/preset

No labels are needed. A small BERT is trained to predict masked tokens (masked language modelling, arXiv:1810.04805) and
to match the sentence embeddings of a stronger encoder, the teacher (distillation, arXiv:1503.02531). Its vocabulary
contains only tokens that occur in the texts. The result is a KerasHub preset with its vocabulary, its card and its
scores on held-out sentences. There is no SavedModel: the recipe that uses the preset exports and proves one.

Without arguments it trains on the sentences of the demo reviews: far too few, but enough to see how it works.
`bundled:bert_mini`, the default source of bert_sentiment, was made with this recipe; its card.json
holds the command, the seconds and the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, inf
from pathlib import Path

import keras
import numpy as np

from common import results, training
from common.checkpoints import fit_with_checkpoints
from common.errors import UserError
from common.flags import check_range, parse_data
from common.progress import format_seconds, median_seconds
from common.results import Outcome
from common.runs import Run
from common.sources import preset_card
from common.sources.specs import BUNDLED_FOLDER, parse_source
from common.texts import batches, estimate, masked_lm
from common.texts.masked_lm_report import findings, table, write_report
from common.texts.models import build_encoder
from common.texts.preview import write_masked_samples
from common.texts.sentences import DATA_KINDS, FEWEST, Sentences, load_sentences
from common.texts.sources import BertBackbone, TextSource, load_text_source
from common.texts.tokenizers.wordpiece import WordPiece

BASELINES = {"random_weights": "Random weights", "most_frequent": "Most frequent token, teacher mean"}  # always
SCORES = ("accuracy", "cosine_to_teacher")
GALLERY = {"in": "plain texts", "out": "a source for text recipes", "row": ""}
QUICK = "--limit 200 --epochs 1"  # a run of seconds, for tests
EARLY = "common.texts.sentences:refuse_early"  # called before TensorFlow is imported
HEAD_WIDTH = 48  # of an attention head
CHUNK = 1024  # sentences embedded by the teacher between two saves: batches of like length need many


@dataclass(frozen=True)
class Config:
    """Settings of pretraining_text."""

    data: str = "demo:reviews"  # demo:reviews, txt:PATH (one text per line), jsonl:PATH, csv:PATH, tsv:PATH; .gz too
    text_column: str = "text"  # Column of the texts; its number (1, 2 ...) in a table without a header
    kind_column: str | None = None  # Column of the kind of a text, such as its source; rare kinds are drawn more often
    encoding: str = "utf-8"  # Encoding of the files: utf-8, latin-1 ...
    out: str = "runs/pretraining_text"  # Folder for everything this run writes; the preset is in OUT/preset
    resume: str | None = None  # Continue the run that was stopped in this folder; no other flag is needed
    save_every: float = 30.0  # Seconds between checkpoints: a killed run loses no more than that
    teacher: str = "bundled:bert_mini"  # Teacher, a stronger encoder: minilm (better), preset:..., or none
    tokenizer: str = "bundled:bert_mini"  # With --teacher none: model from whose tokens the vocabulary is chosen
    limit: int = 100_000  # Use at most this many sentences; which ones depends on the sentences alone
    vocabulary: int = 7000  # Size of the vocabulary: the most frequent tokens of the texts
    width: int = 192  # Width of the hidden states, a multiple of 48; more is slower and stronger
    layers: int = 3  # Transformer layers; more is slower and stronger
    epochs: int | None = None  # Epochs; 6 by default, more for few sentences
    batch_size: int = 128  # Sentences per step
    learning_rate: float = 1e-3  # Peak learning rate, after warm-up; cosine decay
    weight_decay: float = 0.01  # Weight decay; increase it for few sentences
    guess_weight: float = 0.1  # Weight of the masked-token loss; that of the teacher is 1
    max_length: int = 64  # Maximum length of a training sentence in tokens; the preset takes up to 256
    licence: str = "as the texts"  # Licence written into the card of the preset
    seed: int = 0  # Seed of initial weights, shuffling and masks; the split depends on the sentences alone

    def __post_init__(self) -> None:
        kind, _ = parse_data(self.data, DATA_KINDS)
        if self.kind_column and kind in ("demo", "txt"):
            raise UserError(f"--kind-column needs --data jsonl:, csv: or tsv:. Received: --data {self.data}.")
        if self.teacher != "none":
            check_text_source("--teacher", self.teacher)
        check_text_source("--tokenizer", self.tokenizer)
        if self.width < HEAD_WIDTH or self.width % HEAD_WIDTH:
            raise UserError(f"--width must be a multiple of {HEAD_WIDTH}. Received: {self.width}. Try: --width 192")
        check_range(self, 1, inf, "layers", "epochs", "batch_size")
        check_range(self, 0, inf, "save_every", "learning_rate", "weight_decay", "guess_weight", "seed")
        check_range(self, FEWEST, inf, "limit")
        check_range(self, 200, 100_000, "vocabulary")
        check_range(self, 8, 256, "max_length")


def load_data(config: Config) -> Sentences:
    """Cut the texts into sentences, leave out copies, and split the rest by the hash of each."""
    return load_sentences(
        config.data, column=config.text_column, encoding=config.encoding, limit=config.limit,
        kind_column=config.kind_column,
    )  # fmt: skip


def load_teacher(config: Config) -> TextSource:
    """Load the teacher; without one, the model whose tokenizer is used.

    Raises:
        UserError: it is not a text model of the BERT family.
    """
    flag, text = ("--tokenizer", config.tokenizer) if config.teacher == "none" else ("--teacher", config.teacher)
    try:
        source = load_text_source(text)
    except UserError as error:
        raise UserError(f"{flag}: {error}".replace("--source", flag)) from error
    if not isinstance(source.tokenize, WordPiece):
        raise UserError(f"{flag} {text} does not tokenize as BERT does. Allowed: models of the BERT family: minilm ...")
    return source


def tokenize(config: Config, vocabulary: Sequence[str], data: Sentences) -> tuple[batches.Tokens, ...]:
    """Return the tokens of train, val and test for the small encoder.

    Raises:
        UserError: most of them are unknown.
    """
    reader = batches.TextReader(WordPiece(vocabulary), config.max_length)
    tokens = tuple(reader.read(split) for split in (data.train, data.val, data.test))
    ids = np.concatenate([row[1:-1] for row in tokens[0].ids])  # without [CLS] and [SEP]
    unknown = float(np.mean(ids == masked_lm.UNKNOWN))
    print(f"vocabulary of {len(vocabulary):,} tokens; {100 * unknown:.1f} % unknown tokens in the texts")
    if unknown > 0.5:
        raise UserError(
            f"{100 * unknown:.0f} % of the tokens in --data {config.data} are unknown to the tokenizer. Allowed: texts "
            f"in its language. For another language: --teacher MODEL, or --teacher none --tokenizer MODEL"
        )
    return tokens


def embed_by_teacher(config: Config, teacher: TextSource, sentences: Sequence[str]) -> np.ndarray:
    """Return the teacher's embedding of each sentence, float32 [n, width]; a killed run resumes where it stopped."""
    tokens = tokens_of_teacher(config, teacher, sentences)
    folder = Path(config.out) / "features"
    return batches.run_once_on_tokens(build_encoder(teacher), tokens, folder, "teacher", chunk=CHUNK)


def build_backbone(config: Config, vocabulary: Sequence[str]) -> BertBackbone:
    """Return the small BERT with initial weights."""
    return BertBackbone(
        vocabulary_size=len(vocabulary), num_layers=config.layers, num_heads=config.width // HEAD_WIDTH,
        hidden_dim=config.width, intermediate_dim=4 * config.width, max_sequence_length=256, dropout=0.0,
    )  # fmt: skip


def compile_model(config: Config, model: keras.Model, steps: int) -> None:
    """Set optimizer and losses: masked tokens and, with a teacher, cosine similarity to its embeddings."""
    masked = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    losses, weights = {"words": masked}, {"words": 1.0}
    metrics = {"words": [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]}
    if "teacher" in model.output:
        losses["teacher"] = keras.losses.CosineSimilarity()
        weights = {"words": config.guess_weight, "teacher": 1.0}
        metrics["teacher"] = [keras.metrics.CosineSimilarity(name="cosine")]
    optimizer = training.DiscriminativeAdamW(
        learning_rate=training.warmup_cosine(config.learning_rate, epochs_of(config, steps) * steps),
        weight_decay=config.weight_decay, global_clipnorm=1.0,
    )  # fmt: skip
    model.compile(optimizer, losses, loss_weights=weights, weighted_metrics=metrics, jit_compile=training.use_xla())


def train(run: Run, model: keras.Model, tokens, embeddings, shares: np.ndarray | None) -> list[dict]:
    """Train all weights from scratch; return a history row per epoch.

    Args:
        run: with the settings.
        model: as returned by `build_masked_lm`.
        tokens: of train, val and test.
        embeddings: of train, val and test by the teacher; each None without a teacher.
        shares: as for `masked_batches`.
    """
    config, steps = run.config, ceil(len(tokens[0]) / run.config.batch_size)
    compile_model(config, model, steps)
    predict = masked_lm.predictor_of(model)

    def validate(epoch, logs):
        if "teacher" in model.output:
            logs["train_accuracy"] = logs.pop("words_accuracy")
            logs["train_cosine_to_teacher"] = logs.pop("teacher_cosine")
        else:  # Keras omits the name of a single output
            logs["train_accuracy"] = logs.pop("accuracy")
        scores = masked_lm.score(predict, tokens[1], embeddings[1])
        logs.update({f"val_{name}": value for name, value in scores.items() if not name.endswith("_ci95")})

    def batches_from(*first):
        return masked_lm.masked_batches(
            tokens[0], embeddings[0], config.batch_size, seed=config.seed, first=first, shares=shares
        )

    epochs = epochs_of(config, steps)
    return fit_with_checkpoints(
        model, batches_from, epochs=epochs, lines=training.EpochLines("pretraining_text", epochs, steps),
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=validate)], **run.saves("pretraining_text"),
    )  # fmt: skip


def main(config: Config) -> dict:
    """Run the whole recipe: sentences -> teacher -> vocabulary -> training -> preset -> evaluation -> report."""
    run = Run(config)
    config, clock = run.config, run.clock
    with clock("data"):
        data = load_data(config)
    print(f"{config.data}: {data.describe()}")
    teacher = load_teacher(config)
    run.remember(data, teacher)
    with clock("data"):
        vocabulary = masked_lm.choose_vocabulary(teacher.tokenize, data.train, config.vocabulary)
        tokens = tokenize(config, vocabulary, data)
    embeddings, width = (None, None, None), 0
    if config.teacher != "none":
        with clock("features"):
            embeddings = data.split(embed_by_teacher(config, teacher, data.all()))
        width = embeddings[0].shape[1]
    keras.utils.set_random_seed(config.seed)
    backbone = build_backbone(config, vocabulary)
    model = masked_lm.build_masked_lm(backbone, width)
    print(f"{backbone.count_params():,} parameters, {2 * backbone.count_params() / 1e6:.1f} MB as a preset")
    with clock("pretraining"):
        history = train(run, model, tokens, embeddings, data.shares())

    preset = masked_lm.save_encoder(run.out / "preset", backbone, vocabulary)
    with clock("evaluate"):  # of the saved preset, half precision included
        saved = masked_lm.build_masked_lm(load_text_source(f"preset:{preset}").backbone, width)
        if width:
            saved.get_layer("teacher").set_weights(model.get_layer("teacher").get_weights())
        test = masked_lm.score(masked_lm.predictor_of(saved), tokens[2], embeddings[2])
    with clock("baselines"):
        keras.utils.set_random_seed(config.seed)
        random = masked_lm.build_masked_lm(build_backbone(config, vocabulary), width)
        frequent = masked_lm.most_frequent_predictor(tokens[0], embeddings[0])
        baselines = {
            name: masked_lm.score(predict, tokens[2], embeddings[2])
            for name, predict in (("random_weights", masked_lm.predictor_of(random)), ("most_frequent", frequent))
        }
    parameters = {"total": model.count_params(), "backbone": backbone.count_params()}
    examples = masked_lm.masked_examples(tokens[2], vocabulary, masked_lm.predictor_of(saved))

    write_files = partial(write_report, history=history, examples=examples, titles=BASELINES)
    use = f"Use it: python -m recipes run bert_sentiment --source preset:{preset}"
    scores = {"test": test, "baselines": baselines, "left_out": data.left_out, "teacher": config.teacher}
    metrics = results.conclude(
        "pretraining_text", config, Outcome(history, clock.report(), parameters, {"spec": f"preset:{preset}"}), scores,
        counts=data.counts(), skipped=(), sentences=[*findings(scores), use], write_files=write_files,
        table=partial(table, titles=BASELINES),
    )  # fmt: skip
    trained_on = f"{config.data}: {len(data.train):,} sentences"
    preset_card.write_preset_card(preset, "pretraining_text", config, trained_on, metrics, teacher=config.teacher)
    return metrics


def check(config: Config) -> None:
    """Describe the data and estimate the time of a run; train nothing, write one page of samples."""
    data = load_data(config)
    print(f"{config.data}: {data.describe()}")
    teacher = load_teacher(config)
    print(f"{'tokenizer' if config.teacher == 'none' else 'teacher'}: {teacher.card}")
    vocabulary = masked_lm.choose_vocabulary(teacher.tokenize, data.train, config.vocabulary)
    tokens = tokenize(config, vocabulary, data)[0]
    print(
        f"{np.median(tokens.lengths):.0f} tokens in the median training sentence, {tokens.lengths.max()} in the longest"
    )
    examples = masked_lm.masked_examples(tokens, vocabulary, count=24)
    print(f"more samples: {write_masked_samples(Path(config.out) / 'samples.txt', examples)}")

    chosen = estimate.median_batch(tokens, config.batch_size, config.seed)  # represents all batches
    some, embeddings, forward = tokens.of_texts(chosen), None, 0.0
    if config.teacher != "none":
        encoder, theirs = build_encoder(teacher), tokens_of_teacher(config, teacher, [data.train[i] for i in chosen])
        forward = median_seconds(lambda: batches.run_on_tokens(encoder, theirs)) / len(chosen)
        embeddings = np.ones((len(chosen), encoder.output.shape[-1]), np.float32)
    backbone = build_backbone(config, vocabulary)
    print(f"encoder: {backbone.count_params():,} parameters, {2 * backbone.count_params() / 1e6:.1f} MB as a preset")
    model = masked_lm.build_masked_lm(backbone, 0 if embeddings is None else embeddings.shape[1])
    steps = ceil(len(tokens) / config.batch_size)
    compile_model(config, model, steps)
    batch = next(masked_lm.masked_batches(some, embeddings, len(chosen), seed=config.seed).as_numpy_iterator())
    step = median_seconds(lambda: model.train_on_batch(*batch))  # the weights are discarded
    embedding, fitting = len(data.all()) * forward, epochs_of(config, steps) * steps * step
    print(f"estimate: {format_seconds(embedding + fitting)}, of which {format_seconds(embedding)} for the teacher")


# --- helpers of the steps above ------------------------------------------------------------------------------


def epochs_of(config: Config, steps: int) -> int:
    """Return the number of epochs: by default at least 6 epochs and 240 steps."""
    return max(6, ceil(240 / steps)) if config.epochs is None else config.epochs


def tokens_of_teacher(config: Config, teacher: TextSource, sentences: Sequence[str]) -> batches.Tokens:
    """Return the tokens of sentences for the teacher."""
    return batches.TextReader(teacher.tokenize, min(config.max_length, teacher.max_length)).read(sentences)


def check_text_source(flag: str, text: str) -> None:
    """Raise UserError if the spec cannot name a text model; nothing is loaded."""
    spec = parse_source(text, flag)
    of_images = spec.kind == "bundled" and not (BUNDLED_FOLDER / spec.name / "vocab.txt").exists()
    if spec.kind not in ("preset", "bundled") or of_images:
        raise UserError(
            f"{flag} is not a text model. Allowed: minilm, bundled:bert_mini, preset:NAME_OR_FOLDER"
            f"{', none' if flag == '--teacher' else ''}. Received: {text!r}."
        )
