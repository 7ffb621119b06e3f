"""Cheap baselines of a text classifier: TF-IDF word counts and mean word vectors, without a neural network."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from common.errors import UserError
from common.sources.catalogue import CATALOGUE, WORD_VECTORS
from common.sources.entries import fetch_entry
from common.texts.dataset import TextSet

_WORD = r"(?u)\w+|[^\w\s]"  # punctuation is separate: "awful." counts as "awful"
_STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # values of scikit-learn's C: weakest regularisation last
_FEATURES = 50_000  # most frequent words and word pairs; the rare ones cost time and memory
_CHOOSE = 20_000  # training texts that choose C, which takes four fits; the best one is then fitted on all
_LARGEST = 20_000_000  # training texts times classes: some minutes, see benchmarks/results/word_counts.json
_LONGEST = 50_000_000  # characters of the training split: all word pairs are counted before the frequent ones are known


def tfidf_probabilities(data: TextSet, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return the probabilities of logistic regression on TF-IDF counts of words and word pairs.

    One class against the rest, since the time of all classes at once grows out of hand with their number.

    Args:
        data: the texts; validation chooses the regularisation.
        weights: weight of each training text, float32 [n]; None for equal weights.

    Returns:
        {"val", "test"}: float32 [n, classes].

    Raises:
        UserError: the texts are too many or too long for a cheap baseline.
    """
    texts, classes, characters = len(data.train), len(data.class_names), sum(map(len, data.train.texts))
    if texts * classes > _LARGEST or characters > _LONGEST:
        fits = int(0.9 * min(_LARGEST / classes, _LONGEST / characters * texts))
        raise UserError(
            f"Too many texts to count their words. Allowed: {_LARGEST:,} training texts times classes, {_LONGEST:,} "
            f"characters. Received: {texts:,} texts, {classes:,} classes, {characters:,} characters. "
            f"Try: --limit {fits}"
        )
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=_WORD, max_features=_FEATURES)
    train = vectorizer.fit_transform(data.train.texts)
    val, test = (vectorizer.transform(split.texts) for split in (data.val, data.test))
    return _fit(_one_against_rest, data, weights, train, val, test)


def word_vector_probabilities(data: TextSet, given: str, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return the probabilities of logistic regression on the mean word vector of each text.

    Args:
        data: the texts; validation chooses the regularisation.
        given: a file as for `read_word_vectors`, or a name of the catalogue, whose files are fetched.
        weights: as for `tfidf_probabilities`.

    Returns:
        {"val", "test"}: float32 [n, classes].

    Raises:
        UserError: the file does not hold word vectors, or cannot be fetched.
    """
    vectors = fetch_word_vectors(given) if given in WORD_VECTORS else read_word_vectors(Path(given).expanduser())
    width = len(next(iter(vectors.values())))

    def mean(text: str) -> np.ndarray:
        found = [vectors[word] for word in re.findall(_WORD, text.lower()) if word in vectors]
        return np.mean(found, axis=0) if found else np.zeros(width, np.float32)

    means = [np.stack([mean(text) for text in split.texts]) for split in (data.train, data.val, data.test)]
    scaler = StandardScaler().fit(means[0])
    return _fit(_all_at_once, data, weights, *map(scaler.transform, means))


def fetch_word_vectors(name: str) -> dict[str, np.ndarray]:
    """Return the vector of each word of an entry of the catalogue, float32 [width], fetched if necessary.

    Raises:
        UserError: the files cannot be fetched.
    """
    import pyarrow.parquet as pq  # here: it takes a third of a second, and no other baseline needs it

    folder = fetch_entry(CATALOGUE[name])
    [vectors], [words] = folder.glob("*.npy"), folder.glob("*.parquet")
    return dict(zip(pq.read_table(words)["index"].to_pylist(), np.load(vectors, allow_pickle=False), strict=True))


def read_word_vectors(file: Path) -> dict[str, np.ndarray]:
    """Return the vector of each word of a file with one word and its vector per line, float32 [width].

    That is GloVe's format: https://nlp.stanford.edu/projects/glove/

    Raises:
        UserError: it cannot be read, or does not hold word vectors.
    """
    vectors: dict[str, np.ndarray] = {}
    width = None
    try:
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                word, *numbers = line.rstrip().split(" ")
                width = width or len(numbers)
                if len(numbers) != width or width < 2:
                    raise UserError(
                        f"--word-vectors {file}, line {number}: a word and {width} numbers are required, in "
                        f"GloVe's format. Received: {len(numbers)} numbers."
                    )
                vectors[word] = np.array(numbers, np.float32)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--word-vectors {file} cannot be read as word vectors: {error}.") from error
    if not vectors:
        raise UserError(f"--word-vectors {file} is empty.")
    return vectors


def _fit(regress, data: TextSet, weights: np.ndarray | None, train, val, test) -> dict[str, np.ndarray]:
    weights = np.ones(len(data.train), np.float32) if weights is None else weights
    some = np.sort(np.random.default_rng(0).permutation(len(data.train))[:_CHOOSE])
    classes = np.arange(len(data.class_names))

    def fit(strength: float, rows: np.ndarray, *asked) -> list[np.ndarray]:
        return regress(train[rows], data.train.labels[rows], weights[rows], strength, classes, asked)

    losses = {c: log_loss(data.val.labels, *fit(c, some, val), labels=classes) for c in _STRENGTHS}
    best = min(losses, key=losses.get)
    return dict(zip(("val", "test"), fit(best, np.arange(len(data.train)), val, test), strict=True))


def _one_against_rest(features, labels, weights, strength: float, classes, asked) -> list[np.ndarray]:
    """Fit a logistic regression for each class; return its share of their probabilities, each float32 [n, classes]."""
    found = [np.full((rows.shape[0], len(classes)), 1e-7, np.float32) for rows in asked]
    for number in classes:
        mine = labels == number
        if not mine.any():  # --limit may leave a class without a training text
            continue
        one = LogisticRegression(C=strength, solver="liblinear", max_iter=200)
        one = None if mine.all() else one.fit(features, mine, weights)
        for rows, probabilities in zip(asked, found, strict=True):
            probabilities[:, number] += one.predict_proba(rows)[:, 1] if one else 1.0
    return [probabilities / probabilities.sum(axis=1, keepdims=True) for probabilities in found]


def _all_at_once(features, labels, weights, strength: float, classes, asked) -> list[np.ndarray]:
    """As `_one_against_rest`, by one regression of all classes: better and faster on a few dense features."""
    if len(set(labels)) == 1:
        return _one_against_rest(features, labels, weights, strength, classes, asked)
    one = LogisticRegression(C=strength, max_iter=2000).fit(features, labels, weights)
    found = [np.zeros((len(rows), len(classes)), np.float32) for rows in asked]
    for rows, probabilities in zip(asked, found, strict=True):
        probabilities[:, one.classes_] = one.predict_proba(rows)
    return found
