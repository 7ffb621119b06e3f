"""The stand-in for TensorFlow Serving under hard use: versions that come and go, bad neighbours, bad clients."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from common.errors import UserError
from common.serving.batching import Batcher, BatchingParameters
from common.serving.configs import configs_of_file, configs_of_folder
from common.serving.models import ModelConfig, Models
from common.serving.refusals import Refusal
from common.serving.rest import Limits
from common.serving.server import Address, Server
from tests.serving import serving_models

ROOT = Path(__file__).resolve().parents[2]
ANY_PORT = Address(rest_port=0, grpc_port=0)
QUICK = dict(poll_seconds=0.1)


def ask(server: Server, path: str, body: bytes | str | None = None, headers=None) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=30)
    connection.request("GET" if body is None else "POST", path, body, headers or {})
    answer = connection.getresponse()
    content = json.loads(answer.read())
    connection.close()
    return answer.status, content


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def state(server: Server, version: int) -> dict:
    _, content = ask(server, f"/v1/models/numbers/versions/{version}")
    return content.get("model_version_status", [{"state": "UNSEEN"}])[0]


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """Three versions that answer their own number, in tmp_path/made; the first is also in the model's folder."""
    for number in (1, 2, 3):
        serving_models.constant(tmp_path / "made" / str(number), number)
    shutil.copytree(tmp_path / "made" / "1", tmp_path / "numbers" / "1")
    return tmp_path / "numbers"


@contextmanager
def clients_without_pause(server: Server, count: int = 4) -> Iterator[Counter]:
    """Ask the newest version from several threads inside of this block; what is not 200 is counted as its error."""
    answers: Counter = Counter()
    done = threading.Event()

    def run() -> None:
        while not done.is_set():
            status, content = ask(server, "/v1/models/numbers:predict", '{"instances": [0.0]}')
            answers[content["predictions"][0] if status == 200 else str(content)] += 1

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(run) for _ in range(count)]
        try:
            yield answers
        finally:
            done.set()
        for future in futures:
            future.result()


# --- versions -------------------------------------------------------------------------------------------------


def test_a_new_version_takes_over_without_a_failed_request(numbers: Path, tmp_path: Path):
    with Server([ModelConfig("numbers", numbers)], ANY_PORT, **QUICK) as server:
        with clients_without_pause(server) as answers:
            wait_until(lambda: answers[1.0] > 20)
            serving_models.copied(tmp_path / "made" / "2", numbers / "2")
            wait_until(lambda: answers[2.0] > 20)
            wait_until(lambda: state(server, 1)["state"] == "END")
        assert set(answers) == {1.0, 2.0}


def test_a_broken_version_is_reported_and_the_old_one_keeps_answering(numbers: Path, tmp_path: Path):
    with Server([ModelConfig("numbers", numbers)], ANY_PORT, **QUICK) as server:
        with clients_without_pause(server) as answers:
            shutil.copytree(tmp_path / "made" / "2", numbers / "2")
            (numbers / "2" / "saved_model.pb").write_bytes(b"no graph")
            wait_until(lambda: state(server, 2)["state"] == "END")
            wait_until(lambda: answers[1.0] > 20)
        assert set(answers) == {1.0}
        assert "cannot be loaded" in state(server, 2)["status"]["error_message"]
        assert state(server, 2)["status"]["error_code"] == "INVALID_ARGUMENT"
        assert state(server, 1)["state"] == "AVAILABLE"
        shutil.copy(tmp_path / "made" / "2" / "saved_model.pb", numbers / "2")  # mended: tried again
        wait_until(lambda: state(server, 2)["state"] == "AVAILABLE")


