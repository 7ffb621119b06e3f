"""Detectors of libraries are trained from our initial weights, accept images without objects, and can be reloaded."""

from __future__ import annotations

from types import SimpleNamespace

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from common import training
from common.detection import anchors, retinanet, yolov8
from common.detection.batches import CROWD
from common.detection.detector import feature_pyramid
from common.detection.inference import build_finder
from common.errors import UserError
from common.images.folding import fold_batch_norm
from common.images.sources import load_source
from common.proof.fresh_process.boxes import overlaps
from common.sources.specs import parse_source

SIZE, STRIDES = (64, 64), [8, 16, 32, 64, 128]


def small_source(last_stride: int = 32, size: tuple[int, int] = SIZE) -> SimpleNamespace:
    """A backbone of a few layers, as `load_source` would give one."""
    pixels = keras.Input((*size, 3))
    x = preprocessed = keras.layers.Rescaling(1 / 127.5, -1.0)(pixels)
    inside = y = keras.Input(preprocessed.shape[1:])
    stride = 1
    while stride < last_stride:
        stride *= 2
        y = keras.layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False)(y)
        y = keras.layers.Activation("relu")(keras.layers.GroupNormalization(8)(y))
    backbone = keras.Model(inside, y, name="backbone")
    extractor = keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(backbone(x)))
    return SimpleNamespace(spec="keras:Small", image_size=size, backbone=backbone, extractor=extractor)


