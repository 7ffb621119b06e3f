"""Pretrain your own small image backbone, and use it as a source for image_classification and object_detection.

    python -m recipes run pretraining --data folder:IMAGES --out runs/pretraining
    python -m recipes run image_classification --source preset:runs/pretraining/preset

A small ResNet is trained to classify a large labelled set. With `--teacher` it is also trained to match the features of
a stronger model (distillation, arXiv:1503.02531): a feature vector holds more information than a label. The
result is a KerasHub preset with its preprocessing and its card, and a report: the accuracy on the held-out test split.

Without arguments it trains on the demo digits: a small source, for a first try. `bundled:resnet_mini`, which
other recipes use offline, was made by this file; its card.json holds the command, the seconds and the accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from common import exporting, training
from common.checkpoints import fit_with_checkpoints
from common.classification import results
from common.classification.answers import LABELS
from common.classification.check import describe_counts
from common.errors import UserError
from common.exporting import Predictor
from common.flags import check_range, parse_data
from common.images.batches import (
    augment_images,
    image_batches,
    steps_per_epoch,
    training_batches,
    transform_images,
)
from common.images.dataset import ImageSet, load_image_set
from common.images.engine import warn_of_slow_bfloat16
from common.images.export import export_image_classifier, prove_image_classifier
from common.images.features import extract_features
from common.images.files import read_image
from common.images.folding import fold_batch_norm
from common.images.mixing import mix_images
from common.images.pixels import read_images
from common.images.preview import thumbnails, write_sample_grid
from common.images.sources import Source, load_source
from common.images.views import view_transforms
from common.linear_head import mean_and_std
from common.progress import format_seconds, median_seconds
from common.proof.prove import FreshProcess
from common.results import Outcome
from common.runs import Run
from common.serving.kit.write import write_serving_files
from common.sources.preset_card import write_preset_card
from common.sources.specs import parse_source

SCORES = ("accuracy", "macro_f1", "ece")
GALLERY = {"in": "many labelled images", "out": "a source for image recipes", "row": ""}
QUICK = "--limit 40 --epochs 1 --filters 64 64 --image-size 32"  # a run of seconds, for tests
EARLY = "common.images.listing:refuse_early"  # called before TensorFlow is imported
INPUT = "image"  # of the served model
PREDICTOR = Predictor(INPUT, read_image, LABELS)
GEOMETRY = ("crop", "rotate")  # augmentations that make a view for the teacher, too; the others are the network's alone
CONVERTER = "common.images.convert:CLASSIFIER"  # imported by `convert` alone


@dataclass(frozen=True)
class Config:
    """Settings of pretraining."""

    data: str = "demo:digits"  # Images to train on: demo:digits, folder:PATH, csv:PATH or tfds:NAME
    start: str | None = None  # Backbone to begin with, of the same sizes: preset:RUN/preset of an earlier run
    out: str = "runs/pretraining"  # Folder for everything this run writes; the preset is in OUT/preset
    resume: str | None = None  # Continue the run that was stopped in this folder; no other flag is needed
    save_every: float = 30.0  # Seconds between checkpoints: a killed run loses no more than that
    image_size: int = 64  # Side of the square input in pixels; smaller is faster
    filters: tuple[int, ...] = (64, 128, 256)  # Width of each stage of the ResNet; the first must be 64
    blocks: int = 2  # Residual blocks in each stage; more is slower and stronger
    teacher: str | None = None  # Stronger source for distillation, such as keras:MobileNetV2(size=128)
    teacher_weight: float = 2.0  # Weight of the teacher's loss; that of the labels is 1
    teacher_size: int | None = None  # Side of the teacher's input in pixels; its own by default
    teacher_views: int = 1  # Views of each image for teacher and network: itself, then crops of it; disk space grows
    mix: float = 0.0  # Share of the images that are blended with others (mixup, CutMix): for long trainings
    epochs: int = 30  # Epochs
    batch_size: int = 128  # Images per step
    learning_rate: float = 2e-3  # Peak learning rate, after warm-up; cosine decay
    weight_decay: float = 0.05  # Weight decay; increase it for small data sets
    label_smoothing: float = 0.1  # Label smoothing; reduces overconfidence
    mixed_precision: bool = False  # Train in bfloat16: faster where supported. The preset is float16
    val_share: float = 0.05  # Share of the training images used as validation; the test split is separate
    limit: int | None = None  # Use at most this many images of each split: a quick look
    strict: bool = False  # Stop at the first unreadable image instead of skipping and counting it
    licence: str = "as the training data"  # Licence written into the card of the preset
    seed: int = 0  # Seed of initial weights, shuffling and augmentation

    def __post_init__(self) -> None:
        parse_data(self.data, ("demo:digits", "folder", "csv", "tfds"))
        for flag, source in (("--teacher", self.teacher), ("--start", self.start)):
            if source:
                parse_source(source, flag)
        check_range(self, 1, inf, "teacher_size", "teacher_views")
        if not self.teacher and (self.teacher_size or self.teacher_views > 1):
            raise UserError("--teacher-size and --teacher-views need a --teacher. Try: --teacher bundled:mobilenet_v2")
        check_range(self, 0, 1, "mix")
        if not self.filters or self.filters[0] != 64:
            raise UserError(f"--filters must begin with 64 (KerasHub's ResNet). Received: {self.filters}.")
        if self.image_size < 8 * 2 ** len(self.filters) // 4:
            raise UserError(f"--image-size {self.image_size} is too small for {len(self.filters)} stages.")


def load_data(config: Config) -> ImageSet:
    """Read, check, decode and split the images."""
    return load_image_set(
        config.data, Path(config.out), (config.image_size, config.image_size), limit=config.limit,
        strict=config.strict, val_share=config.val_share,
    )  # fmt: skip


def load_start(config: Config) -> Source | None:
    """Return the source to begin with; None without one.

    Raises:
        UserError: it is not a network of this recipe with the same sizes.
    """
    if not config.start:
        return None
    try:
        source = load_source(config.start, config.image_size)
    except UserError as error:
        raise UserError(str(error).replace("--source", "--start")) from error
    ours = build_backbone(config)
    if [weight.shape for weight in source.backbone.weights] != [weight.shape for weight in ours.weights]:
        raise UserError(
            "--start must be a preset of this recipe with the same --filters and --blocks: "
            f"{config.filters}, {config.blocks}, {ours.count_params():,} parameters. Received: {config.start}, with "
            f"{source.backbone.count_params():,} parameters."
        )
    return source


def build_backbone(config: Config) -> keras.Model:
    """Return the ResNet with initial weights."""
    import keras_hub

    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=list(config.filters),
        stackwise_num_blocks=[config.blocks] * len(config.filters),
        stackwise_num_strides=[1] + [2] * (len(config.filters) - 1),
        block_type="basic_block",
        image_shape=(None, None, 3),
    )


def build_model(config: Config, classes: int, teacher_width: int) -> tuple[keras.Model, keras.Model]:
    """Return (model, backbone): pixels -> class probabilities and, with a teacher, its features."""
    backbone = build_backbone(config)
    pixels = keras.Input((config.image_size, config.image_size, 3), name="pixels")
    pooled = keras.layers.GlobalAveragePooling2D()(backbone(keras.layers.Rescaling(1 / 127.5, -1.0)(pixels)))
    outputs = {"classes": keras.layers.Dense(classes, activation="softmax", dtype="float32", name="classes")(pooled)}
    if teacher_width:
        outputs["teacher"] = keras.layers.Dense(teacher_width, dtype="float32", name="teacher")(pooled)
    return keras.Model(pixels, outputs), backbone


@dataclass(frozen=True)
class Teacher:
    """The teacher's `features` of the views of each training image, float32 [views, n, width], on disk.

    Attributes:
        features: as the teacher returns them.
        mean, std: of each feature, float32 [width].
        views: the geometry of each view, float32 [views, n, 8], as of `view_transforms`.
    """

    features: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    views: np.ndarray

    def of(self, views: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Return the standardised features of these views of these images, float32 [indices, width]."""
        return (self.features[views, indices] - self.mean) / self.std


