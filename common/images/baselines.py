"""Baselines of an image classifier without a network: nearest neighbours and a support vector machine on pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from common.classification.calibration import apply_temperature, fit_temperature
from common.data.splits import limit_per_class
from common.images.batches import image_batches
from common.images.dataset import ImageSet
from common.linear_head import score

NEIGHBOURS = (1, 3, 5, 9, 15)
STRENGTHS = (1.0, 10.0, 100.0)  # values of scikit-learn's C
MOST_IMAGES = 4000  # for training a support vector machine, whose time grows with their square
SIDE = 32  # pixels


def neighbour_probabilities(
    data: ImageSet, weights: np.ndarray | None = None, *, resize: str = "crop"
) -> tuple[np.ndarray, str]:
    """Return the test probabilities of nearest neighbours on small images; validation chooses their number.

    Args:
        data: the images.
        weights: not used, since neighbours have none; as for `pixel_probabilities`.
        resize: as for `decode_image`.

    Returns:
        (probabilities, float32 [n, classes]; what was chosen, such as "1 neighbour").
    """
    train, val, test = (_shrink(small_images(getattr(data, split).paths, resize)) for split in ("train", "val", "test"))
    numbers = [number for number in NEIGHBOURS if number <= len(train)]
    fitted = [KNeighborsClassifier(number, weights="distance").fit(train, data.train.labels) for number in numbers]
    best = max(fitted, key=lambda model: model.score(val, data.val.labels))
    chosen = f"{best.n_neighbors} neighbour{'s' if best.n_neighbors > 1 else ''} on {SIDE // 2} x {SIDE // 2} pixels"
    return _calibrated(best.predict_proba(val), best.predict_proba(test), data.val.labels), chosen


def pixel_probabilities(
    data: ImageSet, weights: np.ndarray | None = None, *, resize: str = "crop"
) -> tuple[np.ndarray, str]:
    """Return the test probabilities of a support vector machine with an RBF kernel, without a network.

    On small pixels or on histograms of oriented gradients, with one of three strengths of regularisation: validation
    chooses.

    Args:
        data: the images; of more than `MOST_IMAGES` for training that many are used, from the classes in turn.
        weights: of the training images, float32 [n]; None for equal weights.
        resize: as for `decode_image`.

    Returns:
        (probabilities, float32 [n, classes]; what was chosen, such as "oriented gradients, C 10").
    """
    places = limit_per_class(data.train.labels, MOST_IMAGES)
    labels = data.train.labels[places]
    weights = None if weights is None else weights[places]
    splits = data.train.paths[places], data.val.paths, data.test.paths
    images = [small_images(paths, resize) for paths in splits]
    best = (-np.inf, None)
    for title, describe in (("pixels", _shrink), ("oriented gradients", oriented_gradients)):
        train, val, test = map(describe, images)
        for strength in STRENGTHS:
            model = make_pipeline(StandardScaler(), SVC(C=strength, decision_function_shape="ovr"))
            model.fit(train, labels, svc__sample_weight=weights)
            margins = [_softmax(model.decision_function(split)) for split in (val, test)]
            accuracy = score(margins[0], data.val.labels)["accuracy"]
            if accuracy > best[0]:
                best = (accuracy, margins, f"{title}, C {strength:g}")
    return _calibrated(*best[1], data.val.labels), best[2]


BY_PIXELS = {"neighbours": neighbour_probabilities, "pixels": pixel_probabilities}


def small_images(paths: Sequence[str], resize: str = "crop") -> np.ndarray:
    """Return images at `SIDE` x `SIDE` pixels, float32 [n, SIDE, SIDE, 3], 0 to 1."""
    batches = image_batches(paths, (SIDE, SIDE), 256, resize=resize)
    return np.concatenate([batch.numpy() for batch in batches]) / 255


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


def _calibrated(val: np.ndarray, test: np.ndarray, val_labels: np.ndarray) -> np.ndarray:
    """Return the test probabilities at the temperature that fits validation: a fair comparison of calibration."""
    floor = 1e-3  # neighbours that all agree do not make other classes impossible
    val, test = ((1 - floor) * votes + floor / votes.shape[1] for votes in (val, test))
    return apply_temperature(test, fit_temperature(val_labels, val))
