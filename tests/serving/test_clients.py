"""The clients beside an export, as their users run them: in processes of their own, against a server."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.descriptor import FieldDescriptor
from PIL import Image
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2, predict_pb2

from common.errors import UserError
from common.images.export import export_image_classifier
from common.serving.kit.client_files import CLIENTS, write_clients
from common.serving.models import ModelConfig
from common.serving.rest import Limits
from common.serving.server import Address, Server
from tests.serving import serving_models

LARGEST = 4 * 2**20  # bytes of a request to the server of these tests
CLASSES = ("dunkel", "größer als hell")


def mood(folder: Path) -> Path:
    def serve(text):
        good = tf.strings.regex_full_match(text, "(?s).*good.*")
        score = tf.where(good, 0.875, 0.25)
        return {
            "label": tf.where(good, "gut 👍", "schlecht"),
            "probabilities": tf.stack([1 - score, score], axis=1),
            "class_names": tf.tile([["schlecht", "gut 👍"]], [tf.size(text), 1]),
        }

    return serving_models.save(folder, serve, tf.TensorSpec([None], tf.string, name="text"))


def echo(folder: Path) -> Path:
    spec = tf.TensorSpec([None], tf.string, name="image")
    return serving_models.save(folder, lambda image: {"same_bytes": image, "bytes": tf.strings.length(image)}, spec)


def transcripts(folder: Path) -> Path:
    spec = tf.TensorSpec([None], tf.string, name="audio")
    return serving_models.save(
        folder, lambda audio: {"text": audio, "confidence": tf.zeros_like(audio, tf.float32) + 0.5}, spec
    )


def boxes(folder: Path) -> Path:
    def serve(image):
        number = tf.size(image)
        return {
            "boxes": tf.tile([[[1.0, 2.5, 30.0, 40.0], [0.0] * 4]], [number, 1, 1]),
            "labels": tf.tile([["Hund", ""]], [number, 1]),
            "scores": tf.tile([[0.9, 0.0]], [number, 1]),
            "count": tf.ones([number], tf.int32),
        }

    return serving_models.save(folder, serve, tf.TensorSpec([None], tf.string, name="image"))


def odd(folder: Path) -> Path:
    def serve(image):
        return {"label": tf.ones_like(image, tf.int32), "probabilities": tf.zeros_like(image, tf.float32) + 0.5}

    return serving_models.save(folder, serve, tf.TensorSpec([None], tf.string, name="image"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    """A dark, a bright and another dark picture, with file names that people have."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for name, level in (("dark one.png", 10), ("hell ü 写真.png", 240), ("-dash.png", 30)):
        Image.fromarray(np.full((9, 11, 3), level, np.uint8)).save(folder / name)
        paths.append(folder / name)
    return paths


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> Path:
    """A real export, twice, and small models."""
    folder = tmp_path_factory.mktemp("models")
    pixels = keras.Input((8, 8, 3))
    features = keras.layers.GlobalAveragePooling2D()(pixels)
    outputs = keras.layers.Dense(2, activation="softmax", dtype="float32", name="head")(features)
    model = keras.Model(pixels, outputs)
    model.get_layer("head").set_weights([np.array([[-0.01, 0.01]] * 3, "float32"), np.array([3, -3], "float32")])
    for _ in range(2):
        export_image_classifier(model, folder / "photos", CLASSES)
    for save in (mood, echo, transcripts, boxes, odd, serving_models.measure_bytes, serving_models.all_types):
        save(folder / save.__name__ / "1")
    return folder


@pytest.fixture(scope="module")
def server(exports):
    configs = [ModelConfig(path.name, path) for path in exports.iterdir() if path.name != "photos"]
    configs.append(ModelConfig("photos", exports / "photos", latest=None, labels={"stable": 1}))
    with Server(configs, Address(rest_port=0, grpc_port=0), limits=Limits(body_bytes=LARGEST)) as running:
        yield running


def run(client: str, *arguments, stdin: bytes = b"", environment: dict | None = None, folder: Path = CLIENTS):
    """Run a client in a process of its own; it must never show a traceback.

    client.py gets no packages at all (-S), and neither gets anything of this project (-I).
    """
    flags = ["-I", "-S"] if client == "client.py" else ["-I"]
    finished = subprocess.run(
        [sys.executable, *flags, str(folder / client), *map(str, arguments)],
        input=stdin, capture_output=True, env={**os.environ, **(environment or {})}, timeout=60,
    )  # fmt: skip
    finished.stdout, finished.stderr = finished.stdout.decode("utf-8"), finished.stderr.decode("utf-8")
    assert "Traceback" not in finished.stderr, finished.stderr
    return finished


