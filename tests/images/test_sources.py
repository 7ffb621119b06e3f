"""Sources: the preprocessing that each backbone was trained with, its weights, and what is said when they are missing.

Golden values come from the libraries themselves: `preprocess_input` of keras.applications, Keras' own way of loading
ImageNet weights, and KerasHub's image converters. Nothing here touches the network.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import h5py
import keras
import keras_hub
import numpy as np
import pytest
import requests
from keras.src.applications import efficientnet
from keras.src.backend import config as keras_config
from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group
from keras.src.utils import file_utils
from safetensors.numpy import save_file

from common.errors import UserError
from common.images.batches import image_batches
from common.images.fetch import fetch_source
from common.images.keras_applications import _FAMILIES, Preprocessing, _expects_another_division
from common.images.pixels import read_images
from common.images.sources import ENLARGE, Source, load_fitting, load_source
from common.sources.specs import BUNDLED_FOLDER, KERAS_APPLICATIONS
from tests.upstream import Upstream, serve

# One small net of each family, at (nearly) the smallest size that it takes.
FAMILIES = {
    **{name: 32 for name in ("ResNet50", "ResNet50V2", "VGG16", "MobileNet", "MobileNetV2", "MobileNetV3Small")},
    **{name: 32 for name in ("EfficientNetB0", "EfficientNetV2B0", "DenseNet121", "ConvNeXtTiny")},
    **{"InceptionV3": 75, "Xception": 71},
}
# Keras warns of small images (weights for 224 pixels are taken) and of groups that no weights file has.
pytestmark = pytest.mark.filterwarnings("ignore:.*input_shape:UserWarning", "ignore:Skipping nested:UserWarning")
MOBILENETS = "/tensorflow/keras-applications/mobilenet"
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PREPROCESSING_INSIDE = ("EfficientNetB0", "EfficientNetV2B0", "MobileNetV3Small", "ConvNeXtTiny")


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """An empty Keras cache, and any fetch fails as it does on a machine without network."""

    def fail(url, **_):
        raise requests.ConnectionError("Name or service not known")

    monkeypatch.setattr(keras_config, "_KERAS_DIR", str(tmp_path / "keras_home"))
    (tmp_path / "keras_home").mkdir()
    monkeypatch.setattr(requests, "get", fail)


@pytest.fixture
def upstream(no_network, monkeypatch) -> Iterator[Upstream]:
    """A server on this machine that stands where Keras keeps its weights."""
    with serve() as server:
        host, get = "https://storage.googleapis.com", requests.Session().get
        monkeypatch.setattr(requests, "get", lambda url, **how: get(url.replace(host, server.url), **how))
        yield server


def refusal(text: str, image_size: int | None = None) -> str:
    """Return what the user is told."""
    with pytest.raises(UserError) as caught:
        load_source(text, image_size)
    return str(caught.value)


def preprocessing_of(name: str) -> Preprocessing:
    return next(family.preprocessing for family in _FAMILIES if re.fullmatch(family.pattern, name))


def library_module(name: str):
    """Return the public module of keras.applications that holds a class."""
    return getattr(keras.applications, getattr(keras.applications, name).__module__.rsplit(".", 1)[-1])


def sample_images(size: int = 2, count: int = 3) -> np.ndarray:
    """Return black, white, greys, pure and mixed colours, and noise; float32 [n, size, size, 3], 0 to 255."""
    flat = [[v, v, v] for v in (0, 255, 1, 127, 128, 99.5)] + [[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 120, 230]]
    noise = np.random.default_rng(0).uniform(0, 255, (count, size, size, 3))
    return np.concatenate([np.broadcast_to(np.reshape(flat, (-1, 1, 1, 3)), (len(flat), size, size, 3)), noise]).astype(
        "float32"
    )


def features_of(source: Source, images: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(source.extractor(images, training=False))


def pooled(backbone: keras.Model, images) -> np.ndarray:
    """Average the feature map of a backbone by hand."""
    features = keras.ops.convert_to_numpy(backbone(images, training=False))
    return features.reshape(len(features), -1, features.shape[-1]).mean(1)


def shake(model: keras.Model, preprocess_input=None) -> None:
    """Give each weight a plausible random value: zero biases and moving means would hide a mistake in the input.

    With `preprocess_input`, BatchNorm takes the statistics of varied images, so that the signal reaches the end.
    """
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if "float" in weight.dtype:
            noise = rng.random(weight.shape, np.float32) + np.float32(0.5)
            weight.assign(weight.numpy() * noise + np.float32(0.01) * (noise - 1))
    normalizations = [la for la in model.layers if isinstance(la, keras.layers.BatchNormalization)]
    if preprocess_input and normalizations:
        size, before = model.input_shape[1], normalizations[0].momentum
        colours, contrasts = rng.uniform(60, 195, (8, 1, 1, 3)), rng.uniform(20, 60, (8, 1, 1, 1))
        images = colours + contrasts * rng.uniform(-1, 1, (8, size, size, 3))
        for layer in normalizations:
            layer.momentum = 0.0
        model(preprocess_input(images.astype("float32")), training=True)
        for layer in normalizations:
            layer.momentum = before


def assert_close(ours, theirs, tolerance: float = 1e-4) -> None:
    """Compare, relative to the largest value: features of small random nets can be tiny."""
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max(), rtol=0)


# --- golden preprocessing -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERAS_APPLICATIONS)
def test_preprocessing_equals_the_library(name):
    images = sample_images()
    ours = keras.ops.convert_to_numpy(preprocessing_of(name)(keras.ops.convert_to_tensor(images)))
    theirs = library_module(name).preprocess_input(images.copy())  # a copy: it changes numpy arrays in place
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_golden_preprocessing_values():
    # Written out once, so that a change of the library does not move both sides of the test above.
    red = np.reshape([255.0, 0.0, 0.0], (1, 1, 1, 3)).astype("float32")
    expected = {
        "ResNet50": [-103.939, -116.779, 255 - 123.68],  # blue, green, red
        "VGG19": [-103.939, -116.779, 255 - 123.68],
        "ResNet50V2": [1, -1, -1],
        "MobileNetV2": [1, -1, -1],
        "DenseNet121": [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225],
        "EfficientNetB0": [255, 0, 0],
    }
    for name, values in expected.items():
        found = keras.ops.convert_to_numpy(preprocessing_of(name)(keras.ops.convert_to_tensor(red)))
        np.testing.assert_allclose(found.ravel(), values, atol=1e-4)


QUICK = ("ResNet50", "MobileNetV2")  # the others are variants of one path, seconds each


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_extractor_equals_the_library_by_hand(name):
    size = FAMILIES[name]
    source = load_source(f"keras:{name}(size={size})@random")
    assert source.image_size == (size, size)
    assert source.extractor.input_shape == (None, size, size, 3)
    images = sample_images(size, count=1)[[0, 1, 4, 6, 9, 10]]  # black, white, grey, red, mixed, noise
    preprocess_input = library_module(name).preprocess_input
    shake(source.backbone, preprocess_input)
    ours = features_of(source, images)
    assert ours.shape == (6, source.feature_width)
    assert np.isfinite(ours).all()
    assert_close(ours, pooled(source.backbone, preprocess_input(images.copy())))

    layers = [type(layer).__name__ for layer in source.backbone.layers]
    inside = "Rescaling" in layers or "Normalization" in layers
    assert inside == (name in PREPROCESSING_INSIDE)  # and nobody rescales twice, or never
    white, grey = ours[1], ours[2]
    assert np.abs(white - grey).max() > 0.05 * np.abs(white).max()


# --- weights files ------------------------------------------------------------------------------------


def test_efficientnet_files_see_the_pixels_that_keras_feeds_them(tmp_path, monkeypatch):
    # Keras adds a layer that divides by sqrt(std) when it loads weights="imagenet", and only then.
    monkeypatch.setattr(efficientnet, "DEFAULT_BLOCKS_ARGS", efficientnet.DEFAULT_BLOCKS_ARGS[:2])  # saves seconds
    images = sample_images(32, count=1)
    build = functools.partial(keras.applications.EfficientNetB0, include_top=False, input_shape=(32, 32, 3))
    plain = build(weights=None)
    normalization = next(layer for layer in plain.layers if isinstance(layer, keras.layers.Normalization))
    shake(plain)
    normalization.set_weights([np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225]) ** 2, np.int32(0)])
    normalization.finalize_state()
    own = tmp_path / "own.weights.h5"
    plain.save_weights(own)
    # Keras' own code path for "imagenet", with our file in the place of the one that is fetched.
    with monkeypatch.context() as patched:
        patched.setattr(file_utils, "get_file", lambda *_, **__: str(own))
        imagenet = build(weights="imagenet")
    assert len(imagenet.layers) == len(plain.layers) + 1
    expected = {"own": pooled(plain, images), "published": pooled(imagenet, images)}
    assert np.abs(expected["own"] - expected["published"]).max() > 0.01 * np.abs(expected["own"]).max()
    saved, older, published = (tmp_path / f"{name}.h5" for name in ("saved.weights", "older", "published.weights"))
    imagenet.save_weights(saved)  # what somebody takes along from a machine with network, in either format
    write_published_format(imagenet, older)
    published.write_bytes(own.read_bytes() + b" ")  # the same weights, another MD5
    md5 = hashlib.md5(published.read_bytes()).hexdigest()
    monkeypatch.setitem(efficientnet.WEIGHTS_HASHES, "b0", ("", md5))

    for path, kind in {own: "own", saved: "published", published: "published"}.items():
        assert _expects_another_division(path, "EfficientNetB0") == (kind == "published")
        source = load_source(f"keras:EfficientNetB0(size=32)@{path}")
        assert_close(features_of(source, images), expected[kind], 1e-5)
    assert _expects_another_division(older, "EfficientNetB0")
    # The correction lives in a weight and in a constant made from it; a saved model has to keep both.
    normalization = next(la for la in source.backbone.layers if isinstance(la, keras.layers.Normalization))
    start = keras.Model(source.backbone.input, normalization.output)
    start.save(tmp_path / "start.keras")
    again = keras.saving.load_model(tmp_path / "start.keras")
    assert_close(again(images).numpy(), start(images).numpy(), 1e-6)
    assert_close(again(images).numpy(), keras.Model(imagenet.input, imagenet.layers[3].output)(images).numpy(), 1e-6)


@pytest.mark.parametrize(
    ("spec", "file", "width"),
    [
        ("MobileNetV2(size=96)", "mobilenet_v2_1.0_224_notop.weights.h5", 1280),
        ("MobileNet(alpha=0.25,size=128)", "mobilenet_v1_0.25_128_notop.weights.h5", 256),
    ],
)
def test_real_weights(spec, file, width, shared_data):
    folder = shared_data / "weights" / "mobilenet_imagenet_keras"
    source = load_source(f"keras:{spec}@{folder / file}")
    assert source.feature_width == width
    assert source.card["origin"].endswith(file)
    height = source.image_size[0]
    features = features_of(source, sample_images(height)[[1, 4, -1]])
    assert np.isfinite(features).all()
    assert np.abs(features[0] - features[1]).max() > 0.1
    # Fed wrongly, the same weights say something else: the agreement above is not for want of sensitivity.
    wrong = pooled(source.backbone, sample_images(height)[[1, 4, -1]])
    assert np.abs(features - wrong).max() > 0.1


def test_weights_written_by_keras_are_taken_in_each_format(tmp_path):
    source = load_source("keras:MobileNet(alpha=0.25,size=32)@random")
    images = sample_images(32)
    source.backbone.save_weights(tmp_path / "new.weights.h5")
    write_published_format(source.backbone, tmp_path / "published_notop.h5")
    for name in ("new.weights.h5", "published_notop.h5"):
        loaded = load_source(f"keras:MobileNet(alpha=0.25,size=32)@{tmp_path / name}")
        np.testing.assert_array_equal(features_of(loaded, images), features_of(source, images))
        assert loaded.fingerprint() == source.fingerprint()


def write_published_format(model: keras.Model, path: Path) -> None:
    """Write weights in the older format that keras.applications publishes."""
    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, model)


def test_weights_files_that_do_not_fit_are_refused(tmp_path):
    good = tmp_path / "good.weights.h5"
    small = load_source("keras:MobileNet(alpha=0.25,size=32)@random").backbone
    small.save_weights(good)
    published = tmp_path / "good_notop.h5"
    write_published_format(small, published)
    for whole in (good, published):  # a download that broke off
        cut = tmp_path / f"cut_{whole.name}"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        said = refusal(f"keras:MobileNet(alpha=0.25,size=32)@{cut}")
        assert "not a readable HDF5 file" in said
        assert str(cut) in said
        assert f"{cut.stat().st_size:,} bytes" in said
        said = refusal(f"keras:MobileNet(alpha=0.5,size=32)@{whole}")  # another width
        assert "does not fit MobileNet." in said
        assert "an HDF5 file with" in said
        assert "'no top' weights of MobileNet with the same alpha," in said

    for whole in (good, published):  # another architecture
        said = refusal(f"keras:MobileNetV2(size=32,alpha=0.35)@{whole}")
        assert "'no top' weights of MobileNetV2 with the same alpha," in said

    text = tmp_path / "page.h5"
    text.write_text("<html>404 not found</html>")  # what a broken link leaves behind
    said = refusal(f"keras:MobileNet(alpha=0.25,size=32)@{text}")
    assert "not a readable HDF5 file, 26 bytes" in said

    assert "is a folder" in refusal(f"keras:MobileNetV2@{tmp_path}")
    assert "does not exist" in refusal(f"keras:MobileNetV2@{tmp_path / 'nowhere.h5'}")
    # A random source does not read the file, so that the from-scratch baseline works without it too.
    assert load_source(f"keras:MobileNet(alpha=0.25,size=32)@{good}", random_weights=True).card["data"] == "none"


def test_what_keras_refuses_is_passed_on():
    said = refusal("keras:InceptionV3(size=32)@random")
    assert "InceptionV3 cannot be built at 32 x 32 pixels" in said
    assert "at least 75x75" in said
    assert "at least 32x32" in refusal("keras:ResNet50@random", image_size=16)
    # Published are few widths; the image size is not to blame.
    said = refusal("keras:MobileNetV2(alpha=0.9,size=96)")
    assert "alpha" in said
    assert "0.35" in said


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken(**_):
        raise KeyError("a bug")

    monkeypatch.setattr(keras.applications, "VGG16", broken)
    with pytest.raises(KeyError):
        load_source("keras:VGG16@random")


# --- fetching -----------------------------------------------------------------------------------------


def test_no_network_says_what_to_place_where(tmp_path):
    said = refusal("keras:MobileNet(alpha=0.25,size=128)")
    file = "mobilenet_2_5_128_tf_no_top.h5"
    url = f"https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/{file}"
    path = tmp_path / "keras_home" / "models" / file
    assert f"{url} cannot be fetched (no network?)" in said
    assert f"place it at {path}." in said
    assert f"--source keras:MobileNet(alpha=0.25,size=128)@PATH/{file}" in said
    assert "bundled:mobilenet_v2" in said
    assert not path.exists()


def test_a_connection_that_breaks_is_gone_on_with(upstream, tmp_path, capsys):
    source = load_source("keras:MobileNet(alpha=0.25,size=32)@random")
    published = tmp_path / "published.h5"
    write_published_format(source.backbone, published)
    upstream.files[f"{MOBILENETS}/mobilenet_2_5_224_tf_no_top.h5"] = published.read_bytes()
    upstream.break_after = [100_000]
    assert load_source("keras:MobileNet(alpha=0.25,size=32)").fingerprint() == source.fingerprint()
    assert upstream.asked[1][2] == "bytes=65536-"
    assert "Fetching weights of MobileNet, 1.1 MB, from https://storage.googleapis.com" in capsys.readouterr().out


def test_a_file_placed_as_advised_is_taken(capsys):
    path = Path(re.search(r"place it at (\S+)\. ", refusal("keras:MobileNet(alpha=0.25,size=128)"))[1])
    source = load_source("keras:MobileNet(alpha=0.25,size=128)@random")
    write_published_format(source.backbone, path)
    capsys.readouterr()
    loaded = load_source("keras:MobileNet(alpha=0.25,size=128)")
    assert loaded.fingerprint() == source.fingerprint()
    assert loaded.card["data"] == "ImageNet-1k"
    assert "Fetching" not in capsys.readouterr().out


@pytest.mark.parametrize("name", KERAS_APPLICATIONS)
def test_every_application_fetches_where_we_listen(name):
    module = inspect.getmodule(getattr(keras.applications, name))
    module = getattr(module, "resnet", module)  # the second version calls the first
    assert "file_utils.get_file(" in inspect.getsource(module)
    assert module.file_utils is file_utils


@pytest.mark.parametrize("name", ["ResNet50", "VGG16"])
def test_families_say_what_to_fetch(name, tmp_path):
    said = refusal(f"keras:{name}(size={FAMILIES[name]})")
    (path,) = re.findall(r"place it at (\S+)\. ", said)
    assert Path(path).parent == tmp_path / "keras_home" / "models"
    assert re.search(rf"https://storage\.googleapis\.com/\S+/{re.escape(Path(path).name)} cannot be fetched", said)


def test_fetched_ahead_of_time_it_is_named_by_its_file(upstream, tmp_path):
    source = load_source("keras:MobileNet(alpha=0.25,size=32)@random")
    write_published_format(source.backbone, tmp_path / "published.h5")
    file = "mobilenet_2_5_224_tf_no_top.h5"
    upstream.files[f"{MOBILENETS}/{file}"] = (tmp_path / "published.h5").read_bytes()
    offline = fetch_source("keras:MobileNet(alpha=0.25,size=32)")
    assert offline == f"keras:MobileNet(alpha=0.25,size=32)@{tmp_path / 'keras_home' / 'models' / file}"
    upstream.files.clear()
    assert load_source(offline).fingerprint() == source.fingerprint()


def test_half_written_file_without_published_hash_is_noticed(tmp_path):
    # A run killed while fetching leaves its file where Keras will find it. For MobileNet Keras knows no hash.
    path = Path(re.search(r"place it at (\S+)\. ", refusal("keras:MobileNet(alpha=0.25,size=32)"))[1])
    write_published_format(load_source("keras:MobileNet(alpha=0.25,size=32)@random").backbone, path)
    path.write_bytes(path.read_bytes()[:10_000])
    said = refusal("keras:MobileNet(alpha=0.25,size=32)")
    assert "probably incomplete" in said
    assert str(path) in said
    assert "Delete that file" in said
    assert path.exists()  # it may be the user's: we do not delete it


def test_wrong_file_with_published_hash_is_fetched_again(upstream, tmp_path):
    path = tmp_path / "keras_home" / "models" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    path.parent.mkdir()
    path.write_bytes(b"half of it")
    upstream.files[f"/tensorflow/keras-applications/vgg16/{path.name}"] = b"still not the published file"
    said = refusal("keras:VGG16(size=32)")
    assert len(upstream.asked) == 1
    assert "has a wrong hash" in said


# --- presets ------------------------------------------------------------------------------------------


SCALE, OFFSET = [1 / 58.4, 1 / 57.1, 1 / 57.4], [-2.1, -2.0, -1.8]


def tiny_resnet(image_shape=(None, None, 3), **arguments) -> keras_hub.models.ResNetBackbone:
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=image_shape,
        **arguments,
    )


def save_preset(folder: Path, backbone=None, **converter) -> Path:
    backbone = backbone or tiny_resnet()
    shake(backbone)
    backbone.save_to_preset(folder)
    converter = {"image_size": (40, 40), "scale": SCALE, "offset": OFFSET, **converter}
    keras_hub.layers.ResNetImageConverter(**converter).save_to_preset(folder)
    return folder


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> Path:
    """A small preset folder with a preprocessing of its own for each channel."""
    return save_preset(tmp_path_factory.mktemp("preset"))


def by_hand(folder: Path, images: np.ndarray) -> np.ndarray:
    """Features as KerasHub makes them: its converter, its backbone, an average."""
    converter = keras_hub.layers.ImageConverter.from_preset(str(folder))
    converter.image_size = images.shape[1:3]
    backbone = keras_hub.models.Backbone.from_preset(str(folder), dtype="float32")
    return pooled(backbone, converter(images))


def test_preset_folder_equals_kerashub(preset):
    source = load_source(f"preset:{preset}")
    assert source.image_size == (40, 40)
    assert source.feature_width == 64
    assert_close(features_of(source, sample_images(40)), by_hand(preset, sample_images(40)), 1e-5)
    assert source.card["origin"] == f"KerasHub preset {preset}"


def test_preset_with_float16_weights(tmp_path):
    # Half the file; computed in Keras' current precision all the same.
    folder = save_preset(tmp_path / "half", tiny_resnet(dtype="float16"))
    with h5py.File(folder / "model.weights.h5") as file:
        dtypes = set()
        file.visititems(lambda _, item: dtypes.add(str(item.dtype)) if isinstance(item, h5py.Dataset) else None)
    assert dtypes == {"float16"}
    source = load_source(f"preset:{folder}")
    assert {weight.dtype for weight in source.extractor.weights} == {"float32"}
    assert_close(features_of(source, sample_images(40)), by_hand(folder, sample_images(40)), 1e-5)


@pytest.mark.parametrize(
    ("scale", "offset"), [(None, None), (1 / 255, None), (1 / 127.5, -1.0), ([1 / 255], [-0.5]), (1 / 255, OFFSET)]
)
def test_preset_converters_of_each_shape(scale, offset, tmp_path):
    folder = save_preset(tmp_path / "preset", scale=scale, offset=offset)
    assert_close(
        features_of(load_source(f"preset:{folder}"), sample_images(40)), by_hand(folder, sample_images(40)), 1e-5
    )


@pytest.mark.parametrize("length", [2, 4])
def test_preset_converter_of_odd_length_is_refused(length, tmp_path):
    said = refusal(f"preset:{save_preset(tmp_path / 'preset', scale=[0.1] * length)}")
    assert f"has {length} factors" in said
    assert "one per channel" in said


def test_preset_card_is_read(preset, tmp_path):
    folder = shutil.copytree(preset, tmp_path / "preset")
    (folder / "card.json").write_text(json.dumps({"licence": "CC0-1.0", "data": "my photos", "other": 1}))
    card = load_source(f"preset:{folder}").card
    assert (card["licence"], card["data"]) == ("CC0-1.0", "my photos")
    card = load_source(f"preset:{folder}@random").card
    assert card["data"] == "none"
    assert "initial weights" in card["origin"]


def test_folder_wins_over_a_kerashub_name(preset, tmp_path, monkeypatch):
    # KerasHub looks for its own names first; the user sees a folder of that name and means it.
    monkeypatch.chdir(tmp_path)
    shutil.copytree(preset, tmp_path / "resnet_50_imagenet")
    assert load_source("preset:resnet_50_imagenet").feature_width == 64


def test_image_size_can_be_chosen(preset, tmp_path):
    assert load_source(f"preset:{preset}", 56).image_size == (56, 56)
    assert_close(
        features_of(load_source(f"preset:{preset}", 56), sample_images(56)), by_hand(preset, sample_images(56)), 1e-5
    )
    # A backbone that was saved for one size is built anew for another; its weights do not depend on it.
    fixed = save_preset(tmp_path / "fixed", tiny_resnet((40, 40, 3)))
    assert load_source(f"preset:{fixed}").extractor.input_shape == (None, 40, 40, 3)
    source = load_source(f"preset:{fixed}", 56)
    assert source.backbone.input_shape == (None, 56, 56, 3)
    source = load_source("keras:MobileNet(alpha=0.25,size=32)@random", 64)
    assert source.image_size == (64, 64)
    assert source.extractor.input_shape == (None, 64, 64, 3)


def test_image_size_of_a_preset_need_not_be_square(tmp_path):
    folder = save_preset(tmp_path / "preset", image_size=(24, 40))
    source = load_source(f"preset:{folder}")
    assert source.image_size == (24, 40)
    images = np.ascontiguousarray(sample_images(40)[:, :24])
    assert_close(features_of(source, images), by_hand(folder, images), 1e-5)


def test_vision_transformer(tmp_path):
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32
    )
    shake(backbone)
    backbone.save_to_preset(tmp_path)
    keras_hub.layers.ViTImageConverter(image_size=(32, 32), scale=1 / 127.5, offset=-1.0).save_to_preset(tmp_path)
    source = load_source(f"preset:{tmp_path}")
    assert source.feature_width == 16
    assert_close(features_of(source, sample_images(32)), by_hand(tmp_path, sample_images(32)), 1e-5)
    # It has learned one position for each patch: another size is refused, and the size is named as the reason.
    said = refusal(f"preset:{tmp_path}", 64)
    assert "images of 32 x 32 pixels only" in said
    assert "--image-size" in said


def test_random_weights_differ_and_keep_the_preprocessing(preset):
    images = sample_images(40)
    trained = load_source(f"preset:{preset}")
    for random in (load_source(f"preset:{preset}", random_weights=True), load_source(f"preset:{preset}@random")):
        assert random.image_size == trained.image_size
        assert np.abs(features_of(random, images) - features_of(trained, images)).max() > 1e-2
        assert random.card["data"] == "none"
        assert random.fingerprint() != trained.fingerprint()
        before, after = (
            keras.Model(s.extractor.input, s.extractor.get_layer("preprocessing").output) for s in (trained, random)
        )
        np.testing.assert_array_equal(before(images), after(images))
    again = load_source(f"preset:{preset}@random")
    assert again.fingerprint() != random.fingerprint()  # each has its own start


def test_fingerprint_does_not_depend_on_what_was_built_before(preset):
    # Keras numbers made-up names through the whole process; stored features must be found again all the same.
    assert load_source(f"preset:{preset}").fingerprint() == load_source(f"preset:{preset}").fingerprint()
    prints, names = [], []
    for _ in range(2):
        source = load_source("keras:MobileNetV3Small(size=32)@random")
        names.append([layer.name for layer in source.backbone.layers])
        for weight in source.backbone.weights:
            weight.assign(np.full(weight.shape, 0.5))
        prints.append(source.fingerprint())
    assert prints[0] == prints[1]
    assert names[0] != names[1]


def test_fingerprint_depends_on_preprocessing(preset, tmp_path):
    folder = shutil.copytree(preset, tmp_path / "preset")
    file = folder / "image_converter.json"
    file.write_text(file.read_text().replace(str(OFFSET[0]), "-2.2"))
    assert load_source(f"preset:{folder}").fingerprint() != load_source(f"preset:{preset}").fingerprint()


@pytest.mark.parametrize("kind", ["preset", "keras"])
def test_features_are_float32_under_mixed_precision(kind, preset):
    text = f"preset:{preset}" if kind == "preset" else "keras:MobileNet(alpha=0.25,size=40)@random"
    exact = load_source(text)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = load_source(text)
    finally:
        keras.config.set_dtype_policy(before)
    mixed.extractor.set_weights(exact.extractor.get_weights())
    assert mixed.backbone.compute_dtype == "bfloat16"
    assert {weight.dtype for weight in mixed.extractor.weights} == {"float32"}
    features = mixed.extractor(sample_images(40), training=False)
    assert features.dtype == "float32"
    assert mixed.extractor.output.dtype == "float32"
    # The preprocessing is exact: only the backbone computes in 8 bits of mantissa.
    assert mixed.extractor.get_layer("preprocessing").compute_dtype == "float32"
    assert_close(features.numpy(), features_of(exact, sample_images(40)), 0.05)


def test_bundled_models_load():
    names = sorted(path.parent.name for path in BUNDLED_FOLDER.glob("*/image_converter.json"))
    assert names
    for name in [*names, "mobilenet_v2"]:  # which is of keras.applications, and no preset
        source = load_source(f"bundled:{name}")
        features = features_of(source, sample_images(source.image_size[0]))
        assert np.isfinite(features).all()
        assert np.abs(features[1] - features[4]).max() > 1e-3  # white and grey
        assert {"spec", "origin", "licence", "data"} <= set(source.card)


@pytest.mark.parametrize(
    ("text", "asked", "shorter_side", "size"),
    [
        ("bundled:mobilenet_v2", None, 64, 160),
        ("bundled:mobilenet_v2", None, 65, 224),
        ("bundled:mobilenet_v2", None, 4000, 224),
        ("mobilenet_v2", None, 192, 224),
        ("mobilenet_v2", 96, 192, 96),
        ("bundled:mobilenet_v2", None, None, 160),
        ("bundled:resnet_mini", None, 4000, 64),
        ("keras:MobileNet(alpha=0.25,size=32)@random", None, 4000, 32),
    ],
)
def test_the_input_size_fits_the_images_where_the_source_has_several(text, asked, shorter_side, size):
    assert load_fitting(text, asked, shorter_side).image_size == (size, size)


def test_the_sizes_of_the_bundled_mobilenet_are_the_measured_ones():
    """On training splits, none of which is reported: benchmarks/choose_image_size.py."""
    rows = json.loads((BENCHMARKS / "results" / "image_size_choice.json").read_text("utf-8"))["rows"].values()
    large = [row["by_size"] for row in rows if row["shorter_side"] * ENLARGE > 160]
    small = [row["by_size"] for row in rows if row["shorter_side"] * ENLARGE <= 160]
    assert len(large) >= 3 and all(row["224"]["accuracy"] >= row["160"]["accuracy"] for row in large)
    # 160 pixels need half of the computation of 224, for a point of accuracy, which 500 images hardly resolve.
    assert len(small) >= 2 and all(row["160"]["accuracy"] >= row["224"]["accuracy"] - 0.015 for row in small)
    assert sum(row["160"]["accuracy"] - row["224"]["accuracy"] for row in small) > 0


def test_the_bundled_mobilenet_has_the_weights_of_google_up_to_the_rounding_of_its_kernels(shared_data):
    """Most kernels are stored as float16, exactly rounded: each weight is off by up to 2^-11 of itself, 0.05 %.

    BatchNorm after each of 52 layers divides by standard deviations far below 1, which amplifies that, above all the
    rounding of the depthwise kernels, which therefore stay float32. What is tolerated of the features of photos, 1.5 %,
    is a small fraction of the distance between any two of them.
    """
    file = shared_data / "weights" / "mobilenet_imagenet_keras" / "mobilenet_v2_1.0_224_notop.weights.h5"
    bundled = load_source("bundled:mobilenet_v2")
    exact = load_source(f"keras:MobileNetV2@{file}", bundled.image_size)
    for ours, theirs in zip(bundled.backbone.weights, exact.backbone.weights, strict=True):
        half = len(theirs.shape) > 1 and "depthwise" not in theirs.path
        rounded = theirs.numpy().astype("float16").astype("float32") if half else theirs.numpy()
        np.testing.assert_array_equal(ours.numpy(), rounded)
    photos = sorted((Path(__file__).parents[2] / "common/images/demo_clothing/test").glob("*/*.jpg"))[::20]
    images = next(iter(image_batches(read_images([str(path) for path in photos], bundled.image_size), 10)))
    wanted = features_of(exact, images)
    scale = np.linalg.norm(wanted, axis=1)
    assert 0 < (np.linalg.norm(features_of(bundled, images) - wanted, axis=1) / scale).max() < 0.015
    between = np.linalg.norm(wanted[:, None] - wanted[None], axis=2) / scale
    assert between[~np.eye(10, dtype=bool)].min() > 0.3
    assert bundled.card["licence"] == "Apache-2.0"


def test_safetensors_that_lack_a_tensor_are_refused(tmp_path):
    spec = "keras:MobileNet(alpha=0.25,size=32)"
    backbone = load_source(f"{spec}@random").backbone
    tensors = {variable.path: variable.numpy() for variable in backbone.weights}
    save_file(tensors, tmp_path / "whole.safetensors")
    whole = load_source(f"{spec}@{tmp_path / 'whole.safetensors'}")
    np.testing.assert_array_equal(whole.backbone.get_weights()[0], backbone.get_weights()[0])
    del tensors["conv1/kernel"]
    save_file(tensors, tmp_path / "short.safetensors")
    said = refusal(f"{spec}@{tmp_path / 'short.safetensors'}")
    assert "does not fit MobileNet." in said and "it lacks ['conv1/kernel']" in said and "short.safetensors" in said
    (tmp_path / "broken.safetensors").write_bytes(b"not one at all")
    assert "does not fit MobileNet." in refusal(f"{spec}@{tmp_path / 'broken.safetensors'}")


# --- presets that are refused ---------------------------------------------------------------------------


def test_preset_without_image_converter_is_refused(preset, tmp_path):
    folder = shutil.copytree(preset, tmp_path / "preset")
    (folder / "image_converter.json").unlink()
    said = refusal(f"preset:{folder}")
    assert "does not specify the preprocessing of its images" in said
    assert "image_converter.json" in said


def test_text_model_is_refused(tmp_path):
    keras_hub.models.BertBackbone(
        vocabulary_size=10, num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=4
    ).save_to_preset(tmp_path)
    said = refusal(f"preset:{tmp_path}")
    assert "not an image model" in said
    assert "BertBackbone" in said


def test_grey_image_model_is_refused(tmp_path):
    # TensorFlow would take an RGB image as three groups of channels, and fail much later.
    said = refusal(f"preset:{save_preset(tmp_path / 'grey', tiny_resnet((40, 40, 1)), scale=1.0, offset=0.0)}")
    assert "not a model of RGB images" in said
    assert "(None, 40, 40, 1)" in said


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", "{}", "Unrecognized format"),
        ("config.json", "{ half", "Expecting property name"),
        ("image_converter.json", "{ half", "Expecting property name"),
        ("model.weights.h5", None, "model.weights.h5"),
        ("model.weights.h5", "text", "file signature not found"),
    ],
)
def test_broken_preset_folders_are_refused(file, content, words, preset, tmp_path):
    folder = shutil.copytree(preset, tmp_path / "preset")
    (folder / file).unlink() if content is None else (folder / file).write_text(content)
    said = refusal(f"preset:{folder}")
    assert "The preset cannot be loaded" in said
    assert f"Received: preset:{folder}." in said
    assert words in said


def test_truncated_preset_weights_are_refused(preset, tmp_path):
    folder = shutil.copytree(preset, tmp_path / "preset")
    whole = (folder / "model.weights.h5").read_bytes()
    (folder / "model.weights.h5").write_bytes(whole[: len(whole) // 2])
    assert "truncated file" in refusal(f"preset:{folder}")


def offline_hugging_face(**_):
    from huggingface_hub.errors import LocalEntryNotFoundError

    raise LocalEntryNotFoundError("An error happened while trying to locate the file on the Hub.")


def offline_kaggle(*_, **__):
    import requests

    raise requests.exceptions.ConnectionError(
        "HTTPSConnectionPool(host='api.kaggle.com', port=443): Max retries exceeded with url: /v1/models"
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf://timm/resnet18.a1_in1k", "hf download OWNER/NAME --local-dir FOLDER"),
        ("resnet_50_imagenet", "api.kaggle.com"),
        ("kaggle://keras/resnetv1/keras/resnet_50_imagenet", "api.kaggle.com"),
        ("resnet_5O_imagenet", "Did you mean 'resnet_50_imagenet'?"),
    ],
)
def test_presets_without_network(name, words, monkeypatch):
    import huggingface_hub
    import kagglehub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline_hugging_face)
    monkeypatch.setattr(kagglehub, "model_download", offline_kaggle)
    said = refusal(f"preset:{name}")
    assert words in said
    assert f"Received: preset:{name}." in said
    assert "Without network" in said
    assert "--source preset:FOLDER" in said


@pytest.mark.parametrize("place", ["backbone", "backbone_argument", "registered", "converter", "converter_lambda"])
def test_a_preset_cannot_run_code(place, preset, tmp_path, monkeypatch):
    # Presets come from strangers. Neither a foreign module nor pickled code in a configuration may be run.
    (tmp_path / "foreign_module.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'executed')!r}).touch()\n"
        "class Evil:\n    @classmethod\n    def from_config(cls, config):\n        return cls()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    foreign = {"module": "foreign_module", "class_name": "Evil", "config": {}, "registered_name": "foreign>Evil"}
    folder = shutil.copytree(preset, tmp_path / "preset")
    config = json.loads((folder / "config.json").read_text())
    converter = json.loads((folder / "image_converter.json").read_text())
    if place == "backbone":
        config = foreign
    elif place == "backbone_argument":
        config["config"]["image_shape"] = foreign
    elif place == "registered":  # a good name before a foreign class
        config |= {"module": "foreign_module", "class_name": "Evil"}
    elif place == "converter":
        converter = foreign
    else:
        marker = str(tmp_path / "executed")
        converter = keras.saving.serialize_keras_object(keras.layers.Lambda(lambda x: (open(marker, "w"), x)[1]))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "image_converter.json").write_text(json.dumps(converter))
    if place == "registered":  # Keras goes by the registered name and ignores the rest
        assert type(load_source(f"preset:{folder}").backbone) is keras_hub.models.ResNetBackbone
    else:
        assert "The preset cannot be loaded" in refusal(f"preset:{folder}")
    assert not (tmp_path / "executed").exists()


def test_converter_of_another_kind_is_refused(preset, tmp_path):
    folder = shutil.copytree(preset, tmp_path / "preset")
    dense = keras.saving.serialize_keras_object(keras.layers.Dense(3))
    (folder / "image_converter.json").write_text(json.dumps(dense))
    assert "The files describe a Dense" in refusal(f"preset:{folder}")
