"""Whether probabilities mean what they say, and the one number that makes them: the temperature."""

from __future__ import annotations

import keras
import numpy as np
from scipy.optimize import minimize_scalar

BINS = 15


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> list[dict]:
    """Return, for each range of confidence, how often the model was right there.

    Args:
        labels: true classes, int [n].
        probabilities: float [n, classes].
        bins: number of ranges of equal width between 0 and 1.

    Returns:
        One dict for each range with examples in it: low, high, confidence (mean), accuracy, count.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # (low, high], as in the paper
    return [
        {
            "low": k / bins,
            "high": (k + 1) / bins,
            "confidence": float(confidence[place == k].mean()),
            "accuracy": float(right[place == k].mean()),
            "count": int(np.sum(place == k)),
        }
        for k in np.unique(place)
    ]


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> float:
    """Return the mean distance of confidence and accuracy over ranges of confidence (ECE, arXiv:1706.04599).

    Args:
        labels: true classes, int [n].
        probabilities: float [n, classes].
        bins: number of ranges.

    Returns:
        0 for a model that is right as often as it says, at most 1.
    """
    rows = reliability(labels, probabilities, bins)
    return sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in rows) / len(labels)


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return softmax(logits / temperature) for given softmax(logits); the order of the classes stays.

    Args:
        probabilities: float [n, classes].
        temperature: above 1 makes the model less sure, below 1 more.

    Returns:
        float32 [n, classes].
    """
    logits = np.log(np.maximum(probabilities.astype("float64"), 1e-30)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype("float32")


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the temperature with the lowest cross-entropy (temperature scaling, arXiv:1706.04599).

    Args:
        labels: true classes of the validation part, int [n].
        probabilities: of the validation part, float [n, classes].

    Returns:
        A number from 0.05 to 20.
    """

    def cross_entropy(log_temperature: float) -> float:
        said = apply_temperature(probabilities, float(np.exp(log_temperature)))
        return -float(np.mean(np.log(np.maximum(said[np.arange(len(labels)), labels], 1e-30))))

    return float(np.exp(minimize_scalar(cross_entropy, bounds=np.log([0.05, 20.0]), method="bounded").x))


def divide_logits(head: keras.layers.Dense, temperature: float) -> None:
    """Build the temperature into a softmax head's weights: the exported graph stays as it is."""
    head.set_weights([weight / temperature for weight in head.get_weights()])


def with_and_without_temperature(
    val_labels: np.ndarray, val_probabilities: np.ndarray, labels: np.ndarray, probabilities: np.ndarray,
    applied: float | None,
) -> dict:  # fmt: skip
    """Return the expected calibration error on the test part, as it is and with the temperature that validation wants.

    Args:
        val_labels: int [m].
        val_probabilities: before any temperature, float [m, classes].
        labels: of the test part, int [n].
        probabilities: of the test part, as exported, float [n, classes].
        applied: the temperature that is built into the model; None where there is none.

    Returns:
        {"temperature", "applied", "ece_without", "ece_with"}.
    """
    fitted = fit_temperature(val_labels, val_probabilities)
    raw = probabilities if applied is None else apply_temperature(probabilities, 1 / applied)
    return {
        "temperature": round(fitted, 4),
        "applied": applied is not None,
        "ece_without": expected_calibration_error(labels, raw),
        "ece_with": expected_calibration_error(labels, apply_temperature(raw, fitted)),
    }


def sentences(numbers: dict) -> tuple[str, ...]:
    """Return advice where a temperature would help: from what `with_and_without_temperature` found."""
    if numbers["applied"] or numbers["ece_without"] - numbers["ece_with"] <= 0.02:
        return ()
    return (
        f"The probabilities are off by {100 * numbers['ece_without']:.1f} points on average; --calibrate would make "
        f"that {100 * numbers['ece_with']:.1f}.",
    )
