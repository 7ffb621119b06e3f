"""Flags that several recipes share, parsed and checked without importing TensorFlow."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

from common.errors import UserError, did_you_mean, first_line


def parse_data(text: str, kinds: tuple[str, ...]) -> tuple[str, str]:
    """Parse a `--data` string such as `demo`, `demo:digits`, `folder:PATH`, `csv:PATH` or `tfds:NAME`.

    Args:
        text: what the user typed.
        kinds: the kinds that the recipe reads, and each demo (`demo`, `demo:NAME`); the others take `kind:value`.

    Returns:
        (kind, value); the value of `demo` is empty, that of `demo:NAME` is NAME.

    Raises:
        UserError: unknown kind, missing value, or a path that does not exist.
    """
    kind, _, value = text.partition(":")
    demos = tuple(k for k in kinds if k.partition(":")[0] == "demo")
    allowed = ", ".join(k if k in demos else f"{k}:{'NAME' if k == 'tfds' else 'PATH'}" for k in kinds)
    if text not in demos and (kind == "demo" or kind not in kinds or not value):
        near = did_you_mean(text, demos) if kind == "demo" else did_you_mean(kind, kinds)
        hint = f" Try: --data folder:{text}" if "folder" in kinds and Path(text).is_dir() else near
        raise UserError(f"--data cannot be read. Allowed: {allowed}. Received: {text!r}.{hint}")
    try:
        path = Path(value).expanduser()
        there = path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # ~nobody/x, too long a name, a null byte
        raise UserError(f"--data holds an invalid path: {first_line(error)}. Received: {text!r}.") from error
    if kind not in ("demo", "tfds") and not there:
        raise UserError(
            f"--data names a path that does not exist: {value!r}. Allowed: {allowed}. "
            f"Received: {text!r}. The current directory is {Path.cwd()}."
        )
    if kind == "folder" and not path.is_dir():
        raise UserError(f"--data folder: needs a folder, but this is a file: {value!r}. Try: --data csv:{value}")
    return kind, value


def check_group(group: str | None, kind: str, columns: tuple[str, ...], paths: tuple[str, ...] = ()) -> None:
    """Raise UserError unless `--group` suits the kind of data: a column of a table, or a pattern on paths.

    Args:
        group: what the user typed, if anything; whether a table has the column is found when it is read.
        kind: of `--data`.
        columns: kinds that take the name of a column.
        paths: kinds that take a regular expression with one group.
    """
    if group is None or (group and kind in columns):
        return
    allowed = f"the name of a column, with --data {', '.join(columns)}" + (
        f"; a regular expression on the path with one pair of parentheses, with --data {', '.join(paths)}" * bool(paths)
    )
    if kind not in paths or not group:
        raise UserError(f"--group cannot be used with --data {kind}. Allowed: {allowed}. Received: {group!r}.")
    try:
        count = re.compile(group).groups
    except re.error as error:
        raise UserError(f"--group has an invalid regular expression: {error}. Received: {group!r}.") from None
    if count != 1:
        raise UserError(
            f"--group must have one pair of parentheses, around what names the group; further ones are (?:...). "
            rf"Received: {group!r}. Try: --group 'burst_(\d+)_' for files such as burst_12_03.jpg"
        )


def parse_policy(policy: str, more: tuple[str, ...] = ()) -> str:
    """Return a freezing policy as given; raise UserError unless it is one, or one of `more` words."""
    words = (*more, "frozen", "last_block", "all")
    if policy in words or re.fullmatch(r"last:[1-9]\d*", policy):
        return policy
    if re.match("regex:.", policy):
        try:
            re.compile(policy.removeprefix("regex:"))
            return policy
        except re.error as error:
            raise UserError(f"--unfreeze has an invalid regular expression: {error}. Received: {policy!r}.") from None
    raise UserError(
        f"--unfreeze is unknown. Allowed: {', '.join(words)}, last:N (layers), regex:PATTERN. "
        f"Received: {policy!r}.{did_you_mean(policy, words)}"
    )


def parse_list(flag: str, text: str, allowed: tuple[str, ...], alone: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Parse a comma-separated list.

    Args:
        flag: name of the flag, for the error.
        text: what the user typed.
        allowed: words that may be combined.
        alone: words that are used alone, such as `none`.

    Returns:
        The words in the order given.

    Raises:
        UserError: a word that is not allowed.
    """
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if len(words) == 1 and words[0] in alone:
        return words
    for word in words or ("",):
        if word not in allowed:
            raise UserError(
                f"{flag} has an unknown word. Allowed: {', '.join(allowed)}"
                f"{', or alone: ' + ', '.join(alone) if alone else ''}. Received: {text!r}."
                f"{did_you_mean(word, allowed)}"
            )
    return words


def parse_baselines(text: str, allowed: Iterable[str], always: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Parse `--baselines`: names, separated by commas, or `none`.

    Args:
        text: what the user typed.
        allowed: all names, in the order in which they are returned.
        always: the cheap ones, which run unless it is `none`.

    Returns:
        The chosen names; none for `none`.

    Raises:
        UserError: a name that is not allowed.
    """
    names = parse_list("--baselines", text, tuple(allowed), alone=("none",))
    return () if names == ("none",) else tuple(name for name in allowed if name in {*always, *names})


LARGEST_SEED = 2**32 - 1  # of NumPy's and Keras' global generators


def parse_seeds(text: str | None, seed: int) -> tuple[int, ...]:
    """Parse `--seeds` such as `0,1,2`.

    Args:
        text: what the user typed; None for a single seed.
        seed: that single one.

    Returns:
        The seeds, each once.

    Raises:
        UserError: not whole numbers from 0 on.
    """
    if text is None:
        return (seed,)
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isascii() and word.isdigit() and int(word) <= LARGEST_SEED for word in words):
        raise UserError(
            f"--seeds cannot be read. Allowed: whole numbers to {LARGEST_SEED}, for example 0,1,2. Received: {text!r}."
        )
    return tuple(dict.fromkeys(map(int, words)))


def check_installed(flag: str, package: str, requirements: str) -> None:
    """Reject a flag whose optional package is missing, before any work is done.

    Raises:
        UserError: it cannot be imported; the message says what to install.
    """
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{flag} needs the package {package!r}, which is not installed: pip install -r {requirements}")


def check_choice(flag: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise UserError unless the value is allowed."""
    if value not in allowed:
        raise UserError(
            f"{flag} is unknown. Allowed: {', '.join(allowed)}. Received: {value!r}.{did_you_mean(value, allowed)}"
        )


def check_range(config, low: float, high: float, *names: str) -> None:
    """Raise UserError unless each named field of the config is None or within [low, high]."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            upper = "" if high == float("inf") else f" to {high:g}"
            raise UserError(
                f"--{name.replace('_', '-')} is out of range. Allowed: {low:g}{upper or ' or more'}. Received: {value}."
            )


def check_observers(config) -> None:
    """Reject `--tensorboard` and `--mlflow` where their packages are missing.

    Raises:
        UserError: as `check_installed`.
    """
    if config.tensorboard:
        check_installed("--tensorboard", "tensorboard", "requirements-observe.txt")
    if config.mlflow:
        check_installed("--mlflow", "mlflow", "requirements-observe.txt")
