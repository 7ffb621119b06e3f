"""The local stand-in for TensorFlow Serving: how fast, how patient, how hard to upset.

    python benchmarks/serving.py                      # all, a quarter of an hour on 2 cores
    python benchmarks/serving.py overhead abuse       # some of: overhead batching abuse versions warmup

Each part starts a server of its own with `python -m recipes serve`, and talks to it over sockets. Networks have random
weights: how long they take does not depend on them. Writes benchmarks/results/serving.json.
"""

# ruff: noqa: B023 (what is defined in a loop here is called before the loop goes on)
from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import random
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import grpc  # noqa: E402 (the script's folder, not the checkout, is on sys.path)
import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from PIL import Image  # noqa: E402
from serving_setup import (  # noqa: E402
    Client,
    Running,
    function_model,
    grpc_request,
    image_body,
    milliseconds,
    network,
    picture,
    serving,
)
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub  # noqa: E402

from common import files, runs  # noqa: E402
from common.images.export import export_image_classifier  # noqa: E402
from common.proof.warmup import WARMUP_FILE  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "serving.json"


# --- the parts ------------------------------------------------------------------------------------------------


def overhead(top: Path) -> dict:
    """What the server adds to calling the loaded signature: a model that measures its bytes, and a ResNet50."""
    counter = function_model(
        top / "bytes" / "1",
        lambda image: {"bytes": tf.strings.length(image)},
        tf.TensorSpec([None], tf.string, "image"),
    )
    resnet = network("ResNet50", top / "resnet50")
    loaded = {"bytes": tf.saved_model.load(str(counter)), "resnet50": tf.saved_model.load(str(resnet))}
    blob, photo = os.urandom(100_000), picture(1)
    pixels = np.asarray(Image.open(BytesIO(photo)).resize((224, 224)), np.float32)[None]
    found = {}
    with serving(top / "bytes", top / "resnet50") as server:
        stub, client = server.stub(), Client(server.rest)
        for model, encoded, times in (("bytes", blob, 1000), ("resnet50", photo, 40)):
            signature, tensor = loaded[model].signatures["serving_default"], tf.constant([encoded])
            request, body = grpc_request(model, image=[encoded]), image_body(encoded)
            row = {
                "in_process": milliseconds(lambda: next(iter(signature(image=tensor).values())).numpy(), times),
                "grpc": milliseconds(lambda: stub.Predict(request), times),
                "rest": milliseconds(lambda: client.ask(model, body), times),
            }
            for protocol in ("grpc", "rest"):
                row[f"{protocol}_overhead_ms"] = round(row[protocol]["median_ms"] - row["in_process"]["median_ms"], 3)
            found[model] = row
        as_list = json.dumps({"signature_name": "tensors", "instances": pixels.tolist()}).encode()
        tensor_request = grpc_request("resnet50", pixels=pixels)
        tensor_request.model_spec.signature_name = "tensors"
        ways = {
            "picture file, gRPC": (grpc_request("resnet50", image=[photo]), None),
            "picture file, base64 in JSON": (None, image_body(photo)),
            "pixels, gRPC": (tensor_request, None),
            "pixels, list of numbers in JSON": (None, as_list),
        }
        found["ways_to_send_a_picture"] = {}
        for name, (request, body) in ways.items():
            size = request.ByteSize() if request else len(body)
            ask = (lambda: stub.Predict(request)) if request else (lambda: client.ask("resnet50", body))
            found["ways_to_send_a_picture"][name] = {"bytes": size} | milliseconds(ask, 40)
    return found


def batching(top: Path, clients: int = 16, seconds: float = 10.0) -> dict:
    """Requests a second from many clients at once, with batching and without, and what batches gain in-process.

    A MobileNetV2, and wide dense layers: one example reads as many weights from memory as sixteen do.
    """
    network("MobileNetV2", top / "MobileNetV2")
    layers = [tf.Variable(tf.random.normal((4096, 4096), stddev=0.02)) for _ in range(3)]

    def dense(features):
        for kernel in layers:
            features = tf.nn.relu(features @ kernel)
        return {"features": features[:, :10]}

    function_model(top / "dense" / "1", dense, tf.TensorSpec([None, 4096], tf.float32, "features"), layers)
    examples = {
        "MobileNetV2": ("image", np.array([picture(number) for number in range(clients)], dtype=object)),
        "dense": ("features", np.random.default_rng(0).normal(size=(clients, 4096)).astype(np.float32)),
    }
    found = {}
    for name, (key, values) in examples.items():
        found[name] = {"in_process_ms_per_example": gain_of_batches(top / name / "1", key, values)}
        # Taken in turns, as the machine's speed changes.
        rates: dict[str, list[float]] = {"off": [], "on": []}
        for _ in range(4):
            for mode, flag in (("off", "--no-batching"), ("on", "--batching")):
                with serving(top / name, flags=(flag,)) as server:
                    rates[mode].append(round(requests_per_second(server, name, key, values, seconds), 1))
        found[name]["requests_per_second"] = rates
        found[name]["on_over_off"] = round(statistics.median(rates["on"]) / statistics.median(rates["off"]), 3)
    return found


