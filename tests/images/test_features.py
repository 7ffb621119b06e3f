"""Features: run once and kept, and recomputed when anything changed."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from common import progress
from common.images.batches import image_batches, transform_images
from common.images.dataset import Examples, ImageSet
from common.images.features import extract_features, refit_head
from common.images.pixels import Pixels, read_images
from common.images.sources import Source
from common.images.views import view_transforms
from common.linear_head import REFIT_PENALTY, fit_on_both

WIDTH = 6


def make_source(seed: int = 0) -> Source:
    """A source of two layers, with random weights that follow from the seed."""
    keras.utils.set_random_seed(seed)
    pixels = keras.Input((16, 16, 3), name="pixels")
    # Named, since the names that Keras makes up count what this process built, and the source is part of the key.
    convolution = keras.layers.Conv2D(WIDTH, 3, activation="gelu", name="convolution")
    pool = keras.layers.GlobalAveragePooling2D(name="pool")
    extractor = keras.Model(
        pixels, pool(convolution(keras.layers.Rescaling(1 / 255, name="scale")(pixels))), name="net"
    )
    return Source("test", extractor, extractor, (16, 16), {})


@pytest.fixture
def source() -> Source:
    """The source of seed 0."""
    return make_source()


@pytest.fixture
def pixels(paths) -> Pixels:
    """The same images at the size of the source."""
    return read_images(paths, (16, 16))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where features are kept; made by extract_features."""
    return tmp_path / "run" / "features"


# --- extraction -------------------------------------------------------------------------------------------


def test_features_are_what_the_extractor_says(source, pixels, cache):
    extracted = extract_features(source, pixels, cache, batch_size=4)
    assert isinstance(extracted, np.memmap) and not extracted.flags.writeable
    assert extracted.shape == (1, 10, WIDTH) and extracted.dtype == np.float32
    images = np.concatenate(list(image_batches(pixels, 10).as_numpy_iterator()))
    np.testing.assert_allclose(extracted[0], source.extractor(images, training=False), atol=1e-6)
    assert extracted.std(axis=1).min() > 0


