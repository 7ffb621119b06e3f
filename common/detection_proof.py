"""The proof of a detector: run as a script in a fresh process, it imports tensorflow and nothing of this project.

python -I common/detection_proof.py SAVED_MODEL INPUTS.json EXPECTED.npz RESULT.json
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

SAME_PLACE = 0.99  # IoU


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the IoU of each box with each other one, [n, m]; of two that are points in one place it is 1."""
    low, high = np.maximum(boxes[:, None, :2], others[None, :, :2]), np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=2)
    areas = [np.prod(one[:, 2:] - one[:, :2], axis=1) for one in (boxes, others)]
    union = areas[0][:, None] + areas[1][None] - shared
    same = np.abs(boxes[:, None] - others[None]).max(axis=2) < 1e-3
    return np.where(same, 1.0, shared / np.maximum(union, 1e-9))


def compare(boxes, scores, labels, expected) -> tuple[int, float]:
    """Return how many expected boxes came again, each once, and the largest difference of their scores."""
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


def main(version: Path, inputs_file: Path, expected_file: Path, result_file: Path, batch_size: int = 8) -> None:
    """Send the raw files to the signature that leaves nothing out, and compare with what evaluation saw."""
    asked = json.loads(inputs_file.read_text(encoding="utf-8"))
    paths, numbers = asked["paths"], {name: number for number, name in enumerate(asked["names"])}
    expected = dict(np.load(expected_file, allow_pickle=False))
    ends = np.cumsum(expected["counts"])
    loaded = tf.saved_model.load(str(version))  # held in a name: a signature alone loses its variables
    serve = loaded.signatures["all"]
    came, returned, largest = 0, 0, 0.0
    for first in range(0, len(paths), batch_size):
        some = paths[first : first + batch_size]
        answer = serve(image=tf.constant([Path(path).read_bytes() for path in some]))
        answer = {name: tensor.numpy() for name, tensor in answer.items()}
        for row in range(len(some)):
            count, end = answer["count"][row], ends[first + row]
            part = slice(end - expected["counts"][first + row], end)
            labels = np.array([numbers[label.decode("utf-8")] for label in answer["labels"][row, :count]], np.int64)
            wanted = {name: expected[name][part] for name in ("boxes", "scores", "labels")}
            found, difference = compare(answer["boxes"][row, :count], answer["scores"][row, :count], labels, wanted)
            came, returned, largest = came + found, returned + int(count), max(largest, difference)
    total = int(ends[-1]) if len(ends) else 0
    agreement = came / max(total, returned, 1) if max(total, returned) else 1.0
    # By path: -I keeps this folder out of sys.path.
    spec = importlib.util.spec_from_file_location("proof", Path(__file__).with_name("proof.py"))
    proof = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(proof)
    proof.write_result(result_file, version, agreement=agreement, max_abs_diff=largest)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:5]))
