"""The one exception that means "the user can fix this": its message is shown without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user gave (data, a flag, a path), told in words.

    The message says what is wrong, what is allowed, what was received and what to type next.
    The command line catches this class and prints only the message; every other exception keeps its
    traceback, because it is a bug of ours and must not be dressed up as the user's.
    """
