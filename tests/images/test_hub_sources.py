"""SavedModels as image sources: pixels in the range they want, policies on their parts, runs, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from common import freezing
from common.errors import UserError
from common.hub import SavedModelLayer
from common.images.sources import load_source
from common.runs import Run
from recipes.image_classification import recipe

SIZE = 32


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    """A small net of named blocks with BatchNorm and a training switch, images in [0, 1], as TF Hub has them."""
    import tf_keras

    tf_keras.utils.set_random_seed(0)
    layers = tf_keras.layers
    blocks = []
    for number in (1, 2, 3):
        blocks += [
            layers.Conv2D(8 * number, 3, strides=2, use_bias=False, name=f"block_{number}_conv"),
            layers.BatchNormalization(momentum=0.5, name=f"block_{number}_norm"),
            layers.ReLU(),
        ]
    folder = tmp_path_factory.mktemp("hub") / "network"
    model = tf_keras.Sequential([tf_keras.Input((SIZE, SIZE, 3)), *blocks, layers.GlobalAveragePooling2D()])
    model.save(folder, save_format="tf")
    return folder


def save(folder: Path, function, signature, **more) -> Path:
    """Write a SavedModel that is one function."""
    saved = tf.__internal__.tracking.AutoTrackable()
    saved.__call__ = tf.function(function, input_signature=signature)
    for name, thing in more.items():
        setattr(saved, name, thing)
    tf.saved_model.save(saved, str(folder))
    return folder


def classifier(text: str) -> tuple[keras.Model, keras.Model]:
    source = load_source(text)
    pixels = keras.Input((*source.image_size, 3))
    return keras.Model(pixels, keras.layers.Dense(2, name="head")(source.extractor(pixels))), source.backbone


def refusal(text: str, image_size: int | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_source(text, image_size)
    return str(caught.value)


# --- pixels and features ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "low", "high"), [("", 0, 1), ("(range=-1..1)", -1, 1), ("(range=0..255)", 0, 255)])
def test_pixels_come_in_the_range_that_the_model_wants(option, low, high, tmp_path):
    takes = [tf.TensorSpec((None, SIZE, SIZE, 3))]
    folder = save(
        tmp_path / "m", lambda x: tf.stack([tf.reduce_min(x, (1, 2, 3)), tf.reduce_max(x, (1, 2, 3))], 1), takes
    )
    pixels = np.zeros((1, SIZE, SIZE, 3), "float32")
    pixels[0, 0] = 255
    np.testing.assert_allclose(load_source(f"hub:{folder}{option}").extractor(pixels), [[low, high]], atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "asked", "expected"), [((None, None), None, 224), ((None, None), 64, 64), ((48, 48), None, 48)]
)
def test_size_is_the_models_or_chosen(shape, asked, expected, tmp_path):
    folder = save(tmp_path / "m", lambda x: tf.reduce_mean(x, (1, 2)), [tf.TensorSpec((None, *shape, 3))])
    assert load_source(f"hub:{folder}", asked).image_size == (expected, expected)


def test_maps_are_pooled_and_one_of_several_outputs_is_chosen(tmp_path):
    takes = [tf.TensorSpec((None, SIZE, SIZE, 3))]
    folder = save(tmp_path / "m", lambda x: {"map": x[..., :2], "default": tf.reduce_mean(x, (1, 2))}, takes)
    assert load_source(f"hub:{folder}").feature_width == 3
    assert load_source(f"hub:{folder}(output=map)").feature_width == 2
    said = refusal(f"hub:{folder}(output=mop)")
    assert "default (None, 3)" in said and "map (None, 32, 32, 2)" in said and "output=mop" in said
    pair = save(tmp_path / "p", lambda x: (x, tf.reduce_mean(x, (1, 2))), takes)
    assert load_source(f"hub:{pair}(output=1)").feature_width == 3
    inner = save(tmp_path / "i", lambda x: {"a": {"b": x}, "words": tf.fill([tf.shape(x)[0], 2], "x")}, takes)
    assert "it has no such output" in refusal(f"hub:{inner}(output=a)")
    other = save(tmp_path / "n", lambda x: {"z": x, "a": tf.reduce_mean(x, (1, 2)), "scalar": tf.reduce_mean(x)}, takes)
    assert "a (None, 3)" in refusal(f"hub:{other}")
    assert "with one of" in refusal(f"hub:{other}(output=scalar)")
    assert load_source(f"hub:{other}(output=a)").feature_width == 3
    pixels = np.random.default_rng(0).uniform(0, 255, (2, SIZE, SIZE, 3)).astype("float32")
    features = load_source(f"hub:{folder}").extractor(pixels)
    np.testing.assert_allclose(features, pixels.mean((1, 2)) / 255, rtol=1e-5)


# --- freezing -----------------------------------------------------------------------------------------------


def changed(model: keras.Model, layer: SavedModelLayer) -> set[str]:
    rng = np.random.default_rng(0)
    before = {variable.name: np.copy(variable.numpy()) for variable in layer.module_variables}
    model.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=True)
    model.train_on_batch(rng.uniform(0, 255, (4, SIZE, SIZE, 3)).astype("float32"), rng.normal(size=(4, 2)))
    return {v.name for v in layer.module_variables if not np.array_equal(before[v.name], v.numpy())}


KERNELS = {f"block_{number}_conv.kernel" for number in (1, 2, 3)}
SCALES = {f"block_{number}_norm.{leaf}" for number in (1, 2, 3) for leaf in ("gamma", "beta")}
STATISTICS = {f"block_{number}_norm.moving_{leaf}" for number in (1, 2, 3) for leaf in ("mean", "variance")}


@pytest.mark.parametrize(
    ("policy", "batch_norm", "expected"),
    [
        ("frozen", "frozen", set()),
        ("frozen", "train", set()),
        ("last_block", "frozen", {"block_3_conv.kernel"}),
        ("last:3", "frozen", {"block_2_norm.kernel", "block_3_conv.kernel"} - {"block_2_norm.kernel"}),
        ("regex:block_1_", "frozen", {"block_1_conv.kernel"}),
        ("all", "frozen", KERNELS),
        ("all", "train", KERNELS | SCALES | STATISTICS),
    ],
)
def test_policies_reach_the_parts(policy, batch_norm, expected, network):
    model, backbone = classifier(f"hub:{network}")
    counts = freezing.freeze(model, backbone, policy, batch_norm)
    layer = backbone.get_layer("saved_model")
    assert changed(model, layer) == expected
    assert counts.layers == 1 + len({name.rpartition(".")[0] for name in expected - STATISTICS})
    assert freezing.freeze(model, backbone, "frozen").layers == 1
    assert changed(model, layer) == set()


def test_one_training_switch_for_all_batch_norm(network):
    model, backbone = classifier(f"hub:{network}")
    with pytest.raises(UserError, match="one training switch"):
        freezing.freeze(model, backbone, "last_block", "train")


def test_random_weights_are_another_network_of_the_same_scale(network):
    pixels = np.random.default_rng(0).uniform(0, 255, (2, SIZE, SIZE, 3)).astype("float32")
    trained, fresh, again = (load_source(text) for text in [f"hub:{network}"] + [f"hub:{network}@random"] * 2)
    assert fresh.fingerprint() != trained.fingerprint() != again.fingerprint()
    features = np.asarray(fresh.extractor(pixels))
    assert np.isfinite(features).all() and 0.01 < features.std() < 100
    names = {v.name: np.asarray(v.numpy()) for v in fresh.backbone.get_layer("saved_model").module_variables}
    assert (names["block_1_norm.gamma"] == 1).all() and (names["block_1_norm.moving_mean"] == 0).all()


def test_unknown_vectors_cannot_be_initialised_anew(tmp_path):
    odd = tf.Variable(tf.ones(3), name="what")
    takes = [tf.TensorSpec((None, SIZE, SIZE, 3))]
    folder = save(tmp_path / "m", lambda x: tf.reduce_mean(x, (1, 2)) * odd, takes, odd=odd)
    assert "'what'" in refusal(f"hub:{folder}@random")


# --- a run --------------------------------------------------------------------------------------------------


@pytest.fixture
def stripes(tmp_path) -> Path:
    """Images with stripes that lie or stand, under so much noise that a random network hardly tells them apart."""
    rng = np.random.default_rng(0)
    for name in ("lying", "standing"):
        (tmp_path / "stripes" / name).mkdir(parents=True)
        for number in range(40):
            rows = 60 * np.sin(np.arange(SIZE) * np.pi / 2 + rng.uniform(0, 6))
            pixels = 128 + (rows[:, None] if name == "lying" else rows[None]) + rng.normal(0, 70, (SIZE, SIZE))
            image = np.repeat(np.clip(pixels, 0, 255).astype("uint8")[..., None], 3, axis=2)
            Image.fromarray(image).save(tmp_path / "stripes" / name / f"{number}.png")
    return tmp_path / "stripes"


def test_fine_tuning_in_the_recipe_changes_the_module(network, stripes, tmp_path):
    config = recipe.Config(
        data=f"folder:{stripes}", source=f"hub:{network}", out=str(tmp_path / "run"), epochs=6, batch_norm="train",
        learning_rate=0.01, augment="none",
    )  # fmt: skip
    data, source = recipe.load_data(config)
    model = recipe.build_model(source, 2, config)
    before = source.backbone.get_weights()
    recipe.fine_tune(Run(config), source, model, data, 0, [{"val_cross_entropy": 0.7}])
    moved = [not np.array_equal(a, b) for a, b in zip(before, source.backbone.get_weights(), strict=True)]
    assert moved == [True] * len(KERNELS | SCALES | STATISTICS)


@pytest.mark.slow
def test_a_run_proves_it_and_the_export_needs_it_no_more(network, stripes, tmp_path):
    source, out = tmp_path / "source", tmp_path / "run"
    shutil.copytree(network, source)
    flags = ["--data", f"folder:{stripes}", "--source", f"hub:{source}", "--out", str(out), "--batch-norm", "train",
             "--unfreeze", "all", "--epochs", "2", "--augment", "none", "--no-explain"]  # fmt: skip
    command = [sys.executable, "-m", "recipes", "run", "image_classification", *flags, "--baselines", "scratch",
               "--scratch-epochs", "1"]  # fmt: skip
    finished = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    metrics = json.loads((out / "metrics.json").read_text("utf-8"))
    assert metrics["proof"]["passed"] and {"frozen", "scratch"} < set(metrics["baselines"])
    assert metrics["source"] == f"hub:{source}"

    shutil.rmtree(source)
    predict = [sys.executable, "-m", "recipes", "predict", str(out), str(next(stripes.rglob("*.png")))]
    answered = subprocess.run(predict, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert answered.returncode == 0 and ("lying" in answered.stdout or "standing" in answered.stdout), answered.stderr
    with pytest.raises(ValueError, match="SavedModel not found"):
        keras.models.load_model(out / "model.keras", safe_mode=False)


# --- refused ------------------------------------------------------------------------------------------------


def test_a_keras_file_runs_no_saved_model_unasked(network, tmp_path):
    model, _ = classifier(f"hub:{network}")
    model.save(tmp_path / "model.keras")
    with pytest.raises(UserError, match="safe_mode=False"):
        keras.models.load_model(tmp_path / "model.keras")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("saved_model.pb", "holds no saved_model.pb"),
        ("variables", "variables.index"),
        ("variables/variables.index", "variables.index"),
        ("variables/variables.data-00000-of-00001", "variables.data"),
        ("half a graph", "damaged"),
        ("half the weights", "cannot be loaded"),
        ("tfhub_module.pb", "TF1 Hub format"),
    ],
)
def test_damaged_saved_models_are_refused(damage, words, network, tmp_path):
    folder = shutil.copytree(network, tmp_path / "network")
    if damage.startswith("half"):
        path = folder / ("saved_model.pb" if "graph" in damage else "variables/variables.data-00000-of-00001")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "tfhub_module.pb":
        (folder / damage).touch()
    elif damage == "variables":
        shutil.rmtree(folder / damage)
    else:
        (folder / damage).unlink()
    assert words in refusal(f"hub:{folder}")


def test_a_folder_of_versions_is_told_apart(network, tmp_path):
    shutil.copytree(network, tmp_path / "served" / "1")
    assert f"Try the folder in it: {tmp_path / 'served' / '1'}" in refusal(f"hub:{tmp_path / 'served'}")


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        ([tf.TensorSpec((None, 49, 10, 1))], "does not take RGB images"),
        ([tf.TensorSpec((None,), tf.string)], "does not take RGB images"),
        ([tf.TensorSpec((None, SIZE, SIZE, 3), tf.uint8)], "does not take RGB images"),
    ],
)
def test_what_takes_no_images_is_refused(signature, words, tmp_path):
    folder = save(tmp_path / "m", lambda x: x, signature)
    assert words in refusal(f"hub:{folder}")


def test_other_sizes_than_the_models_are_refused(network):
    assert f"takes images of {SIZE} x {SIZE} pixels only" in refusal(f"hub:{network}", 64)


def test_unknown_signatures_are_named(network):
    said = refusal(f"hub:{network}(signature=serving_defautl)")
    assert "Allowed: its signatures, serving_default" in said and "Did you mean 'serving_default'?" in said


def test_assets_outside_the_folder_are_refused(network, tmp_path):
    from tensorflow.core.protobuf import saved_model_pb2

    folder = shutil.copytree(network, tmp_path / "network")
    described = saved_model_pb2.SavedModel()
    described.ParseFromString((folder / "saved_model.pb").read_bytes())
    described.meta_graphs[0].asset_file_def.add().filename = "../../../etc/passwd"
    (folder / "saved_model.pb").write_bytes(described.SerializeToString())
    assert "outside its folder" in refusal(f"hub:{folder}")


@pytest.mark.parametrize("pkg_resources", ["as installed", pytest.param("gone", marks=pytest.mark.slow)])
def test_tensorflow_hub_imports_with_and_without_pkg_resources(pkg_resources, network):
    block = "import sys; sys.modules['pkg_resources'] = None\n" if pkg_resources == "gone" else ""
    program = f"""{block}
