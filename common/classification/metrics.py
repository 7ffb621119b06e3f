"""Metrics of classifiers with confidence intervals, comparison with baselines, and findings as sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from common.bootstrap import RESAMPLES, interval95
from common.classification.calibration import expected_calibration_error
from common.reporting import lower_first
from common.results import training_seconds


def classification_metrics(labels: np.ndarray, probabilities: np.ndarray, seed: int = 0) -> dict:
    """Return accuracy and macro-F1 with bootstrap 95 % intervals (percentile method, resampled test examples).

    Args:
        labels: true classes, int [n].
        probabilities: float [n, classes].
        seed: of the resampling.

    Returns:
        {"accuracy", "accuracy_ci95": [low, high], "macro_f1", "macro_f1_ci95", "ece"}.
    """
    predicted = probabilities.argmax(axis=1)
    classes = probabilities.shape[1]
    rng = np.random.default_rng(seed)
    accuracies, f1s = [], []
    for _ in range(RESAMPLES):
        chosen = rng.integers(0, len(labels), len(labels))
        accuracies.append(np.mean(labels[chosen] == predicted[chosen]))
        f1s.append(_macro_f1(labels[chosen], predicted[chosen], classes))
    present = np.unique(labels)  # classes without test examples have no F1
    return {
        "accuracy": accuracy(labels, probabilities),
        "accuracy_ci95": interval95(accuracies),
        "macro_f1": float(f1_score(labels, predicted, labels=present, average="macro", zero_division=0)),
        "macro_f1_ci95": interval95(f1s),
        "ece": expected_calibration_error(labels, probabilities),
    }


def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the share of correct predictions; int [n] and float [n, classes]."""
    return float(accuracy_score(labels, probabilities.argmax(axis=1)))


def _macro_f1(labels: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """scikit-learn's macro-F1 over the classes present, from counts, for speed in resampling."""
    true = np.bincount(labels, minlength=classes)
    predictions = np.bincount(predicted, minlength=classes)
    correct = np.bincount(labels[labels == predicted], minlength=classes)
    present = true > 0
    return float(np.mean(2 * correct[present] / (true + predictions)[present]))


def paired_gain(labels: np.ndarray, ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Return the gain in accuracy of one model over another on the same examples, with its 95 % interval.

    Args:
        labels: true classes, int [n].
        ours: probabilities of one model, float [n, classes].
        theirs: probabilities of the other, float [n, classes].
        seed: of the resampling.

    Returns:
        (gain, low, high), as fractions.
    """
    gains = (ours.argmax(1) == labels).astype(float) - (theirs.argmax(1) == labels)
    rng = np.random.default_rng(seed)
    means = [gains[rng.integers(0, len(gains), len(gains))].mean() for _ in range(RESAMPLES)]
    low, high = interval95(means)
    return float(gains.mean()), low, high


def per_class_table(labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]) -> list[dict]:
    """Return precision, recall, F1 and support, one dict per class."""
    numbers = range(len(class_names))
    columns = precision_recall_fscore_support(labels, probabilities.argmax(1), labels=list(numbers), zero_division=0)
    return [
        {"class": class_names[i], "precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
        for i, p, r, f, s in zip(numbers, *columns, strict=True)
    ]


def findings(
    labels: np.ndarray, ours: np.ndarray, baselines: Mapping[str, np.ndarray], titles: Mapping[str, str]
) -> list[str]:
    """Return sentences on whether transfer learning and fine-tuning helped.

    Args:
        labels: true classes, int [n].
        ours: probabilities of the exported model, float [n, classes].
        baselines: the same for each baseline: `frozen`, `scratch`, and cheap ones without a network.
        titles: of the baselines, by name.

    Returns:
        Sentences; one begins with "Negative transfer" where training from scratch is better.
    """
    sentences = []
    for name, probabilities in baselines.items():
        if name == "frozen" and np.allclose(ours, probabilities, atol=1e-6):
            sentences.append(
                "The exported model is the frozen source with a linear head: fine-tuning was not better on validation."
            )
            continue
        gain, low, high = paired_gain(labels, ours, probabilities)
        points = f"{abs(gain) * 100:.1f} points (95 % interval {low * 100:+.1f} to {high * 100:+.1f})"
        if name == "scratch" and gain < 0 and high < 0:
            text = f"Negative transfer: training from scratch is better by {points}. Try another --source."
        elif name == "scratch" and gain <= 0:
            text = f"The pretrained source does not help here: training from scratch is at least as good, by {points}."
        elif name == "scratch":
            text = f"The pretrained source gains {points} over training from scratch."
        elif name != "frozen":
            text = _compared_with_cheap(lower_first(titles.get(name, name)), gain, low, high, points)
        elif low > 0:
            text = f"Fine-tuning gains {points} over the frozen source with a linear head."
        elif gain < 0 and high < 0:
            text = f"Fine-tuning hurts: the frozen source with a linear head is better by {points}. Leave it frozen."
        else:
            text = f"Fine-tuning and the frozen source with a linear head are too close to call: {points}."
        sentences.append(text)
    return sentences


def _compared_with_cheap(baseline: str, gain: float, low: float, high: float, points: str) -> str:
    if low > 0:
        return f"The network gains {points} over {baseline}."
    if gain < 0 and high < 0:
        return f"A network is not needed here: {baseline} is better by {points}, and much cheaper."
    return f"The network and {baseline} are too close to call: {points}. The latter is much cheaper."


def table(metrics: Mapping, titles: Mapping[str, str]) -> list[str]:
    """Return the table that a run prints at the end: the baselines, then the result.

    Args:
        metrics: contents of metrics.json.
        titles: of the baselines, by name.
    """
    rows = [(lower_first(titles.get(name, name)), score) for name, score in metrics["baselines"].items()]
    rows.append(("result", {"seconds": training_seconds(metrics), **metrics["test"]}))
    width = max(28, *(len(title) + 2 for title, _ in rows))
    lines = [f"  {'':{width}}accuracy (95 % interval)    macro-F1   seconds"]
    for title, score in rows:
        low, high = score["accuracy_ci95"]
        lines.append(
            f"  {title:{width}}{score['accuracy']:.3f} ({low:.3f} to {high:.3f})      {score['macro_f1']:.3f}      "
            f"{score['seconds']:5.0f}"
        )
    return lines