def test_a_half_copied_version_is_waited_for(numbers: Path, tmp_path: Path):
    serving_models.save(
        tmp_path / "with variables",
        lambda x: {"y": x * 0.0 + 7.0},
        tf.TensorSpec([None], tf.float32, name="x"),
        variable=1.0,
    )
    with Server([ModelConfig("numbers", numbers)], ANY_PORT, **QUICK) as server:
        (numbers / "5" / "variables").mkdir(parents=True)
        shutil.copy(tmp_path / "with variables" / "saved_model.pb", numbers / "5")
        wait_until(lambda: state(server, 5)["state"] == "END")
        said = state(server, 5)["status"]["error_message"]
        assert "lacks variables/variables.index" in said and "still being copied" in said
        for file in (tmp_path / "with variables" / "variables").iterdir():
            shutil.copy(file, numbers / "5" / "variables")
        wait_until(lambda: state(server, 5)["state"] == "AVAILABLE")
        assert ask(server, "/v1/models/numbers:predict", '{"instances": [0.0]}')[1] == {"predictions": [7.0]}


def test_a_version_that_is_removed_gives_way_to_the_one_before(numbers: Path, tmp_path: Path):
    shutil.copytree(tmp_path / "made" / "2", numbers / "2")
    with Server([ModelConfig("numbers", numbers)], ANY_PORT, **QUICK) as server:
        assert ask(server, "/v1/models/numbers:predict", '{"instances": [0.0]}')[1] == {"predictions": [2.0]}
        shutil.rmtree(numbers / "2")
        wait_until(lambda: state(server, 1)["state"] == "AVAILABLE" and state(server, 2)["state"] == "END")
        assert ask(server, "/v1/models/numbers:predict", '{"instances": [0.0]}')[1] == {"predictions": [1.0]}
        serving_models.copied(tmp_path / "made" / "3", numbers / "2")  # a number may come back
        wait_until(
            lambda: ask(server, "/v1/models/numbers:predict", '{"instances": [0.0]}')[1] == {"predictions": [3.0]}
        )


def test_several_versions_and_labels_side_by_side(numbers: Path, tmp_path: Path):
    shutil.copytree(tmp_path / "made" / "2", numbers / "2")
    shutil.copytree(tmp_path / "made" / "3", numbers / "10")
    labels = {"stable": 1, "canary": 10}
    with Server([ModelConfig("numbers", numbers, latest=None, labels=labels)], ANY_PORT) as server:
        for path, answer in (("", 3.0), ("/versions/1", 1.0), ("/versions/2", 2.0), ("/labels/stable", 1.0),
                             ("/labels/canary", 3.0)):  # fmt: skip
            assert ask(server, f"/v1/models/numbers{path}:predict", '{"instances": [0.0]}')[1] == {
                "predictions": [answer]
            }


def test_a_version_that_points_outside_is_not_loaded(numbers: Path, tmp_path: Path):
    (numbers / "2").symlink_to(tmp_path / "made" / "2")
    shutil.copytree(tmp_path / "made" / "3", numbers / "3")
    (numbers / "3" / "secret").symlink_to("/etc/hostname")
    with Server([ModelConfig("numbers", numbers, latest=None)], ANY_PORT) as server:
        for version in (2, 3):
            assert state(server, version)["state"] == "END"
            assert "points outside" in state(server, version)["status"]["error_message"]
        assert state(server, 1)["state"] == "AVAILABLE"


@pytest.mark.parametrize(
    "path", ["/v1/models/..%2f..%2fetc:predict", "/v1/models/%2e%2e:predict", "/v1/models/../x:predict"]
)
def test_a_path_outside_the_models_is_nobodys_model(numbers: Path, path: str):
    with Server([ModelConfig("numbers", numbers)], ANY_PORT) as server:
        assert ask(server, path, '{"instances": [0.0]}')[0] in (400, 404)


# --- what cannot be served ------------------------------------------------------------------------------------


