"""YOLOv8: the detector of keras-cv, which is no longer developed, on any backbone."""

from __future__ import annotations

import keras
import keras_cv
import numpy as np

from common.detection.detector import Detector, boxes_with_padding, feature_pyramid, keep_most_confident
from common.errors import UserError
from common.images.sources import Source

_PRIOR = 0.01  # score before training: nearly every cell is empty (arXiv:1708.02002)
_FORMAT = "xyxy"
_CANDIDATES = 1000  # up to ten cells are trained on the same object
# Channels at 1/8, 1/16 and 1/32, as in the smallest YOLOv8. The width of the head follows that of the maps, which is
# several times as large in classifiers.
_WIDTHS = (64, 128, 256)


def build_detector(source: Source, classes: int) -> Detector:
    """Return keras-cv's YOLOv8 on a pretrained backbone.

    Its scores start at 0.5 everywhere, and the first epochs only reduce them; here they start low.

    Args:
        source: pretrained, including its preprocessing.
        classes: number of classes.

    Returns:
        A detector whose model has two outputs: `classes` [batch, cells, classes] and `boxes` [batch, cells, 64].

    Raises:
        UserError: the source has no feature maps, or none at 1/32.
    """
    encoder = feature_pyramid(source, _WIDTHS)
    if len(encoder.outputs) < 3:
        raise UserError(
            f"--source {source.spec} has no feature map at 1/32 of the image, which YOLOv8 needs. Allowed: "
            f"keras:MobileNetV2, keras:ResNet50, or --detector one_grid."
        )
    model = keras_cv.models.YOLOV8Detector(
        encoder, classes, bounding_box_format=_FORMAT, fpn_depth=1, prediction_decoder=Everything(), name="detector"
    )
    for level in (1, 2, 3):
        bias = model.get_layer(f"yolo_v8_head_{level}_class_3_conv").bias
        bias.assign(keras.ops.full_like(bias, -np.log((1 - _PRIOR) / _PRIOR)))
    return Detector(
        model=model,
        losses={"box_loss": "ciou", "classification_loss": "binary_crossentropy"},
        targets=boxes_with_padding("classes", -1.0, crowds=False),
        candidates=lambda outputs, images: keep_most_confident(*model.decode_predictions(outputs, images), _CANDIDATES),
    )


@keras.saving.register_keras_serializable("recipes")
class Everything(keras.layers.Layer):
    """Returns all boxes with their scores: all detectors share one non-maximum suppression."""

    bounding_box_format = _FORMAT

    def call(self, boxes, scores):
        return boxes, scores
