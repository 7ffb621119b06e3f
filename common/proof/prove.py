"""Ask a SavedModel in a fresh process that imports only tensorflow, and judge what that process found."""

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
    kind: str, version: Path, questions: dict, expected: dict[str, np.ndarray], tolerance: float,
    *, python: str = sys.executable,
) -> dict:  # fmt: skip
    """Run `fresh_process`: it sends raw files or texts to the SavedModel and compares.

    Args:
        kind: of what is compared: the module of `fresh_process` that does it, such as classes, boxes, transcripts.
        version: folder of the SavedModel.
        questions: what is sent, and the names that come back, as JSON; numpy's files drop zeros at the end of a text.
        expected: what evaluation saw.
        tolerance: largest difference of a score that still passes.
        python: whose tensorflow is asked.

    Returns:
        What the process found, "agreement", "max_abs_diff" (None for NaN) and "ops_outside_tf_serving" among it,
        "tolerance" and "passed"; and "error" where the process failed.

    Raises:
        UserError: there is no room for the questions.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, answers, result = (Path(folder, name) for name in ("inputs.json", "expected.npz", "proof.json"))
        content = json.dumps(questions)
        with files.room_for("the proof", Path(folder), len(content) + sum(array.nbytes for array in expected.values())):
            asked.write_text(content, encoding="utf-8")
            np.savez(answers, **expected)
        # -I: no PYTHONPATH and no current directory, so that nothing of this project can be imported.
        command = [python, "-I", str(FRESH_PROCESS), kind, *map(str, (version, asked, answers, result))]
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
