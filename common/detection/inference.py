"""From a trained detector to boxes in pixels of the stored image, identical in evaluation and serving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from common import exporting
from common.detection.batches import evaluation_batches, letterbox, to_stored
from common.detection.dataset import BoxExamples
from common.detection.detector import Detector
from common.detection.metrics import Detections
from common.progress import ProgressLine
from common.proof.prove import FreshProcess, prove

MOST = 100  # boxes per image, at most; COCO's evaluation uses as many per class
LOWEST = 0.01  # score below which a box is dropped; lower ones do not matter even for AP
OVERLAP = 0.5  # IoU of non-maximum suppression: of two such boxes of one class, the higher score stays
TOLERANCE = 1e-3  # of a score, in the proof


def find_objects(detector: Detector, images: tf.Tensor, scales: tf.Tensor, stored: tf.Tensor):
    """Return the detections of a batch; works in any TensorFlow graph.

    Args:
        detector: of any kind.
        images, scales, stored: a batch of results of `batches.letterbox`.

    Returns:
        (boxes xmin, ymin, xmax, ymax in pixels of the stored images, float32 [batch, 100, 4]; scores float32
        [batch, 100], descending, 0 for padding; class numbers int32 [batch, 100]; counts int32 [batch]).
    """
    boxes, scores = detector.candidates(detector.model(images, training=False), images)
    # Boxes are clipped at the image's edges, to exclude the grey, before non-maximum suppression.
    boxes = to_stored(boxes, scales, stored)
    boxes, scores, labels, counts = tf.image.combined_non_max_suppression(
        boxes[:, :, None], scores, MOST, MOST, iou_threshold=OVERLAP, score_threshold=LOWEST, clip_boxes=False
    )
    return boxes, scores, tf.cast(labels, tf.int32), counts


def build_finder(detector: Detector) -> Callable:
    """Return `find_objects` of one detector as a function of batches, traced only once."""
    specs = [tf.TensorSpec((None, *spec.shape), spec.dtype) for spec in _letterboxed(detector.model)]
    return exporting.graph_function(*specs)(lambda *batch: find_objects(detector, *batch))


def _letterboxed(model: keras.Model) -> tuple[tf.TensorSpec, ...]:
    """Return the specs of a result of `batches.letterbox`."""
    size = tuple(model.input.shape[1:3])
    return tf.TensorSpec((*size, 3), tf.float32), tf.TensorSpec((2,), tf.float32), tf.TensorSpec((2,), tf.int32)


def detect(find: Callable, examples: BoxExamples, batch_size: int = 8, title: str = "") -> Detections:
    """Return the detections in images, including low scores, which AP needs.

    Args:
        find: as returned by `build_finder`.
        examples: the images.
        batch_size: images per batch.
        title: of the progress line; without one if empty.
    """
    size = tuple(find.input_signature[0].shape[1:3])
    found: list[tuple] = []
    progress = ProgressLine(title, len(examples)) if title else None
    for batch in evaluation_batches(examples, size, batch_size):
        boxes, scores, labels, counts = (tensor.numpy() for tensor in find(*batch))
        for row, count in enumerate(counts):
            found.append((boxes[row, :count], scores[row, :count], labels[row, :count].astype(np.int64)))
        if progress:
            progress.update(len(found))
    if progress:
        progress.close()
    return Detections(*map(tuple, zip(*found, strict=True)))


def export_detector(
    detector: Detector, folder: Path, class_names: Sequence[str], *, threshold: float,
    example: Path | None = None,
) -> Path:  # fmt: skip
    """Write a detector as FOLDER/<next integer>/: bytes of images of any size in, boxes in their own pixels out.

    Args:
        detector: float32.
        folder: the servable's folder; its name is the name of the model on the server.
        class_names: of the classes.
        threshold: least score of the boxes that `serving_default` returns.
        example: an image that a server sends to each signature when it loads the model. It is stored in the export.

    Returns:
        The folder of the new version. Two signatures take `image`, the bytes of files: `serving_default`, and `all`,
        which returns all boxes. Both return `boxes` float32 [batch, 100, 4], xmin, ymin, xmax, ymax in pixels of the
        image as stored in its file, `labels` string [batch, 100], `scores` float32 [batch, 100], and `count` int32
        [batch]: later rows are empty. A third, `tensors`, is for runtimes without image decoders: `pixels` of
        the input's size -> `candidates` float32 [batch, n, 4 + classes], boxes in pixels of the input and the score of
        each class, before non-maximum suppression; `class_names` string [batch, classes].

    Raises:
        UserError: the disk is full.
    """
    model = detector.model
    exporting.check_float32(model)
    size = tuple(model.input.shape[1:3])
    names = tf.constant([*class_names, ""])
    specs, find = _letterboxed(model), build_finder(detector)
    image = tf.TensorSpec([None], tf.string, name="image")
    pixels = tf.TensorSpec([None, *specs[0].shape], tf.float32, name="pixels")

    # Both signatures call it, so that its graph is built and stored once.
    found = exporting.graph_function(image)(
        lambda image: find(*tf.map_fn(lambda one: letterbox(one, size), image, fn_output_signature=specs))
    )

    def respond(image, lowest):
        boxes, scores, labels, _ = found(image)
        there = scores >= lowest
        return {
            "boxes": tf.where(there[..., None], boxes, 0.0),
            "labels": tf.gather(names, tf.where(there, labels, len(class_names))),
            "scores": tf.where(there, scores, 0.0),
            "count": tf.reduce_sum(tf.cast(there, tf.int32), axis=1),
        }

    def candidates(pixels):
        boxes, scores = detector.candidates(model(pixels, training=False), pixels)
        named = tf.tile(names[None, :-1], [tf.shape(pixels)[0], 1])
        return {"candidates": tf.concat([boxes, scores], axis=-1), "class_names": named}

    signatures = {
        "serving_default": exporting.graph_function(image)(lambda image: respond(image, threshold)),
        "all": exporting.graph_function(image)(lambda image: respond(image, LOWEST)),
        "tensors": exporting.graph_function(pixels)(candidates),
    }
    encoded = {"image": np.array([example.read_bytes()], dtype=object)} if example else None
    requests = {name: encoded for name in ("serving_default", "all")} if encoded else {}
    return exporting.save_servable(model, folder, signatures, requests)


def prove_detector(
    version: Path, examples: BoxExamples, expected: Detections, class_names: Sequence[str],
    process: FreshProcess | None = None,
) -> dict:  # fmt: skip
    """Send the raw files to the SavedModel in a fresh process that imports only tensorflow, and compare every box.

    Args:
        version: folder of the SavedModel.
        examples: the test images.
        expected: the detections of the evaluation.
        class_names: of the classes.
        process: as for `prove`.

    Returns:
        {"examples", "boxes", "agreement" (share of the boxes that are reproduced: same label, IoU >= 0.99, score
        within the tolerance, and no extra ones), "max_abs_diff" (of a score), "ops_outside_tf_serving", "tolerance",
        "passed"}, and "error" where the process failed.
    """
    arrays = {name: np.concatenate(getattr(expected, name)) for name in ("boxes", "scores", "labels")}
    arrays["counts"] = np.array([len(scores) for scores in expected.scores])
    requests = {"paths": list(examples.paths), "names": list(class_names)}
    proof = prove("boxes", version, requests, arrays, TOLERANCE, process)
    return {"examples": len(examples), "boxes": len(arrays["boxes"]), **proof}
