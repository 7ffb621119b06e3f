"""Detections as shown by `python -m recipes predict`: printed in a line, and drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from common.detection.drawing import draw_boxes
from common.exporting import Answers
from common.files import write_atomically


def parse_boxes(outputs: Mapping[str, np.ndarray], row: int) -> dict:
    """Return label, score and box of each object of one image."""
    found = zip(*(outputs[name][row][: outputs["count"][row]] for name in ("labels", "scores", "boxes")), strict=True)
    return {
        "objects": [
            {"label": label.decode(), "score": float(score), "box": [round(float(side), 1) for side in box]}
            for label, score, box in found
        ]
    }


def show_boxes(answer: dict, name: str, place: Path) -> str:
    """Draw the detections and return the line to print."""
    objects = answer["objects"]
    found = "; ".join(f"{one['label']} {one['score']:.2f}" for one in objects) or "nothing"
    return f"{name}  {found}  drawn: {_draw(Path(name), objects, place)}"


def _draw(file: Path, objects: list[dict], place: Path) -> Path:
    # As the model receives it: TensorFlow's decoder ignores the EXIF orientation.
    pixels = tf.io.decode_image(file.read_bytes(), channels=3, expand_animations=False).numpy()
    names = sorted({one["label"] for one in objects})
    image = draw_boxes(
        pixels,
        np.array([one["box"] for one in objects]).reshape(-1, 4),
        np.array([names.index(one["label"]) for one in objects], int),
        names,
        np.array([one["score"] for one in objects]),
    )
    return write_atomically(Path(f"{place}.png"), lambda partial: image.save(partial, "PNG"))


BOXES = Answers(("boxes", "labels", "scores", "count"), parse_boxes, show_boxes)
