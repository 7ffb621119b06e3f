"""Features: run once and kept, recomputed when anything changed, and a head that fits the whole model."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from common import features
from common.data.images import image_batches
from common.features import (
    PENALTIES,
    extract_features,
    faster_if_it_agrees,
    fit_linear_head,
    linear_head_weights,
    mean_and_std,
)
from common.sources import Source, load_source
from common.training import balanced_class_weights

WIDTH, CLASSES = 6, 3


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
def paths(tmp_path: Path) -> list[str]:
    """Ten pictures, wider than high."""
    rng, files = np.random.default_rng(0), [tmp_path / f"{number}.png" for number in range(10)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(file)
    return [str(file) for file in files]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where features are kept; made by extract_features."""
    return tmp_path / "run" / "features"


# --- extraction -------------------------------------------------------------------------------------------


def test_features_are_what_the_extractor_says(source, paths, cache):
    extracted = extract_features(source, paths, cache, batch_size=4)
    assert isinstance(extracted, np.memmap) and not extracted.flags.writeable
    assert extracted.shape == (1, 10, WIDTH) and extracted.dtype == np.float32
    pixels = np.concatenate(list(image_batches(paths, (16, 16), 10).as_numpy_iterator()))
    np.testing.assert_allclose(extracted[0], source.extractor(pixels, training=False), atol=1e-6)
    assert extracted.std(axis=1).min() > 0


def test_batch_normalisation_and_dropout_rest_during_extraction(paths, cache):
    pixels = keras.Input((16, 16, 3))
    x = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(keras.layers.Conv2D(WIDTH, 3)(pixels)))
    extractor = keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(x))
    before = [weight.numpy().copy() for weight in extractor.weights]
    extracted = extract_features(Source("test", extractor, extractor, (16, 16), {}), paths, cache)
    np.testing.assert_allclose(
        extracted[0], extractor.predict(image_batches(paths, (16, 16), 10), verbose=0), atol=2e-4, rtol=1e-4
    )
    for weight, old in zip(extractor.weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)


class MustNotRun(keras.Model):
    """Stands in for an extractor whose answers are already on disk."""

    def call(self, inputs, training=False):
        raise AssertionError("the backbone ran again")


def test_the_second_call_reads_the_cache(source, paths, cache, monkeypatch):
    first = extract_features(source, paths, cache)
    (file,) = cache.iterdir()
    changed = file.stat().st_mtime_ns
    fingerprint = source.fingerprint()
    monkeypatch.setattr(Source, "fingerprint", lambda self: fingerprint)
    asleep = Source("test", MustNotRun(), source.backbone, (16, 16), {})
    np.testing.assert_array_equal(extract_features(asleep, paths, cache), first)
    assert [file.stat().st_mtime_ns] == [path.stat().st_mtime_ns for path in cache.iterdir()] == [changed]
    with pytest.raises(AssertionError, match="ran again"):  # the stand-in does what it says
        monkeypatch.setattr(Source, "feature_width", WIDTH)
        extract_features(asleep, paths[:5], cache)


def test_a_killed_extraction_is_done_again(source, paths, cache, monkeypatch):
    class Killed(BaseException):
        pass

    def die(self, done, note=""):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(features.ProgressLine, "update", die)
        extract_features(source, paths, cache, batch_size=2)
    (partial,) = cache.iterdir()
    assert partial.name.endswith(".partial.npy")
    partial.write_bytes(partial.read_bytes()[:100])  # not even a whole file
    again = extract_features(source, paths, cache, batch_size=2)
    (file,) = cache.iterdir()
    assert not file.name.endswith(".partial.npy")
    pixels = np.concatenate(list(image_batches(paths, (16, 16), 10).as_numpy_iterator()))
    np.testing.assert_allclose(again[0], source.extractor(pixels), atol=1e-6)


