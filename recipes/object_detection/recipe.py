"""Find objects and name them: from pictures with boxes to a proven SavedModel that draws boxes on any photo.

    python -m recipes run object_detection                              # handwritten digits in textured scenes
    python -m recipes run object_detection --data voc:FOLDER --source mobilenet_v2 --out runs/mine

FOLDER holds pictures and Pascal VOC xml; coco:, csv:, yolo: and tfds: work as well. A pretrained backbone gives feature
maps, and a head learns from them where the objects are: first the head alone, then the backbone with it, more slowly.
--detector says which head: a compact one without anchors, RetinaNet, or YOLOv8. The report shows AP as COCO counts it,
beside the baselines, what was missed and what was imagined. The SavedModel takes the bytes of pictures of any size,
gives boxes in their own pixels, and has been proved in a fresh process to find what the evaluation saw.

What to expect, measured, with commands and machine: `python -m recipes show object_detection`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from common import anchor_free, anchors, exporting, freezing, retinanet, runs, training, yolov8
from common.checking import median_seconds, write_sample_grid
from common.checkpoints import fit_with_checkpoints
from common.data import box_images
from common.data.box_sets import BoxSet, load_box_set
from common.detecting import MOST, build_finder, detect, export_detector, prove_detector
from common.detection_metrics import Detections, evaluate, recommend_threshold, threshold_table
from common.detection_report import conclude
from common.detectors import Detector
from common.drawing import draw_boxes
from common.progress import format_seconds
from common.serving.files import write_serving_files
from common.sources import Source, load_source
from common.specs import check_choice, check_range, parse_baselines, parse_list, parse_source

BASELINES = ("frozen", "scratch")
AUGMENTATIONS = ("flip", "scale", "crop", "color")  # those of box_images, which a wrong flag must not import


@dataclass(frozen=True)
class Config:
    """Settings of object_detection."""

    data: str = "demo"
    """Pictures with boxes: demo, voc:FOLDER, coco:FILE_OR_FOLDER, csv:TABLE, yolo:FOLDER or tfds:NAME."""
    class_names: tuple[str, ...] = ()
    """Learn only these classes; everything else is background."""
    source: str = "bundled:resnet_mini"
    """Pretrained backbone: bundled:resnet_mini, mobilenet_v2 (better, fetched), keras:NAME, preset:...; with --detector
    retinanet also a whole detector, for example preset:retinanet_resnet50_fpn_coco."""
    out: str = "runs/object_detection"
    """Folder for everything this run writes."""
    resume: str | None = None
    """Go on with the run that was stopped in this folder, with its settings; no other flag is needed."""
    save_every: float = 30.0
    """Seconds between checkpoints: a killed run loses no more than that."""
    detector: str = "fcos"
    """What learns: fcos (small, without anchors), retinanet (of KerasHub) or yolov8 (of keras-cv, not on
    bundled:resnet_mini); see the README."""
    image_size: int | None = None
    """Longer side of the input in pixels; the other follows the pictures. The default is 128 for demo, else 320."""
    stride: int | None = None
    """Of fcos: pixels of a cell. 4 finds smaller objects and takes longer; the default is 4 for demo, else 8."""
    width: int = 96
    """Of fcos: channels of neck and head; more is slower and stronger."""
    head_epochs: int = 1
    """Passes in which only neck and head learn, on the untouched backbone."""
    epochs: int | None = None
    """Passes in which the backbone learns as well; the default is 4 for demo, else 12, and more for few pictures."""
    batch_size: int = 8
    """Pictures in a step."""
    learning_rate: float = 2e-3
    """Peak learning rate of neck and head; it warms up, then falls along a cosine."""
    backbone_rate: float = 0.3
    """The backbone learns at this share of it."""
    weight_decay: float = 1e-4
    """Pulls weights towards zero."""
    augment: str | None = None
    """What changes the pictures while training: some of flip, scale, crop, color, or none. The default is all of them,
    without scale for demo, whose digits are of all sizes already."""
    mosaic: float = 0.0
    """Share of the training pictures that are put together from four."""
    batch_norm: str = "frozen"
    """frozen keeps the backbone's BatchNorm statistics; train lets them follow the new pictures."""
    baselines: str = "none"
    """What the result is set beside: frozen (the backbone never learns), scratch, both, or none. Each takes as long."""
    limit: int | None = None
    """Use at most this many pictures of each part: a quick look."""
    strict: bool = False
    """Stop at the first picture or box that cannot be used instead of counting it."""
    seed: int = 0
    """Decides initial weights, order and augmentation; the split depends on the pictures alone."""

    def __post_init__(self) -> None:
        parse_source(self.source)
        check_choice("--detector", self.detector, ("fcos", "retinanet", "yolov8"))
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
    """Read, check and split the pictures and their boxes."""
    return load_box_set(
        config.data, Path(config.out), limit=config.limit, strict=config.strict,
        class_names=config.class_names or None,
    )  # fmt: skip


