"""An image classifier as a SavedModel that takes encoded images, and its proof."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from common.classification.export import labelled, prove_labels
from common.exporting import check_float32, graph_function, save_servable
from common.images.decoding import decode_images
from common.images.folding import fold_batch_norm
from common.proof.prove import FreshProcess


def export_image_classifier(
    model: keras.Model, folder: Path, class_names: Sequence[str], *, resize: str = "crop", example: Path | None = None
) -> Path:
    """Write a classifier as FOLDER/<next integer>/, including decoder, preprocessing and class names.

    Never plain `model.export`: it serves layers in training mode after some preprocessing layers, and stores
    every variable twice (both pinned in tests/test_exporting.py).

    Args:
        model: float32 model of pixels [batch, height, width, 3] (0 to 255) to probabilities, whose last layer
            is named `head` and reads the features.
        folder: the servable's folder; its name is the name of the model on the server.
        class_names: one per probability.
        resize: how images are resized, as in training.
        example: an image file for the warm-up requests that a server sends to each signature when it loads the model,
            so that no client waits for one-time work. It stays in the export.

    Returns:
        The folder of the new version. Signatures: `serving_default` (image: file bytes), `tensors` (pixels),
        `embed` (image: file bytes; returns the features).

    Raises:
        UserError: the disk is full. Earlier versions are unchanged, and the incomplete new one is removed.
    """
    check_float32(model)
    size = tuple(model.input.shape[1:3])
    whole = keras.Model(model.input, [model.get_layer("head").input, model.output])
    whole = fold_batch_norm(whole, for_serving=True)
    names = tf.constant(list(class_names))

    # All signatures call the same functions, so that their graphs are built and stored once.
    @graph_function(tf.TensorSpec((None, *size, 3), tf.float32))
    def features_and_probabilities(pixels):
        return whole(pixels, training=False)

    def answer(pixels):
        _, probabilities = features_and_probabilities(pixels)
        return labelled(names, probabilities)

    image = tf.TensorSpec([None], tf.string, name="image")
    pixels = tf.TensorSpec((None, *size, 3), tf.float32, name="pixels")
    decoded = graph_function(image)(lambda image: decode_images(image, size, resize))
    signatures = {
        "serving_default": graph_function(image)(lambda image: answer(decoded(image))),
        "tensors": graph_function(pixels)(lambda pixels: answer(pixels)),
        "embed": graph_function(image)(lambda image: {"embedding": features_and_probabilities(decoded(image))[0]}),
    }
    requests = {}
    if example:
        files = {"image": np.array([example.read_bytes()], dtype=object)}
        tensors = {"pixels": decoded(tf.constant(files["image"])).numpy()}
        requests = {"serving_default": files, "tensors": tensors, "embed": files}
    return save_servable(whole, folder, signatures, requests)


def prove_image_classifier(
    version: Path, paths: Sequence[str], probabilities: np.ndarray, class_names: Sequence[str],
    process: FreshProcess | None = None, hashes: Sequence[str] = (),
) -> dict:  # fmt: skip
    """Send the raw files to the SavedModel in a fresh process that imports only tensorflow, and compare.

    Args:
        version: folder of the SavedModel.
        paths: n image files.
        probabilities: from the evaluation, float32 [n, classes].
        class_names: one per probability.
        process: as for `prove`.
        hashes: SHA-256 of the files when they were evaluated.

    Returns:
        {"examples", "agreement", "max_abs_diff", "ops_outside_tf_serving", "tolerance", "passed"}, and
        "error" where the process failed.

    Raises:
        FileNotFoundError: the proof failed, and a file is not what was evaluated.
    """
    proof = prove_labels(version, "image", "paths", paths, probabilities, class_names, process)
    if not proof["passed"]:
        for path, evaluated in zip(paths, hashes, strict=False):
            if hashlib.sha256(Path(path).read_bytes()).hexdigest() != evaluated:
                raise FileNotFoundError(errno.ENOENT, "its content has changed", str(path))
    return proof