def test_whatever_changes_the_features_changes_the_key(source, paths, cache):
    def files() -> int:
        return len(list(cache.iterdir()))

    extract_features(source, paths, cache)
    extract_features(source, paths, cache, seed=7, augment=("flip",))  # of no effect on a single plain view
    assert files() == 1
    calls = [
        lambda: extract_features(make_source(1), paths, cache),
        lambda: extract_features(source, paths, cache, resize="squash"),
        lambda: extract_features(source, paths[::-1], cache),
        lambda: extract_features(source, paths[:-1], cache),
        lambda: extract_features(source, paths, cache, views=2, augment=("flip",)),
        lambda: extract_features(source, paths, cache, views=2, augment=("crop",)),
        lambda: extract_features(source, paths, cache, views=2, augment=("crop",), seed=1),
        lambda: extract_features(source, paths, cache, views=3, augment=("crop",)),
    ]
    for number, call in enumerate(calls, start=2):
        call()
        assert files() == number
    for call in calls:
        call()
    assert files() == len(calls) + 1
    Image.new("RGB", (9, 9), (255, 0, 0)).save(paths[0])  # another picture under the same name
    np.testing.assert_allclose(
        extract_features(source, paths, cache)[0, 0],
        source.extractor(np.full((1, 16, 16, 3), (255.0, 0, 0)))[0],
        atol=1e-5,
    )
    assert files() == len(calls) + 2


def test_views_are_clean_first_then_augmented_and_reproducible(source, paths, tmp_path):
    settings = {"views": 3, "augment": ("crop", "color"), "batch_size": 4, "seed": 3}
    views = extract_features(source, paths, tmp_path / "a", **settings)
    assert views.shape == (3, 10, WIDTH)
    np.testing.assert_array_equal(views[0], extract_features(source, paths, tmp_path / "a", batch_size=4)[0])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (np.abs(views[one] - views[other]).max(axis=1) > 1e-4).all()  # each picture
    np.testing.assert_array_equal(extract_features(source, paths, tmp_path / "b", **settings), views)
    other_seed = extract_features(source, paths, tmp_path / "b", **settings | {"seed": 4})
    np.testing.assert_array_equal(other_seed[0], views[0])
    assert not np.array_equal(other_seed[1], views[1])


# --- standardisation and batches --------------------------------------------------------------------------


def test_mean_and_std_read_in_pieces_are_numpys():
    values = np.random.default_rng(0).normal(3, [0.01, 1, 100], (2, 103, 3)).astype("float32")
    mean, std = mean_and_std(values, chunk=10)
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean, values.reshape(-1, 3).astype("float64").mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(std, values.reshape(-1, 3).astype("float64").std(axis=0), rtol=1e-5)


@pytest.mark.parametrize("level", [0.0, 0.1, 300.7, -12345.678])
def test_a_feature_that_never_changes_has_std_1(level):
    # The sums of a large constant cancel only up to rounding; what is left must not be divided by.
    values = np.random.default_rng(0).normal(size=(1, 5000, 2)).astype("float32")
    values[..., 0] = level
    assert mean_and_std(values)[1][0] == 1
    assert mean_and_std(values[..., :1])[1] == 1


def test_small_features_are_no_constants():
    values = np.random.default_rng(0).normal(1e-7, 1e-8, (1, 1000, 4)).astype("float32")
    np.testing.assert_allclose(mean_and_std(values)[1], values[0].std(axis=0), rtol=1e-3)


# --- bfloat16 ---------------------------------------------------------------------------------------------


