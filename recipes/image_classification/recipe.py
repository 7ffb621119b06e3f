"""Tell classes of pictures apart: from a folder of photos to a proven SavedModel.

    python -m recipes run image_classification                       # demo digits, offline
    python -m recipes run image_classification --data folder:PHOTOS --source keras:ResNet50 --out runs/mine

PHOTOS holds a folder for each class, or train/val/test with class folders inside. A pretrained source looks at
every picture once and a linear head learns from what it said (feature extraction); then the source itself is
unfrozen and learns, more slowly than the head (fine-tuning). The report sets the result beside the frozen
source and, with `--baselines frozen,scratch`, beside the same network trained from scratch. The SavedModel
takes the bytes of picture files, gives labels, and has been proved in a fresh process to answer as evaluated.

What to expect, measured, with commands and machine: `python -m recipes show image_classification`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from common import calibration, checking, explaining, exporting, features, freezing, observing, runs, training
from common.concluding import conclude
from common.data.image_sets import ImageSet, load_image_set
from common.data.images import image_batches, steps_per_epoch, training_batches
from common.progress import format_seconds
from common.serving.files import write_serving_files
from common.sources import Source, load_source
from common.specs import (
    check_choice,
    check_installed,
    check_range,
    parse_baselines,
    parse_data,
    parse_list,
    parse_policy,
    parse_source,
)

BASELINES = ("frozen", "scratch")


@dataclass(frozen=True)
class Config:
    """Settings of image_classification."""

    data: str = "demo"
    """Pictures: demo, folder:PATH, csv:PATH (path,label[,split]) or tfds:NAME."""
    source: str = "bundled:resnet_mini"
    """Pretrained model: a short name (python -m recipes sources), keras:NAME[@WEIGHTS], preset:NAME, hub:FOLDER ...."""
    out: str = "runs/image_classification"
    """Folder for everything this run writes."""
    resume: str | None = None
    """Go on with the run that was stopped in this folder, with its settings; no other flag is needed."""
    save_every: float = 30.0
    """Seconds between checkpoints: a killed run loses no more than that."""
    unfreeze: str = "all"
    """What fine-tuning trains: frozen (no fine-tuning), last:N (layers), last_block, all, regex:PATTERN."""
    epochs: int | None = None
    """Fine-tuning passes; the default is 5, and more for few pictures. 0 is the same as --unfreeze frozen."""
    batch_size: int = 32
    """Pictures in a fine-tuning step."""
    image_size: int | None = None
    """Side of the square input in pixels; the source's own by default. Smaller is faster."""
    resize: str = "crop"
    """How pictures become square: crop (centre), squash (ignore the shape) or pad (keep all of it)."""
    learning_rate: float = 1e-3
    """Peak learning rate of the head in fine-tuning; it warms up, then falls along a cosine."""
    backbone_factor: float = 0.3
    """The backbone learns at this share of the learning rate: less of it keeps more of what it knew."""
    batch_norm: str = "frozen"
    """BatchNorm of the source: frozen keeps its statistics (safe), train lets them follow the data."""
    weight_decay: float = 0.05
    """Pulls weights towards zero: more of it for fewer pictures."""
    dropout: float = 0.2
    """Share of the features hidden from the head at each fine-tuning step."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes; keeps the model from overconfidence."""
    class_weights: str = "none"
    """none, or balanced: rare classes count as much as common ones."""
    augment: str = "auto"
    """Random changes: auto, none, or some of flip,crop,rotate,color. Never part of the exported model."""
    views: int = 4
    """How often the frozen source looks at each training picture: once as it is, then augmented."""
    patience: int | None = None
    """Stop fine-tuning after this many epochs without a better validation result."""
    baselines: str = "frozen"
    """What the result is set beside: frozen (seconds), frozen,scratch (as long as fine-tuning again), or none."""
    calibrate: bool = False
    """Divide the logits by the temperature that fits validation best: probabilities then mean what they say."""
    explain: bool = True
    """Look for near-duplicates across parts and doubtful labels, and show where the model looked; takes seconds."""
    tensorboard: bool = False
    """Write curves to OUT/tensorboard while training."""
    mlflow: str | None = None
    """Log the finished run to this MLflow tracking server or folder."""
    mirrored: bool = False
    """Fine-tune on all GPUs of this machine, each with its share of every batch."""
    mixed_precision: bool = False
    """Extract features and fine-tune in bfloat16: faster where the hardware has it. The export stays float32."""
    limit: int | None = None
    """Use at most this many pictures of each part: a quick look."""
    strict: bool = False
    """Stop at the first unreadable picture instead of skipping and counting it."""
    seed: int = 0
    """Decides initial weights, order and augmentation; the split depends on the pictures alone."""

    def __post_init__(self) -> None:
        parse_data(self.data, ("demo", "folder", "csv", "tfds"))
        parse_source(self.source)
        parse_policy(self.unfreeze)
        parse_list("--augment", self.augment, ("flip", "crop", "rotate", "color"), alone=("auto", "none"))
        parse_baselines(self.baselines, BASELINES)
        if self.tensorboard:
            check_installed("--tensorboard", "tensorboard", "requirements-observe.txt")
        if self.mlflow:
            check_installed("--mlflow", "mlflow", "requirements-observe.txt")
        check_choice("--resize", self.resize, ("crop", "squash", "pad"))
        check_choice("--batch-norm", self.batch_norm, ("frozen", "train"))
        check_choice("--class-weights", self.class_weights, ("none", "balanced"))
        check_range(self, 1, inf, "batch_size", "views", "limit", "patience")
        check_range(self, 0, inf, "save_every", "epochs", "learning_rate", "weight_decay", "seed")
        check_range(self, 0, 1, "backbone_factor", "dropout", "label_smoothing")
        check_range(self, 8, 4096, "image_size")


