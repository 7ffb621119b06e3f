"""Tell what texts say: from a table of labelled sentences to a proven SavedModel that takes raw strings.

    python -m recipes run bert_sentiment                             # demo reviews
    python -m recipes run bert_sentiment --data csv:REVIEWS.csv --source minilm --out runs/mine

REVIEWS.csv has the columns text and label; any number of labels. A pretrained encoder reads every text once and a
linear head learns from what it said (frozen); then, by --method, the encoder learns too: all of it (finetune), from a
handful of examples by telling pairs apart (fewshot), or through small adapters (lora). The report sets the result
beside the frozen encoder and beside counted words. The SavedModel takes UTF-8 strings, gives labels, and has been
proved in a fresh process to answer as evaluated.

What to expect, measured, with commands and machine: `python -m recipes show bert_sentiment`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from pathlib import Path

import keras
import numpy as np

from common import calibration, checking, exporting, features, freezing, observing, runs, training
from common.concluding import conclude
from common.contrastive import tune_on_pairs
from common.data import texts as batches
from common.data.labelled import PARTS
from common.data.text_rows import Columns
from common.data.text_sets import DATA_KINDS, TextSet, draw_shots, folds_of, load_text_set
from common.progress import format_seconds
from common.serving.files import write_serving_files
from common.specs import (
    check_choice,
    check_installed,
    check_range,
    parse_baselines,
    parse_data,
    parse_source,
)
from common.text_explaining import explain_texts
from common.text_models import add_adapters, build_classifier, build_encoder, layers_by_depth, merge_adapters, unfreeze
from common.text_sources import TextSource, load_text_source
from common.word_baselines import tfidf_probabilities, word_vector_probabilities

BASELINES = ("frozen", "words", "vectors", "scratch")


@dataclass(frozen=True)
class Config:
    """Settings of bert_sentiment."""

    data: str = "demo"
    """Texts: demo, csv:PATH, tsv:PATH, jsonl:PATH (text,label[,split]), folder:PATH or tfds:NAME."""
    text_column: str = "text"
    """Column that holds the texts; a place (1, 2 ...) in a table without a line of names."""
    label_column: str = "label"
    """Column that holds the labels; a place (1, 2 ...) in a table without a line of names."""
    encoding: str = "utf-8"
    """Of the files: utf-8, latin-1 ..."""
    source: str = "bundled:bert_mini"
    """Pretrained encoder: bundled:bert_mini, minilm (better, fetched), preset:NAME_OR_FOLDER, preset:hf://OWNER/NAME
    (BERT, DistilBERT, RoBERTa, DeBERTa v3, GPT-2), hub:FOLDER (BERT)."""
    out: str = "runs/bert_sentiment"
    """Folder for everything this run writes."""
    resume: str | None = None
    """Go on with the run that was stopped in this folder, with its settings; no other flag is needed."""
    save_every: float = 30.0
    """Seconds between checkpoints: a killed run loses no more than that."""
    method: str = "finetune"
    """What learns: frozen (a head only, seconds), finetune (all), fewshot (pairs, for some dozens of texts), lora."""
    max_length: int = 128
    """Tokens that are read at once. Time grows with it only where texts are long."""
    long_text: str = "truncate"
    """What becomes of a longer text: truncate (its end is lost) or windows (read in pieces, and averaged)."""
    epochs: int | None = None
    """Fine-tuning passes; the default is 3, and more for few texts."""
    batch_size: int = 32
    """Texts in a fine-tuning step."""
    learning_rate: float | None = None
    """Peak learning rate of the encoder's last layer, default 1e-4, of lora 3e-3; it warms up, falls along a cosine."""
    layer_decay: float = 0.9
    """Each layer learns at this share of the rate of the one above: less of it keeps more of what they know."""
    head_rate: float = 1e-3
    """Peak learning rate of the head in fine-tuning."""
    weight_decay: float = 0.01
    """Pulls weights towards zero: more of it for fewer texts."""
    dropout: float = 0.1
    """Share of the embedding hidden from the head at each fine-tuning step."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes; keeps the model from overconfidence."""
    gradient_norm: float = 1.0
    """Longer gradients are shortened to this: no single odd batch throws the encoder off."""
    pair_steps: int | None = None
    """Steps of --method fewshot; the default is 20, and more for more texts."""
    pair_rate: float = 1e-4
    """Peak learning rate of --method fewshot."""
    rank: int = 4
    """Width of the adapters of --method lora."""
    class_weights: str = "none"
    """none, or balanced: rare classes count as much as common ones."""
    patience: int | None = None
    """Stop fine-tuning after this many epochs without a better validation result."""
    baselines: str = "frozen,words"
    """What the result is set beside: some of frozen, words (TF-IDF), vectors, scratch (as long again), or none."""
    word_vectors: str | None = None
    """File of word vectors in the format of GloVe, for the baseline `vectors`."""
    calibrate: bool = False
    """Divide the logits by the temperature that fits validation best: probabilities then mean what they say."""
    explain: bool = True
    """Show accuracy by length, and the words that moved an answer; takes seconds."""
    tensorboard: bool = False
    """Write curves to OUT/tensorboard while training."""
    mlflow: str | None = None
    """Log the finished run to this MLflow tracking server or folder."""
    shots: int | None = None
    """Train on this many texts of each class, drawn by the seed: what would so few labels give?"""
    folds: int | None = None
    """Cross-validate as well: train this many times, each time without a part of the training texts. For tiny sets."""
    limit: int | None = None
    """Use at most this many texts of each part: a quick look."""
    strict: bool = False
    """Stop at the first text that cannot be used instead of skipping and counting it."""
    seed: int = 0
    """Decides initial weights and order; the split depends on the texts alone."""

    def __post_init__(self) -> None:
        parse_data(self.data, DATA_KINDS)
        parse_source(self.source)
        check_choice("--method", self.method, ("frozen", "finetune", "fewshot", "lora"))
        if self.method == "lora" and self.source.startswith(("hub:", "kaggle:")):
            raise ValueError(
                "--method lora needs the layers of the encoder, and a SavedModel shows none: --method finetune"
            )
        if self.method == "fewshot" and self.batch_size < 4:
            raise ValueError("--method fewshot compares texts within a batch: --batch-size must be 4 or more.")
        check_choice("--long-text", self.long_text, ("truncate", "windows"))
        check_choice("--class-weights", self.class_weights, ("none", "balanced"))
        wanted = parse_baselines(self.baselines, BASELINES)
        if "vectors" in wanted and not Path(self.word_vectors or "").expanduser().is_file():
            found = f"There is no file {self.word_vectors}." if self.word_vectors else ""
            raise ValueError(
                f"--baselines vectors needs a file of word vectors: --word-vectors glove.6B.50d.txt. {found}"
            )
        if self.tensorboard:
            check_installed("--tensorboard", "tensorboard", "requirements-observe.txt")
        if self.mlflow:
            check_installed("--mlflow", "mlflow", "requirements-observe.txt")
        check_range(self, 1, inf, "batch_size", "rank", "pair_steps", "shots", "limit", "patience")
        check_range(self, 0, inf, "save_every", "learning_rate", "pair_rate", "weight_decay", "seed")
        check_range(self, 1, inf, "epochs")
        check_range(self, 1e-9, inf, "head_rate")
        check_range(self, 2, inf, "folds")
        check_range(self, 0, 1, "layer_decay", "dropout", "label_smoothing")
        check_range(self, 1e-3, inf, "gradient_norm")
        check_range(self, 4, 100_000, "max_length")


