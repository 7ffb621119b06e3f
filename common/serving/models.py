"""The models of a server: their versions, loaded and unloaded while requests run."""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path

import grpc
import tensorflow as tf

from common.errors import UserError, first_line
from common.serving.batching import Batcher, BatchingParameters
from common.serving.metrics import Metrics
from common.serving.refusals import Refusal, invalid
from common.serving.servables import Servable, replay_warmup

log = logging.getLogger("serving")


class State(Enum):
    """State of a version, with the numbers of tensorflow_serving/apis/get_model_status.proto."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True)
class ModelConfig:
    """A model to serve.

    Args:
        name: on the server.
        folder: holds a folder for each version, named by its number.
        latest: number of newest versions to serve; None serves all.
        specific: serve only these versions instead.
        labels: names for versions, such as {"stable": 1}.
    """

    name: str
    folder: Path
    latest: int | None = 1
    specific: tuple[int, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)

    def wanted(self, versions: list[int]) -> set[int]:
        """Return the existing versions to serve."""
        if self.specific:
            return set(self.specific) & set(versions)
        return set(sorted(versions)[-self.latest :] if self.latest else versions)


@dataclass
class Version:
    """A version of a model on the server, from its discovery on, kept after it is unloaded."""

    state: State = State.START
    code: grpc.StatusCode = grpc.StatusCode.OK
    message: str = ""
    servable: Servable | None = None
    in_flight: int = 0
    files: tuple = ()
    """Names, sizes and times of its files at the last check, to detect changes."""


class Models:
    """Watches folders, loads new versions, and unloads old ones only when the new one is available.

    Args:
        configs: the models; no two of one name.
        batching: how requests are batched; None runs each alone.
        metrics: of the server.
        poll_seconds: interval between checks of the folders; a new version must be unchanged for that long.

    Raises:
        UserError: two models with the same name, or a folder without versions.
    """

    def __init__(
        self,
        configs: list[ModelConfig],
        *,
        batching: BatchingParameters | None = None,
        metrics: Metrics | None = None,
        poll_seconds: float = 1.0,
    ):
        names = [config.name for config in configs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            folders = ", ".join(str(config.folder) for config in configs if config.name == twice[0])
            raise UserError(
                f"two models have the name {twice[0]!r}: {folders}. Names must be unique on a server; rename one, "
                f"or serve them on two ports."
            )
        self.configs = {config.name: config for config in configs}
        self.batching, self.metrics = batching, metrics or Metrics()
        self.poll_seconds = poll_seconds
        self._versions: dict[str, dict[int, Version]] = {name: {} for name in names}
        self._lock = threading.RLock()
        self._drained = threading.Condition(self._lock)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="models", daemon=True)
        for config in configs:
            _check_holds_versions(config)

    def start(self) -> None:
        """Load every model, then watch for changes.

        Raises:
            UserError: a model has no version that can be loaded.
        """
        for name in self.configs:
            self._refresh(name, wait_until_unchanged=False)
            versions = self._versions[name]
            if not any(version.state == State.AVAILABLE for version in versions.values()):
                problems = "; ".join(f"version {number}: {version.message}" for number, version in versions.items())
                raise UserError(
                    f"no version of the model {name!r} in {self.configs[name].folder} can be loaded: {problems}"
                )
        self._thread.start()

    def close(self) -> None:
        """Stop watching and unload all versions, after the running requests."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for name, versions in self._versions.items():
            for number in list(versions):
                self._unload(name, number)

    @property
    def all_available(self) -> bool:
        """Return whether each model has an available version."""
        with self._lock:
            return all(
                any(version.state == State.AVAILABLE for version in versions.values())
                for versions in self._versions.values()
            )

    def statuses(self, name: str, number: int | None = None, label: str = "") -> dict[int, Version]:
        """Return all known versions of a model, newest first, or only one of them.

        Raises:
            Refusal: there is none.
        """
        with self._lock:
            versions = self._versions.get(name, {})
            number = self._number_of(name, number, label)
            if number is not None and number not in versions:
                raise Refusal(grpc.StatusCode.NOT_FOUND, f"Could not find version {number} of model {name}")
            if not versions:
                raise Refusal(
                    grpc.StatusCode.NOT_FOUND,
                    f"Could not find any versions of model {name}. Available models: {', '.join(self.configs)}.",
                )
            return {key: versions[key] for key in sorted(versions, reverse=True) if number in (None, key)}

    @contextlib.contextmanager
    def lend(self, name: str, number: int | None = None, label: str = "") -> Iterator[Servable]:
        """Yield a version; it is not unloaded before the block ends.

        Args:
            name: of the model.
            number: of the version; None is the newest available one.
            label: of the version, instead of its number.

        Raises:
            Refusal: there is none.
        """
        with self._lock:
            number = self._number_of(name, number, label)
            available = {
                key: version
                for key, version in self._versions.get(name, {}).items()
                if version.state == State.AVAILABLE and number in (None, key)
            }
            if not available:
                asked = f"Latest({name})" if number is None else f"Specific({name}, {number})"
                raise Refusal(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {asked}")
            version = available[max(available)]
            version.in_flight += 1
        try:
            yield version.servable
        finally:
            with self._lock:
                version.in_flight -= 1
                self._drained.notify_all()

    def _number_of(self, name: str, number: int | None, label: str) -> int | None:
        if not label:
            return number
        if number is not None:
            raise invalid(f"Both model version ({number}) and model version label ({label}) cannot be supplied.")
        labels = self.configs[name].labels if name in self.configs else {}
        if label not in labels:
            known = f" Model {name} has: {', '.join(labels)}." if labels else f" Model {name} has no labels."
            raise invalid(f"Unrecognized servable version label: {label}.{known}")
        return labels[label]

    def _watch(self) -> None:
        while not self._stop.wait(self.poll_seconds):
            for name in self.configs:
                try:
                    self._refresh(name)
                except Exception:
                    log.exception("checking for versions failed", extra={"model": name})

    def _refresh(self, name: str, wait_until_unchanged: bool = True) -> None:
        """Load the new versions of a model, then unload those that are no longer wanted."""
        config, versions = self.configs[name], self._versions[name]
        present = version_folders(config.folder)
        wanted = config.wanted(list(present))
        for number in sorted(wanted):
            version = versions.get(number)
            if version and version.state == State.AVAILABLE:
                continue
            files = _files_of(present[number])
            # Files still being copied change between two checks; a version that failed is tried again when it changed.
            if wait_until_unchanged and (version is None or version.files != files):
                first_seen = version is None
                with self._lock:
                    version = versions.setdefault(number, Version())
                    version.files = files
                    if version.state == State.END:
                        version.state = State.START
                if first_seen:
                    log.info("found a version", extra={"model": name, "version": number})
                continue
            if version is None or version.state in (State.START,):
                self._load(name, number, present[number], files)
        with self._lock:
            answering = any(versions[key].state == State.AVAILABLE for key in wanted if key in versions)
            old = [key for key in versions if key not in wanted and versions[key].state == State.AVAILABLE]
        if answering or not wanted:
            for number in old:
                self._unload(name, number)

    def _load(self, name: str, number: int, folder: Path, files: tuple) -> None:
        with self._lock:
            version = self._versions[name].setdefault(number, Version())
            version.state, version.files, version.code, version.message = State.LOADING, files, grpc.StatusCode.OK, ""
        began = time.monotonic()
        try:
            check_inside(self.configs[name].folder, folder)
            servable = Servable(name, number, folder)
            warmed = replay_warmup(servable)
        except Exception as error:
            with self._lock:
                version.state, version.code = State.END, grpc.StatusCode.INVALID_ARGUMENT
                version.message = f"cannot be loaded: {_why_not(folder, error)}"
            log.error(version.message, extra={"model": name, "version": number})
            self.metrics.loads.labels(name, "failed").inc()
            return
        if self.batching:
            self._batch(servable, version)
        with self._lock:
            version.servable, version.state = servable, State.AVAILABLE
        seconds = round(time.monotonic() - began, 3)
        log.info("loaded", extra={"model": name, "version": number, "seconds": seconds, "warmup_requests": warmed})
        self.metrics.loads.labels(name, "loaded").inc()

    def _batch(self, servable: Servable, version: Version) -> None:
        for key, signature in servable.signatures.items():
            if signature.has_batch_dimension:
                observe: Callable[[int], None] = self.metrics.batch_sizes.labels(servable.name).observe
                in_flight = partial(getattr, version, "in_flight")
                servable.answer[key] = Batcher(signature.__call__, self.batching, in_flight, observe)

    def _unload(self, name: str, number: int) -> None:
        version = self._versions[name][number]
        with self._lock:
            if version.state != State.AVAILABLE:
                return
            version.state = State.UNLOADING  # from now on it is not lent
            while version.in_flight:
                self._drained.wait()
            servable, version.servable = version.servable, None
        for answer in servable.answer.values():
            if isinstance(answer, Batcher):
                answer.close()
        del servable, answer
        gc.collect()  # functions and their graph refer to each other
        with self._lock:
            version.state, version.files = State.END, ()  # to be loaded again if it is wanted again
        log.info("unloaded", extra={"model": name, "version": number})


def version_folders(folder: Path) -> dict[int, Path]:
    """Return the folders whose name is a number, by that number; where `1` and `001` both exist, the first by name."""
    try:
        found = [path for path in sorted(folder.iterdir(), reverse=True) if path.name.isdecimal() and path.is_dir()]
    except OSError:
        return {}
    return {int(path.name): path for path in found if path.name.isascii()}


def check_inside(folder: Path, version: Path) -> None:
    """Refuse a version outside the folder of the model: a link could otherwise load anything on the disk.

    Raises:
        UserError: it is, or contains, a link to outside the model's folder.
    """
    root = folder.resolve()
    for path in (version, *version.rglob("*")):
        if not path.resolve().is_relative_to(root):
            raise UserError(f"{path} points outside {folder}; copy the files instead of linking to them")


def _check_holds_versions(config: ModelConfig) -> None:
    folder = config.folder
    if not folder.is_dir():
        raise UserError(f"the folder of the model {config.name!r} does not exist: {folder}")
    if version_folders(folder):
        return
    if (folder / "saved_model.pb").exists():
        raise UserError(
            f"{folder} is a SavedModel without a version folder around it. A server needs NAME/NUMBER/saved_model.pb: "
            f"mkdir -p models/{config.name} && cp -r {folder} models/{config.name}/1, then serve models/{config.name}"
        )
    holds = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    raise UserError(
        f"{folder} holds no version of a model. Required: folders named by numbers, each with saved_model.pb. "
        f"Found: {holds}."
    )


def _files_of(folder: Path) -> tuple:
    found = []
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(OSError):  # it was removed meanwhile, which the next check will notice
            status = path.stat()
            found.append((str(path), status.st_size, status.st_mtime_ns))
    return tuple(found)


def _why_not(folder: Path, error: Exception) -> str:
    """Return what is wrong with a SavedModel, more clearly than the loader's error where possible."""
    if isinstance(error, UserError):
        return str(error)
    needed = ["saved_model.pb"]
    if (folder / "variables").exists():  # a model without variables has no such folder
        needed.append("variables/variables.index")
    absent = [file for file in needed if not (folder / file).exists()]
    if absent:
        return f"{folder} lacks {' and '.join(absent)}; it is incomplete, or still being copied"
    message = error.message if isinstance(error, tf.errors.OpError | Refusal) else str(error)
    return first_line(Exception(message))