@pytest.fixture(params=["client.py", "grpc_client.py"])
def ask(request, server):
    """Run one of the two clients against the server, with more arguments."""
    where = ["--url", server.url] if request.param == "client.py" else ["--address", f"127.0.0.1:{server.grpc_port}"]

    def run_it(*arguments, **settings):
        return run(request.param, *where, *arguments, **settings)

    return run_it


def test_pictures_get_the_labels_and_probabilities_of_the_export(ask, pictures, exports):
    loaded = tf.saved_model.load(str(exports / "photos" / "2"))
    contents = [path.read_bytes() for path in pictures]
    outputs = loaded.signatures["serving_default"](image=tf.constant(contents))
    expected = [
        f"{path}  {label.decode()}  {max(probabilities):.4f}"
        for path, label, probabilities in zip(
            pictures, outputs["label"].numpy(), outputs["probabilities"].numpy(), strict=True
        )
    ]
    assert {line.split("  ")[1] for line in expected} == set(CLASSES)
    said = ask("--model", "photos", *pictures)
    assert said.stdout.splitlines() == expected
    assert (said.returncode, said.stderr) == (0, "")


def test_the_clients_beside_an_export_know_their_model(tmp_path, server, pictures):
    written = write_clients(tmp_path, "photos")
    assert written == [tmp_path / "client.py", tmp_path / "grpc_client.py"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["client.py", "grpc_client.py"]
    rest = run("client.py", "--url", server.url, pictures[0], folder=tmp_path)
    grpc = run("grpc_client.py", "--address", f"127.0.0.1:{server.grpc_port}", pictures[0], folder=tmp_path)
    assert rest.stdout == grpc.stdout != ""
    assert 'MODEL = "photos"' in written[0].read_text("utf-8")
    write_clients(tmp_path, "other")
    assert 'MODEL = "other"' in written[0].read_text("utf-8")


@pytest.mark.parametrize("name", ["", ".", "a b", 'a"', "a\n", "größe", "-a", "a/b"])
def test_no_client_is_written_for_a_name_that_is_none(tmp_path, name):
    with pytest.raises(UserError, match="begin with a letter or digit"):
        write_clients(tmp_path, name)
    assert not list(tmp_path.iterdir())


def test_bytes_arrive_as_they_are_in_the_file(ask, tmp_path):
    for name, content in (("every", bytes(range(256)) * 3), ("looks like base64", b"aGFsbG8="), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        said = json.loads(ask("--model", "echo", "--json", tmp_path / name).stdout)
        assert said["bytes"] == len(content)
        assert tf.io.decode_base64(said["same_bytes"]["b64"].translate(str.maketrans("+/", "-_", "="))) == content


def test_an_output_that_has_no_label_is_json(ask, tmp_path):
    (tmp_path / "seven").write_bytes(b"1234567")
    said = ask("--model", "measure_bytes", tmp_path / "seven")
    assert said.stdout == f'{tmp_path / "seven"}  {{"bytes":7}}\n'


def test_transcripts_and_boxes_are_told_in_words(ask, tmp_path):
    (tmp_path / "speech.wav").write_bytes("schöner Tag".encode())
    assert ask("--model", "transcripts", tmp_path / "speech.wav").stdout.endswith("speech.wav  schöner Tag  0.5000\n")
    said = ask("--model", "boxes", tmp_path / "speech.wav")
    assert said.stdout.endswith("speech.wav  1 found; Hund 0.90 [1 2.5 30 40]\n")


def test_outputs_with_known_names_and_other_contents_are_json(ask, tmp_path):
    (tmp_path / "x").write_bytes(b"x")
    said = ask("--model", "odd", tmp_path / "x")
    assert json.loads(said.stdout.partition("  ")[2]) == {"label": 1, "probabilities": 0.5}


def test_sentences_come_as_arguments_and_as_lines(ask):
    arguments = ["a good day", "schlimm 😀 \n zwei Zeilen", "x" * 80 + "good"]
    said = ask("--model", "mood", "--json", *arguments)
    answers = [json.loads(line) for line in said.stdout.splitlines()]
    assert [one["input"] for one in answers] == arguments
    assert [one["label"] for one in answers] == ["gut 👍", "schlecht", "gut 👍"]
    assert answers[0]["probabilities"] == [0.125, 0.875]
    assert answers[0]["class_names"] == ["schlecht", "gut 👍"]

    said = ask("--model", "mood", *arguments)
    assert said.stdout.splitlines() == [
        "a good day  gut 👍  0.8750",
        "schlimm 😀   zwei Zeilen  schlecht  0.7500",
        "x" * 59 + "…  gut 👍  0.8750",
    ]
    lines = "good\r\n\nmäßig\n".encode() + b"\xff good\nno newline at the end, good"
    said = ask("--model", "mood", "-", stdin=lines)
    assert [line.split("  ")[1] for line in said.stdout.splitlines()] == ["gut 👍", "schlecht", "gut 👍"]
    assert said.stderr.startswith("line 4: is not UTF-8")
    assert said.returncode == 1


def test_both_clients_print_the_same_json(server, pictures):
    said = run("client.py", "--url", server.url, "--model", "photos", "--json", *pictures)
    same = run("grpc_client.py", "--address", f"127.0.0.1:{server.grpc_port}", "--model", "photos", "--json", *pictures)
    assert [json.loads(line) for line in said.stdout.splitlines()] == [
        json.loads(line) for line in same.stdout.splitlines()
    ]
    assert len(said.stdout.splitlines()) == 3
    assert "größer als hell" in said.stdout  # readable, not escaped


def test_one_bad_file_spoils_no_other(ask, pictures, tmp_path):
    bad = tmp_path / "bäd.jpg"
    bad.write_bytes(b"no picture")
    absent = tmp_path / "absent.jpg"
    said = ask("--model", "photos", pictures[0], bad, absent, tmp_path, pictures[1], "--batch", 4)
    assert [line.split("  ")[0] for line in said.stdout.splitlines()] == [str(pictures[0]), str(pictures[1])]
    errors = said.stderr.splitlines()
    assert [line.split(": ")[0] for line in errors] == [str(bad), str(absent), str(tmp_path)]
    assert "No such file" in errors[1]
    assert "Is a directory" in errors[2]
    assert said.returncode == 1


def test_a_large_file_is_sent_and_a_too_large_one_is_told(ask, tmp_path):
    sizes = {"a": 2_500_000, "b": 1_000_000, "c": 5_000_000, "d": 10}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(os.urandom(size))
    said = ask("--model", "measure_bytes", *[tmp_path / name for name in sizes])  # together too large, too
    assert [json.loads(line.split("  ")[1])["bytes"] for line in said.stdout.splitlines()] == [2_500_000, 1_000_000, 10]
    assert said.stderr.startswith(f"{tmp_path / 'c'}: ")
    assert len(said.stderr.splitlines()) == 1
    assert said.returncode == 1


def test_without_a_server_the_client_says_what_to_start(tmp_path, pictures):
    for client, where in (("client.py", ["--url", "http://127.0.0.1:9"]), ("grpc_client.py", ["--address", "[::1]:9"])):
        said = run(client, *where, "--model", "photos", pictures[0])
        assert said.stderr.startswith(f"{client}: no server listens at {where[1]}. Start one: ")
        assert (said.returncode, said.stdout) == (1, "")


def test_an_unknown_model_version_or_label_is_told_with_those_that_exist(ask, pictures):
    said = ask("--model", "fotos", pictures[0])
    assert "has no model 'fotos'" in said.stderr
    assert all(name in said.stderr for name in ("mood", "photos"))
    assert said.returncode == 1
    assert "has the versions: 2, 1." in ask("--model", "photos", "--version", 7, pictures[0]).stderr
    assert "photos has: stable" in ask("--model", "photos", "--label", "canary", pictures[0]).stderr
    assert ask("--model", "photos", "--label", "stable", pictures[0]).returncode == 0
    assert ask("--model", "photos", "--version", 1, pictures[0]).returncode == 0


def test_an_unknown_signature_is_told_with_those_that_exist(ask, pictures):
    said = ask("--model", "photos", "--signature", "featurs", pictures[0])
    assert (
        "has no signature 'featurs'; it has: embed, serving_default, tensors. Type --signature serving_default"
        in said.stderr
    )
    said = ask("--model", "photos", "--signature", "tensors", pictures[0])
    assert "'tensors' takes pixels (DT_FLOAT)" in said.stderr
    assert "Type --signature serving_default" in said.stderr
    said = ask("--model", "all_types", pictures[0])
    assert "takes flag (DT_BOOL), sensor (DT_INT32), signal (DT_FLOAT), tag (DT_STRING)" in said.stderr
    said = ask("--model", "photos", "--signature", "embed", "--json", pictures[0])
    assert np.allclose(json.loads(said.stdout)["embedding"], [10, 10, 10])


def test_a_proxy_for_the_internet_is_not_asked_about_this_machine(ask, pictures):
    proxies = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "grpc_proxy")}
    assert ask("--model", "photos", pictures[0], environment={**proxies, "no_proxy": ""}).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["x"], "--model NAME"),
        (["--model", "m"], "FILE_OR_TEXT"),
        (["--model", "m", "--batch", "0", "x"], "--batch is 0; it must be 1 or more"),
        (["--model", "m", "--timeout", "nan", "x"], "--timeout is nan"),
        (["--model", "m", "--version", "1", "--label", "stable", "x"], "use one of them"),
        (["--model", "m", "--version", "-1", "x"], "--version is -1"),
        (["--model", "m", "--url", "127.0.0.1:8501", "x"], "must look like http://127.0.0.1:8501"),
        (["--model", "m", "--url", "http://127.0.0.1:x", "x"], "must look like http://127.0.0.1:8501"),
        (["--model", "m", "--address", "http://127.0.0.1:8500", "x"], "must be HOST:PORT"),
        (["--model", "m", "--address", "localhost", "x"], "must be HOST:PORT"),
    ],
)
def test_a_wrong_command_line_is_told_before_anything_is_sent(arguments, expected):
    clients = ["client.py"] if "--url" in arguments else ["grpc_client.py"]
    if "--url" not in arguments and "--address" not in arguments:
        clients.append("client.py")
    for client in clients:
        said = run(client, *arguments)
        assert expected in said.stderr
        assert said.returncode == 2