def input_size(data: BoxSet, config: Config) -> tuple[int, int]:
    """Return (height, width) of the input: of the shape that the median picture has in its file."""
    side = config.image_size or (128 if config.data == "demo" else 320)
    return box_images.picture_size(data.train.as_stored().sizes, side)


def build(data: BoxSet, config: Config, *, random_weights: bool = False) -> tuple[Source, Detector]:
    """Load the pretrained backbone and put a detector on it."""
    source = load_source(config.source, input_size(data, config), random_weights=random_weights)
    classes = len(data.class_names)
    boxes, labels, pictures = box_images.input_boxes(data.train, source.image_size)
    if crowded := int((np.bincount(pictures) > MOST).sum()):
        print(
            f"{crowded} training pictures hold more than {MOST} objects; no more than {MOST} of a picture can be found"
        )
    if config.detector == "fcos":
        stride = config.stride or (4 if config.data == "demo" else 8)
        hidden = anchor_free.boxes_that_hide(boxes, labels, pictures, stride)
        if hidden > 0.01 * len(boxes):
            print(
                f"{hidden} of {len(boxes)} training boxes lie in one cell with another of their class, and only one of "
                "them can be found: a larger --image-size or --stride 4 parts them"
            )
        return source, anchor_free.build_detector(source, classes, stride=stride, width=config.width)
    if config.detector == "yolov8":
        return source, yolov8.build_detector(source, classes)
    whole = None if random_weights else retinanet.load_whole(parse_source(config.source))
    strides = retinanet.anchor_strides(source)
    chosen = retinanet.anchors_of(whole) if whole else anchors.fit_anchors(boxes, labels, strides)
    detector = retinanet.build_detector(source, classes, chosen, whole)
    covered = anchors.check_anchors(retinanet.anchor_boxes(detector), boxes, labels, data.class_names)
    print(f"{chosen}; {covered}")
    return source, detector


def train(source: Source, detector: Detector, data: BoxSet, config: Config, stage: str) -> tuple[list[dict], int]:
    """Train one stage: `head`, `finetune`, or for a baseline `frozen` or `scratch`.

    Returns:
        (history rows, number of parameters that trained).
    """
    model = detector.model
    policy = "frozen" if stage in ("head", "frozen") else "all"
    counts = freezing.freeze(model, source.backbone, policy, "train" if stage == "scratch" else config.batch_norm)
    print(f"{stage}: {counts}")
    steps = ceil(len(data.train) / config.batch_size)
    epochs = {"head": config.head_epochs, "finetune": passes(data, config)}.get(
        stage, config.head_epochs + passes(data, config)
    )

    def batches_from(epoch, step):
        return training_stream(data, source.image_size, config, first=(epoch, step)).map(detector.targets, 2)

    find = build_finder(detector)

    def watch(epoch, logs):  # what is best is decided on validation, by what users will see: the boxes
        found = evaluate(data.val, detect(find, data.val), data.class_names)
        logs["val_ap50"], logs["val_ap"] = found["ap50"] or 0.0, found["ap"] or 0.0

    compile_detector(detector, source, config, steps=epochs * steps, scratch=stage == "scratch")
    history = fit_with_checkpoints(
        model, batches_from, epochs=epochs, lines=training.EpochLines(stage, epochs, steps),
        # By AP and not AP50: where validation is small, many epochs have the same AP50, and early ones by chance. By
        # the loss while nothing is found yet.
        keep=training.KeepBest(None, rank=lambda logs: (round(logs["val_ap"], 4), logs["val_ap50"], -logs["loss"])),
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=watch)],
        checkpoint=Path(config.out) / "checkpoints" / f"{stage}.npz", save_every=config.save_every,
    )  # fmt: skip
    return history, counts.parameters


def main(config: Config) -> dict:
    """Run the whole story: data -> source -> head -> the backbone -> evaluation -> export -> proof -> report."""
    config = runs.start(config)
    out = Path(config.out)
    clock = runs.Stopwatch(out / "checkpoints" / "seconds.json")

    with clock("data"):
        data = load_data(config)
    print(f"{config.data}: {data.counts()}, {len(data.class_names)} classes")
    keras.utils.set_random_seed(config.seed)
    source, detector = build(data, config)
    runs.remember_inputs(out, data.fingerprint())
    parameters, history = {"total": detector.model.count_params()}, []
    for stage in ("head", "finetune"):
        with clock(stage):
            rows, parameters[f"trainable_{stage}"] = train(source, detector, data, config, stage)
        history += rows
    with clock("evaluate"):
        find = build_finder(detector)
        val_detections, detections = detect(find, data.val), detect(find, data.test, title="test pictures")
    baselines = {}
    for name in parse_baselines(config.baselines, BASELINES):
        with clock(f"baseline_{name}"):
            found, rows = baseline(name, data, config)
        baselines[name], history = (found, clock.report()[f"baseline_{name}"]), history + rows

    with clock("export"):
        exporting.save_keras_model(detector.model, out / "model.keras")  # to go on training; what follows is to serve
        version = export_detector(
            detector, out / "serving" / "object_detection", data.class_names,
            threshold=recommend_threshold(threshold_table(data.val, val_detections)),
            example=Path(data.train.paths[0]),
        )  # fmt: skip
        example = Path(data.test.paths[0])
        write_serving_files(out / "serving", "object_detection", input_name="image", example=example)
        proof = prove_detector(version, data.test, detections, data.class_names)

    return conclude(
        "object_detection", config, data, detections=detections, val_detections=val_detections, baselines=baselines,
        history=history, seconds=clock.report(), parameters=parameters, proof=proof,
        export=exporting.size_report(version, detector.model), source_card={"spec": config.source, **source.card},
    )  # fmt: skip


