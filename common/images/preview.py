"""Images for display: a sheet of samples, and thumbnails for a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from common.reporting import jpeg_of_image

THUMBNAIL_PIXELS = 160


def write_sample_grid(path: Path, images: np.ndarray, titles: Sequence[str], columns: int = 6) -> Path:
    """Write a grid of images as the model receives them in training.

    Args:
        path: PNG file to write.
        images: float32 [n, height, width, 3], 0 to 255.
        titles: one per image.
        columns: images per row.

    Returns:
        The path.
    """
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.8 * columns, 2.0 * rows), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, image, title in zip(figure.axes, images, titles, strict=False):
        axes.imshow(image.astype(np.uint8), interpolation="nearest")
        axes.set_title(title[:24], fontsize=8, parse_math=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    return path


def thumbnails(paths: Sequence[str]) -> Callable[[Sequence[int]], list[dict | None]]:
    """Return a preview for reports: indices into `paths` -> "image" (a data URI), "name"; None where unreadable."""

    def preview(places: Sequence[int]) -> list[dict | None]:
        shown = [(str(paths[place]), thumbnail(str(paths[place]))) for place in places]
        return [image and {"image": image, "name": Path(path).name} for path, image in shown]

    return preview


def thumbnail(path: str) -> str | None:
    """Return an image file as a small JPEG in a data URI; None where it cannot be read."""
    try:
        with Image.open(path) as image:
            # Not rotated by EXIF: TensorFlow's decoder ignores it, so this is the model's input.
            image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
            small = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return jpeg_of_image(small)
