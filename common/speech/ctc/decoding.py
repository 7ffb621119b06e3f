"""From the log probabilities of a CTC network to text: best path, and beam search with or without a language model.

CTC (Graves et al. 2006): a path has a token or the blank per frame; repeated tokens are merged, then blanks removed.
Many paths give the same text, and its probability is their sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

BLANK = 0
_NEVER = -math.inf

# (word, the words before it) -> the logarithm of its probability.
ScoreWord = Callable[[str, tuple[str, ...]], float]


@dataclass(frozen=True)
class LanguageModel:
    """A language model for beam search.

    Attributes:
        score_word: (word, the words before it) -> natural logarithm of its probability.
        characters: character of each token; that of the blank is never used.
        weight: of the language model relative to the acoustic score.
        word_bonus: added per word: without it, texts with few words would win, since each word lowers the score.
    """

    score_word: ScoreWord
    characters: Sequence[str]
    weight: float = 0.5
    word_bonus: float = 1.0

    def cost(self, words: tuple[str, ...]) -> float:
        """Return the contribution of the last of these words to the log score."""
        return self.weight * self.score_word(words[-1], words[:-1]) + self.word_bonus


@dataclass
class _Prefix:
    """A prefix with the log probability of its paths: those that end with a blank, and the others."""

    blank: float = _NEVER
    token: float = _NEVER
    language: float = 0.0  # of its finished words
    words: tuple[str, ...] = ()
    unfinished: str = field(default="")

    @property
    def acoustic(self) -> float:
        return _add(self.blank, self.token)

    @property
    def score(self) -> float:
        return self.acoustic + self.language


def best_path(log_probabilities: np.ndarray) -> list[int]:
    """Return the tokens of the most probable path: fast, but not always the most probable text.

    Args:
        log_probabilities: float [frames, tokens], natural logarithms; token 0 is the blank.
    """
    path = log_probabilities.argmax(axis=1)
    changes = np.flatnonzero(np.diff(path, prepend=-1))
    return [int(path[place]) for place in changes if path[place] != BLANK]


def beam_search(
    log_probabilities: np.ndarray, width: int = 32, language: LanguageModel | None = None, least: float = -12.0
) -> list[tuple[list[int], float]]:
    """Return the most probable texts, the best first: prefix beam search (arXiv:1408.2873).

    Args:
        log_probabilities: float [frames, tokens], natural logarithms; token 0 is the blank.
        width: beam width.
        language: scores each finished word; None for the acoustic score only.
        least: tokens less probable than this in a frame (natural logarithm) are not tried there.

    Returns:
        (tokens, score) of up to `width` texts. The score is the log probability plus that of the language model.
    """
    beams: dict[tuple[int, ...], _Prefix] = {(): _Prefix(blank=0.0)}
    for frame in log_probabilities:
        tried = [int(token) for token in np.flatnonzero(frame > least) if token != BLANK]
        grown: dict[tuple[int, ...], _Prefix] = {}
        for tokens, prefix in beams.items():
            stays = grown.setdefault(tokens, _like(prefix))
            stays.blank = _add(stays.blank, prefix.acoustic + frame[BLANK])
            if tokens:
                stays.token = _add(stays.token, prefix.token + frame[tokens[-1]])
            for token in tried:
                # A repeated token needs a blank in between; without one it continues the first.
                before = prefix.blank if tokens and token == tokens[-1] else prefix.acoustic
                if before == _NEVER:
                    continue
                longer = (*tokens, token)
                if longer not in grown:
                    grown[longer] = beams.get(longer, _grown(prefix, token, language))
                    grown[longer] = _like(grown[longer])
                grown[longer].token = _add(grown[longer].token, before + frame[token])
        best = sorted(grown.items(), key=lambda item: -item[1].score)[:width]
        beams = dict(best)
    ended = [(list(tokens), prefix.acoustic + _finished(prefix, language)) for tokens, prefix in beams.items()]
    return sorted(ended, key=lambda one: -one[1])


def _like(prefix: _Prefix) -> _Prefix:
    """Return the same prefix without any paths yet."""
    return _Prefix(language=prefix.language, words=prefix.words, unfinished=prefix.unfinished)


def _grown(prefix: _Prefix, token: int, language: LanguageModel | None) -> _Prefix:
    """Return a prefix with one more token; a space finishes a word."""
    if language is None:
        return prefix
    character = language.characters[token]
    if character != " ":
        return _Prefix(language=prefix.language, words=prefix.words, unfinished=prefix.unfinished + character)
    if not prefix.unfinished:
        return prefix
    words = (*prefix.words, prefix.unfinished)
    return _Prefix(language=prefix.language + language.cost(words), words=words)


def _finished(prefix: _Prefix, language: LanguageModel | None) -> float:
    """Return the language model score of all words, including the last one."""
    if language is None or not prefix.unfinished:
        return prefix.language
    return prefix.language + language.cost((*prefix.words, prefix.unfinished))


def _add(a: float, b: float) -> float:
    """Return the logarithm of the sum of two probabilities."""
    if a == _NEVER or b == _NEVER:
        return max(a, b)
    return max(a, b) + math.log1p(math.exp(-abs(a - b)))
