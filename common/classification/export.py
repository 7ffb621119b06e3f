"""The outputs of a served classifier, and the proof that they match the evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from common.proof.prove import FreshProcess, prove

PROBABILITY_TOLERANCE = 1e-4


def labelled(names: tf.Tensor, probabilities: tf.Tensor) -> dict[str, tf.Tensor]:
    """Return the outputs of a classifier's signature.

    Args:
        names: of the classes, string [classes].
        probabilities: float32 [batch, classes].
    """
    return {
        "label": tf.gather(names, tf.argmax(probabilities, axis=1)),
        "probabilities": probabilities,
        "class_names": tf.tile(names[None], [tf.shape(probabilities)[0], 1]),
    }


def prove_labels(
    version: Path, input_name: str, kind: str, inputs: Sequence[str], probabilities: np.ndarray,
    class_names: Sequence[str], process: FreshProcess | None = None,
) -> dict:  # fmt: skip
    """Send the raw inputs to the SavedModel in a fresh process that imports only tensorflow, and compare.

    Args:
        version: folder of the SavedModel.
        input_name: of `serving_default`.
        kind: `paths` (the bytes of the files are sent) or `texts`.
        inputs: n paths or texts.
        probabilities: from the evaluation, float32 [n, classes].
        class_names: one per probability.
        process: as for `prove`.

    Returns:
        {"examples", "agreement", "max_abs_diff", "ops_outside_tf_serving", "tolerance", "passed"}, and "error" where
        the process failed.
    """
    questions = {"input": input_name, "kind": kind, "inputs": list(map(str, inputs)), "names": list(class_names)}
    expected = {"probabilities": probabilities}
    proof = prove("classes", version, questions, expected, PROBABILITY_TOLERANCE, process)
    return {"examples": len(inputs), **proof}
