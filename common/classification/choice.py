"""Choices between classifiers, made on the validation split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np

from common.classification.calibration import apply_temperature, fit_temperature


def calibrated_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the cross-entropy of each example at the temperature that fits all of them best, float64 [n].

    Its mean compares models more finely than accuracy, which on few examples only has a few values, and it does not
    favour the one that happens to be less overconfident.

    Args:
        labels: true classes, int [n].
        probabilities: float [n, classes].
    """
    scaled = apply_temperature(probabilities, fit_temperature(labels, probabilities))
    return -np.log(np.maximum(scaled[np.arange(len(labels)), labels].astype("float64"), 1e-30))


def best_on_validation(labels: np.ndarray, candidates: Mapping) -> object:
    """Return the name of the candidate with the lowest calibrated cross-entropy; of equals the first.

    Args:
        labels: of the validation split, int [n].
        candidates: name -> probabilities for the validation split, float [n, classes].
    """
    return min(candidates, key=lambda name: calibrated_losses(labels, candidates[name]).mean())


# Chosen on parts of training splits: benchmarks/results/unfreeze_choice.json.
# Shares of the way from the pretrained weights to the fine-tuned ones, in the order of preference. Fine-tuning seldom
# costs anything where the head is fitted anew at each of them, on train and validation; else it often does.
CAUTIOUS, BOLD = (0.0, 0.25, 0.5, 0.75, 1.0), (1.0, 0.5, 0.0)
ERRORS = 1.0  # standard errors that count as chance
FEWEST = 10  # validation examples from which a standard error can be told
FEWEST_ERRORS = 5  # of the frozen source, for a gain to show: correcting all of them has p = 0.06 (sign test)


def within_standard_errors(
    labels: np.ndarray, candidates: Mapping[float, np.ndarray], errors: float = ERRORS
) -> tuple[float, dict[float, float]]:
    """Return the first candidate whose loss exceeds the lowest by no more than some standard errors, in pairs.

    Args:
        labels: of the validation split, int [n].
        candidates: probabilities for validation, float [n, classes], of models in the order of preference.
        errors: standard errors of the mean difference that count as chance.

    Returns:
        (its name, the mean calibrated loss of each).
    """
    losses = {name: calibrated_losses(labels, probabilities) for name, probabilities in candidates.items()}
    best, n = min(losses.values(), key=np.mean), len(labels)
    allowed = {name: errors * np.std(one - best) / np.sqrt(max(n - 1, 1)) + 1e-3 for name, one in losses.items()}
    kept = next(name for name, one in losses.items() if np.mean(one - best) <= allowed[name])
    return kept, {name: float(one.mean()) for name, one in losses.items()}


def too_few_errors(labels: np.ndarray, frozen: np.ndarray) -> str:
    """Return a sentence if validation could not show that fine-tuning helps, so that it need not be tried; else "".

    Args:
        labels: of the validation split, int [n].
        frozen: probabilities of the frozen source for validation, float [n, classes].
    """
    errors, n = int((frozen.argmax(axis=1) != labels).sum()), len(labels)
    if n >= FEWEST and errors >= FEWEST_ERRORS:
        return ""
    few = f"{n} validation example{'s are' if n > 1 else ' is'}" if n < FEWEST else (
        f"the frozen source makes {errors} error{'s' * (errors != 1)} on {n} validation examples,"
    )  # fmt: skip
    return (
        f"Fine-tuning was not tried: {few} too few to show that it would help. "
        "To fine-tune all the same: --unfreeze all"
    )


def keep_what_helps(
    model: keras.Model, start: Sequence[np.ndarray], frozen: np.ndarray, predict: Callable[[], np.ndarray],
    labels: np.ndarray, *, order: Sequence[float] = CAUTIOUS, head: keras.layers.Layer | None = None,
) -> tuple[float, np.ndarray, str]:  # fmt: skip
    """Go from the pretrained weights towards the fine-tuned ones as far as validation supports.

    Weights on the straight line between both often generalise better than either end (WiSE-FT, arXiv:2109.01903). Of
    the points in `order`, the first one is kept whose calibrated cross-entropy is within one standard error of the
    best (Hastie, Tibshirani, Friedman, The Elements of Statistical Learning, section 7.10), so that few validation
    examples seldom decide by chance. With fewer than FEWEST of them, the frozen source is kept.

    Args:
        model: fine-tuned; its weights are set. Where the frozen source is kept, its own head has to be put back.
        start: all its weights when fine-tuning began.
        frozen: probabilities of the frozen source with its own head for validation, float [n, classes].
        predict: returns the probabilities of the model for validation; it may fit `head` anew.
        labels: of the validation split, int [n].
        order: shares of the way, in the order of preference; 0, the frozen source, is one of them.
        head: the layer that `predict` fits, if it does.

    Returns:
        (share of the way that is kept, 0 for the frozen source; the probabilities there, float [n, classes]; a sentence
        on the choice).
    """
    end, found, fitted = model.get_weights(), {}, {}

    def go_to(share: float) -> None:
        model.set_weights([(1 - share) * before + share * after for before, after in zip(start, end, strict=True)])

    for share in order:
        if share:
            go_to(share)
        found[share] = predict() if share else frozen
        fitted[share] = head.get_weights() if head else None
    kept, losses = within_standard_errors(labels, found)
    kept = kept if len(labels) >= FEWEST else 0.0
    go_to(kept)
    if head:
        head.set_weights(fitted[kept])
    sentence = f"Fine-tuning is kept at {kept:.0%} of the way" if kept else "Fine-tuning was tried and is not kept"
    numbers = ", ".join(f"{losses[share]:.3f} at {share:.0%}" for share in sorted(losses) if share)
    chance = "Differences within one standard error" if len(labels) >= FEWEST else "On so few, all differences"
    return (
        kept,
        found[kept],
        f"{sentence}: the calibrated cross-entropy on {len(labels)} validation examples is {losses[0.0]:.3f} with the "
        f"frozen source, {numbers}. {chance} count as chance.",
    )
