"""Grad-CAM heat maps."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf


def has_feature_map(extractor: keras.Model) -> bool:
    """Return whether an extractor averages a feature map [batch, height, width, channels], which Grad-CAM needs."""
    return any(layer.name == "pool" and len(layer.input.shape) == 4 for layer in extractor.layers)


def grad_cam(extractor: keras.Model, head: keras.layers.Layer, pixels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return how much each pixel of each image contributes to a class (Grad-CAM, arXiv:1610.02391).

    Args:
        extractor: maps pixels to features; its layer `pool` averages a feature map (see `has_feature_map`).
        head: maps features to class probabilities.
        pixels: float32 [n, height, width, 3], 0 to 255.
        classes: the class to explain for each image, int [n].

    Returns:
        float32 [n, height, width], 0 to 1; all 0 where nothing contributes to the class.
    """
    both = keras.Model(extractor.input, [extractor.get_layer("pool").input, extractor.output])
    with tf.GradientTape() as tape:
        inputs = tf.constant(pixels, tf.float32)
        tape.watch(inputs)  # frozen weights are not watched automatically
        feature_map, features = both(inputs, training=False)
        probabilities = head(features)
        # The logarithm: where the model is confident, the probability itself hardly changes.
        score = tf.reduce_sum(tf.math.log(tf.gather(probabilities, classes, batch_dims=1) + 1e-12))
    gradients = tape.gradient(score, feature_map)
    weights = tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)
    heat = tf.nn.relu(tf.reduce_sum(weights * feature_map, axis=-1, keepdims=True))
    heat = tf.image.resize(heat, pixels.shape[1:3])[..., 0]
    return (heat / tf.maximum(tf.reduce_max(heat, axis=(1, 2), keepdims=True), 1e-12)).numpy()
