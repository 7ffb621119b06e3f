"""RetinaNet (arXiv:1708.02002): KerasHub's detector on any backbone, initialised as in its paper."""

from __future__ import annotations

from pathlib import Path

import keras
import keras_hub
import numpy as np

from common.detection.anchors import Anchors
from common.detection.detector import Detector, boxes_with_padding, feature_levels, feature_pyramid, keep_most_confident
from common.images.sources import Source
from common.sources.presets import preset_error, preset_folder
from common.sources.specs import SourceSpec

RetinaNet = keras_hub.models.RetinaNetObjectDetector

_PRIOR = 0.01  # score before training: nearly every anchor is empty
_FORMAT = "xyxy"
_CANDIDATES = 1000  # as in the paper: many anchors match the same object


def anchor_strides(source: Source) -> list[int]:
    """Return the pixels per cell at each level: those of the backbone, and two coarser ones."""
    return [8, 16, 32, 64, 128] if 32 in feature_levels(source)[1] else [8, 16]


def load_whole(spec: SourceSpec) -> RetinaNet | None:
    """Return the complete RetinaNet of a preset (of COCO, for example), or None where it has only a backbone.

    Raises:
        UserError: it cannot be loaded.
    """
    if spec.kind != "preset":
        return None
    folder = preset_folder(spec)
    task = Path(folder) / "task.json"
    if not task.is_file() or "RetinaNetObjectDetector" not in task.read_text("utf-8"):
        return None
    try:
        return RetinaNet.from_preset(folder)
    except Exception as error:  # h5py, json and Keras each raise their own types
        raise preset_error(spec, error) from error


def anchors_of(whole: RetinaNet) -> Anchors:
    """Return the anchors of a trained detector."""
    return Anchors(float(whole.anchor_generator.anchor_size), tuple(whole.anchor_generator.aspect_ratios))


def build_detector(source: Source, classes: int, anchors: Anchors, whole: RetinaNet | None = None) -> Detector:
    """Return KerasHub's RetinaNet on a pretrained backbone.

    Three things follow the paper instead of KerasHub 0.32. KerasHub applies the prior to the boxes instead of the
    classes; it initialises the heads with weights 5 times as large, so that the first steps damage the backbone; and
    its losses neither balance the classes nor weight the accuracy of boxes enough.

    Args:
        source: pretrained, including its preprocessing.
        classes: number of classes.
        anchors: as returned by `anchors.fit_anchors`; with a complete detector, its own.
        whole: a trained RetinaNet whose weights are kept; the logits only if the number of classes is equal.

    Returns:
        A detector whose model has two outputs: `cls_logits` [batch, anchors, classes] and `bbox_regression`
        [batch, anchors, 4].

    Raises:
        UserError: the source has no feature maps.
    """
    encoder = feature_pyramid(source)
    of_whole = whole.backbone if whole else None
    backbone = keras_hub.models.RetinaNetBackbone(
        image_encoder=encoder, min_level=3, max_level=7 if len(encoder.outputs) == 3 else 4,
        use_p5=of_whole.use_p5 if of_whole else False,
        use_fpn_batch_norm=of_whole.use_fpn_batch_norm if of_whole else False, image_shape=(*source.image_size, 3),
    )  # fmt: skip
    generator = keras_hub.layers.AnchorGenerator(
        _FORMAT, min_level=backbone.min_level, max_level=backbone.max_level, num_scales=3,
        aspect_ratios=list(anchors.ratios), anchor_size=anchors.size,
    )  # fmt: skip
    model = RetinaNet(
        backbone, classes, bounding_box_format=_FORMAT, anchor_generator=generator,
        use_prediction_head_norm=whole.use_prediction_head_norm if whole else True,
        prediction_decoder=Everything(), name="detector",
    )  # fmt: skip
    for head in (model.box_head, model.classification_head):
        for layer in [*head.conv_layers, head.prediction_layer]:
            layer.kernel.assign(keras.random.normal(layer.kernel.shape, stddev=0.01))
        head.prediction_layer.bias.assign(keras.ops.zeros_like(head.prediction_layer.bias))
    prior = model.classification_head.prediction_layer.bias
    prior.assign(keras.ops.full_like(prior, -np.log((1 - _PRIOR) / _PRIOR)))

    if whole:
        _copy_weights(model, whole)

    def candidates(outputs, images):
        return keep_most_confident(**model.decode_predictions(outputs, images), candidates=_CANDIDATES)

    return Detector(
        model=model,
        losses={
            "box_loss": keras.losses.MeanAbsoluteError(reduction="sum"),
            "classification_loss": keras.losses.BinaryFocalCrossentropy(
                apply_class_balancing=True, from_logits=True, reduction="sum"
            ),
            # Keras averages over coordinates and classes where the paper sums.
            "loss_weights": {"bbox_regression": 4.0, "cls_logits": float(classes)},
        },
        targets=boxes_with_padding("labels", 0.0, crowds=True),
        candidates=candidates,
    )


def _copy_weights(model: RetinaNet, whole: RetinaNet) -> None:
    """Copy the weights above the backbone from a trained detector."""
    model.backbone.feature_pyramid.set_weights(whole.backbone.feature_pyramid.get_weights())
    model.box_head.set_weights(whole.box_head.get_weights())
    mine, theirs = model.classification_head, whole.classification_head
    for layer, trained in zip([*mine.conv_layers, *mine.group_norm_layers],
                              [*theirs.conv_layers, *theirs.group_norm_layers], strict=True):  # fmt: skip
        layer.set_weights(trained.get_weights())
    if model.num_classes == whole.num_classes:
        mine.prediction_layer.set_weights(theirs.prediction_layer.get_weights())


def anchor_boxes(detector: Detector) -> np.ndarray:
    """Return all anchors of the input, xmin, ymin, xmax, ymax in its pixels, float32 [n, 4]."""
    images = np.zeros((1, *detector.model.input_shape[1:]), "float32")
    return np.concatenate([np.asarray(one) for one in detector.model.anchor_generator(images).values()])


@keras.saving.register_keras_serializable("recipes")
class Everything(keras.layers.Layer):
    """Returns all boxes with their scores: KerasHub's own non-maximum suppression cannot be exported."""

    bounding_box_format = _FORMAT

    def call(self, boxes, logits, images=None):
        return {"boxes": boxes, "scores": keras.ops.sigmoid(logits)}