def test_bfloat16_is_used_only_where_it_says_the_same(two_classes, capsys):
    paths = sorted(str(path) for path in two_classes.rglob("*.png"))
    source = load_source("bundled:resnet_mini", 32)
    twin = faster_if_it_agrees(source, paths)
    assert twin is not source and twin.backbone.dtype_policy.compute_dtype == "bfloat16"
    assert "features in bfloat16: smallest cosine of both 0.999" in capsys.readouterr().out
    assert keras.config.dtype_policy().name == "float32"

    class Rough(keras.layers.Layer):
        """Loses in bfloat16 what it is there to tell: small differences on a large offset."""

        def call(self, pixels):
            offset = keras.ops.cast(1000.0, self.compute_dtype)
            return (keras.ops.mean(keras.ops.cast(pixels, self.compute_dtype), axis=(1, 2)) / 255 + offset) - offset

    def build(dtype: str) -> Source:
        pixels = keras.Input((32, 32, 3))
        extractor = keras.Model(pixels, keras.layers.Activation("linear", dtype="float32")(Rough(dtype=dtype)(pixels)))
        return Source("rough", extractor, extractor, (32, 32), {})

    rough = build("float32")
    features.in_bfloat16, kept = lambda source: build("mixed_bfloat16"), features.in_bfloat16
    try:
        assert faster_if_it_agrees(rough, paths) is rough
    finally:
        features.in_bfloat16 = kept
    assert "features in float32" in capsys.readouterr().out


# --- the head ---------------------------------------------------------------------------------------------


def head_of(width: int, classes: int = CLASSES) -> keras.layers.Dense:
    """The head of a whole model: a built Dense layer."""
    head = keras.layers.Dense(classes, activation="softmax")
    head.build((None, width))
    return head