def gain_of_batches(version: Path, key: str, values: np.ndarray) -> dict[str, float]:
    """Return milliseconds for an example: asked one by one, from as many threads as examples, and as one batch."""
    loaded = tf.saved_model.load(str(version))
    ask = loaded.signatures["serving_default"]
    tensors = [tf.constant(values[number : number + 1]) for number in range(len(values))]
    whole = tf.constant(values)
    with ThreadPoolExecutor(len(values)) as pool:
        alone = milliseconds(lambda: ask(**{key: tensors[0]}), 60)["median_ms"]
        threads = milliseconds(lambda: list(pool.map(lambda one: ask(**{key: one}), tensors)), 15)["median_ms"]
    batch = milliseconds(lambda: ask(**{key: whole}), 15)["median_ms"]
    count = len(values)
    return {
        "alone": alone, f"{count} threads": round(threads / count, 3), f"batch of {count}": round(batch / count, 3),
        "gain_over_threads": round(threads / batch, 2),
    }  # fmt: skip


def requests_per_second(server: Running, model: str, key: str, values: np.ndarray, seconds: float) -> float:
    """Let a client for each example ask without pause, and count what was answered after a warm-up of two seconds."""
    began, counted = time.monotonic(), [0] * len(values)

    def work(number: int) -> None:
        stub, request = server.stub(), grpc_request(model, **{key: values[number : number + 1]})
        while (now := time.monotonic()) < began + 2 + seconds:
            stub.Predict(request)
            counted[number] += now > began + 2

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(values))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counted) / (time.monotonic() - began - 2)


