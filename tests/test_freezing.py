"""Freezing: after a real training step exactly the weights that a policy names have changed, and no others."""

from __future__ import annotations

import itertools
import re

import keras
import keras_hub
import numpy as np
import pytest

from common.errors import UserError
from common.freezing import count_trainable, freeze, layers_of, weight_layers

SIZE = 32


def tiny_resnet() -> keras.Model:
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(SIZE, SIZE, 3),
    )


def tiny_transformer() -> keras.Model:
    """Layers made of layers, some of which have weights of their own beside (the class token)."""
    return keras_hub.models.ViTBackbone(
        image_shape=(SIZE, SIZE, 3), patch_size=8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32
    )


def mobilenet() -> keras.Model:
    return keras.applications.MobileNetV2(include_top=False, weights=None, alpha=0.35, input_shape=(96, 96, 3))


def classifier(backbone: keras.Model) -> keras.Model:
    """Put the backbone where the recipes have it: inside an extractor inside a model."""
    pixels = keras.Input(backbone.input_shape[1:])
    features = backbone(keras.layers.Rescaling(1 / 127.5, -1.0)(pixels))
    pool = keras.layers.GlobalAveragePooling2D if len(features.shape) == 4 else keras.layers.GlobalAveragePooling1D
    extractor = keras.Model(pixels, pool()(features))
    outer = keras.Input(backbone.input_shape[1:])
    return keras.Model(outer, keras.layers.Dense(3, activation="softmax", name="head")(extractor(outer)))


def train_one_step(model: keras.Model, eagerly: bool = True) -> set[str]:
    """Compile, fit one step on noise, and return the paths of the weights that changed.

    Eagerly, since tracing takes longer than the step. Adam moves whatever has a gradient, however small.
    """
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (4, *model.input_shape[1:])).astype("float32")
    before = [weight.numpy() for weight in model.weights]
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(), run_eagerly=eagerly)
    model.fit(images, rng.integers(0, 3, 4), batch_size=4, verbose=0)
    paths = [weight.path for weight in model.weights]
    assert len(set(paths)) == len(paths)
    return {p for p, w, b in zip(paths, model.weights, before, strict=True) if not np.array_equal(w.numpy(), b)}


BATCH_NORM = r"(_bn|_BN)/(gamma|beta|moving_mean|moving_variance)$"
NEVER = "$^"
# In softmax attention a bias of the keys adds the same to all scores and changes nothing: its gradient is rounding.
NO_GRADIENT = r"mha/key/bias$"


RESNET_POLICIES = {
    "frozen": NEVER,
    "last:4": r"^stack1_block0_(0|2)_",  # the last two convolutions and their BatchNorm
    "last_block": r"^stack1_block0_",
    "regex:^stack0_.*_[12]_|conv1_conv": r"^stack0_|^conv1_conv",
    "all": r"^stack|^conv1",
}
TRANSFORMER_POLICIES = {
    "last:3": r"transformer_block_3/mlp|vit_encoder/ln/",
    "last_block": r"transformer_block_3/|vit_encoder/ln/",
    # The class token belongs to a layer made of layers: those inside must stay as they are, and the reverse.
    "regex:embedding$": r"^vit_patching_and_embedding/",
    "regex:patch_embedding": r"/patch_embedding/",
    "regex:^vit_patching_and_embedding$": r"^vit_patching_and_embedding/class_token$",
    "all": r"^vit_",
}