METADATA = {
    "metadata": {
        "signature_def": {
            "signature_def": {
                "serving_default": {"inputs": {"text": {"dtype": "DT_STRING"}}, "outputs": {"label": {}, "more": {}}}
            }
        }
    }
}


@pytest.fixture
def odd_server():
    """Start servers that give each request the next of some answers: (status, body), or None, which hangs up."""
    started = []

    def start(*answers) -> str:
        left = iter(answers)

        class Odd(BaseHTTPRequestHandler):
            def do_GET(self):
                self.rfile.read(int(self.headers.get("content-length", 0)))
                answer = next(left)
                if answer is None:
                    self.close_connection = True
                    return
                self.send_response(answer[0])
                self.end_headers()
                self.wfile.write(answer[1] if isinstance(answer[1], bytes) else json.dumps(answer[1]).encode())

            do_POST = do_GET

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Odd)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


GOOD = {"predictions": [{"label": "ok", "more": 1}]}


def test_a_busy_server_and_a_broken_connection_are_tried_again(odd_server):
    url = odd_server(None, (200, METADATA), (503, {"error": "queue is full"}), (200, GOOD))
    said = run("client.py", "--url", url, "--model", "m", "x")
    assert (said.stdout, said.returncode) == ("x  ok\n", 0)


def test_a_server_that_stays_busy_is_given_up(odd_server):
    url = odd_server((200, METADATA), *[(503, {"error": "the queue\nis full"})] * 4)
    said = run("client.py", "--url", url, "--model", "m", "x")
    assert said.stderr == f"client.py: {url}/v1/models/m:predict answers 503: the queue is full\n"