def load_data(config: Config) -> TextSet:
    """Read, check and split the texts."""
    columns = Columns(config.text_column, config.label_column, encoding=config.encoding)
    data = load_text_set(config.data, columns=columns, limit=config.limit, strict=config.strict)
    return draw_shots(data, config.shots, config.seed) if config.shots else data


@dataclass(frozen=True)
class Learned:
    """What training gave.

    Attributes:
        source: whose backbone has learned.
        encoder: tokens to embeddings.
        model: tokens to class probabilities.
        frozen: what the untouched encoder and its head answer on the test part, float32 [n, classes].
        history: rows of history.csv.
        parameters: counts.
    """

    source: TextSource
    encoder: keras.Model
    model: keras.Model
    frozen: np.ndarray
    history: list[dict]
    parameters: dict[str, int]

    def answer(self, tokens: batches.Tokens) -> np.ndarray:
        """Return class probabilities, float32 [texts, classes]."""
        return features.predict_head(self.model.get_layer("head"), batches.run_on_tokens(self.encoder, tokens))


def learn(source: TextSource, data: TextSet, tokens, said, config: Config, clock, fold: str = "") -> Learned:
    """Train as --method says: the head on the untouched encoder first, and then the encoder.

    Args:
        source: untouched.
        data: the texts.
        tokens: of each part.
        said: embeddings of each part, by the untouched encoder.
        config: the settings.
        clock: counts the seconds.
        fold: of cross-validation; it names the checkpoints.
    """
    encoder = build_encoder(source)
    model = build_classifier(encoder, len(data.class_names), config.dropout)
    parameters = {
        "total": model.count_params(),
        "trainable_head": freezing.freeze(model, source.backbone, "frozen").parameters,
    }
    head = model.get_layer("head")
    with clock("head"):
        history = train_head(head, said, data, config)
    frozen = features.predict_head(head, said["test"])
    if config.method == "fewshot":
        with clock("finetune"):
            untouched = encoder.get_weights(), head.get_weights()
            counts = unfreeze(model, source.backbone, tables=False)
            rows = tune_on_pairs(
                encoder, tokens["train"], data.train.labels, steps=pair_steps(len(data.train), config),
                learning_rate=config.pair_rate, batch_size=config.batch_size, weight_decay=config.weight_decay,
                gradient_norm=config.gradient_norm, seed=config.seed, **saved(config, f"pairs{fold}"),
            )  # fmt: skip
            tuned = {part: batches.run_on_tokens(encoder, tokens[part]) for part in ("train", "val")}
            rows += [row | {"stage": "tuned_head"} for row in train_head(head, tuned, data, config)]
            if best_on_validation(rows[1:]) < best_on_validation(history):
                print("pairs: no better on validation; the untouched encoder stays")
                encoder.set_weights(untouched[0])
                head.set_weights(untouched[1])
        history, parameters["trainable_finetune"] = history + rows, counts.parameters
    elif config.method != "frozen":
        with clock("finetune"):
            rows, parameters["trainable_finetune"] = fine_tune(source, model, encoder, tokens, data, config, fold=fold)
        history += rows
        if config.method == "lora":
            source, encoder, model = merged(model, data, config)
    return Learned(source, encoder, model, frozen, history, parameters)


