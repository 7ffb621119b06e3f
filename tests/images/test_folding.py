"""Folding of frozen BatchNorm: equal answers and gradients, shared weights, and what is left as it is."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import freezing
from common.images.folding import FoldedConvolution, fold_batch_norm

LAYERS = keras.layers


def norm(name: str, **options) -> LAYERS.BatchNormalization:
    """Return a BatchNorm that is far from the identity."""
    initial = {
        kind: keras.initializers.RandomUniform(0.5, 1.5, seed=number)
        for number, kind in enumerate(("gamma", "beta", "moving_mean", "moving_variance"))
    }
    return LAYERS.BatchNormalization(
        name=name, **{f"{kind}_initializer": initializer for kind, initializer in initial.items()}, **options
    )


def dilation_trains() -> bool:
    """Without oneDNN, which TensorFlow turns on for newer processors only, a dilated convolution has no gradient."""
    image, kernel = tf.ones((1, 5, 5, 1)), tf.Variable(tf.ones((3, 3, 1, 1)))
    try:
        with tf.GradientTape() as tape:
            tape.watch(image)
            outputs = tf.nn.conv2d(image, kernel, 1, "SAME", dilations=2)
        tape.gradient(outputs, image)
    except tf.errors.InvalidArgumentError:
        return False
    return True


DILATION = 2 if dilation_trains() else 1


def network() -> tuple[keras.Model, keras.Model]:
    """Return a model around a backbone, and the backbone, with the convolutions that sources have."""
    keras.utils.set_random_seed(0)
    pixels = keras.Input((12, 12, 3))
    x = LAYERS.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="stem")(pixels)
    x = short = LAYERS.ReLU(6.0)(norm("stem_norm")(x))
    x = LAYERS.ZeroPadding2D(1)(x)
    x = norm("depth_norm", scale=False)(LAYERS.DepthwiseConv2D(3, depth_multiplier=2, name="depth")(x))
    x = norm("wide_norm", center=False)(LAYERS.Conv2D(8, 3, dilation_rate=DILATION, padding="same", name="wide")(x))
    backbone = keras.Model(pixels, LAYERS.Add()([x, short]), name="backbone")
    inputs = keras.Input((12, 12, 3))
    pooled = LAYERS.GlobalAveragePooling2D()(backbone(LAYERS.Rescaling(1 / 255)(inputs)))
    return keras.Model(inputs, LAYERS.Dense(3, activation="softmax", name="head")(pooled)), backbone


IMAGES = np.random.default_rng(0).uniform(0, 255, (4, 12, 12, 3)).astype("float32")
TARGETS = np.eye(3, dtype="float32")[[0, 1, 2, 0]]


def folded_layers(model: keras.Model) -> list[str]:
    return sorted(layer.name for layer in model._flatten_layers() if isinstance(layer, FoldedConvolution))


def gradients(model: keras.Model) -> dict[str, np.ndarray]:
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(keras.losses.categorical_crossentropy(TARGETS, model(IMAGES, training=True)))
    variables = model.trainable_variables
    return {
        variable.path: gradient.numpy()
        for variable, gradient in zip(variables, tape.gradient(loss, [one.value for one in variables]), strict=True)
    }


def test_answers_and_gradients_are_equal():
    model, backbone = network()
    freezing.freeze(model, backbone, "all")
    folded = fold_batch_norm(model)
    assert folded_layers(folded) == ["depth", "stem", "wide"] and not folded_layers(model)
    np.testing.assert_allclose(folded(IMAGES), model(IMAGES), rtol=1e-5)
    expected, found = gradients(model), gradients(folded)
    assert found.keys() == expected.keys() and len(found) == 7
    for path, gradient in expected.items():
        np.testing.assert_allclose(found[path], gradient, rtol=1e-3, atol=1e-6)


def test_weights_are_shared():
    model, backbone = network()
    freezing.freeze(model, backbone, "all")
    folded, before = fold_batch_norm(model), model.get_weights()
    folded.compile(keras.optimizers.SGD(0.1), "categorical_crossentropy")
    folded.fit(IMAGES, TARGETS, epochs=2, verbose=0)
    changed = [not np.array_equal(was, now) for was, now in zip(before, model.get_weights(), strict=True)]
    assert sum(changed) == len(model.trainable_variables) == 7
    np.testing.assert_allclose(folded(IMAGES), model(IMAGES), rtol=1e-5)


def test_for_serving_the_weights_are_computed_once():
    model, backbone = network()
    freezing.freeze(model, backbone, "all", batch_norm="train")
    served, expected = fold_batch_norm(model, for_serving=True), model(IMAGES)
    np.testing.assert_allclose(served(IMAGES), expected, rtol=1e-5)
    kinds = [type(layer) for layer in served._flatten_layers()]
    assert LAYERS.BatchNormalization not in kinds and FoldedConvolution not in kinds
    assert len(served.weights) == 3 * 2 + 2  # kernel and bias of each convolution, and the head's
    backbone.get_layer("stem").set_weights([0 * weight for weight in backbone.get_layer("stem").get_weights()])
    np.testing.assert_allclose(served(IMAGES), expected, rtol=1e-5)


def test_frozen_layers_stay_frozen():
    model, backbone = network()
    freezing.freeze(model, backbone, "last:2")
    assert sorted(gradients(fold_batch_norm(model))) == sorted(gradients(model))


def test_batch_norm_that_trains_adapts():
    model, backbone = network()
    freezing.freeze(model, backbone, "all", batch_norm="train")
    folded, before, after = fold_batch_norm(model), model.get_weights(), []
    for one in (model, folded):
        model.set_weights(before)
        after.append((one(IMAGES, training=True), gradients(one), model.get_weights()))
    np.testing.assert_allclose(after[0][0], after[1][0], rtol=1e-4)
    for path, gradient in after[0][1].items():
        np.testing.assert_allclose(after[1][1][path], gradient, rtol=2e-3, atol=1e-5)
    for expected, found in zip(after[0][2], after[1][2], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    moved = [not np.allclose(was, now) for was, now in zip(before, after[1][2], strict=True)]
    assert sum(moved) == 2 * 3  # the statistics of each norm, by two batches
    np.testing.assert_allclose(folded(IMAGES), model(IMAGES), rtol=1e-5)


def other(case: str) -> keras.Model:
    """Return a model whose BatchNorm cannot be folded."""
    pixels = keras.Input((6, 6, 2))
    convolution = LAYERS.Conv2D(2, 1, activation="relu" if case == "activation" else None, name="conv")
    x = convolution(LAYERS.ReLU()(pixels) if case == "no convolution" else pixels)
    if case == "no convolution":
        return keras.Model(pixels, convolution(norm("norm")(pixels)))
    normed = norm("norm", axis=1 if case == "axis" else -1)(x)
    outputs = {"two readers": [normed + x], "returned": [normed, x], "called twice": [normed, convolution(normed)]}
    return keras.Model(pixels, outputs.get(case, [normed]))


@pytest.mark.parametrize("case", ["activation", "no convolution", "axis", "two readers", "returned", "called twice"])
def test_what_cannot_be_folded_is_left(case):
    model = other(case)
    assert fold_batch_norm(model) is model


def test_a_model_without_a_graph_is_left():
    model = keras.Sequential([LAYERS.Dense(2)])
    assert fold_batch_norm(model) is model
