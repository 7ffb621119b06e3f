"""Beside greedy decoding: beam search, and beam search with a word n-gram model of a text, chosen on validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.progress import ProgressLine
from common.speech.ctc.characters import Characters
from common.speech.ctc.decoding import LanguageModel, beam_search
from common.speech.ctc.word_ngrams import WordNgrams, count_words
from common.speech.metrics import count_errors

_WEIGHTS, _BONUSES = (0.3, 0.7, 1.2), (0.0, 1.0, 2.5)  # tried on validation
_TRIED_ON = 100  # clips of validation; each costs as many searches as there are pairs of these


def read_language(path: str, characters: Characters) -> WordNgrams:
    """Count the words of a text file, a sentence on each line, spelled as the recogniser spells.

    Raises:
        UserError: the file cannot be read, or has no words.
    """
    try:
        lines = Path(path).expanduser().read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--language-model {path} cannot be read as UTF-8 text: {error}.") from error
    try:
        return count_words(characters.normalise(line) for line in lines)
    except ValueError as error:
        raise UserError(f"--language-model {path}: {error} Give a file with a sentence on each line.") from error


def write_with_beams(
    test: Sequence[np.ndarray],
    val: Sequence[np.ndarray],
    val_references: Sequence[str],
    characters: Characters,
    *,
    width: int,
    ngrams: WordNgrams | None = None,
) -> dict[str, list[str]]:
    """Return what beam search writes of the test clips.

    How much the language counts is chosen on validation, where its clips are given.

    Args:
        test, val: of each clip float32 [frames, vocabulary], natural logarithms; val may have none.
        val_references: what was said in the validation clips.
        characters: of the vocabulary.
        width: beginnings that are followed; 0 for no beam search.
        ngrams: words of the language, as `read_language` counts them, or None.

    Returns:
        {"beam": texts, and with a language model "beam_lm": texts}.
    """
    if not width:
        return {}
    written = {"beam": _write(test, characters, width, None, "beam search")}
    if ngrams:
        language, tried = LanguageModel(ngrams.log_probability, characters.symbols), {}
        for weight, bonus in product(_WEIGHTS, _BONUSES) if len(val) else ():
            candidate = replace(language, weight=weight, word_bonus=bonus)
            said = _write(val[:_TRIED_ON], characters, width, candidate, f"language model, weight {weight:g}")
            errors, words = count_errors(val_references[:_TRIED_ON], said)
            tried[candidate] = errors.sum() / words.sum()
        language = min(tried, key=tried.get, default=language)
        found = f" (WER {tried[language]:.3f} on validation)" if tried else ""
        print(f"language model: weight {language.weight:g}, {language.word_bonus:g} for each word{found}")
        written["beam_lm"] = _write(test, characters, width, language, "beam search with the language model")
    return written


def _write(
    clips: Sequence[np.ndarray], characters: Characters, width: int, language: LanguageModel | None, title: str
) -> list[str]:
    texts, progress = [], ProgressLine(title, len(clips))
    for log_probabilities in clips:
        found: dict[str, float] = {}  # "a", and "a" with a space behind it, are one text
        for tokens, score in beam_search(log_probabilities, width, language):
            text = characters.decode(tokens)
            found[text] = np.logaddexp(found.get(text, -np.inf), score)
        texts.append(max(found, key=found.get))
        progress.update(len(texts))
    progress.close()
    return texts