def load_data(config: Config) -> ImageSet:
    """Read, check and split the pictures."""
    return load_image_set(config.data, Path(config.out), limit=config.limit, strict=config.strict)


def build_model(source: Source, classes: int, config: Config) -> keras.Model:
    """Return pixels -> class probabilities: the source with its preprocessing, dropout and a linear head."""
    pixels = keras.Input((*source.image_size, 3), name="pixels")
    dropped = keras.layers.Dropout(config.dropout, dtype="float32", name="dropout")(source.extractor(pixels))
    probabilities = keras.layers.Dense(classes, activation="softmax", dtype="float32", name="head")(dropped)
    return keras.Model(pixels, probabilities, name="classifier")


def extract(source: Source, data: ImageSet, config: Config, parts=("train", "val", "test")) -> dict[str, np.ndarray]:
    """Return what the frozen source says of the pictures of each part, [views, n, width]."""
    settings = dict(cache=Path(config.out) / "features", resize=config.resize, save_every=config.save_every)
    augment = augmentations(config, data)
    if config.mixed_precision:
        source = features.faster_if_it_agrees(source, data.train.paths, config.resize)
    looks = {"train": dict(views=config.views if augment else 1, augment=augment, seed=config.seed)}
    return {
        part: features.extract_features(
            source, getattr(data, part).paths, title=f"features of {part}", **settings, **looks.get(part, {})
        )
        for part in parts
    }


def train_head(model: keras.Model, said: dict[str, np.ndarray], data: ImageSet, config: Config) -> list[dict]:
    """Feature extraction: fit the linear head on the stored features."""
    return features.fit_linear_head(
        model.get_layer("head"), said["train"], data.train.labels, said["val"][0], data.val.labels,
        sample_weights=sample_weights(data, config),
    )  # fmt: skip


def refit_head(model: keras.Model, said: dict[str, np.ndarray], data: ImageSet, config: Config, history) -> None:
    """Where the head is all that trains: fit it once more with the penalty chosen, on the validation pictures too."""
    val = (said["val"][0], data.val.labels, sample_weights(data, config, data.val.labels))
    pieces = views_of_train(said, data, config)
    weights = features.linear_head_weights(
        pieces + [val] * len(pieces), len(data.class_names), _chosen_penalty(history)
    )
    model.get_layer("head").set_weights(weights)


def starting_head(said: dict[str, np.ndarray], data: ImageSet, config: Config, history) -> list[np.ndarray]:
    """Return weights of a head to fine-tune from: less sure of itself than the one that validation chose."""
    penalty = max(_chosen_penalty(history), features.START_PENALTY)
    return features.linear_head_weights(views_of_train(said, data, config), len(data.class_names), penalty)


