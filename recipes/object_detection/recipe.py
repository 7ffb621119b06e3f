"""Detect objects: from images with bounding boxes to a proved SavedModel that finds boxes in any photo.

    python -m recipes run object_detection                              # demo: blood cells under a microscope
    python -m recipes run object_detection --data voc:FOLDER --source mobilenet_v2 --out runs/mine

FOLDER holds images and Pascal VOC XML; coco:, csv:, yolo: and tfds: work as well. A detection head is trained on the
feature maps of a pretrained backbone: first the head alone, then both, with a lower learning rate for the backbone.
--detector selects the head: a compact one on a single grid, RetinaNet, or YOLOv8. The report shows AP as COCO defines
it, next to the baselines, with missed objects and false positives. The SavedModel takes the bytes of images of any
size, returns boxes in pixels of each image, and is proved in a fresh process to reproduce the evaluation.

Measured results, with commands and machine: `python -m recipes show object_detection`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, inf
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np
import tensorflow as tf

from common import exporting, freezing, training
from common.checkpoints import fit_with_checkpoints
from common.detection import results
from common.detection.answers import BOXES
from common.detection.batches import input_size, training_batches
from common.detection.build import build_detector
from common.detection.dataset import BoxSet, load_box_set
from common.detection.detector import Detector
from common.detection.drawing import write_sheet
from common.detection.inference import build_finder, detect, export_detector, prove_detector
from common.detection.matching import recommend_threshold, threshold_table
from common.detection.metrics import Detections, evaluate
from common.exporting import Predictor
from common.flags import check_choice, check_range, parse_baselines, parse_list
from common.images.files import read_image
from common.images.folding import fold_batch_norm
from common.images.sources import Source
from common.progress import format_seconds, median_seconds
from common.proof.prove import FreshProcess
from common.results import Outcome
from common.runs import Run
from common.serving.kit.write import write_serving_files
from common.sources.specs import parse_source

BASELINES = {"frozen": "Frozen backbone, trained head", "scratch": "From scratch"}
SCORES = ("ap50", "ap", "ap75")
SOURCES = ("resnet_mini", "mobilenet_v2", "resnet50")
GALLERY = {"in": "images with boxes", "out": "boxes, labels, scores", "row": "bccd"}
QUICK = "--limit 12 --epochs 1 --image-size 64 --stride 8 --width 16"  # a run of seconds, for tests
EARLY = "common.detection.readers.table:refuse_early"  # called before TensorFlow is imported
INPUT = "image"  # of the served model
PREDICTOR = Predictor(INPUT, read_image, BOXES)
CONVERTER = "common.detection.convert:DETECTOR"  # imported by `convert` alone
DEMOS = {"demo": (192, 4, 10), "demo:scenes": (128, 4, 4)}  # image size, stride and epochs by default
AUGMENTATIONS = ("flip", "scale", "crop", "color")
DETECTORS = ("one_grid", "fcos", "retinanet", "yolov8")  # fcos: an older name of one_grid


@dataclass(frozen=True)
class Config:
    """Settings of object_detection."""

    data: str = "demo"  # demo, demo:scenes, voc:FOLDER, coco:FILE_OR_FOLDER, csv:TABLE, yolo:FOLDER or tfds:NAME
    class_names: tuple[str, ...] = ()  # Train on these classes only; everything else is background
    source: str = "bundled:resnet_mini"  # Backbone: bundled:resnet_mini, mobilenet_v2 (better), keras:NAME, preset:...
    out: str = "runs/object_detection"  # Folder for everything this run writes
    resume: str | None = None  # Continue the run that was stopped in this folder; no other flag is needed
    save_every: float = 30.0  # Seconds between checkpoints: a killed run loses no more than that
    detector: str = "one_grid"  # one_grid (small, no anchors), retinanet (KerasHub) or yolov8 (keras-cv)
    image_size: int | None = (
        None  # Longer side of the input in pixels; 320 by default, 192 for demo, 128 for demo:scenes
    )
    stride: int | None = None  # Of one_grid: pixels per cell; 4 finds smaller objects. 8 by default, 4 for the demos
    width: int = 96  # Of one_grid: channels of neck and head; more is slower and stronger
    head_epochs: int = 1  # Epochs in which only neck and head are trained
    epochs: int | None = (
        None  # Epochs in which the backbone is trained too; 12 or more by default, 10 for demo, 4 for demo:scenes
    )
    batch_size: int = 8  # Images per step
    learning_rate: float = 2e-3  # Peak learning rate of neck and head, after warm-up; cosine decay
    backbone_rate: float = 0.3  # Learning rate of the backbone, as a factor of the head's
    weight_decay: float = 1e-4  # Weight decay
    augment: str | None = None  # Some of flip,scale,crop,color, or none; all by default, for demo:scenes all but scale
    mosaic: float = 0.0  # Fraction of training images combined from four
    batch_norm: str = "frozen"  # BatchNorm of the backbone: frozen keeps its statistics, train adapts them
    baselines: str = "none"  # To compare with: frozen, scratch (each as long as the run), or none
    limit: int | None = None  # Use at most this many images of each split: a quick look
    strict: bool = False  # Stop at the first image or box that cannot be used instead of counting it
    seed: int = 0  # Seed of initial weights, shuffling and augmentation; the split depends on the images alone

    redefined: ClassVar[dict] = {"data": ("demo", 2, "its --data demo was generated scenes, which are now --data "
                                          "demo:scenes; --data demo is now images of blood cells")}  # fmt: skip

    def __post_init__(self) -> None:
        parse_source(self.source)
        check_choice("--detector", self.detector, DETECTORS)
        check_choice("--batch-norm", self.batch_norm, ("frozen", "train"))
        augmentations(self)
        parse_baselines(self.baselines, BASELINES)
        if self.stride not in (None, 4, 8):
            raise ValueError(f"--stride must be 4 or 8. Received: {self.stride}.")
        check_range(self, 1, inf, "batch_size", "limit")
        check_range(self, 8, 1024, "width")
        check_range(self, 64, 4096, "image_size")
        check_range(self, 0, inf, "save_every", "head_epochs", "epochs", "learning_rate", "weight_decay", "seed")
        check_range(self, 0, 1, "mosaic", "backbone_rate")


def load_data(config: Config) -> BoxSet:
    """Read, check and split the images and their boxes."""
    return load_box_set(
        config.data, Path(config.out), limit=config.limit, strict=config.strict,
        class_names=config.class_names or None,
    )  # fmt: skip


def build_model(data: BoxSet, config: Config, *, random_weights: bool = False) -> tuple[Source, Detector]:
    """Load the pretrained backbone and build a detector on it; the input has the aspect ratio of the median image."""
    side, stride, *_ = DEMOS.get(config.data, (320, 8))
    size, stride = input_size(data.train.as_stored().sizes, config.image_size or side), config.stride or stride
    return build_detector(
        config.detector, config.source, data, size, stride=stride, width=config.width, random_weights=random_weights
    )


def train(run: Run, source: Source, detector: Detector, data: BoxSet, stage: str) -> tuple[list[dict], int]:
    """Train one stage: `head`, `finetune`, or for a baseline `frozen` or `scratch`.

    Returns:
        (history rows, number of trained parameters).
    """
    config, model = run.config, detector.model
    policy = "frozen" if stage in ("head", "frozen") else "all"
    counts = freezing.freeze(model, source.backbone, policy, "train" if stage == "scratch" else config.batch_norm)
    print(f"{stage}: {counts}")
    steps = ceil(len(data.train) / config.batch_size)
    head, finetune = config.head_epochs, fine_tuning_epochs(data, config)
    epochs = {"head": head, "finetune": finetune}.get(stage, head + finetune)

    def batches_from(epoch, step):
        return training_stream(data, source.image_size, config, first=(epoch, step)).map(detector.targets, 2)

    detector = replace(detector, model=fold_batch_norm(model))  # shares the weights
    find = build_finder(detector)

    def validate(epoch, logs):  # the best epoch is chosen by its boxes
        found = evaluate(data.val, detect(find, data.val), data.class_names)
        logs["val_ap50"], logs["val_ap"] = found["ap50"] or 0.0, found["ap"] or 0.0

    compile_detector(detector, source, config, steps=epochs * steps, scratch=stage == "scratch")
    history = fit_with_checkpoints(
        detector.model, batches_from, epochs=epochs, lines=training.EpochLines(stage, epochs, steps, ("ap50",)),
        # By AP, not AP50: with a small val split, many epochs have the same AP50, early ones by chance. By the loss
        # while nothing is found yet.
        keep=training.KeepBest(None, rank=lambda logs: (round(logs["val_ap"], 4), logs["val_ap50"], -logs["loss"])),
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=validate)], **run.saves(stage),
    )  # fmt: skip
    return history, counts.parameters


def main(config: Config) -> dict:
    """Run every step: data -> source -> head -> fine-tuning -> evaluation -> export -> proof -> report."""
    run = Run(config)
    config, out, clock = run.config, run.out, run.clock
    with clock("data"):
        data = load_data(config)
    print(f"{config.data}: {data.counts()}, {len(data.class_names)} classes")
    keras.utils.set_random_seed(config.seed)
    source, detector = build_model(data, config)
    run.remember(data)
    process = FreshProcess()  # of the proof; it imports TensorFlow meanwhile
    parameters, history = {"total": detector.model.count_params()}, []
    for stage in ("head", "finetune"):
        with clock(stage):
            rows, parameters[f"trainable_{stage}"] = train(run, source, detector, data, stage)
        history += rows
    with clock("evaluate"):
        served = replace(detector, model=fold_batch_norm(detector.model, for_serving=True))
        find = build_finder(served)
        val_detections, detections = detect(find, data.val), detect(find, data.test, title="test images")
    baselines = {}
    for name in parse_baselines(config.baselines, BASELINES):
        with clock(f"baseline_{name}"):
            found, rows = train_baseline(name, run, data)
        baselines[name], history = (found, clock.report()[f"baseline_{name}"]), history + rows

    with clock("export"):
        exporting.save_keras_model(detector.model, out / "model.keras")  # to continue training; the rest is for serving
        version = export_detector(
            served, out / "serving" / "object_detection", data.class_names,
            threshold=recommend_threshold(threshold_table(data.val, val_detections)),
            example=Path(data.train.paths[0]),
        )  # fmt: skip
        example = Path(data.test.paths[0])
        write_serving_files(out / "serving", "object_detection", input_name=INPUT, example=example)
        proof = prove_detector(version, data.test, detections, data.class_names, process)

    card, size = {"spec": config.source, **source.card}, exporting.size_report(version, detector.model)
    return results.conclude(
        "object_detection", config, data, Outcome(history, clock.report(), parameters, card, proof, size),
        detections=detections, val_detections=val_detections, baselines=baselines, titles=BASELINES,
    )  # fmt: skip


def check(config: Config) -> None:
    """Print what a run would read and estimate its time, without training; draw one sheet of training images."""
    data = load_data(config)
    print(f"{config.data}: {data.counts()}")
    for split, counts in data.box_counts().items():
        print(f"  boxes in {split}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    print(*(f"  {sentence}" for sentence in data.advice()), sep="\n")
    source, detector = build_model(data, config)
    freezing.freeze(detector.model, source.backbone, "all", config.batch_norm)
    detector = replace(detector, model=fold_batch_norm(detector.model))  # as it is trained
    model = detector.model
    print(f"source: {source.card}\ninput: {source.image_size} pixels, {model.count_params():,} parameters")

    stream = training_stream(data, source.image_size, config)
    images, boxes, labels = next(stream.as_numpy_iterator())
    sheet = write_sheet(Path(config.out) / "samples.png", images, boxes, labels, data.class_names)
    print(f"samples as trained on: {sheet}")
    compile_detector(detector, source, config, steps=1, scratch=False)
    batch = next(stream.map(detector.targets).as_numpy_iterator())
    step = median_seconds(lambda: model.train_on_batch(*batch))  # the weights are discarded
    find, count = build_finder(detector), len(images)
    letterboxed = images, np.ones((count, 2), "float32"), np.tile(np.int32(source.image_size), (count, 1))
    forward = median_seconds(lambda: find(*letterboxed)) / count
    epochs = config.head_epochs + fine_tuning_epochs(data, config)
    seconds_per_epoch = ceil(len(data.train) / config.batch_size) * step + len(data.val) * forward
    seconds = (1 + len(parse_baselines(config.baselines, BASELINES))) * epochs * seconds_per_epoch
    print(f"estimate: {format_seconds(seconds)} of computation, and half a minute for export and proof")


# --- helpers of these steps ----------------------------------------------------------------------------------


def training_stream(data: BoxSet, size: tuple[int, int], config: Config, first=(0, 0)) -> tf.data.Dataset:
    """Stream augmented images with their boxes and labels, from (epoch, step) on."""
    names = augmentations(config)
    if not data.mirrors:  # a mirrored digit is not the same digit
        names = tuple(name for name in names if name != "flip")
    return training_batches(
        data.train, size, config.batch_size, seed=config.seed, augment=names, mosaic=config.mosaic, first=first
    )


def augmentations(config: Config) -> tuple[str, ...]:
    """Return the names of the augmentations."""
    if config.augment is None:
        return tuple(name for name in AUGMENTATIONS if config.data != "demo:scenes" or name != "scale")
    names = parse_list("--augment", config.augment, AUGMENTATIONS, alone=("none",))
    return () if names == ("none",) else names


def compile_detector(detector: Detector, source: Source, config: Config, *, steps: int, scratch: bool) -> None:
    """Set optimizer and losses; the backbone has a lower learning rate, unless its weights are random."""
    optimizer = training.DiscriminativeAdamW(
        learning_rate=training.warmup_cosine(config.learning_rate, steps), weight_decay=config.weight_decay,
        slower=[] if scratch else [(source.backbone.weights, config.backbone_rate)], global_clipnorm=10.0,
    )  # fmt: skip
    detector.model.compile(optimizer=optimizer, **detector.losses, jit_compile=training.use_xla())


def train_baseline(name: str, run: Run, data: BoxSet) -> tuple[Detections, list[dict]]:
    """Train a baseline for as many epochs, from the pretrained or from random weights."""
    keras.utils.set_random_seed(run.config.seed)
    source, detector = build_model(data, run.config, random_weights=name == "scratch")
    rows, _ = train(run, source, detector, data, name)
    return detect(build_finder(detector), data.test), rows


def fine_tuning_epochs(data: BoxSet, config: Config) -> int:
    """Return the number of fine-tuning epochs: more for small data sets, to have enough steps."""
    if config.epochs is not None:
        return config.epochs
    *_, of_demo = DEMOS.get(config.data, (None,))
    return of_demo or max(12, ceil(360 * config.batch_size / len(data.train)))
