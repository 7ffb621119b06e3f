"""The detectors by name: each on a pretrained backbone, fitted to the training boxes."""

from __future__ import annotations

import numpy as np

from common.detection import anchors, one_grid, retinanet, yolov8
from common.detection.batches import input_boxes
from common.detection.dataset import BoxSet
from common.detection.detector import Detector
from common.detection.inference import MOST
from common.images.sources import Source, load_source
from common.sources.specs import parse_source


def build_detector(
    kind: str, spec: str, data: BoxSet, size: tuple[int, int], *, stride: int, width: int, random_weights: bool = False
) -> tuple[Source, Detector]:
    """Load a pretrained backbone and build a detector on it; print which objects it cannot find.

    Args:
        kind: one_grid (formerly fcos), retinanet or yolov8.
        spec: of the source, as in --source.
        data: the images with boxes.
        size: (height, width) of the input in pixels.
        stride: of one_grid: pixels per cell.
        width: of one_grid: channels of neck and head.
        random_weights: whether to initialise the backbone at random.

    Returns:
        (source, detector).

    Raises:
        UserError: the detector does not support the source.
    """
    source, classes = load_source(spec, size, random_weights=random_weights), len(data.class_names)
    boxes, labels, images = input_boxes(data.train, source.image_size)
    if crowded := int((np.bincount(images) > MOST).sum()):
        print(f"{crowded} training images hold more than {MOST} objects; at most {MOST} per image can be found")
    if kind == "yolov8":
        return source, yolov8.build_detector(source, classes)
    if kind == "retinanet":
        whole = None if random_weights else retinanet.load_whole(parse_source(spec))
        strides = retinanet.anchor_strides(source)
        chosen = retinanet.anchors_of(whole) if whole else anchors.fit_anchors(boxes, labels, strides)
        detector = retinanet.build_detector(source, classes, chosen, whole)
        covered = anchors.check_anchors(retinanet.anchor_boxes(detector), boxes, labels, data.class_names)
        print(f"{chosen}; {covered}")
        return source, detector
    hidden = one_grid.boxes_that_hide(boxes, labels, images, stride)
    if hidden > 0.01 * len(boxes):
        print(
            f"{hidden} of {len(boxes)} training boxes share a cell with another of their class, and only one of them "
            "can be found: a larger --image-size or --stride 4 separates them"
        )
    return source, one_grid.build_detector(source, classes, stride=stride, width=width)
