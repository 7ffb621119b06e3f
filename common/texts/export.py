"""A text classifier as a SavedModel that takes raw strings, and its proof."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from common.classification.export import labelled, prove_labels
from common.exporting import check_float32, graph_function, save_servable
from common.proof.prove import FreshProcess
from common.texts.batches import TextReader


def export_text_classifier(
    model: keras.Model, reader: TextReader, folder: Path, class_names: Sequence[str], *, examples: Sequence[str] = ()
) -> Path:
    """Write a text classifier as FOLDER/<next integer>/, with tokenizer, vocabulary and labels inside.

    Args:
        model: float32 model of {"token_ids", "padding_mask"} to probabilities, whose last layer is named `head` and
            reads the embedding.
        reader: turns texts into rows of tokens; the head receives the mean embedding of all rows of a text.
        folder: the servable's folder; its name is the name of the model on the server.
        class_names: one per probability.
        examples: texts with which a server warms up each signature when it loads the model; stored in the export.

    Returns:
        The folder of the new version. Signatures: `serving_default` (text: UTF-8 strings), `tensors` (token ids and
        padding mask, one row per text), `embed` (text to embedding).

    Raises:
        UserError: the disk is full.
    """
    check_float32(model)
    head = model.get_layer("head")
    encoder = keras.Model(model.input, head.input)
    names = tf.constant(list(class_names))
    spec = tf.TensorSpec((None, None), tf.int32)

    @graph_function(spec, spec)
    def embedding_of_rows(token_ids, padding_mask):
        return encoder({"token_ids": token_ids, "padding_mask": padding_mask}, training=False)

    text = tf.TensorSpec([None], tf.string, name="text")

    # Two signatures call this function, so that the graph of the tokenizer is built once.
    @graph_function(text)
    def embedding(text):
        inputs, owners = reader.batch(text)
        if reader.windows:
            rows = _in_blocks(embedding_of_rows, inputs, head.input.shape[-1])
        else:
            rows = embedding_of_rows(**inputs)
        return tf.math.segment_mean(rows, owners)

    def classify(embedding):
        return labelled(names, head(embedding))

    pieces = (tf.TensorSpec((None, None), tf.int32, name=name) for name in ("token_ids", "padding_mask"))
    signatures = {
        "serving_default": graph_function(text)(lambda text: classify(embedding(text))),
        "tensors": graph_function(*pieces)(
            lambda token_ids, padding_mask: classify(embedding_of_rows(token_ids, padding_mask))
        ),
        "embed": graph_function(text)(lambda text: {"embedding": embedding(text)}),
    }
    requests = {}
    if examples:
        encoded = np.array([example.encode("utf-8", "replace") for example in examples], dtype=object)
        pieces = {name: value.numpy() for name, value in reader.batch(tf.constant(encoded))[0].items()}
        requests = {"serving_default": {"text": encoded}, "tensors": pieces, "embed": {"text": encoded}}
    return save_servable(model, folder, signatures, requests, reader=reader)


def _in_blocks(function: Callable, inputs: dict[str, tf.Tensor], width: int, size: int = 64) -> tf.Tensor:
    """Call a function on blocks of rows: the windows of one long text could fill the memory.

    Args:
        function: named tensors [rows, ...] to float32 [rows, width].
        inputs: the tensors.
        width: of the result.
        size: rows per block.
    """
    count = tf.shape(next(iter(inputs.values())))[0]

    def one_more(first, done):
        block = function(**{name: tensor[first : first + size] for name, tensor in inputs.items()})
        return first + size, tf.concat([done, block], axis=0)

    shapes = [tf.TensorShape([]), tf.TensorShape([None, width])]
    _, done = tf.while_loop(
        lambda first, _: first < count, one_more, [0, tf.zeros([0, width])], shape_invariants=shapes
    )
    return done


def prove_text_classifier(
    version: Path, texts: Sequence[str], probabilities: np.ndarray, class_names: Sequence[str],
    process: FreshProcess | None = None,
) -> dict:  # fmt: skip
    """Run the SavedModel on the raw texts in a fresh process that imports only tensorflow, and compare.

    Args:
        version: folder of the SavedModel.
        texts: n texts.
        probabilities, class_names, process: as for `prove_labels`.

    Returns:
        As `prove_labels`.
    """
    return prove_labels(version, "text", "texts", texts, probabilities, class_names, process)
