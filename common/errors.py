"""The one exception that means "the user can fix this": its message is shown without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave (data, a flag, a path).

    The message says what is wrong, what is allowed, what was received and what to type next.
    The command line catches this class and prints only the message; every other exception keeps its
    traceback, because it is a bug in this project, not a mistake of the user.
    """


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate most similar to `word`, or None where none is close.

    Part of a name counts as close ("bert" for "bert_sentiment"): abbreviations are more common than typing errors.
    """
    by_key = {candidate.lower().replace("-", "_"): candidate for candidate in candidates}
    word = word.lower().replace("-", "_")
    alike = difflib.get_close_matches(word, by_key, n=1, cutoff=0.55)
    containing = [key for key in by_key if len(word) >= 3 and word in key]
    return next((by_key[key] for key in alike + containing), None)


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest candidate, or nothing if none is close: the end of a message."""
    found = nearest(word, candidates)
    return f" Did you mean {found!r}?" if found else ""


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or its name where it has no message."""
    return (str(error).strip() or repr(error)).splitlines()[0][:300]
