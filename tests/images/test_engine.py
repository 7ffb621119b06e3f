"""The engine of the frozen pass: TensorFlow unless another one agrees and is faster."""

import importlib.util

import keras
import numpy as np
import pytest
from PIL import Image

from common.images import engine
from common.images.engine import choose_bfloat16, choose_engine
from common.images.pixels import read_images
from common.images.sources import Source, load_source


@pytest.fixture
def source() -> Source:
    keras.utils.set_random_seed(0)
    pixels = keras.Input((16, 16, 3))
    hidden = keras.layers.Conv2D(6, 3, activation="relu")(keras.layers.Rescaling(1 / 255)(pixels))
    extractor = keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(hidden))
    return Source("test", extractor, extractor, (16, 16), {})


@pytest.fixture
def pixels(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    return read_images(sorted(map(str, tmp_path.glob("*.png"))), (16, 16))


def test_little_work_is_not_worth_another_engine(source, pixels, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_in_openvino", lambda _: pytest.fail("was converted"))
    chosen = choose_engine(source, pixels, 100, tmp_path / "kept.json")
    assert chosen.name == "tensorflow" and "take less than 60 s" in chosen.reason and chosen.agreement is None
    assert set(chosen.report()) == {"name", "reason", "images_per_second", "agreement"}


def broken(_):
    raise RuntimeError("no such instruction\nand more")


@pytest.mark.parametrize(
    ("convert", "said"),
    [
        (broken, "openvino cannot run this network here: no such instruction"),
        (lambda source: lambda images: source.forward(images).numpy() + 1, "the features of openvino differ"),
        (lambda source: lambda images: source.forward(images).numpy() * np.nan, "the features of openvino differ"),
    ],
)
def test_an_engine_that_fails_or_differs_is_not_used(source, pixels, tmp_path, monkeypatch, capsys, convert, said):
    monkeypatch.setattr(engine, "_in_openvino", convert)
    chosen = choose_engine(source, pixels, 10, tmp_path / "kept.json", worth=0)
    assert chosen.name == "tensorflow" and chosen.reason == said and said in capsys.readouterr().out
    np.testing.assert_allclose(chosen.forward(np.ones((2, 16, 16, 3), "float32")).shape, (2, 6))


def test_the_faster_one_of_two_that_agree_is_used_and_kept(source, pixels, tmp_path, monkeypatch):
    seconds = iter([1.0, 0.5, 1.0, 2.0])  # of TensorFlow and the other one, twice
    monkeypatch.setattr(engine, "median_seconds", lambda _: next(seconds))
    monkeypatch.setattr(engine, "_in_openvino", lambda source: lambda images: source.forward(images).numpy())
    files = tmp_path / "a.json", tmp_path / "b.json"
    faster, slower = (choose_engine(source, pixels, 10, file, worth=0) for file in files)
    assert (faster.name, slower.name) == ("openvino", "tensorflow") and faster.agreement == pytest.approx(1)
    assert faster.images_per_second == {"tensorflow": 5.0, "openvino": 10.0}
    again = [choose_engine(source, pixels, 10, file, worth=0) for file in files]  # nothing is timed: `next` would fail
    assert [one.report() for one in again] == [faster.report(), slower.report()]
    monkeypatch.setattr(engine, "_in_openvino", broken)  # removed since
    monkeypatch.setattr(engine, "median_seconds", lambda _: 1.0)
    assert choose_engine(source, pixels, 10, files[0], worth=0).name == "tensorflow"


@pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="openvino is not installed")
def test_openvino_computes_the_same_features(source, pixels):
    forward = engine._in_openvino(source)
    for count in (1, 5):  # any batch
        some = np.random.default_rng(1).uniform(0, 255, (count, 16, 16, 3)).astype("float32")
        np.testing.assert_allclose(forward(some), source.forward(some), rtol=1e-4, atol=1e-5)


def test_bfloat16_is_used_only_where_it_agrees(tmp_path, pixels, monkeypatch, capsys):
    sharp = load_source("bundled:resnet_mini", 32)
    files = read_images(list(pixels.paths), (32, 32))
    chosen = choose_bfloat16(sharp, files)
    assert chosen.name == "tensorflow, bfloat16" and 0.999 <= chosen.agreement < 1
    assert "features in bfloat16: the smallest cosine similarity of both is 0.999" in capsys.readouterr().out
    assert keras.config.dtype_policy().name == "float32"

    class Rough(keras.layers.Layer):
        """Loses small differences on a large offset, in bfloat16."""

        def call(self, pixels):
            offset = keras.ops.cast(1000.0, self.compute_dtype)
            return (keras.ops.mean(keras.ops.cast(pixels, self.compute_dtype), axis=(1, 2)) / 255 + offset) - offset

    def build(dtype: str) -> Source:
        inputs = keras.Input((16, 16, 3))
        extractor = keras.Model(inputs, keras.layers.Activation("linear", dtype="float32")(Rough(dtype=dtype)(inputs)))
        return Source("rough", extractor, extractor, (16, 16), {})

    monkeypatch.setattr(engine, "_in_bfloat16", lambda source: build("mixed_bfloat16"))
    rough = build("float32")
    chosen = choose_bfloat16(rough, pixels)
    assert chosen.name == "tensorflow, float32" and chosen.forward is rough.forward
    assert "features in float32" in capsys.readouterr().out


@pytest.mark.parametrize(("times", "said"), [(0.1, "take 10.0 times as long in bfloat16"), (0.97, "")])
def test_bfloat16_that_slows_down_is_told(times, said, monkeypatch, capsys):
    monkeypatch.setattr(engine, "speedup_of_bfloat16", lambda: times)
    engine.warn_of_slow_bfloat16()
    told = capsys.readouterr().out
    assert said in told and ("without --mixed-precision" in told) == bool(said)
