"""From a trained model to a SavedModel that takes what the outside world has, and the proof that it is right."""

from __future__ import annotations

import base64
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from common import proving, runs
from common.data.images import decode_images
from common.data.texts import TextReader
from common.slimming import slim_graph
from common.warmup import write_warmup

PROBABILITY_TOLERANCE = 1e-4


def export_image_classifier(
    model: keras.Model, folder: Path, class_names: Sequence[str], *, resize: str = "crop", example: Path | None = None
) -> Path:
    """Write a classifier as FOLDER/<next integer>/, with decoder, preprocessing and labels inside.

    Never plain `model.export`: it serves layers in training mode after some preprocessing layers, and stores
    every variable twice (both pinned in tests/test_exporting.py).

    Args:
        model: float32 model of pixels [batch, height, width, 3] (0 to 255) to probabilities, whose last layer
            is named `head` and reads the features.
        folder: the servable's folder; its name is the name of the model on the server.
        class_names: one for each probability.
        resize: how pictures come to the model's size, as in training.
        example: a picture that a server asks each signature about when it loads the model, so that no client waits
            for what is done only once. It stays in the export.

    Returns:
        The folder of the new version. Signatures: `serving_default` (image: file bytes), `tensors` (pixels),
        `embed` (image: file bytes, gives the features).

    Raises:
        UserError: the disk is full. Earlier versions stay as they are, and nothing of the new one is left.
    """
    check_float32(model)
    size = tuple(model.input.shape[1:3])
    whole = keras.Model(model.input, [model.get_layer("head").input, model.output])
    names = tf.constant(list(class_names))

    # All signatures call this one function, so that the graph of the model is stored once.
    @tf.function(input_signature=[tf.TensorSpec((None, *size, 3), tf.float32)])
    def features_and_probabilities(pixels):
        return whole(pixels, training=False)

    def answer(pixels):
        _, probabilities = features_and_probabilities(pixels)
        return labelled(names, probabilities)

    image = tf.TensorSpec([None], tf.string, name="image")
    pixels = tf.TensorSpec((None, *size, 3), tf.float32, name="pixels")
    serve = tf.function(lambda image: answer(decode_images(image, size, resize)), input_signature=[image])
    tensors = tf.function(lambda pixels: answer(pixels), input_signature=[pixels])
    embed = tf.function(
        lambda image: {"embedding": features_and_probabilities(decode_images(image, size, resize))[0]},
        input_signature=[image],
    )
    requests = {}
    if example:
        encoded = np.array([example.read_bytes()], dtype=object)
        decoded = decode_images(tf.constant(encoded), size, resize).numpy()
        requests = {"serving_default": {"image": encoded}, "tensors": {"pixels": decoded}, "embed": {"image": encoded}}
    return save_servable(model, folder, {"serving_default": serve, "tensors": tensors, "embed": embed}, requests)


def export_text_classifier(
    model: keras.Model, reader: TextReader, folder: Path, class_names: Sequence[str], *, examples: Sequence[str] = ()
) -> Path:
    """Write a classifier of texts as FOLDER/<next integer>/, with tokenizer, vocabulary and labels inside.

    Args:
        model: float32 model of {"token_ids", "padding_mask"} to probabilities, whose last layer is named `head` and
            reads the embedding.
        reader: how texts become rows of tokens; where a text has several, the head reads the mean of what they say.
        folder: the servable's folder; its name is the name of the model on the server.
        class_names: one for each probability.
        examples: texts that a server asks each signature about when it loads the model. They stay in the export.

    Returns:
        The folder of the new version. Signatures: `serving_default` (text: UTF-8 strings), `tensors` (token ids and
        padding mask, a row each), `embed` (text, gives the embedding).

    Raises:
        UserError: the disk is full.
    """
    check_float32(model)
    head = model.get_layer("head")
    encoder = keras.Model(model.input, head.input)
    names = tf.constant(list(class_names))
    spec = tf.TensorSpec((None, None), tf.int32)

    @tf.function(input_signature=[spec, spec])
    def embedding_of_rows(token_ids, padding_mask):
        return encoder({"token_ids": token_ids, "padding_mask": padding_mask}, training=False)

    def embedding(text):
        inputs, owners = reader.batch(text)
        if reader.windows:
            rows = _in_blocks(embedding_of_rows, inputs, head.input.shape[-1])
        else:
            rows = embedding_of_rows(**inputs)
        return tf.math.segment_mean(rows, owners)

    def answer(embedding):
        return labelled(names, head(embedding))

    text = tf.TensorSpec([None], tf.string, name="text")
    signatures = {
        "serving_default": tf.function(lambda text: answer(embedding(text)), input_signature=[text]),
        "tensors": tf.function(
            lambda token_ids, padding_mask: answer(embedding_of_rows(token_ids, padding_mask)),
            input_signature=[
                tf.TensorSpec((None, None), tf.int32, name="token_ids"),
                tf.TensorSpec((None, None), tf.int32, name="padding_mask"),
            ],
        ),
        "embed": tf.function(lambda text: {"embedding": embedding(text)}, input_signature=[text]),
    }
    requests = {}
    if examples:
        encoded = np.array([example.encode("utf-8", "replace") for example in examples], dtype=object)
        pieces = {name: value.numpy() for name, value in reader.batch(tf.constant(encoded))[0].items()}
        requests = {"serving_default": {"text": encoded}, "tensors": pieces, "embed": {"text": encoded}}
    return save_servable(model, folder, signatures, requests, reader=reader)


