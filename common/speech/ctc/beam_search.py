"""Beam search without a language model, and with a word n-gram model of a text whose weight is chosen on validation."""

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
_TRIED_ON = 100  # validation clips; each takes one search per pair of these


def read_language(path: str, characters: Characters) -> WordNgrams:
    """Count the words of a text file with a sentence per line, normalised as the transcripts.

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
        raise UserError(f"--language-model {path}: {error} Allowed: a file with a sentence per line.") from error


def beam_transcripts(
    test: Sequence[np.ndarray],
    val: Sequence[np.ndarray],
    val_references: Sequence[str],
    characters: Characters,
    *,
    width: int,
    ngrams: WordNgrams | None = None,
) -> dict[str, list[str]]:
    """Return the transcripts of the test clips by beam search.

    The weight of the language model is chosen on validation, if its clips are given.

    Args:
        test, val: log probabilities per clip, float32 [frames, vocabulary]; val may be empty.
        val_references: transcripts of the validation clips.
        characters: the vocabulary.
        width: beam width; 0 for no beam search.
        ngrams: as returned by `read_language`, or None.

    Returns:
        {"beam": texts, and with a language model "beam_lm": texts}.
    """
    if not width:
        return {}
    found = {"beam": _search(test, characters, width, None, "beam search")}
    if ngrams:
        language, tried = LanguageModel(ngrams.log_probability, characters.symbols), {}
        for weight, bonus in product(_WEIGHTS, _BONUSES) if len(val) else ():
            candidate = replace(language, weight=weight, word_bonus=bonus)
            texts = _search(val[:_TRIED_ON], characters, width, candidate, f"language model, weight {weight:g}")
            errors, words = count_errors(val_references[:_TRIED_ON], texts)
            tried[candidate] = errors.sum() / words.sum()
        language = min(tried, key=tried.get, default=language)
        wer = f" (WER {tried[language]:.3f} on validation)" if tried else ""
        print(f"language model: weight {language.weight:g}, bonus {language.word_bonus:g} per word{wer}")
        found["beam_lm"] = _search(test, characters, width, language, "beam search with the language model")
    return found


def _search(
    clips: Sequence[np.ndarray], characters: Characters, width: int, language: LanguageModel | None, title: str
) -> list[str]:
    texts, progress = [], ProgressLine(title, len(clips))
    for log_probabilities in clips:
        found: dict[str, float] = {}  # "a", and "a" followed by a space, are one text
        for tokens, score in beam_search(log_probabilities, width, language):
            text = characters.decode(tokens)
            found[text] = np.logaddexp(found.get(text, -np.inf), score)
        texts.append(max(found, key=found.get))
        progress.update(len(texts))
    progress.close()
    return texts