def check(config: Config) -> None:
    """Say what a run would read and how long it would take; train nothing and draw one sheet of pictures."""
    data = load_data(config)
    print(f"{config.data}: {data.counts()}")
    for part, counts in data.box_counts().items():
        print(f"  boxes in {part}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    print(*(f"  {sentence}" for sentence in data.advice()), sep="\n")
    source, detector = build(data, config)
    model = detector.model
    print(f"source: {source.card}\ninput {source.image_size} pixels, {model.count_params():,} parameters")

    stream = training_stream(data, source.image_size, config)
    images, boxes, labels = next(stream.as_numpy_iterator())
    sheet = write_sheet(Path(config.out) / "samples.png", images, boxes, labels, data.class_names)
    print(f"samples as trained on: {sheet}")
    compile_detector(detector, source, config, steps=1, scratch=False)
    batch = next(stream.map(detector.targets).as_numpy_iterator())
    step = median_seconds(lambda: model.train_on_batch(*batch))  # the weights are thrown away
    find, count = build_finder(detector), len(images)
    asked = images, np.ones((count, 2), "float32"), np.tile(np.int32(source.image_size), (count, 1))
    look = median_seconds(lambda: find(*asked)) / count
    fits = 1 + len(parse_baselines(config.baselines, BASELINES))
    steps = (config.head_epochs + passes(data, config)) * ceil(len(data.train) / config.batch_size)
    seconds = fits * (steps * step + (config.head_epochs + passes(data, config)) * len(data.val) * look)
    print(f"estimate: {format_seconds(seconds)} of computing, and half a minute for the export and its proof")


# --- small things that the steps above share ----------------------------------------------------------------


def training_stream(data: BoxSet, size: tuple[int, int], config: Config, first=(0, 0)) -> tf.data.Dataset:
    """Stream augmented pictures with their boxes and labels, from (epoch, step) on."""
    names = augmentations(config)
    if not data.mirrors:  # a mirrored digit is another thing
        names = tuple(name for name in names if name != "flip")
    return box_images.training_batches(
        data.train, size, config.batch_size, seed=config.seed, augment=names, mosaic=config.mosaic, first=first
    )


def augmentations(config: Config) -> tuple[str, ...]:
    """Return the names of what changes the pictures while training."""
    if config.augment is None:
        return tuple(name for name in AUGMENTATIONS if config.data != "demo" or name != "scale")
    names = parse_list("--augment", config.augment, AUGMENTATIONS, alone=("none",))
    return () if names == ("none",) else names


def compile_detector(detector: Detector, source: Source, config: Config, *, steps: int, scratch: bool) -> None:
    """Set optimizer and losses; the backbone learns more slowly, but for random weights."""
    optimizer = training.DiscriminativeAdamW(
        learning_rate=training.warmup_cosine(config.learning_rate, steps), weight_decay=config.weight_decay,
        slower=[] if scratch else [(source.backbone.weights, config.backbone_rate)], global_clipnorm=10.0,
    )  # fmt: skip
    detector.model.compile(optimizer=optimizer, **detector.losses, jit_compile=training.use_xla())


def write_sheet(path: Path, images, boxes, labels, class_names) -> Path:
    """Draw a batch with its boxes as one picture."""
    drawn = [
        np.asarray(draw_boxes(image.astype(np.uint8), these[kinds >= 0], kinds[kinds >= 0], class_names))
        for image, these, kinds in zip(images, boxes, labels, strict=True)
    ]
    return write_sample_grid(path, np.stack(drawn), [""] * len(drawn), columns=4)


def baseline(name: str, data: BoxSet, config: Config) -> tuple[Detections, list[dict]]:
    """Train a baseline for as many passes, from the same start or from random weights."""
    keras.utils.set_random_seed(config.seed)
    source, detector = build(data, config, random_weights=name == "scratch")
    rows, _ = train(source, detector, data, config, name)
    return detect(build_finder(detector), data.test), rows


def passes(data: BoxSet, config: Config) -> int:
    """Return the number of fine-tuning passes: enough steps to learn something, where the pictures are few."""
    if config.epochs is not None:
        return config.epochs
    return 4 if config.data == "demo" else max(12, ceil(360 * config.batch_size / len(data.train)))