def test_models_that_cannot_be_served_say_why(numbers: Path, tmp_path: Path):
    def refused(*configs: ModelConfig) -> str:
        with pytest.raises(UserError) as caught:
            Server(list(configs), ANY_PORT).start()
        return str(caught.value)

    (tmp_path / "empty").mkdir()
    assert "holds no version" in refused(ModelConfig("empty", tmp_path / "empty"))
    assert "does not exist" in refused(ModelConfig("absent", tmp_path / "absent"))
    said = refused(ModelConfig("bare", tmp_path / "made" / "1"))
    assert "without a version folder" in said and "cp -r" in said
    said = refused(ModelConfig("numbers", numbers), ModelConfig("numbers", tmp_path / "made"))
    assert "two models have the name 'numbers'" in said
    (numbers / "1" / "saved_model.pb").unlink()
    said = refused(ModelConfig("numbers", numbers))
    assert "no version of the model 'numbers'" in said and "lacks saved_model.pb" in said


def test_a_port_in_use_is_named_with_one_that_may_be_free(numbers: Path):
    with Server([ModelConfig("numbers", numbers)], ANY_PORT) as server:
        for address, flag in (
            (Address(rest_port=server.rest_port, grpc_port=0), "--port"),
            (Address(rest_port=0, grpc_port=server.grpc_port), "--grpc-port"),
        ):
            with pytest.raises(UserError, match=rf"Another server uses it. Choose another port: {flag} \d+"):
                Server([ModelConfig("numbers", numbers)], address)


def test_only_this_machine_is_listened_to_by_default(numbers: Path):
    with Server([ModelConfig("numbers", numbers)], ANY_PORT) as server:
        for port in (server.rest_port, server.grpc_port):
            with socket.socket() as other:  # any other address of this machine is not taken
                other.bind(("127.0.0.2", port))


def test_configs_of_folders(numbers: Path, tmp_path: Path):
    shutil.copytree(numbers, tmp_path / "run" / "serving" / "numbers")
    assert [config.name for config in configs_of_folder(tmp_path / "run")] == ["numbers"]
    assert configs_of_folder(numbers) == [ModelConfig("numbers", numbers)]
    assert configs_of_folder(numbers / "1") == [ModelConfig("numbers", numbers, specific=(1,))]
    (tmp_path / "unfinished" / "serving").mkdir(parents=True)
    with pytest.raises(UserError, match="without an export"):
        configs_of_folder(tmp_path / "unfinished")


def test_configs_of_a_file(tmp_path: Path):
    file = tmp_path / "models.config"
    file.write_text(
        'model_config_list { config { name: "a" base_path: "m/a" model_platform: "tensorflow"'
        ' model_version_policy { specific { versions: 3 versions: 4 } } version_labels { key: "stable" value: 3 } }'
        ' config { name: "b" base_path: "/m/b" model_version_policy { all {} } } }'
    )
    assert configs_of_file(file) == [
        ModelConfig("a", tmp_path / "m" / "a", specific=(3, 4), labels={"stable": 3}),
        ModelConfig("b", Path("/m/b"), latest=None),
    ]
    for text, says in (("model_config_list { nonsense }", "cannot be read"), ("", "names no model"),
                       ('model_config_list { config { name: "a" model_platform: "caffe" } }', "caffe")):  # fmt: skip
        file.write_text(text)
        with pytest.raises(UserError, match=says):
            configs_of_file(file)


# --- batching -------------------------------------------------------------------------------------------------


def test_requests_that_arrive_together_are_answered_together():
    sizes, entered = [], threading.Event()

    def run(inputs):
        sizes.append(len(inputs["x"]))
        entered.wait(5)
        return {"y": inputs["x"] * 2, "name": np.array([str(x).encode() for x in inputs["x"]], object)}

    batcher = Batcher(run, BatchingParameters(max_batch_size=8, num_batch_threads=1), lambda: 0)
    with ThreadPoolExecutor(10) as pool:
        first = pool.submit(batcher, {"x": np.array([100])})
        wait_until(lambda: sizes == [1])  # the only thread is busy; the others gather
        others = [pool.submit(batcher, {"x": np.array([n, n])}) for n in range(9)]
        wait_until(lambda: len(batcher._queue) == 9)
        entered.set()
        assert first.result()["y"].tolist() == [200]
        for n, future in enumerate(others):
            assert future.result()["y"].tolist() == [2 * n, 2 * n]
            assert future.result()["name"].tolist() == [str(n).encode()] * 2
    batcher.close()
    assert sizes == [1, 8, 8, 2]


