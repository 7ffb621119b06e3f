"""The contract of SavedModelLayer, over the kinds of SavedModel that people have."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import hub
from common.errors import UserError
from common.hub import SavedModelLayer

WIDTH = 6


# --- six kinds of SavedModel ------------------------------------------------------------------------------


def reusable(folder: Path) -> None:
    """What TF Hub publishes: variables, regularisation, and a switch for training; with BatchNorm and dropout."""
    saved = tf.__internal__.tracking.AutoTrackable()
    kernel = tf.Variable(tf.random.stateless_normal((4, WIDTH), (1, 2)), name="dense/kernel")
    gamma = tf.Variable(tf.ones(WIDTH), name="norm/gamma")
    mean = tf.Variable(tf.zeros(WIDTH), trainable=False, name="norm/moving_mean")

    @tf.function
    def call(inputs, training=False):
        outputs = (tf.nn.dropout(inputs, 0.5) if training else inputs) @ kernel
        center = tf.reduce_mean(outputs, 0) if training else mean
        if training:
            mean.assign(0.5 * mean + 0.5 * center)
        return tf.nn.tanh((outputs - center) * gamma)

    for training in (False, True):
        call.get_concrete_function(tf.TensorSpec((None, 4)), training=training)
    saved.__call__ = call
    saved.variables, saved.trainable_variables = [mean, kernel, gamma], [kernel, gamma]
    saved.regularization_losses = [tf.function(lambda: 0.1 * tf.reduce_sum(kernel**2), input_signature=[])]
    tf.saved_model.save(saved, str(folder))


class Plain(tf.Module):
    """A module without lists of its variables, which tf.saved_model.save therefore does not keep."""

    def __init__(self):
        super().__init__("plain")
        self.a_later = tf.Variable(tf.random.stateless_normal((8, WIDTH), (1, 2)), name="later/kernel")
        self.z_first = tf.Variable(tf.random.stateless_normal((4, 8), (3, 4)), name="first/kernel")
        self.fixed = tf.Variable(2.0, trainable=False, name="fixed")

    @tf.function(input_signature=[tf.TensorSpec((None, 4))])
    def __call__(self, inputs):
        return tf.nn.tanh(inputs @ self.z_first) @ self.a_later * self.fixed


def plain(folder: Path) -> None:
    tf.saved_model.save(Plain(), str(folder))


def words(folder: Path) -> None:
    """Dictionary in, dictionary out, with a lookup table that is read from an asset."""
    module, vocabulary = tf.Module(), folder.with_suffix(".txt")
    vocabulary.write_text("good\nbad\nfine\n", "utf-8")
    asset = tf.saved_model.Asset(str(vocabulary))
    line, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
    lines = tf.lookup.TextFileInitializer(asset.asset_path, tf.string, line, tf.int64, number)
    table = tf.lookup.StaticVocabularyTable(lines, 1)
    vectors = tf.Variable(tf.random.stateless_normal((4, WIDTH), (5, 6)), name="embedding/table")
    takes = {"word": tf.TensorSpec((None,), tf.string), "weight": tf.TensorSpec((None,))}

    @tf.function(input_signature=[takes])
    def call(inputs):
        numbers = table.lookup(inputs["word"])
        return {"embedding": tf.gather(vectors, numbers) * inputs["weight"][:, None], "number": numbers}

    module.__call__, module.asset, module.table, module.vectors = call, asset, table, vectors
    saved = tf.__internal__.tracking.AutoTrackable()
    saved.__call__, saved.asset, saved.table, saved.vectors = call, asset, table, vectors
    tf.saved_model.save(saved, str(folder))


def keras_3(folder: Path) -> None:
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, "tanh"), layers.BatchNormalization(), layers.Dense(WIDTH)]
    )
    model.export(folder, verbose=False)


def keras_2(folder: Path) -> None:
    import tf_keras

    tf_keras.utils.set_random_seed(0)
    layers = tf_keras.layers
    named = [
        layers.Dense(8, "tanh", kernel_regularizer="l2", name="block_1_expand"),
        layers.BatchNormalization(momentum=0.5, name="block_1_norm"),
        layers.Dropout(0.5),
        layers.Dense(WIDTH, name="block_2_project"),
    ]
    tf_keras.Sequential([tf_keras.Input((4,)), *named]).save(folder, save_format="tf")


def signatures(folder: Path) -> None:
    holder, module = tf.Module(), Plain()
    holder.inside = module
    run = tf.function(lambda x: {"out": module(x)}, input_signature=[tf.TensorSpec((None, 4), name="x")])
    tf.saved_model.save(holder, str(folder), {"serving_default": run})


@dataclass(frozen=True)
class Kind:
    """One kind of SavedModel: what writes it and what may be expected of the layer over it."""

    write: Callable[[Path], None]
    trains: int  # variables
    moves: int = 0  # moving statistics that follow the batches in training mode
    losses: int = 0
    output_key: str | None = None

    def inputs(self, count: int = 16):
        numbers = np.random.default_rng(0).normal(size=(count, 4)).astype("float32")
        if self.write is not words:
            return numbers
        return {"word": tf.constant(["good", "bad", "fine", "never seen"] * (count // 4)), "weight": numbers[:, 0]}

    def layer(self, folder: Path, **arguments) -> SavedModelLayer:
        return SavedModelLayer(str(folder), output_key=self.output_key, **arguments)

    def model(self, folder: Path, **arguments) -> keras.Model:
        """The layer, called `body`, and a head with fixed initial weights."""
        inputs = keras.Input((4,))
        if self.write is words:
            inputs = {"word": keras.Input((), dtype="string", name="word"), "weight": keras.Input((), name="weight")}
        head = keras.layers.Dense(3, "softmax", kernel_initializer=keras.initializers.RandomNormal(seed=1), name="head")
        return keras.Model(inputs, head(self.layer(folder, name="body", **arguments)(inputs)))


KINDS = {
    kind.write.__name__: kind
    for kind in (
        Kind(reusable, trains=2, moves=1, losses=1),
        Kind(plain, trains=2),
        Kind(words, trains=1, output_key="embedding"),
        Kind(keras_3, trains=6),
        Kind(keras_2, trains=6, moves=2, losses=1),
        Kind(signatures, trains=2),
    )
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Every kind, written once."""
    top = tmp_path_factory.mktemp("saved_models")
    for name, kind in KINDS.items():
        kind.write(top / name)
    return {name: top / name for name in KINDS}


