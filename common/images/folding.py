"""Convolution and BatchNorm as one layer: the same answers, in fewer passes over the activations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import keras
import tensorflow as tf

CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
TRAINING = ("compile", "compute_loss", "train_step")


def fold_batch_norm(model: keras.Model, *, for_serving: bool = False) -> keras.Model:
    """Return a faster model that answers the same, in which BatchNorm after a convolution is a part of it.

    BatchNorm with fixed statistics multiplies each channel by a constant and adds another: as kernel and bias of the
    convolution they cost next to nothing. One that trains is computed by TensorFlow's fused operation. The variables
    are shared: what trains one model trains the other.

    Args:
        model: a Functional model; models inside are folded as well.
        for_serving: the constants are computed now, and are the weights of plain convolutions. The result must not be
            trained, and does not follow later training of the model.

    Returns:
        The folded model; the model itself where it has nothing to fold.
    """
    if not hasattr(model, "_nodes_by_depth"):  # not Functional: its graph is unknown
        return model
    own = [getattr(type(model), name) is not getattr(keras.Model, name) for name in TRAINING]
    if any(own) and not for_serving:  # a clone would lose them
        return model
    pairs = {id(convolution): norm for convolution, norm in _pairs(model)}
    norms = {id(norm) for norm in pairs.values()}
    models = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    inside = {id(one): folded for one in models if (folded := fold_batch_norm(one, for_serving=for_serving)) is not one}
    if not pairs and not inside:
        return model

    fold = _as_convolution if for_serving else FoldedConvolution

    def replace(layer: keras.layers.Layer) -> keras.layers.Layer:
        if id(layer) in pairs:
            return fold(layer, pairs[id(layer)])
        return keras.layers.Identity(name=layer.name) if id(layer) in norms else inside.get(id(layer), layer)

    def call(layer: keras.layers.Layer, *arguments, **options):
        return layer(arguments[0]) if isinstance(layer, keras.layers.Identity) else layer(*arguments, **options)

    return keras.models.clone_model(model, clone_function=replace, call_function=call)


class FoldedConvolution(keras.layers.Layer):
    """A convolution and the BatchNorm after it in one; both stay the owners of their variables."""

    def __init__(self, convolution: keras.layers.Layer, norm: keras.layers.BatchNormalization):
        super().__init__(name=convolution.name)
        self.convolution, self.norm = convolution, norm
        self.built = True

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return what the norm returns for what the convolution returns."""
        convolution, norm = self.convolution, self.norm
        if training and norm.trainable:
            return _normalise_batch(norm, convolution(inputs))
        (kernel, bias), padding = _folded_weights(convolution, norm), convolution.padding.upper()
        if isinstance(convolution, keras.layers.DepthwiseConv2D):
            strides = (1, *convolution.strides, 1)
            outputs = tf.nn.depthwise_conv2d(inputs, kernel, strides, padding, dilations=convolution.dilation_rate)
        else:
            outputs = tf.nn.conv2d(inputs, kernel, convolution.strides, padding, dilations=convolution.dilation_rate)
        return tf.nn.bias_add(outputs, bias)


def _folded_weights(convolution: keras.layers.Layer, norm: keras.layers.BatchNormalization) -> tuple:
    """Return kernel and bias, tensors, of a convolution that answers as both, with the current statistics."""
    scale = tf.math.rsqrt(norm.moving_variance.value + norm.epsilon)
    scale = scale * norm.gamma.value if norm.scale else scale
    bias = convolution.bias.value if convolution.use_bias else 0.0
    bias = (bias - norm.moving_mean.value) * scale + (norm.beta.value if norm.center else 0.0)
    kernel = convolution.kernel.value
    depthwise = isinstance(convolution, keras.layers.DepthwiseConv2D)
    return kernel * (tf.reshape(scale, kernel.shape[2:]) if depthwise else scale), bias


def _as_convolution(convolution: keras.layers.Layer, norm: keras.layers.BatchNormalization) -> keras.layers.Layer:
    """Return a plain convolution, with weights of its own, that answers as both do now."""
    plain = type(convolution).from_config(convolution.get_config() | {"use_bias": True})
    plain.build((None, None, None, convolution.kernel.shape[2]))
    plain.set_weights([weight.numpy() for weight in _folded_weights(convolution, norm)])
    return plain


def _normalise_batch(norm: keras.layers.BatchNormalization, inputs: tf.Tensor) -> tf.Tensor:
    """Return what a norm returns in training, and update its statistics; Keras needs several passes for it."""
    channels = inputs.shape[-1]
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs, scale=norm.gamma.value if norm.scale else tf.ones(channels),
        offset=norm.beta.value if norm.center else tf.zeros(channels), mean=[], variance=[], epsilon=norm.epsilon,
    )  # fmt: skip
    count = tf.cast(tf.size(inputs) // channels, tf.float32)
    variance *= (count - 1) / count  # Keras divides by the number of values, this operation by one less
    for moving, of_batch in ((norm.moving_mean, mean), (norm.moving_variance, variance)):
        moving.assign(moving.value * norm.momentum + of_batch * (1 - norm.momentum))
    return outputs


def _pairs(model: keras.Model) -> Iterator[tuple[keras.layers.Layer, keras.layers.BatchNormalization]]:
    """Yield each convolution and the BatchNorm that alone reads its output."""
    nodes = [node for same_depth in model._nodes_by_depth.values() for node in same_depth]
    readers = Counter(id(parent) for node in nodes for parent in node.parent_nodes)
    calls = Counter(id(node.operation) for node in nodes)
    returned = {id(tensor) for tensor in model.outputs}
    for node in nodes:
        norm, parent = node.operation, node.parent_nodes[0] if node.parent_nodes else None
        if type(norm) is not keras.layers.BatchNormalization or parent is None:
            continue
        convolution = parent.operation
        if (
            type(convolution) in CONVOLUTIONS
            and readers[id(parent)] == calls[id(convolution)] == calls[id(norm)] == 1
            and id(parent.outputs[0]) not in returned
            and convolution.activation is keras.activations.linear
            and getattr(convolution, "groups", 1) == 1
            and convolution.data_format == "channels_last"
            and norm.axis in (-1, 3)
            and not norm.renorm
            and not norm.synchronized
            and convolution.compute_dtype == norm.compute_dtype == "float32"
        ):
            yield convolution, norm
