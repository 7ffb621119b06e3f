"""A CTC head on wav2vec 2.0, and its loss."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from common.speech.wav2vec2.masking import real_places
from common.speech.wav2vec2.network import Wav2Vec2Backbone, audio_inputs, make_dense


@keras.saving.register_keras_serializable("recipes")
class CTCHead(keras.layers.Layer):
    """Dropout, and a logit per frame and token of the vocabulary; token 0 is the blank.

    Args:
        vocabulary_size: tokens, blank included.
        dropout: dropout rate.
    """

    def __init__(self, vocabulary_size: int, dropout: float = 0.1, **named):
        super().__init__(**named)
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)
        self.dense = make_dense(vocabulary_size, self.dtype_policy, "dense")

    def build(self, hidden_shape):
        """Build the projection."""
        self.dense.build(hidden_shape)

    def call(self, hidden, training=None):
        """Return logits, float32 [batch, frames, vocabulary], for float [batch, frames, width]."""
        return ops.cast(self.dense(self.dropout(hidden, training=training)), "float32")

    def get_config(self):
        return super().get_config() | {"vocabulary_size": self.dense.units, "dropout": self.dropout.rate}


def build_recogniser(backbone: Wav2Vec2Backbone, head: CTCHead) -> keras.Model:
    """Return a model from the backbone's inputs to logits of tokens, float32 [batch, frames, vocabulary]."""
    inputs = audio_inputs()
    return keras.Model(inputs, head(backbone(inputs)))


def ctc_loss(labels: Any, logits: Any, label_lengths: Any, frame_lengths: Any) -> Any:
    """Return the negative log-likelihood of each transcript (CTC, Graves et al. 2006); token 0 is the blank.

    keras.losses.CTC would treat every frame as real, padding included.

    Args:
        labels: tokens, int32 [batch, length], with any padding.
        logits: float [batch, frames, vocabulary].
        label_lengths: tokens per transcript, int32 [batch].
        frame_lengths: real frames per clip, int32 [batch], as counted by `Wav2Vec2Config.frame_lengths`.

    Returns:
        float32 [batch]; 0, without a gradient, for a clip with too few frames for its transcript, which has no path.
    """
    labels, label_lengths = ops.cast(labels, "int32"), ops.cast(label_lengths, "int32")
    frame_lengths = ops.cast(frame_lengths, "int32")
    inside = real_places(label_lengths, ops.shape(labels)[1])
    labels = ops.where(inside, labels, 0)
    # A repeated token needs a blank in between.
    twice = ops.logical_and(labels[:, 1:] == labels[:, :-1], inside[:, 1:])
    possible = label_lengths + ops.sum(ops.cast(twice, "int32"), axis=1) <= frame_lengths
    # An empty transcript of one frame replaces an impossible clip, so that no infinity reaches a gradient.
    loss = ops.ctc_loss(
        labels,
        ops.cast(logits, "float32"),
        ops.where(possible, label_lengths, 0),
        ops.where(possible, frame_lengths, 1),
        mask_index=0,
    )
    return ops.where(possible, loss, 0.0)