def train_head(head: keras.layers.Dense, said, data: TextSet, config: Config) -> list[dict]:
    """Feature extraction: fit the linear head on embeddings of train and val; return history rows."""
    return features.fit_linear_head(
        head, said["train"][None], data.train.labels, said["val"], data.val.labels,
        sample_weights=sample_weights(data, config),
    )  # fmt: skip


def fine_tune(source: TextSource, model, encoder, tokens, data: TextSet, config: Config, *, stage="finetune", fold=""):
    """Train the encoder with its head; from a random start (stage `scratch`) everything, the table of tokens too.

    Returns:
        (history rows, number of parameters that trained).
    """
    scratch = stage == "scratch"
    if config.method == "lora" and not scratch:
        counts = add_adapters(model, source.backbone, config.rank)
    else:
        counts = unfreeze(model, source.backbone, tables=scratch)
    print(f"{stage}: {counts}")
    classes = np.eye(len(data.class_names), dtype=np.float32)
    epochs, steps = fine_tuning_epochs(tokens, config), ceil(len(tokens["train"]) / config.batch_size)

    def batches_from(epoch, step):
        return batches.training_batches(
            tokens["train"], classes[data.train.labels], sample_weights(data, config), config.batch_size,
            seed=config.seed, first=(epoch, step),
        )  # fmt: skip

    def score():  # as in the evaluation: a text of several windows counts once
        said = features.predict_head(model.get_layer("head"), batches.run_on_tokens(encoder, tokens["val"]))
        right = said[np.arange(len(said)), data.val.labels]
        loss = -float(np.mean(np.log(np.maximum(right, 1e-30))))
        accuracy = float(np.mean(said.argmax(axis=1) == data.val.labels))
        return {"loss": loss, "accuracy": accuracy, "cross_entropy": loss}

    # The head has seen these texts only, the first layers much of the language: each learns faster than the one below.
    depths = [] if scratch else layers_by_depth(source.backbone)
    peak = config.learning_rate
    if peak is None:  # small matrices that begin at nothing have a longer way to go
        peak = 3e-3 if config.method == "lora" else 1e-4
    rate = peak / config.head_rate
    optimizer = training.DiscriminativeAdamW(
        learning_rate=training.warmup_cosine(config.head_rate if not scratch else 5e-4, epochs * steps),
        weight_decay=config.weight_decay,
        slower=[(variables, rate * config.layer_decay**depth) for depth, variables in enumerate(depths)],
        global_clipnorm=config.gradient_norm,
    )
    history = training.fit_stage(
        model, batches_from, stage=stage, epochs=epochs, steps=steps,
        score=score, xla=False, optimizer=optimizer,
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=config.label_smoothing),
        patience=config.patience, start_counts=not scratch,
        callbacks=watchers(config, stage + fold), **saved(config, stage + fold),
    )  # fmt: skip
    return history, counts.parameters


