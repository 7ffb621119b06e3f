"""Requests of TensorFlow Serving's documentation and own tests, good and bad, to the stand-in.

Each case says where its expected answer stands: SOURCES names the file under tensorflow_serving/ and the commit.
Messages are compared by the part that those tests look for.
"""

from __future__ import annotations

import http.client
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from common.serving.models import ModelConfig
from common.serving.server import Address, Server
from tests.serving import serving_models

# File and commit.
SOURCES = {
    "rest": ("g3doc/api_rest.md", "00e459f1604c40c073cbb9cb92d72cb6a88be9cd"),
    "handler": ("model_servers/http_rest_api_handler_test.cc", "49ac8acb50291c21a0a72cfd9135aa2030e3ae88"),
    "json": ("util/json_tensor_test.cc", "07451ec6d73019beb7a658a395b3b11a562911df"),
    "convert": ("util/json_tensor.cc", "00f8ba53d72c2e34ca8d1befb17231bb3b66e653"),
    "server": ("model_servers/tensorflow_model_server_test.py", "00e459f1604c40c073cbb9cb92d72cb6a88be9cd"),
    "predict": ("servables/tensorflow/predict_util.cc", "0ab611722709730c3c1fa8e613d31b50eea77102"),
    "status": ("model_servers/get_model_status_impl.cc", "1b86c9e771d8e7089945d9431f1dcdc1081608cb"),
    "metadata": ("servables/tensorflow/get_model_metadata_impl.cc", "1b86c9e771d8e7089945d9431f1dcdc1081608cb"),
    "classifier": ("servables/tensorflow/classifier.cc", "155a929eefbea5709c5a626f23b3bccddef47843"),
    "regressor": ("servables/tensorflow/regressor.cc", "1c4fab796ce02472860c2c214267c8abeaf8bb97"),
}

FREE = None  # a shape that says nothing


def echo(folder: Path, **dtypes: tf.DType) -> None:
    """Write a model that returns its inputs, of any shape, under their names."""
    specs = {name: tf.TensorSpec(FREE, dtype, name=name) for name, dtype in dtypes.items()}
    module = tf.Module()
    module.serve = tf.function(lambda **inputs: {name: tf.identity(value) for name, value in inputs.items()})
    tf.saved_model.save(module, str(folder), signatures=module.serve.get_concrete_function(**specs))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    serving_models.half_plus(root / "half_plus_two" / "123", 2.0)
    serving_models.half_plus(root / "half_plus_three" / "00000123", 3.0)
    echo(root / "ints" / "1", default=tf.int32)
    echo(root / "floats" / "1", default=tf.float32)
    echo(root / "doubles" / "1", default=tf.float64)
    echo(root / "strings" / "1", default=tf.string)
    echo(root / "bytes" / "1", str_tensor_bytes=tf.string)
    echo(root / "two" / "1", int_tensor=tf.int32, str_tensor=tf.string)
    echo(root / "three" / "1", int_tensor=tf.int32, str_tensor=tf.string, bin_tensor=tf.string)
    echo(root / "four" / "1", int_tensor=tf.int32, str_tensor=tf.string, float_tensor=tf.float32, dbl_tensor=tf.float64)
    echo(root / "signals" / "1", tag=tf.string, signal=tf.int32, sensor=tf.int32)
    echo(root / "complex" / "1", tensor=tf.complex64)
    configs = [ModelConfig(path.name, path) for path in sorted(root.iterdir()) if path.name != "half_plus_two"]
    configs.append(
        ModelConfig("half_plus_two", root / "half_plus_two", specific=(123,), labels={"label_1": 123, "gone": 99})
    )
    with Server(configs, Address(rest_port=0, grpc_port=0)) as running:
        yield running


def ask(server: Server, method: str, path: str, body: str | bytes = b"") -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=30)
    connection.request(method, path, body)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text, answer.headers["content-type"]


@dataclass(frozen=True)
class Case:
    """A REST request and its answer: a JSON value, or the part of the error message that clients look for."""

    source: str
    request: str
    body: str = ""
    gives: object = None
    refuses: str = ""
    status: int = 400

    def __str__(self) -> str:
        return f"{self.source}-{self.request.split('/models')[-1]}-{self.body}"[:90].replace("\n", " ")


