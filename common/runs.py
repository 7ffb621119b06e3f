"""The run folder: what a run writes, atomically, and nothing outside it."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import errno
import importlib.metadata
import json
import os
import platform
import resource
import shlex
import shutil
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
    try:
        write(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)  # on a full disk every byte counts
        raise
    return path


# The disk is full, the user's share of it is, or a file is longer than the user may write.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def room_for(what: str, folder: Path, needed: int | None = None) -> Iterator[None]:
    """Turn the error of a full disk, whoever raises it, into one that says where room is missing and how much.

    Args:
        what: is written inside of this block.
        folder: where; it need not exist yet.
        needed: bytes, about; None where nobody knows.

    Raises:
        UserError: there is no room left.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # h5py, zipfile and TensorFlow each have their own, some without a number
        says = [os.strerror(number) for number in _NO_ROOM]
        said = next((text for text in says if text in str(error)), None)
        if said is None:
            raise
        free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free
        wants = f"about {needed / 1e6:,.1f} MB are needed, " if needed else ""
        raise UserError(
            f"There is no room for {what} in {folder}: {wants}{free / 1e6:,.1f} MB are free. The system says: {said}. "
            f"Make room there."
        ) from error


def write_json(path: Path, content: Mapping) -> Path:
    """Write a JSON file atomically; keys keep their order, non-ASCII stays readable."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def flatten(content: Mapping, prefix: str = "") -> dict[str, object]:
    """Return the leaves of nested dicts under names like `seconds.total`."""
    flat: dict[str, object] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def write_table(path: Path, rows: Sequence[Mapping], columns: Sequence[str]) -> Path:
    """Write rows as a csv file, atomically, with its heading even where there is no row."""

    def write(partial: Path) -> None:
        with open(partial, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    return write_atomically(path, write)


def write_history(path: Path, rows: Sequence[Mapping]) -> Path:
    """Write history.csv: one row an epoch of each stage, with every column that any stage has."""
    return write_table(path, rows, list(dict.fromkeys(key for row in rows for key in row)))


def facts(
    config, counts: dict[str, int], source: str, seconds: dict[str, float], parameters: dict, proof: dict, export: dict
) -> dict:
    """Return what metrics.json says of every run, whatever was learned.

    Args:
        config: of the recipe; its `data` and `seed` are told.
        counts: examples of each part, and those left out.
        source: the spec of the pretrained model.
        seconds, parameters, proof, export: as the recipe measured them.
    """
    return {
        "seconds": seconds,
        "counts": counts,
        "parameters": parameters,
        "proof": proof,
        "export": export,
        "peak_memory_mb": peak_memory_mb(),
        "source": source,
        "data": config.data,
        "seed": config.seed,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a result."""
    packages = ("tensorflow", "keras", "keras-hub", "numpy", "scikit-learn")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def start(config):
    """Make the run folder and write config.json, or make ready to go on with a run that was stopped.

    Args:
        config: the recipe's frozen dataclass, with `out` and `resume`.

    Returns:
        The settings to run with, as `settle` gives them.

    Raises:
        UserError: as `settle`; or the folder cannot be written.
    """
    settled = settle(config)
    out = Path(settled.out)
    try:
        if config.resume is None:
            out.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(out / "checkpoints", ignore_errors=True)  # of a run that ended before it had learned anything
            write_json(out / "config.json", dataclasses.asdict(settled))
        else:  # an export without metrics.json was never proved: nobody may have relied on it
            shutil.rmtree(out / "serving", ignore_errors=True)
        (out / "checkpoints").mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {str(out)!r} cannot be written: {error.strerror}. Name another folder.") from error
    return settled


def settle(config):
    """Return the settings to run with: the config itself, or with `resume` those of the run that was stopped.

    Raises:
        UserError: the folder holds a finished run, or one to go on with; there is nothing to resume.
    """
    if config.resume is not None:
        return settings_to_resume(config)
    out = Path(config.out)
    if (out / "metrics.json").exists():
        raise UserError(
            f"--out {str(out)!r} holds a finished run. Name another folder, or remove it first: rm -r {out}"
        )
    if has_progress(out):
        raise UserError(
            f"--out {str(out)!r} holds a run that was stopped. Go on with it: --resume {out} (without other flags); or "
            f"name another folder, or remove it first: rm -r {out}"
        )
    return config


