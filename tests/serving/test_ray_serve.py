"""Serving with Ray: the command line as users type it, beside the stand-in that it has to answer like."""

from __future__ import annotations

import http.client
import importlib.util
import ipaddress
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from common.serving.models import ModelConfig
from common.serving.ray_app import main
from common.serving.server import Address, Server
from tests.serving import serving_models

ROOT = Path(__file__).resolve().parents[2]
HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="needs Ray: pip install -r requirements-scale.txt")


class RayServer:
    """`python -m common.serving.ray_app` in a process of its own, which prints to a file."""

    def __init__(self, output: Path, *arguments):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.mark, self.output = f"MARK={uuid.uuid4()}", output
        name, _, value = self.mark.partition("=")
        with open(output, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "common.serving.ray_app", *map(str, arguments), "--port", str(self.port)],
                cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
                # Another cluster, which is not to be joined.
                env={**os.environ, name: value, "RAY_ADDRESS": "127.0.0.1:1"},
            )  # fmt: skip

    def said(self) -> str:
        return self.output.read_text("utf-8", "replace")

    def wait_until_up(self, seconds: float = 180) -> None:
        deadline = time.monotonic() + seconds
        while "Ctrl-C stops" not in self.said():
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def processes(self) -> dict[int, str]:
        """Return the command lines of this server's processes: they inherit its mark."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().decode("utf-8", "replace")
            except OSError:  # not ours, or gone
                continue
        return found

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sized"
    serving_models.measure_bytes(folder / "3")
    return folder


@pytest.fixture(scope="module")
def ray_server(export, tmp_path_factory):
    server = RayServer(
        tmp_path_factory.mktemp("ray") / "output", export, "--min-replicas", 2, "--max-replicas", 2,
        "--cpus-per-replica", 0.5, "--max-request-mb", 1,
    )  # fmt: skip
    try:
        server.wait_until_up()
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


def ask(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, dict, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


PREDICT = "/v1/models/sized:predict"
QUESTIONS = [
    ("POST", PREDICT, b'{"instances": ["abc", {"b64": "AAEC/w=="}]}'),
    ("POST", "/v1/models/sized/versions/3:predict", b'{"inputs": {"image": ["gr\xc3\xb6\xc3\x9fe"]}}'),
    ("POST", PREDICT, b'{"instances": [1]}'),
    ("POST", PREDICT, b'{"instances": ["a"], "signature_name": "other"}'),
    ("POST", PREDICT, b"no json"),
    ("POST", "/v1/models/sized/versions/4:predict", b'{"instances": ["a"]}'),
    ("POST", "/v1/models/sized/labels/stable:predict", b'{"instances": ["a"]}'),
    ("POST", "/v1/models/gr%C3%B6%C3%9Fe:predict", b'{"instances": ["a"]}'),
    ("GET", "/v1/models/sized", b""),
    ("GET", "/v1/models/sized/versions/3", b""),
    ("GET", "/v1/models/sized/metadata", b""),
    ("GET", "/v1/models/other", b""),
    ("GET", "/other", b""),
    ("DELETE", "/v1/models/sized", b""),
]


@needs_ray
@pytest.mark.release
def test_the_answers_are_those_of_the_stand_in(ray_server, export):
    with Server([ModelConfig("sized", export)], Address(rest_port=0, grpc_port=None)) as stand_in:
        for question in QUESTIONS:
            status, headers, body = ask(ray_server.port, *question)
            expected_status, expected_headers, expected_body = ask(stand_in.rest_port, *question)
            assert (status, body) == (expected_status, expected_body), question
            assert headers["content-type"] == expected_headers["content-type"]
        assert ask(ray_server.port, *QUESTIONS[0])[2] == b'{"predictions":[3,4]}'


@needs_ray
@pytest.mark.release
def test_two_processes_answer(ray_server):
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: ask(ray_server.port, *QUESTIONS[0]), range(100)))
    assert {(status, body) for status, _, body in answers} == {(200, b'{"predictions":[3,4]}')}
    names = {headers["x-replica"] for _, headers, _ in answers}
    assert len(names) == 2
    assert sum("ServeReplica" in command for command in ray_server.processes().values()) == 2


@needs_ray
@pytest.mark.release
def test_limits_hold_here_too(ray_server):
    status, _, body = ask(ray_server.port, "POST", PREDICT, json.dumps({"instances": ["a" * 2**21]}).encode())
    assert status == 413
    assert "1 MiB are allowed" in json.loads(body)["error"]


def _open_to_the_network(pids) -> set[int]:
    """Return the ports on which these processes listen for others than this machine."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(link)))
            except OSError:
                continue
    ports = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            words, port = local.split(":")
            raw = b"".join(struct.pack("=I", int(words[at : at + 8], 16)) for at in range(0, len(words), 8))
            address = ipaddress.ip_address(raw)
            address = getattr(address, "ipv4_mapped", None) or address
            if state == "0A" and inode in inodes and not address.is_loopback:
                ports.add(int(port, 16))
    return ports


@needs_ray
@pytest.mark.release
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads the ports where Linux lists them")
def test_nobody_else_can_run_programs_through_rays_ports(ray_server):
    ports = _open_to_the_network(ray_server.processes())
    assert ray_server.port not in ports
    assert len(ports) <= 2  # per replica the one that Ray always binds to all addresses
    for port in ports:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=20)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


@needs_ray
@pytest.mark.release
def test_nothing_is_left_after_ctrl_c(ray_server):  # the last one with this server
    assert f"curl http://127.0.0.1:{ray_server.port}/v1/models/sized" in ray_server.said()
    assert len(ray_server.processes()) > 3
    assert ray_server.stop() == 0
    assert "Traceback" not in ray_server.said()
    deadline = time.monotonic() + 20
    while ray_server.processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray_server.processes() == {}
    with pytest.raises(ConnectionRefusedError):
        ask(ray_server.port, "GET", "/v1/models/sized")


@needs_ray
@pytest.mark.release
def test_a_model_that_cannot_be_loaded_is_told_in_words(tmp_path):
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "saved_model.pb").write_bytes(b"no model")
    server = RayServer(tmp_path / "output", tmp_path / "broken")
    assert server.process.wait(180) == 2
    last = server.said().strip().splitlines()[-1]
    assert last.startswith("error: the models cannot be served: no version of the model 'broken'")
    assert "cannot be loaded" in last


def test_a_port_in_use_is_told_without_ray(export, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main([str(export), "--port", str(taken.getsockname()[1])]) == 2
    assert "Name another --port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "name the folder of a run"),
        (["--min-replicas", "5", "x"], "--min-replicas 5 must be at most --max-replicas 4"),
        (["--max-replicas", "0", "x"], "--max-replicas is out of range"),
        (["--port", "0", "x"], "--port is out of range"),
        (["no such folder"], "there is no folder"),
    ],
)
def test_a_wrong_command_line_is_told_without_ray(arguments, expected, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert expected in said


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:9", "no Ray cluster answers at --address 127.0.0.1:9: Connection refused"),
        ("ray://x:10001", "must be auto, or HOST:PORT"),
        ("first", "must be auto, or HOST:PORT"),
    ],
)
def test_a_cluster_that_is_not_there_is_told_without_ray(export, address, expected, capsys):
    assert main([str(export), "--address", address]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray_it_says_what_to_install(export, capsys):
    assert main([str(export)]) == 2
    assert "pip install -r requirements-scale.txt" in capsys.readouterr().err
