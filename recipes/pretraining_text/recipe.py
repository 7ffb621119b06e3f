"""Make your own small text encoder from plain texts, and use it as a source in every other recipe of texts.

    python -m recipes run pretraining_text --data jsonl:REVIEWS.jsonl.gz --teacher minilm --out runs/encoder
    python -m recipes run bert_sentiment --source preset:runs/encoder/preset

No labels are needed. A small BERT reads sentences in which some words are hidden. It learns to guess those (masked
language modelling, arXiv:1810.04805), and to say of the sentence what a stronger encoder, the teacher, says of the
whole one (distillation of sentence embeddings, arXiv:1503.02531). Its vocabulary holds only the pieces that the texts
really use. What comes out is a KerasHub preset with its vocabulary and its card, and the scores on sentences that
nothing learned from. It makes no SavedModel: the recipe that takes the preset as its source exports, and proves.

With no arguments it learns from the sentences of the demo reviews: far too few, but enough to see how it works.
`bundled:bert_mini`, the source that bert_sentiment uses offline, was made like this; its card.json holds the command,
the seconds and the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path

import keras
import numpy as np

from common import checking, masked_report, masked_words, runs, training
from common.checkpoints import fit_with_checkpoints
from common.data import texts as batches
from common.data.sentences import DATA_KINDS, FEWEST, Sentences, load_sentences
from common.errors import UserError
from common.progress import format_seconds
from common.specs import BUNDLED_FOLDER, check_range, parse_data, parse_source
from common.text_models import build_encoder
from common.text_sources import BertBackbone, TextSource, load_text_source
from common.wordpiece import WordPiece

HEAD_WIDTH = 48  # of an attention head
CHUNK = 256  # sentences that the teacher reads between two saves


@dataclass(frozen=True)
class Config:
    """Settings of pretraining_text."""

    data: str = "demo"
    """Texts to learn from: demo, txt:PATH (a text on each line), jsonl:PATH, csv:PATH or tsv:PATH; a file, .gz or not,
    or a folder of such files."""
    text_column: str = "text"
    """Column that holds the texts; a place (1, 2 ...) in a table without a line of names."""
    encoding: str = "utf-8"
    """Of the files: utf-8, latin-1 ..."""
    out: str = "runs/pretraining_text"
    """Folder for everything this run writes; the preset is in OUT/preset."""
    resume: str | None = None
    """Go on with the run that was stopped in this folder, with its settings; no other flag is needed."""
    save_every: float = 30.0
    """Seconds between checkpoints: a killed run loses no more than that."""
    teacher: str = "bundled:bert_mini"
    """The stronger encoder to learn from: minilm (better, fetched), preset:..., or none: only hidden words then."""
    tokenizer: str = "bundled:bert_mini"
    """Whose pieces of words the vocabulary is chosen from with --teacher none; else they are the teacher's."""
    limit: int = 100_000
    """Use at most this many sentences; which ones depends on the sentences alone."""
    vocabulary: int = 7000
    """Tokens that the small encoder knows: those that the texts use most. They are half of its size."""
    width: int = 192
    """Width of the hidden states, a multiple of 48; more is slower and stronger."""
    layers: int = 3
    """Transformer layers; more is slower and stronger."""
    epochs: int | None = None
    """Passes over the sentences; the default is 6, and more for few sentences."""
    batch_size: int = 128
    """Sentences in a step."""
    learning_rate: float = 1e-3
    """Peak of the learning rate; it warms up and then falls along a cosine."""
    weight_decay: float = 0.01
    """Pulls the weights towards zero: more of it for fewer sentences."""
    guess_weight: float = 0.1
    """How much guessing hidden words counts against the teacher."""
    max_length: int = 64
    """Tokens that are read of a sentence in training; the preset reads up to 256."""
    licence: str = "as the texts"
    """Licence written into the card of the preset."""
    seed: int = 0
    """Decides initial weights, order and hidden words; the parts depend on the sentences alone."""

    def __post_init__(self) -> None:
        parse_data(self.data, DATA_KINDS)
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