def test_other_failures_are_not_tried_again(odd_server):
    url = odd_server((200, METADATA), (403, b"<html>\n<b>Forbidden</b></html>"), (200, GOOD))
    said = run("client.py", "--url", url, "--model", "m", "x", "y", "--batch", 1)
    assert said.stderr == f"client.py: {url}/v1/models/m:predict answers 403: <html> <b>Forbidden</b></html>\n"
    assert (said.stdout, said.returncode) == ("", 1)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([(200, b"<html>welcome</html>")], "returned no JSON object, but '<html>welcome</html>'"),
        ([(200, b"")], "returned no JSON object, but 'nothing'"),
        ([(200, {"hello": 1})], "does not describe its signatures"),
        ([(200, METADATA), (200, {"predictions": []})], "does not answer each input"),
        ([(404, b"no page"), (404, b"no page")], "has no model 'm': no page"),
    ],
)
def test_a_server_that_is_none_for_models_is_told(odd_server, answers, expected):
    said = run("client.py", "--url", odd_server(*answers), "--model", "m", "x")
    assert expected in said.stderr
    assert (said.stdout, said.returncode) == ("", 1)


def test_the_wrong_one_of_the_two_ports_is_told(server, pictures):
    said = run("client.py", "--url", f"http://127.0.0.1:{server.grpc_port}", "--model", "photos", pictures[0])
    assert "does not speak HTTP" in said.stderr or "closed the connection" in said.stderr
    said = run("grpc_client.py", "--address", f"127.0.0.1:{server.rest_port}", "--model", "photos", pictures[0])
    assert "Is this the port of gRPC (usually 8500)" in said.stderr


