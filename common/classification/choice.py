"""Choices between classifiers, made on the validation split."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from common.classification.calibration import apply_temperature, fit_temperature
from common.linear_head import score


def calibrated_cross_entropy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the cross-entropy of probabilities at the temperature that fits them best.

    It compares models more finely than accuracy, which on few examples only has a few values, and it does not favour
    the one that happens to be less overconfident.

    Args:
        labels: true classes, int [n].
        probabilities: float [n, classes].
    """
    scaled = apply_temperature(probabilities, fit_temperature(labels, probabilities))
    return score(scaled, labels)["cross_entropy"]


def best_on_validation(labels: np.ndarray, candidates: Mapping) -> object:
    """Return the name of the candidate with the lowest calibrated cross-entropy; of equals the first.

    Args:
        labels: of the validation split, int [n].
        candidates: name -> probabilities for the validation split, float [n, classes].
    """
    return min(candidates, key=lambda name: calibrated_cross_entropy(labels, candidates[name]))


def describe_choice(labels: np.ndarray, frozen: np.ndarray, tuned: np.ndarray) -> str:
    """Return the sentence on whether the fine-tuned model is kept, and why.

    Args:
        labels: of the validation split, int [n].
        frozen: probabilities of the frozen source with its head, float [n, classes].
        tuned: those after fine-tuning.
    """
    known, new = (calibrated_cross_entropy(labels, probabilities) for probabilities in (frozen, tuned))
    kept = "is kept" if new < known else "was tried and is not kept"
    return (
        f"Fine-tuning {kept}: on {len(labels)} validation examples the cross-entropy is {known:.3f} with the frozen "
        f"source and {new:.3f} after fine-tuning."
    )