def load_teacher(config: Config, data: ImageSet) -> Teacher | None:
    """Extract the teacher's features of each view of each training image once; None without a teacher."""
    if not config.teacher:
        return None
    try:
        source = load_source(config.teacher, config.teacher_size)
    except UserError as error:
        said = str(error).replace("--source", "--teacher").replace("--image-size", "--teacher-size")
        raise UserError(said) from error
    out = Path(config.out)
    pixels = read_images(data.train.paths, source.image_size, folder=out)
    geometry = [name for name in data.safe_augmentations() if name in GEOMETRY]
    views = {"augment": geometry, "views": config.teacher_views, "seed": config.seed}
    features = extract_features(
        source, pixels, out / "features", title="teacher", save_every=config.save_every, **views
    )
    return Teacher(features, *mean_and_std(features), view_transforms(len(pixels), data.train.pixels.size, **views))


def train(run: Run, data: ImageSet, model: keras.Model, teacher: Teacher | None) -> list[dict]:
    """Train all weights from scratch on labels and, with a teacher, on its features."""
    config = run.config
    steps = steps_per_epoch(len(data.train), config.batch_size)
    losses = {"classes": keras.losses.CategoricalCrossentropy(label_smoothing=config.label_smoothing)}
    weights = {"classes": 1.0}
    if teacher:
        losses["teacher"], weights["teacher"] = keras.losses.CosineSimilarity(), config.teacher_weight
    learner = fold_batch_norm(model)  # shares the weights
    learner.compile(
        optimizer=training.DiscriminativeAdamW(
            learning_rate=training.warmup_cosine(config.learning_rate, steps * config.epochs),
            weight_decay=config.weight_decay,
        ),
        loss=losses,
        loss_weights=weights,
        metrics={"classes": ["accuracy"]},
        jit_compile=training.use_xla(),
    )
    classifier = classifier_of(model)

    def validate(epoch, logs):
        probabilities = classifier.predict(image_batches(data.val.pixels, config.batch_size), verbose=0)
        logs["val_accuracy"] = float(np.mean(probabilities.argmax(axis=1) == data.val.labels))

    return fit_with_checkpoints(
        learner, lambda *first: training_stream(config, data, teacher, first), epochs=config.epochs,
        lines=training.EpochLines("pretraining", config.epochs, steps),
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=validate)], **run.saves("pretraining"),
    )  # fmt: skip