def squares(count: int = 16, seed: int = 0):
    """Images with one coloured square each, the colour being its class, and a second one without any."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(90, 160, (count, *SIZE, 3)).astype("float32")
    boxes, labels = np.zeros((count, 1, 4), "float32"), np.zeros((count, 1), "int32")
    for i in range(count):
        side, kind = rng.integers(20, 33), int(rng.integers(2))
        x, y = rng.integers(0, 64 - side, 2)
        images[i, y : y + side, x : x + side] = (255, 30, 30) if kind else (30, 30, 255)
        boxes[i, 0], labels[i, 0] = (x, y, x + side, y + side), kind
    return images, boxes, labels


def build(name: str):
    source = small_source()
    if name == "yolov8":
        return yolov8.build_detector(source, 2)
    _, boxes, labels = squares()
    return retinanet.build_detector(source, 2, anchors.fit_anchors(boxes[:, 0], labels[:, 0], STRIDES))


@pytest.mark.slow  # a minute each; the quick tests below see the start without which nothing is learned
@pytest.mark.parametrize(("name", "steps"), [("retinanet", 80), ("yolov8", 160)])
def test_it_finds_what_it_has_learned(name, steps):
    keras.utils.set_random_seed(0)
    detector, (images, boxes, labels) = build(name), squares()
    stream = tf.data.Dataset.from_tensor_slices((images, boxes, labels)).repeat().batch(8).map(detector.targets)
    optimizer = keras.optimizers.AdamW(training.warmup_cosine(1e-3, steps), global_clipnorm=10.0)
    detector.model.compile(optimizer=optimizer, **detector.losses, jit_compile=False)
    detector.model.fit(stream, steps_per_epoch=steps, verbose=0)

    ones, stored = np.ones((len(images), 2), "float32"), np.array([SIZE] * len(images), "int32")
    found, _, kinds, counts = (tensor.numpy() for tensor in build_finder(detector)(images, ones, stored))
    assert counts.min() > 0
    # The loss falls even where no box is right (KerasHub's prior on the wrong head): boxes are what is looked at.
    best = [overlaps(found[i, :1], boxes[i])[0, 0] for i in range(len(images))]
    assert np.mean(best) > 0.5, best
    assert np.mean(kinds[:, 0] == labels[:, 0]) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet", "yolov8"])
def test_nothing_is_found_before_training_and_no_box_is_no_error(name, tmp_path):
    detector, (images, boxes, labels) = build(name), squares(2)
    _, scores = detector.candidates(detector.model(images, training=False), images)
    assert float(tf.reduce_max(scores)) < 0.05  # the prior stands on the classes
    detector.model.compile(optimizer="sgd", **detector.losses, jit_compile=False)
    for given in ((boxes[:, :0], labels[:, :0]), (boxes, np.full_like(labels, -2))):  # no boxes; a crowd alone
        stream = tf.data.Dataset.from_tensors((images, *given)).map(detector.targets)
        assert np.isfinite(detector.model.fit(stream, verbose=0).history["loss"]).all()

    detector.model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    outputs, again = detector.model(images, training=False), loaded(images, training=False)
    for key in outputs:
        np.testing.assert_array_equal(outputs[key], again[key])


@pytest.mark.parametrize("name", ["retinanet", pytest.param("yolov8", marks=pytest.mark.slow)])
def test_with_batch_norm_folded_it_trains_and_answers_as_before(name):
    source = load_source("keras:MobileNet(alpha=0.25,size=64)@random")
    _, boxes, labels = squares(2)
    fitted = [anchors.fit_anchors(boxes[:, 0], labels[:, 0], STRIDES)] if name == "retinanet" else []
    detector = {"retinanet": retinanet, "yolov8": yolov8}[name].build_detector(source, 2, *fitted)
    images = squares(2)[0]
    trained, served = fold_batch_norm(detector.model), fold_batch_norm(detector.model, for_serving=True)
    assert len(served.weights) < len(detector.model.weights)
    outputs, again = detector.model(images, training=False), served(images, training=False)
    for key in outputs:
        np.testing.assert_allclose(again[key], outputs[key], rtol=1e-3, atol=1e-4)
    trained.compile(optimizer="sgd", **detector.losses, jit_compile=False)
    stream = tf.data.Dataset.from_tensors((images, boxes, labels)).map(detector.targets)
    assert np.isfinite(trained.fit(stream, verbose=0).history["loss"]).all()


def test_retinanet_ignores_crowds():
    detector, images = build("retinanet"), tf.zeros((1, *SIZE, 3))

    def encoded(boxes, labels):
        _, truth = detector.targets(images, tf.constant([boxes]), tf.constant([labels]))
        return detector.model.label_encoder(images, truth["boxes"], truth["labels"])[1].numpy()

    an_object, elsewhere = [2.0, 2.0, 26.0, 26.0], [34.0, 34.0, 60.0, 60.0]
    alone, crowded = encoded([an_object], [0]), encoded([an_object, elsewhere], [0, CROWD])
    assert (crowded[alone == -1] == CROWD).any()
    np.testing.assert_array_equal(crowded[crowded != CROWD], alone[crowded != CROWD])


def test_kerashub_still_puts_the_prior_on_the_boxes():
    """What `retinanet.build_detector` mends; when this fails, KerasHub has mended it itself."""
    backbone = keras_hub.models.RetinaNetBackbone(
        image_encoder=feature_pyramid(small_source()), min_level=3, max_level=7, use_p5=False, image_shape=(*SIZE, 3)
    )
    stock = keras_hub.models.RetinaNetObjectDetector(backbone, 2)
    assert float(keras.ops.max(stock.box_head.prediction_layer.bias)) < -4
    assert float(keras.ops.max(stock.classification_head.prediction_layer.bias)) == 0


def test_a_whole_detector_is_taken_over(tmp_path):
    """A preset as `save_to_preset` writes it: the same answers with as many classes, new logits with others."""
    encoder = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64], input_conv_kernel_sizes=[7], stackwise_num_filters=[64, 64, 64, 64],
        stackwise_num_blocks=[1, 1, 1, 1], stackwise_num_strides=[1, 2, 2, 2], block_type="basic_block",
        image_shape=(None, None, 3),
    )  # fmt: skip
    backbone = keras_hub.models.RetinaNetBackbone(encoder, min_level=3, max_level=7, use_p5=False)
    converter = keras_hub.layers.RetinaNetImageConverter(image_size=SIZE, scale=1 / 50, offset=-2.0)
    preprocessor = keras_hub.models.RetinaNetObjectDetectorPreprocessor(image_converter=converter)
    whole = keras_hub.models.RetinaNetObjectDetector(backbone, 3, bounding_box_format="xyxy", preprocessor=preprocessor)
    whole.save_to_preset(tmp_path / "preset")

    text = f"preset:{tmp_path / 'preset'}"
    images = squares(2)[0]
    expected = whole(images / 50 - 2.0, training=False)
    for classes in (3, 2):
        source, loaded = load_source(text, SIZE), retinanet.load_whole(parse_source(text))
        found = retinanet.build_detector(source, classes, retinanet.anchors_of(loaded), loaded).model(images)
        np.testing.assert_allclose(found["bbox_regression"], expected["bbox_regression"], atol=1e-4)
        if classes == 3:
            np.testing.assert_allclose(found["cls_logits"], expected["cls_logits"], atol=1e-4)
        else:
            assert float(keras.ops.median(keras.ops.sigmoid(found["cls_logits"]))) < 0.05


def test_yolov8_refuses_a_source_that_ends_too_early():
    with pytest.raises(UserError, match=r"1/32.*keras:MobileNetV2"):
        yolov8.build_detector(small_source(last_stride=16), 2)


def test_anchors_follow_the_shapes_of_the_boxes():
    rng = np.random.default_rng(0)
    sides = rng.choice([[20.0, 40.0], [30.0, 30.0], [80.0, 20.0]], 300) * rng.uniform(0.9, 1.1, (300, 1))
    corners = rng.uniform(0, 100, (300, 2))
    fitted = anchors.fit_anchors(np.concatenate([corners, corners + sides], axis=1), np.zeros(300, int), STRIDES)
    assert fitted.ratios == pytest.approx((0.25, 1.0, 2.0), rel=0.05)


def test_anchors_reach_boxes_wherever_they_lie_and_rare_classes_too():
    """With anchors of the right shape, but too far from one to the next, a detector of blood cells learned nothing."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [180, 20])  # many of 50 pixels, few of 20
    sides = np.where(labels, 20.0, 50.0)[:, None] * rng.uniform(0.8, 1.2, (200, 2))
    corners = rng.uniform(0, 256 - 60, (200, 2))
    boxes = np.concatenate([corners, corners + sides], axis=1)
    source = small_source(size=(256, 256))
    detector = retinanet.build_detector(source, 2, anchors.fit_anchors(boxes, labels, STRIDES))
    best = overlaps(boxes, retinanet.anchor_boxes(detector))
    reached = (best >= anchors.POSITIVE_IOU).sum(axis=1)
    for kind, least in ((0, 5), (1, 3)):
        of_class = reached[labels == kind]
        assert (of_class > 0).mean() > 0.9, kind
        assert np.median(of_class) >= least, kind


def test_a_class_without_anchors_stops_the_run():
    grid = np.array([[x, y, x + 32, y + 32] for x in range(0, 96, 8) for y in range(0, 96, 8)], "float32")
    boxes = np.array([[1, 1, 30, 30], [8, 8, 40, 40], [50, 50, 53, 53]], "float32")
    text = anchors.check_anchors(grid, boxes[:2], np.array([0, 0]), ["cell", "speck"])
    assert text.startswith("100.0%")
    with pytest.raises(UserError, match=r"1 of 1 boxes of class 'speck'.*--image-size.*--detector one_grid"):
        anchors.check_anchors(grid, boxes, np.array([0, 0, 1]), ["cell", "speck"])
