"""RetinaNet (arXiv:1708.02002): KerasHub's detector on any backbone, with the start that its paper gives it."""

from __future__ import annotations

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from common.anchors import Anchors
from common.detectors import Detector, feature_levels, feature_pyramid, keep_surest
from common.sources import Source

_PRIOR = 0.01  # score before training: nearly every anchor holds nothing
_FORMAT = "xyxy"


def anchor_strides(source: Source) -> list[int]:
    """Return the pixels of a cell at each level: those of the backbone, and two coarser ones."""
    return [8, 16, 32, 64, 128] if 32 in feature_levels(source)[1] else [8, 16]


def build_detector(source: Source, classes: int, anchors: Anchors) -> Detector:
    """Return KerasHub's RetinaNet on a pretrained backbone.

    Three things are not as KerasHub 0.32 has them, but as in the paper. KerasHub puts the prior on the boxes instead of
    the classes; it draws the weights of the heads 5 times as large, so that the first steps undo the backbone; and its
    losses neither balance the classes nor care much for the last pixels of a box.

    Args:
        source: pretrained; its preprocessing is inside.
        classes: to tell apart.
        anchors: as `anchors.fit_anchors` gives them.

    Returns:
        A detector whose model has two outputs: `cls_logits` [batch, anchors, classes] and `bbox_regression`
        [batch, anchors, 4].

    Raises:
        UserError: the source has no feature maps.
    """
    encoder = feature_pyramid(source)
    backbone = keras_hub.models.RetinaNetBackbone(
        image_encoder=encoder, min_level=3, max_level=7 if len(encoder.outputs) == 3 else 4, use_p5=False,
        image_shape=(*source.image_size, 3),
    )  # fmt: skip
    generator = keras_hub.layers.AnchorGenerator(
        _FORMAT, min_level=backbone.min_level, max_level=backbone.max_level, num_scales=3,
        aspect_ratios=list(anchors.ratios), anchor_size=anchors.size,
    )  # fmt: skip
    model = keras_hub.models.RetinaNetObjectDetector(
        backbone, classes, bounding_box_format=_FORMAT, anchor_generator=generator,
        use_prediction_head_norm=True, prediction_decoder=Everything(), name="detector",
    )  # fmt: skip
    for head in (model.box_head, model.classification_head):
        for layer in [*head.conv_layers, head.prediction_layer]:
            layer.kernel.assign(keras.random.normal(layer.kernel.shape, stddev=0.01))
        head.prediction_layer.bias.assign(keras.ops.zeros_like(head.prediction_layer.bias))
    prior = model.classification_head.prediction_layer.bias
    prior.assign(keras.ops.full_like(prior, -np.log((1 - _PRIOR) / _PRIOR)))

    def candidates(said, images):
        return keep_surest(**model.decode_predictions(said, images))

    return Detector(
        model=model,
        losses={
            "box_loss": keras.losses.MeanAbsoluteError(reduction="sum"),
            "classification_loss": keras.losses.BinaryFocalCrossentropy(
                apply_class_balancing=True, from_logits=True, reduction="sum"
            ),
            # Keras takes means over coordinates and over classes where the paper takes sums.
            "loss_weights": {"bbox_regression": 4.0, "cls_logits": float(classes)},
        },
        targets=boxes_with_padding("labels", 0.0),
        candidates=candidates,
    )


def anchor_boxes(detector: Detector) -> np.ndarray:
    """Return all anchors of the input, xmin, ymin, xmax, ymax in its pixels, float32 [n, 4]."""
    images = np.zeros((1, *detector.model.input_shape[1:]), "float32")
    return np.concatenate([np.asarray(one) for one in detector.model.anchor_generator(images).values()])


def boxes_with_padding(labels_name: str, nowhere: float):
    """Return a function for tf.data that hands boxes to a detector which makes its own targets.

    Args:
        labels_name: under which the detector wants the labels.
        nowhere: coordinate of what is no box. Crowds are none: these detectors know no "not asked".
    """

    def targets(images, boxes, labels):
        # One row more: these detectors cannot bear a batch without a box.
        boxes = tf.where(labels[..., None] >= 0, boxes, nowhere)
        boxes = tf.pad(boxes, [[0, 0], [0, 1], [0, 0]], constant_values=nowhere)
        labels = tf.pad(tf.maximum(labels, -1), [[0, 0], [0, 1]], constant_values=-1)
        return images, {"boxes": boxes, labels_name: tf.cast(labels, tf.float32)}

    return targets


@keras.saving.register_keras_serializable("recipes")
class Everything(keras.layers.Layer):
    """Hands on all boxes with their scores: KerasHub's own suppression of doubles does not export."""

    bounding_box_format = _FORMAT

    def call(self, boxes, logits, images=None):
        return {"boxes": boxes, "scores": keras.ops.sigmoid(logits)}
