"""The proof of a recogniser: run as a script in a fresh process, it imports tensorflow and nothing of this project.

python -I common/speech_proof.py SAVED_MODEL INPUTS.json EXPECTED.npz RESULT.json
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf


def main(version: Path, inputs_file: Path, expected_file: Path, result_file: Path, batch_size: int = 4) -> None:
    """Send the raw files to `serving_default` and compare with what evaluation wrote."""
    asked = json.loads(inputs_file.read_text(encoding="utf-8"))
    paths, texts = asked["paths"], asked["texts"]
    confidences = np.load(expected_file, allow_pickle=False)["confidences"]
    loaded = tf.saved_model.load(str(version))  # held in a name: a signature alone loses its variables
    serve = loaded.signatures["serving_default"]
    same, largest, first_different = 0, 0.0, None
    for start in range(0, len(paths), batch_size):
        some = slice(start, start + batch_size)
        answer = serve(audio=tf.constant([Path(path).read_bytes() for path in paths[some]]))
        served = [text.decode("utf-8") for text in answer["text"].numpy()]
        for place, (text, wanted) in enumerate(zip(served, texts[some], strict=True), start):
            same += text == wanted
            if text != wanted and first_different is None:
                first_different = [place, text]
        # Not Python's max, which passes over NaN.
        largest = float(np.maximum(largest, np.abs(answer["confidence"].numpy() - confidences[some]).max()))
    agreement = same / max(len(paths), 1)
    # By path: -I keeps this folder out of sys.path.
    spec = importlib.util.spec_from_file_location("proof", Path(__file__).with_name("proof.py"))
    proof = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(proof)
    proof.write_result(result_file, version, agreement=agreement, max_abs_diff=largest, first_different=first_different)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:5]))
