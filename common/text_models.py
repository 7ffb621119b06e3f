"""From the hidden states of a pretrained text model to one vector for a text, and to a served classifier."""

from __future__ import annotations

import keras
import keras_nlp  # today another name of keras_hub

from common.text_sources import TextSource


@keras.saving.register_keras_serializable("recipes")
class MeanOfTokens(keras.layers.Layer):
    """The mean of the hidden states of the tokens that are there, as in Sentence-BERT (arXiv:1908.10084).

    Input: (hidden states [batch, length, width], padding mask [batch, length]). Output: [batch, width].
    """

    def call(self, inputs):
        states, mask = inputs
        mask = keras.ops.cast(mask, states.dtype)[..., None]
        return keras.ops.sum(states * mask, axis=1) / keras.ops.maximum(keras.ops.sum(mask, axis=1), 1.0)


@keras.saving.register_keras_serializable("recipes")
class LastToken(keras.layers.Layer):
    """The hidden state of the last token, for models that only look back, such as GPT-2. Input as MeanOfTokens."""

    def call(self, inputs):
        states, mask = inputs
        last = keras.ops.maximum(keras.ops.sum(keras.ops.cast(mask, "int32"), axis=1) - 1, 0)
        return keras.ops.take_along_axis(states, last[:, None, None], axis=1)[:, 0]


def build_encoder(source: TextSource) -> keras.Model:
    """Return {"token_ids", "padding_mask"} int32 [batch, length] -> a vector for each text, float32 [batch, width]."""
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask")}
    wanted = dict(inputs)
    if "segment_ids" in source.backbone.input:  # of BERT: all of one text is segment 0
        wanted["segment_ids"] = keras.ops.zeros_like(inputs["token_ids"])
    said = source.backbone(wanted)
    states = said["sequence_output"] if isinstance(said, dict) else said
    pool = LastToken if isinstance(source.backbone, keras_nlp.models.GPT2Backbone) else MeanOfTokens
    vector = pool(dtype="float32", name="pool")([states, inputs["padding_mask"]])
    return keras.Model(inputs, vector, name="encoder")


def build_classifier(encoder: keras.Model, classes: int, dropout: float) -> keras.Model:
    """Return {"token_ids", "padding_mask"} -> class probabilities: the encoder, dropout and a linear head."""
    dropped = keras.layers.Dropout(dropout, dtype="float32", name="dropout")(encoder.output)
    probabilities = keras.layers.Dense(classes, activation="softmax", dtype="float32", name="head")(dropped)
    return keras.Model(encoder.input, probabilities, name="classifier")
