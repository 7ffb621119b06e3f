"""Few-shot selections of labelled examples, for `--shots`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.errors import UserError


def draw_shots(
    train: np.ndarray, val: np.ndarray, class_names: Sequence[str], shots: int, seed: int, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """Draw N examples per class to train on, and at most as many for validation.

    With a full validation split, few-shot results would profit from labels that are not there (arXiv:2012.15723).

    Args:
        train: class number of each training example, int [n].
        val: class number of each validation example, int [m].
        class_names: name of each class number.
        shots: examples per class.
        seed: decides which.
        what: one example, for messages: `image`, `text`.

    Returns:
        (indices of the training examples, indices of the validation examples), both ascending.

    Raises:
        UserError: a class has fewer training examples.
    """
    sizes = np.bincount(train, minlength=len(class_names))
    if sizes.min() < shots:
        raise UserError(
            f"--shots {shots}: the class {class_names[sizes.argmin()]!r} has {sizes.min()} training {what}s. Allowed: "
            f"at most the size of the smallest class, or no --shots. Try: --shots {max(1, sizes.min())}"
        )
    drawn = []
    for labels in (train, val):
        rng = np.random.default_rng(seed)
        of_classes = [rng.permutation(np.flatnonzero(labels == number))[:shots] for number in range(len(class_names))]
        drawn.append(np.sort(np.concatenate(of_classes)))
    return drawn[0], drawn[1]