def main(config: Config) -> dict:
    """Run the whole story: data -> source -> head -> the encoder -> evaluation -> export -> proof -> report."""
    config = runs.start(config)
    out = Path(config.out)
    clock = runs.Stopwatch(out / "checkpoints" / "seconds.json")

    with clock("data"):
        data = load_data(config)
    print(f"{config.data}: {data.counts()}, {len(data.class_names)} classes")
    keras.utils.set_random_seed(config.seed)
    source = load_text_source(config.source)
    runs.remember_inputs(out, data.fingerprint() + source.fingerprint())
    reader = batches.TextReader(source.tokenize, min(config.max_length, source.max_length), config.long_text)
    with clock("data"):
        tokens = {part: reader.read(getattr(data, part).texts) for part in PARTS}
    print(checking.describe_lengths(tokens["train"]))
    with clock("features"):
        said = embed(build_encoder(source), tokens, out / "features")
    more, advice = {}, ()
    if config.folds:
        with clock("folds"):
            more["cross_validation"], advice = cross_validate(data, tokens, said, config)

    keras.utils.set_random_seed(config.seed)
    learned = learn(source, data, tokens, said, config, clock)
    model = learned.model
    with clock("evaluate"):
        val_probabilities = learned.answer(tokens["val"])
        temperature = calibration.fit_temperature(data.val.labels, val_probabilities) if config.calibrate else None
        if temperature:
            calibration.divide_logits(model.get_layer("head"), temperature)
        probabilities = learned.answer(tokens["test"])
    baselines, history = {"frozen": learned.frozen}, learned.history
    spent = {}
    for name, answer in other_baselines(data, tokens, config).items():
        with clock(f"baseline_{name}"):
            baselines[name], rows = answer()
        history += rows
        spent[name] = clock.report()[f"baseline_{name}"]
    explanation = None
    if config.explain:
        with clock("explain"):
            explanation = explain_texts(
                lambda texts: learned.answer(reader.read(texts)), data, lengths=tokens["test"].lengths,
                cut=tokens["test"].cut, max_length=reader.max_length, probabilities=probabilities,
                val_probabilities=val_probabilities, applied_temperature=temperature,
            )  # fmt: skip

    with clock("export"):
        exporting.save_keras_model(model, out / "model.keras")  # to go on training; what follows is to serve
        version = exporting.export_text_classifier(
            model,
            reader,
            out / "serving" / "bert_sentiment",
            data.class_names,
            examples=sorted(data.train.texts, key=len)[:2],
        )
        example = str(data.test.texts[0])
        write_serving_files(out / "serving", "bert_sentiment", input_name="text", example=example)
        proof = exporting.prove_text_classifier(version, data.test.texts, probabilities, data.class_names)

    seconds = clock.report()
    spent |= {"frozen": seconds["features"] + seconds["head"]}
    metrics = conclude(
        "bert_sentiment", config, data, probabilities=probabilities,
        baselines={name: (baselines[name], spent[name]) for name in parse_baselines(config.baselines, BASELINES)},
        history=history, seconds=seconds, parameters=learned.parameters, proof=proof,
        export=exporting.size_report(version, model), source_card={"spec": config.source, **source.card},
        explanation=explanation, advice=advice, more=more,
    )  # fmt: skip
    if config.mlflow:
        observing.log_to_mlflow(config.mlflow, "bert_sentiment", config, metrics, history)
    return metrics


