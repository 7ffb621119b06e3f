"""Reads the warm-up requests of an export, which the server replays."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from common.proof.warmup import MOST_RECORDS, WARMUP_FILE


def read_warmup(version: Path) -> list[PredictRequest]:
    """Return the warm-up requests of a SavedModel; none where it has no such file.

    Raises:
        ValueError: the file is damaged, or holds too many or other requests.
    """
    path = version / WARMUP_FILE
    if not path.exists():
        return []
    requests = []
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            log = PredictionLog.FromString(record)
            if log.WhichOneof("log_type") != "predict_log":
                raise ValueError(f"only predict requests are replayed; it holds {log.WhichOneof('log_type')}")
            requests.append(log.predict_log.request)
    except (tf.errors.DataLossError, ValueError) as error:
        raise ValueError(f"{WARMUP_FILE} is damaged: {error}") from error
    if len(requests) > MOST_RECORDS:
        raise ValueError(f"{WARMUP_FILE} holds {len(requests)} requests; at most {MOST_RECORDS} are allowed")
    return requests