def test_batch_normalisation_and_dropout_rest_during_extraction(pixels, cache):
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(keras.layers.Conv2D(WIDTH, 3)(inputs)))
    extractor = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    before = [weight.numpy().copy() for weight in extractor.weights]
    extracted = extract_features(Source("test", extractor, extractor, (16, 16), {}), pixels, cache)
    np.testing.assert_allclose(
        extracted[0], extractor.predict(image_batches(pixels, 10), verbose=0), atol=2e-4, rtol=1e-4
    )
    for weight, old in zip(extractor.weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_another_network_can_see_the_same_views(source, pixels, cache):
    views = {"augment": ("crop", "flip"), "views": 3, "seed": 4, "batch_size": 4}
    extracted = extract_features(source, pixels, cache, **views)
    images = np.concatenate(list(image_batches(pixels, 10).as_numpy_iterator()))
    transforms = view_transforms(10, (16, 16), **views)
    assert transforms.shape == (3, 10, 8)
    for view in range(3):
        seen = transform_images(images, transforms[view])
        np.testing.assert_allclose(extracted[view], source.extractor(seen, training=False), atol=1e-5)
    assert not np.allclose(extracted[1], extracted[0], atol=1e-2)
    half = view_transforms(10, (8, 8), **views)  # the same part of each image at another size
    np.testing.assert_allclose(half[:, :, [0, 1, 3, 4]], transforms[:, :, [0, 1, 3, 4]])
    centre = 7.5 * transforms[:, :, 0] + transforms[:, :, 2], 3.5 * half[:, :, 0] + half[:, :, 2]
    np.testing.assert_allclose(centre[1] / 3.5 - 1, (centre[0] / 7.5 - 1), atol=1e-5)


class MustNotRun(keras.Model):
    """Stands in for an extractor whose answers are already on disk."""

    def call(self, inputs, training=False):
        raise AssertionError("the backbone ran again")


def test_the_second_call_reads_the_cache(source, pixels, cache, monkeypatch):
    first = extract_features(source, pixels, cache)
    (file,) = cache.iterdir()
    changed = file.stat().st_mtime_ns
    fingerprint = source.fingerprint()
    monkeypatch.setattr(Source, "fingerprint", lambda self: fingerprint)
    asleep = Source("test", MustNotRun(), source.backbone, (16, 16), {})
    np.testing.assert_array_equal(extract_features(asleep, pixels, cache), first)
    assert [file.stat().st_mtime_ns] == [path.stat().st_mtime_ns for path in cache.iterdir()] == [changed]
    with pytest.raises(AssertionError, match="ran again"):  # the stand-in does what it says
        monkeypatch.setattr(Source, "feature_width", WIDTH)
        extract_features(asleep, pixels.take(slice(5)), cache)


def test_a_killed_extraction_is_done_again(source, pixels, cache, monkeypatch):
    class Killed(BaseException):
        pass

    def die(self, done, note=""):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(progress.ProgressLine, "update", die)
        extract_features(source, pixels, cache, batch_size=2)
    (partial,) = cache.iterdir()
    assert partial.name.endswith(".partial.npy")
    partial.write_bytes(partial.read_bytes()[:100])  # not even a whole file
    again = extract_features(source, pixels, cache, batch_size=2)
    (file,) = cache.iterdir()
    assert not file.name.endswith(".partial.npy")
    images = np.concatenate(list(image_batches(pixels, 10).as_numpy_iterator()))
    np.testing.assert_allclose(again[0], source.extractor(images), atol=1e-6)


def test_whatever_changes_the_features_changes_the_key(source, paths, pixels, cache):
    def files() -> int:
        return len(list(cache.iterdir()))

    extract_features(source, pixels, cache)
    extract_features(source, pixels, cache, seed=7, augment=("flip",))  # of no effect on a single plain view
    assert files() == 1
    calls = [
        lambda: extract_features(make_source(1), pixels, cache),
        lambda: extract_features(source, read_images(paths, (16, 16), "squash"), cache),
        lambda: extract_features(source, pixels.take(slice(None, None, -1)), cache),
        lambda: extract_features(source, pixels.take(slice(-1)), cache),
        lambda: extract_features(source, pixels, cache, views=2, augment=("flip",)),
        lambda: extract_features(source, pixels, cache, views=2, augment=("crop",)),
        lambda: extract_features(source, pixels, cache, views=2, augment=("crop",), seed=1),
        lambda: extract_features(source, pixels, cache, views=3, augment=("crop",)),
    ]
    for number, call in enumerate(calls, start=2):
        call()
        assert files() == number
    for call in calls:
        call()
    assert files() == len(calls) + 1
    Image.new("RGB", (9, 9), (255, 0, 0)).save(paths[0])  # another image under the same name
    np.testing.assert_allclose(
        extract_features(source, read_images(paths, (16, 16)), cache)[0, 0],
        source.extractor(np.full((1, 16, 16, 3), (255.0, 0, 0)))[0],
        atol=1e-5,
    )
    assert files() == len(calls) + 2


def test_views_are_clean_first_then_augmented_and_reproducible(source, pixels, tmp_path):
    settings = {"views": 3, "augment": ("crop", "color"), "batch_size": 4, "seed": 3}
    views = extract_features(source, pixels, tmp_path / "a", **settings)
    assert views.shape == (3, 10, WIDTH)
    np.testing.assert_array_equal(views[0], extract_features(source, pixels, tmp_path / "a", batch_size=4)[0])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (np.abs(views[one] - views[other]).max(axis=1) > 1e-4).all()  # each image
    np.testing.assert_array_equal(extract_features(source, pixels, tmp_path / "b", **settings), views)
    other_seed = extract_features(source, pixels, tmp_path / "b", **settings | {"seed": 4})
    np.testing.assert_array_equal(other_seed[0], views[0])
    assert not np.array_equal(other_seed[1], views[1])


# --- the head on a fine-tuned source ----------------------------------------------------------------------


@pytest.mark.parametrize(("given", "used"), [(1e-4, REFIT_PENALTY), (3.0, 3.0)])
def test_the_head_is_fitted_anew_on_what_the_source_says_now(source, pixels, given, used, tmp_path):
    labels = np.arange(10) % 2
    train, val = (
        Examples(pixels.take(own), labels[own], None, groups)
        for own, groups in ((slice(0, 6), None), (slice(6, 10), np.array([0, 0, 1, 1])))
    )
    data = ImageSet("test", ("a", "b"), train, val, test=val)
    weights = {"sample_weights": np.ones(6, "float32"), "val_weights": np.ones(4, "float32")}
    head, expected = (keras.layers.Dense(2, activation="softmax") for _ in range(2))
    for layer in (head, expected):
        layer.build((None, WIDTH))
    source.extractor.set_weights([weight * 3 for weight in source.extractor.get_weights()])  # fine-tuned
    before = source.extractor.get_weights()
    found = refit_head(head, source, data, tmp_path, penalty=given, **weights)
    groups = data.val.groups
    train, val = (
        np.concatenate([source.forward(images) for images in image_batches(part, 4)])
        for part in (pixels.take(slice(6)), pixels.take(slice(6, None)))
    )
    wanted = fit_on_both(expected, train[None], labels[:6], val, labels[6:], penalty=used, val_groups=groups, **weights)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    for ours, theirs in zip(head.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-3)
    for now, then in zip(source.extractor.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