def blobs(count: int, distance: float = 3.0, width: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of three classes around three centres, in scales and places that differ from feature to feature."""
    centres = np.random.default_rng(1).normal(size=(CLASSES, width)) * distance
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    rows = (centres[labels] + rng.normal(size=(count, width))) * np.geomspace(0.01, 100, width) + np.arange(width) * 50
    return rows.astype("float32"), labels


def accuracy(head: keras.layers.Dense, rows: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose most probable class is right."""
    return float((np.asarray(head(rows)).argmax(axis=1) == labels).mean())


def test_the_head_learns_a_separable_problem_from_features_of_any_scale():
    (train, train_labels), (val, val_labels) = blobs(200), blobs(200, seed=1)
    head = head_of(8)
    history = fit_linear_head(head, train[None], train_labels, val, val_labels)
    assert accuracy(head, val, val_labels) > 0.95
    assert {row["stage"] for row in history} == {"head"} and 1 <= len(history) <= len(PENALTIES)
    best = min(history, key=lambda row: row["val_cross_entropy"])
    assert best["val_accuracy"] == pytest.approx(accuracy(head, val, val_labels), abs=1e-6)


def test_the_head_is_the_optimum_of_penalised_logistic_regression():
    train, labels = blobs(200, distance=1.0)
    train = np.concatenate([train, np.full((200, 1), 300.7, "float32")], axis=1)  # one that says nothing
    head = head_of(9)
    fit_linear_head(head, train[None], labels, train, labels, penalties=(0.1,))
    mean, std = mean_and_std(train[None])
    rival = LogisticRegression(C=1 / (0.1 * 200), max_iter=1000, tol=1e-8).fit((train - mean) / std, labels)
    expected = rival.predict_proba((train - mean) / std)
    assert np.isfinite(head.get_weights()[0]).all() and 0.2 < expected.max(axis=1).min() < 0.9
    np.testing.assert_allclose(head(train), expected, atol=2e-3)


def test_features_read_in_pieces_give_the_same_head(monkeypatch):
    train, labels = blobs(6000, distance=0.5)
    heads = [head_of(8), head_of(8)]
    fit_linear_head(heads[0], train[None], labels, train, labels, penalties=(0.1, 0.01))
    monkeypatch.setattr(features, "_IN_MEMORY", 0)
    fit_linear_head(heads[1], train[None], labels, train, labels, penalties=(0.1, 0.01))
    for one, other in zip(heads[0].get_weights(), heads[1].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_path_of_penalties_stops_when_validation_gets_worse():
    rng = np.random.default_rng(0)
    train, labels = rng.normal(size=(30, 50)).astype("float32"), rng.integers(0, CLASSES, 30)  # nothing to learn
    val, val_labels = rng.normal(size=(300, 50)).astype("float32"), rng.integers(0, CLASSES, 300)
    head = head_of(50)
    history = fit_linear_head(head, train[None], labels, val, val_labels, patience=2)
    best = int(np.argmin([row["val_cross_entropy"] for row in history]))
    assert len(history) == best + 3 < len(PENALTIES)
    assert [row["penalty"] for row in history] == sorted((row["penalty"] for row in history), reverse=True)
    said = np.asarray(head(val))
    assert -np.log(said[np.arange(300), val_labels]).mean() == pytest.approx(
        history[best]["val_cross_entropy"], rel=1e-4
    )


def test_refitting_is_the_same_regression_on_all_pieces():
    (train, labels), (val, val_labels) = blobs(200, distance=1.0), blobs(60, distance=1.0, seed=1)
    heads = [head_of(8), head_of(8)]
    pieces = [(train, labels, np.ones(200, "float32")), (val, val_labels, np.ones(60, "float32"))]
    heads[0].set_weights(linear_head_weights(pieces, CLASSES, 0.1))
    rows, both = np.concatenate([train, val]), np.concatenate([labels, val_labels])
    fit_linear_head(heads[1], rows[None], both, val, val_labels, penalties=(0.1,))
    np.testing.assert_allclose(heads[0](val), heads[1](val), atol=1e-4)
    only_train = head_of(8)
    fit_linear_head(only_train, train[None], labels, val, val_labels, penalties=(0.1,))
    assert np.abs(np.asarray(heads[0](val)) - np.asarray(only_train(val))).max() > 0.01


def test_class_weights_help_the_rare_class():
    rng = np.random.default_rng(0)
    labels = np.array([0] * 285 + [1] * 15)
    rows = (rng.normal(size=(300, 4)) + labels[:, None] * 0.8).astype("float32")
    found = []
    for weights in (None, balanced_class_weights(labels, 2)[labels]):
        head = head_of(4, 2)
        fit_linear_head(head, rows[None], labels, rows, labels, sample_weights=weights)
        found.append((np.asarray(head(rows)).argmax(axis=1)[labels == 1] == 1).mean())
    assert found[1] > found[0] + 0.2


def test_several_views_are_all_learnt_from():
    # The labels can be told from the second view only: the first is the same for every picture.
    view, labels = blobs(150)
    views = np.stack([np.broadcast_to(view.mean(axis=0), view.shape), view])
    head = head_of(8)
    fit_linear_head(head, views, labels, view, labels)
    assert accuracy(head, view, labels) > 0.95


@pytest.mark.parametrize("count", [150, 600])
def test_the_head_is_as_good_as_scikit_learns_logistic_regression(count):
    # As pooled backbones give them: not negative, often 0, correlated, scales of three decades, classes that overlap.
    rng, width, classes, rank = np.random.default_rng(count), 128, 10, 20
    labels = rng.integers(0, classes, count + 1000)
    hidden = rng.normal(size=(classes, rank))[labels] + 1.5 * rng.normal(size=(count + 1000, rank))
    rows = hidden @ rng.normal(size=(rank, width)) / np.sqrt(rank) + rng.normal(size=width)
    rows = np.maximum(rows + 0.3 * rng.normal(size=rows.shape), 0) * np.geomspace(0.01, 10, width)
    rows = rows.astype("float32")
    train, val = rows[:count], rows[count:]

    scaler = StandardScaler().fit(train)
    rival = max(
        LogisticRegression(C=strength, max_iter=300)
        .fit(scaler.transform(train), labels[:count])
        .score(scaler.transform(val), labels[count:])
        for strength in (0.003, 0.03, 0.3)
    )
    head = head_of(width, classes)
    fit_linear_head(head, train[None], labels[:count], val, labels[count:])
    assert 0.5 < rival < 0.95  # neither hopeless nor easy
    assert accuracy(head, val, labels[count:]) > rival - 0.02