def check_text_source(flag: str, text: str) -> None:
    """Raise UserError unless the text names a model that may be one of text; nothing is loaded."""
    try:
        spec = parse_source(text)
    except UserError as error:
        raise UserError(str(error).replace("--source", flag)) from error
    of_pictures = spec.kind == "bundled" and not (BUNDLED_FOLDER / spec.name / "vocab.txt").exists()
    if spec.kind not in ("preset", "bundled") or of_pictures:
        raise UserError(
            f"{flag} is no model of text. Allowed: minilm, bundled:bert_mini, preset:NAME_OR_FOLDER"
            f"{', none' if flag == '--teacher' else ''}. Received: {text!r}."
        )


def load_data(config: Config) -> Sentences:
    """Cut the texts into sentences, leave out copies, and split the rest by the hash of each."""
    return load_sentences(config.data, column=config.text_column, encoding=config.encoding, limit=config.limit)


def load_teacher(config: Config) -> TextSource:
    """Load the teacher; without one, the model whose tokenizer is used.

    Raises:
        UserError: it is no model of text, or not of BERT's family.
    """
    flag, text = ("--tokenizer", config.tokenizer) if config.teacher == "none" else ("--teacher", config.teacher)
    try:
        source = load_text_source(text)
    except UserError as error:
        raise UserError(f"{flag}: {error}".replace("--source", flag)) from error
    if not isinstance(source.tokenize, WordPiece):
        raise UserError(
            f"{flag} {text} cuts words in another way than BERT does, so no vocabulary can be chosen from its own. "
            f"Allowed: models of BERT's family, such as minilm."
        )
    return source


def tokenize(config: Config, vocabulary: Sequence[str], data: Sentences) -> tuple[batches.Tokens, ...]:
    """Return the tokens of train, val and test, as the small encoder reads them.

    Raises:
        UserError: most of them are unknown.
    """
    reader = batches.TextReader(WordPiece(vocabulary), config.max_length)
    tokens = tuple(reader.read(part) for part in (data.train, data.val, data.test))
    read = np.concatenate([row[1:-1] for row in tokens[0].ids])  # without [CLS] and [SEP]
    unknown = float(np.mean(read == masked_words.UNKNOWN))
    print(f"vocabulary of {len(vocabulary):,} tokens; {100 * unknown:.1f} % of what is read is unknown")
    if unknown > 0.5:
        raise UserError(
            f"{100 * unknown:.0f} % of what --data {config.data} holds is unknown to the tokenizer. Allowed: texts in "
            f"a language that it knows. Name a model that knows it with --teacher, or --teacher none --tokenizer."
        )
    return tokens


def ask_teacher(config: Config, teacher: TextSource, sentences: Sequence[str]) -> np.ndarray:
    """Let the teacher read each sentence once: float32 [sentences, width].

    What it said is saved from time to time: a run that was killed asks only about the rest.
    """
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
    """Set optimizer and losses: hidden words, and where there is a teacher the cosine to what it said."""
    guess = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    losses, weights = {"words": guess}, {"words": 1.0}
    metrics = {"words": [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]}
    if "teacher" in model.output:
        losses["teacher"] = keras.losses.CosineSimilarity()
        weights = {"words": config.guess_weight, "teacher": 1.0}
        metrics["teacher"] = [keras.metrics.CosineSimilarity(name="cosine")]
    optimizer = training.DiscriminativeAdamW(
        learning_rate=training.warmup_cosine(config.learning_rate, passes(config, steps) * steps),
        weight_decay=config.weight_decay, global_clipnorm=1.0,
    )  # fmt: skip
    model.compile(optimizer, losses, loss_weights=weights, weighted_metrics=metrics, jit_compile=training.use_xla())


def train(config: Config, model: keras.Model, tokens, said) -> list[dict]:
    """Train all weights from scratch; return a history row for each epoch.

    Args:
        config: the settings.
        model: as `build_guesser` gives it.
        tokens: of train, val and test.
        said: by the teacher of train, val and test; None of each without one.
    """
    steps = ceil(len(tokens[0]) / config.batch_size)
    compile_model(config, model, steps)
    answer = masked_words.answers_of(model)

    def watch(epoch, logs):
        if "teacher" in model.output:
            logs["train_accuracy"] = logs.pop("words_accuracy")
            logs["train_cosine_to_teacher"] = logs.pop("teacher_cosine")
        else:  # Keras does not name the output where there is one only
            logs["train_accuracy"] = logs.pop("accuracy")
        scores = masked_words.score(answer, tokens[1], said[1])
        logs.update({f"val_{name}": value for name, value in scores.items() if not name.endswith("_ci95")})

    return fit_with_checkpoints(
        model,
        lambda *first: masked_words.masked_batches(
            tokens[0], said[0], config.batch_size, seed=config.seed, first=first
        ),
        epochs=passes(config, steps),
        lines=training.EpochLines("pretraining_text", passes(config, steps), steps),
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=watch)],
        checkpoint=Path(config.out) / "checkpoints" / "pretraining_text.npz",
        save_every=config.save_every,
    )


