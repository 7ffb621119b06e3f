"""The explanation chapter for text classifiers: accuracy by length, and the words that moved a prediction."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.classification import calibration
from common.reporting import png_of_figure, render_chapter
from common.texts.dataset import TextSet
from common.texts.preview import shorten

_SHOWN = 6  # wrong predictions whose words are examined, and as many correct ones
_WORDS = 60  # of a longer text only the first words are left out in turn
_BINS = 5


@dataclass(frozen=True)
class TextExplanation:
    """The explanation of a trained text classifier.

    Attributes:
        numbers: for metrics.json: "calibration" and "lengths".
        reliability: rows of `calibration.reliability` for the test split.
        lengths: number of tokens of each test text, int [n].
        by_length: rows of "from", "to" (tokens), "texts", "accuracy", from short to long.
        moved: one dict each: text, true, predicted, probability, words: [(word with trailing space, change)],
            the drop of the predicted probability without the word.
        sentences: findings in plain words.
    """

    numbers: dict
    reliability: list[dict]
    lengths: np.ndarray
    by_length: list[dict]
    moved: list[dict]
    sentences: tuple[str, ...]

    def chapter(self) -> Markup:
        """Return the chapter of the report, in HTML."""
        moved = []
        for one in self.moved:
            largest = max((abs(change) for _, change in one["words"]), default=0) or 1.0
            words = [
                {"word": word, "change": change, "strength": round(abs(change) / max(largest, 0.05), 2)}
                for word, change in one["words"]
            ]
            moved.append({**one, "words": words, "rest": shorten(one["rest"])})
        context = {"lengths": _length_plot(self.lengths), "by_length": self.by_length, "moved": moved}
        return render_chapter(Path(__file__).with_name("templates") / "explanation.html", context)


def explain_texts(
    predict: Callable[[Sequence[str]], np.ndarray], data: TextSet, *, lengths: np.ndarray, cut: int, max_length: int,
    probabilities: np.ndarray, val_probabilities: np.ndarray, applied_temperature: float | None,
) -> TextExplanation:  # fmt: skip
    """Explain a text classifier beyond its scores.

    Args:
        predict: texts to probabilities, float32 [n, classes].
        data: the texts.
        lengths: tokens of each test text.
        cut: number of truncated test texts.
        max_length: maximum number of tokens.
        probabilities: of the test split, as exported.
        val_probabilities: of the validation split, before temperature scaling.
        applied_temperature: the temperature built into the model; None without calibration.

    Returns:
        The TextExplanation.
    """
    labels, right = data.test.labels, probabilities.argmax(axis=1) == data.test.labels
    by_length = _by_length(lengths, right)
    numbers = {
        "calibration": calibration.with_and_without_temperature(
            data.val.labels, val_probabilities, labels, probabilities, applied_temperature
        ),
        "lengths": {"median": int(np.median(lengths)), "longest": int(lengths.max()), "cut": cut,
                    "max_length": max_length, "by_length": by_length},
    }  # fmt: skip
    sentences = list(calibration.sentences(numbers["calibration"]))
    if cut:
        sentences.append(
            f"{cut} of {len(labels)} test texts are longer than {max_length} tokens and were truncated. Read them "
            f"in windows (--long-text windows), or increase --max-length up to the limit of the source."
        )
    return TextExplanation(
        numbers=numbers,
        reliability=calibration.reliability(labels, probabilities),
        lengths=lengths,
        by_length=by_length,
        moved=_moved(predict, data, probabilities, right, np.flatnonzero(lengths <= max_length)),
        sentences=tuple(sentences),
    )


def _by_length(lengths: np.ndarray, right: np.ndarray) -> list[dict]:
    """Return the accuracy in bins of about equally many texts, from short to long."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, _BINS + 1)[1:], method="higher"))
    rows, below = [], 0
    for edge in edges:
        chosen = (lengths > below) & (lengths <= edge)
        rows.append({"from": int(lengths[chosen].min()), "to": int(edge), "texts": int(chosen.sum()),
                     "accuracy": float(right[chosen].mean())})  # fmt: skip
        below = edge
    return rows


def _moved(predict, data: TextSet, probabilities: np.ndarray, right: np.ndarray, whole: np.ndarray) -> list[dict]:
    """Leave out each word in turn (occlusion, arXiv:1612.08220) of the most confident wrong and correct predictions.

    Only texts that are read whole (`whole`, their indices) are chosen, if there are any: the others are long, and
    every word left out costs another prediction.
    """
    surest = np.argsort(-probabilities.max(axis=1), kind="stable")
    surest = surest[np.isin(surest, whole)] if len(whole) else surest
    chosen = [*surest[~right[surest]][:_SHOWN], *surest[right[surest]][:_SHOWN]]
    words = {i: re.findall(r"\S+\s*", data.test.texts[i])[:_WORDS] for i in chosen}
    rests = {i: data.test.texts[i][sum(map(len, words[i])) :] for i in chosen}
    without = [
        "".join(words[i][:n] + words[i][n + 1 :]) + rests[i] or " " for i in chosen for n in range(len(words[i]))
    ]
    predicted = predict(without) if without else np.zeros((0, probabilities.shape[1]))
    found, at = [], 0
    for i in chosen:
        best, count = int(probabilities[i].argmax()), len(words[i])
        changes = probabilities[i, best] - predicted[at : at + count, best]
        at += count
        found.append(
            {"text": data.test.texts[i], "true": data.class_names[data.test.labels[i]],
             "predicted": data.class_names[best], "probability": float(probabilities[i, best]),
             "words": [(word, float(change)) for word, change in zip(words[i], changes, strict=True)],
             "rest": rests[i]}
        )  # fmt: skip
    return found


def _length_plot(lengths: np.ndarray) -> str:
    figure = Figure(figsize=(5.6, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.hist(lengths, bins=min(40, max(5, int(np.ptp(lengths)) + 1)), color="#2563a8")
    axes.set_xlabel("tokens")
    axes.set_ylabel("test texts")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return png_of_figure(figure)