def _in_blocks(function: Callable, inputs: dict[str, tf.Tensor], width: int, size: int = 64) -> tf.Tensor:
    """Call a function on some rows at a time: the windows of one long text could fill the memory.

    Args:
        function: named tensors [rows, ...] to float32 [rows, width].
        inputs: the tensors.
        width: of the result.
        size: rows at a time.
    """
    count = tf.shape(next(iter(inputs.values())))[0]

    def one_more(first, done):
        said = function(**{name: tensor[first : first + size] for name, tensor in inputs.items()})
        return first + size, tf.concat([done, said], axis=0)

    shapes = [tf.TensorShape([]), tf.TensorShape([None, width])]
    _, done = tf.while_loop(
        lambda first, _: first < count, one_more, [0, tf.zeros([0, width])], shape_invariants=shapes
    )
    return done


def labelled(names: tf.Tensor, probabilities: tf.Tensor) -> dict[str, tf.Tensor]:
    """Return the outputs of a classifier's signature.

    Args:
        names: of the classes, string [classes].
        probabilities: float32 [batch, classes].
    """
    return {
        "label": tf.gather(names, tf.argmax(probabilities, axis=1)),
        "probabilities": probabilities,
        "class_names": tf.tile(names[None], [tf.shape(probabilities)[0], 1]),
    }


def check_float32(model: keras.Model) -> None:
    """Raise ValueError where a model has weights of another type: a server computes in float32."""
    halves = [weight.path for weight in model.weights if weight.dtype != "float32"]
    if halves:
        raise ValueError(f"The model to export must be float32; build it under that policy. Not so: {halves[:3]}")


def save_servable(model: keras.Model, folder: Path, signatures: dict, requests: dict, **tracked: tf.Module) -> Path:
    """Write the next version of a servable.

    Args:
        model: whose weights are saved, once.
        folder: of the servable.
        signatures: functions by their names.
        requests: for some signatures the inputs that a server replays when it loads the model.
        **tracked: modules with tables or assets that the signatures read.

    Returns:
        The folder of the new version.
    """
    servable = tf.Module()
    servable.weights = [weight.value for weight in model.weights]
    for name, module in tracked.items():
        setattr(servable, name, module)

    def save(partial: Path) -> None:
        # Gradients written by hand (of swish, for one) would be saved as functions too, and nobody serves a gradient.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(servable, str(partial), signatures, options)
        slim_graph(partial)
        if requests:
            write_warmup(partial, folder.name, requests.items())

    with runs.room_for("the SavedModel", folder, _bytes_needed(model)):
        return write_version(folder, save)


def _bytes_needed(model: keras.Model) -> int:
    return 4 * model.count_params() + 500_000  # the weights, and about as much for the graph of any network