def main(config: Config) -> dict:
    """Run all steps: data -> teacher -> training -> preset -> evaluation -> export -> proof."""
    run = Run(config)
    config, clock = run.config, run.clock
    with clock("data"):
        data = load_data(config)
    print(f"{config.data}: {data.counts()}, {len(data.class_names)} classes")
    start = load_start(config)
    run.remember(data, *([start] if start else []))
    if config.mixed_precision:
        warn_of_slow_bfloat16()
    with clock("features"):
        teacher = load_teacher(config, data)
    keras.utils.set_random_seed(config.seed)
    with training.dtype_policy("mixed_bfloat16" if config.mixed_precision else "float32"):
        model, backbone = build_model(config, len(data.class_names), teacher.features.shape[-1] if teacher else 0)
    if start:
        backbone.set_weights(start.backbone.get_weights())
    with clock("pretraining"):
        history = train(run, data, model, teacher)
    return finish(run, data, model, backbone, history, start)


def finish(
    run: Run, data: ImageSet, model: keras.Model, backbone: keras.Model, history: list[dict], start: Source | None
) -> dict:
    """Save the preset, measure it on the test split, export it as a classifier of its classes, and prove the export."""
    config, out, clock = run.config, run.out, run.clock
    process = FreshProcess()  # of the proof; it imports TensorFlow meanwhile
    preset = save_preset(config, backbone)
    served = build_served(preset, model)
    with clock("evaluate"):
        probabilities = served.predict(image_batches(data.test.pixels, config.batch_size), verbose=0)
    with clock("export"):
        example, folder = Path(data.train.paths[0]), out / "serving" / "pretraining"
        version = export_image_classifier(served, folder, data.class_names, example=example)
        write_serving_files(out / "serving", "pretraining", input_name=INPUT, example=Path(data.test.paths[0]))
        proof = prove_image_classifier(
            version, data.test.paths, probabilities, data.class_names, process, data.test.pixels.hashes
        )
    use = f"python -m recipes run image_classification --source preset:{preset} --data folder:PHOTOS"
    parameters = {"total": served.count_params(), "backbone": backbone.count_params()}
    card = {"spec": f"preset:{preset}", "origin": "this run", "licence": config.licence, "data": config.data}
    outcome = Outcome(history, clock.report(), parameters, card, proof, exporting.size_report(version, served))
    metrics = results.conclude(
        "pretraining", config, data, outcome, exported=config.seed, probabilities={config.seed: probabilities},
        baselines={}, titles={}, what="images", preview=thumbnails(data.test.paths), advice=(f"Use it: {use}",),
    )  # fmt: skip
    trained_on = f"{config.data}: {len(data.train):,} images of {len(data.class_names)} classes"
    more = {"teacher": config.teacher} | ({"start": start.card} if start else {})
    write_preset_card(preset, "pretraining", config, trained_on, metrics, **more)
    return metrics