def test_nobody_waits_where_nobody_else_is_coming():
    batcher = Batcher(dict, BatchingParameters(batch_timeout_micros=5_000_000), lambda: 1)
    began = time.monotonic()
    batcher({"x": np.array([1])})
    assert time.monotonic() - began < 1
    batcher.close()


def test_one_waits_for_those_who_are_coming():
    sizes = []
    batcher = Batcher(
        lambda inputs: sizes.append(len(inputs["x"])) or dict(inputs),
        BatchingParameters(batch_timeout_micros=10_000_000), lambda: 2,
    )  # fmt: skip
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(batcher, {"x": np.array([1])})
        time.sleep(0.2)
        assert not first.done()
        batcher({"x": np.array([2])})
        first.result(1)
    batcher.close()
    assert sizes == [2]


def test_a_bad_neighbour_in_a_batch_spoils_nobody_elses_answer():
    started, asked = threading.Event(), []

    def run(inputs):
        asked.append(len(inputs["x"]))
        started.wait(5)
        if (inputs["x"] < 0).any():
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "negative")
        return dict(inputs)

    batcher = Batcher(run, BatchingParameters(num_batch_threads=1), lambda: 0)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(batcher, {"x": np.array([0])})]
        wait_until(lambda: asked == [1])  # the only thread is busy; the others gather
        futures += [pool.submit(batcher, {"x": np.array([n])}) for n in (1, -2, 3, 4)]
        wait_until(lambda: len(batcher._queue) == 4)
        started.set()
        for n, future in zip((0, 1, -2, 3, 4), futures, strict=True):
            if n < 0:
                with pytest.raises(Refusal, match="negative"):
                    future.result()
            else:
                assert future.result()["x"].tolist() == [n]
    batcher.close()


def test_different_shapes_and_too_many_requests():
    held = threading.Event()
    seen = []

    def run(inputs):
        seen.append(inputs["x"].shape)
        held.wait(5)
        return dict(inputs)

    batcher = Batcher(run, BatchingParameters(max_batch_size=2, num_batch_threads=1, max_enqueued_batches=1), lambda: 0)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(batcher, {"x": np.zeros((1, 3))})
        wait_until(lambda: len(seen) == 1)
        others = [pool.submit(batcher, {"x": np.zeros((1, width))}) for width in (3, 4)]
        wait_until(lambda: len(batcher._queue) == 2)
        with pytest.raises(Refusal, match=r"queue .* is full"):
            batcher({"x": np.zeros((1, 3))})
        with pytest.raises(Refusal, match="Task size 3 is larger than maximum input batch size 2"):
            batcher({"x": np.zeros((3, 3))})
        held.set()
        assert [future.result()["x"].shape for future in (first, *others)] == [(1, 3), (1, 3), (1, 4)]
    batcher.close()
    assert seen == [(1, 3), (1, 3), (1, 4)]


def test_the_server_batches_and_answers_the_same(tmp_path: Path):
    serving_models.measure_bytes(tmp_path / "bytes" / "1")
    with Server([ModelConfig("bytes", tmp_path / "bytes")], ANY_PORT, batching=BatchingParameters()) as server:

        def measure(size: int) -> int:
            body = json.dumps({"instances": [base64_of(b"x" * size)]})
            return ask(server, "/v1/models/bytes:predict", body)[1]["predictions"][0]

        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(measure, range(200))) == list(range(200))
        connection = http.client.HTTPConnection("127.0.0.1", server.rest_port)
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()
    batches = int(float(re.search(r'serving_batch_size_count{model="bytes"} (\S+)', page)[1]))
    assert 0 < batches <= 200
    assert 'serving_requests_total{code="200",method="predict",model="bytes",protocol="rest"} 200.0' in page


def base64_of(content: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(content).decode()}


