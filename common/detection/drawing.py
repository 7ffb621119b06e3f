"""Bounding boxes drawn on images, for reports and previews."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from common.images.preview import write_sample_grid

_SMALLEST = 320  # pixels of the longer side; in smaller images the class names are unreadable
_NO_CLASS = (150, 150, 150)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    scores: np.ndarray | None = None,
) -> Image.Image:
    """Draw boxes and their class names on an image; small images are enlarged so that the names are readable.

    Args:
        image: uint8 [height, width, 3].
        boxes: xmin, ymin, xmax, ymax in pixels of the image, [k, 4].
        labels: class numbers, int [k]. -1 is padding and not drawn; other negative numbers are drawn as `ignored`.
        class_names: name of each class number.
        scores: 0 to 1, written after the names, [k]; or None.

    Returns:
        An RGB image, enlarged by an integer factor.
    """
    height, width = image.shape[:2]
    times = max(1, -(-_SMALLEST // max(height, width)))
    drawn = Image.fromarray(image).resize((width * times, height * times), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(drawn)
    long = max(drawn.size)
    font, line = ImageFont.load_default(max(11, long // 50)), max(2, long // 300)
    places = [place for place, label in enumerate(labels) if label != -1]
    # In ascending order of scores, so that the highest score lies on top; names after all boxes, on top of them.
    places.sort(key=lambda place: 0.0 if scores is None else scores[place])
    corners = [[round(float(number) * times) for number in boxes[place]] for place in places]
    for place, (left, top, right, bottom) in zip(places, corners, strict=True):
        draw.rectangle(
            (left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour_of(labels[place]), width=line
        )
    taken: list[tuple[int, int, int, int]] = []
    for place, corner in reversed(list(zip(places, corners, strict=True))):
        label = int(labels[place])
        text = class_names[label] if label >= 0 else "ignored"
        text += "" if scores is None else f" {scores[place]:.2f}"
        ground = _free_place(draw.textbbox((0, 0), text, font=font), corner, drawn.size, taken)
        taken.append(ground)
        colour = colour_of(label)
        draw.rectangle(ground, fill=colour)
        bright = np.dot(colour, (0.299, 0.587, 0.114)) > 140
        draw.text((ground[0] + 2, ground[1] + 1), text, fill=(0, 0, 0) if bright else (255, 255, 255), font=font)
    return drawn


def colour_of(label: int) -> tuple[int, int, int]:
    """Return the colour of a class, RGB from 0 to 255: the same in every image, distinct from its neighbours."""
    if label < 0:
        return _NO_CLASS
    # Steps of the golden ratio around the colour wheel never repeat a hue.
    hue, value = (0.02 + int(label) * 0.618034) % 1.0, (1.0, 0.75)[int(label) // 8 % 2]
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.85, value))
    return red, green, blue


def _free_place(
    text: tuple[float, float, float, float],
    corner: Sequence[int],
    size: tuple[int, int],
    taken: Sequence[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    """Return where to write a name: above its box, inside or below, without covering another name if possible.

    Args:
        text: extent of the name drawn at (0, 0), in pixels.
        corner: the box.
        size: width and height of the image.
        taken: positions of the names already written.
    """
    width, height = int(text[2]) + 4, int(text[3]) + 3
    left, top, right, bottom = corner
    fitting = []
    for x, y in ((left, top - height), (left, top), (left, bottom), (right - width, bottom - height)):
        x, y = max(0, min(x, size[0] - width - 1)), max(0, min(y, size[1] - height - 1))
        fitting.append((x, y, x + width, y + height))
    free = (
        one
        for one in fitting
        if not any(one[0] < x2 and x1 < one[2] and one[1] < y2 and y1 < one[3] for x1, y1, x2, y2 in taken)
    )
    return next(free, fitting[0])


def write_sheet(path: Path, images, boxes, labels, class_names: Sequence[str]) -> Path:
    """Draw a batch with its boxes as one image.

    Args:
        path: of the PNG file.
        images: float32 [batch, height, width, 3], 0 to 255.
        boxes: xmin, ymin, xmax, ymax in pixels, [batch, n, 4].
        labels: class numbers, int [batch, n]; negative for rows without an object.
        class_names: of the classes.

    Returns:
        The path.
    """
    drawn = [
        np.asarray(draw_boxes(image.astype(np.uint8), some[kinds >= 0], kinds[kinds >= 0], class_names))
        for image, some, kinds in zip(images, boxes, labels, strict=True)
    ]
    return write_sample_grid(path, np.stack(drawn), [""] * len(drawn), columns=4)