import sys
from common.hub import SavedModelLayer
print(len(SavedModelLayer(sys.argv[1]).weights))
assert "tensorflow_hub" in sys.modules
"""
    command = [sys.executable, "-c", program, str(network)]
    finished = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert finished.returncode == 0 and finished.stdout.strip() == "15", finished.stderr


# --- the real ones --------------------------------------------------------------------------------------------


def test_a_keyword_spotter_of_mlperf_tiny_loads_and_trains(shared_data):
    layer = SavedModelLayer(str(shared_data / "weights" / "mlperf_tiny" / "kws_ref_model"), trainable=True)
    assert layer.knows_training and len(layer.trainable_weights) == 38
    model = keras.Sequential([keras.Input((49, 10, 1)), layer])
    model.compile("adam", "sparse_categorical_crossentropy")
    losses = model.fit(np.random.default_rng(0).normal(size=(8, 49, 10, 1)), np.arange(8), epochs=10, verbose=0)
    assert losses.history["loss"][-1] < 0.5 * losses.history["loss"][0]
    assert "does not take RGB images" in refusal(f"hub:{shared_data / 'weights' / 'mlperf_tiny' / 'kws_ref_model'}")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("mlperf_tiny/resnet8_cifar10.h5", "model.layers[-2].output).export"),
        ("squeezenet_imagenet/squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5", "--source keras:NAME@FILE"),
        ("yamnet/yamnet.tflite", "cannot be trained"),
        ("resnet_cifar10/resnet20-12fca82f.npz", "a folder with saved_model.pb"),
    ],
)
def test_single_files_are_told_what_to_do(file, words, shared_data):
    said = refusal(f"hub:{shared_data / 'weights' / file}")
    assert "names a file" in said and words in said


def test_the_advice_on_whole_keras_models_works(shared_data, tmp_path):
    path = shared_data / "weights" / "mlperf_tiny" / "resnet8_cifar10.h5"
    program = re.search(r'python -c "(.*?)"', refusal(f"hub:{path}"))[1]
    program = program.replace("FILE", str(path)).replace("FOLDER", str(tmp_path / "exported"))
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    source = load_source(f"hub:{tmp_path / 'exported'}(range=0..255)")
    assert source.image_size == (32, 32) and source.feature_width == 64
    assert len(source.backbone.trainable_weights) > 10


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("MobileNetV2", "mobilenet_imagenet_keras/mobilenet_v2_1.0_224_notop.weights.h5"),
        ("MobileNet(alpha=0.5,size=160)", "mobilenet_imagenet_keras/mobilenet_v1_0.5_160_notop.weights.h5"),
        ("MobileNet(alpha=0.25,size=128)", "mobilenet_imagenet_keras/mobilenet_v1_0.25_128_notop.weights.h5"),
    ],
)
def test_the_mobilenets_load(name, file, shared_data):
    assert load_source(f"keras:{name}@{shared_data / 'weights' / file}").feature_width in (256, 512, 1280)


@pytest.mark.parametrize("file", ["squeezenet_imagenet/squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5",
                                  "yamnet/yamnet.tflite", "resnet_cifar10/resnet20-12fca82f.npz"])  # fmt: skip
def test_weights_of_other_networks_are_refused(file, shared_data):
    said = refusal(f"keras:MobileNetV2@{shared_data / 'weights' / file}")
    assert "does not fit MobileNetV2" in said
