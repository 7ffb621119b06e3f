"""Decoders against brute force over all paths, and the word n-grams against counts by hand."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest

from common.speech.ctc.decoding import LanguageModel, beam_search, best_path
from common.speech.ctc.word_ngrams import count_words

CHARACTERS = ("", "a", "b", " ")


def collapse(path) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token)


def every_text(log_probabilities: np.ndarray) -> dict[tuple[int, ...], float]:
    """The probability of each text: the sum over all paths that spell it."""
    frames, tokens = log_probabilities.shape
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(tokens), repeat=frames):
        found[collapse(path)] += math.exp(sum(log_probabilities[i, token] for i, token in enumerate(path)))
    return found


def random_frames(seed: int, frames: int = 5, tokens: int = 4) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, 1.5, (frames, tokens))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("seed", range(20))
def test_a_wide_beam_finds_the_texts_of_brute_force_in_their_order(seed):
    frames = random_frames(seed)
    found, wanted = beam_search(frames, width=1000, least=-math.inf), every_text(frames)
    assert len(found) == len(wanted)
    for tokens, score in found:
        assert math.exp(score) == pytest.approx(wanted[tuple(tokens)], rel=1e-9)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


@pytest.mark.parametrize("seed", range(10))
def test_with_a_language_model_too(seed):
    frames = random_frames(seed)
    words = count_words(["ab ba", "ab ab", "b a"], order=2)
    language = LanguageModel(words.log_probability, CHARACTERS, weight=0.7, word_bonus=0.3)

    def score(tokens, probability):
        total, said = math.log(probability), "".join(CHARACTERS[token] for token in tokens).split()
        for place, word in enumerate(said):
            total += 0.7 * words.log_probability(word, tuple(said[:place])) + 0.3
        return total

    wanted = {tokens: score(tokens, probability) for tokens, probability in every_text(frames).items()}
    found = beam_search(frames, 1000, language, least=-math.inf)
    assert {tuple(tokens) for tokens, _ in found} == set(wanted)
    for tokens, value in found:
        assert value == pytest.approx(wanted[tuple(tokens)], abs=1e-9)


def test_the_best_path_is_not_always_the_best_text():
    frames = np.log([[0.6, 0.4], [0.6, 0.4]])  # blank, blank is the best path; "a" has three paths
    assert best_path(frames) == []
    assert beam_search(frames)[0][0] == [1]


def test_the_best_path_keeps_what_a_blank_parts():
    path = [1, 1, 0, 1, 2, 2, 3, 0, 0, 2]
    frames = np.log(np.eye(4)[path] * 0.9 + 0.025)
    assert best_path(frames) == [1, 1, 2, 3, 2]
    assert beam_search(frames)[0][0] == [1, 1, 2, 3, 2]
    assert best_path(frames[:0]) == [] and beam_search(frames[:0]) == [([], 0.0)]


def test_the_language_decides_between_words_that_sound_alike():
    heard = np.log([[0.02, 0.50, 0.46, 0.02], [0.94, 0.02, 0.02, 0.02], [0.02, 0.02, 0.94, 0.02]])  # "ab", barely
    words = count_words(["bb bb", "bb"], order=2)
    assert beam_search(heard)[0][0] == [1, 2]
    assert beam_search(heard, language=LanguageModel(words.log_probability, CHARACTERS))[0][0] == [2, 2]


def test_a_narrow_beam_is_close_and_follows_no_more_than_it_may():
    frames = random_frames(3, frames=6)
    found = beam_search(frames, width=4)
    assert len(found) == 4
    assert found[0][0] == beam_search(frames, width=1000)[0][0]


def test_word_ngrams_by_hand():
    words = count_words(["a b", "a c"], order=2, vocabulary_size=10)
    # no history: a twice, b and c once: 4 words of 3 kinds, below them 1 in 10
    alone = {"a": (2 + 3 * 0.1) / 7, "b": (1 + 3 * 0.1) / 7, "x": (3 * 0.1) / 7}
    assert math.exp(words.log_probability("b", ("a",))) == pytest.approx((1 + 2 * alone["b"]) / 4)
    assert math.exp(words.log_probability("a")) == pytest.approx((2 + 1 * alone["a"]) / 3)  # at the beginning
    assert math.exp(words.log_probability("x", ("a",))) == pytest.approx(2 * alone["x"] / 4)
    assert math.exp(words.log_probability("a", ("x",))) == pytest.approx(alone["a"])  # a history never seen


def test_probabilities_of_all_words_sum_to_one():
    words = count_words(["a b c", "b b a", "c"], order=3, vocabulary_size=10)
    seen, unseen = ["a", "b", "c"], [f"new{number}" for number in range(7)]
    for history in ((), ("a",), ("a", "b"), ("x", "b")):
        total = sum(math.exp(words.log_probability(word, history)) for word in seen + unseen)
        assert total == pytest.approx(1.0)


@pytest.mark.parametrize(("text", "order", "said"), [(["", " "], 3, "no words"), (["a"], 0, "from 1 to 5")])
def test_a_language_model_of_nothing_is_refused(text, order, said):
    with pytest.raises(ValueError, match=said):
        count_words(text, order)
