"""Compares the transcripts of a served recogniser with those of the evaluation."""

from pathlib import Path

import numpy as np
import tensorflow as tf
from batches import batches


def compare(version: Path, sent: dict, expected: dict[str, np.ndarray], batch_size: int = 4) -> dict:
    """Send the raw files to `serving_default`.

    Args:
        version: folder of the SavedModel.
        sent: "paths" of n clips, and their "texts".
        expected: "confidences", float32 [n].
        batch_size: files per request; clips are long.

    Returns:
        {"agreement" (share of identical texts), "max_abs_diff" (of a confidence), "first_different" ([place, text])}.
    """
    paths, texts, confidences = sent["paths"], sent["texts"], expected["confidences"]
    loaded = tf.saved_model.load(str(version))  # kept in a variable: a signature alone loses its variables
    serve = loaded.signatures["serving_default"]
    same, largest, first_different = 0, 0.0, None
    for places in batches([Path(path).stat().st_size for path in paths], batch_size):
        answer = serve(audio=tf.constant([Path(paths[place]).read_bytes() for place in places]))
        served = [text.decode("utf-8") for text in answer["text"].numpy()]
        for place, text in zip(places, served, strict=True):
            same += text == texts[place]
            if text != texts[place] and first_different is None:
                first_different = [place, text]
        # Not Python's max, which ignores NaN.
        largest = float(np.maximum(largest, np.abs(answer["confidence"].numpy() - confidences[places]).max()))
    agreement = same / max(len(paths), 1)
    return {"agreement": agreement, "max_abs_diff": largest, "first_different": first_different}
