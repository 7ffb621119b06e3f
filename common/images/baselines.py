"""Baselines of an image classifier without a network: nearest neighbours and a support vector machine on pixels."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from common.data.splits import SPLITS
from common.images.batches import image_batches
from common.images.dataset import ImageSet
from common.images.pixels import Pixels
from common.linear_head import score

NEIGHBOURS = (1, 3, 5, 9, 15)
STRENGTHS = (1.0, 10.0, 100.0)  # values of scikit-learn's C
MOST_IMAGES = 4000  # for training a support vector machine, whose time grows with their square
SIDE = 32  # pixels


def neighbour_probabilities(data: ImageSet, weights: np.ndarray) -> tuple[dict[str, np.ndarray], list[dict], str]:
    """Return the probabilities of nearest neighbours on small images; validation chooses their number.

    As the frozen source, it is fitted on both train and val once that is chosen.

    Args:
        data: the images.
        weights: not used, since neighbours have none; as for `pixel_probabilities`.

    Returns:
        (probabilities {"val", "test"}: float [n, classes], those of val before it was fitted on it; no history rows; a
        sentence on what was chosen).
    """
    images = [_shrink(small_images(getattr(data, split).pixels)) for split in SPLITS]
    numbers = [number for number in NEIGHBOURS if number <= len(data.train)]
    models = [KNeighborsClassifier(number, weights="distance") for number in numbers]
    best = max(models, key=lambda model: model.fit(images[0], data.train.labels).score(images[1], data.val.labels))
    val = best.predict_proba(images[1])
    best.fit(np.concatenate(images[:2]), np.concatenate([data.train.labels, data.val.labels]))
    test = best.predict_proba(images[2])
    note = f"Nearest neighbours: {best.n_neighbors} on {SIDE // 2} x {SIDE // 2} pixels, chosen on validation."
    return {"val": _floored(val), "test": _floored(test)}, [], note


def pixel_probabilities(data: ImageSet, weights: np.ndarray) -> tuple[dict[str, np.ndarray], list[dict], str]:
    """Return the probabilities of a support vector machine with an RBF kernel, without a network.

    On small pixels or on histograms of oriented gradients, with one of three strengths of regularisation: validation
    chooses. As the frozen source, it is fitted on both train and val once that is chosen.

    Args:
        data: the images; of more than `MOST_IMAGES` for training that many are drawn, as `in_proportion` does.
        weights: of the training images, float32 [n].

    Returns:
        As `neighbour_probabilities`.
    """
    places = in_proportion(data.train.labels, MOST_IMAGES)
    labels, weights = data.train.labels[places], weights[places]
    images = [small_images(one) for one in (data.train.pixels.take(places), data.val.pixels, data.test.pixels)]
    best = (-np.inf, None, None, None, "")
    for title, describe in (("pixels", _shrink), ("oriented gradients", oriented_gradients)):
        found = [describe(split) for split in images]
        for strength in STRENGTHS:
            model = make_pipeline(StandardScaler(), SVC(C=strength, decision_function_shape="ovr"))
            model.fit(found[0], labels, svc__sample_weight=weights)
            val = _softmax(model.decision_function(found[1]))
            accuracy = score(val, data.val.labels)["accuracy"]
            if accuracy > best[0]:
                best = (accuracy, model, found, val, f"{title}, C {strength:g}")
    _, model, found, val, chosen = best
    of_class = np.bincount(labels, weights) / np.bincount(labels)
    both = np.concatenate([labels, data.val.labels])
    model.fit(np.concatenate(found[:2]), both, svc__sample_weight=of_class[both])
    test = _softmax(model.decision_function(found[2]))
    return {"val": val, "test": test}, [], f"SVM on pixels: {chosen}, chosen on validation."


def in_proportion(labels: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Return the places of at most so many examples, drawn in the proportions of the classes, at least one of each."""
    order = np.random.default_rng(seed).permutation(len(labels))
    counts, seen, rank = np.bincount(labels), {}, np.empty(len(labels))
    for place in order:
        number = int(labels[place])
        rank[place] = seen.get(number, 0) / counts[number]
        seen[number] = seen.get(number, 0) + 1
    return np.sort(np.argsort(rank, kind="stable")[:most])


BY_PIXELS = {"neighbours": neighbour_probabilities, "pixels": pixel_probabilities}


def small_images(pixels: Pixels) -> np.ndarray:
    """Return images at `SIDE` x `SIDE` pixels, float32 [n, SIDE, SIDE, 3], 0 to 1."""
    batches = image_batches(pixels, 256)
    return np.concatenate([tf.image.resize(batch, (SIDE, SIDE), antialias=True).numpy() for batch in batches]) / 255


def oriented_gradients(images: np.ndarray, cell: int = 4, directions: int = 9) -> np.ndarray:
    """Return histograms of oriented gradients (Dalal and Triggs, 2005, doi:10.1109/CVPR.2005.177), without colour.

    Args:
        images: float32 [n, height, width, 3].
        cell: side of a cell in pixels.
        directions: bins between 0 and 180 degrees.

    Returns:
        float32 [n, features]: of each block of 2 x 2 cells the histograms, with unit length.
    """
    grey = images.mean(axis=-1)
    down, across = np.gradient(grey, axis=(1, 2))
    strength, angle = np.hypot(down, across), np.mod(np.arctan2(down, across), np.pi)
    bins = np.minimum((angle / np.pi * directions).astype(int), directions - 1)
    n, rows, columns = len(images), grey.shape[1] // cell, grey.shape[2] // cell
    cells = np.stack([np.where(bins == number, strength, 0) for number in range(directions)], axis=-1)
    cells = cells[:, : rows * cell, : columns * cell].reshape(n, rows, cell, columns, cell, directions).sum(axis=(2, 4))
    blocks = np.concatenate([cells[:, :-1, :-1], cells[:, 1:, :-1], cells[:, :-1, 1:], cells[:, 1:, 1:]], axis=-1)
    blocks /= np.linalg.norm(blocks, axis=-1, keepdims=True) + 1e-3
    return blocks.reshape(n, -1).astype("float32")


def _shrink(images: np.ndarray) -> np.ndarray:
    """Average 2 x 2 pixels, and return a row per image."""
    n, height, width, channels = images.shape
    return images.reshape(n, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4)).reshape(n, -1)


def _softmax(margins: np.ndarray) -> np.ndarray:
    """Turn the margins of a support vector machine, of two classes only that of the second, into probabilities."""
    scores = np.stack([-margins, margins], axis=1) if margins.ndim == 1 else margins
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _floored(votes: np.ndarray, floor: float = 1e-3) -> np.ndarray:
    """Return probabilities of which none is 0: neighbours that all agree do not make other classes impossible."""
    return (1 - floor) * votes + floor / votes.shape[1]
