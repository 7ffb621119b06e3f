"""A detector without anchors: each cell of a grid predicts the class centred there and the sides of its box.

It has a single grid. Centres are trained as a heat map (CenterNet, arXiv:1904.07850), boxes as the distances from the
cell to the four sides (FCOS, arXiv:1904.01355), and cells near the centre contribute to a box, weighted by a Gaussian
of the box's shape (TTFNet, arXiv:1909.00700). For rare and small classes, the heat loss of each class is averaged over
the objects of that class, and the box loss over boxes, not over cells.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from common.detection.batches import CROWD
from common.detection.detector import Detector, feature_levels, keep_most_confident
from common.images.sources import Source

_BELL = 0.54  # size of the Gaussian, as a fraction of the box; from TTFNet
_PRIOR = 0.01  # heat before training: nearly every cell is empty (focal loss, arXiv:1708.02002)


def build_detector(source: Source, classes: int, *, stride: int = 8, width: int = 96) -> Detector:
    """Return a detector without anchors on a pretrained backbone.

    Args:
        source: pretrained, including its preprocessing.
        classes: number of classes.
        stride: pixels per cell; a smaller one finds smaller objects, and takes longer.
        width: channels of the neck and the heads.

    Returns:
        A detector whose model has two outputs, [batch, height / stride, width / stride, ...]: `heat`, logits
        [..., classes], and `distances` [..., 4] from the cell's centre to the left, top, right and bottom side, in
        pixels.

    Raises:
        UserError: the source has no feature maps.
    """
    pixels, found = feature_levels(source)
    used = [s for s in found if s >= stride]
    merged = None
    for number in reversed(used):  # from coarse to fine, each added to the coarser ones
        here = _block(found[number], width, f"neck_{number}", kernel=1)
        if merged is not None:
            here = keras.layers.Add(name=f"merge_{number}")([here, _enlarge(merged, here, number)])
        merged = _block(here, width, f"merged_{number}")
    prior = keras.initializers.Constant(-np.log((1 - _PRIOR) / _PRIOR))
    what = _block(_block(merged, width, "heat_1"), width, "heat_2")
    heat = keras.layers.Conv2D(classes, 1, bias_initializer=prior, dtype="float32", name="heat")(what)
    where = _block(_block(merged, width, "distances_1"), width, "distances_2")
    where = keras.layers.Conv2D(4, 1, dtype="float32", name="log_distances")(where)
    distances = Reach(2.0 * stride, dtype="float32", name="distances")(where)

    def targets(images, boxes, labels):
        specs = {"heat": tf.TensorSpec((None, None, classes)), "distances": tf.TensorSpec((None, None, 5))}

        def of_one(one):
            return cell_targets(*one, source.image_size, stride, classes)

        return images, tf.map_fn(of_one, (boxes, labels), fn_output_signature=specs)

    return Detector(
        model=keras.Model(pixels, {"heat": heat, "distances": distances}, name="detector"),
        losses={
            "loss": {"heat": heat_loss, "distances": distance_loss},
            "loss_weights": {"heat": 1.0, "distances": 2.0},
        },
        targets=targets,
        candidates=lambda outputs, images: boxes_of_cells(outputs["heat"], outputs["distances"], stride),
    )


@keras.saving.register_keras_serializable("recipes")
class Reach(keras.layers.Layer):
    """Distances from their logarithms: `unit` pixels for an output of 0, at most e^5 times that."""

    def __init__(self, unit: float, **arguments):
        super().__init__(**arguments)
        self.unit = unit

    def call(self, logarithms):
        return self.unit * keras.ops.exp(keras.ops.clip(logarithms, -5.0, 5.0))

    def get_config(self):
        return super().get_config() | {"unit": self.unit}


def boxes_that_hide(boxes: np.ndarray, labels: np.ndarray, images: np.ndarray, stride: int) -> int:
    """Return how many boxes share the cell of their centre with one of their class: only one of those can be found.

    Args:
        boxes: xmin, ymin, xmax, ymax in pixels of the input, float32 [n, 4].
        labels: class of each, int [n].
        images: index of the image of each, int [n].
        stride: pixels per cell.
    """
    cells = ((boxes[:, :2] + boxes[:, 2:]) / 2 // stride).astype(np.int64)
    return len(boxes) - len(np.unique(np.column_stack([images, labels, cells]), axis=0))


def cell_targets(boxes, labels, size: tuple[int, int], stride: int, classes: int) -> dict[str, tf.Tensor]:
    """Return the target of each cell of one image.

    Args:
        boxes: xmin, ymin, xmax, ymax in pixels, float32 [k, 4].
        labels: int [k]; `batches.PADDING` and CROWD are not classes. Cells within a crowd are ignored.
        size: (height, width) of the image in pixels.
        stride: pixels per cell.
        classes: number of classes.

    Returns:
        {"heat": float32 [h, w, classes], 1 at the centre of an object and falling around it, -1 where ignored;
        "distances": float32 [h, w, 5], four distances, and the weight of the cell, with a sum of 1 per box}.
    """
    height, width = size[0] // stride, size[1] // stride
    boxes = tf.concat([tf.cast(boxes, tf.float32), [[0.0, 0.0, 0.0, 0.0]]], axis=0)  # at least one row
    labels = tf.concat([tf.cast(labels, tf.int32), [-1]], axis=0)
    x = (tf.range(width, dtype=tf.float32) + 0.5)[None, None, :]
    y = (tf.range(height, dtype=tf.float32) + 0.5)[None, :, None]
    corners = boxes / stride  # in cells from here on
    left, top, right, bottom = (corners[:, i, None, None] for i in range(4))
    # Centres are moved to cell centres, so that one cell has a heat of exactly 1.
    centre_x = tf.clip_by_value(tf.floor((left + right) / 2), 0, width - 1.0) + 0.5
    centre_y = tf.clip_by_value(tf.floor((top + bottom) / 2), 0, height - 1.0) + 0.5
    spread_x = tf.maximum((right - left) * _BELL / 6, 1e-3)
    spread_y = tf.maximum((bottom - top) * _BELL / 6, 1e-3)
    bell = tf.exp(-((x - centre_x) ** 2) / (2 * spread_x**2) - (y - centre_y) ** 2 / (2 * spread_y**2))  # [k, h, w]
    bell = tf.where((bell < 1e-3) | (labels < 0)[:, None, None], 0.0, bell)
    inside = (x > left) & (x < right) & (y > top) & (y < bottom)
    heat = tf.reduce_max(bell[..., None] * tf.one_hot(labels, classes)[:, None, None, :], axis=0)
    crowded = tf.reduce_any(inside & (labels == CROWD)[:, None, None], axis=0)
    heat = tf.where(crowded[..., None] & (heat < 1.0), -1.0, heat)

    strength = tf.where(inside | (bell == 1.0), bell, 0.0)
    # Where boxes overlap, a cell belongs to the one with the larger Gaussian, that is the nearer centre.
    owner = tf.argmax(strength, axis=0, output_type=tf.int32)
    owns = tf.one_hot(owner, tf.shape(boxes)[0], axis=0) * strength  # [k, h, w]
    counts = tf.reduce_sum(owns / tf.maximum(tf.reduce_sum(owns, axis=(1, 2), keepdims=True), 1e-6), axis=0)
    owned = tf.gather(corners, tf.reshape(owner, [-1]))
    owned = tf.reshape(owned, [height, width, 4])
    sides = tf.stack([x[0] - owned[..., 0], y[0] - owned[..., 1], owned[..., 2] - x[0], owned[..., 3] - y[0]], axis=-1)
    sides = tf.maximum(sides, 0.05) * stride
    return {"heat": heat, "distances": tf.concat([sides, counts[..., None]], axis=-1)}


def heat_loss(heat, logits):
    """Return the focal loss of CenterNet, averaged over the objects of each class in the batch, then over classes.

    Args:
        heat: as returned by `cell_targets`, float32 [batch, h, w, classes].
        logits: float32 [batch, h, w, classes].
    """
    log_there, log_not = keras.ops.log_sigmoid(logits), keras.ops.log_sigmoid(-logits)
    probability = keras.ops.sigmoid(logits)
    centre, judged = keras.ops.cast(heat >= 1.0, "float32"), keras.ops.cast(heat >= 0.0, "float32")
    missed = centre * (1 - probability) ** 2 * log_there
    wrong = judged * (1 - centre) * (1 - heat) ** 4 * probability**2 * log_not
    objects = keras.ops.maximum(keras.ops.sum(centre, axis=(0, 1, 2)), 1.0)
    return -keras.ops.mean(keras.ops.sum(missed + wrong, axis=(0, 1, 2)) / objects)


def distance_loss(sides, distances):
    """Return 1 - GIoU (arXiv:1902.09630) of predicted and true boxes, averaged over boxes.

    Args:
        sides: as returned by `cell_targets`, float32 [batch, h, w, 5].
        distances: float32 [batch, h, w, 4].
    """
    true, counts = sides[..., :4], sides[..., 4]
    smaller, larger = keras.ops.minimum(true, distances), keras.ops.maximum(true, distances)
    overlap = (smaller[..., 0] + smaller[..., 2]) * (smaller[..., 1] + smaller[..., 3])
    around = (larger[..., 0] + larger[..., 2]) * (larger[..., 1] + larger[..., 3])
    areas = [(one[..., 0] + one[..., 2]) * (one[..., 1] + one[..., 3]) for one in (true, distances)]
    union = areas[0] + areas[1] - overlap
    giou = overlap / keras.ops.maximum(union, 1e-6) - (around - union) / keras.ops.maximum(around, 1e-6)
    return keras.ops.sum(counts * (1 - giou)) / keras.ops.maximum(keras.ops.sum(counts), 1.0)


def boxes_of_cells(heat, distances, stride: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the boxes of the cells with the most heat.

    Args:
        heat: logits, float32 [batch, h, w, classes].
        distances: float32 [batch, h, w, 4], pixels.
        stride: pixels per cell.

    Returns:
        (boxes xmin, ymin, xmax, ymax in pixels, float32 [batch, n, 4]; scores float32 [batch, n, classes]: 0 where a
        neighbouring cell has more heat for that class).
    """
    batch, height, width, classes = (tf.shape(heat)[i] for i in range(4))
    scores = tf.sigmoid(heat)
    peaks = tf.nn.max_pool2d(scores, 3, 1, "SAME")
    scores = tf.where(scores >= peaks, scores, 0.0)
    x = (tf.range(width, dtype=tf.float32) + 0.5)[None, None, :] * stride
    y = (tf.range(height, dtype=tf.float32) + 0.5)[None, :, None] * stride
    boxes = tf.stack(
        [x - distances[..., 0], y - distances[..., 1], x + distances[..., 2], y + distances[..., 3]], axis=-1
    )
    limits = tf.cast(tf.stack([width, height, width, height]) * stride, tf.float32)
    boxes = tf.clip_by_value(boxes, 0.0, limits)
    boxes = tf.reshape(boxes, [batch, height * width, 4])
    scores = tf.reshape(scores, [batch, height * width, classes])
    return keep_most_confident(boxes, scores)


def _block(tensor, width: int, name: str, kernel: int = 3):
    """A separable convolution with group normalisation: batches of detection are small."""
    layer = (
        keras.layers.Conv2D(width, 1, use_bias=False, name=name)
        if kernel == 1
        else keras.layers.SeparableConv2D(width, kernel, padding="same", use_bias=False, name=name)
    )
    normalised = keras.layers.GroupNormalization(8, name=f"{name}_norm")(layer(tensor))
    return keras.layers.Activation("swish", name=f"{name}_act")(normalised)


def _enlarge(coarse, fine, number: int):
    """Double a map and crop it to the size of the finer one: an odd map has an extra row."""
    doubled = keras.layers.UpSampling2D(2, interpolation="nearest", name=f"up_{number}")(coarse)
    rows, columns = (doubled.shape[i] - fine.shape[i] for i in (1, 2))
    if rows or columns:
        doubled = keras.layers.Cropping2D(((0, rows), (0, columns)), name=f"cut_{number}")(doubled)
    return doubled
