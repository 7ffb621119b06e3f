"""The detector without anchors: targets of cells, losses, and the decoding of boxes."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.detection import one_grid
from common.detection.batches import CROWD, PADDING
from common.detection.detector import Detector, feature_levels
from common.detection.inference import find_objects
from common.errors import UserError
from common.images.sources import load_source

SIZE, STRIDE, CLASSES = (64, 96), 8, 3
BOXES = np.array([[8, 8, 40, 32], [50, 20, 90, 60], [52, 2, 60, 12]], np.float32)
LABELS = np.array([2, 0, 1], np.int32)


def targets(boxes=BOXES, labels=LABELS) -> dict[str, np.ndarray]:
    cells = one_grid.cell_targets(tf.constant(boxes), tf.constant(labels), SIZE, STRIDE, CLASSES)
    return {name: tensor.numpy() for name, tensor in cells.items()}


def test_each_object_has_one_hottest_cell_of_its_class():
    heat = targets()["heat"]
    assert heat.shape == (8, 12, 3) and heat.min() >= 0 and heat.max() == 1
    for (left, top, right, bottom), label in zip(BOXES, LABELS, strict=True):
        row, column = int((top + bottom) / 2 / STRIDE), int((left + right) / 2 / STRIDE)
        assert heat[row, column, label] == 1
    assert (heat == 1).sum() == 3


def test_each_box_counts_the_same_however_many_cells_it_has():
    cells = targets()["distances"]
    assert cells[..., 4].sum() == pytest.approx(3, abs=1e-4)
    # and every cell that counts knows the way to the sides of a box
    for row, column in np.argwhere(cells[..., 4] > 1e-3):
        x, y = (column + 0.5) * STRIDE, (row + 0.5) * STRIDE
        left, top, right, bottom = cells[row, column, :4]
        box = np.array([x - left, y - top, x + right, y + bottom])
        assert np.abs(BOXES - box).max(axis=1).min() < 0.5


@pytest.mark.parametrize("labels", [[], [PADDING, PADDING]])
def test_an_image_without_objects_asks_for_no_heat(labels):
    found = targets(np.ones((len(labels), 4), np.float32), np.array(labels, np.int32))
    assert not found["heat"].any() and not found["distances"][..., 4].any()


def test_cells_within_a_crowd_are_ignored():
    found = targets(np.array([[0, 0, 48, 64]], np.float32), np.array([CROWD], np.int32))
    assert (found["heat"][:, :6] == -1).all() and (found["heat"][:, 6:] == 0).all()
    anything = np.random.default_rng(0).normal(size=(1, 8, 12, 3)).astype("float32")
    other = anything.copy()
    other[:, :, :6] += 3  # only within the crowd
    losses = [float(one_grid.heat_loss(found["heat"][None], one)) for one in (anything, other)]
    assert losses[0] == pytest.approx(losses[1]) and losses[0] > 0


def test_the_heat_loss_is_averaged_over_the_objects_of_each_class():
    heat = np.zeros((1, 2, 2, 2), np.float32)
    heat[0, 0, 0, 0] = heat[0, 1, 1, 0] = heat[0, 0, 1, 1] = 1.0
    p = np.random.default_rng(0).uniform(0.1, 0.9, heat.shape).astype("float32")
    by_hand = []
    for label in range(2):
        terms = [
            -((1 - q) ** 2) * np.log(q) if wanted == 1 else -(q**2) * np.log(1 - q)
            for q, wanted in zip(p[..., label].ravel(), heat[..., label].ravel(), strict=True)
        ]
        by_hand.append(sum(terms) / heat[..., label].sum())
    found = float(one_grid.heat_loss(heat, np.log(p / (1 - p))))
    assert found == pytest.approx(np.mean(by_hand), rel=1e-4)


def test_the_distance_loss_is_one_minus_giou():
    true, predicted = np.array([2.0, 2, 2, 2]), np.array([4.0, 2, 1, 2])
    sides = np.concatenate([true, [1.0]]).reshape(1, 1, 1, 5).astype("float32")
    # boxes of width 4 and 5, both of height 4; they share 2 + 1 of width, and 4 + 2 hold both
    overlap, union, around = 3 * 4, 4 * 4 + 5 * 4 - 3 * 4, 6 * 4
    expected = 1 - (overlap / union - (around - union) / around)
    found = float(one_grid.distance_loss(sides, predicted.reshape(1, 1, 1, 4).astype("float32")))
    assert found == pytest.approx(expected, rel=1e-5)
    perfect = one_grid.distance_loss(sides, true.reshape(1, 1, 1, 4).astype("float32"))
    assert float(perfect) == pytest.approx(0, abs=1e-6)


def test_perfect_outputs_give_every_box():
    cells = targets()
    logits = np.log(np.clip(cells["heat"], 1e-4, 0.99) / (1 - np.clip(cells["heat"], 1e-4, 0.99)))[None]

    class Perfect:
        def __call__(self, images, training):
            return {
                "heat": tf.constant(logits, tf.float32),
                "distances": tf.constant(cells["distances"][None, ..., :4]),
            }

    def candidates(outputs, images):
        return one_grid.boxes_of_cells(outputs["heat"], outputs["distances"], STRIDE)

    one, size = tf.ones([1, 2]), tf.constant([SIZE])
    boxes, scores, labels, counts = find_objects(Detector(Perfect(), {}, None, candidates), None, one, size)
    top = np.argsort(-scores[0].numpy())[:3]
    assert int(counts[0]) >= 3 and scores[0].numpy()[top].min() > 0.9
    for box, label in zip(boxes[0].numpy()[top], labels[0].numpy()[top], strict=True):
        match = np.abs(BOXES - box).max(axis=1)
        assert match.min() < 0.5 and LABELS[match.argmin()] == label


@pytest.mark.parametrize("stride", [4, 8])
def test_the_network_has_cells_of_the_stride(stride):
    source = load_source("keras:MobileNetV2@random", (64, 96))
    model = one_grid.build_detector(source, 3, stride=stride, width=16).model
    outputs = model(np.zeros((2, 64, 96, 3), "float32"))
    assert outputs["heat"].shape == (2, 64 // stride, 96 // stride, 3)
    assert outputs["distances"].shape == (2, 64 // stride, 96 // stride, 4)
    # nearly no cell is warm before training, and every distance is positive
    assert float(keras.ops.max(keras.ops.sigmoid(outputs["heat"]))) < 0.2
    assert float(keras.ops.min(outputs["distances"])) > 0


def test_boxes_that_hide_in_one_cell_are_counted():
    boxes = np.array([[0, 0, 6, 6], [1, 1, 7, 7], [0, 0, 6, 6], [0, 0, 6, 6], [9, 0, 15, 6]], "float32")
    labels, images = np.array([0, 0, 1, 0, 0]), np.array([0, 0, 0, 1, 0])
    assert one_grid.boxes_that_hide(boxes, labels, images, stride=8) == 1  # the second, behind the first
    assert one_grid.boxes_that_hide(boxes, labels, images, stride=16) == 2
    assert one_grid.boxes_that_hide(boxes[:0], labels[:0], images[:0], stride=8) == 0


def test_a_source_without_feature_maps_is_refused():
    pixels = keras.Input((64, 96, 3))
    vector = keras.layers.Dense(2)(keras.layers.Flatten()(pixels))

    class Flat:
        spec, image_size, backbone = "hub:somewhere", (64, 96), keras.Model(pixels, vector)

    with pytest.raises(UserError, match="has no feature maps"):
        feature_levels(Flat())
