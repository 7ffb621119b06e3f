"""Classify images: from a folder of photos to a proved SavedModel.

    python -m recipes run image_classification                       # demo: photos of clothes, offline
    python -m recipes run image_classification --data folder:PHOTOS --source keras:ResNet50 --out runs/mine

PHOTOS has one folder per class, or train/val/test with class folders inside. The pretrained source extracts the
features of every image once, and a linear head is fitted on them (feature extraction); then the source is trained too,
at a lower learning rate (fine-tuning), the head is fitted anew, and validation decides how much of that is kept. The
report compares the result with the frozen source, with nearest neighbours and an SVM on pixels and, with `--baselines
scratch`, with training from scratch. The SavedModel takes the bytes of image files, and has been proved in a fresh
process to answer as evaluated.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np

from common import exporting, flags, freezing, linear_head, training
from common.classification import calibration, results
from common.classification.answers import LABELS
from common.classification.baselines import run_baselines, stage_seconds
from common.classification.choice import BOLD, best_on_validation, keep_what_helps, too_few_errors
from common.classification.training import describe_class_weights, fit_stage, sample_weights
from common.exporting import Predictor
from common.images import export, features
from common.images.batches import image_batches, stage_inputs, steps_per_epoch
from common.images.dataset import ImageSet, draw_shots, split_images
from common.images.files import read_image
from common.images.folding import fold_batch_norm
from common.images.listing import list_images
from common.images.preview import thumbnails, write_sample_grid
from common.images.readers import ImageColumns
from common.images.sources import Source, load_fitting, load_source
from common.progress import format_seconds
from common.proof.prove import FreshProcess, in_background
from common.results import Outcome, measured_from_scratch
from common.runs import Run
from common.serving.kit.write import write_serving_files
from common.sources.specs import parse_source

BASELINES = {"frozen": "Frozen source, linear head", "neighbours": "Nearest neighbours on pixels",
             "pixels": "SVM on pixels", "scratch": "From scratch"}  # fmt: skip
CHEAP = ("frozen", "neighbours", "pixels")  # they run unless --baselines none
SCORES = ("accuracy", "macro_f1", "ece")
SOURCES = ("resnet_mini", "mobilenet_v2", "efficientnet_lite0", "efficientnet_v2_b0", "resnet50", "mobilenet_v2_hub")
GALLERY = {"in": "photos in class folders", "out": "label, probabilities", "row": "demo", "first": True}
QUICK = "--limit 40 --epochs 1 --source keras:MobileNet(alpha=0.25,size=32)@random"  # a run of seconds, for tests
EARLY = "common.images.listing:refuse_early"  # called before TensorFlow is imported
INPUT = "image"  # of the served model
PREDICTOR = Predictor(INPUT, read_image, LABELS)
CONVERTER = "common.images.convert:CLASSIFIER"  # imported by `convert` alone


@dataclass(frozen=True)
class Config:
    """Settings of image_classification."""

    data: str = "demo"  # Images: demo, demo:digits, folder:PATH, csv:PATH (path,label[,split]) or tfds:NAME
    path_column: str = "path"  # Column of the files in a table; its number (1, 2 ...) in a table without a header
    label_column: str = "label"  # Column of the labels in a table; its number (1, 2 ...) in a table without a header
    split_column: str = "split"  # Column of the splits in a table (train, val, test); it may be absent
    group: str | None = None  # Keeps what belongs together in one split: a column (csv), or a pattern on paths
    source: str = "bundled:mobilenet_v2"  # Short name (see `sources`), keras:NAME[@WEIGHTS], preset:NAME, hub:FOLDER
    out: str = "runs/image_classification"  # Folder for everything this run writes
    resume: str | None = None  # Continue the run that was stopped in this folder; no other flag is needed
    save_every: float = 30.0  # Seconds between checkpoints: a killed run loses no more than that
    unfreeze: str = "auto"  # Layers to fine-tune: auto (validation decides), frozen, last:N, last_block, all, regex:P
    epochs: int | None = None  # Fine-tuning epochs; 5 by default, more for small data sets. 0 equals --unfreeze frozen
    batch_size: int = 32  # Images per fine-tuning step
    image_size: int | None = None  # Side of the square input in pixels; by default as source and images suggest
    resize: str = "crop"  # How images become square: crop (centre), squash (ignore the aspect ratio) or pad
    learning_rate: float = 1e-3  # Peak learning rate of the head in fine-tuning, after warm-up; cosine decay
    backbone_factor: float = 0.3  # Learning rate of the backbone, as a factor of the head's; lower preserves more
    batch_norm: str = "frozen"  # BatchNorm of the source: frozen keeps its statistics (safe), train adapts them
    weight_decay: float = 0.05  # Weight decay; increase it for small data sets
    dropout: float = 0.2  # Dropout rate before the head, in fine-tuning
    label_smoothing: float = 0.1  # Label smoothing in fine-tuning; reduces overconfidence
    class_weights: str = "auto"  # none, balanced (equal totals), softened (between), auto: softened if imbalanced
    augment: str = "auto"  # auto, none, or some of flip,crop,rotate,color; never part of the exported model
    views: int = 4  # Views per training image for the linear head: the original and augmented copies
    patience: int | None = None  # Stop fine-tuning after this many epochs without improvement on validation
    baselines: str = "frozen,neighbours,pixels"  # To compare with: these (seconds), with scratch (minutes), or none
    scratch_epochs: int = 100  # At most so many epochs for --baselines scratch, which stops at a plateau of validation
    calibrate: bool = True  # Calibrate the probabilities by temperature scaling, fitted on validation
    explain: bool = True  # Report near-duplicates, suspected label errors and Grad-CAM heat maps; seconds
    tensorboard: bool = False  # Write TensorBoard logs to OUT/tensorboard
    mlflow: str | None = None  # Log the finished run to this MLflow tracking server or folder
    mirrored: bool = False  # Fine-tune on all GPUs of this machine (MirroredStrategy)
    mixed_precision: bool = False  # Train in bfloat16: faster where supported. The export stays float32
    shots: int | None = None  # Train on this many images per class, drawn by the seed; validate on as many at most
    limit: int | None = None  # Use at most this many images of each split: a quick look
    strict: bool = False  # Stop at the first unreadable image instead of skipping and counting it
    seed: int = 0  # Seed of initial weights, shuffling and augmentation; the split depends on the images alone
    seeds: str | None = None  # Train with each of these seeds, such as 0,1,2: mean and spread; exports the best on val

    redefined: ClassVar[dict] = {"data": ("demo", "group", "its --data demo was handwritten digits, which are now "
                                          "--data demo:digits; --data demo is now photos of clothes")}  # fmt: skip

    def __post_init__(self) -> None:
        kind, _ = flags.parse_data(self.data, ("demo", "demo:digits", "folder", "csv", "tfds"))
        flags.check_group(self.group, kind, columns=("csv",), paths=("folder",))
        parse_source(self.source)
        flags.parse_policy(self.unfreeze, more=("auto",))
        flags.parse_list("--augment", self.augment, ("flip", "crop", "rotate", "color"), alone=("auto", "none"))
        flags.parse_baselines(self.baselines, BASELINES)
        flags.parse_seeds(self.seeds, self.seed)
        flags.check_observers(self)
        flags.check_choice("--resize", self.resize, ("crop", "squash", "pad"))
        flags.check_choice("--batch-norm", self.batch_norm, ("frozen", "train"))
        flags.check_choice("--class-weights", self.class_weights, ("auto", "none", "balanced", "softened"))
        flags.check_range(self, 1, inf, "batch_size", "views", "shots", "limit", "patience", "scratch_epochs")
        flags.check_range(self, 0, inf, "save_every", "epochs", "learning_rate", "weight_decay")
        flags.check_range(self, 0, 1, "backbone_factor", "dropout", "label_smoothing")
        flags.check_range(self, 8, 4096, "image_size")
        flags.check_range(self, 0, flags.LARGEST_SEED, "seed")


def load_data(config: Config) -> tuple[ImageSet, Source]:
    """Load the source, then read, check, decode and split the images at its input size."""
    columns, out = ImageColumns(config.path_column, config.label_column, config.split_column), Path(config.out)
    listed = list_images(config.data, out, columns=columns, group=config.group, limit=config.limit)
    keras.utils.set_random_seed(config.seed)
    source = load_fitting(config.source, config.image_size, listed.shorter_side)
    data = split_images(
        listed, source.image_size, resize=config.resize, folder=out, limit=config.limit, strict=config.strict
    )
    return draw_shots(data, config.shots, config.seed) if config.shots else data, source


def build_model(source: Source, classes: int, config: Config) -> keras.Model:
    """Return pixels -> class probabilities: the source with its preprocessing, dropout and a linear head."""
    pixels = keras.Input((*source.image_size, 3), name="pixels")
    dropped = keras.layers.Dropout(config.dropout, dtype="float32", name="dropout")(source.extractor(pixels))
    probabilities = keras.layers.Dense(classes, activation="softmax", dtype="float32", name="head")(dropped)
    return keras.Model(pixels, probabilities, name="classifier")


def extract_features(source: Source, data: ImageSet, config: Config) -> tuple[dict[str, np.ndarray], dict]:
    """Return the features of each split from the frozen source, float32 [views, n, width], and what computed them."""
    augment = augmentations(config, data)
    return features.extract_splits(
        source, data, Path(config.out) / "features", augment=augment, views=config.views if augment else 1,
        seed=config.seed, save_every=config.save_every, bfloat16=config.mixed_precision,
    )  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """The outcome of training with one seed: source and model with their final weights, the probabilities of the model
    for test and, before `temperature` is built in, for validation, and those of the `frozen` source for both."""

    source: Source
    model: keras.Model
    probabilities: np.ndarray
    frozen: dict[str, np.ndarray]
    val_probabilities: np.ndarray
    temperature: float | None
    history: list[dict]
    parameters: dict[str, int]
    choice: str


def train(run: Run, data: ImageSet, of: dict[str, np.ndarray], seed: int) -> Trained:
    """Fit the head on the features of the frozen source, fine-tune both, and keep what is better on validation."""
    config, clock = run.config, run.clock
    keras.utils.set_random_seed(config.seed)  # of a source @random: the weights that these features come from
    source = load_source(config.source, data.train.pixels.size)
    keras.utils.set_random_seed(seed)
    model = build_model(source, len(data.class_names), config)
    head, parameters = model.get_layer("head"), {"total": model.count_params()}
    parameters["trainable_head"] = freezing.freeze(model, source.backbone, "frozen").parameters
    labels, of_train = data.val.labels, weights_of_images(data, config)
    weights = {"sample_weights": of_train, "val_weights": weights_of_images(data, config, labels)}
    with clock("head"):
        splits = of["train"], data.train.labels, of["val"][0], labels
        history, on_val, start = linear_head.fit_final_head(head, *splits, **weights, val_groups=data.val.groups)
        frozen = {"val": on_val, "test": linear_head.predict_head(head, of["test"][0])}
        temperature = calibration.calibrate(head, labels, on_val) if config.calibrate else None
    share, auto, epochs = 0.0, config.unfreeze == "auto", fine_tuning_epochs(data, config)
    choice = too_few_errors(labels, on_val) if epochs and auto else ""
    if epochs and not choice:
        alone, penalty = model.get_weights(), linear_head.chosen_penalty(history)
        head.set_weights(start)
        before, files = model.get_weights(), {"cache": run.out / "features", "save_every": config.save_every}
        refit = functools.partial(features.refit_head, head, source, data, **weights, **files, penalty=penalty)
        with clock("finetune"):
            rows, parameters["trainable_finetune"] = fine_tune(run, source, model, data, seed, history)
            if auto:
                share, tuned, choice = keep_what_helps(model, before, on_val, refit, labels, order=BOLD, head=head)
            else:
                share, tuned = 1.0, refit()
        history += rows
        if share:
            on_val = tuned
            temperature = calibration.calibrate(head, labels, tuned) if config.calibrate else None
        else:
            model.set_weights(alone)
    with clock("evaluate"):  # the frozen source's features of test are there
        answers = predict(model, data) if share else linear_head.predict_head(head, of["test"][0])
    return Trained(source, model, answers, frozen, on_val, temperature, history, parameters, choice)


def fine_tune(run: Run, source: Source, model: keras.Model, data: ImageSet, seed: int, of_head: list[dict]):
    """Unfreeze the source and train it with the head; return history rows and the number of trained parameters."""
    config = run.config
    trained_source, trained = source, model
    if config.mixed_precision or config.mirrored:  # a copy is trained; the float32 model gets its weights
        precision = "mixed_bfloat16" if config.mixed_precision else "float32"
        with training.devices(config.mirrored), training.dtype_policy(precision):
            trained_source = load_source(config.source, source.image_size)
            trained = build_model(trained_source, len(data.class_names), config)
        training.copy_weights(model, trained)
    counts = freezing.freeze(trained, trained_source.backbone, policy_of(config), config.batch_norm)
    print(f"finetune: {counts}")
    epochs, shared = fine_tuning_epochs(data, config), stage_settings(data, seed, config)
    with training.devices(config.mirrored):
        optimizer = training.DiscriminativeAdamW(
            learning_rate=training.warmup_cosine(config.learning_rate, epochs * shared["steps"]),
            weight_decay=config.weight_decay,
            slower=[(trained_source.backbone.variables, config.backbone_factor)],
        )
        limit = min(row["val_cross_entropy"] for row in of_head)
        hopeless = [training.StopIfHopeless(epochs, limit)] * (config.unfreeze == "auto")
        history = fit_stage(
            fold_batch_norm(trained), stage="finetune", epochs=epochs, optimizer=optimizer, patience=config.patience,
            keep_best=config.unfreeze != "auto", callbacks=[*run.watchers("finetune", seed), *hopeless],
            **run.saves("finetune", seed), **shared,
        )  # fmt: skip
    if trained is not model:
        training.copy_weights(trained, model)
    return history, counts.parameters


def baseline(name: str, trained: Trained, run: Run, data: ImageSet, seed: int):
    """Return the probabilities of a baseline {"val", "test"}, history rows, and a sentence; modules on demand."""
    config, classes = run.config, len(data.class_names)
    if name == "frozen":
        return trained.frozen, [], ""
    if name == "scratch":
        return importlib.import_module("common.images.scratch").train_from_scratch(
            data, (config.source, trained.source.image_size), lambda source: build_model(source, classes, config),
            lambda own: stage_settings(own, seed, config), epochs=config.scratch_epochs, seed=seed,
            weight_decay=config.weight_decay, save=lambda stage: run.saves(stage, seed), folder=run.out,
        )  # fmt: skip
    measure = importlib.import_module("common.images.baselines").BY_PIXELS[name]
    return measure(data, weights_of_images(data, config))


def main(config: Config) -> dict:
    """Run all steps: data -> features -> head -> fine-tuning -> export -> proof -> baselines -> report."""
    run = Run(config)
    config, out, clock = run.config, run.out, run.clock
    with clock("data"):
        data, source = load_data(config)
    print(f"{config.data}: {data.counts()}, {len(data.class_names)} classes")
    print(describe_class_weights(data, config.class_weights))
    run.remember(data, source)
    process = FreshProcess()  # of the proof; it imports TensorFlow meanwhile
    if config.mixed_precision:
        importlib.import_module("common.images.engine").warn_of_slow_bfloat16()  # on demand: few ask for it
    with clock("features"):
        of, engine = extract_features(source, data, config)
    trained = {seed: train(run, data, of, seed) for seed in flags.parse_seeds(config.seeds, config.seed)}
    best = best_on_validation(data.val.labels, {seed: one.val_probabilities for seed, one in trained.items()})
    chosen, model = trained[best], trained[best].model

    with clock("export"):  # before the baselines: if one is stopped, the model is there
        exporting.save_keras_model(model, out / "model.keras")  # to continue training; the rest is for serving
        version = export.export_image_classifier(
            model, out / "serving" / "image_classification", data.class_names,
            resize=config.resize, example=Path(data.train.paths[0]),
        )  # fmt: skip
        write_serving_files(out / "serving", "image_classification", input_name=INPUT, example=Path(data.test.paths[0]))
        expected = data.test.paths, chosen.probabilities, data.class_names
        hashes = data.test.pixels.hashes
        later = in_background(export.prove_image_classifier, version, *expected, process, hashes)
    explanation = None
    if config.explain:
        with clock("explain"):
            explanation = importlib.import_module("common.images.explain").explain(
                out, chosen.source, model, data, features={split: views[0] for split, views in of.items()},
                probabilities=chosen.probabilities, val_probabilities=chosen.val_probabilities,
                applied_temperature=chosen.temperature,
            )  # fmt: skip
    with clock("proof"):
        proof = later.result()

    baselines, rows, notes = run_baselines(
        flags.parse_baselines(config.baselines, BASELINES, CHEAP),
        lambda name, seed: baseline(name, trained[seed], run, data, seed), data.val.labels, clock,
        calibrate=config.calibrate, part_of_run={"frozen": ("features", "head")},
        seeds=(best, *(seed for seed in trained if seed != best)), per_seed=("frozen", "scratch"),
    )  # fmt: skip
    outcome = Outcome(
        [*chosen.history, *rows], stage_seconds(clock), chosen.parameters, source.card, proof,
        exporting.size_report(version, model),
    )  # fmt: skip
    return results.conclude(
        "image_classification", config, data, outcome, exported=best,
        probabilities={seed: one.probabilities for seed, one in trained.items()}, baselines=baselines,
        titles=BASELINES, what="images", preview=thumbnails(data.test.paths), explanation=explanation,
        more={"engine": engine},
        advice=[chosen.choice, *notes, *measured_from_scratch(__file__, config, data.counts())],
    )  # fmt: skip


def check(config: Config) -> None:
    """Print what a run would read and how long it would take, and write a sheet of samples; nothing is trained."""
    data, source = load_data(config)
    advice = importlib.import_module("common.images.data_quality").group_advice(data)
    counts = importlib.import_module("common.classification.check").describe_counts(data)
    print(counts, *advice, describe_class_weights(data, config.class_weights), sep="\n  ")
    model = build_model(source, len(data.class_names), config)
    print(f"source: {source.card}\ninput {source.image_size} pixels, {source.feature_width} features")

    batches = stage_settings(data, config.seed, config)["batches_from"](0, 0)
    images, targets, _ = next(batches.as_numpy_iterator())
    titles = [data.class_names[number] for number in targets[:24].argmax(axis=1)]
    print(f"samples as trained on: {write_sample_grid(Path(config.out) / 'samples.png', images[:24], titles)}")

    freezing.freeze(model, source.backbone, policy_of(config), config.batch_norm)
    epochs = fine_tuning_epochs(data, config)
    seconds = importlib.import_module("common.images.estimate").seconds_of_run(
        model, source, data, images, targets, views=config.views, epochs=epochs,
        new_heads=(2 if config.unfreeze == "auto" else 1) if epochs else 0,
        seeds=len(flags.parse_seeds(config.seeds, config.seed)),
    )  # fmt: skip
    print(f"estimate: {format_seconds(seconds)}, and half a minute for export and proof")


# --- helpers of the steps above ------------------------------------------------------------------------------


def predict(model: keras.Model, data: ImageSet) -> np.ndarray:
    """Return class probabilities of the test split, float32 [n, classes]."""
    return model.predict(image_batches(data.test.pixels, 64), verbose=0)


def stage_settings(data: ImageSet, seed: int, config: Config) -> dict:
    """Return the arguments of `fit_stage` that fine-tuning and training from scratch share."""
    weights, options = weights_of_images(data, config), {"seed": seed, "augment": augmentations(config, data)}
    return {
        "loss": keras.losses.CategoricalCrossentropy(label_smoothing=config.label_smoothing),
        **stage_inputs(data.train, data.val, weights, len(data.class_names), config.batch_size, **options),
    }


def augmentations(config: Config, data: ImageSet) -> tuple[str, ...]:
    """Return the augmentations; by default those that preserve the class of these images."""
    if config.augment == "auto":
        return data.safe_augmentations()
    return () if config.augment == "none" else tuple(config.augment.split(","))


def policy_of(config: Config) -> str:
    """Return what is unfrozen: for auto everything, since validation decides how much of that is kept."""
    return "all" if config.unfreeze == "auto" else config.unfreeze


def fine_tuning_epochs(data: ImageSet, config: Config) -> int:
    """Return the number of fine-tuning epochs; 0 where nothing is unfrozen."""
    if config.unfreeze == "frozen":
        return 0
    steps = steps_per_epoch(len(data.train), config.batch_size)
    return max(5, ceil(60 / steps)) if config.epochs is None else config.epochs


def weights_of_images(data: ImageSet, config: Config, labels: np.ndarray | None = None) -> np.ndarray:
    """Return the weight of each image, float32 [n]: of those with these labels, or of the training split."""
    labels = data.train.labels if labels is None else labels
    return sample_weights(labels, data.train.labels, len(data.class_names), config.class_weights)
