"""Pre-train your own small backbone on labelled pictures, and use it as a source in every other recipe.

    python -m recipes run pretraining --data folder:PICTURES --out runs/pretraining
    python -m recipes run image_classification --source preset:runs/pretraining/preset

A small ResNet learns to tell the classes of a large labelled set apart. With `--teacher` it also learns to
say what a stronger model says about each picture (distillation, arXiv:1503.02531): a teacher's feature vector
tells more about a picture than its one label. What comes out is a KerasHub preset with its preprocessing
and its card, and a report card of its own: the accuracy on the held-out part of the source data.

With no arguments it trains on the demo digits: a small source, for seeing how it works.
`bundled:resnet_mini`, the source that the other recipes use offline, was made by this file; its card.json
holds the command, the seconds and the accuracy. (Self-supervised pre-training, from pictures without
labels, has its place beside `train` and comes later.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from common import checking, exporting, features, runs, training
from common.checkpoints import fit_with_checkpoints
from common.concluding import conclude
from common.data.image_sets import ImageSet, load_image_set
from common.data.images import image_batches, steps_per_epoch, training_batches
from common.errors import UserError
from common.progress import format_seconds
from common.serving.files import write_serving_files
from common.sources import load_source
from common.specs import parse_data, parse_source


@dataclass(frozen=True)
class Config:
    """Settings of pretraining."""

    data: str = "demo"
    """Pictures to learn from: demo, folder:PATH, csv:PATH or tfds:NAME."""
    out: str = "runs/pretraining"
    """Folder for everything this run writes; the preset is in OUT/preset."""
    resume: str | None = None
    """Go on with the run that was stopped in this folder, with its settings; no other flag is needed."""
    save_every: float = 30.0
    """Seconds between checkpoints: a killed run loses no more than that."""
    image_size: int = 64
    """Side of the square input in pixels; smaller is faster."""
    filters: tuple[int, ...] = (64, 128, 256)
    """Width of each stage of the ResNet; more stages see more of the picture. The first must be 64."""
    blocks: int = 2
    """Residual blocks in each stage; more is slower and stronger."""
    teacher: str | None = None
    """A stronger source to learn from as well, such as keras:MobileNetV2(size=128)."""
    teacher_weight: float = 2.0
    """How much the teacher counts against the labels."""
    epochs: int = 30
    """Passes over the training pictures."""
    batch_size: int = 128
    """Pictures in a step."""
    learning_rate: float = 2e-3
    """Peak of the learning rate; it warms up and then falls along a cosine."""
    weight_decay: float = 0.05
    """Pulls the weights towards zero: more of it for fewer pictures."""
    label_smoothing: float = 0.1
    """Share of the target that is spread over all classes; keeps the network from overconfidence."""
    mixed_precision: bool = False
    """Compute in bfloat16: faster on processors and GPUs that have it. What is saved is float16."""
    val_share: float = 0.05
    """Share of the training pictures held out to watch the training; the test part is apart from it."""
    limit: int | None = None
    """Use at most this many pictures of each part: a quick look."""
    strict: bool = False
    """Stop at the first unreadable picture instead of skipping and counting it."""
    licence: str = "as the training data"
    """Licence written into the card of the preset."""
    seed: int = 0
    """Decides initial weights, order and augmentation."""

    def __post_init__(self) -> None:
        parse_data(self.data, ("demo", "folder", "csv", "tfds"))
        if self.teacher:
            parse_source(self.teacher)
        if not self.filters or self.filters[0] != 64:
            raise UserError(f"--filters must begin with 64 (KerasHub's ResNet). Received: {self.filters}.")
        if self.image_size < 8 * 2 ** len(self.filters) // 4:
            raise UserError(f"--image-size {self.image_size} is too small for {len(self.filters)} stages.")


def load_data(config: Config) -> ImageSet:
    """Read, check and split the pictures."""
    return load_image_set(
        config.data, Path(config.out), limit=config.limit, strict=config.strict, val_share=config.val_share
    )


def build_model(config: Config, classes: int, teacher_width: int) -> tuple[keras.Model, keras.Model]:
    """Return (model, backbone): pixels -> class probabilities, and where there is a teacher its features too."""
    import keras_hub

    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=list(config.filters),
        stackwise_num_blocks=[config.blocks] * len(config.filters),
        stackwise_num_strides=[1] + [2] * (len(config.filters) - 1),
        block_type="basic_block",
        image_shape=(None, None, 3),
    )
    pixels = keras.Input((config.image_size, config.image_size, 3), name="pixels")
    pooled = keras.layers.GlobalAveragePooling2D()(backbone(keras.layers.Rescaling(1 / 127.5, -1.0)(pixels)))
    outputs = {"classes": keras.layers.Dense(classes, activation="softmax", dtype="float32", name="classes")(pooled)}
    if teacher_width:
        outputs["teacher"] = keras.layers.Dense(teacher_width, dtype="float32", name="teacher")(pooled)
    return keras.Model(pixels, outputs), backbone


@dataclass(frozen=True)
class Teacher:
    """What a teacher said of each training picture: on disk, standardised when it is read."""

    said: np.ndarray  # float32 [pictures, width], a memory map
    mean: np.ndarray
    std: np.ndarray

    def of(self, indices: np.ndarray) -> np.ndarray:
        """Return float32 [indices, width]."""
        return (self.said[indices] - self.mean) / self.std


def ask_teacher(config: Config, data: ImageSet) -> Teacher | None:
    """Let the teacher look at each training picture once; None without a teacher."""
    if not config.teacher:
        return None
    source = load_source(config.teacher)
    said = features.extract_features(
        source, data.train.paths, Path(config.out) / "features", title="teacher", save_every=config.save_every
    )
    return Teacher(said[0], *features.mean_and_std(said))


def train(config: Config, data: ImageSet, model: keras.Model, teacher: Teacher | None) -> list[dict]:
    """Train all weights from scratch on labels and, where there is one, the teacher."""
    labels = tf.constant(data.train.labels)

    def targets(indices):
        wanted = {"classes": tf.one_hot(tf.gather(labels, indices), len(data.class_names))}
        if teacher:
            wanted["teacher"] = tf.numpy_function(teacher.of, [indices], tf.float32)
            wanted["teacher"].set_shape((None, teacher.said.shape[1]))
        return wanted

    steps = steps_per_epoch(len(data.train), config.batch_size)
    losses = {"classes": keras.losses.CategoricalCrossentropy(label_smoothing=config.label_smoothing)}
    weights = {"classes": 1.0}
    if teacher:
        losses["teacher"], weights["teacher"] = keras.losses.CosineSimilarity(), config.teacher_weight
    model.compile(
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

    def watch(epoch, logs):
        pictures = image_batches(data.val.paths, model.input.shape[1:3], config.batch_size)
        probabilities = classifier.predict(pictures, verbose=0)
        logs["val_accuracy"] = float(np.mean(probabilities.argmax(axis=1) == data.val.labels))

    return fit_with_checkpoints(
        model,
        lambda *first: shuffled_batches(config, data, targets, first),
        epochs=config.epochs,
        lines=training.EpochLines("pretraining", config.epochs, steps),
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=watch)],
        checkpoint=Path(config.out) / "checkpoints" / "pretraining.npz",
        save_every=config.save_every,
    )


def shuffled_batches(config: Config, data: ImageSet, targets, first: tuple[int, int] = (0, 0)) -> tf.data.Dataset:
    """Stream augmented training pictures with their targets, a function of indices, from (epoch, step) on."""
    return training_batches(
        data.train.paths, targets, (config.image_size, config.image_size), config.batch_size,
        seed=config.seed, augment=data.safe_augmentations(), first=first,
    )  # fmt: skip


def classifier_of(model: keras.Model) -> keras.Model:
    """Return the part of the model that serves: pixels -> class probabilities."""
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
    """Return pixels -> class probabilities on the backbone as it was saved: what is measured is what is used."""
    source = load_source(f"preset:{preset}")
    kernel, bias = model.get_layer("classes").get_weights()
    head = keras.layers.Dense(len(bias), activation="softmax", name="head")
    served = keras.Model(source.extractor.input, head(source.extractor.output))
    head.set_weights([kernel, bias])
    return served


def main(config: Config) -> dict:
    """Run the whole story: data -> teacher -> training -> preset -> evaluation -> export -> proof."""
    config = runs.start(config)
    out = Path(config.out)
    clock = runs.Stopwatch(out / "checkpoints" / "seconds.json")
    with clock("data"):
        data = load_data(config)
    runs.remember_inputs(out, data.fingerprint())
    print(f"{config.data}: {data.counts()}, {len(data.class_names)} classes")
    with clock("features"):
        teacher = ask_teacher(config, data)
    keras.utils.set_random_seed(config.seed)
    with training.dtype_policy("mixed_bfloat16" if config.mixed_precision else "float32"):
        model, backbone = build_model(config, len(data.class_names), teacher.said.shape[1] if teacher else 0)
    with clock("pretraining"):
        history = train(config, data, model, teacher)
    return finish(config, data, model, backbone, history, clock)


def finish(
    config: Config,
    data: ImageSet,
    model: keras.Model,
    backbone: keras.Model,
    history: list[dict],
    clock: runs.Stopwatch,
) -> dict:
    """Save the preset, measure it on the test part, export it as a classifier of its own classes, and prove that."""
    out = Path(config.out)
    preset = save_preset(config, backbone)
    served = build_served(preset, model)
    size = (config.image_size, config.image_size)
    with clock("evaluate"):
        probabilities = served.predict(image_batches(data.test.paths, size, config.batch_size), verbose=0)
    with clock("export"):
        example = Path(data.train.paths[0])
        folder = out / "serving" / "pretraining"
        version = exporting.export_image_classifier(served, folder, data.class_names, example=example)
        write_serving_files(out / "serving", "pretraining", input_name="image", example=Path(data.test.paths[0]))
        proof = exporting.prove_image_classifier(version, data.test.paths, probabilities, data.class_names)
    seconds = clock.report()
    use = f"python -m recipes run image_classification --source preset:{preset} --data folder:PHOTOS"
    metrics = conclude(
        "pretraining", config, data, probabilities=probabilities, baselines={}, history=history, seconds=seconds,
        parameters={"total": served.count_params(), "backbone": backbone.count_params()}, proof=proof,
        export=exporting.size_report(version, served), advice=(f"Use it: {use}",),
        source_card={"spec": f"preset:{preset}", "origin": "this run", "licence": config.licence, "data": config.data},
    )  # fmt: skip
    card = {
        "licence": config.licence,
        "data": f"{config.data}: {len(data.train):,} pictures of {len(data.class_names)} classes",
        "teacher": config.teacher,
        "command": runs.command("pretraining", config),
        "seconds": seconds,
        "test": metrics["test"],
        "versions": metrics["versions"],
    }
    runs.write_json(preset / "card.json", card)
    return metrics


def check(config: Config) -> None:
    """Say what a run would read and how long it would take; train nothing and write one picture."""
    data = load_data(config)
    print(checking.describe_counts(data))
    images, indices = next(shuffled_batches(config, data, lambda i: i).as_numpy_iterator())
    titles = [data.class_names[data.train.labels[i]] for i in indices[:24]]
    print(f"samples as trained on: {checking.write_sample_grid(Path(config.out) / 'samples.png', images[:24], titles)}")
    with training.dtype_policy("mixed_bfloat16" if config.mixed_precision else "float32"):
        model, backbone = build_model(config, len(data.class_names), 0)
    print(f"backbone: {backbone.count_params():,} parameters, {2 * backbone.count_params() / 2**20:.1f} MB as a preset")
    model.compile("adam", {"classes": "sparse_categorical_crossentropy"}, jit_compile=training.use_xla())
    labels = {"classes": data.train.labels[indices]}
    step = checking.median_seconds(lambda: model.train_on_batch(images, labels))  # the weights are thrown away
    seconds = config.epochs * steps_per_epoch(len(data.train), config.batch_size) * step
    print(f"estimate: {format_seconds(seconds)} of training{', and the teacher' if config.teacher else ''}")
