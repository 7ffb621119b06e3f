"""The vocabulary of characters of a speech model (CTC): from transcripts to numbers, from frames to text."""

from __future__ import annotations

import json
import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from common.errors import UserError
from common.flags import check_choice

CASES = ("lower", "upper", "keep")
POLICIES = ("drop", "skip", "error")
_APOSTROPHES = dict.fromkeys(map(ord, "\u2018\u2019\u02bc\u02b9\u0060\u00b4\uff07"), "'")
_SPOKEN_SIGNS = set("%&@#§+=°±\u00d7\u00f7")  # read aloud, as are currencies; other symbols are not
_BLANK, _SPACE = "<pad>", "|"  # as in Hugging Face
_BLANK_NAMES = (_BLANK, "[PAD]", "<blank>", "<ctc_blank>", "[BLANK]", "<blk>")
_SPACE_NAMES = (_SPACE, " ", "<space>", "[SPACE]", "\u2581")
_UNWRITTEN = re.compile(r"<.+>|\[.+\]")  # <s>, </s>, <unk>, [UNK]: never in a transcript


@dataclass(frozen=True)
class Characters:
    """The vocabulary of a CTC model.

    Attributes:
        symbols: of each number: a character, " " between words, "" for the blank and for special tokens.
        blank: number of the blank, which CTC puts between characters.
        case: `lower` or `upper` if all letters have this case, else `keep`.
    """

    symbols: tuple[str, ...]
    blank: int = 0
    case: str = "lower"

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Return the number of each character."""
        return {symbol: number for number, symbol in enumerate(self.symbols) if symbol}

    def normalise(self, text: str) -> str:
        """Return a transcript as it is trained on and scored: one spelling of each character, no punctuation.

        Unicode NFKC, the case of the vocabulary, one apostrophe; punctuation and symbols (emoji, musical notes) outside
        the vocabulary become a space, and so do runs of spaces. Letters, digits and spoken signs (%, &, currencies) are
        kept even outside the vocabulary: `encode_texts` decides on them.
        """
        text = _in_case(unicodedata.normalize("NFKC", text).translate(_APOSTROPHES), self.case)
        text = unicodedata.normalize("NFKC", text)  # a change of case may decompose letters
        kept = (
            c if (c in self.numbers and c != "'") or _is_spoken(text, i) else _instead(c) for i, c in enumerate(text)
        )
        return " ".join("".join(kept).split())

    def unknown(self, text: str) -> Counter[str]:
        """Return the characters of a normalised transcript outside the vocabulary, with their counts."""
        return Counter(character for character in text if character not in self.numbers)

    def encode(self, text: str) -> np.ndarray:
        """Return the numbers of a normalised transcript, int32 [characters]; unknown characters are dropped."""
        known = "".join(character for character in text if character in self.numbers)
        # All characters between two spaces may be gone, and two spaces in a row would need a blank between them.
        return np.array([self.numbers[character] for character in " ".join(known.split())], np.int32)

    def decode(self, numbers: Iterable[int]) -> str:
        """Return the text of numbers without repeats; blanks and negative numbers (padding) are ignored."""
        return " ".join("".join(self.symbols[number] for number in numbers if number >= 0).split())

    def collapse(self, best: np.ndarray) -> str:
        """Return the text of the best number of each frame, int [frames]: repeats are merged, blanks removed."""
        best = np.asarray(best)
        changes = np.ones(len(best), bool)
        changes[1:] = best[1:] != best[:-1]
        return self.decode(best[changes & (best != self.blank)])

    def to_json(self) -> str:
        """Return the vocabulary as a Hugging Face vocab.json, with names that `characters_of` takes."""
        names = {number: symbol or f"<{number}>" for number, symbol in enumerate(self.symbols)}
        names |= {self.blank: _BLANK} | {number: _SPACE for number, name in names.items() if name == " "}
        return json.dumps({name: number for number, name in names.items()}, ensure_ascii=False)


def build_characters(texts: Iterable[str], case: str = "lower") -> Characters:
    """Return the vocabulary of the training transcripts: blank 0, space 1, then the characters in order.

    Letters of any script with their marks, digits, and the apostrophe within words.

    Args:
        texts: transcripts of the training split only, so that the test split leaks nothing.
        case: `lower`, `upper` or `keep`.

    Raises:
        UserError: they have no letters and no digits.
    """
    check_choice("--case", case, CASES)
    bare, found = Characters(("", " "), case=case), set()
    for text in texts:
        found.update(character for character in bare.normalise(text) if _is_written(character))
    if not found - {"'"}:
        raise UserError("The training transcripts have no letters and no digits: there is nothing to train on.")
    return Characters(("", " ", *sorted(found)), case=case)


def characters_of(names: Sequence[str], blank: int = 0) -> Characters:
    """Return the vocabulary of a CTC head.

    Args:
        names: of its outputs, as in a vocab.json of Hugging Face; "" for special tokens.
        blank: number of the blank.

    Raises:
        UserError: they are not characters.
    """
    spaces = [name for name in _SPACE_NAMES if name in names][:1]
    symbols = tuple(_symbol(name, spaces) for name in names)
    if long := [symbol for symbol in symbols if len(symbol) > 1]:
        raise UserError(
            f"The vocabulary has tokens of several characters. Allowed: single characters; phonemes and subwords "
            f"cannot be spelled from transcripts. Received: {', '.join(map(repr, long[:5]))}."
        )
    return Characters(symbols, blank, _case_of(symbols))


def with_more(characters: Characters, known: Characters) -> Characters:
    """Return the union of two vocabularies, in the case of the first: blank 0, space 1."""
    symbols = {_in_case(symbol, characters.case) for symbol in known.symbols} | set(characters.symbols)
    written = sorted(symbol for symbol in symbols if len(symbol) == 1 and symbol != " ")
    return Characters(("", " ", *written), case=characters.case)


def _symbol(name: str, spaces: Sequence[str]) -> str:
    if name in spaces:
        return " "
    return "" if name in _BLANK_NAMES or _UNWRITTEN.fullmatch(name) else unicodedata.normalize("NFC", name)


def _case_of(symbols: Sequence[str]) -> str:
    letters = "".join(symbols)
    if letters == letters.lower():
        return "lower"
    return "upper" if letters == letters.upper() else "keep"


def _in_case(text: str, case: str) -> str:
    return {"lower": text.lower, "upper": text.upper, "keep": lambda: text}[case]()


def _instead(character: str) -> str:
    """Return the replacement of a character that is not spoken: nothing for marks within words, else a space."""
    joins = unicodedata.category(character) == "Cf" and character != "\u200b"  # soft hyphens, joiners of Persian
    return "" if joins or _is_of_emoji(character) else " "


def _is_of_emoji(character: str) -> bool:
    """Return whether a mark modifies an emoji: variation selectors, key caps."""
    return "\ufe00" <= character <= "\ufe0f" or unicodedata.category(character) == "Me"


def _is_written(character: str) -> bool:
    """Return whether a character gets a number: letters, their marks, digits, the apostrophe."""
    category = unicodedata.category(character)
    return category[0] in "LM" or category == "Nd" or character == "'"


def _is_spoken(text: str, place: int) -> bool:
    """Return whether a character is spoken; an apostrophe is, if next to a letter, else it is a quotation mark."""
    character = text[place]
    if character == "'":
        return any(other.isalpha() for other in text[max(0, place - 1) : place + 2])
    category = unicodedata.category(character)
    spoken = (category[0] in "LMN" and not _is_of_emoji(character)) or category == "Sc"
    return spoken or character in _SPOKEN_SIGNS


# --- transcripts to labels --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """Transcripts as numbers.

    Attributes:
        labels: of each transcript, int32 [characters].
        texts: of each, as it is trained on and scored.
        reasons: why a transcript cannot be used, or "".
        unknown: counts of the characters outside the vocabulary.
    """

    labels: tuple[np.ndarray, ...]
    texts: tuple[str, ...]
    reasons: tuple[str, ...]
    unknown: dict[str, int]

    def note(self) -> str:
        """Return a sentence on the characters outside the vocabulary, or ""."""
        if not self.unknown:
            return ""
        named = ", ".join(f"{character!r} {count:,}" for character, count in list(self.unknown.items())[:10])
        more = f" and {len(self.unknown) - 10} more" if len(self.unknown) > 10 else ""
        return f"The vocabulary lacks {len(self.unknown)} character(s) of the transcripts: {named}{more}."


def encode_texts(characters: Characters, texts: Sequence[str], outside: str = "drop") -> Encoded:
    """Turn transcripts into numbers.

    Args:
        characters: the vocabulary.
        texts: n transcripts.
        outside: treatment of characters outside the vocabulary: `drop` removes them from the transcript, `skip` skips
            the clip, `error` stops.

    Returns:
        Encoded, n of each; a transcript without any character left has a reason as well.

    Raises:
        UserError: `outside` is `error` and a transcript has such a character.
    """
    check_choice("--outside", outside, POLICIES)
    normal = [characters.normalise(text) for text in texts]
    unknown = [characters.unknown(text) for text in normal]
    total = Counter()
    for odd in unknown:
        total.update(odd)
    labels = [characters.encode(text) for text in normal]
    reasons = []
    for label, odd in zip(labels, unknown, strict=True):
        if odd and outside == "skip":
            reasons.append(f"its transcript has {', '.join(map(repr, sorted(odd)))}, which the vocabulary lacks")
        else:
            reasons.append("" if len(label) else "no character of its transcript is in the vocabulary")
    counts = dict(sorted(total.items(), key=lambda one: (-one[1], one[0])))
    encoded = Encoded(tuple(labels), tuple(map(characters.decode, labels)), tuple(reasons), counts)
    if total and outside == "error":
        raise UserError(
            f"{encoded.note()} Allowed: --outside drop (remove them from the transcripts), --outside skip (skip those "
            f"clips), or spell them out as spoken. Received: --outside error."
        )
    return encoded


def frames_needed(labels: np.ndarray) -> int:
    """Return the fewest frames for which CTC can emit the labels: one each, and a blank between repeats."""
    return len(labels) + int((labels[1:] == labels[:-1]).sum())


def samples_needed(labels: np.ndarray, frames_of: Callable[[int], int]) -> int:
    """Return the fewest samples with enough frames for the labels.

    Args:
        labels: int32 [characters].
        frames_of: returns the number of frames for a number of samples; must be monotonic.
    """
    return bisect_left(range(2**40), frames_needed(labels), key=frames_of)


def why_impossible(labels: Sequence[np.ndarray], samples: Sequence[int], frames_of: Callable[[int], int]) -> list[str]:
    """Return why CTC cannot be trained on a clip, or "": a transcript longer than its frames has an infinite loss.

    Args:
        labels: of n clips, int32 [characters] each.
        samples: length of each clip.
        frames_of: returns the number of frames for a number of samples.
    """
    reasons = []
    for label, count in zip(labels, samples, strict=True):
        frames, needed = frames_of(int(count)), frames_needed(label)
        reasons.append(
            f"is too short for its transcript: {frames} frames, and {len(label)} characters need {needed}"
            if frames < needed
            else ""
        )
    return reasons
