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
from common.texts.dataset import TextSet

_WORD = r"(?u)\w+|[^\w\s]"  # punctuation is separate: "awful." counts as "awful"
_STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # values of scikit-learn's C: weakest regularisation last


def tfidf_probabilities(data: TextSet, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the test probabilities of logistic regression on TF-IDF counts of words and word pairs.

    Args:
        data: the texts; validation chooses the regularisation.
        weights: weight of each training text, float32 [n]; None for equal weights.

    Returns:
        float32 [n, classes].
    """
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=_WORD)
    train = vectorizer.fit_transform(data.train.texts)
    return _fit(data, weights, train, *(vectorizer.transform(split.texts) for split in (data.val, data.test)))


def word_vector_probabilities(data: TextSet, file: Path, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the test probabilities of logistic regression on the mean word vector of each text.

    Args:
        data: the texts; validation chooses the regularisation.
        file: one word and its vector per line, in GloVe's format (https://nlp.stanford.edu/projects/glove/).
        weights: as for `tfidf_probabilities`.

    Returns:
        float32 [n, classes].

    Raises:
        UserError: the file does not hold word vectors.
    """
    vectors = read_word_vectors(file)
    width = len(next(iter(vectors.values())))

    def mean(text: str) -> np.ndarray:
        found = [vectors[word] for word in re.findall(_WORD, text.lower()) if word in vectors]
        return np.mean(found, axis=0) if found else np.zeros(width, np.float32)

    means = [np.stack([mean(text) for text in split.texts]) for split in (data.train, data.val, data.test)]
    scaler = StandardScaler().fit(means[0])
    return _fit(data, weights, *map(scaler.transform, means))


def read_word_vectors(file: Path) -> dict[str, np.ndarray]:
    """Return the vector of each word of a file in GloVe's format.

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


def _fit(data: TextSet, weights: np.ndarray | None, train, val, test) -> np.ndarray:
    fitted = [LogisticRegression(C=c, max_iter=2000).fit(train, data.train.labels, weights) for c in _STRENGTHS]
    classes = np.arange(len(data.class_names))
    best = min(fitted, key=lambda model: log_loss(data.val.labels, model.predict_proba(val), labels=classes))
    return best.predict_proba(test).astype(np.float32)
