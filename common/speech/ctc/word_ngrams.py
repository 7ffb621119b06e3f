"""A word n-gram language model from a text: the probability of a word after the words before it.

Interpolated Witten-Bell smoothing (Witten and Bell 1991; Chen and Goodman 1999): the more different words have followed
a history, the more probable is an unseen one.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

_BEGIN = "<s>"


@dataclass(frozen=True)
class WordNgrams:
    """Counts of words after histories.

    Attributes:
        order: words of the longest n-gram.
        followers: history -> counts of the words after it; histories have 0 to order - 1 words.
        unseen: probability of each unseen word.
    """

    order: int
    followers: dict[tuple[str, ...], Counter]
    unseen: float

    def log_probability(self, word: str, history: tuple[str, ...] = ()) -> float:
        """Return the natural logarithm of the probability of a word.

        Args:
            word: spelled as in the text; otherwise it is unseen.
            history: all words of the sentence before it; only the last ones matter.
        """
        padded = (*(_BEGIN,) * (self.order - 1), *history)
        return math.log(self._probability(word, padded[len(padded) - self.order + 1 :]))

    def _probability(self, word: str, history: tuple[str, ...]) -> float:
        counts = self.followers.get(history)
        shorter = self._probability(word, history[1:]) if history else self.unseen
        if not counts:
            return shorter
        kinds, total = len(counts), counts.total()
        return (counts[word] + kinds * shorter) / (total + kinds)


def count_words(sentences: Iterable[str], order: int = 3, vocabulary_size: int = 100_000) -> WordNgrams:
    """Count the n-grams of a text.

    Args:
        sentences: words separated by spaces, normalised as the transcripts.
        order: 1 to 5; with 3, a word depends on the two before it.
        vocabulary_size: assumed number of words of the language, for the probability of unseen ones.

    Raises:
        ValueError: no words, or an order out of range.
    """
    if not 1 <= order <= 5:
        raise ValueError(f"order must be from 1 to 5. Received: {order}.")
    followers: dict[tuple[str, ...], Counter] = defaultdict(Counter)
    for sentence in sentences:
        words = sentence.split()
        padded = (*(_BEGIN,) * (order - 1), *words)
        for place in range(order - 1, len(padded)):
            for length in range(order):
                followers[padded[place - length : place]][padded[place]] += 1
    if not followers:
        raise ValueError("The text of the language model has no words.")
    return WordNgrams(order, dict(followers), unseen=1.0 / vocabulary_size)