# --- bad clients ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with little patience."""
    root = tmp_path_factory.mktemp("models")
    serving_models.measure_bytes(root / "bytes" / "1")
    limits = Limits(body_bytes=200_000, header_seconds=0.5, request_seconds=0.7)
    with Server([ModelConfig("bytes", root / "bytes")], ANY_PORT, limits=limits) as server:
        yield server


def raw(server: Server, *pieces: bytes, pause: float = 0.0, half_close: bool = False) -> tuple[int, dict]:
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=10) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, json.loads(answer.read())


BODY = b'{"instances": ["abc"]}'
HEAD = b"POST /v1/models/bytes:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


def test_headers_that_never_end(small: Server):
    status, content = raw(small, b"POST /v1/models/bytes:predict HTTP/1.1\r\nX: ", b"y", pause=0.2)
    assert status == 408 and "headers did not arrive within 0.5 seconds" in content["error"]


def test_a_body_that_never_ends(small: Server):
    status, content = raw(small, HEAD % len(BODY), BODY[:5])
    assert status == 408 and "did not arrive within 0.7 seconds" in content["error"]


def test_half_closed_connections(small: Server):
    assert raw(small, HEAD % len(BODY), BODY, half_close=True) == (200, {"predictions": [3]})
    status, content = raw(small, HEAD % len(BODY), BODY[:5], half_close=True)
    assert status == 400 and "ends before its body" in content["error"]
    status, content = raw(small, b"POST /v1/mod", half_close=True)
    assert status == 400 and "ends within its headers" in content["error"]


def test_no_http_at_all(small: Server):
    status, content = raw(small, b"\x16\x03\x01 hello\r\n\r\n")
    assert status == 400 and "error" in content


def test_two_requests_in_one_go_get_two_answers(small: Server):
    with socket.create_connection(("127.0.0.1", small.rest_port), timeout=10) as connection:
        connection.sendall((HEAD % len(BODY) + BODY) * 2)
        received = b""
        while received.count(b'{"predictions":[3]}') < 2:
            received += connection.recv(10_000) or pytest.fail(f"closed after {received!r}")


@pytest.mark.parametrize("size", [200_001, 1_500_000, 5_000_000])
def test_a_body_that_is_too_large(small: Server, size: int):
    body = b'{"instances": ["' + b"a" * size + b'"]}'
    try:
        status, content = ask(small, "/v1/models/bytes:predict", body)
    except (BrokenPipeError, ConnectionResetError):
        assert size > 8 * 200_000  # whoever goes on sending that much is cut off
    else:
        assert status == 413 and "--max-request-mb" in content["error"]
    assert raw(small, HEAD % len(BODY), BODY)[0] == 200


