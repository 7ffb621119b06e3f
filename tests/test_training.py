"""Stages keep what they promise: who learns how fast, which weights come back, what is printed."""

from __future__ import annotations

import io
import re
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import training
from common.classification.training import balanced_class_weights, fit_stage
from common.hub import SavedModelLayer
from common.progress import ProgressLine, format_seconds


def two_layers() -> keras.Model:
    inputs = keras.Input((4,))
    slow = keras.layers.Dense(8, name="slow", kernel_initializer="ones", bias_initializer="ones")(inputs)
    return keras.Model(inputs, keras.layers.Dense(2, activation="softmax", name="head")(slow))


def data(rows: int = 64) -> tuple[np.ndarray, np.ndarray]:
    features = np.random.default_rng(0).normal(size=(rows, 4)).astype("float32")
    return features, np.eye(2, dtype="float32")[(features[:, 0] > 0).astype(int)]


def test_slow_variables_learn_at_their_share_of_the_rate():
    """Adam's first step moves every weight by the learning rate, whatever the gradient: an exact check."""
    model = two_layers()
    slow = model.get_layer("slow")
    optimizer = training.DiscriminativeAdamW(learning_rate=0.01, slower=[(slow.variables, 0.1)], epsilon=1e-12)
    model.compile(optimizer, "categorical_crossentropy", jit_compile=False)
    before = [np.array(w) for w in model.get_weights()]
    model.train_on_batch(*data())
    moved = [np.abs(a - b).max() for a, b in zip(model.get_weights(), before, strict=True)]
    np.testing.assert_allclose(moved, [0.001, 0.001, 0.01, 0.01], rtol=1e-2)


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_updates_are_those_of_keras(clip):
    found = []
    for optimizer in (training.DiscriminativeAdamW, keras.optimizers.Adam):
        keras.utils.set_random_seed(0)
        model = two_layers()
        adam = optimizer(learning_rate=0.01, global_clipnorm=clip)
        model.compile(adam, "categorical_crossentropy", jit_compile=False)
        for _ in range(5):
            model.train_on_batch(*data())
        found.append([*model.get_weights(), *(np.asarray(one) for one in model.optimizer.variables)])
    assert len(found[0]) == 4 + 2 + 2 * 4
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)


def test_weight_decay_is_decoupled_and_scaled():
    model = two_layers()
    slow = model.get_layer("slow")
    optimizer = training.DiscriminativeAdamW(learning_rate=0.1, slower=[(slow.variables, 0.5)], weight_decay=0.2)
    optimizer.build(model.trainable_variables)
    zeros = [keras.ops.zeros_like(v) for v in model.trainable_variables]
    head = model.get_layer("head").get_weights()[0]
    optimizer.apply(zeros, model.trainable_variables)  # no gradient: what moves is the decay
    np.testing.assert_allclose(slow.get_weights()[0], 1 - 0.1 * 0.5 * 0.2, rtol=1e-6)
    np.testing.assert_allclose(slow.get_weights()[1], 1.0)
    np.testing.assert_allclose(model.get_layer("head").get_weights()[0], head * (1 - 0.1 * 0.2), rtol=1e-5)


def bert():
    from common.texts.models import load_classifier

    return load_classifier("bundled:bert_mini", 3, 0.1)[2]


def mobilenet():
    return keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None)


def recogniser():
    from common.speech.sources import load_speech_source
    from common.speech.wav2vec2.heads import CTCHead, build_recogniser

    return build_recogniser(load_speech_source("wav2vec2_mini").backbone, CTCHead(30))


def detector():
    from common.detection.anchors import Anchors
    from common.detection.retinanet import build_detector
    from common.images.sources import load_source

    return build_detector(load_source("keras:MobileNet(alpha=0.25,size=64)@random"), 2, Anchors(4.0, (1.0,))).model


def saved_model(folder):
    """A Keras 3 export: its variables are called kernel and gamma, without the names of their layers."""
    inputs = keras.Input((6,))
    heads = keras.layers.MultiHeadAttention(2, 3)(*2 * [inputs[:, None]])
    keras.Model(inputs, keras.layers.LayerNormalization()(heads)).export(folder, verbose=False)
    return SavedModelLayer(str(folder), trainable=True)


@pytest.mark.parametrize(
    ("build", "decayed", "left_out"),
    [
        (bert, {"embeddings", "kernel"}, {"bias", "beta", "gamma"}),
        (mobilenet, {"kernel"}, {"bias", "beta", "gamma"}),
        (recogniser, {"kernel", "direction", "length", "mask_vector"}, {"bias", "beta", "gamma"}),
        (detector, {"kernel"}, {"bias", "beta", "gamma"}),
        (saved_model, {"kernel"}, {"bias", "beta", "gamma"}),
    ],
)
def test_biases_and_normalisation_do_not_decay_whatever_their_shape(build, decayed, left_out, tmp_path):
    model = build(tmp_path / "export") if build is saved_model else build()
    variables = model.trainable_variables
    for variable in variables:
        variable.assign(keras.ops.ones_like(variable))
    optimizer = training.DiscriminativeAdamW(learning_rate=0.1, weight_decay=0.2)
    optimizer.build(variables)
    optimizer.apply([keras.ops.zeros_like(variable) for variable in variables], variables)
    found = {True: set(), False: set()}
    for variable in variables:
        found[bool(np.all(np.asarray(variable) < 1))].add(re.sub(r"_\d+$", "", re.split(r"[/.]", variable.path)[-1]))
    assert found == {True: decayed, False: left_out}


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("dense/kernel:0", (4, 3), True), ("batch_norm.gamma", (3,), False), ("LayerNorm.weight", (3,), False),
        ("attention.self.query.bias", (4, 48), False), ("dense.weight", (4, 3), True),
        ("norm_conv.kernel", (3, 3), True), ("swin.relative_position_bias_table", (9, 2), False),
        ("query.lora_kernel_b", (4, 4), True),
        ("linear.b", (3,), False), ("Variable:0", (3,), False), ("Variable_1:0", (4, 3), True),
    ],
)  # fmt: skip
def test_names_of_other_libraries(name, shape, expected):
    named = types.SimpleNamespace(path=name, shape=shape)  # Keras refuses a slash in a name, which its paths have
    assert training.decays(named) is expected