def fine_tune(source: Source, model: keras.Model, data: ImageSet, config: Config, head=None, stage: str = "finetune"):
    """Unfreeze and train from `head` on; from a random start (stage `scratch`) everything, at the full learning rate.

    Returns:
        (history rows, number of parameters that trained).
    """
    scratch = stage == "scratch"
    trained_source, trained = source, model
    if config.mixed_precision or config.mirrored:  # a twin trains; the plain float32 model takes its weights back
        precision = "mixed_bfloat16" if config.mixed_precision else "float32"
        with training.devices(config.mirrored), training.dtype_policy(precision):
            trained_source = load_source(config.source, config.image_size, random_weights=scratch)
            trained = build_model(trained_source, len(data.class_names), config)
        training.copy_weights(model, trained)
    counts = freezing.freeze(
        trained,
        trained_source.backbone,
        "all" if scratch else config.unfreeze,
        "train" if scratch else config.batch_norm,
    )
    print(f"{stage}: {counts}")

    epochs, steps = fine_tuning_epochs(data, config), steps_per_epoch(len(data.train), config.batch_size)
    labels, weights = tf.constant(data.train.labels), tf.constant(sample_weights(data, config))
    classes = len(data.class_names)

    def batches_from(epoch, step):
        return training_batches(
            data.train.paths, lambda i: (tf.one_hot(tf.gather(labels, i), classes), tf.gather(weights, i)),
            source.image_size, config.batch_size,
            seed=config.seed, augment=augmentations(config, data), resize=config.resize, first=(epoch, step),
        )  # fmt: skip

    val_labels = tf.data.Dataset.from_tensor_slices(data.val.labels).batch(64).map(lambda y: tf.one_hot(y, classes))
    validation = tf.data.Dataset.zip(pictures(source, data.val.paths, config), val_labels)
    with training.devices(config.mirrored):
        optimizer = training.DiscriminativeAdamW(
            learning_rate=training.warmup_cosine(config.learning_rate, epochs * steps),
            weight_decay=config.weight_decay,
            slower=() if scratch else [(trained_source.backbone.variables, config.backbone_factor)],
        )
        history = training.fit_stage(
            trained, batches_from, stage=stage, epochs=epochs, steps=steps, validation=validation,
            optimizer=optimizer, loss=keras.losses.CategoricalCrossentropy(label_smoothing=config.label_smoothing),
            patience=config.patience, start_counts=not scratch,
            begin=head and (lambda: trained.get_layer("head").set_weights(head)), **observed(config, stage),
        )  # fmt: skip
    if trained is not model:
        training.copy_weights(trained, model)
    return history, counts.parameters


def predict(source: Source, model: keras.Model, paths: np.ndarray, config: Config) -> np.ndarray:
    """Return class probabilities of picture files, float32 [n, classes]."""
    return model.predict(pictures(source, paths, config), verbose=0)


def main(config: Config) -> dict:
    """Run the whole story: data -> source -> head -> fine-tuning -> evaluation -> export -> proof -> report."""
    config = runs.start(config)
    out = Path(config.out)
    clock = runs.Stopwatch(out / "checkpoints" / "seconds.json")

    with clock("data"):
        data = load_data(config)
    print(f"{config.data}: {data.counts()}, {len(data.class_names)} classes")
    keras.utils.set_random_seed(config.seed)
    source = load_source(config.source, config.image_size)
    runs.remember_inputs(out, data.fingerprint() + source.fingerprint())
    model = build_model(source, len(data.class_names), config)

    parameters = {
        "total": model.count_params(),
        "trainable_head": freezing.freeze(model, source.backbone, "frozen").parameters,
    }
    with clock("features"):
        said = extract(source, data, config)
    with clock("head"):
        history = train_head(model, said, data, config)
        val_probabilities = features.predict_head(model.get_layer("head"), said["val"][0])
        if not fine_tuning_epochs(data, config):  # no choice is left for validation to make
            refit_head(model, said, data, config, history)
    baselines = {"frozen": features.predict_head(model.get_layer("head"), said["test"][0])}
    if fine_tuning_epochs(data, config):
        with clock("finetune"):
            head = starting_head(said, data, config, history)
            rows, parameters["trainable_finetune"] = fine_tune(source, model, data, config, head)
            val_probabilities = predict(source, model, data.val.paths, config)
        history += rows
    with clock("evaluate"):
        temperature = calibration.fit_temperature(data.val.labels, val_probabilities) if config.calibrate else None
        if temperature:
            calibration.divide_logits(model.get_layer("head"), temperature)
        probabilities = predict(source, model, data.test.paths, config)
    if "scratch" in config.baselines:
        with clock("baselines"):
            keras.utils.set_random_seed(config.seed)  # whether or not the run was resumed
            random_source = load_source(config.source, config.image_size, random_weights=True)
            random_model = build_model(random_source, len(data.class_names), config)
            history += fine_tune(random_source, random_model, data, config, stage="scratch")[0]
            baselines["scratch"] = predict(random_source, random_model, data.test.paths, config)
    explanation = None
    if config.explain:
        with clock("explain"):
            explanation = explaining.explain(
                out, source, model, data, features={part: views[0] for part, views in said.items()},
                probabilities=probabilities, val_probabilities=val_probabilities,
                applied_temperature=temperature, resize=config.resize,
            )  # fmt: skip

    with clock("export"):
        exporting.save_keras_model(model, out / "model.keras")  # to go on training; what follows is to serve
        version = exporting.export_image_classifier(
            model, out / "serving" / "image_classification", data.class_names,
            resize=config.resize, example=Path(data.train.paths[0]),
        )  # fmt: skip
        write_serving_files(
            out / "serving", "image_classification", input_name="image", example=Path(data.test.paths[0])
        )
        proof = exporting.prove_image_classifier(version, data.test.paths, probabilities, data.class_names)

    seconds = clock.report()
    spent = {"frozen": seconds["features"] + seconds["head"], "scratch": seconds.get("baselines")}
    metrics = conclude(
        "image_classification", config, data, probabilities=probabilities,
        baselines={name: (baselines[name], spent[name]) for name in parse_baselines(config.baselines, BASELINES)},
        history=history, seconds=seconds, parameters=parameters, proof=proof,
        export=exporting.size_report(version, model), source_card=source.card,
        explanation=explanation,
    )  # fmt: skip
    if config.mlflow:
        observing.log_to_mlflow(config.mlflow, "image_classification", config, metrics, history)
    return metrics


