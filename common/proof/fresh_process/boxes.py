"""Compares the boxes of a served detector with those of the evaluation."""

from pathlib import Path

import numpy as np
import tensorflow as tf

SAME_PLACE = 0.99  # IoU


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the IoU of each pair of boxes, [n, m]; 1 for two equal boxes without area."""
    low, high = np.maximum(boxes[:, None, :2], others[None, :, :2]), np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=2)
    areas = [np.prod(one[:, 2:] - one[:, :2], axis=1) for one in (boxes, others)]
    union = areas[0][:, None] + areas[1][None] - shared
    same = np.abs(boxes[:, None] - others[None]).max(axis=2) < 1e-3
    return np.where(same, 1.0, shared / np.maximum(union, 1e-9))


def match(boxes, scores, labels, expected) -> tuple[int, float]:
    """Return how many expected boxes were found, each once, and the largest difference of their scores."""
    overlap = overlaps(expected["boxes"], boxes)
    overlap[expected["labels"][:, None] != labels[None]] = 0.0
    came, largest = 0, 0.0
    for row in range(len(expected["boxes"])):
        if not overlap.shape[1]:
            break
        near = np.where(overlap[row] >= SAME_PLACE, -np.abs(scores - expected["scores"][row]), -np.inf)
        best = int(near.argmax())
        if np.isfinite(near[best]):
            came, largest = came + 1, max(largest, float(-near[best]))
            overlap[:, best] = 0.0
    return came, largest


def compare(version: Path, sent: dict, expected: dict[str, np.ndarray], batch_size: int = 8) -> dict:
    """Send the raw files to the signature without a threshold.

    Args:
        version: folder of the SavedModel.
        sent: "paths" of n images, "names" of the classes.
        expected: "counts" int [n], and of all boxes together "boxes", "scores", "labels".
        batch_size: files per request.

    Returns:
        {"agreement" (share of boxes found), "max_abs_diff" (of a score)}.
    """
    paths, numbers = sent["paths"], {name: number for number, name in enumerate(sent["names"])}
    ends = np.cumsum(expected["counts"])
    loaded = tf.saved_model.load(str(version))  # kept in a variable: a signature alone loses its variables
    serve = loaded.signatures["all"]
    came, returned, largest = 0, 0, 0.0
    for first in range(0, len(paths), batch_size):
        some = paths[first : first + batch_size]
        answer = serve(image=tf.constant([Path(path).read_bytes() for path in some]))
        answer = {name: tensor.numpy() for name, tensor in answer.items()}
        for row in range(len(some)):
            count, end = answer["count"][row], ends[first + row]
            own = slice(end - expected["counts"][first + row], end)
            labels = np.array([numbers[label.decode("utf-8")] for label in answer["labels"][row, :count]], np.int64)
            wanted = {name: expected[name][own] for name in ("boxes", "scores", "labels")}
            found, difference = match(answer["boxes"][row, :count], answer["scores"][row, :count], labels, wanted)
            came, returned, largest = came + found, returned + int(count), max(largest, difference)
    total = int(ends[-1]) if len(ends) else 0
    agreement = came / max(total, returned, 1) if max(total, returned) else 1.0
    return {"agreement": agreement, "max_abs_diff": largest}
