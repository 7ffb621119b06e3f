"""Run a SavedModel in a fresh process that imports only tensorflow, and compare with the evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from common import files

FRESH_PROCESS = Path(__file__).with_name("fresh_process")


class FreshProcess:
    """A process that imports tensorflow and nothing of this project, and then waits for one SavedModel to prove.

    A run starts it long before the export is written: the import takes seconds.
    """

    def __init__(self, python: str = sys.executable):
        """Start it; `python` is the interpreter with the tensorflow to use."""
        self._python = python
        self._start()

    def _start(self) -> None:
        self._errors = tempfile.TemporaryFile()
        # -I: no PYTHONPATH and no current directory, so that nothing of this project can be imported.
        self._process = subprocess.Popen(
            [self._python, "-I", str(FRESH_PROCESS)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._errors,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}, start_new_session=True,  # Ctrl-C is for this process
        )  # fmt: skip
        weakref.finalize(self, self._process.kill)

    def run(self, kind: str, *paths: Path) -> str:
        """Let it prove, and return the last line of its errors, "" where it succeeded; for arguments see `prove`."""
        if self._process.poll() is not None:  # ended in the hours of a training, such as for want of memory
            self._start()
        try:
            self._process.communicate(json.dumps([kind, *map(str, paths)]).encode())
        except BrokenPipeError:  # it has ended before
            self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        return (said or ["no message"])[-1] if self._process.returncode else ""


def in_background(prove_something, *arguments, **options) -> Future:
    """Start a proof, to go on meanwhile with what does not depend on it; `.result()` waits for its end."""
    future = Future()

    def work() -> None:
        try:
            future.set_result(prove_something(*arguments, **options))
        except BaseException as error:  # raised by `.result()`
            future.set_exception(error)

    # A daemon: a run that is stopped does not wait for it, and `FreshProcess` ends the process with this one.
    threading.Thread(target=work, name="proof", daemon=True).start()
    return future


def prove(
    kind: str, version: Path, inputs: dict, expected: dict[str, np.ndarray], tolerance: float,
    process: FreshProcess | None = None,
) -> dict:  # fmt: skip
    """Run `fresh_process`: it sends raw files or texts to the SavedModel and compares the outputs.

    Args:
        kind: of outputs, a module of `fresh_process`: classes, boxes or transcripts.
        version: folder of the SavedModel.
        inputs: what to send, and the class names, as JSON, since numpy's files drop zeros at the end of a text.
        expected: outputs of the evaluation.
        tolerance: largest allowed difference of a score.
        process: that was started for it; None starts one.

    Returns:
        The result of the process, including "agreement", "max_abs_diff" (None for NaN) and "ops_outside_tf_serving",
        with "tolerance" and "passed"; and "error" where the process failed.

    Raises:
        UserError: the disk is full.
    """
    with tempfile.TemporaryDirectory() as folder:
        sent, answers, result = (Path(folder, name) for name in ("inputs.json", "expected.npz", "proof.json"))
        content = json.dumps(inputs)
        with files.room_for("the proof", Path(folder), len(content) + sum(array.nbytes for array in expected.values())):
            sent.write_text(content, encoding="utf-8")
            np.savez(answers, **expected)
        error = (process or FreshProcess()).run(kind, version, sent, answers, result)
        if error or not result.exists():
            return {"agreement": 0.0, "max_abs_diff": None, "ops_outside_tf_serving": [], "tolerance": tolerance,
                    "passed": False, "error": error or "no result"}  # fmt: skip
        proof = json.loads(result.read_text("utf-8"))
    near = proof["max_abs_diff"] is not None and proof["max_abs_diff"] <= tolerance
    passed = proof["agreement"] == 1.0 and near and not proof["ops_outside_tf_serving"]
    return {**proof, "tolerance": tolerance, "passed": passed}
