"""A CTC head on wav2vec 2.0, and its loss."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from common.speech.wav2vec2.masking import real_places
from common.speech.wav2vec2.network import Wav2Vec2Backbone, audio_inputs, make_dense


@keras.saving.register_keras_serializable("recipes")
class CTCHead(keras.layers.Layer):
    """Dropout, and a score of each token of the vocabulary in each frame; token 0 is the blank.

    Args:
        vocabulary_size: tokens, blank included.
        dropout: rate of it.
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
    """Return a model of the backbone's inputs that gives logits of tokens, float32 [batch, frames, vocabulary]."""
    inputs = audio_inputs()
    return keras.Model(inputs, head(backbone(inputs)))


def ctc_loss(labels: Any, logits: Any, label_lengths: Any, frame_lengths: Any) -> Any:
    """Return minus the logarithm of the probability of each transcript (CTC, Graves et al. 2006), token 0 the blank.

    keras.losses.CTC would take every frame as real, those of padding too.

    Args:
        labels: tokens, int32 [batch, length], anything behind the end of a transcript.
        logits: float [batch, frames, vocabulary].
        label_lengths: tokens of each transcript, int32 [batch].
        frame_lengths: real frames of each clip, int32 [batch], as `Wav2Vec2Config.frame_lengths` counts them.

    Returns:
        float32 [batch]; 0, with no gradient, for a clip with too few frames for its transcript: no path leads to it.
    """
    labels, label_lengths = ops.cast(labels, "int32"), ops.cast(label_lengths, "int32")
    frame_lengths = ops.cast(frame_lengths, "int32")
    inside = real_places(label_lengths, ops.shape(labels)[1])
    labels = ops.where(inside, labels, 0)
    # The same token twice needs a blank between.
    twice = ops.logical_and(labels[:, 1:] == labels[:, :-1], inside[:, 1:])
    possible = label_lengths + ops.sum(ops.cast(twice, "int32"), axis=1) <= frame_lengths
    # An empty transcript of one frame stands in for an impossible clip, so that no infinity reaches a gradient.
    loss = ops.ctc_loss(
        labels,
        ops.cast(logits, "float32"),
        ops.where(possible, label_lengths, 0),
        ops.where(possible, frame_lengths, 1),
        mask_index=0,
    )
    return ops.where(possible, loss, 0.0)
