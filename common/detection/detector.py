"""The common interface of all detectors: a network, its targets and losses, and the decoding of its boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import tensorflow as tf

from common.detection.batches import CROWD, PADDING
from common.errors import UserError
from common.images.sources import Source


@dataclass(frozen=True)
class Detector:
    """A detection network with its losses, targets and decoding.

    Attributes:
        model: RGB pixels, float32 [batch, height, width, 3] from 0 to 255 -> a dict of outputs.
        losses: keyword arguments of `model.compile`.
        targets: (images, boxes, labels) of a batch of `batches.training_batches` -> inputs of `model.fit`; runs
            within tf.data.
        candidates: (outputs of the model, images) -> (boxes xmin, ymin, xmax, ymax in pixels of the images, float32
            [batch, n, 4]; scores float32 [batch, n, classes]), before non-maximum suppression.
    """

    model: keras.Model
    losses: dict
    targets: Callable
    candidates: Callable


def feature_levels(source: Source) -> tuple[keras.KerasTensor, dict[int, keras.KerasTensor]]:
    """Return the pixel input of a source and its last feature map at each stride, including preprocessing.

    Args:
        source: its backbone must be a network of Keras layers, not a SavedModel (`hub:`).

    Returns:
        (pixels, {4: [batch, height / 4, width / 4, channels], 8: ..., 16: ..., 32: ...}), as far as available.

    Raises:
        UserError: it has no such maps.
    """
    backbone, (height, width) = source.backbone, source.image_size
    outputs = [getattr(layer, "output", None) for layer in getattr(backbone, "layers", ())]
    maps = [one for one in outputs if isinstance(one, keras.KerasTensor) and len(one.shape) == 4]
    # A backbone for images of any size gives the sizes of its maps only for a concrete input.
    example = keras.KerasTensor((1, height, width, 3), "float32")
    found = keras.Model(backbone.input, maps).compute_output_spec(example)
    levels = {}
    for tensor, here in zip(maps, found, strict=True):
        for stride in (4, 8, 16, 32):
            if here.shape[1:3] == (-(-height // stride), -(-width // stride)):
                levels[stride] = tensor  # a later one replaces it
    if not {8, 16} <= levels.keys():
        raise UserError(
            f"--source {source.spec} has no feature maps at 1/8 and 1/16 of the image, which detectors need. "
            f"Allowed: bundled:resnet_mini, keras:MobileNetV2, keras:ResNet50, preset:..."
        )
    strides = sorted(levels)
    tapped = keras.Model(backbone.input, [levels[stride] for stride in strides], name="levels")
    return source.extractor.input, dict(zip(strides, tapped(_preprocessed(source)), strict=True))


@keras.saving.register_keras_serializable("recipes")
class Pyramid(keras.Model):
    """A backbone whose feature maps have the names that KerasHub and keras-cv require: P3 is 1/8 of the image."""

    @property
    def pyramid_outputs(self) -> dict[str, keras.KerasTensor]:  # for KerasHub
        return dict(zip(self.output_names, self.outputs, strict=True))

    @property
    def pyramid_level_inputs(self) -> dict[str, str]:  # for keras-cv
        return {name: name for name in self.output_names}


def feature_pyramid(source: Source, widths: Sequence[int] = ()) -> Pyramid:
    """Return pixels -> the feature maps of a source from 1/8 of the image on, for detectors of libraries.

    Args:
        source: pretrained; its preprocessing is inside.
        widths: channels that a new layer projects each map to; by default the source's own.

    Raises:
        UserError: it has no such maps.
    """
    pixels, levels = feature_levels(source)
    maps = [levels[stride] for stride in (8, 16, 32) if stride in levels]
    for place, width in enumerate(widths[: len(maps)]):
        narrow = keras.layers.Conv2D(width, 1, use_bias=False, name=f"narrow_{place}")(maps[place])
        maps[place] = keras.layers.BatchNormalization(name=f"narrow_{place}_norm")(narrow)
    named = [keras.layers.Identity(name=f"P{3 + place}")(one) for place, one in enumerate(maps)]
    return Pyramid(pixels, named, name="pyramid")


def boxes_with_padding(labels_name: str, nowhere: float, *, crowds: bool):
    """Return a function for tf.data that passes boxes to a detector that computes its own targets.

    Args:
        labels_name: key of the labels in the targets.
        nowhere: coordinate of padding rows.
        crowds: whether the detector ignores boxes with the label CROWD. Otherwise crowds are removed, and their
            content is trained as background.
    """

    def targets(images, boxes, labels):
        labels = labels if crowds else tf.where(labels == CROWD, tf.cast(PADDING, labels.dtype), labels)
        # One extra row: these detectors fail on a batch without boxes.
        boxes = tf.where(labels[..., None] != PADDING, boxes, nowhere)
        boxes = tf.pad(boxes, [[0, 0], [0, 1], [0, 0]], constant_values=nowhere)
        labels = tf.pad(labels, [[0, 0], [0, 1]], constant_values=PADDING)
        return images, {"boxes": boxes, labels_name: tf.cast(labels, tf.float32)}

    return targets


def keep_most_confident(boxes: tf.Tensor, scores: tf.Tensor, candidates: int = 300) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the boxes of each image with the highest scores, which bounds the time of non-maximum suppression.

    Args:
        boxes: float32 [batch, n, 4].
        scores: float32 [batch, n, classes].
        candidates: at most so many boxes per image.
    """
    most = tf.minimum(candidates, tf.shape(boxes)[1])
    best = tf.math.top_k(tf.reduce_max(scores, axis=-1), most).indices
    return tf.gather(boxes, best, batch_dims=1), tf.gather(scores, best, batch_dims=1)


def _preprocessed(source: Source) -> keras.KerasTensor:
    """Return the input of the backbone in the graph of the extractor."""
    nodes = [node for node in source.backbone._inbound_nodes if node.operation is source.backbone]
    return nodes[-1].input_tensors[0]
