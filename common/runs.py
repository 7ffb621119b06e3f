"""The run folder: what a run writes, atomically, and nothing outside it."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib.metadata
import json
import os
import platform
import resource
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from common.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], None]) -> Path:
    """Write a file aside and rename it into place: a reader sees the old file or the new one, never half.

    Args:
        path: the file wanted.
        write: gets the path of the file to write.

    Returns:
        The path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    write(partial)
    os.replace(partial, path)
    return path


def write_json(path: Path, content: Mapping) -> Path:
    """Write a JSON file atomically; keys keep their order, non-ASCII stays readable."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_history(path: Path, rows: Sequence[Mapping]) -> Path:
    """Write history.csv: one row an epoch of each stage, with every column that any stage has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))

    def write(partial: Path) -> None:
        with open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    return write_atomically(path, write)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a result."""
    packages = ("tensorflow", "keras", "keras-hub", "numpy", "scikit-learn")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def start(out: Path, config) -> None:
    """Make the run folder and write config.json: the settings, and the command line that repeats them.

    Args:
        out: the run folder.
        config: the recipe's frozen dataclass.

    Raises:
        UserError: the folder holds a finished run, or cannot be written.
    """
    if (out / "metrics.json").exists():
        raise UserError(
            f"--out {str(out)!r} holds a finished run. Name another folder, or remove it first: rm -r {out}"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "config.json", dataclasses.asdict(config))
    except OSError as error:
        raise UserError(f"--out {str(out)!r} cannot be written: {error.strerror}. Name another folder.") from error


def command(recipe: str, config) -> str:
    """Return the command line that repeats a run: the flags that differ from the recipe's defaults, and `--out OUT`."""
    parts = ["python -m recipes run", recipe]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default or field.name == "out":
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            parts.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            parts.append(" ".join([f"--{flag}", *(shlex.quote(str(item)) for item in values)]))
    return " ".join([*parts, "--out OUT"])


def finish(out: Path, metrics: Mapping, history: Sequence[Mapping]) -> None:
    """Write history.csv and, last of the numbers, metrics.json, which marks the run as finished."""
    write_history(out / "history.csv", history)
    write_json(out / "metrics.json", metrics)


class Stopwatch:
    """Seconds spent in each named part of a run.

    with stopwatch("features"):
        ...
    """

    def __init__(self):
        self.started = time.monotonic()
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    def report(self) -> dict[str, float]:
        """Return the seconds so far, with their total since the start."""
        total = {"total": time.monotonic() - self.started}
        return {name: round(value, 2) for name, value in (total | self.seconds).items()}