def save_keras_model(model: keras.Model, path: Path) -> Path:
    """Write a model as one `.keras` file to go on training with, without the optimizer of its last stage.

    Args:
        model: Functional.
        path: ends in `.keras`.

    Returns:
        The path. `keras.models.load_model(path)` reads it; of a text model after `import common.text_models`, and of
        some sources `common.text_sources` or `common.hub`, whose layers it holds.

    Raises:
        UserError: the disk is full; a file that stood there before stays.
    """
    bare = keras.Model(model.inputs, model.outputs, name=model.name)
    with runs.room_for("the Keras model", path.parent, _bytes_needed(model)):
        return runs.write_atomically(path, lambda partial: _save_as_keras(bare, partial))


def _save_as_keras(model: keras.Model, path: Path) -> None:
    named = path.with_name(path.name + ".keras")  # Keras insists on the ending
    try:
        model.save(named)
        os.replace(named, path)
    finally:
        named.unlink(missing_ok=True)


def write_version(folder: Path, save) -> Path:
    """Write the next integer version of a servable: aside first, then renamed into place.

    Args:
        folder: the servable's folder.
        save: gets the path of the folder to write.

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


def write_request(path: Path, input_name: str, example: Path | str) -> Path:
    """Write a REST request that works: `curl -d @request.json http://HOST:8501/v1/models/NAME:predict`.

    Args:
        path: of the request.
        input_name: of `serving_default`.
        example: a file, sent as base64, or a text.
    """
    content = example
    if isinstance(example, Path):
        content = {"b64": base64.b64encode(example.read_bytes()).decode()}
    return runs.write_json(path, {"instances": [{input_name: content}]})


def prove_image_classifier(
    version: Path, paths: Sequence[str], probabilities: np.ndarray, class_names: Sequence[str],
    *, python: str = sys.executable,
) -> dict:  # fmt: skip
    """Ask the SavedModel about the raw files in a fresh process that imports only tensorflow, and compare.

    Args:
        version: folder of the SavedModel.
        paths: n picture files.
        probabilities: what evaluation saw for them, float32 [n, classes].
        class_names: one for each probability.
        python: whose tensorflow is asked.

    Returns:
        {"examples", "agreement", "max_abs_diff", "ops_outside_tf_serving", "tolerance", "passed"}, and
        "error" where the process failed.
    """
    return _prove(version, "image", "paths", paths, probabilities, class_names, python)


def prove_text_classifier(
    version: Path, texts: Sequence[str], probabilities: np.ndarray, class_names: Sequence[str]
) -> dict:
    """Ask the SavedModel about the raw texts in a fresh process that imports only tensorflow, and compare.

    Args:
        version: folder of the SavedModel.
        texts: n texts.
        probabilities, class_names: as for `prove_image_classifier`.

    Returns:
        As `prove_image_classifier`.
    """
    return _prove(version, "text", "texts", texts, probabilities, class_names)


def prove_sound_classifier(
    version: Path, paths: Sequence[str], probabilities: np.ndarray, class_names: Sequence[str]
) -> dict:
    """Ask the SavedModel about WAV files in a fresh process that imports only tensorflow, and compare.

    Args:
        version: folder of the SavedModel.
        paths: n files that the graph can decode; `common.speech_exporting.prove_commands` sees to that.
        probabilities, class_names: as for `prove_image_classifier`.

    Returns:
        As `prove_image_classifier`.
    """
    return _prove(version, "audio", "paths", paths, probabilities, class_names)


def _prove(
    version: Path, input_name: str, kind: str, inputs: Sequence[str], probabilities, class_names, python=sys.executable
):
    questions = {"input": input_name, "kind": kind, "inputs": list(map(str, inputs)), "names": list(class_names)}
    expected = {"probabilities": probabilities}
    proof = proving.prove("proof.py", version, questions, expected, PROBABILITY_TOLERANCE, python=python)
    return {"examples": len(inputs), **proof}


def size_report(version: Path, model: keras.Model) -> dict[str, float]:
    """Return the size of the SavedModel on disk and of the model's float32 weights, in bytes, and their ratio."""
    on_disk = sum(path.stat().st_size for path in version.rglob("*") if path.is_file())
    weights = 4 * model.count_params()
    return {"saved_model_bytes": on_disk, "weights_bytes": weights, "ratio": round(on_disk / weights, 4)}