@pytest.fixture(params=KINDS)
def kind(request) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def folder(kind, folders) -> Path:
    return folders[kind.write.__name__]


def targets(count: int = 16) -> np.ndarray:
    return np.arange(count) % 3


def fit(model: keras.Model, kind: Kind, steps: int = 3, optimizer="adam", eagerly: bool = True) -> dict:
    """Eagerly, since tracing takes longer than some steps; `test_weights_train_when_trainable` uses graphs."""
    model.compile(optimizer, "sparse_categorical_crossentropy", run_eagerly=eagerly)
    return model.fit(kind.inputs(), targets(), batch_size=16, epochs=steps, verbose=0).history


def changes(model: keras.Model, kind: Kind, eagerly: bool = True) -> tuple[list[bool], list[bool]]:
    """Train a little; tell which of the layer's weights changed: (those that may train, the others)."""
    body = model.get_layer("body")
    before = [np.copy(variable.numpy()) for variable in body.module_variables]
    fit(model, kind, eagerly=eagerly)
    changed = [not np.array_equal(b, v.numpy()) for b, v in zip(before, body.module_variables, strict=True)]
    can_train = {id(variable) for part in body.parts for variable in part._trainable_variables}
    trained = [c for c, v in zip(changed, body.module_variables, strict=True) if id(v) in can_train]
    others = [c for c, v in zip(changed, body.module_variables, strict=True) if id(v) not in can_train]
    return trained, others


# --- the contract -----------------------------------------------------------------------------------------


