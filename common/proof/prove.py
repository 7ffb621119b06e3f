"""Run a SavedModel in a fresh process that imports only tensorflow, and compare with the evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from common import files

FRESH_PROCESS = Path(__file__).with_name("fresh_process")


def prove(
    kind: str, version: Path, inputs: dict, expected: dict[str, np.ndarray], tolerance: float,
    *, python: str = sys.executable,
) -> dict:  # fmt: skip
    """Run `fresh_process`: it sends raw files or texts to the SavedModel and compares the outputs.

    Args:
        kind: of outputs, a module of `fresh_process`: classes, boxes or transcripts.
        version: folder of the SavedModel.
        inputs: what to send, and the class names, as JSON, since numpy's files drop zeros at the end of a text.
        expected: outputs of the evaluation.
        tolerance: largest allowed difference of a score.
        python: interpreter with the tensorflow to use.

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
        # -I: no PYTHONPATH and no current directory, so that nothing of this project can be imported.
        command = [python, "-I", str(FRESH_PROCESS), kind, *map(str, (version, sent, answers, result))]
        finished = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        )
        if finished.returncode or not result.exists():
            error = (finished.stderr.strip().splitlines() or ["no message"])[-1]
            return {"agreement": 0.0, "max_abs_diff": None, "ops_outside_tf_serving": [], "tolerance": tolerance,
                    "passed": False, "error": error}  # fmt: skip
        proof = json.loads(result.read_text("utf-8"))
    near = proof["max_abs_diff"] is not None and proof["max_abs_diff"] <= tolerance
    passed = proof["agreement"] == 1.0 and near and not proof["ops_outside_tf_serving"]
    return {**proof, "tolerance": tolerance, "passed": passed}
