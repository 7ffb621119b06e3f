"""Models, a server in a process of its own, and clients, for serving.py."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import grpc  # noqa: E402 (the script's folder, not the checkout, is on sys.path)
import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from PIL import Image  # noqa: E402
from tensorflow_serving.apis.predict_pb2 import PredictRequest  # noqa: E402
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub  # noqa: E402

from common.images.export import export_image_classifier  # noqa: E402

# --- models and pictures --------------------------------------------------------------------------------------


def picture(seed: int, side: int = 640) -> bytes:
    """Return a JPEG file with shapes and noise in it, about as hard to decode as a photo."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).resize((side, side), Image.BICUBIC)
    noisy = np.clip(np.asarray(coarse, np.float32) + rng.normal(0, 6, (side, side, 3)), 0, 255).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=85)
    return file.getvalue()


def network(name: str, folder: Path, side: int = 224) -> Path:
    """Export a network of keras.applications with random weights; FOLDER is its name on the server."""
    backbone = getattr(keras.applications, name)(weights=None, include_top=False, pooling="avg")
    pixels = keras.Input((side, side, 3))
    scaled = keras.layers.Rescaling(1 / 127.5, -1)(pixels)
    head = keras.layers.Dense(10, activation="softmax", name="head")(backbone(scaled))
    example = folder.parent / "example.jpg"
    example.parent.mkdir(parents=True, exist_ok=True)
    example.write_bytes(picture(0))
    names = [f"class {number}" for number in range(10)]
    return export_image_classifier(keras.Model(pixels, head), folder, names, example=example)


def function_model(folder: Path, function: Callable, spec: tf.TensorSpec, variables: list | None = None) -> Path:
    """Write a function as a SavedModel."""
    module = tf.Module()
    module.weights = variables or []
    module.serve = tf.function(function, input_signature=[spec])
    tf.saved_model.save(module, str(folder), signatures=module.serve)
    return folder


# --- a server in a process of its own -------------------------------------------------------------------------


@dataclass
class Running:
    """A server: its ports, and its process."""

    rest: int
    grpc: int
    process: subprocess.Popen

    def memory_mb(self) -> float:
        """Return its resident memory now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024

    def stub(self) -> PredictionServiceStub:
        return PredictionServiceStub(grpc.insecure_channel(f"127.0.0.1:{self.grpc}"))


@contextlib.contextmanager
def serving(*exports: Path, flags: tuple[str, ...] = ()) -> Iterator[Running]:
    """Run `python -m recipes serve` inside of this block."""
    command = [sys.executable, "-m", "recipes", "serve", *map(str, exports), "--port", "0", "--grpc-port", "0", *flags]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            said = ""
            for line in process.stdout:
                said += line
                if line.startswith("metrics"):
                    break
            else:
                log.seek(0)
                raise RuntimeError(f"the server did not start: {log.read()}")
            yield Running(
                int(re.search(r"http://127.0.0.1:(\d+)", said)[1]), int(re.search(r"gRPC +\S+:(\d+)", said)[1]), process
            )
            if process.poll() is not None:
                log.seek(0)
                raise RuntimeError(f"the server died: {log.read()[-2000:]}")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


class Client:
    """One connection that is kept open."""

    def __init__(self, port: int):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def ask(self, model: str, body: bytes, method: str = "predict") -> tuple[int, bytes]:
        self.connection.request("POST", f"/v1/models/{model}:{method}", body)
        answer = self.connection.getresponse()
        return answer.status, answer.read()


def image_body(encoded: bytes) -> bytes:
    return json.dumps({"instances": [{"image": {"b64": base64.b64encode(encoded).decode()}}]}).encode()


def grpc_request(model: str, **inputs) -> PredictRequest:
    request = PredictRequest()
    request.model_spec.name = model
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def milliseconds(ask: Callable[[], object], times: int, warm: int = 5) -> dict[str, float]:
    """Return median and 95th percentile of one call after another."""
    for _ in range(warm):
        ask()
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        ask()
        spent.append(1000 * (time.perf_counter() - began))
    return {"median_ms": round(statistics.median(spent), 3), "p95_ms": round(float(np.percentile(spent, 95)), 3)}
