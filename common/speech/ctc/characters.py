"""The characters that a speech model writes (CTC): from transcripts to numbers, from frames to text."""

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
_SPOKEN_SIGNS = set("%&@#§+=°±\u00d7\u00f7")  # read aloud, as currencies are; other symbols are not
_BLANK, _SPACE = "<pad>", "|"  # as Hugging Face writes them
_BLANK_NAMES = (_BLANK, "[PAD]", "<blank>", "<ctc_blank>", "[BLANK]", "<blk>")
_SPACE_NAMES = (_SPACE, " ", "<space>", "[SPACE]", "\u2581")
_UNWRITTEN = re.compile(r"<.+>|\[.+\]")  # <s>, </s>, <unk>, [UNK]: never in a transcript


@dataclass(frozen=True)
class Characters:
    """The vocabulary of a CTC model.

    Attributes:
        symbols: what each number stands for: a character, " " between words, "" for the blank and for tokens that are
            never written.
        blank: number of the blank, which CTC puts between characters.
        case: `lower` or `upper` if all letters are written so, else `keep`.
    """

    symbols: tuple[str, ...]
    blank: int = 0
    case: str = "lower"

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Return the number of each character that can be written."""
        return {symbol: number for number, symbol in enumerate(self.symbols) if symbol}

    def normalise(self, text: str) -> str:
        """Return a transcript as it is trained on and scored: one spelling of each character, no punctuation.

        Unicode NFKC, the case of the vocabulary, one apostrophe; punctuation and symbols (emoji, notes of music) that
        the vocabulary lacks become a space, and so do runs of spaces. Letters, digits and signs that are spoken (%, &,
        currencies) stay, whether or not the vocabulary has them: what becomes of them is the choice of `encode_texts`.
        """
        text = _in_case(unicodedata.normalize("NFKC", text).translate(_APOSTROPHES), self.case)
        text = unicodedata.normalize("NFKC", text)  # a change of case may take letters apart
        kept = (
            c if (c in self.numbers and c != "'") or _is_spoken(text, i) else _instead(c) for i, c in enumerate(text)
        )
        return " ".join("".join(kept).split())

    def strangers(self, text: str) -> Counter[str]:
        """Return the characters of a normalised transcript that the vocabulary lacks, with their counts."""
        return Counter(character for character in text if character not in self.numbers)

    def encode(self, text: str) -> np.ndarray:
        """Return the numbers of a normalised transcript, int32 [characters]; strangers are dropped."""
        known = "".join(character for character in text if character in self.numbers)
        # What stood between two spaces may be gone, and two spaces in a row would need a blank between them.
        return np.array([self.numbers[character] for character in " ".join(known.split())], np.int32)

    def decode(self, numbers: Iterable[int]) -> str:
        """Return the text of numbers from which repeats and blanks are gone already; a blank says nothing."""
        return " ".join("".join(self.symbols[number] for number in numbers if number >= 0).split())

    def collapse(self, best: np.ndarray) -> str:
        """Return the text of the best number of each frame, int [frames]: repeats become one, blanks go."""
        best = np.asarray(best)
        changes = np.ones(len(best), bool)
        changes[1:] = best[1:] != best[:-1]
        return self.decode(best[changes & (best != self.blank)])

    def to_json(self) -> str:
        """Return the vocabulary as a Hugging Face vocab.json: names that `characters_of` takes."""
        names = {number: symbol or f"<{number}>" for number, symbol in enumerate(self.symbols)}
        names |= {self.blank: _BLANK} | {number: _SPACE for number, name in names.items() if name == " "}
        return json.dumps({name: number for number, name in names.items()}, ensure_ascii=False)


def build_characters(texts: Iterable[str], case: str = "lower") -> Characters:
    """Return the vocabulary of the training transcripts: blank 0, space 1, then the characters in their order.

    Letters of any script with their marks, digits, and the apostrophe within words.

    Args:
        texts: transcripts of the training part; of no other, or the test would tell what it holds.
        case: `lower`, `upper` or `keep`.

    Raises:
        UserError: they hold no letter and no digit.
    """
    check_choice("--case", case, CASES)
    bare, found = Characters(("", " "), case=case), set()
    for text in texts:
        found.update(character for character in bare.normalise(text) if _is_written(character))
    if not found - {"'"}:
        raise UserError("The training transcripts hold no letters and no digits: there is nothing to learn to write.")
    return Characters(("", " ", *sorted(found)), case=case)


def characters_of(names: Sequence[str], blank: int = 0) -> Characters:
    """Return the vocabulary of a CTC head.

    Args:
        names: of its outputs, as in a vocab.json of Hugging Face; "" for one that is never written.
        blank: number of the blank.

    Raises:
        UserError: they are no characters.
    """
    spaces = [name for name in _SPACE_NAMES if name in names][:1]
    symbols = tuple(_symbol(name, spaces) for name in names)
    if long := [symbol for symbol in symbols if len(symbol) > 1]:
        raise UserError(
            f"The vocabulary holds tokens of several characters: {', '.join(map(repr, long[:5]))}. Allowed: "
            "characters. Phonemes and pieces of words cannot be spelled from transcripts."
        )
    return Characters(symbols, blank, _case_of(symbols))


def with_more(characters: Characters, known: Characters) -> Characters:
    """Return a vocabulary with the characters of another one as well, in the case of the first: blank 0, space 1."""
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
    """Return what stands for a character that is not heard: nothing for marks within words, else a space."""
    joins = unicodedata.category(character) == "Cf" and character != "\u200b"  # soft hyphens, joiners of Persian
    return "" if joins or _is_of_emoji(character) else " "


def _is_of_emoji(character: str) -> bool:
    """Return whether a mark says how a symbol is drawn: variation selectors, key caps."""
    return "\ufe00" <= character <= "\ufe0f" or unicodedata.category(character) == "Me"


def _is_written(character: str) -> bool:
    """Return whether a character gets a number: letters, the marks upon them, digits, the apostrophe."""
    category = unicodedata.category(character)
    return category[0] in "LM" or category == "Nd" or character == "'"


def _is_spoken(text: str, place: int) -> bool:
    """Return whether a character is heard; an apostrophe is one where it touches a letter, else a quotation mark."""
    character = text[place]
    if character == "'":
        return any(other.isalpha() for other in text[max(0, place - 1) : place + 2])
    category = unicodedata.category(character)
    heard = (category[0] in "LMN" and not _is_of_emoji(character)) or category == "Sc"
    return heard or character in _SPOKEN_SIGNS


# --- transcripts to labels --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """Transcripts as numbers.

    Attributes:
        labels: of each transcript, int32 [characters].
        texts: of each, as it is trained on and scored.
        reasons: why a transcript cannot be used, or "".
        strangers: the characters that the vocabulary lacks, and how often they stood in all transcripts.
    """

    labels: tuple[np.ndarray, ...]
    texts: tuple[str, ...]
    reasons: tuple[str, ...]
    strangers: dict[str, int]

    def note(self) -> str:
        """Return a sentence on the characters that the vocabulary lacks, or ""."""
        if not self.strangers:
            return ""
        named = ", ".join(f"{character!r} {count:,}" for character, count in list(self.strangers.items())[:10])
        more = f" and {len(self.strangers) - 10} more" if len(self.strangers) > 10 else ""
        return f"The vocabulary lacks {len(self.strangers)} character(s) of the transcripts: {named}{more}."


def encode_texts(characters: Characters, texts: Sequence[str], outside: str = "drop") -> Encoded:
    """Turn transcripts into numbers.

    Args:
        characters: the vocabulary.
        texts: n transcripts as they are.
        outside: what becomes of characters that the vocabulary lacks: `drop` leaves them out of the transcript, `skip`
            leaves out the clip, `error` stops.

    Returns:
        Encoded, n of each; a transcript without any character that is left has a reason as well.

    Raises:
        UserError: `outside` is `error` and a transcript has such a character.
    """
    check_choice("--outside", outside, POLICIES)
    normal = [characters.normalise(text) for text in texts]
    strangers = [characters.strangers(text) for text in normal]
    total = Counter()
    for odd in strangers:
        total.update(odd)
    labels = [characters.encode(text) for text in normal]
    reasons = []
    for label, odd in zip(labels, strangers, strict=True):
        if odd and outside == "skip":
            reasons.append(f"its transcript holds {', '.join(map(repr, sorted(odd)))}, which the vocabulary lacks")
        else:
            reasons.append("" if len(label) else "no character of its transcript is in the vocabulary")
    counts = dict(sorted(total.items(), key=lambda one: (-one[1], one[0])))
    encoded = Encoded(tuple(labels), tuple(map(characters.decode, labels)), tuple(reasons), counts)
    if total and outside == "error":
        raise UserError(
            f"{encoded.note()} Allowed: --outside drop (leave them out of the transcripts), --outside skip (leave out "
            f"those clips), or write them as they are spoken. Received: --outside error."
        )
    return encoded


def frames_needed(labels: np.ndarray) -> int:
    """Return the fewest frames in which CTC can write the labels: one each, and a blank between two of a kind."""
    return len(labels) + int((labels[1:] == labels[:-1]).sum())


def samples_needed(labels: np.ndarray, frames_of: Callable[[int], int]) -> int:
    """Return the fewest samples whose frames can hold the labels.

    Args:
        labels: int32 [characters].
        frames_of: the frames that the model makes of so many samples; must not fall as samples rise.
    """
    return bisect_left(range(2**40), frames_needed(labels), key=frames_of)


def why_impossible(labels: Sequence[np.ndarray], samples: Sequence[int], frames_of: Callable[[int], int]) -> list[str]:
    """Return why CTC cannot learn a clip, or "": a transcript longer than its frames has an infinite loss.

    Args:
        labels: of n clips, int32 [characters] each.
        samples: length of each clip.
        frames_of: the frames that the model makes of so many samples.
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