def test_warmup_rises_then_falls_to_zero():
    schedule = training.warmup_cosine(1.0, steps=100, warmup_share=0.1)
    values = [float(schedule(step)) for step in (0, 5, 10, 55, 100)]
    np.testing.assert_allclose(values, [0.0, 0.5, 1.0, 0.5, 0.0], atol=1e-3)


class Arrays(keras.utils.PyDataset):
    """One batch an epoch."""

    def __init__(self):
        super().__init__()

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return data()


def stage(model: keras.Model, rate: float, **arguments) -> list[dict]:
    return fit_stage(
        model,
        lambda epoch, step: Arrays(),
        stage="test",
        steps=1,
        validation=Arrays(),
        optimizer=keras.optimizers.SGD(rate),
        **arguments,
    )


def test_a_stage_that_makes_things_worse_hands_back_what_it_was_given():
    model = two_layers()
    stage(model, 0.5, epochs=20)
    good = [np.array(w) for w in model.get_weights()]
    stage(model, -5.0, epochs=3, start_counts=True)  # climbs the loss
    for kept, was in zip(model.get_weights(), good, strict=True):
        np.testing.assert_array_equal(kept, was)


def test_training_begins_elsewhere_and_what_was_given_competes_all_the_same():
    model = two_layers()
    stage(model, 0.5, epochs=20)
    good = [np.array(w) for w in model.get_weights()]
    zeros = [np.zeros_like(w) for w in good]
    rows = stage(model, 0.0, epochs=1, start_counts=True, begin=lambda: model.set_weights(zeros))
    assert rows[0]["val_cross_entropy"] == pytest.approx(np.log(data()[1].shape[1]), rel=1e-5)  # began with zeros
    for kept, was in zip(model.get_weights(), good, strict=True):
        np.testing.assert_array_equal(kept, was)


@pytest.mark.parametrize("keep_best", [True, False])
def test_the_best_epoch_comes_back_and_patience_stops(keep_best):
    model = two_layers()
    rows = stage(model, -0.5, epochs=30, patience=3, keep_best=keep_best)
    best = max(range(len(rows)), key=lambda i: (round(rows[i]["val_accuracy"], 6), -rows[i]["val_cross_entropy"]))
    assert len(rows) <= best + 1 + 3 < 30
    loss = float(keras.ops.mean(keras.losses.categorical_crossentropy(data()[1], model(data()[0]))))
    assert loss == pytest.approx(rows[best]["val_cross_entropy"], rel=1e-4)


def test_history_rows_name_stage_and_epoch():
    rows = stage(two_layers(), 0.1, epochs=2)
    assert [(row["stage"], row["epoch"]) for row in rows] == [("test", 1), ("test", 2)]
    assert {"loss", "accuracy", "val_loss", "val_accuracy", "val_cross_entropy"} <= set(rows[0])


def test_balanced_weights_make_classes_count_the_same():
    labels = np.array([0] * 30 + [1] * 10)
    weights = balanced_class_weights(labels, 3)
    assert weights[0] * 30 == pytest.approx(weights[1] * 10)
    assert np.isfinite(weights).all()


def test_dtype_policy_is_put_back_even_after_an_error():
    with pytest.raises(RuntimeError), training.dtype_policy("mixed_bfloat16"):
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
        raise RuntimeError
    assert keras.config.dtype_policy().name == "float32"


def test_progress_says_how_long_it_will_take():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    shown, piped = Terminal(), io.StringIO()
    for stream in (shown, piped):
        progress = ProgressLine("work", 10, stream)
        progress.update(5)
        progress.close()
    assert "5 of 10" in shown.getvalue() and "left" in shown.getvalue()
    assert piped.getvalue().count("\n") == 1 and "\r" not in piped.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(3.4, "3 s"), (185, "3 min 05 s"), (7440, "2 h 04 min")])
def test_seconds_are_readable(seconds, text):
    assert format_seconds(seconds) == text


def test_the_speedup_is_that_of_the_products(monkeypatch):
    now, multiply = [0.0], tf.linalg.matmul

    def slow_in_float32(left, right):
        now[0] += 3.0 if left.dtype == tf.float32 else 2.0
        return multiply(left, right)

    monkeypatch.setattr(tf.linalg, "matmul", slow_in_float32)
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    assert training.speedup_of_bfloat16(4, 2, repeats=3) == 1.5