def check(config: Config) -> None:
    """Say what a run would read and how long it would take; train nothing and write one page."""
    data = load_data(config)
    print(checking.describe_counts(data))
    source = load_text_source(config.source)
    reader = batches.TextReader(source.tokenize, min(config.max_length, source.max_length), config.long_text)
    tokens = {part: reader.read(getattr(data, part).texts) for part in PARTS}
    print(f"source: {source.card}\n{checking.describe_lengths(tokens['train'])}")
    words = source.tokenize.vocabulary()
    page = checking.write_sample_texts(Path(config.out) / "samples.txt", data, tokens["train"], words)
    print(f"samples as the encoder sees them: {page}")

    encoder = build_encoder(source)
    model = build_classifier(encoder, len(data.class_names), config.dropout)
    if config.method == "lora":
        add_adapters(model, source.backbone, config.rank)
    else:
        unfreeze(model, source.backbone, tables=False)
    model.compile("adam", "categorical_crossentropy", jit_compile=False)
    order = batches.shuffled_by_length(tokens["train"], config.batch_size, (config.seed, 0))
    lengths = tokens["train"].row_lengths
    some = sorted(order, key=lambda rows: lengths[rows].max())[len(order) // 2]  # the median batch stands for all
    targets = np.eye(len(data.class_names), dtype="float32")[data.train.labels[tokens["train"].owners[some]]]
    inputs = tokens["train"].batch(some)
    step = checking.median_seconds(lambda: model.train_on_batch(inputs, targets))  # the weights are thrown away
    look = checking.median_seconds(lambda: encoder.predict_on_batch(inputs)) / len(some)
    epochs = 0 if config.method == "frozen" else fine_tuning_epochs(tokens, config)
    steps = epochs * ceil(len(tokens["train"]) / config.batch_size)
    steps = pair_steps(len(data.train), config) if config.method == "fewshot" else steps
    if "scratch" in parse_baselines(config.baselines, BASELINES):
        steps += epochs * ceil(len(tokens["train"]) / config.batch_size)
    learning = (1 + (config.folds or 0)) * (steps * step + len(tokens["val"]) * epochs * look)
    seconds = sum(len(part) for part in tokens.values()) * 2 * look + learning
    print(f"estimate: {format_seconds(seconds)} of computing, and half a minute for the export and its proof")


# --- small things that the steps above share ----------------------------------------------------------------


def embed(encoder: keras.Model, tokens, folder: Path) -> dict[str, np.ndarray]:
    """Run the untouched encoder once over the texts of each part, float32 [n, width]; what a killed run had is kept."""
    return {part: batches.run_once_on_tokens(encoder, tokens[part], folder, f"embeddings of {part}") for part in PARTS}


def best_on_validation(rows: list[dict]) -> tuple[float, float]:
    """Return the rank of the head that a history ended with: the one of the least cross-entropy."""
    return training.by_accuracy(min(rows, key=lambda row: row["val_cross_entropy"]))


def merged(model: keras.Model, data: TextSet, config: Config):
    """Return source, encoder and model as they were built first, with the adapters merged into their weights."""
    source = load_text_source(config.source)
    encoder = build_encoder(source)
    plain = build_classifier(encoder, len(data.class_names), config.dropout)
    merge_adapters(model, plain)
    return source, encoder, plain


def cross_validate(data: TextSet, tokens, said, config: Config) -> tuple[dict, tuple[str, ...]]:
    """Train --folds times, each time without a part of the training texts, and ask about that part.

    Every choice is made on the validation part, as always, so that a text is answered by a model that never saw it.

    Returns:
        (numbers for metrics.json, a sentence for the report).
    """
    accuracies = []
    for number, (rest, fold) in enumerate(folds_of(data, config.folds), start=1):
        print(f"fold {number} of {config.folds}: {len(rest)} texts to learn from, {len(fold)} to ask about")
        some = replace(data, train=data.train.take(rest), test=data.train.take(fold))
        read = {"train": tokens["train"].of_texts(rest), "val": tokens["val"], "test": tokens["train"].of_texts(fold)}
        heard = {"train": said["train"][rest], "val": said["val"], "test": said["train"][fold]}
        keras.utils.set_random_seed(config.seed)
        source = load_text_source(config.source)
        learned = learn(source, some, read, heard, config, runs.Stopwatch(), fold=f"_fold{number}")
        accuracies.append(float(np.mean(learned.answer(read["test"]).argmax(axis=1) == some.test.labels)))
    mean, std = float(np.mean(accuracies)), float(np.std(accuracies, ddof=1))
    numbers = {"folds": config.folds, "accuracy": {"mean": mean, "std": std, "folds": accuracies}}
    return numbers, (
        f"Cross-validation of the {len(data.train)} training texts in {config.folds} parts: {100 * mean:.1f} % right, "
        f"with a standard deviation of {100 * std:.1f} points between the parts.",
    )


def other_baselines(data: TextSet, tokens, config: Config) -> dict:
    """Return, for each baseline that takes a training of its own, what gives its (test probabilities, history)."""

    def from_scratch():
        keras.utils.set_random_seed(config.seed)
        source = load_text_source(config.source, random_weights=True)
        encoder = build_encoder(source)
        model = build_classifier(encoder, len(data.class_names), config.dropout)
        rows, _ = fine_tune(source, model, encoder, tokens, data, config, stage="scratch")
        said = batches.run_on_tokens(encoder, tokens["test"])
        return features.predict_head(model.get_layer("head"), said), rows

    weights = sample_weights(data, config)
    known = {
        "words": lambda: (tfidf_probabilities(data, weights), []),
        "vectors": lambda: (word_vector_probabilities(data, Path(config.word_vectors).expanduser(), weights), []),
        "scratch": from_scratch,
    }
    return {name: answer for name, answer in known.items() if name in parse_baselines(config.baselines, BASELINES)}


def saved(config: Config, stage: str) -> dict:
    """Return where a stage saves what `--resume` needs."""
    return {"checkpoint": Path(config.out) / "checkpoints" / f"{stage}.npz", "save_every": config.save_every}


def watchers(config: Config, stage: str) -> Sequence[keras.callbacks.Callback]:
    """Return who watches a stage."""
    return observing.tensorboard_callbacks(Path(config.out), stage) if config.tensorboard else ()


def fine_tuning_epochs(tokens, config: Config) -> int:
    """Return the number of fine-tuning passes: enough steps to learn something, where the texts are few."""
    steps = ceil(len(tokens["train"]) / config.batch_size)
    return max(3, ceil(60 / steps)) if config.epochs is None else config.epochs


def pair_steps(texts: int, config: Config) -> int:
    """Return the number of few-shot steps for so many training texts."""
    return max(20, texts // 2) if config.pair_steps is None else config.pair_steps


def sample_weights(data: TextSet, config: Config) -> np.ndarray:
    """Return how much each training text counts, float32 [n]."""
    if config.class_weights == "none":
        return np.ones(len(data.train), "float32")
    return training.balanced_class_weights(data.train.labels, len(data.class_names))[data.train.labels]