TWO = "POST /v1/models/half_plus_two"
AVAILABLE = {
    "model_version_status": [
        {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    ]
}
MAX_UINT64 = 2**64 - 1

REST = [
    # The documentation's own examples.
    Case("rest", "GET /v1/models/half_plus_three", gives=AVAILABLE),
    Case("rest", "POST /v1/models/half_plus_three:predict", '{"instances": [1.0,2.0,5.0]}',
         {"predictions": [3.5, 4.0, 5.5]}),
    Case("rest", "POST /v1/models/half_plus_three:regress",
         '{"signature_name": "regress_x_to_y", "examples": [{"x": 1.0}, {"x": 2.0}]}', {"results": [3.5, 4.0]}),
    Case("rest", "POST /v1/models/half:predict", '{"instances": [1.0,5.0]}',
         refuses="Servable not found for request: Latest(half)", status=404),
    Case("rest", "POST /v1/models/strings:predict", '{"instances": ["foo", "bar", "baz"]}',
         {"predictions": ["foo", "bar", "baz"]}),
    Case("rest", "POST /v1/models/ints:predict", '{"instances": [[[1, 2]], [[3, 4]]]}',
         {"predictions": [[[1, 2]], [[3, 4]]]}),
    Case("rest", "POST /v1/models/signals:predict",
         '{"instances": [{"tag": "foo", "signal": [1, 2, 3, 4, 5], "sensor": [[1, 2], [3, 4]]},'
         ' {"tag": "bar", "signal": [3, 4, 1, 2, 5], "sensor": [[4, 5], [6, 8]]}]}',
         {"predictions": [{"tag": "foo", "signal": [1, 2, 3, 4, 5], "sensor": [[1, 2], [3, 4]]},
                          {"tag": "bar", "signal": [3, 4, 1, 2, 5], "sensor": [[4, 5], [6, 8]]}]}),
    Case("rest", "POST /v1/models/signals:predict",
         '{"inputs": {"tag": ["foo", "bar"], "signal": [[1, 2, 3, 4, 5], [3, 4, 1, 2, 5]],'
         ' "sensor": [[[1, 2], [3, 4]], [[4, 5], [6, 8]]]}}',
         {"outputs": {"tag": ["foo", "bar"], "signal": [[1, 2, 3, 4, 5], [3, 4, 1, 2, 5]],
                      "sensor": [[[1, 2], [3, 4]], [[4, 5], [6, 8]]]}}),
    Case("rest", "POST /v1/models/floats:predict", '{"instances": [1.0, -3.14, NaN, Infinity, -Infinity, 1e2]}',
         {"predictions": [1.0, -3.14, math.nan, math.inf, -math.inf, 100.0]}),
    Case("rest", "POST /v1/models/half_plus_two:predict", '{"inputs": 2.0}', {"outputs": 3.0}),
    # UnsupportedApiCalls
    Case("handler", "GET /v1/foo", refuses="Malformed request"),
    Case("handler", "POST /v1/foo", refuses="Malformed request"),
    Case("handler", "GET /v1/models", refuses="Missing model name"),
    Case("handler", "POST /v1/models", refuses="Malformed request"),
    Case("handler", "GET /v1/models/foo:predict", refuses="Malformed request"),
    Case("handler", "GET /v1/models/foo/version/50:predict", refuses="Malformed request"),
    Case("handler", "POST /v1/models/foo/version/50:regress", refuses="Malformed request"),
    Case("handler", "POST /v1/models/foo/versions/HELLO:regress", refuses="Malformed request"),
    Case("handler", f"POST /v1/models/foo/versions/{MAX_UINT64}:regress", refuses="Failed to convert version"),
    # PredictModelNameVersionErrors
    Case("handler", "POST /v1/models/foo:predict", '{ "instances": [1] }', refuses="Servable not found", status=404),
    Case("handler", "POST /v1/models/foo/versions/50:predict", '{ "instances": [1] }', refuses="Specific(foo, 50)",
         status=404),
    Case("handler", TWO + "/versions/99:predict", '{ "instances": [1] }', refuses="Specific(half_plus_two, 99)",
         status=404),
    # PredictRequestErrors
    Case("handler", TWO + ":predict", "", refuses="JSON Parse error: The document is empty"),
    Case("handler", TWO + ":predict", "instances = [1, 2]", refuses="JSON Parse error: Invalid value"),
    Case("handler", TWO + ":predict", '{ "instances": ["x", "y"] }', refuses="not of expected type: float"),
    Case("handler", TWO + "/labels/nope:predict", '{ "instances": ["x", "y"] }',
         refuses="Unrecognized servable version label"),
    Case("handler", TWO + ":predict", '{ "signature_name": 100 }',
         refuses="'signature_name' key must be a string value."),
    Case("handler", TWO + ":predict", '{"signature_name": "nope", "instances": [1.0]}',
         refuses='Serving signature name: "nope" not found in signature def'),
    # Predict, Regress, Classify, GetStatus
    Case("handler", TWO + ":predict", '{"instances": [[1.0, 2.0], [3.0, 4.0]]}',
         {"predictions": [[2.5, 3.0], [3.5, 4.0]]}),
    Case("handler", TWO + "/versions/123:predict", '{"instances": [1.0, 2.0]}', {"predictions": [2.5, 3.0]}),
    Case("handler", TWO + "/labels/label_1:predict", '{"instances": [1.0, 2.0]}', {"predictions": [2.5, 3.0]}),
    Case("handler", TWO + "/versions/123:predict", '{"signature_name": "serving_default", "instances": [3.0, 4.0]}',
         {"predictions": [3.5, 4.0]}),
    Case("handler", TWO + "/versions/123:predict", '{"signature_name": "serving_default", "inputs": [3.0, 4.0]}',
         {"outputs": [3.5, 4.0]}),
    Case("handler", TWO + ":regress", '{"signature_name": "regress_x_to_y", "examples": [ { "x": 80.0 } ] }',
         {"results": [42]}),
    Case("handler", TWO + "/labels/label_1:regress",
         '{"signature_name": "regress_x_to_y", "examples": [ { "x": 80.0 } ] }', {"results": [42]}),
    Case("handler", TWO + ":classify", '{"signature_name": "classify_x_to_y", "examples": [ { "x": 20.0 } ] }',
         {"results": [[["", 12]]]}),
    Case("handler", TWO + "/versions/123:classify",
         '{"signature_name": "classify_x_to_y", "examples": [ { "x": 10.0 } ] }', {"results": [[["", 7]]]}),
    Case("handler", "GET /v1/models/half_plus_two", gives=AVAILABLE),
    Case("handler", "GET /v1/models/half_plus_two/versions/123", gives=AVAILABLE),
    Case("handler", "GET /v1/models/half_plus_two/labels/label_1", gives=AVAILABLE),
    Case("status", "GET /v1/models/half_plus_two/versions/7", refuses="Could not find version 7 of model half_plus_two",
         status=404),
    Case("status", "GET /v1/models/foo", refuses="Could not find any versions of model foo", status=404),
    # json_tensor_test.cc: SingleUnnamedTensor ... MultipleNamedTensorColumnarFormat
    Case("json", "POST /v1/models/ints:predict", '{"instances": [[1,2],[3,4],[5,6]]}',
         {"predictions": [[1, 2], [3, 4], [5, 6]]}),
    Case("json", "POST /v1/models/floats:predict", '{"instances": [1, 2.0, 3, 4, 5.003, 0.007, 0.0]}',
         {"predictions": [1, 2.0, 3, 4, 5.003, 0.007, 0.0]}),
    Case("json", "POST /v1/models/doubles:predict", '{"instances": [1.0, 2, 3, 4, 0.662, 0, 0.0]}',
         {"predictions": [1.0, 2, 3, 4, 0.662, 0, 0.0]}),
    Case("json", "POST /v1/models/strings:predict", '{"instances": [ { "b64" : "aGVsbG8=" }, { "b64": "d29ybGQ=" } ]}',
         {"predictions": ["hello", "world"]}),
    Case("json", "POST /v1/models/strings:predict",
         '{"instances": [ [{ "b64" : "aGVsbG8=" }], [{ "b64": "d29ybGQ=" }] ]}',
         {"predictions": [["hello"], ["world"]]}),
    Case("json", "POST /v1/models/strings:predict",
         '{"instances": [ { "default": [ [{ "b64" : "aGVsbG8=" }], [{ "b64": "d29ybGQ=" }] ] } ]}',
         {"predictions": [[["hello"], ["world"]]]}),
    Case("json", "POST /v1/models/four:predict",
         '{"instances": [{"int_tensor": [[1,2],[3,4],[5,6]], "str_tensor": ["foo", "bar"], "float_tensor": [1.0, NaN],'
         ' "dbl_tensor": [NaN]}, {"int_tensor": [[7,8],[9,0],[1,2]], "str_tensor": ["baz", "bat"],'
         ' "float_tensor": [2.0, Infinity], "dbl_tensor": [2.0]}]}',
         {"predictions": [
             {"int_tensor": [[1, 2], [3, 4], [5, 6]], "str_tensor": ["foo", "bar"], "float_tensor": [1.0, math.nan],
              "dbl_tensor": [math.nan]},
             {"int_tensor": [[7, 8], [9, 0], [1, 2]], "str_tensor": ["baz", "bat"], "float_tensor": [2.0, math.inf],
              "dbl_tensor": [2.0]}]}),
    Case("json", "POST /v1/models/ints:predict", '{"inputs": {"default": [[[1,2],[3,4],[5,6]]]}}',
         {"outputs": [[[1, 2], [3, 4], [5, 6]]]}),
    Case("json", "POST /v1/models/ints:predict", '{"inputs": [[[1,2],[3,4],[5,6]]]}',
         {"outputs": [[[1, 2], [3, 4], [5, 6]]]}),
    Case("json", "POST /v1/models/three:predict",
         '{"inputs": {"int_tensor": [[[1,2],[3,4],[5,6]]], "str_tensor": ["foo", "bar"],'
         ' "bin_tensor": { "b64" : "aGVsbG8=" }}}',
         {"outputs": {"int_tensor": [[[1, 2], [3, 4], [5, 6]]], "str_tensor": ["foo", "bar"], "bin_tensor": "hello"}}),
    # SingleUnnamedTensorErrors
    Case("json", "POST /v1/models/ints:predict", '{"signature_name": 5, "instances": [[1,2]]}',
         refuses="must be a string value"),
    Case("json", "POST /v1/models/ints:predict", '{"instances": [[1,2]], "inputs": [[1,2]]}',
         refuses="Not formatted correctly"),
    Case("json", "POST /v1/models/ints:predict", '{"instances": [[1,2],[3,4],[5,6,7]]}',
         refuses="Expecting tensor size"),
    Case("json", "POST /v1/models/ints:predict", '{"instances": [[1,2],[3,4],[[5,6]]]}', refuses="Expecting shape"),
    Case("json", "POST /v1/models/ints:predict", '{"instances": [1, [1]]}', refuses="Expecting shape"),
    Case("json", "POST /v1/models/ints:predict", '{"instances": [[1,2],["a", "b"]]}', refuses="not of expected type"),
    Case("json", "POST /v1/models/floats:predict", '{"instances": [1.7976931348623157e308]}',
         refuses="loss of precision"),
    Case("json", "POST /v1/models/floats:predict", '{"instances": [16777217]}', refuses="loss of precision"),
    Case("json", "POST /v1/models/doubles:predict", '{"instances": [9007199254740993]}', refuses="loss of precision"),
    # MultipleNamedTensorErrors
    Case("json", "POST /v1/models/two:predict",
         '{"instances": [{"int_tensor": [[1,2],[3,4],[5,6]], "str_tensor": ["foo", "bar"]},'
         ' {"int_tensor": [[[7,8],[9,0],[1,2]]], "str_tensor": ["baz", "bat"]}]}', refuses="Expecting shape"),
    Case("json", "POST /v1/models/two:predict",
         '{"instances": [{"int_tensor": [[1,2],[3,4],[5,6],[7,8]], "str_tensor": ["foo", "bar"]},'
         ' {"int_tensor": [[7,8],[9,0],[1,2]], "str_tensor": ["baz", "bat"]}]}', refuses="Expecting tensor size"),
    Case("json", "POST /v1/models/two:predict",
         '{"instances": [{"int_tensor": [[1,2]], "str_tensor": ["foo"]}, [1, 20, 30]]}',
         refuses="Expecting object but got list"),
    Case("json", "POST /v1/models/strings:predict", '{"instances": [["baz", "bar"], {"str_tensor": ["baz", "bat"]}]}',
         refuses="Expecting value/list but got object"),
    # FromJson...: what the server writes
    Case("json", "POST /v1/models/bytes:predict",
         '{"instances": [[{"b64": "aGVsbG8="}, {"b64": "d29ybGQ="}], [{"b64": "dGY="}, {"b64": "c2VydmluZw=="}]]}',
         {"predictions": [[{"b64": "aGVsbG8="}, {"b64": "d29ybGQ="}], [{"b64": "dGY="}, {"b64": "c2VydmluZw=="}]]}),
    Case("json", "POST /v1/models/floats:predict",
         '{"instances": [[9000000, 999999, 0.50000], [0.0003, 0.00003, 555557.5]]}',
         {"predictions": [[9e06, 999999.0, 0.5], [0.0003, 3e-05, 555557.5]]}),
    Case("json", "POST /v1/models/two:predict",
         '{"inputs": {"int_tensor": [[1,2,3],[4,5,6]], "str_tensor": [["foo", "bar", "baz"]]}}',
         {"outputs": {"int_tensor": [[1, 2, 3], [4, 5, 6]], "str_tensor": [["foo", "bar", "baz"]]}}),
    Case("json", "POST /v1/models/complex:predict", '{"instances": [1.0]}', refuses="complex64"),
    # json_tensor.cc and classifier.cc, regressor.cc: errors without a test of their own there
    Case("convert", "POST /v1/models/two:predict", '{"instances": [1]}',
         refuses="instances is a plain list, but expecting"),
    Case("convert", "POST /v1/models/two:predict", '{"inputs": {"int_tensor": 1}}',
         refuses="Missing named input: str_tensor in 'inputs' object."),
    Case("convert", "POST /v1/models/ints:predict", "{}", refuses="Missing 'inputs' or 'instances' key"),
    Case("convert", "POST /v1/models/ints:predict", '{"instances": []}', refuses="No values in 'instances' array"),
    Case("convert", "POST /v1/models/ints:predict", "[1]", refuses="Is not object"),
    Case("convert", "POST /v1/models/strings:predict", '{"instances": [{"b64": "?"}]}',
         refuses="Unable to base64 decode"),
    Case("classifier", TWO + ":classify", '{"examples": [{"x": 1.0}]}',
         refuses="Expected classification signature method_name to be tensorflow/serving/classify. Was: "
         "tensorflow/serving/predict"),
    Case("regressor", TWO + ":regress", '{"signature_name": "classify_x_to_y", "examples": [{"x": 1.0}]}',
         refuses="Expected regression signature method_name to be tensorflow/serving/regress. Was: "
         "tensorflow/serving/classify"),
    Case("convert", TWO + ":classify", '{"signature_name": "classify_x_to_y"}', refuses="key 'examples' is expected"),
    Case("convert", TWO + ":regress", '{"signature_name": "regress_x_to_y", "context": {"x": 2.0}, "examples": [{}]}',
         {"results": [3.0]}),
]  # fmt: skip


@pytest.mark.parametrize("case", REST, ids=str)
def test_rest_answers_as_documented(server: Server, case: Case):
    assert case.source in SOURCES
    method, path = case.request.split()
    status, text, kind = ask(server, method, path, case.body)
    assert kind == "application/json"
    answer = json.loads(text)
    if case.refuses:
        assert list(answer) == ["error"] and case.refuses in answer["error"]
        assert status == case.status
    else:
        assert status == 200, text
        assert same(answer, case.gives), text


def same(one: object, other: object) -> bool:
    """Equal as JSON, NaN being equal to itself."""
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def test_an_unknown_signature_is_answered_with_those_that_exist(server: Server):
    _, text, _ = ask(server, "POST", "/v1/models/half_plus_two:predict", '{"signature_name": "x", "instances": [1.0]}')
    for name in ("serving_default", "regress_x_to_y", "classify_x_to_y"):
        assert name in json.loads(text)["error"]


def test_rest_metadata_has_the_form_of_the_documentation(server: Server):
    """rest: Model Metadata API; handler: GetModelMetadata."""
    status, text, _ = ask(server, "GET", "/v1/models/half_plus_two/metadata")
    answer = json.loads(text)
    assert status == 200
    assert answer["model_spec"] == {"name": "half_plus_two", "signature_name": "", "version": "123"}
    signature = answer["metadata"]["signature_def"]["signature_def"]["regress_x_to_y"]
    assert signature["method_name"] == "tensorflow/serving/regress"
    assert signature["inputs"]["inputs"]["dtype"] == "DT_STRING"
    assert signature["outputs"]["outputs"]["tensor_shape"]["dim"][1]["size"] == "1"


# --- gRPC -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as opened:
        yield opened


@pytest.fixture
def predictions(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture
def statuses(channel):
    return model_service_pb2_grpc.ModelServiceStub(channel)


def predict_request(name: str = "half_plus_two", **spec) -> predict_pb2.PredictRequest:
    """The request of VerifyPredictRequest in tensorflow_model_server_test.py."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    for key, value in spec.items():
        setattr(request.model_spec, key, value)
    request.inputs["x"].dtype = tf.float32.as_datatype_enum
    request.inputs["x"].float_val.append(2.0)
    request.inputs["x"].tensor_shape.dim.add().size = 1
    return request


def refused(call, request) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, 10)
    return caught.value.code(), caught.value.details()


def test_grpc_predict(predictions):
    """server: VerifyPredictRequest, testPredict."""
    request = predict_request()
    request.output_filter.append("y")
    result = predictions.Predict(request, 10)
    assert list(result.outputs["y"].float_val) == [3.0]
    assert result.outputs["y"].dtype == tf.float32.as_datatype_enum
    spec = result.model_spec
    assert (spec.name, spec.signature_name, spec.version.value) == ("half_plus_two", "serving_default", 123)


def test_grpc_predict_by_version_and_by_label(predictions):
    """server: testPredict...; predict_impl."""
    request = predict_request()
    request.model_spec.version.value = 123
    assert list(predictions.Predict(request, 10).outputs["y"].float_val) == [3.0]
    assert list(predictions.Predict(predict_request(version_label="label_1"), 10).outputs["y"].float_val) == [3.0]


def test_grpc_predict_takes_values_as_raw_content_too(predictions):
    """rest: tensor_content is the other form of a TensorProto; tf.make_tensor_proto writes it for arrays."""
    request = predict_request()
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([[2.0, 4.0]]))
    assert request.inputs["x"].tensor_content
    assert tf.make_ndarray(predictions.Predict(request, 10).outputs["y"]).tolist() == [[3.0, 4.0]]


NOT_FOUND, INVALID, PRECONDITION = (
    grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION,
)  # fmt: skip


def _version(number: int) -> predict_pb2.PredictRequest:
    request = predict_request()
    request.model_spec.version.value = number
    return request


def _inputs(**tensors) -> predict_pb2.PredictRequest:
    request = predict_request()
    request.inputs.clear()
    for name, value in tensors.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def _filtered(*names: str) -> predict_pb2.PredictRequest:
    request = predict_request()
    request.output_filter.extend(names)
    return request


GRPC_REFUSALS = [
    ("server", predict_request("intentionally_missing_model"), NOT_FOUND, "Servable not found for request: Latest("),
    ("server", _version(7), NOT_FOUND, "Servable not found for request: Specific(half_plus_two, 7)"),
    ("server", predict_request(version_label="gone"), NOT_FOUND, "Specific(half_plus_two, 99)"),
    ("handler", predict_request(version_label="nope"), INVALID, "Unrecognized servable version label: nope"),
    ("predict", predict_request(signature_name="nope"), PRECONDITION, 'Serving signature key "nope" not found.'),
    ("predict", _inputs(z=[1.0]), INVALID, "Sent extra: {z}. Missing but required: {x}."),
    ("predict", _inputs(), INVALID, "input size does not match signature: 0!=1"),
    ("predict", _inputs(x=[1.0], z=[1.0]), INVALID, "input size does not match signature: 2!=1"),
    ("predict", _filtered("nope"), INVALID, "output tensor alias not found in signature: nope"),
    ("predict", _filtered("y", "y"), INVALID, "duplicate output tensor alias: y"),
    ("predict", _inputs(x=["text"]), INVALID, "float"),
]


@pytest.mark.parametrize(("source", "request_", "code", "says"), GRPC_REFUSALS)
def test_grpc_predict_refuses(predictions, source, request_, code, says):
    assert source in SOURCES
    assert refused(predictions.Predict, request_)[0] == code
    assert says in refused(predictions.Predict, request_)[1]


def test_grpc_classify_and_regress(predictions):
    """server: testClassify, testRegress."""
    for request, call in (
        (classification_pb2.ClassificationRequest(), predictions.Classify),
        (regression_pb2.RegressionRequest(), predictions.Regress),
    ):
        name = "classify_x_to_y" if call is predictions.Classify else "regress_x_to_y"
        request.model_spec.name, request.model_spec.signature_name = "half_plus_two", name
        request.input.example_list.examples.add().features.feature["x"].float_list.value.extend([2.0])
        answer = call(request, 10)
        assert (answer.model_spec.signature_name, answer.model_spec.version.value) == (name, 123)
        if call is predictions.Classify:
            assert [one.score for one in answer.result.classifications[0].classes] == [3.0]
        else:
            assert [one.value for one in answer.result.regressions] == [3.0]
        request.input.Clear()
        assert refused(call, request)[0] == INVALID  # server: no example at all


def test_grpc_status(statuses):
    """server: testGetModelStatus; status: the errors."""
    request = get_model_status_pb2.GetModelStatusRequest()
    assert refused(statuses.GetModelStatus, request) == (INVALID, "Missing ModelSpec")
    request.model_spec.name = "half_plus_two"
    answer = statuses.GetModelStatus(request, 10)
    assert [(one.version, one.state, one.status.error_code) for one in answer.model_version_status] == [(123, 30, 0)]
    request.model_spec.version.value = 7
    assert refused(statuses.GetModelStatus, request)[0] == NOT_FOUND
    request.model_spec.name = "foo"
    assert refused(statuses.GetModelStatus, request)[0] == NOT_FOUND


def test_grpc_metadata(predictions):
    """metadata: ValidateGetModelMetadataRequest, SavedModelGetSignatureDef."""
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    assert refused(predictions.GetModelMetadata, request) == (INVALID, "Missing ModelSpec")
    request.model_spec.name = "half_plus_two"
    code, says = refused(predictions.GetModelMetadata, request)
    assert code == INVALID and "must specify at least one metadata_field" in says
    request.metadata_field.append("nope")
    assert refused(predictions.GetModelMetadata, request)[0] == INVALID
    request.metadata_field[:] = ["signature_def"]
    answer = predictions.GetModelMetadata(request, 10)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures)
    assert set(signatures.signature_def) == {"serving_default", "regress_x_to_y", "classify_x_to_y"}
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("half_plus_two", 123)


def test_grpc_health(channel):
    """github.com/grpc/grpc/blob/master/doc/health-checking.md."""
    health = health_pb2_grpc.HealthStub(channel)
    assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
    assert refused(health.Check, health_pb2.HealthCheckRequest(service="nope"))[0] == NOT_FOUND


def test_what_the_stand_in_lacks_it_says(predictions):
    assert refused(predictions.MultiInference, inference_pb2.MultiInferenceRequest())[0] == (
        grpc.StatusCode.UNIMPLEMENTED
    )


def test_at_least_forty_requests_are_compared():
    assert len(REST) + len(GRPC_REFUSALS) >= 40