@pytest.mark.parametrize(
    ("build", "policy", "intended", "batch_norm"),
    [
        *[(tiny_resnet, *item, batch_norm) for item in RESNET_POLICIES.items() for batch_norm in ("frozen", "train")],
        *[(tiny_transformer, *item, "frozen") for item in TRANSFORMER_POLICIES.items()],
        (mobilenet, "last_block", r"^block_16_|^Conv_1", "frozen"),
        (mobilenet, "regex:^block_3_", r"^block_3_", "train"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_exactly_the_intended_weights_train(build, policy, intended, batch_norm):
    backbone = build()
    model = classifier(backbone)
    counts = freeze(model, backbone, policy, batch_norm)
    paths = {weight.path for weight in backbone.weights if re.search(intended, weight.path)}
    if batch_norm == "frozen":
        paths = {path for path in paths if not re.search(BATCH_NORM, path)}
    expected = paths | {"head/kernel", "head/bias"}  # the head always trains
    changed = train_one_step(model)
    assert {p for p in changed ^ expected if not re.search(NO_GRADIENT, p)} == set()
    # What is printed is what happened; moving statistics move without being trained.
    trained = [w for w in model.weights if w.path in expected and "moving_" not in w.path]
    assert counts.parameters == sum(int(np.prod(weight.shape)) for weight in trained)
    assert counts.total_parameters == sum(int(np.prod(weight.shape)) for weight in model.weights)
    assert counts.layers == len({weight.path.rsplit("/", 1)[0] for weight in trained})


def test_counts_are_printed():
    backbone = tiny_resnet()
    model = classifier(backbone)
    head, total = 64 * 3 + 3, backbone.count_params() + 64 * 3 + 3
    assert (
        str(freeze(model, backbone, "frozen")) == f"1 layers, {head} of {total:,} parameters train ({head / total:.1%})"
    )
    assert freeze(model, backbone, "frozen") == count_trainable(model)
    trained = sum(int(np.prod(weight.shape)) for weight in backbone.trainable_weights)
    assert trained == 0
    assert freeze(model, backbone, "all", "train").parameters == total - sum(
        int(np.prod(weight.shape)) for weight in backbone.weights if "moving_" in weight.path
    )


def test_frozen_batch_norm_infers_while_the_model_trains():
    backbone = tiny_resnet()
    model = classifier(backbone)
    images = np.random.default_rng(0).uniform(-1, 1, (4, SIZE, SIZE, 3)).astype("float32")
    freeze(model, backbone, "all")
    np.testing.assert_array_equal(backbone(images, training=True), backbone(images, training=False))
    freeze(model, backbone, "all", "train")
    assert np.abs(backbone(images, training=True) - backbone(images, training=False)).max() > 0.01


@pytest.mark.parametrize("build", [tiny_resnet, tiny_transformer])
def test_policies_do_not_add_up(build):
    backbone = build()
    model = classifier(backbone)
    policies = [
        (policy, batch_norm)
        for policy in ("frozen", "last:4", "last_block", "regex:conv1_conv|patch_embedding", "all")
        for batch_norm in ("frozen", "train")
    ]

    def trains(policy, batch_norm):
        counts = freeze(model, backbone, policy, batch_norm)
        return counts, [weight.path for weight in model.trainable_weights]

    alone = {policy: trains(*policy) for policy in policies}
    for first, second in itertools.permutations(policies, 2):
        trains(*first)
        assert trains(*second) == alone[second], (first, second)
    assert len({tuple(paths) for _, paths in alone.values()}) > 4


def test_what_was_frozen_by_hand_before_trains_again():
    backbone = tiny_resnet()
    model = classifier(backbone)
    model.trainable = False
    assert freeze(model, backbone, "last_block").layers == 4  # three convolutions and the head
    assert {"head/kernel", "stack1_block0_1_conv/kernel"} < {weight.path for weight in model.trainable_weights}


def test_old_compilation_cannot_train_in_silence():
    inputs = keras.Input((8, 8, 3))
    backbone = keras.Model(inputs, keras.layers.Conv2D(4, 3, name="block2_conv1")(inputs))
    model = classifier(backbone)
    images, labels = np.zeros((2, 8, 8, 3), "float32"), np.zeros(2, "int32")
    freeze(model, backbone, "frozen")
    assert train_one_step(model, eagerly=False) == {"head/kernel", "head/bias"}
    freeze(model, backbone, "last_block")
    for train in (model.fit, model.train_on_batch, model.evaluate):
        with pytest.raises(ValueError, match="compile"):
            train(images, labels)
    model.predict(images, verbose=0)  # needs no compilation, and stays possible
    # Compiled anew, the traced step is a new one, not the old one that trained the head alone.
    assert "block2_conv1/kernel" in train_one_step(model, eagerly=False)


# --- what a policy selects ------------------------------------------------------------------------------


LAST_BLOCKS = {  # first layer with weights, last one, and how many
    "ResNet50": ("conv5_block3_1_conv", "conv5_block3_3_bn", 6),
    "ResNet50V2": ("conv5_block3_preact_bn", "post_bn", 7),
    "VGG16": ("block5_conv1", "block5_conv3", 3),
    "InceptionV3": (None, None, 18),  # made-up names: 9 convolutions with their BatchNorm make mixed10
    "Xception": ("block14_sepconv1", "block14_sepconv2_bn", 4),
    "MobileNet": ("conv_dw_13", "conv_pw_13_bn", 4),
    "MobileNetV2": ("block_16_expand", "Conv_1_bn", 8),
    "MobileNetV3Small": ("expanded_conv_10_expand", "conv_1_bn", 10),
    "EfficientNetB0": ("block7a_expand_conv", "top_bn", 10),
    "EfficientNetV2B0": ("block6h_expand_conv", "top_bn", 10),
    "DenseNet121": ("conv5_block1_0_bn", "bn", 65),  # a dense block: 16 times 4 layers, and the last BatchNorm
    "ConvNeXtTiny": ("convnext_tiny_stage_3_block_2_depthwise_conv", None, 6),
}


@pytest.mark.parametrize("name", LAST_BLOCKS)
def test_last_block_of_keras_applications(name):
    size = {"InceptionV3": 75, "Xception": 71}.get(name, 32)
    backbone = getattr(keras.applications, name)(include_top=False, weights=None, input_shape=(size, size, 3))
    chosen = layers_of(backbone, "last_block")
    first, last, count = LAST_BLOCKS[name]
    assert len(chosen) == count
    assert first in (None, chosen[0].name)
    assert last in (None, chosen[-1].name)
    assert_is_the_tail(backbone, chosen)
    if name == "InceptionV3":
        assert set(chosen) == {la for la in downstream([backbone.get_layer("mixed9")]) if la.weights}


def test_last_block_of_kerashub():
    resnet = tiny_resnet()
    chosen = layers_of(resnet, "last_block")
    assert_is_the_tail(resnet, chosen)
    assert sorted(la.name for la in chosen) == [
        f"stack1_block0_{i}_{kind}" for i in range(3) for kind in ("bn", "conv")
    ]
    paths = {w.path for layer in layers_of(tiny_transformer(), "last_block") for w in layer.weights}
    assert {path.split("/")[1] for path in paths} == {"transformer_block_3", "ln"}
    dense = keras_hub.models.DenseNetBackbone(stackwise_num_repeats=[2, 3], growth_rate=8, image_shape=(SIZE, SIZE, 3))
    names = [layer.name for layer in layers_of(dense, "last_block")]
    assert {name.rsplit("_", 2)[0] for name in names} == {"stack2_block1", "stack2_block2", "stack2_block3", "bn"}
    vgg = keras_hub.models.VGGBackbone([1, 2], [8, 8], image_shape=(SIZE, SIZE, 3))
    assert [layer.name for layer in layers_of(vgg, "last_block")] == ["block2_conv1", "block2_conv2"]


def downstream(layers: list) -> set:
    """Return all layers of a Functional model that some of the layers feed."""
    found, queue = set(), list(layers)
    while queue:
        for node in queue.pop()._outbound_nodes:
            if node.operation not in found:
                found.add(node.operation)
                queue.append(node.operation)
    return found


def assert_is_the_tail(backbone: keras.Model, chosen: list) -> None:
    """Check that some layers stay frozen, and that none of them comes after a chosen one."""
    own = {layer for layer in backbone.layers if layer.weights}
    assert set(chosen) < own
    assert downstream(chosen) & own <= set(chosen)


def test_last_layers_are_counted_from_the_output():
    resnet, transformer = tiny_resnet(), tiny_transformer()
    for backbone in (resnet, transformer):
        assert layers_of(backbone, "last:5") == weight_layers(backbone)[-5:]
        assert layers_of(backbone, "last:100000") == layers_of(backbone, "all") == weight_layers(backbone)
        assert layers_of(backbone, "frozen") == []
    assert resnet.get_layer("conv1_conv") is weight_layers(resnet)[0]
    # Keras lists the layers inside of a layer in reverse: "last" would have been the first block.
    paths = [layer.path for layer in weight_layers(transformer)]
    assert paths[0] == "vit_patching_and_embedding"
    blocks = [re.search(r"block_(\d)", path)[1] for path in paths if "block_" in path]
    assert blocks == sorted(blocks)
    assert paths[-1] == "vit_encoder/ln"
    # All weights belong to exactly one of the layers.
    held = [w for la in weight_layers(transformer) for w in la._trainable_variables + la._non_trainable_variables]
    assert sorted(map(id, held)) == sorted(map(id, transformer.weights))


def test_a_layer_that_is_used_twice_is_one_layer():
    shared = keras.layers.Dense(4, name="shared")
    inputs = keras.Input((4,))
    inner = keras.Model(inputs, shared(shared(inputs)), name="inner")
    backbone = keras.Model(inputs, keras.layers.Dense(2, name="out")(inner(shared(inputs))))
    assert [layer.name for layer in weight_layers(backbone)] == ["shared", "out"]


class Scaled(keras.layers.Layer):
    """A layer with a weight of its own around a layer that others use too."""

    def __init__(self, inner):
        super().__init__(name="scaled")
        self.inner, self.factor = inner, self.add_weight(shape=(), initializer="ones", name="factor")

    def call(self, inputs):
        return self.inner(inputs) * self.factor


@pytest.mark.parametrize("chosen", ["shared", "scaled"])
def test_a_layer_made_of_layers_leaves_those_inside_alone(chosen):
    shared = keras.layers.Dense(4, name="shared")
    inputs = keras.Input((4,))
    backbone = keras.Model(inputs, Scaled(shared)(shared(inputs)))
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(backbone(inputs)))
    freeze(model, backbone, f"regex:^{chosen}$")
    expected = {"shared": {"shared/kernel", "shared/bias"}, "scaled": {"scaled/factor"}}[chosen]
    assert {weight.path for weight in model.trainable_weights} == expected | {"head/kernel", "head/bias"}


def refusal(*arguments) -> str:
    """Return what the user is told."""
    backbone = tiny_resnet()
    with pytest.raises(UserError) as caught:
        freeze(classifier(backbone), backbone, *arguments)
    return str(caught.value)


def test_policies_that_cannot_be_followed():
    assert "Did you mean 'frozen'?" in refusal("frozn")
    assert "Allowed: frozen, last_block, all, last:N (layers), regex:PATTERN." in refusal("half")
    assert "last:N" in refusal("last:0")
    said = refusal("regex:conv6")
    assert "'regex:conv6' matches no layer" in said
    assert "stack1_block0_2_conv, stack1_block0_0_bn, stack1_block0_2_bn" in said
    # With BatchNorm frozen, these would train nothing in the backbone, without a word.
    for policy in ("last:2", "regex:_bn$"):
        said = refusal(policy)
        assert "selects only layers that do not train" in said
        assert "stack1_block0_0_bn, stack1_block0_2_bn" in said
        assert "--batch-norm train" in said
    assert "Allowed: frozen, train" in refusal("all", "trian")


def test_no_block_is_named():
    inputs = keras.Input((4,))
    backbone = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dense(3)(inputs)))
    with pytest.raises(UserError, match=r"names no blocks. Try: --unfreeze last:20"):
        layers_of(backbone, "last_block")


