"""Calibration of probabilities: expected calibration error and temperature scaling."""

from __future__ import annotations

import keras
import numpy as np
from scipy.optimize import minimize_scalar

BINS = 15


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> list[dict]:
    """Return the accuracy of the model in each range of confidence.

    Args:
        labels: true classes, int [n].
        probabilities: float [n, classes].
        bins: number of ranges of equal width between 0 and 1.

    Returns:
        One dict per range with examples in it: low, high, confidence (mean), accuracy, count.
    """
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    place = _bin_of(confidence, bins)
    return [
        {
            "low": k / bins,
            "high": (k + 1) / bins,
            "confidence": float(confidence[place == k].mean()),
            "accuracy": float(correct[place == k].mean()),
            "count": int(np.sum(place == k)),
        }
        for k in np.unique(place)
    ]


def _bin_of(confidence: np.ndarray, bins: int) -> np.ndarray:
    return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # (low, high], as in the paper


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error: the mean gap between confidence and accuracy (arXiv:1706.04599).

    Args:
        labels: true classes, int [n].
        probabilities: float [n, classes].
        bins: number of ranges.

    Returns:
        A number from 0 (confidence equals accuracy) to 1.
    """
    rows = reliability(labels, probabilities, bins)
    return sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in rows) / len(labels)


def ece_if_calibrated95(probabilities: np.ndarray, seed: int = 0, repeats: int = 1000) -> list[float]:
    """Return the range in which the ECE of a perfectly calibrated model with these confidences lies 95 % of the time.

    The fewer the examples, the higher: an ECE within this range is no evidence of miscalibration. Simulated: each
    prediction is correct with its own confidence as probability (consistency resampling, Bröcker and Smith, 2007,
    doi:10.1175/WAF993.1).

    Args:
        probabilities: float [n, classes].
        seed: of the simulation.
        repeats: simulated test splits.

    Returns:
        [low, high].
    """
    confidence = probabilities.max(axis=1).astype("float64")
    place = _bin_of(confidence, BINS)
    rng, errors = np.random.default_rng(seed), []
    for _ in range(repeats):
        gaps = np.bincount(place, (rng.random(len(confidence)) < confidence) - confidence)
        errors.append(np.abs(gaps).sum() / len(confidence))
    return [float(bound) for bound in np.percentile(errors, [2.5, 97.5])]


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return softmax(logits / temperature) from softmax(logits); the order of the classes is preserved.

    Args:
        probabilities: float [n, classes].
        temperature: above 1 reduces confidence, below 1 increases it.

    Returns:
        float32 [n, classes].
    """
    logits = np.log(np.maximum(probabilities.astype("float64"), 1e-30)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype("float32")


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the temperature with the lowest cross-entropy (temperature scaling, arXiv:1706.04599).

    Each label counts as (n + 1) / (n + 2) certain, as in Platt scaling (Platt, 1999, "Probabilistic outputs for support
    vector machines"): otherwise a few examples without a mistake would make every probability 1.

    Args:
        labels: true classes of the validation split, int [n].
        probabilities: of the validation split, float [n, classes].

    Returns:
        A number from 0.05 to 20.
    """
    doubt = 1 / (len(labels) + 2)
    targets = np.full(probabilities.shape, doubt / max(probabilities.shape[1] - 1, 1))
    targets[np.arange(len(labels)), labels] = 1 - doubt

    def cross_entropy(log_temperature: float) -> float:
        scaled = apply_temperature(probabilities, float(np.exp(log_temperature)))
        return -float(np.mean(np.sum(targets * np.log(np.maximum(scaled, 1e-30)), axis=1)))

    return float(np.exp(minimize_scalar(cross_entropy, bounds=np.log([0.05, 20.0]), method="bounded").x))


def divide_logits(head: keras.layers.Dense, temperature: float) -> None:
    """Build the temperature into the weights of a softmax head; the exported graph is unchanged."""
    head.set_weights([weight / temperature for weight in head.get_weights()])


def calibrate(head: keras.layers.Dense, labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Build the temperature that fits validation into a softmax head, and return it.

    Args:
        head: its weights are divided.
        labels, probabilities: of the validation split, as for `fit_temperature`.
    """
    temperature = fit_temperature(labels, probabilities)
    divide_logits(head, temperature)
    return temperature


def with_and_without_temperature(
    val_labels: np.ndarray, val_probabilities: np.ndarray, labels: np.ndarray, probabilities: np.ndarray,
    applied: float | None,
) -> dict:  # fmt: skip
    """Return the expected calibration error on the test split, with and without the temperature fitted on validation.

    Args:
        val_labels: int [m].
        val_probabilities: before any temperature, float [m, classes].
        labels: of the test split, int [n].
        probabilities: of the test split, as exported, float [n, classes].
        applied: the temperature built into the model; None without one.

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
    """Return advice where a temperature would help, from the result of `with_and_without_temperature`."""
    if numbers["applied"] or numbers["ece_without"] - numbers["ece_with"] <= 0.02:
        return ()
    return (
        f"The expected calibration error is {100 * numbers['ece_without']:.1f} points; --calibrate would reduce it to "
        f"{100 * numbers['ece_with']:.1f}.",
    )
