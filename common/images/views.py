"""The views of images that a teacher has extracted features of, for another network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.images.batches import draw_transforms
from common.images.features import seed_of_view


def view_transforms(
    count: int, size: tuple[int, int], *, augment: Sequence[str], views: int, seed: int, batch_size: int = 64
) -> np.ndarray:
    """Return the geometry of the views whose features `extract_features` returns, to show them to another network.

    Args:
        count: number of images, n.
        size: (height, width) at which the images are to be transformed; it may differ from the source's.
        augment, views, seed, batch_size: as for `extract_features`.

    Returns:
        Coefficients for `batches.transform_images`, float32 [views, n, 8]; the first view is the image itself.
    """
    of_views = np.tile(np.array([1, 0, 0, 0, 1, 0, 0, 0], np.float32), (views, count, 1))
    for view in range(1, views):
        for step, start in enumerate(range(0, count, batch_size)):
            chosen = of_views[view, start : start + batch_size]
            chosen[:] = draw_transforms(augment, seed_of_view(seed, view, step), len(chosen), size)
    return of_views
