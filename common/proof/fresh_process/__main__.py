"""The proof: run as a folder in a fresh process, it imports tensorflow and nothing of this project.

echo '["KIND", "SAVED_MODEL", "INPUTS.json", "EXPECTED.npz", "RESULT.json"]' | python -I common/proof/fresh_process

It imports tensorflow before it reads that line: it may be started while the SavedModel is still written.

KIND is a module of this folder with a function `compare`; the folder of a `__main__.py` is on the path even under -I.
"""

import gc
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import tensorflow  # noqa: F401 - before the line is read
from ops import ops_outside_tf_serving


def main(kind: str, version: Path, inputs_file: Path, expected_file: Path, result_file: Path) -> None:
    """Send the raw inputs to the SavedModel, compare with the evaluation, and write the result."""
    sent = json.loads(inputs_file.read_text(encoding="utf-8"))
    expected = dict(np.load(expected_file, allow_pickle=False))
    found = importlib.import_module(kind).compare(version, sent, expected)
    # TensorFlow itself imports Keras; nothing that trained or exported the model may be imported.
    foreign = sorted(name for name in ("keras_hub", "common", "recipes") if name in sys.modules)
    if foreign:
        raise SystemExit(f"the proof must import only tensorflow, and found {foreign}")
    found["ops_outside_tf_serving"] = ops_outside_tf_serving(version)
    if np.isnan(found["max_abs_diff"]):
        found["max_abs_diff"] = None  # JSON has no NaN
    result_file.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    asked = sys.stdin.readline()
    if asked:  # else whoever started this process has ended
        kind, *paths = json.loads(asked)
        main(kind, *map(Path, paths))
    gc.freeze()  # else Python looks for garbage in all of tensorflow before it ends: one to two seconds
