"""Checkpoints for `--resume`: the whole state of a training stage on disk, so that a killed run can continue."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np

from common.errors import UserError
from common.files import write_atomically


class StopRequest:
    """Whether the user asked to stop."""

    asked = False


@contextlib.contextmanager
def stop_at_next_step() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C (or SIGTERM) into a request to stop, checked by the code inside; the second stops at once.

    Outside the main thread, where Python allows no signal handlers, this changes nothing.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number, frame):
        if request.asked:
            raise KeyboardInterrupt
        request.asked = True
        print("\n  stopping at the next step; Ctrl-C again stops at once", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class StageState:
    """Progress of a stage, without the values of its variables.

    Attributes:
        epoch: finished epochs.
        step: finished steps of the current epoch.
        stopped: whether it stopped early.
        done: whether the stage is finished; the variables are then its result.
        history: one row per finished epoch.
        best: rank of the best epoch so far, as KeepBest ranks it, or None.
        best_epoch: its number.
    """

    epoch: int = 0
    step: int = 0
    stopped: bool = False
    done: bool = False
    history: list[dict] = field(default_factory=list)
    best: list[float] | None = None
    best_epoch: int = 0


def save_stage(path: Path, state: StageState, **arrays: Sequence) -> None:
    """Save a stage atomically; an interrupted save leaves the previous one in place.

    Args:
        path: the `.npz` file. It holds plain arrays only, no pickle.
        state: progress of the stage.
        **arrays: lists of arrays or variables by name.
    """
    flat = {f"{name}_{i}": np.asarray(item) for name, items in arrays.items() for i, item in enumerate(items)}

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:  # numpy would append `.npz` to a path
            np.savez(file, state=np.array(json.dumps(vars(state))), **flat)

    write_atomically(path, write)


def save_array(file: Path, array: np.ndarray) -> Path:
    """Write an array as `.npy`, atomically."""

    def write(partial: Path) -> None:
        with open(partial, "wb") as stream:  # numpy would append `.npy` to a path
            np.save(stream, array)

    return write_atomically(file, write)


def load_stage(path: Path | None) -> tuple[StageState, dict[str, list[np.ndarray]]]:
    """Read what `save_stage` wrote.

    Args:
        path: the `.npz` file, or None.

    Returns:
        (state, lists of arrays by name); a new StageState and no lists where there is no file.

    Raises:
        UserError: the file is damaged.
    """
    arrays: dict[str, list[np.ndarray]] = defaultdict(list)
    if path is None or not path.exists():
        return StageState(), arrays
    try:
        with np.load(path, allow_pickle=False) as saved:
            for name in saved.files:  # in the order of writing
                arrays[name.rpartition("_")[0]].append(saved[name])
            return StageState(**json.loads(str(arrays.pop("")[0]))), arrays
    except Exception as error:  # zipfile, zlib, numpy and json each raise their own error for a damaged file
        raise UserError(f"{path} cannot be read: {error}. Remove it to start the stage over: rm {path}") from error


def restore(variables: Sequence, values: Sequence[np.ndarray], path: Path) -> None:
    """Restore saved values into the variables of the same model.

    Raises:
        UserError: they belong to another model.
    """
    if [value.shape for value in values] != [tuple(variable.shape) for variable in variables]:
        raise UserError(
            f"{path} belongs to another model: the recipe or a library changed since the run was stopped. "
            f"Restore the earlier version, or start over in another --out."
        )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


class SaveProgress(keras.callbacks.Callback):
    """Save a stage periodically, and when the user asks to stop; the last callback, since it saves the state of others.

    Args:
        path: the `.npz` file; None saves nothing and only handles a request to stop.
        every: seconds between saves.
        state: progress of the stage; kept up to date here.
        saved: what `load_stage` read, restored when training begins.
        lines: an EpochLines, which holds the history.
        keep: a KeepBest, or None where the stage ends with its last weights.
        stop: whether to stop now.
    """

    def __init__(self, path: Path | None, every: float, state: StageState, saved: dict, lines, keep, stop: StopRequest):
        super().__init__()
        self.path, self.every, self.state, self.saved = path, every, state, saved
        self.lines, self.keep, self.stop = lines, keep, stop
        self.saved_at, self.first_step, self._full = time.monotonic(), state.step, False

    def on_epoch_begin(self, epoch, logs=None):
        if self.saved:  # only now: fit resets the metrics before this
            if not self.state.step:  # at the end of an epoch the metrics hold the values of validation
                self.saved.pop("metrics", None)
            for name, variables in self._variables().items():
                if name in self.saved:
                    restore(variables, self.saved[name], self.path)
            self.saved = {}

    def on_train_batch_end(self, batch, logs=None):
        self.state.step = self.first_step + batch + 1
        if self.state.step < self.lines.steps:  # the last step is saved with the validation that follows it
            self._save_when_due()

    def on_epoch_end(self, epoch, logs=None):
        self.first_step, self.state.epoch, self.state.step = 0, epoch + 1, 0
        self.state.stopped = self.model.stop_training
        self._save_when_due()

    def _variables(self) -> dict[str, list]:
        return {
            "model": self.model.variables,  # the random states of its dropout layers too
            "optimizer": self.model.optimizer.variables,
            "metrics": self.model.metrics_variables,
        }

    def _save_when_due(self) -> None:
        if self.stop.asked or time.monotonic() - self.saved_at >= self.every:
            self.save()
        if self.stop.asked:
            raise KeyboardInterrupt

    def save(self, done: bool = False) -> None:
        """Save the current state. On a full disk the checkpoint is skipped and training continues."""
        if self.path is None:
            return
        self.state.history, self.state.done = self.lines.rows, done
        arrays = {"model": self.model.variables} if done else self._variables()
        if self.keep:
            self.state.best, self.state.best_epoch = list(self.keep.best), self.keep.best_epoch
            if not done:
                arrays["best"] = self.keep.weights
        try:
            save_stage(self.path, self.state, **arrays)
        except OSError as error:
            if not self._full:
                kept = "the previous one is kept" if self.path.exists() else "there is none yet"
                print(f"  checkpoint not written: {error.strerror}; {kept}; training continues", file=sys.stderr)
            self._full = True
        self.saved_at = time.monotonic()


def fit_with_checkpoints(
    model: keras.Model, batches_from: Callable[[int, int], object], *, epochs: int, lines, keep=None,
    checkpoint: Path | None = None, save_every: float = 30.0, callbacks: Sequence = (), validation=None,
) -> list[dict]:  # fmt: skip
    """Fit a compiled model so that an interrupted run can be resumed and ends with the same weights.

    Args:
        model: compiled.
        batches_from: returns the batches from (epoch, step) on; the same ones on every call.
        epochs: number of epochs.
        lines: an EpochLines, which knows the steps of an epoch.
        keep: a KeepBest; without it the last weights are kept.
        checkpoint: the `.npz` file to continue from and to save to; None for neither.
        save_every: seconds between saves.
        callbacks: more Keras callbacks, called before these.
        validation: dataset of (inputs, targets).

    Returns:
        One row per epoch; the model has the weights to continue with.
    """
    # Otherwise the first step creates the optimizer's variables, and TensorFlow traces it twice, which takes seconds.
    with model.distribute_strategy.scope():
        model.optimizer.build(model.trainable_variables)
    state, saved = load_stage(checkpoint)
    lines.rows = state.history
    if keep and state.best is not None:
        keep.best, keep.best_epoch, keep.weights = tuple(state.best), state.best_epoch, saved.pop("best", None)
    over = state.done or state.stopped or state.epoch == epochs
    if saved and over:
        restore(model.variables, saved["model"], checkpoint)
    if state.done:
        return lines.rows
    with stop_at_next_step() as stop:
        if (
            saved and not over
        ):  # optimizer and metrics create their variables in a first step, whose effect is then overwritten
            model.fit(batches_from(state.epoch, state.step), steps_per_epoch=1, verbose=0, shuffle=False)
        save = SaveProgress(checkpoint, save_every, state, saved, lines, keep, stop)
        while state.epoch < epochs and not state.stopped:
            model.fit(
                batches_from(state.epoch, state.step),
                initial_epoch=state.epoch,
                epochs=state.epoch + 1 if state.step else epochs,  # first the rest of the interrupted epoch
                steps_per_epoch=lines.steps - state.step,
                validation_data=validation,
                verbose=0,
                shuffle=False,  # the batches come shuffled, by seed and epoch
                callbacks=[*callbacks, lines, *([keep] if keep else []), save],
            )
    if keep and keep.weights is not None:  # none where there was no epoch
        model.set_weights(keep.weights)
    save.set_model(model)
    save.save(done=True)
    return lines.rows
