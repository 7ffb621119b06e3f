"""A head on wav2vec 2.0 that classifies the whole clip."""

from __future__ import annotations

import keras
from keras import ops

from common.speech.wav2vec2.network import RealFrames, Wav2Vec2Backbone, audio_inputs, make_dense


@keras.saving.register_keras_serializable("recipes")
class UtteranceHead(keras.layers.Layer):
    """Classifies the whole clip: a projection averaged over the real frames, and a logit per class.

    Args:
        classes: number of classes.
        projection_size: width of the projection.
        dropout: rate applied to the mean.
    """

    def __init__(self, classes: int, projection_size: int = 256, dropout: float = 0.0, **named):
        super().__init__(**named)
        self.projection = make_dense(projection_size, self.dtype_policy, "projection")
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)
        self.dense = make_dense(classes, self.dtype_policy, "dense")

    def build(self, hidden_shape, real_shape):
        """Build both projections."""
        self.projection.build(hidden_shape)
        self.dense.build((hidden_shape[0], self.projection.units))

    def call(self, hidden, real, training=None):
        """Return logits, float32 [batch, classes], for float [batch, frames, width] and bool [batch, frames]."""
        projected = ops.where(real[..., None], self.projection(hidden), 0.0)
        count = ops.maximum(ops.sum(ops.cast(real, projected.dtype), axis=1, keepdims=True), 1.0)
        mean = ops.sum(projected, axis=1) / count
        return ops.cast(self.dense(self.dropout(mean, training=training)), "float32")

    def get_config(self):
        sizes = {"classes": self.dense.units, "projection_size": self.projection.units}
        return super().get_config() | sizes | {"dropout": self.dropout.rate}


def build_classifier(backbone: Wav2Vec2Backbone, head: UtteranceHead) -> keras.Model:
    """Return a model from the backbone's inputs to logits of classes, float32 [batch, classes]."""
    inputs = audio_inputs()
    hidden = backbone(inputs)
    return keras.Model(inputs, head(hidden, RealFrames(backbone.config)(hidden, inputs["lengths"])))