def test_answers_as_the_module_does(kind, folder):
    module, inputs = tf.saved_model.load(str(folder)), tf.nest.map_structure(tf.constant, kind.inputs())
    if kind.write is signatures:
        expected = module.signatures["serving_default"](x=inputs)["out"]
    elif kind.write is keras_3:
        expected = module.serve(inputs)
    else:
        expected = module(inputs)
        expected = expected[kind.output_key] if kind.output_key else expected
    np.testing.assert_array_equal(kind.layer(folder)(kind.inputs()), expected)
    np.testing.assert_array_equal(kind.layer(folder, trainable=True)(kind.inputs()), expected)


def test_weights_train_when_trainable(kind, folder):
    model = kind.model(folder, trainable=True)
    assert len(model.get_layer("body").trainable_weights) == kind.trains
    trained, others = changes(model, kind, eagerly=False)
    assert trained == [True] * kind.trains
    assert sum(others) == kind.moves


def test_nothing_moves_when_frozen(kind, folder):
    model = kind.model(folder)
    assert model.get_layer("body").trainable_weights == []
    trained, others = changes(model, kind)
    assert not any(trained) and not any(others)


def test_unfreezes_and_freezes_again_after_building(kind, folder):
    model = kind.model(folder)
    model.get_layer("body").trainable = True
    trained, others = changes(model, kind)
    assert all(trained) and sum(others) == kind.moves
    model.get_layer("body").trainable = False
    trained, others = changes(model, kind)
    assert not any(trained) and not any(others)


def test_gradients_are_those_of_the_module(kind, folder):
    module, inputs = tf.saved_model.load(str(folder)), tf.nest.map_structure(tf.constant, kind.inputs())
    layer = kind.layer(folder, trainable=True, follow_training=False)
    with tf.GradientTape() as tape:
        ours = tape.gradient(
            tf.reduce_sum(layer(inputs, training=True) ** 2), [v.value for v in layer.trainable_weights]
        )
    function = hub._function_to_call(module, None, "")
    with tf.GradientTape() as tape:
        outputs = function(x=inputs) if kind.write is signatures else function(inputs)
        if isinstance(outputs, dict):
            outputs = outputs[kind.output_key or "out"]
        variables, trains = hub._variables(module, function)
        loss = tf.reduce_sum(outputs**2)
    theirs = tape.gradient(loss, [variable for variable in variables if variable.ref() in trains])
    assert len(ours) == kind.trains
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(tf.convert_to_tensor(our), tf.convert_to_tensor(their), atol=1e-5)
        assert np.abs(tf.convert_to_tensor(our)).max() > 0


def test_regularisation_counts_while_it_trains(kind, folder):
    layer = kind.layer(folder, trainable=True)
    layer(kind.inputs(), training=True)
    assert len(layer.losses) == kind.losses
    assert all(float(loss) > 0 for loss in layer.losses)
    frozen = kind.layer(folder)
    frozen(kind.inputs(), training=True)
    assert frozen.losses == []


