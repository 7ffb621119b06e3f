"""The classify and regress methods: requests of tf.Example, as taken by models of TensorFlow's Estimator API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis.classification_pb2 import ClassificationResult
from tensorflow_serving.apis.input_pb2 import Input
from tensorflow_serving.apis.regression_pb2 import RegressionResult

from common.serving.json_tensors import decode_base64, is_base64, shown
from common.serving.refusals import invalid
from common.serving.servables import Servable

METHODS = {"classify": "tensorflow/serving/classify", "regress": "tensorflow/serving/regress"}
_FLOAT_LARGEST = float(np.finfo(np.float32).max)


def input_of_request(content: Mapping[str, Any], method: str) -> Input:
    """Return the examples of a classify or regress request in JSON.

    Raises:
        Refusal: the examples are missing, or hold values that tf.Example cannot.
    """
    if "examples" not in content:
        raise invalid(
            f"JSON Value: {shown(content)} When method is {method}, key 'examples' is expected and was not found"
        )
    examples = content["examples"]
    if not isinstance(examples, list):
        raise invalid(f"JSON Value: {shown(content)} Expecting 'examples' value to be an list/array")
    if not examples:
        raise invalid(f"JSON Value: {shown(content)} 'examples' value is an empty array")
    request = Input()
    target = request.example_list
    if "context" in content:
        target = request.example_list_with_context
        target.context.CopyFrom(_example(content["context"]))
    target.examples.extend(_example(item) for item in examples)
    return request


def _example(content: Any) -> tf.train.Example:
    if not isinstance(content, dict):
        raise invalid(f"Example must be JSON object but got JSON {shown(content)}")
    features = {}
    for name, value in content.items():
        features[name] = _feature(name, value if isinstance(value, list) else [value])
    return tf.train.Example(features=tf.train.Features(feature=features))


def _feature(name: str, values: list) -> tf.train.Feature:
    kinds = {_kind(name, value) for value in values}
    if len(kinds) > 1:
        raise invalid(f"Unexpected element type in feature: {name} expecting type: {_kind(name, values[0])}")
    if kinds == {"float"}:
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    if kinds == {"int64"}:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    encoded = [value.encode() if isinstance(value, str) else decode_base64(value) for value in values]
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=encoded)) if encoded else tf.train.Feature()


def _kind(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "int64"
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
        return "int64"
    if isinstance(value, float):
        if np.isfinite(value) and abs(value) > _FLOAT_LARGEST:
            raise invalid(f"Cannot convert JSON value: {value} to float without loss of precision.")
        return "float"
    if isinstance(value, str) or is_base64(value):
        return "bytes"
    raise invalid(f"Feature: {name} has element with unexpected JSON type: {shown(value)}")


def _serialized(request: Input) -> np.ndarray:
    """Return each example of a request as bytes, its context included."""
    kind = request.WhichOneof("kind")
    if kind == "example_list_with_context":
        context = request.example_list_with_context.context.SerializeToString()
        examples = request.example_list_with_context.examples
    else:
        context, examples = b"", request.example_list.examples
    if not examples:
        raise invalid("Input is empty: send at least one example.")
    array = np.empty(len(examples), dtype=object)
    # Two concatenated serialized messages parse as their merger.
    array[:] = [context + example.SerializeToString() for example in examples]
    return array


def _ask(servable: Servable, signature_name: str, request: Input, method: str, word: str) -> tuple[dict, int]:
    """Return the outputs of a signature for examples, and how many examples there are."""
    signature = servable.signature(signature_name)
    if signature.definition.method_name != METHODS[method]:
        others = [key for key, one in servable.signatures.items() if one.definition.method_name == METHODS[method]]
        theirs = f"Signatures for it: {', '.join(others)}." if others else "This model has none; use :predict."
        raise invalid(
            f"Expected {word} signature method_name to be {METHODS[method]}. Was: "
            f"{signature.definition.method_name}. {theirs}"
        )
    examples = _serialized(request)
    return servable.predict(signature, {"inputs": examples}), len(examples)


def classify(servable: Servable, signature_name: str, request: Input) -> ClassificationResult:
    """Return the classes of each example, with their scores.

    Raises:
        Refusal: the signature is not for this, or the examples do not fit it.
    """
    outputs, count = _ask(servable, signature_name, request, "classify", "classification")
    labels, scores = outputs.get("classes"), outputs.get("scores")
    given = [array for array in (labels, scores) if array is not None]
    if not given or any(array.ndim != 2 or len(array) != count for array in given):
        raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {[list(a.shape) for a in given]}")
    result = ClassificationResult()
    for row in range(count):
        classes = result.classifications.add().classes
        for column in range(given[0].shape[1]):
            one = classes.add()
            if labels is not None:
                one.label = labels[row, column].decode("utf-8", "replace")
            if scores is not None:
                one.score = scores[row, column]
    return result


def regress(servable: Servable, signature_name: str, request: Input) -> RegressionResult:
    """Return one number for each example.

    Raises:
        Refusal: as for `classify`.
    """
    outputs, count = _ask(servable, signature_name, request, "regress", "regression")
    values = outputs["outputs"]
    if values.shape not in ((count,), (count, 1)):
        raise invalid(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {list(values.shape)}"
        )
    result = RegressionResult()
    for value in values.ravel():
        result.regressions.add().value = value
    return result


def classes_as_lists(result: ClassificationResult) -> list[list[list]]:
    """Return a classify result as the REST API writes it."""
    return [[[one.label, np.float32(one.score)] for one in row.classes] for row in result.classifications]


def values_as_list(result: RegressionResult) -> Iterable[np.float32]:
    """Return a regress result as the REST API writes it."""
    return [np.float32(one.value) for one in result.regressions]
