"""The run folder, which holds everything that a run writes."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import json
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from common.errors import UserError
from common.files import write_json, write_table

FORMAT = 3  # of config.json; a value of a setting that had another meaning before is named in a recipe's `redefined`


class Run:
    """A run in progress: its settings, its folder, its stopwatch, and its checkpoints.

    Args:
        config: the recipe's frozen dataclass, with `out`, `resume` and `save_every`.

    Attributes:
        config: the settings to run with; with `resume` those of the run that was stopped.
        out: the run folder.
        clock: measures the seconds of each stage, including those before `--resume`.

    Raises:
        UserError: as `start`.
    """

    def __init__(self, config):
        self.config = start(config)
        self.out = Path(self.config.out)
        self.clock = Stopwatch(self.out / "checkpoints" / "seconds.json")

    def remember(self, *inputs) -> None:
        """Raise UserError where data or source (anything with a `fingerprint()`) changed since the run was started."""
        remember_inputs(self.out, "".join(one.fingerprint() for one in inputs))

    def saves(self, stage: str, seed: int | None = None) -> dict:
        """Return where and how often a stage saves its checkpoints, as `fit_stage` takes it; with --seeds, per seed."""
        name = self._of_seed(stage, seed)
        return {"checkpoint": self.out / "checkpoints" / f"{name}.npz", "save_every": self.config.save_every}

    def _of_seed(self, stage: str, seed: int | None) -> str:
        return stage if seed is None or not getattr(self.config, "seeds", None) else f"{stage}_seed{seed}"

    def watchers(self, stage: str, seed: int | None = None) -> list:
        """Return the Keras callbacks that monitor a stage: TensorBoard's with `--tensorboard`, else none."""
        if not getattr(self.config, "tensorboard", False):
            return []
        tracking = importlib.import_module("common.tracking")  # on demand, as its packages
        return tracking.tensorboard_callbacks(self.out, self._of_seed(stage, seed))


def write_history(path: Path, rows: Sequence[Mapping]) -> Path:
    """Write history.csv: one row per epoch of each stage, with the columns of all stages."""
    return write_table(path, rows, list(dict.fromkeys(key for row in rows for key in row)))


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results."""
    packages = ("tensorflow", "keras", "keras-hub", "numpy", "scikit-learn")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def start(config):
    """Create the run folder and write config.json, or prepare to continue a run that was stopped.

    Args:
        config: the recipe's frozen dataclass, with `out` and `resume`.

    Returns:
        The settings to run with, as `settle` returns them.

    Raises:
        UserError: as `settle`; or the folder cannot be written.
    """
    settled = settle(config)
    out = Path(settled.out)
    try:
        if config.resume is None:
            out.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(out / "checkpoints", ignore_errors=True)  # of a run that stopped before its first checkpoint
            write_json(out / "config.json", {"format": FORMAT} | dataclasses.asdict(settled))
        else:  # an export without metrics.json was never proved
            shutil.rmtree(out / "serving", ignore_errors=True)
        (out / "checkpoints").mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {str(out)!r} cannot be written: {error.strerror}. Name another folder.") from error
    return settled


def settle(config):
    """Return the settings to run with: the config itself, or with `resume` those of the run that was stopped.

    Raises:
        UserError: the folder holds a finished run, or one to continue; there is nothing to resume.
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
            f"--out {str(out)!r} holds a run that was stopped. Continue it: --resume {out} (without other flags); or "
            f"name another folder, or remove it first: rm -r {out}"
        )
    return config


def has_progress(out: Path) -> bool:
    """Return whether a run folder holds something that `--resume` can continue from."""
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
            f"--resume {str(out)!r}: this run is finished; there is nothing to continue. See {out}/report.html"
        )
    try:
        settings = json.loads((out / "config.json").read_text("utf-8"))
        for name, value in getattr(kind, "retired", {}).items():  # flags that were removed, and their only value today
            if settings.pop(name, value) != value and value is not ...:
                raise ValueError(f"--{name.replace('_', '-')} was removed, see CHANGELOG.md")
        written = settings.pop("format", 1)
        for name, (value, since, what) in getattr(kind, "redefined", {}).items():  # a value that had another meaning
            older = written < since if isinstance(since, int) else since not in settings  # a format, or a flag
            if settings.get(name) == value and older:
                raise ValueError(what)
        settings = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
        return kind(**settings | {"out": str(out), "resume": str(out)})
    except OSError as error:
        raise UserError(
            f"--resume {str(out)!r} holds no run that was stopped ({error.strerror}: config.json). Name the --out "
            f"of one."
        ) from error
    except (TypeError, ValueError) as error:
        raise UserError(
            f"--resume {str(out)!r}: its config.json is not of this recipe or this version: {error}. Start over in "
            f"another --out."
        ) from error


def remember_inputs(out: Path, fingerprint: str) -> None:
    """Raise UserError where the inputs of a run have changed since it was started.

    Args:
        out: the run folder.
        fingerprint: hash of all inputs of the run.

    Raises:
        UserError: it differs from the one at the start of the run.
    """
    path = out / "checkpoints" / "inputs.json"
    if not path.exists():
        write_json(path, {"fingerprint": fingerprint})
    elif json.loads(path.read_text("utf-8"))["fingerprint"] != fingerprint:
        raise UserError(
            f"--resume {str(out)!r}: the data or the source changed since this run was started, so its result would "
            f"differ. Restore them, or start over in another --out."
        )


def finish(out: Path, metrics: Mapping, history: Sequence[Mapping], skipped: Sequence[tuple[str, str]] = ()) -> None:
    """Write history.csv, skipped.csv and, last of the numbers, metrics.json, which marks the run as finished.

    Checkpoints and stored features, needed by `--resume` alone, are then removed: they may be larger than the model.
    """
    write_history(out / "history.csv", history)
    if skipped:  # the report lists only some
        rows = [{"path": path, "reason": reason} for path, reason in skipped]
        write_table(out / "skipped.csv", rows, ("path", "reason"))
    write_json(out / "metrics.json", metrics)
    for folder in ("checkpoints", "features"):
        shutil.rmtree(out / folder, ignore_errors=True)


class Stopwatch:
    """Seconds spent in each named stage of a run, including those before `--resume`.

    with stopwatch("features"):
        ...

    Args:
        path: where the seconds are kept for a run that is resumed later; None does not keep them.
    """

    def __init__(self, path: Path | None = None):
        self.started, self.path = time.monotonic(), path
        self.seconds: dict[str, float] = {}
        if path and path.exists():
            self.seconds = json.loads(path.read_text("utf-8"))
            self.started -= self.seconds.pop("total")

    @contextlib.contextmanager
    def __call__(self, *names: str) -> Iterator[None]:
        """Add the seconds within the block to each of these stages: ("baselines", "words") counts for both."""
        began = time.monotonic()
        try:
            yield
        finally:
            for name in names:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began
            if self.path:
                with contextlib.suppress(OSError):  # on a full disk the work itself raises a better error
                    write_json(self.path, self.report())

    def report(self) -> dict[str, float]:
        """Return the seconds so far, with their total since the start."""
        total = {"total": time.monotonic() - self.started}
        return {name: round(value, 2) for name, value in (total | self.seconds).items()}