def check(config: Config) -> None:
    """Print what a run would read and how long it would take, and write a sheet of samples; nothing is trained."""
    load_start(config)
    data = load_data(config)
    print(describe_counts(data))
    images, targets = next(training_stream(config, data, None).as_numpy_iterator())
    titles = [data.class_names[row.argmax()] for row in targets["classes"][:24]]
    print(f"samples as trained on: {write_sample_grid(Path(config.out) / 'samples.png', images[:24], titles)}")
    with training.dtype_policy("mixed_bfloat16" if config.mixed_precision else "float32"):
        model, backbone = build_model(config, len(data.class_names), 0)
    print(f"backbone: {backbone.count_params():,} parameters, {2 * backbone.count_params() / 2**20:.1f} MB as a preset")
    learner = fold_batch_norm(model)
    learner.compile("adam", {"classes": "categorical_crossentropy"}, jit_compile=training.use_xla())
    step = median_seconds(lambda: learner.train_on_batch(images, targets))  # the weights are discarded
    seconds = config.epochs * steps_per_epoch(len(data.train), config.batch_size) * step
    print(f"estimate: {format_seconds(seconds)} of training{', plus the teacher' if config.teacher else ''}")


# --- helpers of the steps above ------------------------------------------------------------------------------


def training_stream(
    config: Config, data: ImageSet, teacher: Teacher | None, first: tuple[int, int] = (0, 0)
) -> tf.data.Dataset:
    """Stream augmented training images with their targets, {"classes", "teacher"}, from (epoch, step) on."""
    labels, steps = tf.constant(data.train.labels), steps_per_epoch(len(data.train), config.batch_size)
    augment, views = data.safe_augmentations(), len(teacher.views) if teacher else 1
    if views > 1:  # the network gets the views that the teacher got, another one in each epoch
        transforms, augment = tf.constant(teacher.views), [name for name in augment if name not in GEOMETRY]

    def finish(step, batch):
        images, indices = batch
        seed, view = tf.stack([tf.cast(config.seed, tf.int64), step]), (indices + step // steps) % views
        if views > 1:
            images = transform_images(images, tf.gather_nd(transforms, tf.stack([view, indices], axis=1)))
        images = augment_images(images, augment, seed)
        targets = {"classes": tf.one_hot(tf.gather(labels, indices), len(data.class_names))}
        if teacher:
            features = tf.numpy_function(teacher.of, [view, indices], tf.float32)
            targets["teacher"] = tf.ensure_shape(features, (None, teacher.features.shape[-1]))
        if config.mix:
            other = tf.random.experimental.stateless_fold_in(seed, tf.constant(1, tf.int64))
            images, targets = mix_images(images, targets, config.mix, other)
        return images, targets

    shuffled = training_batches(
        data.train.pixels, lambda indices: indices, config.batch_size, seed=config.seed, first=first
    )
    return shuffled.enumerate(first[0] * steps + first[1]).map(finish, num_parallel_calls=2).prefetch(4)


def classifier_of(model: keras.Model) -> keras.Model:
    """Return the served part of the model: pixels -> class probabilities."""
    return keras.Model(model.input, model.output["classes"])


def save_preset(config: Config, backbone: keras.Model) -> Path:
    """Write the backbone as a KerasHub preset with its preprocessing; weights as float16, half the size."""
    import keras_hub

    half = type(backbone).from_config(backbone.get_config() | {"dtype": "float16"})
    half.set_weights(backbone.get_weights())
    preset = Path(config.out) / "preset"
    half.save_to_preset(str(preset))
    size = (config.image_size, config.image_size)
    converter = keras_hub.layers.ResNetImageConverter(image_size=size, scale=1 / 127.5, offset=-1.0)
    keras_hub.models.ResNetImageClassifierPreprocessor(converter).save_to_preset(str(preset))
    return preset


def build_served(preset: Path, model: keras.Model) -> keras.Model:
    """Return pixels -> class probabilities on the saved backbone, so that the measured weights are the saved ones."""
    source = load_source(f"preset:{preset}")
    kernel, bias = model.get_layer("classes").get_weights()
    head = keras.layers.Dense(len(bias), activation="softmax", name="head")
    served = keras.Model(source.extractor.input, head(source.extractor.output))
    head.set_weights([kernel, bias])
    return served