def test_a_refused_policy_changes_nothing():
    backbone = tiny_resnet()
    model = classifier(backbone)
    freeze(model, backbone, "last_block")
    before = [weight.path for weight in model.trainable_weights]
    with pytest.raises(UserError):
        freeze(model, backbone, "regex:conv6")
    assert [weight.path for weight in model.trainable_weights] == before


def test_batch_norm_that_trains_follows_the_pictures_within_a_short_training():
    """With MobileNetV2's own momentum the statistics would still be those of the start, and serving at chance."""
    backbone = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(SIZE, SIZE, 3), alpha=0.35)
    norms = [layer for layer in weight_layers(backbone) if isinstance(layer, keras.layers.BatchNormalization)]
    assert max(layer.momentum for layer in norms) > 0.99
    freeze(keras.Model(backbone.input, backbone.output), backbone, "all", batch_norm="train")
    assert max(layer.momentum for layer in norms) <= 0.9


def test_keras_ignores_training_false_in_a_functional_model():
    # What every tutorial does to keep BatchNorm still. In this Keras it does nothing, so `freeze` does not rely on it.
    outer, inner = keras.Input((4,)), keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
    model = keras.Model(outer, keras.layers.Dense(1)(inner(outer, training=False)))
    model.compile("sgd", "mse")
    model.fit(np.full((8, 4), 5.0), np.zeros((8, 1)), verbose=0)
    _, _, moving_mean, _ = inner.get_weights()
    assert (moving_mean > 0).all(), "Keras has mended it: `freeze` may be simplified"
