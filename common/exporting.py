"""Export a trained model as a SavedModel that takes raw inputs, and as a Keras model."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from common import files
from common.proof.warmup import write_warmup
from common.slim_graph import slim_graph


def check_float32(model: keras.Model) -> None:
    """Raise ValueError where a model has weights of another type: servers compute in float32."""
    halves = [weight.path for weight in model.weights if weight.dtype != "float32"]
    if halves:
        raise ValueError(f"The model to export must be float32; build it under that policy. Other types: {halves[:3]}")


def graph_function(*inputs: tf.TensorSpec) -> Callable:
    """Return a decorator: `tf.function` of these inputs without AutoGraph, which would double an export's seconds."""
    return tf.function(input_signature=inputs, autograph=False)


def save_servable(model: keras.Model, folder: Path, signatures: dict, requests: dict, **tracked: tf.Module) -> Path:
    """Write the next version of a servable.

    Args:
        model: its weights are saved, once.
        folder: of the servable.
        signatures: functions by their names.
        requests: inputs of some signatures, replayed by a server when it loads the model.
        **tracked: modules with tables or assets that the signatures use.

    Returns:
        The folder of the new version.
    """
    servable = tf.Module()
    servable.weights = [weight.value for weight in model.weights]
    for name, module in tracked.items():
        setattr(servable, name, module)

    def save(partial: Path) -> None:
        # Custom gradients (of swish, for one) would be saved as functions too, and serving needs no gradients.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(servable, str(partial), signatures, options)
        slim_graph(partial)
        if requests:
            write_warmup(partial, folder.name, requests.items())

    with files.room_for("the SavedModel", folder, _bytes_needed(model)):
        return write_version(folder, save)


def _bytes_needed(model: keras.Model) -> int:
    return 4 * model.count_params() + 500_000  # the weights, and an estimate for the graph of any network


def save_keras_model(model: keras.Model, path: Path) -> Path:
    """Write a model as one `.keras` file for further training, without the optimizer of its last stage.

    Args:
        model: Functional.
        path: ends in `.keras`.

    Returns:
        The path. `keras.models.load_model(path)` reads it; a text model after `import common.texts.models`, and models
        of some sources after `common.texts.sources` or `common.hub`, which define their layers.

    Raises:
        UserError: the disk is full; an existing file is kept.
    """
    bare = keras.Model(model.inputs, model.outputs, name=model.name)
    with files.room_for("the Keras model", path.parent, _bytes_needed(model)):
        return files.write_atomically(path, lambda partial: _save_as_keras(bare, partial))


def _save_as_keras(model: keras.Model, path: Path) -> None:
    named = path.with_name(path.name + ".keras")  # Keras requires the suffix
    try:
        model.save(named)
        os.replace(named, path)
    finally:
        named.unlink(missing_ok=True)


def write_version(folder: Path, save) -> Path:
    """Write the next integer version of a servable, atomically.

    Args:
        folder: the servable's folder.
        save: called with the path of the folder to write.

    Returns:
        The version's folder. A server that polls the servable's folder never sees a half-written version.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taken = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    final = folder / str(max(taken, default=0) + 1)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    try:
        save(partial)
        partial.chmod(0o755)
        os.replace(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


def size_report(version: Path, model: keras.Model) -> dict[str, float]:
    """Return the size of the SavedModel on disk and of the model's float32 weights, in bytes, and their ratio."""
    on_disk = sum(path.stat().st_size for path in version.rglob("*") if path.is_file())
    weights = 4 * model.count_params()
    return {"saved_model_bytes": on_disk, "weights_bytes": weights, "ratio": round(on_disk / weights, 4)}


# --- how an export is queried -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """One kind of prediction, such as labels or boxes.

    Attributes:
        gives: outputs of `serving_default` that it is made from.
        parse: (outputs of a batch, number of the example) -> the prediction, as --json prints it.
        show: (prediction, input as typed, path without suffix for files written about it) -> a line to print.
    """

    gives: tuple[str, ...]
    parse: Callable[[Mapping[str, np.ndarray], int], dict]
    show: Callable[[dict, str, Path], str]


@dataclass(frozen=True)
class Predictor:
    """How the exports of a recipe are queried.

    Attributes:
        takes: the input of `serving_default`: image, audio or text. All but texts are files.
        read: (input as typed, run folder, path without suffix for files written about it) -> the bytes to send, or
            the prediction itself where the export cannot make it. A UserError says why an input cannot be used.
        answers: the predictions.
        batch: inputs per request.
    """

    takes: str
    read: Callable[[str, Path, Path], bytes | dict]
    answers: Answers
    batch: int = 32
