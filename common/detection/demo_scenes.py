"""The demo:scenes of object detection: scikit-learn's handwritten digits, placed in generated scenes."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from common.data import splits
from common.images.files import write_image

SIDE = 128
SCENES = {"train": 600, "val": 60, "test": 80}
_SEED = 20
_EMPTY_EVERY = 10
_MOST_DIGITS = 6
_HEIGHTS = (16, 48)
_LARGEST_OVERLAP = 0.15  # of the smaller box: an IoU below 0.1


@dataclass(frozen=True)
class Scene:
    """One image of the demo.

    Attributes:
        path: file of the image, RGB, SIDE by SIDE pixels.
        split: train, val or test.
        boxes: xmin, ymin, xmax, ymax in pixels, float64 [k, 4]; max is the first pixel after the digit.
        labels: "0" to "9", k of them.
    """

    path: str
    split: str
    boxes: np.ndarray
    labels: tuple[str, ...]


def write_scenes(folder: Path) -> list[Scene]:
    """Draw the scenes into a folder and return them; they are the same every time.

    Each digit image is used in one split only, so that no test digit is seen in training. Every tenth scene is empty.
    """
    from sklearn.datasets import load_digits  # here: slow to import, and only the demo needs it

    digits = load_digits()
    hashes = [hashlib.sha256(glyph.tobytes()).hexdigest() for glyph in digits.images]
    split_of_digit = splits.split_by_hash(hashes, digits.target, {"test": 0.2, "val": 0.15, "train": 1.0})
    scenes = []
    for number, (split, count) in enumerate(SCENES.items()):
        mine = np.flatnonzero(split_of_digit == split)
        for index in range(count):
            rng = np.random.default_rng([_SEED, number, index])  # one per scene, so that scenes are independent
            count_of_digits = 0 if index % _EMPTY_EVERY == _EMPTY_EVERY - 1 else int(rng.integers(1, _MOST_DIGITS + 1))
            chosen = rng.choice(mine, count_of_digits, replace=False)
            pixels, boxes, placed = draw_scene(rng, digits.images[chosen] / 16)
            encoded = io.BytesIO()
            Image.fromarray(pixels).save(encoded, "JPEG", quality=92)
            path = folder / split / f"{index:04d}.jpg"
            write_image(path, encoded.getvalue())
            labels = tuple(str(digits.target[chosen[place]]) for place in placed)
            scenes.append(Scene(str(path), split, boxes, labels))
    return scenes


def draw_scene(rng: np.random.Generator, glyphs: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Draw glyphs on a new background, each with a random size, angle, colour and contrast.

    Args:
        rng: source of all randomness.
        glyphs: float [k, 8, 8], 0 for background and 1 for ink.

    Returns:
        (image, uint8 [SIDE, SIDE, 3]; boxes, float64 [n, 4]; index of the glyph in each box, n numbers). n < k if a
        glyph did not fit.
    """
    canvas = _background(rng)
    boxes: list[np.ndarray] = []
    placed = []
    for index, glyph in enumerate(glyphs):
        ink = _ink(rng, glyph)
        height, width = ink.shape
        for _ in range(50):
            left, top = (int(rng.integers(0, SIDE - size + 1)) for size in (width, height))
            box = np.array([left, top, left + width, top + height], float)
            if all(_overlap(box, other) < _LARGEST_OVERLAP for other in boxes):
                place = canvas[top : top + height, left : left + width]
                strength = rng.uniform(0.75, 1.0) * ink[..., None]
                place += (_colour_on(rng, place.mean(axis=(0, 1))) - place) * strength
                boxes.append(box)
                placed.append(index)
                break
    canvas += rng.normal(0, 4, canvas.shape)  # camera noise, over digits and background
    return canvas.clip(0, 255).round().astype(np.uint8), np.array(boxes).reshape(-1, 4), placed


def _ink(rng: np.random.Generator, glyph: np.ndarray) -> np.ndarray:
    """Return a glyph with a random size and angle, cropped to its ink: float [height, width], 0 to 1."""
    height = float(np.exp(rng.uniform(*np.log(_HEIGHTS))))  # log-uniform: small and large ones are equally frequent
    small = Image.fromarray((np.pad(glyph, 2) * 255).astype(np.uint8))  # margin for the rotation
    side = round(height * 12 / 8)
    turned = small.resize((side, side), Image.Resampling.BICUBIC).rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC)
    ink = ((np.asarray(turned, float) / 255 - 0.25) / 0.35).clip(0, 1)  # 8 enlarged pixels are blurred: sharpen
    rows, columns = (np.flatnonzero((ink > 0.5).any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _colour_on(rng: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    """Return a random colour that contrasts with the background by a third of the range."""
    for _ in range(100):
        colour = rng.uniform(0, 255, 3)
        if abs(colour.mean() - ground.mean()) > 80:
            return colour
    return np.full(3, 255.0 if ground.mean() < 128 else 0.0)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the intersection of two boxes over the area of the smaller one, 0 to 1."""
    shared = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0).prod()
    return float(shared / min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod()))


def _background(rng: np.random.Generator) -> np.ndarray:
    """Return a gradient with clouds, stripes and shapes, float [SIDE, SIDE, 3], about 0 to 255.

    Shapes are as bright or as dark as digits: no threshold separates them.
    """
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
    first, second = rng.uniform(40, 215, (2, 3))
    angle = rng.uniform(0, 2 * np.pi)
    along = (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)) / np.sqrt(2) + 0.5
    canvas = first + (second - first) * along[..., None]
    canvas = _with_shapes(rng, canvas)
    for cells in (4, 8, 16, 32, SIDE):
        canvas += rng.uniform(0, 12) * _clouds(rng, cells)
    if rng.random() < 0.5:
        angle, length = rng.uniform(0, np.pi), rng.uniform(5, 25)
        phase = 2 * np.pi * SIDE / length * (np.cos(angle) * x + np.sin(angle) * y)
        canvas += rng.uniform(4, 25) * np.sin(phase)[..., None] * rng.uniform(0.5, 1, 3)
    return canvas


def _with_shapes(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Draw lines from edge to edge and filled shapes: bright and dark distractors."""
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 6)):
        colour = tuple(int(level) for level in rng.integers(0, 256, 3))
        kind = rng.integers(3)
        if kind == 0:
            ends = rng.integers(0, SIDE, 2)
            line = [(-2, ends[0]), (SIDE + 2, ends[1])] if rng.random() < 0.5 else [(ends[0], -2), (ends[1], SIDE + 2)]
            draw.line([(int(a), int(b)) for a, b in line], fill=colour, width=int(rng.integers(1, 5)))
        elif kind == 1:
            left, top = (int(place) for place in rng.integers(-10, SIDE, 2))
            width = int(rng.integers(10, 50))
            height = int(width * rng.uniform(0.7, 1.4))  # a narrow one would be a 1
            draw.ellipse((left, top, left + width, top + height), fill=colour)
        else:
            centre, spread = rng.integers(0, SIDE, 2), rng.integers(8, 40)
            corners = centre + rng.integers(-spread, spread + 1, (3, 2))
            draw.polygon([(int(a), int(b)) for a, b in corners], fill=colour)
    return np.asarray(image, float)


def _clouds(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Return smooth noise with this many cells per side, mostly grey, float [SIDE, SIDE, 3], about -2 to 2."""
    noise = rng.normal(0, 1, (cells, cells, 1)) + rng.normal(0, 0.4, (cells, cells, 3))
    layers = [
        np.asarray(
            Image.fromarray(noise[..., channel].astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        )
        for channel in range(3)
    ]
    return np.stack(layers, axis=-1)
