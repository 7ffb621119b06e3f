"""Anchors fitted to the boxes of a data set, and a check that boxes have anchors: others would not be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans

from common.errors import UserError
from common.proof.fresh_process.boxes import overlaps

POSITIVE_IOU = 0.5  # least IoU of an anchor with the box it is trained on; as in RetinaNet (arXiv:1708.02002)
_SCALES = 3  # sizes within an octave; from the same paper


@dataclass(frozen=True)
class Anchors:
    """Shapes of the anchors: every ratio in three sizes at each level.

    Attributes:
        size: side of the smallest anchor of a level, in cells of that level.
        ratios: height over width.
    """

    size: float
    ratios: tuple[float, ...]

    def __str__(self) -> str:
        ratios = ", ".join(f"{ratio:.2g}" for ratio in self.ratios)
        return f"anchors from {self.size:.2g} cells, height over width {ratios}"


def fit_anchors(boxes: np.ndarray, labels: np.ndarray, strides: Sequence[int]) -> Anchors:
    """Return anchors that fit the boxes of a data set.

    The ratios are the centres of three clusters of boxes (k-means over the logarithm, so that twice as wide is as far
    from square as twice as high). The size maximises the mean overlap with the best anchor, at the average distance
    between their centres: anchors of a coarse level may have the shape of a box, but seldom its position. All classes
    have equal weight.

    Args:
        boxes: in pixels of the input, float32 [n, 4]; at least one.
        labels: class of each, int [n].
        strides: pixels per cell at each level.
    """
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-3)
    shapes = np.log(sides[:, 1:] / sides[:, :1])
    groups = min(3, len(np.unique(shapes.round(3))))
    middles = KMeans(groups, n_init=10, random_state=0).fit(shapes).cluster_centers_.ravel()
    ratios = tuple(float(ratio) for ratio in np.exp(np.sort(middles)))
    sizes = np.geomspace(1.0, 8.0, 19)
    weights = 1 / np.bincount(labels)[labels]
    fit = [weights @ _best_overlap(sides, *_shapes(size, ratios, strides)) for size in sizes]
    return Anchors(float(sizes[int(np.argmax(fit))]), ratios)


def check_anchors(anchors: np.ndarray, boxes: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> str:
    """Refuse a data set that these anchors cannot be trained on.

    Args:
        anchors: all anchors of the input, xmin, ymin, xmax, ymax in its pixels, float32 [m, 4].
        boxes: of the train split in pixels of the input, float32 [n, 4].
        labels: class of each, int [n].
        class_names: of the classes.

    Returns:
        A phrase for the user: how many boxes have an anchor.

    Raises:
        UserError: more than half of the boxes of a class have none.
    """
    best = np.concatenate([overlaps(some, anchors).max(axis=1) for some in np.array_split(boxes, len(boxes) // 64 + 1)])
    covered = best >= POSITIVE_IOU
    for number, name in enumerate(class_names):
        of_class = covered[labels == number]
        if len(of_class) and of_class.mean() < 0.5:
            raise UserError(
                f"{(~of_class).sum()} of {len(of_class)} boxes of class {name!r} have no anchor that overlaps by "
                f"{POSITIVE_IOU:.0%}, so most of them would not be trained on: too small or too narrow for this input. "
                "Try: a larger --image-size, or --detector one_grid, which needs no anchors."
            )
    return f"{covered.mean():.1%} of the training boxes have an anchor that overlaps by at least {POSITIVE_IOU:.0%}"


def _shapes(size: float, ratios: Sequence[float], strides: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return width and height of every anchor, float [m, 2], and its stride in pixels, float [m]."""
    steps = np.repeat(strides, _SCALES * len(ratios)).astype(float)
    scales = np.tile(np.repeat(2 ** (np.arange(_SCALES) / _SCALES), len(ratios)), len(strides))
    roots = np.sqrt(np.tile(ratios, _SCALES * len(strides)))
    return (steps * size * scales)[:, None] * np.stack([1 / roots, roots], axis=1), steps


def _best_overlap(sides: np.ndarray, shapes: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return the IoU of each box with the best anchor, with centres a quarter of a stride apart in x and y.

    A quarter is the average distance of a randomly placed box, as half is the maximum.
    """
    fitting = np.minimum(sides[:, None], shapes[None])
    beside = (sides[:, None] + shapes[None]) / 2 - steps[:, None] / 4
    shared = np.maximum(np.minimum(fitting, beside), 0).prod(axis=2)
    return (shared / (sides.prod(axis=1)[:, None] + shapes.prod(axis=1)[None] - shared)).max(axis=1)
