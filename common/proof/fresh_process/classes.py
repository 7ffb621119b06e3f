"""Compares the labels and probabilities of a served classifier with those of the evaluation."""

from pathlib import Path

import numpy as np
import tensorflow as tf
from batches import batches


def compare(version: Path, sent: dict, expected: dict[str, np.ndarray]) -> dict:
    """Send the raw files or texts to `serving_default`.

    Args:
        version: folder of the SavedModel.
        sent: "input" (its name), "kind" (`paths` or `texts`), "inputs", n of them, and "names" of the classes.
        expected: "probabilities", float32 [n, classes].

    Returns:
        {"agreement" (share of equal labels), "max_abs_diff" (of a probability)}.
    """
    inputs, names = sent["inputs"], sent["names"]
    batch_size = 4 if sent["input"] == "audio" else 32  # sounds are long
    probabilities = expected["probabilities"]
    loaded = tf.saved_model.load(str(version))  # kept in a variable: a signature alone loses its variables
    serve = loaded.signatures["serving_default"]
    same, largest = 0, 0.0
    files = sent["kind"] == "paths"
    for places in batches([Path(one).stat().st_size if files else len(one) for one in inputs], batch_size):
        some = [inputs[place] for place in places]
        raw = [Path(one).read_bytes() if files else one.encode("utf-8", "replace") for one in some]
        answer = serve(**{sent["input"]: tf.constant(raw)})
        wanted = probabilities[places]
        labels = [label.decode("utf-8") for label in answer["label"].numpy()]
        same += sum(label == names[best] for label, best in zip(labels, wanted.argmax(axis=1), strict=True))
        # Not Python's max, which ignores NaN.
        largest = float(np.maximum(largest, np.abs(answer["probabilities"].numpy() - wanted).max()))
    return {"agreement": same / len(inputs), "max_abs_diff": largest}
