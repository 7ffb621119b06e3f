"""Small SavedModels for the tests of serving."""

from __future__ import annotations

import shutil
from pathlib import Path

import tensorflow as tf


def half_plus(folder: Path, added: float) -> Path:
    """Write a model of y = x / 2 + ADDED with the signatures of TensorFlow Serving's own test models.

    Its graph is of TensorFlow 1, as only those have signatures to classify and regress.
    """
    v1 = tf.compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        serialized = v1.placeholder(tf.string, [None], name="tf_example")
        features = {"x": tf.io.FixedLenFeature([1], tf.float32)}
        x = tf.identity(v1.io.parse_example(serialized, features)["x"], name="x")
        y = tf.identity(x * 0.5 + v1.get_variable("added", initializer=added), name="y")
        plain = v1.placeholder(tf.float32, name="plain")
        plain_y = tf.identity(plain * 0.5 + v1.global_variables()[0])
        session.run(v1.global_variables_initializer())
        of = v1.saved_model.signature_def_utils
        info = v1.saved_model.build_tensor_info
        signatures = {
            "serving_default": of.predict_signature_def({"x": plain}, {"y": plain_y}),
            "regress_x_to_y": of.regression_signature_def(serialized, y),
            "classify_x_to_y": of.build_signature_def(
                {"inputs": info(serialized)}, {"scores": info(y)}, "tensorflow/serving/classify"
            ),
        }
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures, strip_default_attrs=True)
        builder.save()
    return folder


def save(folder: Path, function, *specs: tf.TensorSpec, variable: float | None = None) -> Path:
    """Write a function of tensors as a SavedModel with one signature."""
    module = tf.Module()
    if variable is not None:
        module.variable = tf.Variable(variable)
    module.serve = tf.function(function, input_signature=specs)
    tf.saved_model.save(module, str(folder), signatures=module.serve)
    return folder


def measure_bytes(folder: Path) -> Path:
    """Write a model that says how many bytes each of its inputs has."""
    spec = tf.TensorSpec([None], tf.string, name="image")
    return save(folder, lambda image: {"bytes": tf.strings.length(image)}, spec)


def all_types(folder: Path) -> Path:
    """Write a model that returns its inputs, of several types and shapes, as they are."""
    specs = (
        tf.TensorSpec([None], tf.string, name="tag"),
        tf.TensorSpec([None, 5], tf.float32, name="signal"),
        tf.TensorSpec([None, 2, 2], tf.int32, name="sensor"),
        tf.TensorSpec([None], tf.bool, name="flag"),
    )

    def echo(tag, signal, sensor, flag):
        return {"tag": tag, "tag_bytes": tag, "signal": signal, "sensor": sensor, "flag": flag}

    return save(folder, echo, *specs)


def constant(folder: Path, answer: float) -> Path:
    """Write a model that answers one number, whatever it is asked: to tell versions apart."""
    spec = tf.TensorSpec([None], tf.float32, name="x")
    return save(folder, lambda x: {"y": tf.zeros_like(x) + answer}, spec)


def copied(source: Path, folder: Path) -> Path:
    """Copy a SavedModel aside and rename it into place, as a careful deployment does."""
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.copytree(source, aside)
    aside.rename(folder)
    return folder