def test_training_mode_reaches_the_module(kind, folder):
    layer = kind.layer(folder, trainable=True)
    assert layer.knows_training == bool(kind.moves)
    first, second = (np.asarray(layer(kind.inputs(), training=True)) for _ in range(2))
    assert np.array_equal(first, second) != layer.knows_training  # dropout
    layer.follow_training = False
    still = [np.copy(w) for w in layer.get_weights()]
    first, second = (np.asarray(layer(kind.inputs(), training=True)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    for before, after in zip(still, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_saved_and_loaded(kind, folder, tmp_path, ending):
    model = kind.model(folder, trainable=True)
    fit(model, kind)
    expected = model.predict(kind.inputs(), verbose=0)
    if ending == ".keras":
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=False)
    else:
        model.save_weights(tmp_path / "model.weights.h5")
        loaded = kind.model(folder, trainable=True)
        loaded.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(loaded.predict(kind.inputs(), verbose=0), expected)


def test_optimizer_slots_are_saved(kind, folder, tmp_path):
    model = kind.model(folder, trainable=True, follow_training=False)
    fit(model, kind, steps=2)
    slots = 2 * (kind.trains + 2)
    assert len(model.optimizer.variables) == slots + 2  # and the step, and the learning rate
    model.save(tmp_path / "model.keras")
    went_on = model.fit(kind.inputs(), targets(), batch_size=16, epochs=2, verbose=0).history["loss"]
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=False)
    again = loaded.fit(kind.inputs(), targets(), batch_size=16, epochs=2, verbose=0).history["loss"]
    np.testing.assert_allclose(again, went_on, rtol=1e-6)


def test_a_clone_has_weights_of_its_own(kind, folder):
    model = kind.model(folder, trainable=True)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    fit(model, kind)
    again = kind.model(folder, trainable=True)
    for untouched, fresh in zip(
        clone.get_layer("body").get_weights(), again.get_layer("body").get_weights(), strict=True
    ):
        np.testing.assert_array_equal(untouched, fresh)


@pytest.mark.slow
def test_the_exports_need_nothing_else(folders, tmp_path):
    expected = {}
    for name, kind in KINDS.items():
        moved = tmp_path / "source"
        shutil.copytree(folders[name], moved)
        model = kind.model(moved, trainable=True)
        fit(model, kind, steps=1)
        expected[name] = model.predict(kind.inputs(), verbose=0)
        model.export(tmp_path / name, verbose=False)
        shutil.rmtree(moved)
    words_in = {key: np.asarray(value) for key, value in KINDS["words"].inputs().items()}
    inputs = {"x": KINDS["plain"].inputs(), "weight": words_in["weight"], "word": words_in["word"].astype("S")}
    np.savez(tmp_path / "inputs.npz", **inputs)
    np.savez(tmp_path / "expected.npz", **expected)
    program = """
import sys, numpy as np, tensorflow as tf
top = sys.argv[1]
inputs = {name: tf.constant(array) for name, array in np.load(top + "/inputs.npz").items()}
for name, expected in np.load(top + "/expected.npz").items():
    loaded = tf.saved_model.load(top + "/" + name)
    answer = loaded.serve(inputs["x"] if name != "words" else {key: inputs[key] for key in ("word", "weight")})
    np.testing.assert_allclose(answer, expected, atol=1e-6, err_msg=name)
assert "common" not in sys.modules
"""
    finished = subprocess.run([sys.executable, "-I", "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_mixed_precision_trains_it_in_its_own_precision(kind, folder):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = kind.model(folder, trainable=True)
    assert model.get_layer("head").compute_dtype == "bfloat16"
    trained, _ = changes(model, kind)
    assert all(trained)
    assert {w.dtype for w in model.get_layer("body").weights} == {"float32"}


def test_sequential_and_subclassed_models(folders):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.body = SavedModelLayer(str(folders["reusable"]), trainable=True)
            self.head = keras.layers.Dense(3, "softmax")

        def call(self, inputs, training=None):
            return self.head(self.body(inputs, training=training))

    kind = KINDS["reusable"]
    body = SavedModelLayer(str(folders["reusable"]), trainable=True)
    for model in (keras.Sequential([body, keras.layers.Dense(3, "softmax")]), Subclassed()):
        losses = fit(model, kind, steps=20, optimizer=keras.optimizers.Adam(0.05))["loss"]
        assert losses[-1] < losses[0]
        assert len(model.trainable_weights) == kind.trains + 2


@pytest.mark.slow
def test_mirrored_on_two_devices(folders):
    program = """
import sys, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from common.hub import SavedModelLayer
x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
losses = []
for strategy in (tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), None):
    keras.utils.set_random_seed(0)
    import contextlib
    with strategy.scope() if strategy else contextlib.nullcontext():
        body = SavedModelLayer(sys.argv[1], trainable=True, follow_training=False)
        model = keras.Sequential([keras.Input((4,)), body, keras.layers.Dense(3, "softmax")])
        model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    before = [w.copy() for w in body.get_weights()]
    losses.append(model.fit(x, np.arange(16) % 3, epochs=5, verbose=0, shuffle=False).history["loss"])
    assert all((b != a).any() for b, a in zip(before, body.get_weights()) if b.shape == (4, 6))
np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
"""
    command = [sys.executable, "-c", program, str(folders["reusable"])]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert finished.returncode == 0, finished.stderr[-3000:]


# --- odd SavedModels ----------------------------------------------------------------------------------------


def noisy(folder: Path, modes: tuple, keyword_only: bool = False, **more) -> Path:
    """A module whose training mode adds noise and counts, saved for some values of `training`."""
    saved = tf.__internal__.tracking.AutoTrackable()
    saved.moving = tf.Variable(0.0, trainable=False, name="norm/moving_mean")
    saved.kernel = tf.Variable(2.0, name="dense/kernel")

    def run(inputs, training):
        if training:
            saved.moving.assign_add(1.0)
            return inputs * saved.kernel + tf.random.uniform(tf.shape(inputs), 1.0, 2.0)
        return inputs * saved.kernel

    if keyword_only:
        saved.__call__ = tf.function(lambda inputs, *, training: run(inputs, training))
    else:
        saved.__call__ = tf.function(lambda inputs, training=None: run(inputs, training))
    for mode in modes:
        saved.__call__.get_concrete_function(tf.TensorSpec((None, 3)), training=mode)
    for name, thing in more.items():
        setattr(saved, name, thing)
    saved.variables, saved.trainable_variables = [saved.moving, saved.kernel], [saved.kernel]
    tf.saved_model.save(saved, str(folder))
    return folder


@pytest.mark.parametrize("modes", [(None, True), (False, True), (True, None, False), (None,)])
@pytest.mark.parametrize("keyword_only", [False, True])
def test_inference_is_inference_however_training_was_saved(modes, keyword_only, tmp_path):
    layer = SavedModelLayer(str(noisy(tmp_path / "m", modes, keyword_only)), trainable=True)
    ones = np.ones((2, 3), "float32")
    np.testing.assert_array_equal(layer(ones), 2 * ones)
    assert layer.knows_training == (True in modes)
    assert (np.asarray(layer(ones, training=True)) > 2.5).all() == (True in modes)
    assert float(layer.saved_model.moving) == (1.0 if True in modes else 0.0)


def test_training_mode_alone_is_refused(tmp_path):
    with pytest.raises(UserError, match="saved in training mode only"):
        SavedModelLayer(str(noisy(tmp_path / "m", (True,))))


def test_an_output_of_one_tensor_has_no_parts(folders):
    with pytest.raises(ValueError, match="it returns one tensor"):  # Keras adds where it was called
        SavedModelLayer(str(folders["plain"]), output_key=0)(np.ones((2, 4), "float32"))
    with pytest.raises(ValueError, match="Allowed: embedding, number"):
        SavedModelLayer(str(folders["words"]), output_key="emb")(KINDS["words"].inputs())


def test_a_layer_used_twice_counts_its_regularisation_once(folders):
    layer, inputs = SavedModelLayer(str(folders["reusable"]), trainable=True), keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Add()([layer(inputs), layer(keras.layers.Rescaling(2.0)(inputs))]))
    model(np.ones((2, 4), "float32"), training=True)
    assert len(model.losses) == 1


def test_only_real_numbers_train(tmp_path):
    saved = tf.__internal__.tracking.AutoTrackable()
    saved.count, saved.kernel = tf.Variable(0, name="count"), tf.Variable(2.0, name="kernel")
    takes = [tf.TensorSpec((None, 3))]
    saved.__call__ = tf.function(lambda x: x * saved.kernel + tf.cast(saved.count, tf.float32), input_signature=takes)
    tf.saved_model.save(saved, str(tmp_path / "m"))
    layer = SavedModelLayer(str(tmp_path / "m"), trainable=True)
    assert [weight.name for weight in layer.trainable_weights] == ["kernel"] and len(layer.weights) == 2


@pytest.mark.parametrize("signature", ["__class__", "__repr__", "serve"])
def test_only_what_was_saved_can_be_called(signature, folders):
    with pytest.raises(UserError, match=f"has no '{signature}' to call"):
        SavedModelLayer(str(folders["plain"]), signature=signature)