def has_progress(out: Path) -> bool:
    """Return whether a run folder holds something that `--resume` can go on with."""
    return any(path for pattern in ("checkpoints/*.npz", "features/*.npy") for path in out.glob(pattern))


def settings_to_resume(config):
    """Return the settings of the stopped run in the folder `config.resume`.

    Raises:
        UserError: there is no such run, it is finished, or other settings were given too.
    """
    out, kind = Path(config.resume), type(config)
    others = [
        f"--{field.name.replace('_', '-')}"
        for field in dataclasses.fields(config)
        if field.name != "resume" and getattr(config, field.name) != field.default
    ]
    if others:
        raise UserError(f"--resume {out} takes all settings from {out}/config.json. Leave out {', '.join(others)}.")
    if (out / "metrics.json").exists():
        raise UserError(
            f"--resume {str(out)!r}: this run is finished; there is nothing to go on with. See {out}/report.html"
        )
    try:
        settings = json.loads((out / "config.json").read_text("utf-8"))
        settings = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
        return kind(**settings | {"out": str(out), "resume": str(out)})
    except OSError as error:
        raise UserError(
            f"--resume {str(out)!r} holds no run that was stopped ({error.strerror}: config.json). Give the --out of "
            f"one."
        ) from error
    except (TypeError, ValueError) as error:
        raise UserError(
            f"--resume {str(out)!r}: its config.json is not of this recipe or this version: {error}. Start over in "
            f"another --out."
        ) from error


def remember_inputs(out: Path, fingerprint: str) -> None:
    """Refuse to go on with a run whose pictures, or other inputs, have changed since it was started.

    Args:
        out: the run folder.
        fingerprint: a hash of everything that the run reads.

    Raises:
        UserError: it is not the one that the run began with.
    """
    path = out / "checkpoints" / "inputs.json"
    if not path.exists():
        write_json(path, {"fingerprint": fingerprint})
    elif json.loads(path.read_text("utf-8"))["fingerprint"] != fingerprint:
        raise UserError(
            f"--resume {str(out)!r}: the data or the source changed since this run was started, so it cannot end as it "
            f"would have. Put them back, or start over in another --out."
        )


def command(recipe: str, config) -> str:
    """Return the command line that repeats a run: the flags that differ from the recipe's defaults, and `--out OUT`."""
    parts = ["python -m recipes run", recipe]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default or field.name in ("out", "resume"):
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            parts.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            parts.append(" ".join([f"--{flag}", *(shlex.quote(str(item)) for item in values)]))
    return " ".join([*parts, "--out OUT"])


def finish(out: Path, metrics: Mapping, history: Sequence[Mapping], skipped: Sequence[tuple[str, str]] = ()) -> None:
    """Write history.csv, skipped.csv and, last of the numbers, metrics.json, which marks the run as finished.

    What only `--resume` needed is removed then: checkpoints and stored features may be larger than the model.
    """
    write_history(out / "history.csv", history)
    if skipped:  # a report names some only
        rows = [{"path": path, "reason": reason} for path, reason in skipped]
        write_table(out / "skipped.csv", rows, ("path", "reason"))
    write_json(out / "metrics.json", metrics)
    for folder in ("checkpoints", "features"):
        shutil.rmtree(out / folder, ignore_errors=True)


class Stopwatch:
    """Seconds spent in each named part of a run, those before `--resume` included.

    with stopwatch("features"):
        ...

    Args:
        path: where the seconds are kept for a run that goes on later; None keeps them nowhere.
    """

    def __init__(self, path: Path | None = None):
        self.started, self.path = time.monotonic(), path
        self.seconds: dict[str, float] = {}
        if path and path.exists():
            self.seconds = json.loads(path.read_text("utf-8"))
            self.started -= self.seconds.pop("total")

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began
            if self.path:
                with contextlib.suppress(OSError):  # on a full disk, of which the work itself has more to say
                    write_json(self.path, self.report())

    def report(self) -> dict[str, float]:
        """Return the seconds so far, with their total since the start."""
        total = {"total": time.monotonic() - self.started}
        return {name: round(value, 2) for name, value in (total | self.seconds).items()}
