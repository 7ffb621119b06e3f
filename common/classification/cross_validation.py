"""Cross-validation of the training examples, for data sets too small for one validation split."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np


def cross_validate(
    folds: Iterable[tuple[np.ndarray, np.ndarray]], labels: np.ndarray, predict: Callable[..., np.ndarray]
) -> tuple[dict, str]:
    """Train once per fold, without that fold, and measure the accuracy on it.

    Args:
        folds: (indices of the examples to train on, indices of those to test on) of each fold.
        labels: of the training examples, int [n].
        predict: (number of the fold from 1, examples to train on, examples to test on) -> probabilities of the
            latter, float32 [m, classes]; every choice is made on the validation split, as always.

    Returns:
        (numbers for metrics.json, a sentence for the report).
    """
    folds = list(folds)
    accuracies = []
    for number, (rest, fold) in enumerate(folds, start=1):
        print(f"fold {number} of {len(folds)}: {len(rest)} examples to train on, {len(fold)} to test on")
        accuracies.append(float(np.mean(predict(number, rest, fold).argmax(axis=1) == labels[fold])))
    mean, std = float(np.mean(accuracies)), float(np.std(accuracies, ddof=1))
    numbers = {"folds": len(folds), "accuracy": {"mean": mean, "std": std, "folds": accuracies}}
    return numbers, (
        f"Cross-validation of the {len(labels)} training examples in {len(folds)} folds: accuracy {100 * mean:.1f} %, "
        f"with a standard deviation of {100 * std:.1f} points between folds."
    )