def abuse(top: Path, requests: int = 10_000, clients: int = 32) -> dict:
    """Good requests from many clients, one in ten of another kind: malformed, too large, too slow, broken off."""
    version = network_of_small_pictures(top / "small")
    photo = picture(3, 64)
    body = image_body(photo)
    expected = tf.saved_model.load(str(version)).signatures["serving_default"](image=tf.constant([photo]))
    wanted = expected["label"].numpy()[0].decode()
    outcomes: dict[str, Counter] = {}
    failures: list[str] = []
    lock = threading.Lock()

    with serving(top / "small", flags=("--request-seconds", "4")) as server:
        for _ in range(500):
            Client(server.rest).ask("small", body)
        before = server.memory_mb()
        peak = before

        def good(client: Client) -> None:
            status, answer = client.ask("small", body)
            if status != 200 or json.loads(answer)["predictions"][0]["label"] != wanted:
                with lock:
                    failures.append(f"good request: {status} {answer[:200]!r}")

        def bad(kind: str, seed: int) -> None:
            status, answer = BAD[kind](server, body, random.Random(seed))
            with lock:
                outcomes.setdefault(kind, Counter())[str(status)] += 1
                fine = (400 <= status < 500 and clear(answer)) or (status == 200 and kind in MAY_BE_FINE)
                if not fine:
                    failures.append(f"{kind}: {status} {answer[:200]!r}")

        kinds = list(BAD)
        order = [(number, kinds[number // 10 % len(kinds)] if number % 10 == 9 else "") for number in range(requests)]
        work = iter(order)

        def run() -> None:
            client = Client(server.rest)
            while True:
                with lock:
                    number, kind = next(work, (None, ""))
                if number is None:
                    return
                try:
                    bad(kind, number) if kind else good(client)
                except Exception as error:
                    with lock:
                        failures.append(f"{kind or 'good request'}: {error!r}")
                    client = Client(server.rest)

        began = time.monotonic()
        threads = [threading.Thread(target=run) for _ in range(clients)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            peak = max(peak, server.memory_mb())
            time.sleep(0.5)
        seconds = time.monotonic() - began
        time.sleep(3)
        after = server.memory_mb()
    return {
        "requests": requests, "clients": clients, "seconds": round(seconds, 1), "failures": failures[:20],
        "failed": len(failures), "answers_to_bad_requests": {kind: dict(found) for kind, found in outcomes.items()},
        "memory_mb": {"before": round(before), "peak": round(peak), "after": round(after)},
    }  # fmt: skip


def network_of_small_pictures(folder: Path) -> Path:
    """Export a small network for 32-pixel pictures."""
    pixels = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(1 / 255)(pixels)
    for width in (16, 32):
        x = keras.layers.Conv2D(width, 3, strides=2, activation="relu")(x)
    head = keras.layers.Dense(3, activation="softmax", name="head")(keras.layers.GlobalAveragePooling2D()(x))
    return export_image_classifier(keras.Model(pixels, head), folder, ("ant", "bee", "wasp"))


def clear(answer: bytes) -> bool:
    """Return whether an answer says in words what is wrong."""
    try:
        return len(json.loads(answer)["error"]) > 10
    except (ValueError, KeyError, TypeError):
        return False


def post(server: Running, body: bytes, model: str = "small") -> tuple[int, bytes]:
    return Client(server.rest).ask(model, body)


def raw(server: Running, *pieces: bytes, pause: float = 0.0, half_close: bool = False) -> tuple[int, bytes]:
    """Send bytes by hand, with pauses, and read what comes."""
    with socket.create_connection(("127.0.0.1", server.rest), timeout=60) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.read()


def fuzzed(server: Running, body: bytes, rng: random.Random) -> tuple[int, bytes]:
    """A good request with some of its bytes changed, cut or doubled."""
    mutated = bytearray(body)
    for _ in range(rng.randint(1, 20)):
        place = rng.randrange(len(mutated))
        rng.choice((
            lambda at: mutated.__setitem__(at, rng.randrange(256)),
            lambda at: mutated.__delitem__(slice(at, at + rng.randint(1, 40))),
            lambda at: mutated.__setitem__(slice(at, at), mutated[at : at + rng.randint(1, 40)]),
        ))(place)  # fmt: skip
    return post(server, bytes(mutated))


def wrong_dtype_over_grpc(server: Running, body: bytes, rng: random.Random) -> tuple[int, bytes]:
    """gRPC: numbers where bytes belong."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        try:
            PredictionServiceStub(channel).Predict(grpc_request("small", image=[rng.random()]), 60)
        except grpc.RpcError as error:
            status = 400 if error.code() == grpc.StatusCode.INVALID_ARGUMENT else 500
            return status, json.dumps({"error": error.details()}).encode()
    return 200, b""


HEAD = b"POST /v1/models/small:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
BAD: dict[str, Callable[[Running, bytes, random.Random], tuple[int, bytes]]] = {
    "fuzzed JSON": fuzzed,
    "numbers for bytes": lambda s, b, r: post(s, json.dumps({"instances": [{"image": r.random()}]}).encode()),
    "wrong shape": lambda s, b, r: post(s, json.dumps({"instances": [{"image": [["a"], ["b"]]}]}).encode()),
    "wrong key": lambda s, b, r: post(s, b.replace(b'"image"', b'"picture"')),
    "no picture": lambda s, b, r: post(s, image_body(r.randbytes(2000))),
    "half a picture": lambda s, b, r: post(s, image_body(base64.b64decode(b.split(b'"')[7])[: r.randint(3, 300)])),
    "unknown signature": lambda s, b, r: post(s, b.replace(b'{"inst', b'{"signature_name": "x", "inst')),
    "unknown model": lambda s, b, r: post(s, b, f"model{r.random()}"),
    "wrong shape of pixels": lambda s, b, r: post(
        s, json.dumps({"signature_name": "tensors", "instances": [[[r.random()] * 3] * 7] * 2}).encode()
    ),
    "50 MB": lambda s, b, r: post(s, b'{"instances": [{"image": {"b64": "' + b"QUJD" * 12_500_000 + b'"}}]}'),
    "nested 100,000 deep": lambda s, b, r: post(s, b'{"instances": ' + b"[" * 100_000),
    "empty": lambda s, b, r: post(s, b""),
    "no HTTP": lambda s, b, r: raw(s, r.randbytes(200) + b"\r\n\r\n"),
    "headers never end": lambda s, b, r: raw(
        s, b"POST /v1/models/small:predict HTTP/1.1\r\n", b"X-A: b\r\n", pause=1.0
    ),
    "body never ends": lambda s, b, r: raw(s, HEAD % len(b), b[:100], b[100:200], pause=1.0),
    "half-closed in the body": lambda s, b, r: raw(s, HEAD % len(b) + b[:200], half_close=True),
    "half-closed after the request": lambda s, b, r: raw(s, HEAD % len(b) + b, half_close=True),
    "numbers for bytes over gRPC": wrong_dtype_over_grpc,
}
MAY_BE_FINE = {"fuzzed JSON", "half-closed after the request", "half a picture"}  # JPEG decoders forgive a cut


def versions(top: Path, clients: int = 8) -> dict:
    """Drop in a new version, a broken one and one that is copied slowly, while clients ask without pause."""
    folder, spec = top / "numbers", tf.TensorSpec([None], tf.float32, "x")
    for number in (1, 2, 4):
        function_model(top / "made" / str(number), lambda x, n=number: {"y": tf.zeros_like(x) + float(n)}, spec)
    shutil.copytree(top / "made" / "1", folder / "1")
    answers: Counter = Counter()
    failures: list[str] = []
    done, lock = threading.Event(), threading.Lock()
    with serving(folder) as server:

        def run() -> None:
            client, stub = Client(server.rest), server.stub()
            while not done.is_set():
                try:
                    status, answer = client.ask("numbers", b'{"instances": [1.0]}')
                    number = tf.make_ndarray(stub.Predict(grpc_request("numbers", x=[1.0])).outputs["y"])[0]
                    with lock:
                        answers[json.loads(answer)["predictions"][0] if status == 200 else "failed"] += 1
                        answers[float(number)] += 1
                        if status != 200:
                            failures.append(answer.decode())
                except Exception as error:
                    with lock:
                        failures.append(repr(error))

        def state_of(number: int) -> dict:
            connection = http.client.HTTPConnection("127.0.0.1", server.rest)
            connection.request("GET", f"/v1/models/numbers/versions/{number}")
            return json.loads(connection.getresponse().read()).get("model_version_status", [{}])[0]

        def wait_for(number: int, state: str) -> float:
            began = time.monotonic()
            while state_of(number).get("state") != state:
                if time.monotonic() > began + 30:
                    raise RuntimeError(f"version {number} is not {state}: {state_of(number)}")
                time.sleep(0.05)
            return round(time.monotonic() - began, 2)

        threads = [threading.Thread(target=run) for _ in range(clients)]
        for thread in threads:
            thread.start()
        time.sleep(2)
        shutil.copytree(top / "made" / "2", folder / ".partial")
        (folder / ".partial").rename(folder / "2")
        found = {"seconds_until_the_new_version_answers": wait_for(2, "AVAILABLE")}
        wait_for(1, "END")
        shutil.copytree(top / "made" / "2", folder / "3")
        (folder / "3" / "saved_model.pb").write_bytes(b"this is no graph")
        wait_for(3, "END")
        found["the_broken_version_is_reported_as"] = state_of(3)["status"]["error_message"].replace(str(top), "")
        found["meanwhile_the_old_one_is"] = state_of(2)["state"]
        (folder / "4" / "variables").mkdir(parents=True)
        for file in sorted(path for path in (top / "made" / "4").rglob("*") if path.is_file()):
            target = folder / "4" / file.relative_to(top / "made" / "4")
            target.parent.mkdir(exist_ok=True)
            shutil.copy(file, target)
            time.sleep(1.5)  # slower than the server looks
        found["seconds_until_the_slowly_copied_version_answers"] = wait_for(4, "AVAILABLE")
        time.sleep(2)
        done.set()
        for thread in threads:
            thread.join()
    return found | {"answers": {str(key): count for key, count in answers.items()}, "failures": failures[:10],
                    "failed": len(failures)}  # fmt: skip


def warmup(top: Path, times: int = 5) -> dict:
    """The first request after the start of a server, with the warm-up file of the export and without it."""
    photo = picture(5)
    found = {}
    with_file = network("MobileNetV2", top / "with" / "mobilenet")
    shutil.copytree(with_file, top / "without" / "mobilenet" / "1")
    (top / "without" / "mobilenet" / "1" / WARMUP_FILE).unlink()
    for name in ("without", "with"):
        first, steady = [], []
        for _ in range(times):
            with serving(top / name / "mobilenet") as server:
                client, body = Client(server.rest), image_body(photo)
                began = time.perf_counter()
                client.ask("mobilenet", body)
                first.append(1000 * (time.perf_counter() - began))
                steady.append(milliseconds(lambda: client.ask("mobilenet", body), 40)["median_ms"])
        found[f"{name}_warm_up"] = {
            "first_ms": [round(one, 1) for one in first], "steady_median_ms": steady,
            "first_over_steady": round(statistics.median(a / b for a, b in zip(first, steady, strict=True)), 2),
        }  # fmt: skip
    return found


PARTS = {part.__name__: part for part in (overhead, batching, abuse, versions, warmup)}


def main(names: list[str]) -> None:
    """Run parts and add what came of them to the results."""
    unknown = sorted(set(names) - PARTS.keys())
    if unknown:
        raise SystemExit(f"There is no part {unknown[0]}. Parts: {', '.join(PARTS)}.")
    for name in names or PARTS:
        with tempfile.TemporaryDirectory() as top:
            found = PARTS[name](Path(top))
        print(f"{name}: {json.dumps(found, indent=1)}", flush=True)
        before = json.loads(RESULTS.read_text("utf-8"))["parts"] if RESULTS.exists() else {}
        content = {
            "command": "python benchmarks/serving.py",
            "parts": before | {name: found | {"date": time.strftime("%Y-%m-%d")}},
            "versions": runs.versions(),
            "machine": f"{os.cpu_count()} cores",
        }
        files.write_json(RESULTS, content)


if __name__ == "__main__":
    main(sys.argv[1:])
