"""Labels, as `python -m recipes predict` prints them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from common.exporting import Answers


def parse_label(outputs: Mapping[str, np.ndarray], row: int) -> dict:
    """Return the label of one example, its probability, and the probabilities of all classes."""
    probabilities = [float(value) for value in outputs["probabilities"][row]]
    names = [name.decode() for name in outputs["class_names"][row]]
    return {
        "label": outputs["label"][row].decode(),
        "probability": max(probabilities),
        "probabilities": dict(zip(names, probabilities, strict=True)),
    }


def show_label(answer: dict, name: str, _place: Path) -> str:
    """Return the line that is printed for an example."""
    return f"{name}  {answer['label']}  {answer['probability']:.4f}"


LABELS = Answers(("label", "probabilities", "class_names"), parse_label, show_label)
