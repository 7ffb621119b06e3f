"""The op check knows what the stock server can run, and refuses a graph with anything else in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.python.framework import op_def_registry

from common.proof.fresh_process.ops import SERVED_OPS, ops_outside_tf_serving
from common.serving.kit.deployment import SERVING_IMAGE

SERVED = json.loads(SERVED_OPS.read_text("utf-8"))
PYTHON_OPS = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}


def exported(folder: Path, compute) -> Path:
    """Export a function of encoded pictures the way TensorFlow does."""
    serve = tf.function(compute, input_signature=[tf.TensorSpec([None], tf.string, name="image")])
    tf.saved_model.save(tf.Module(), str(folder), {"serving_default": serve})
    return folder


def written(folder: Path, op: str, *, within_a_function: bool) -> Path:
    """Write a graph with one node whose op this process need not know."""
    saved = SavedModel()
    graph = saved.meta_graphs.add().graph_def
    if within_a_function:
        function = graph.library.function.add()
        function.signature.name = "__inference_serve_7"
        function.node_def.add(name="n0", op=op)
        graph.node.add(name="call", op="__inference_serve_7")  # a node may call a function by its name
    else:
        graph.node.add(name="n0", op=op)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())
    return folder


def test_core_ops_pass(tmp_path: Path):
    def decode(image):
        sizes = tf.map_fn(lambda data: tf.shape(tf.io.decode_image(data)), image, fn_output_signature=tf.int32)
        return {"size": tf.cond(tf.size(image) > 1, lambda: sizes, lambda: 2 * sizes)}

    assert ops_outside_tf_serving(exported(tmp_path, decode)) == []


def test_what_needs_python_is_refused(tmp_path: Path):
    def answer(image):
        return {"ones": tf.numpy_function(lambda data: np.ones(len(data), "float32"), [image], tf.float32)}

    found = ops_outside_tf_serving(exported(tmp_path, answer))
    assert found and set(found) <= PYTHON_OPS


def test_an_op_that_is_newer_than_the_server_is_refused(tmp_path: Path):
    def decode(image):
        return {"pixels": tf.raw_ops.DecodeJxl(contents=image[0], channels=3)}  # came with TensorFlow 2.21

    assert ops_outside_tf_serving(exported(tmp_path, decode)) == ["DecodeJxl"]


@pytest.mark.parametrize("within_a_function", [False, True])
@pytest.mark.parametrize(
    "op",
    [
        "CaseFoldUTF8", "FastWordpieceTokenizeWithOffsets", "RegexSplitWithOffsets", "TFText>RoundRobinTrim",
        "TFText>WhitespaceTokenizeWithOffsetsV2", "SentencepieceTokenizeOp", "SimpleMLInferenceOpWithHandle",
    ],
)  # fmt: skip
def test_ops_of_libraries_that_the_server_links_pass(tmp_path: Path, op: str, within_a_function: bool):
    assert ops_outside_tf_serving(written(tmp_path, op, within_a_function=within_a_function)) == []


@pytest.mark.parametrize("within_a_function", [False, True])
@pytest.mark.parametrize("op", ["TFText>NoSuchOp", "TPUReplicateMetadata", "SimpleMLModelTrainer", "Addons>Rotate"])
def test_any_other_op_is_refused(tmp_path: Path, op: str, within_a_function: bool):
    """An op of a library that the server links is not enough, nor one that only accelerators have kernels for."""
    assert ops_outside_tf_serving(written(tmp_path, op, within_a_function=within_a_function)) == [op]


def test_the_list_says_where_it_comes_from_and_is_of_the_server_that_is_deployed():
    assert SERVING_IMAGE == f"tensorflow/serving:{SERVED['tensorflow_serving']}"
    assert [source["group"] for source in SERVED["sources"]] == ["core", "text", "decision_forests"]
    for source in SERVED["sources"]:
        assert re.fullmatch(r"\d+\.\d+\.\d+", source["version"])
        assert re.fullmatch(r"[0-9a-f]{64}", source["wheel_sha256"])
    assert SERVED["sources"][0]["version"].rsplit(".", 1)[0] == SERVED["tensorflow_serving"].rsplit(".", 1)[0]


def test_the_list_holds_ops_that_exist_and_none_twice():
    assert len(SERVED["core"]) > 1000 and len(SERVED["text"]) > 30 and SERVED["decision_forests"]
    everything = SERVED["core"] + SERVED["text"] + SERVED["decision_forests"]
    assert len(set(everything)) == len(everything)
    assert not PYTHON_OPS & set(everything)
    assert [name for name in SERVED["core"] if op_def_registry.get(name) is None] == []
