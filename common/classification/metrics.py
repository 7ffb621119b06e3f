"""Metrics of classifiers with confidence intervals, comparison with baselines, and findings as sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from common.bootstrap import RESAMPLES, interval95
from common.classification.calibration import ece_if_calibrated95, expected_calibration_error
from common.reporting import lower_first
from common.results import training_seconds

FROM_SCRATCH = {"scratch": "training from scratch", "spectrogram": "a small network trained from scratch"}


def classification_metrics(labels: np.ndarray, probabilities: np.ndarray, seed: int = 0) -> dict:
    """Return accuracy with Wilson's 95 % interval, and macro-F1 with that of a bootstrap (percentile method).

    The bootstrap resamples the examples of each class among themselves: every class of the test split is in every
    resample, so that all of them average over the same classes. With a few examples per class it is too narrow.

    Args:
        labels: true classes, int [n].
        probabilities: float [n, classes].
        seed: of the resampling.

    Returns:
        {"accuracy", "accuracy_ci95": [low, high], "macro_f1", "macro_f1_ci95", "ece", "ece_if_calibrated95": the range
        of ECE that a perfectly calibrated model shows on as many examples, as `calibration.ece_if_calibrated95`}.
    """
    predicted = probabilities.argmax(axis=1)
    classes = probabilities.shape[1]
    rng = np.random.default_rng(seed)
    present = np.unique(labels)  # classes without test examples have no F1
    of_class = [np.flatnonzero(labels == number) for number in present]
    f1s = []
    for _ in range(RESAMPLES):
        chosen = np.concatenate([places[rng.integers(0, len(places), len(places))] for places in of_class])
        f1s.append(_macro_f1(labels[chosen], predicted[chosen], classes))
    scores, correct = point_scores(labels, probabilities), int(np.sum(predicted == labels))
    return {
        "accuracy": scores["accuracy"],
        "accuracy_ci95": [float(bound) for bound in binomtest(correct, len(labels)).proportion_ci(method="wilson")],
        "macro_f1": scores["macro_f1"],
        "macro_f1_ci95": interval95(f1s),
        "ece": scores["ece"],
        "ece_if_calibrated95": ece_if_calibrated95(probabilities, seed),
    }


def point_scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Return accuracy, macro-F1 and ECE without intervals; int [n] and float [n, classes]."""
    present = np.unique(labels)  # classes without test examples have no F1
    predicted = probabilities.argmax(axis=1)
    return {
        "accuracy": accuracy(labels, probabilities),
        "macro_f1": float(f1_score(labels, predicted, labels=present, average="macro", zero_division=0)),
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


def paired_gain(
    labels: np.ndarray, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], seed: int = 0
) -> tuple[float, float, float]:
    """Return the gain in accuracy of one model over another on the same examples, with its 95 % interval.

    Args:
        labels: true classes, int [n].
        ours: probabilities of one model, float [n, classes], trained with each of the seeds.
        theirs: likewise of the other.
        seed: of the resampling.

    Returns:
        (gain in the mean of the seeds, low, high), as fractions. Examples are resampled, for all seeds alike.
    """
    gains = np.mean(gains_of_seeds(labels, ours, theirs), axis=0)
    rng = np.random.default_rng(seed)
    means = [gains[rng.integers(0, len(gains), len(gains))].mean() for _ in range(RESAMPLES)]
    low, high = interval95(means)
    return float(gains.mean()), low, high


def gains_of_seeds(labels: np.ndarray, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> np.ndarray:
    """Return for each seed and example 1 where only ours is right, -1 where only theirs is, else 0; float [seeds, n].

    Args:
        labels, ours, theirs: as for `paired_gain`.
    """
    correct = [np.stack([found.argmax(axis=1) == labels for found in one]).astype(float) for one in (ours, theirs)]
    return correct[0] - correct[1]


def per_class_table(labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]) -> list[dict]:
    """Return precision, recall, F1 and support, one dict per class."""
    numbers = range(len(class_names))
    columns = precision_recall_fscore_support(labels, probabilities.argmax(1), labels=list(numbers), zero_division=0)
    return [
        {"class": class_names[i], "precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
        for i, p, r, f, s in zip(numbers, *columns, strict=True)
    ]


def findings(
    labels: np.ndarray, ours: Sequence[np.ndarray], baselines: Mapping[str, Sequence[np.ndarray]],
    titles: Mapping[str, str],
) -> list[str]:  # fmt: skip
    """Return sentences on whether transfer learning and fine-tuning helped.

    Args:
        labels: true classes, int [n].
        ours: probabilities of the model of each seed, float [n, classes].
        baselines: the same for each baseline: `frozen`, `scratch`, and cheap ones without a network.
        titles: of the baselines, by name.

    Returns:
        Sentences; one begins with "Negative transfer" where training from scratch is better.
    """
    sentences = []
    for name, theirs in baselines.items():
        same = [np.allclose(one, two, atol=1e-6) for one, two in zip(ours, theirs, strict=True)]
        if name == "frozen" and all(same):
            sentences.append("The exported model is the frozen source with a linear head.")
            continue
        gain, low, high = paired_gain(labels, ours, theirs)
        if len(ours) == 1 and not _differ(labels, ours[0], theirs[0]):
            low, high = min(low, 0.0), max(high, 0.0)
        points = f"{abs(gain) * 100:.1f} points {_over_seeds(labels, ours, theirs)}"
        points += f" (95 % interval {low * 100:+.1f} to {high * 100:+.1f})"
        if name in FROM_SCRATCH:
            text = _compared_with_scratch(FROM_SCRATCH[name], gain, low, high, points)
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


def _differ(labels: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Return whether two models differ by McNemar's exact test; a bootstrap of few differing examples is too sure."""
    gains = gains_of_seeds(labels, [ours], [theirs])[0]
    discordant = int(np.count_nonzero(gains))
    return discordant > 0 and binomtest(int(np.sum(gains > 0)), discordant).pvalue < 0.05


def _over_seeds(labels: np.ndarray, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> str:
    """Return how far the seeds agree: a single one is an anecdote."""
    if len(ours) == 1:
        return "for this seed"
    each = 100 * gains_of_seeds(labels, ours, theirs).mean(axis=1)
    return f"in the mean of {len(each)} seeds ({each.min():+.1f} to {each.max():+.1f})"


def _compared_with_scratch(baseline: str, gain: float, low: float, high: float, points: str) -> str:
    if gain < 0 and high < 0:
        return f"Negative transfer: {baseline} is better by {points}. Try another --source."
    if gain <= 0:
        return f"The pretrained source does not help here: {baseline} is at least as good, by {points}."
    if low <= 0:
        return f"The pretrained source and {baseline} are too close to call: {points}."
    return f"The pretrained source gains {points} over {baseline}."


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
