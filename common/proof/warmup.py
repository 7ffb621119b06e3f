"""Requests that a server replays when it loads a model, so that no client waits for one-time work.

The file format is TensorFlow Serving's: https://www.tensorflow.org/tfx/serving/saved_model_warmup
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")

MOST_RECORDS = 1000  # the real server refuses to load a model with more


def write_warmup(version: Path, name: str, requests: Iterable[tuple[str, Mapping[str, np.ndarray]]]) -> Path:
    """Write the requests to replay into the folder of a SavedModel.

    The examples stay in the export and are shared with it.

    Args:
        version: folder of the SavedModel.
        name: of the model on the server.
        requests: pairs of a signature's name and its inputs; at most MOST_RECORDS.

    Returns:
        The file, a TFRecord of PredictionLog.
    """
    requests = list(requests)
    if len(requests) > MOST_RECORDS:
        raise ValueError(f"a server replays at most {MOST_RECORDS} requests; received {len(requests)}")
    path = version / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests:
            record = PredictionLog()
            request = record.predict_log.request
            request.model_spec.name, request.model_spec.signature_name = name, signature
            for key, array in inputs.items():
                request.inputs[key].CopyFrom(tf.make_tensor_proto(array))
            writer.write(record.SerializeToString())
    return path