def test_many_clients_at_once_get_their_own_answers(server, pictures):
    def alone(path):
        return run("client.py", "--url", server.url, "--model", "photos", *[path] * 5).stdout

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(alone, [pictures[0], pictures[1]] * 3))
    assert answers[0::2] == answers[:1] * 3
    assert answers[1::2] == answers[1:2] * 3
    assert answers[0] != answers[1]


def test_the_clients_are_of_python_3_9():
    for client in CLIENTS.glob("*.py"):
        ast.parse(client.read_text("utf-8"), feature_version=(3, 9))


def test_the_grpc_client_does_without_tensorflow(server, pictures):
    arguments = ["--address", f"127.0.0.1:{server.grpc_port}", "--model", "photos", str(pictures[0])]
    program = (
        f"import runpy, sys; sys.argv[1:] = {arguments!r}\n"
        f"try: runpy.run_path({str(CLIENTS / 'grpc_client.py')!r}, run_name='__main__')\n"
        f"finally: print(sorted({{'tensorflow', 'tensorflow_serving', 'numpy'}} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=60)
    assert finished.stdout.splitlines()[1:] == ["[]"]


def test_the_messages_of_the_grpc_client_are_those_of_tensorflow_serving():
    client = runpy.run_path(str(CLIENTS / "grpc_client.py"))
    modules = (tensor_pb2, tensor_shape_pb2, meta_graph_pb2, model_pb2, predict_pb2, get_model_metadata_pb2,
               get_model_status_pb2)  # fmt: skip
    theirs = {name: getattr(module, name) for module in modules for name in vars(module) if name in client["MESSAGES"]}
    theirs["Dim"] = tensor_shape_pb2.TensorShapeProto.Dim
    assert client["MESSAGES"].keys() - theirs.keys() == {"Int64Value", "Any"}  # of google.protobuf
    enum = FieldDescriptor.TYPE_ENUM
    for name, message in theirs.items():
        ours = client["PROTO"][name].DESCRIPTOR
        for field in ours.fields:
            official = message.DESCRIPTOR.fields_by_name[field.name]
            assert (field.number, field.is_repeated) == (official.number, official.is_repeated), (name, field.name)
            expected = FieldDescriptor.TYPE_INT32 if official.type == enum else official.type
            assert field.type == expected, (name, field.name)


def test_the_grpc_client_reads_tensors_of_all_types_and_forms():
    client = runpy.run_path(str(CLIENTS / "grpc_client.py"))
    for dtype in (
        "float32",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "bool",
    ):
        for array in (np.array([[[0], [1]], [[1], [0]]], dtype), np.array([[1]], dtype), np.zeros((2, 0, 3), dtype)):
            for content in (tf.make_tensor_proto(array), tf.make_tensor_proto(array.tolist(), dtype, array.shape)):
                tensor = client["PROTO"]["TensorProto"].FromString(content.SerializeToString())
                assert client["rows_of"]("y", tensor, len(array)) == array.tolist(), (dtype, content)
    repeated = tf.make_tensor_proto(0.1, tf.float32, [2, 3])  # one value stands for all six
    tensor = client["PROTO"]["TensorProto"].FromString(repeated.SerializeToString())
    assert client["rows_of"]("y", tensor, 2) == [[0.1] * 3] * 2
    values = np.random.default_rng(0).normal(size=1000).astype("float32")
    assert [client["shortest"](float(value)) for value in values] == [float(str(value)) for value in values]
    with pytest.raises(client["Trouble"], match=re.escape("shape [2, 3]; 5 inputs")):
        client["rows_of"]("y", tensor, 5)