def test_a_grpc_message_that_is_too_large(small: Server):
    request = PredictRequest()
    request.model_spec.name = "bytes"
    request.inputs["image"].CopyFrom(tf.make_tensor_proto([b"a" * 300_000]))
    with grpc.insecure_channel(f"127.0.0.1:{small.grpc_port}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            PredictionServiceStub(channel).Predict(request, 10)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_gzip_is_unpacked_but_no_bomb(small: Server):
    zipped = {"Content-Encoding": "gzip"}
    assert ask(small, "/v1/models/bytes:predict", gzip.compress(BODY), zipped) == (200, {"predictions": [3]})
    bomb = gzip.compress(b'{"instances": ["' + b"a" * 10_000_000 + b'"]}')
    assert ask(small, "/v1/models/bytes:predict", bomb, zipped)[0] == 413
    assert ask(small, "/v1/models/bytes:predict", b"no gzip", zipped)[0] == 400
    assert ask(small, "/v1/models/bytes:predict", gzip.compress(BODY)[:-12], zipped)[0] == 400


@pytest.mark.parametrize(
    "body",
    [b"[" * 100_000, b'{"instances": ' + b"[" * 5000 + b"1" + b"]" * 5000 + b"}", b'{"a":' * 3000 + b"1" + b"}" * 3000,
     b'{"instances": ["\xff\xfe"]}', b'{"instances": ["\\ud800"]}', b'{"instances": [' + b"9" * 10_000 + b"]}",
     b'{"instances": [null]}', b'{"instances": {"b64": "YQ=="}}', b'{"instances": [{"b64": 5}]}', b"\x00", b"null",
     b'{"inputs": {"image": "abc"}}', b'{"inputs": {"image": [], "more": 1}}'],
    ids=lambda body: body[:30],
)  # fmt: skip
def test_json_that_nobody_should_send(small: Server, body: bytes):
    status, content = ask(small, "/v1/models/bytes:predict", body)
    assert status == 400 and len(content["error"]) > 10


def test_numbers_that_do_not_fit_their_type(tmp_path: Path):
    serving_models.all_types(tmp_path / "types" / "1")
    good = {"tag": "a", "signal": [0.5] * 5, "sensor": [[1, 2], [3, 4]], "flag": True}
    bad = [("sensor", [[1, 2], [3, 2**31]]), ("sensor", [[1, 2], [3, 4.0]]), ("sensor", [[1, 2], [3, True]]),
           ("signal", [1e39] * 5), ("signal", [True] * 5), ("signal", [0.5] * 4), ("flag", 1), ("tag", 5)]  # fmt: skip
    with Server([ModelConfig("types", tmp_path / "types")], ANY_PORT) as server:
        status, content = ask(server, "/v1/models/types:predict", json.dumps({"instances": [good]}))
        assert status == 200 and content["predictions"] == [good | {"tag_bytes": {"b64": "YQ=="}}]
        for name, value in bad:
            status, content = ask(server, "/v1/models/types:predict", json.dumps({"instances": [good | {name: value}]}))
            assert status == 400 and "error" in content, (name, value)


# --- the command ----------------------------------------------------------------------------------------------


def test_the_command_serves_a_run_and_stops_when_told(numbers: Path, tmp_path: Path):
    shutil.copytree(numbers, tmp_path / "run" / "serving" / "numbers")
    (tmp_path / "run" / "serving" / "request.json").write_text('{"instances": [0.0]}')
    command = [sys.executable, "-m", "recipes", "serve", str(tmp_path / "run"), "--port", "0", "--grpc-port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("metrics"):
            break
    curl = next(line.split("try")[1].split() for line in lines if "try" in line)
    assert curl[:2] == ["curl", "-d"] and Path(curl[2][1:]).is_file()
    answer = subprocess.run(["curl", "-s", *curl[1:]], capture_output=True, text=True, cwd=ROOT)
    assert json.loads(answer.stdout) == {"predictions": [1.0]}
    process.send_signal(signal.SIGTERM)
    _, logged = process.communicate(timeout=30)
    assert process.returncode == 0
    events = [json.loads(line) for line in logged.splitlines()]
    assert [event["event"] for event in events][-1] == "stopped"
    assert {"time", "level", "event", "model", "version", "seconds", "warmup_requests"} <= events[0].keys()


def test_requests_that_run_are_answered_before_the_server_stops(tmp_path: Path):
    def slowly(x):
        return {"y": tf.while_loop(lambda i, _: i < 400_000, lambda i, y: (i + 1, y), (0, x))[1]}

    serving_models.save(tmp_path / "slow" / "1", slowly, tf.TensorSpec([None], tf.float32, name="x"))
    server = Server([ModelConfig("slow", tmp_path / "slow")], ANY_PORT).start()
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        answer = pool.submit(ask, server, "/v1/models/slow:predict", '{"instances": [5.0]}')
        wait_until(lambda: next(iter(server.models.statuses("slow").values())).in_flight == 1)
        server.stop()
        assert answer.result() == (200, {"predictions": [5.0]})
        assert time.monotonic() - began > 0.1


def test_models_can_be_used_without_a_server(numbers: Path):
    models = Models([ModelConfig("numbers", numbers)])
    models.start()
    with models.lend("numbers") as servable:
        answer = servable.predict(servable.signature(), {"x": np.zeros(2, np.float32)})
    assert answer["y"].tolist() == [1.0, 1.0]
    models.close()
    with pytest.raises(Refusal, match="Servable not found"), models.lend("numbers"):
        pass
