"""Anchors that fit the boxes of a data set, and the check that every box has one: a box without learns nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans

from common.detection_proof import overlaps
from common.errors import UserError

LEARNED = 0.5  # IoU from which an anchor learns a box; as in RetinaNet (arXiv:1708.02002)
_SCALES = 3  # sizes within an octave; from the same paper


@dataclass(frozen=True)
class Anchors:
    """Shapes of the anchors: at each level, every ratio in three sizes.

    Attributes:
        size: side of the smallest anchor of a level, in cells of that level.
        ratios: height over width.
    """

    size: float
    ratios: tuple[float, ...]

    def __str__(self) -> str:
        ratios = ", ".join(f"{ratio:.2g}" for ratio in self.ratios)
        return f"anchors of {self.size:.2g} cells and up, height over width {ratios}"


def fit_anchors(boxes: np.ndarray, strides: Sequence[int]) -> Anchors:
    """Choose the anchors that suit the boxes of a data set.

    The ratios are the middles of three groups of boxes (k-means over the logarithm, so that twice as wide is as far
    from square as twice as high). The size is the one with which boxes overlap most with the best anchor's shape.

    Args:
        boxes: in pixels of the input, float32 [n, 4]; at least one.
        strides: pixels of a cell at each level.
    """
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-3)
    shapes = np.log(sides[:, 1:] / sides[:, :1])
    groups = min(3, len(np.unique(shapes.round(3))))
    middles = KMeans(groups, n_init=10, random_state=0).fit(shapes).cluster_centers_.ravel()
    ratios = tuple(float(ratio) for ratio in np.exp(np.sort(middles)))
    sizes = np.geomspace(1.0, 8.0, 19)
    fit = [_shape_overlap(sides, _shapes(size, ratios, strides)).mean() for size in sizes]
    return Anchors(float(sizes[int(np.argmax(fit))]), ratios)


def check_anchors(anchors: np.ndarray, boxes: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> str:
    """Stop a run that could never learn.

    Args:
        anchors: all anchors of the input, xmin, ymin, xmax, ymax in its pixels, float32 [m, 4].
        boxes: those of the training pictures in pixels of the input, float32 [n, 4].
        labels: class of each, int [n].
        class_names: of the classes.

    Returns:
        A sentence for the user: how many boxes have an anchor.

    Raises:
        UserError: half of the boxes of a class have none.
    """
    best = np.concatenate([overlaps(some, anchors).max(axis=1) for some in np.array_split(boxes, len(boxes) // 64 + 1)])
    covered = best >= LEARNED
    for number, name in enumerate(class_names):
        of_class = covered[labels == number]
        if len(of_class) and of_class.mean() < 0.5:
            raise UserError(
                f"{(~of_class).sum()} of {len(of_class)} boxes of class {name!r} have no anchor that overlaps by "
                f"{LEARNED:.0%}, so most of them could never be learned: they are too small or too narrow for this "
                "input. Allowed: a larger --image-size, or --detector fcos, which needs no anchors."
            )
    return f"{covered.mean():.1%} of the training boxes have an anchor that overlaps by {LEARNED:.0%} or more"


def _shapes(size: float, ratios: Sequence[float], strides: Sequence[int]) -> np.ndarray:
    """Return width and height of every anchor, float [m, 2]."""
    sides = np.array([stride * size * 2 ** (step / _SCALES) for stride in strides for step in range(_SCALES)])
    roots = np.sqrt(np.array(ratios))
    return np.stack([np.outer(sides, 1 / roots).ravel(), np.outer(sides, roots).ravel()], axis=1)


def _shape_overlap(sides: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Return the IoU of each box with the best shape, as if both had one centre."""
    shared = np.minimum(sides[:, None], shapes[None]).prod(axis=2)
    return (shared / (sides.prod(axis=1)[:, None] + shapes.prod(axis=1)[None] - shared)).max(axis=1)