def check(config: Config) -> None:
    """Say what a run would read and how long it would take; train nothing and write one picture."""
    data = load_data(config)
    print(checking.describe_counts(data))
    source = load_source(config.source, config.image_size)
    model = build_model(source, len(data.class_names), config)
    print(f"source: {source.card}\ninput {source.image_size} pixels, {source.feature_width} features")

    batches = training_batches(
        data.train.paths, lambda i: i, source.image_size, config.batch_size,
        seed=config.seed, augment=augmentations(config, data), resize=config.resize,
    )  # fmt: skip
    images, indices = next(batches.as_numpy_iterator())
    titles = [data.class_names[data.train.labels[i]] for i in indices[:24]]
    print(f"samples as trained on: {checking.write_sample_grid(Path(config.out) / 'samples.png', images[:24], titles)}")

    freezing.freeze(model, source.backbone, config.unfreeze, config.batch_norm)
    model.compile("adam", "categorical_crossentropy", jit_compile=training.use_xla())
    targets = np.eye(len(data.class_names), dtype="float32")[data.train.labels[indices]]
    step = checking.median_seconds(lambda: model.train_on_batch(images, targets))  # the weights are thrown away
    look = checking.median_seconds(lambda: source.extractor.predict_on_batch(images)) / len(images)
    looks = len(data.train) * config.views + len(data.val) + 3 * len(data.test)
    fits = fine_tuning_epochs(data, config) * (2 if "scratch" in config.baselines else 1)
    seconds = looks * look + fits * (steps_per_epoch(len(data.train), config.batch_size) * step + len(data.val) * look)
    print(f"estimate: {format_seconds(seconds)} of computing, and half a minute for the export and its proof")


# --- small things that the steps above share ----------------------------------------------------------------


def pictures(source: Source, paths: np.ndarray, config: Config) -> tf.data.Dataset:
    """Stream picture files in order, through the decoder that serving runs."""
    return image_batches(paths, source.image_size, 64, resize=config.resize)


def augmentations(config: Config, data: ImageSet) -> tuple[str, ...]:
    """Return the random changes; by default those that leave the class of these pictures as it is."""
    if config.augment == "auto":
        return data.safe_augmentations()
    return () if config.augment == "none" else tuple(config.augment.split(","))


def observed(config: Config, stage: str) -> dict:
    """Return where a stage saves what `--resume` needs, and who watches it."""
    callbacks = observing.tensorboard_callbacks(Path(config.out), stage) if config.tensorboard else ()
    checkpoint = Path(config.out) / "checkpoints" / f"{stage}.npz"
    return {"checkpoint": checkpoint, "save_every": config.save_every, "callbacks": callbacks}


def fine_tuning_epochs(data: ImageSet, config: Config) -> int:
    """Return the number of fine-tuning passes; 0 where nothing is to be unfrozen."""
    if config.unfreeze == "frozen":
        return 0
    steps = steps_per_epoch(len(data.train), config.batch_size)
    return max(5, ceil(60 / steps)) if config.epochs is None else config.epochs


def views_of_train(said: dict[str, np.ndarray], data: ImageSet, config: Config) -> list[tuple]:
    """Return (features, labels, weights) of each view of the training pictures."""
    return [(view, data.train.labels, sample_weights(data, config)) for view in said["train"]]


def _chosen_penalty(history: list[dict]) -> float:
    return min(history, key=lambda row: row["val_cross_entropy"])["penalty"]


def sample_weights(data: ImageSet, config: Config, labels: np.ndarray | None = None) -> np.ndarray:
    """Return how much each picture counts, float32 [n]: those with these labels, or those of the training part."""
    labels = data.train.labels if labels is None else labels
    if config.class_weights == "none":
        return np.ones(len(labels), "float32")
    return training.balanced_class_weights(data.train.labels, len(data.class_names))[labels]
