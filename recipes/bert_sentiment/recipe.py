"""Classify texts: from a table of labelled sentences to a proved SavedModel that takes raw strings.

    python -m recipes run bert_sentiment                             # demo: sentences of product reviews
    python -m recipes run bert_sentiment --data csv:REVIEWS.csv --source minilm --out runs/mine

REVIEWS.csv has the columns text and label, with any number of labels. The pretrained encoder embeds every text once and
a linear head is fitted on the embeddings (frozen). Then all but the token embeddings is fine-tuned, and validation
decides how much of that is kept (auto). The report compares the result with the frozen encoder and word counts. The
SavedModel takes strings, and is proved to answer as evaluated.

Measured results, with commands and machine: `python -m recipes show bert_sentiment`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np

from common import exporting, flags, freezing, training
from common.classification import calibration, results
from common.classification.answers import LABELS
from common.classification.baselines import run_baselines, stage_seconds
from common.classification.check import describe_counts
from common.classification.choice import best_on_validation, keep_what_helps
from common.classification.training import describe_class_weights, fit_stage, sample_weights
from common.data.splits import SPLITS
from common.exporting import Predictor
from common.linear_head import fit_linear_head, predict_head, score
from common.progress import format_seconds
from common.proof.prove import FreshProcess, in_background
from common.results import Outcome, measured_from_scratch
from common.runs import Run, Stopwatch
from common.serving.kit.write import write_serving_files
from common.sources.catalogue import CATALOGUE, WORD_VECTORS
from common.sources.entries import fetch_entry
from common.sources.specs import parse_source
from common.texts import batches, models
from common.texts.dataset import DATA_KINDS, TextSet, draw_shots, folds_of, load_text_set, with_fold
from common.texts.explain import explain_texts
from common.texts.export import export_text_classifier, prove_text_classifier
from common.texts.preview import describe_lengths, short_texts, write_sample_texts
from common.texts.readers import Columns, encode_text
from common.texts.sources import TextSource, load_text_source
from common.texts.word_baselines import tfidf_probabilities, word_vector_probabilities

BASELINES = {"frozen": "Frozen source, linear head", "words": "Word counts (TF-IDF)",
             "vectors": "Mean word vector", "scratch": "From scratch"}  # fmt: skip
SCORES = ("accuracy", "macro_f1", "ece")
SOURCES = ("bert_mini", "minilm", "glove_6b_50d")
GALLERY = {"in": "table of labelled texts", "out": "label, probabilities", "row": "sst2"}
QUICK = "--limit 40 --epochs 1 --max-length 32 --calibrate"  # a run of seconds, for tests
EARLY = "common.texts.dataset:refuse_early"  # called before TensorFlow is imported
INPUT = "text"  # of the served model
PREDICTOR = Predictor(INPUT, encode_text, LABELS)


@dataclass(frozen=True)
class Config:
    """Settings of bert_sentiment."""

    data: str = "demo"  # demo, demo:reviews, csv:PATH, tsv:PATH, jsonl:PATH (text,label), folder:PATH or tfds:NAME
    text_column: str = "text"  # Column of the texts; its number (1, 2 ...) in a table without a header
    label_column: str = "label"  # Column of the labels; its number (1, 2 ...) in a table without a header
    split_column: str = "split"  # Column of the splits (train, val, test); it may be absent
    group: str | None = None  # Column of what belongs together (a document, an author), which stays in one split
    encoding: str = "utf-8"  # Encoding of the files: utf-8, latin-1 ...
    source: str = "bundled:bert_mini"  # bundled:bert_mini, minilm (better, fetched), preset:NAME_OR_FOLDER, hub:FOLDER
    out: str = "runs/bert_sentiment"  # Folder for everything this run writes
    resume: str | None = None  # Continue the run that was stopped in this folder; no other flag is needed
    save_every: float = 30.0  # Seconds between checkpoints: a killed run loses no more than that
    method: str = "auto"  # auto (finetune, kept as far as validation supports it), finetune, frozen, fewshot, lora
    max_length: int = 128  # Maximum length of a text in tokens; short texts stay fast
    long_text: str = "truncate"  # Longer texts: truncate, or windows (read in pieces, embeddings averaged)
    epochs: int | None = None  # Fine-tuning epochs; 3 by default, more for small data sets
    batch_size: int = 32  # Texts per fine-tuning step
    learning_rate: float | None = None  # Peak rate of the encoder's last layer; 1e-4 by default, 3e-3 with lora
    layer_decay: float = 0.9  # Learning rate of each layer, as a factor of the one above; lower preserves more
    head_rate: float = 1e-3  # Peak learning rate of the head in fine-tuning
    weight_decay: float = 0.01  # Weight decay; increase it for small data sets
    dropout: float = 0.1  # Dropout rate before the head, in fine-tuning
    label_smoothing: float = 0.0  # Label smoothing in fine-tuning; reduces overconfidence
    gradient_norm: float = 1.0  # Clip gradients to this global norm
    pair_steps: int | None = None  # Steps of --method fewshot; 40 by default, more for more texts
    pair_rate: float = 1e-4  # Peak learning rate of --method fewshot
    rank: int = 4  # Rank of the adapters of --method lora
    precision: str = "auto"  # Of fine-tuning: float32, bfloat16, or auto (bfloat16 where it saves time)
    class_weights: str = "auto"  # none, balanced (equal totals), softened (between), auto: softened if imbalanced
    patience: int | None = None  # Stop fine-tuning after this many epochs without improvement on validation
    baselines: str = "frozen,words"  # To compare with: frozen, words, vectors, scratch (takes as long), or none
    word_vectors: str = (
        "glove_6b_50d"  # Of the baseline vectors: glove_6b_50d (fetched), or a text file in GloVe's format
    )
    calibrate: bool = True  # Calibrate the probabilities by temperature scaling, fitted on validation
    explain: bool = True  # Report accuracy by length, and the words that moved a prediction; takes seconds
    tensorboard: bool = False  # Write TensorBoard logs to OUT/tensorboard
    mlflow: str | None = None  # Log the finished run to this MLflow tracking server or folder
    shots: int | None = None  # Train on this many texts per class, drawn by the seed; validate on as many at most
    folds: int | None = None  # Cross-validate as well, in this many folds of the training texts. For tiny data sets
    limit: int | None = None  # Use at most this many texts of each split: a quick look
    strict: bool = False  # Stop at the first text that cannot be used instead of skipping and counting it
    seed: int = 0  # Seed of initial weights and shuffling; the split depends on the texts alone
    seeds: str | None = None  # Train with each of these seeds, such as 0,1,2: mean and spread; exports the best on val

    redefined: ClassVar[dict] = {"data": ("demo", 2, "its --data demo was reviews written for this project, which are "
                                          "now --data demo:reviews; --data demo is now product reviews")}  # fmt: skip

    def __post_init__(self) -> None:
        flags.check_group(self.group, flags.parse_data(self.data, DATA_KINDS)[0], columns=("csv", "tsv", "jsonl"))
        parse_source(self.source)
        flags.check_choice("--method", self.method, ("auto", "frozen", "finetune", "fewshot", "lora"))
        if self.method == "lora" and not self.has_layers:
            raise ValueError("--method lora requires layers, and a SavedModel has none. Try: --method finetune")
        if self.method == "fewshot" and self.batch_size < 4:
            raise ValueError("--method fewshot contrasts texts within a batch: --batch-size must be at least 4.")
        flags.check_choice("--precision", self.precision, ("auto", "float32", "bfloat16"))
        if self.precision == "bfloat16" and not self.trains_in_any_precision:
            raise ValueError(
                "--precision bfloat16 needs --method auto or finetune and a source of layers (not hub: or kaggle:). "
                f"Received: --method {self.method} --source {self.source}. Try: --precision float32"
            )
        flags.check_choice("--long-text", self.long_text, ("truncate", "windows"))
        flags.check_choice("--class-weights", self.class_weights, ("auto", "none", "softened", "balanced"))
        chosen = flags.parse_baselines(self.baselines, BASELINES)
        if "vectors" in chosen and not (
            self.word_vectors in WORD_VECTORS or Path(self.word_vectors).expanduser().is_file()
        ):
            raise ValueError(
                f"--word-vectors names a file that does not exist. Allowed: {', '.join(WORD_VECTORS)}, or a text file "
                f"in GloVe's format. Received: {self.word_vectors!r}. Try: --word-vectors {WORD_VECTORS[0]}"
            )
        flags.parse_seeds(self.seeds, self.seed)
        flags.check_observers(self)
        flags.check_range(self, 1, inf, "batch_size", "rank", "pair_steps", "shots", "limit", "patience", "epochs")
        flags.check_range(self, 0, inf, "save_every", "learning_rate", "pair_rate", "weight_decay", "seed")
        flags.check_range(self, 2, inf, "folds")
        flags.check_range(self, 0, 1, "layer_decay", "dropout", "label_smoothing")
        flags.check_range(self, 1e-9, inf, "head_rate", "gradient_norm")
        flags.check_range(self, 4, 100_000, "max_length")

    @property
    def has_layers(self) -> bool:
        """Whether the source is built layer by layer; a SavedModel is not."""
        return parse_source(self.source).kind != "hub"

    @property
    def trains_in_any_precision(self) -> bool:
        """Whether fine-tuning may be in bfloat16, which needs a second model of the same layers."""
        return self.method in ("auto", "finetune") and self.has_layers


def load_data(config: Config) -> TextSet:
    """Read, check and split the texts."""
    columns = Columns(config.text_column, config.label_column, config.split_column, config.encoding, config.group)
    data = load_text_set(config.data, columns=columns, limit=config.limit, strict=config.strict)
    return draw_shots(data, config.shots, config.seed) if config.shots else data


@dataclass(frozen=True)
class Trained:
    """The outcome of training with one seed: `encoder` maps tokens to embeddings, `model` to class probabilities: those
    of test and, before `temperature` is built in, of val; `frozen` are those of the frozen encoder for both."""

    encoder: keras.Model
    model: keras.Model
    probabilities: np.ndarray
    val_probabilities: np.ndarray
    temperature: float | None
    frozen: dict[str, np.ndarray]
    history: list[dict]
    parameters: dict[str, int]
    choice: str


def train(
    run: Run, pretrained: keras.Model, data: TextSet, tokens, embeddings, seed: int, clock: Stopwatch, precision: str,
    fold: str = "",
) -> Trained:  # fmt: skip
    """Train by --method: the head on embeddings of the pretrained encoder, then a copy of that encoder too."""
    config, classes, temperature, choice = run.config, len(data.class_names), None, ""
    keras.utils.set_random_seed(seed)
    source, encoder, model = build_model(config, classes)
    training.copy_weights(pretrained, encoder)  # with @random, each seed would load others
    head, parameters = model.get_layer("head"), {"total": model.count_params()}
    parameters["trainable_head"] = freezing.freeze(model, source.backbone, "frozen").parameters
    with clock("head"):
        history = train_head(head, embeddings, data, config)
    frozen = {split: predict_head(head, embeddings[split]) for split in ("val", "test")}
    if config.method == "fewshot":
        contrastive = importlib.import_module("common.texts.contrastive")  # on demand: no other method needs it
        with clock("finetune"):
            parameters["trainable_finetune"] = models.unfreeze(model, source.backbone, tables=False).parameters
            history += contrastive.tune_if_better(
                encoder, head, lambda tuned: train_head(head, tuned, data, config), history, tokens, data.train.labels,
                steps=config.pair_steps or contrastive.default_steps(len(data.train)), learning_rate=config.pair_rate,
                batch_size=config.batch_size, weight_decay=config.weight_decay, gradient_norm=config.gradient_norm,
                seed=seed, **run.saves(f"pairs{fold}", seed),
            )  # fmt: skip
    elif config.method != "frozen":
        start = model.get_weights()
        with clock("finetune"):
            rows, counts = fine_tune(
                run, source, model, encoder, tokens, data, seed, history, precision=precision, fold=fold
            )
            if config.method == "auto":
                _, val_probabilities, choice = keep_what_helps(
                    model, start, frozen["val"], lambda: predict(encoder, model, tokens["val"]), data.val.labels
                )
        history, parameters["trainable_finetune"] = history + rows, counts.parameters
    if config.method == "lora":
        adapted = model
        _, encoder, model = build_model(config, classes)
        models.merge_adapters(adapted, model)
    with clock("evaluate"):
        if config.method != "auto":
            val_probabilities = predict(encoder, model, tokens["val"])
        if config.calibrate:
            temperature = calibration.calibrate(model.get_layer("head"), data.val.labels, val_probabilities)
        probabilities = predict(encoder, model, tokens["test"])
    return Trained(encoder, model, probabilities, val_probabilities, temperature, frozen, history, parameters, choice)


def predict(encoder: keras.Model, model: keras.Model, tokens: batches.Tokens) -> np.ndarray:
    """Return the class probabilities of texts, which may have several windows, float32 [texts, classes]."""
    return predict_head(model.get_layer("head"), batches.run_on_tokens(encoder, tokens))


def train_head(head: keras.layers.Dense, embeddings, data: TextSet, config: Config) -> list[dict]:
    """Feature extraction: fit the linear head on the embeddings of train and val; return history rows."""
    return fit_linear_head(
        head, embeddings["train"][None], data.train.labels, embeddings["val"], data.val.labels,
        sample_weights=weights_of_texts(data, config),
    )  # fmt: skip


def fine_tune(
    run: Run, source: TextSource, model, encoder, tokens, data: TextSet, seed: int, of_head, *, precision: str, fold=""
):
    """Train the encoder with its head, in this dtype policy; return history rows and what was trained."""
    config, auto = run.config, run.config.method == "auto"
    if config.method == "lora":
        counts = models.add_adapters(model, source.backbone, config.rank)
    else:
        counts = models.unfreeze(model, source.backbone, tables=False)
    print(f"finetune: {counts}")
    trained, epochs = model, fine_tuning_epochs(tokens, config)
    if precision != "float32":  # a copy is trained; the float32 model gets its weights
        source, encoder, trained = build_model(config, len(data.class_names), precision)
        training.copy_weights(model, trained)
        models.unfreeze(trained, source.backbone, tables=False)
    shared = stage_settings(trained, encoder, tokens, data, seed, config)
    depths = models.layers_by_depth(source.backbone)  # the first layers, which are most general, change least
    default = 3e-3 if config.method == "lora" else 1e-4  # adapters start at zero
    rate = (default if config.learning_rate is None else config.learning_rate) / config.head_rate
    optimizer = training.DiscriminativeAdamW(
        learning_rate=training.warmup_cosine(config.head_rate, epochs * shared["steps"]),
        weight_decay=config.weight_decay, global_clipnorm=config.gradient_norm,
        slower=[(layer, rate * config.layer_decay**depth) for depth, layer in enumerate(depths)],
    )  # fmt: skip
    hopeless = [training.StopIfHopeless(epochs, min(row["val_cross_entropy"] for row in of_head))] * auto
    history = fit_stage(
        trained, stage="finetune", epochs=epochs, optimizer=optimizer, patience=config.patience,
        start_counts=not auto, keep_best=not auto, callbacks=[*run.watchers(f"finetune{fold}", seed), *hopeless],
        **run.saves(f"finetune{fold}", seed), **shared,
    )  # fmt: skip
    if trained is not model:
        training.copy_weights(trained, model)
    return history, counts


def stage_settings(model, encoder, tokens, data: TextSet, seed: int, config: Config) -> dict:
    """Return the arguments of `fit_stage` that fine-tuning and training from scratch share."""
    targets, weights = np.eye(len(data.class_names), dtype="float32")[data.train.labels], weights_of_texts(data, config)
    return {
        "batches_from": lambda *first: batches.training_batches(
            tokens["train"], targets, weights, config.batch_size, seed=seed, first=first
        ),
        "steps": ceil(len(tokens["train"]) / config.batch_size),
        # As in the evaluation, where a text of several windows counts once.
        "score": lambda: score(predict(encoder, model, tokens["val"]), data.val.labels),
        "loss": keras.losses.CategoricalCrossentropy(label_smoothing=config.label_smoothing),
        "xla": False,
    }


def main(config: Config) -> dict:
    """Run the whole recipe: data -> source -> head -> encoder -> evaluation -> export -> proof -> report."""
    run = Run(config)
    config, out, clock = run.config, run.out, run.clock
    with clock("data"):
        data = load_data(config)
    print(f"{config.data}: {data.counts()}, {len(data.class_names)} classes")
    print(describe_class_weights(data, config.class_weights))
    keras.utils.set_random_seed(config.seed)
    if "vectors" in flags.parse_baselines(config.baselines, BASELINES) and config.word_vectors in WORD_VECTORS:
        fetch_entry(CATALOGUE[config.word_vectors])  # before hours of training, not after
    source = load_text_source(config.source)
    run.remember(data, source)
    process = FreshProcess()  # of the proof; it imports TensorFlow meanwhile
    with clock("data"):
        reader, tokens = tokenize(source, data, config)
        precision = precision_of(config, tokens, out / "checkpoints" / "precision.json")
    with clock("features"):
        encoder, run_once = models.build_encoder(source), batches.run_once_on_tokens
        embeddings = {split: run_once(encoder, tokens[split], out / "features", f"embeddings of {split}")
                      for split in SPLITS}  # fmt: skip
    more, advice, seeds = {}, (), flags.parse_seeds(config.seeds, config.seed)
    if config.folds:

        def of_fold(number: int, *rows: np.ndarray) -> np.ndarray:
            inputs = with_fold(data, tokens, embeddings, *rows)
            return train(run, encoder, *inputs, seeds[0], Stopwatch(), precision, f"_fold{number}").probabilities

        cross_validate = importlib.import_module("common.classification.cross_validation").cross_validate
        with clock("folds"):
            folds = folds_of(data, config.folds)
            more["cross_validation"], *advice = cross_validate(folds, data.train.labels, of_fold)

    trained = {seed: train(run, encoder, data, tokens, embeddings, seed, clock, precision) for seed in seeds}
    best = best_on_validation(data.val.labels, {seed: one.val_probabilities for seed, one in trained.items()})
    chosen = trained[best]
    model, probabilities = chosen.model, chosen.probabilities
    with clock("export"):  # before the baselines: one that is killed costs nothing else
        exporting.save_keras_model(model, out / "model.keras")  # for further training; the rest is for serving
        folder, examples = out / "serving" / "bert_sentiment", sorted(data.train.texts, key=len)[:2]
        version = export_text_classifier(model, reader, folder, data.class_names, examples=examples)
        write_serving_files(out / "serving", "bert_sentiment", input_name=INPUT, example=str(data.test.texts[0]))
        later = in_background(prove_text_classifier, version, data.test.texts, probabilities, data.class_names, process)

    explanation = None
    if config.explain:
        with clock("explain"):
            explanation = explain_texts(
                lambda texts: predict(chosen.encoder, model, reader.read(texts)), data, cut=tokens["test"].cut,
                lengths=tokens["test"].lengths, max_length=reader.max_length, probabilities=probabilities,
                val_probabilities=chosen.val_probabilities, applied_temperature=chosen.temperature,
            )  # fmt: skip
    with clock("proof"):
        proof = later.result()
    baselines, rows, notes = run_baselines(
        flags.parse_baselines(config.baselines, BASELINES),
        lambda name, seed: baseline(name, chosen, run, data, tokens, seed), data.val.labels, clock,
        calibrate=config.calibrate, part_of_run={"frozen": ("features", "head")},
        seeds=sorted(seeds, key=lambda seed: seed != best),
    )  # fmt: skip
    card, size = {"spec": config.source, **source.card}, exporting.size_report(version, model)
    rows, seconds = [*chosen.history, *rows], stage_seconds(clock)
    return results.conclude(
        "bert_sentiment", config, data, Outcome(rows, seconds, chosen.parameters, card, proof, size),
        exported=best, probabilities={seed: one.probabilities for seed, one in trained.items()}, baselines=baselines,
        titles=BASELINES, what="texts", preview=short_texts(data.test.texts), explanation=explanation,
        more=more | {"precision": precision},
        advice=[chosen.choice, *advice, *notes, *measured_from_scratch(__file__, config, data.counts())],
    )  # fmt: skip


def check(config: Config) -> None:
    """Describe the data and estimate the time of a run; train nothing, write one page of samples."""
    data = load_data(config)
    print(describe_counts(data), describe_class_weights(data, config.class_weights), sep="\n")
    source, encoder, model = build_model(config, len(data.class_names))
    print(f"source: {source.card}")
    tokens = tokenize(source, data, config)[1]
    page = Path(config.out) / "samples.txt"
    write_sample_texts(page, data, tokens["train"], source.tokenize.vocabulary())
    print(f"samples as tokenized for the encoder: {page}")

    epochs = 0 if config.method == "frozen" else fine_tuning_epochs(tokens, config)
    steps = epochs * ceil(len(tokens["train"]) / config.batch_size)
    if (precision := precision_of(config, tokens)) != "float32":
        source, encoder, model = build_model(config, len(data.class_names), precision)
    if config.method == "lora":
        models.add_adapters(model, source.backbone, config.rank)
    else:
        models.unfreeze(model, source.backbone, tables=False)
    measure = importlib.import_module("common.texts.estimate").seconds_of_steps
    step, forward = measure(model, encoder, tokens["train"], data.train.labels, config.batch_size)
    if config.method == "fewshot":
        contrastive = importlib.import_module("common.texts.contrastive")
        steps = config.pair_steps or contrastive.default_steps(len(data.train))
    fits = len(flags.parse_seeds(config.seeds, config.seed)) + (config.folds or 0)
    training_time = fits * (steps * step + len(tokens["val"]) * epochs * forward)
    seconds = sum(len(split) for split in tokens.values()) * 2 * forward + training_time
    print(f"estimate: {format_seconds(seconds)} of computation, and half a minute for the export and its proof")


# --- helpers of the steps above ------------------------------------------------------------------------------


def tokenize(source: TextSource, data: TextSet, config: Config):
    """Return the reader, which is also used in serving, and the tokens of each split."""
    reader = batches.TextReader(source.tokenize, min(config.max_length, source.max_length), config.long_text)
    tokens = {split: reader.read(getattr(data, split).texts) for split in SPLITS}
    print(describe_lengths(tokens["train"]))
    return reader, tokens


def baseline(name: str, trained: Trained, run: Run, data: TextSet, tokens, seed: int):
    """Return the probabilities of a baseline {"val", "test"}, history rows, and a sentence; scratch on demand."""
    config, weights = run.config, weights_of_texts(data, run.config)
    if name == "frozen":
        return trained.frozen, [], ""
    if name == "words":
        return tfidf_probabilities(data, weights), [], ""
    if name == "vectors":
        return word_vector_probabilities(data, config.word_vectors, weights), [], ""
    return importlib.import_module("common.texts.scratch").train_from_scratch(
        config.source, len(data.class_names),
        lambda encoder, model: stage_settings(model, encoder, tokens, data, seed, config),
        lambda encoder, model: {split: predict(encoder, model, tokens[split]) for split in ("val", "test")},
        dropout=config.dropout, weight_decay=config.weight_decay, gradient_norm=config.gradient_norm, seed=seed,
        save=lambda stage: run.saves(stage, seed),
    )  # fmt: skip


def fine_tuning_epochs(tokens, config: Config) -> int:
    """Return the number of fine-tuning epochs: by default at least 3 epochs and 60 steps."""
    steps = ceil(len(tokens["train"]) / config.batch_size)
    return max(3, ceil(60 / steps)) if config.epochs is None else config.epochs


def build_model(config: Config, classes: int, precision: str = "float32"):
    """Return the source, its encoder and the classifier on it, of this dtype policy."""
    with training.dtype_policy(precision):
        return models.load_classifier(config.source, classes, config.dropout)


def precision_of(config: Config, tokens, kept: Path | None = None) -> str:
    """Return the dtype policy of fine-tuning; `kept` as for `choose_precision`."""
    if not config.trains_in_any_precision:
        return "float32"
    steps = fine_tuning_epochs(tokens, config) * ceil(len(tokens["train"]) / config.batch_size)
    return importlib.import_module("common.texts.precision").choose_precision(config.precision, steps, kept)


def weights_of_texts(data: TextSet, config: Config) -> np.ndarray:
    """Return the weight of each training text, float32 [n]."""
    return sample_weights(data.train.labels, data.train.labels, len(data.class_names), config.class_weights)