def save_preset(config: Config, backbone: BertBackbone, vocabulary: Sequence[str]) -> Path:
    """Write the encoder as a KerasHub preset with its vocabulary; weights as float16, half the size."""
    half = BertBackbone.from_config(backbone.get_config() | {"dtype": "float16"})
    half.set_weights(backbone.get_weights())
    preset = Path(config.out) / "preset"
    half.save_to_preset(str(preset))
    (preset / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    return preset


def main(config: Config) -> dict:
    """Run the whole story: sentences -> teacher -> vocabulary -> training -> preset -> evaluation -> report."""
    config = runs.start(config)
    out = Path(config.out)
    clock = runs.Stopwatch(out / "checkpoints" / "seconds.json")
    with clock("data"):
        data = load_data(config)
    print(f"{config.data}: {data.describe()}")
    teacher = load_teacher(config)
    runs.remember_inputs(out, data.fingerprint() + teacher.fingerprint())
    with clock("data"):
        vocabulary = masked_words.choose_vocabulary(teacher.tokenize, data.train, config.vocabulary)
        tokens = tokenize(config, vocabulary, data)
    said, width = (None, None, None), 0
    if config.teacher != "none":
        with clock("features"):
            said = data.parts(ask_teacher(config, teacher, data.all()))
        width = said[0].shape[1]
    keras.utils.set_random_seed(config.seed)
    backbone = build_backbone(config, vocabulary)
    model = masked_words.build_guesser(backbone, width)
    print(f"{backbone.count_params():,} parameters, {2 * backbone.count_params() / 1e6:.1f} MB as a preset")
    with clock("pretraining"):
        history = train(config, model, tokens, said)

    preset = save_preset(config, backbone, vocabulary)
    with clock("evaluate"):  # the preset as it was saved: half precision is part of the numbers
        saved = masked_words.build_guesser(load_text_source(f"preset:{preset}").backbone, width)
        if width:
            saved.get_layer("teacher").set_weights(model.get_layer("teacher").get_weights())
        test = masked_words.score(masked_words.answers_of(saved), tokens[2], said[2])
    with clock("baselines"):
        keras.utils.set_random_seed(config.seed)
        random = masked_words.build_guesser(build_backbone(config, vocabulary), width)
        baselines = {
            "random_weights": masked_words.score(masked_words.answers_of(random), tokens[2], said[2]),
            "most_frequent": masked_words.score(
                masked_words.most_frequent_answers(tokens[0], said[0]), tokens[2], said[2]
            ),
        }
    parameters = {"total": model.count_params(), "backbone": backbone.count_params()}
    examples = masked_words.show_hidden(tokens[2], vocabulary, masked_words.answers_of(saved))
    return conclude(config, data, test, baselines, parameters, preset, history, examples, clock.report())


def check(config: Config) -> None:
    """Say what a run would read and how long it would take; train nothing and write one page."""
    data = load_data(config)
    print(f"{config.data}: {data.describe()}")
    teacher = load_teacher(config)
    print(f"{'tokenizer' if config.teacher == 'none' else 'teacher'}: {teacher.card}")
    vocabulary = masked_words.choose_vocabulary(teacher.tokenize, data.train, config.vocabulary)
    tokens = tokenize(config, vocabulary, data)[0]
    lengths = tokens.lengths
    print(f"{np.median(lengths):.0f} tokens in the median training sentence, {lengths.max()} in the longest")
    shown = [in_brackets(pieces) for pieces in masked_words.show_hidden(tokens, vocabulary, count=24)]
    print("sentences as the encoder reads them, without what is in brackets:", *shown[:3], sep="\n  ")
    page = runs.write_atomically(
        Path(config.out) / "samples.txt", lambda partial: partial.write_text("\n".join(shown) + "\n", "utf-8")
    )
    print(f"more samples: {page}")

    # The batch of median length stands for all.
    order = batches.shuffled_by_length(tokens, config.batch_size, (config.seed, 0))
    chosen = sorted(order, key=lambda indices: lengths[indices].max())[len(order) // 2]
    some, said, look = tokens.of_texts(chosen), None, 0.0
    if config.teacher != "none":
        encoder, theirs = build_encoder(teacher), tokens_of_teacher(config, teacher, [data.train[i] for i in chosen])
        look = checking.median_seconds(lambda: batches.run_on_tokens(encoder, theirs)) / len(chosen)
        said = np.ones((len(chosen), encoder.output.shape[-1]), np.float32)
    backbone = build_backbone(config, vocabulary)
    print(f"encoder: {backbone.count_params():,} parameters, {2 * backbone.count_params() / 1e6:.1f} MB as a preset")
    model = masked_words.build_guesser(backbone, 0 if said is None else said.shape[1])
    compile_model(config, model, len(order))
    batch = next(masked_words.masked_batches(some, said, len(chosen), seed=config.seed).as_numpy_iterator())
    step = checking.median_seconds(lambda: model.train_on_batch(*batch))  # the weights are thrown away
    asking, learning = len(data.all()) * look, passes(config, len(order)) * len(order) * step
    print(f"estimate: {format_seconds(asking + learning)}, of which the teacher takes {format_seconds(asking)}")


# --- small things that the steps above share ----------------------------------------------------------------


def passes(config: Config, steps: int) -> int:
    """Return the number of passes over the sentences: enough steps to learn something, where the sentences are few."""
    return max(6, ceil(240 / steps)) if config.epochs is None else config.epochs


def tokens_of_teacher(config: Config, teacher: TextSource, sentences: Sequence[str]) -> batches.Tokens:
    """Return the tokens of sentences as the teacher reads them."""
    return batches.TextReader(teacher.tokenize, min(config.max_length, teacher.max_length)).read(sentences)


def in_brackets(pieces: list[dict]) -> str:
    """Return a sentence of `show_hidden` as text, with brackets around what is hidden."""
    return " ".join(f"[{piece['text']}]" if piece["hidden"] else piece["text"] for piece in pieces).replace(" ##", "")


def conclude(config: Config, data: Sentences, test, baselines, parameters, preset, history, examples, seconds) -> dict:
    """Write the card of the preset and what a run promises to write; return what metrics.json holds."""
    metrics = {
        "recipe": "pretraining_text",
        "test": test,
        "baselines": baselines,
        "seconds": seconds,
        "counts": data.counts(),
        "left_out": data.left_out,
        "parameters": parameters,
        "proof": {},  # nothing is exported here: the recipe that takes the preset exports, and proves
        "peak_memory_mb": runs.peak_memory_mb(),
        "source": f"preset:{preset}",
        "teacher": config.teacher,
        "data": config.data,
        "seed": config.seed,
        "versions": runs.versions(),
    }
    card = {
        "licence": config.licence,
        "data": f"{config.data}: {len(data.train):,} sentences",
        "teacher": config.teacher,
        "command": runs.command("pretraining_text", config),
        "seconds": seconds,
        "test": test,
        "versions": metrics["versions"],
    }
    runs.write_json(preset / "card.json", card)
    sentences = findings(metrics)
    masked_report.write_report(
        Path(config.out), metrics=metrics, config=vars(config), history=history, sentences=sentences, examples=examples
    )
    runs.finish(Path(config.out), metrics, history)
    report = f"Report: {Path(config.out) / 'report.html'}"
    print("\n".join(["", *masked_report.score_lines(metrics), "", *(f"  {line}" for line in (*sentences, report)), ""]))
    return metrics


def findings(metrics: dict) -> list[str]:
    """Say in plain sentences what the run brought."""
    test, reference, copies = metrics["test"], metrics["baselines"]["most_frequent"], metrics["left_out"]["copies"]
    sentences = [f"{copies:,} copies of sentences were left out."] if copies else []
    more = "It needs more sentences, or more --epochs."
    if test["accuracy_ci95"][0] <= reference["accuracy"]:
        sentences.append(f"It guesses hidden words not clearly better than who always says the commonest token. {more}")
    if "cosine_to_teacher" in test and test["cosine_to_teacher_ci95"][0] <= reference["cosine_to_teacher"]:
        sentences.append(f"Its embeddings are not clearly nearer to the teacher's than the mean of those. {more}")
    return [*sentences, f"Use it: python -m recipes run bert_sentiment --source {metrics['source']}"]
