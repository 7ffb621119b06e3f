"""Sentence encoders and classifiers on top of the hidden states of a pretrained text model."""

from __future__ import annotations

import re
from collections import defaultdict

import keras
import keras_nlp  # today another name of keras_hub

from common.freezing import TrainableCounts, count_trainable, freeze
from common.texts.sources import TextSource, load_text_source

_LAST = 10_000  # sorts after all layers


@keras.saving.register_keras_serializable("recipes")
class MeanOfTokens(keras.layers.Layer):
    """The mean of the hidden states of all tokens that are not padding, as in Sentence-BERT (arXiv:1908.10084).

    Input: (hidden states [batch, length, width], padding mask [batch, length]). Output: [batch, width].
    """

    def call(self, inputs):
        states, mask = inputs
        mask = keras.ops.cast(mask, states.dtype)[..., None]
        return keras.ops.sum(states * mask, axis=1) / keras.ops.maximum(keras.ops.sum(mask, axis=1), 1.0)


@keras.saving.register_keras_serializable("recipes")
class LastToken(keras.layers.Layer):
    """The hidden state of the last token, for causal models such as GPT-2. Input as for MeanOfTokens."""

    def call(self, inputs):
        states, mask = inputs
        last = keras.ops.maximum(keras.ops.sum(keras.ops.cast(mask, "int32"), axis=1) - 1, 0)
        return keras.ops.take_along_axis(states, last[:, None, None], axis=1)[:, 0]


def build_encoder(source: TextSource) -> keras.Model:
    """Return {"token_ids", "padding_mask"} int32 [batch, length] -> one embedding per text, float32 [batch, width]."""
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask")}
    all_inputs = dict(inputs)
    if "segment_ids" in source.backbone.input:  # of BERT: a single text is segment 0
        all_inputs["segment_ids"] = keras.ops.zeros_like(inputs["token_ids"])
    outputs = source.backbone(all_inputs)
    states = outputs["sequence_output"] if isinstance(outputs, dict) else outputs
    pool = LastToken if isinstance(source.backbone, keras_nlp.models.GPT2Backbone) else MeanOfTokens
    vector = pool(dtype="float32", name="pool")([states, inputs["padding_mask"]])
    encoder = keras.Model(inputs, vector, name="encoder")
    encoder.jit_compile = False  # texts have many lengths, and XLA would compile for each
    return encoder


def build_classifier(encoder: keras.Model, classes: int, dropout: float) -> keras.Model:
    """Return {"token_ids", "padding_mask"} -> class probabilities: the encoder, dropout and a linear head."""
    dropped = keras.layers.Dropout(dropout, dtype="float32", name="dropout")(encoder.output)
    probabilities = keras.layers.Dense(classes, activation="softmax", dtype="float32", name="head")(dropped)
    return keras.Model(encoder.input, probabilities, name="classifier")


def unfreeze(model: keras.Model, backbone: keras.Model, *, tables: bool) -> TrainableCounts:
    """Unfreeze an encoder, except for its unused weights.

    Args:
        model: the whole model; compile it after this call.
        backbone: of its source.
        tables: whether to train the token embeddings too. They are half of a small BERT, each text uses few of
            them, and without them a step takes less time and memory.

    Returns:
        The counts of trainable weights, ready to print.
    """
    freeze(model, backbone, "all")
    for layer in backbone._flatten_layers(include_self=False):
        if layer.name == "pooled_dense" or (isinstance(layer, keras.layers.Embedding) and not tables):
            layer.trainable = False
    for variable in backbone.variables:  # of a SavedModel, which has no Keras layers
        if "word_embeddings" in variable.path and not tables:
            variable.trainable = False
    model.compiled = False
    return count_trainable(model)


def layers_by_depth(backbone: keras.Model) -> list[list[keras.Variable]]:
    """Return the variables of each encoder layer from the last to the first, and then those of the embeddings.

    What follows the last layer, such as the norm at the end of GPT-2, goes with the last layer.
    """
    groups: dict[int, list[keras.Variable]] = defaultdict(list)
    for variable in backbone.weights:
        numbers = re.findall(r"(?:layer|block)_?(\d+)(?:/|$)", variable.path)
        at_the_end = re.search(r"(?:^|/)(?:layer_norm|final_layer_norm)/", variable.path) and not numbers
        groups[int(numbers[0]) if numbers else (_LAST if at_the_end else -1)].append(variable)
    if _LAST in groups:
        groups[max(number for number in groups if number != _LAST)] += groups.pop(_LAST)
    return [groups[number] for number in sorted(groups, reverse=True)]


# KerasHub's names of the dense layers of an encoder block, in all families. Keys get no adapter: they are only ever
# multiplied with the queries, so adapting one of the two is enough.
_ADAPTED = ["query", "value", "attention_output", "feedforward_intermediate_dense", "feedforward_output_dense"]


def add_adapters(model: keras.Model, backbone: keras.Model, rank: int) -> TrainableCounts:
    """Freeze an encoder and add small trainable matrices to its layers (LoRA, arXiv:2106.09685).

    The paper adapts the attention layers only; adapting the feed-forward layers as well comes closer to training all
    weights (arXiv:2305.14314).

    Args:
        model: the whole model; its head stays trainable. Compile it after this call.
        backbone: of its source, from KerasHub.
        rank: width of the matrices.

    Returns:
        The counts of trainable weights, ready to print.
    """
    freeze(model, backbone, "frozen")
    backbone.enable_lora(rank, target_layer_names=_ADAPTED)
    model.compiled = False
    return count_trainable(model)


def merge_adapters(adapted: keras.Model, plain: keras.Model) -> None:
    """Copy the weights of a model with adapters into one without, adding the adapters to the adapted weights.

    Args:
        adapted: a trained model with adapters.
        plain: the same architecture.
    """
    pairs = zip(adapted._flatten_layers(), plain._flatten_layers(), strict=True)
    for old, new in pairs:
        if getattr(old, "lora_enabled", False):
            new.kernel.assign(old.kernel)  # Keras adds the adapter when the kernel is read
            if new.bias is not None:
                new.bias.assign(old.bias)
        else:  # own weights only: nested layers are visited themselves
            for target, source in zip(_own_weights(new), _own_weights(old), strict=True):
                target.assign(source)


def _own_weights(layer: keras.layers.Layer) -> list[keras.Variable]:
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def load_classifier(
    spec: str, classes: int, dropout: float, *, random_weights: bool = False
) -> tuple[TextSource, keras.Model, keras.Model]:
    """Load a source and build an untrained classifier on it.

    Args:
        spec: of the source.
        classes, dropout: as for `build_classifier`.
        random_weights: whether to keep the initial weights of the source.

    Returns:
        (source, its encoder, the classifier with both inside).
    """
    source = load_text_source(spec, random_weights=random_weights)
    encoder = build_encoder(source)
    return source, encoder, build_classifier(encoder, classes, dropout)
