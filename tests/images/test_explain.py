"""Calibration, heat maps, near-duplicates and suspected labels: each finds what was planted."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps
from sklearn.linear_model import Ridge

from common.classification import calibration
from common.data.splits import SPLITS
from common.images import data_quality, gradcam
from common.images.dataset import load_image_set
from common.images.decoding import thumbnail
from common.images.explain import explain
from common.images.features import extract_features
from common.images.pixels import read_images
from common.images.sources import load_source
from tests.elements import Elements


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


# --- calibration --------------------------------------------------------------------------------------------------


def test_a_model_that_means_what_it_says_has_no_calibration_error():
    rng = np.random.default_rng(0)
    probabilities = softmax(rng.normal(size=(50_000, 3)) * 2)
    labels = np.array([rng.choice(3, p=row / row.sum()) for row in probabilities])
    assert calibration.expected_calibration_error(labels, probabilities) < 0.01
    assert calibration.fit_temperature(labels, probabilities) == pytest.approx(1.0, abs=0.03)


def test_calibration_error_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    labels = np.array([0, 1, 0, 0])  # 0.9 is right in half of the cases, 0.6 always
    assert calibration.expected_calibration_error(labels, probabilities) == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)
    rows = calibration.reliability(labels, probabilities)
    assert [(row["count"], row["accuracy"]) for row in rows] == [(2, 1.0), (2, 0.5)]


def test_the_temperature_is_found_again_and_undone():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 4))
    labels = np.array([rng.choice(4, p=row) for row in softmax(logits)])
    sure = softmax(3 * logits)
    temperature = calibration.fit_temperature(labels, sure)
    assert temperature == pytest.approx(3.0, rel=0.05)
    np.testing.assert_allclose(calibration.apply_temperature(sure, 3.0), softmax(logits), atol=1e-6)
    there = calibration.apply_temperature(sure, temperature)
    np.testing.assert_allclose(calibration.apply_temperature(there, 1 / temperature), sure, atol=1e-5)


def test_divided_logits_are_the_temperature():
    keras.utils.set_random_seed(0)
    head = keras.layers.Dense(3, activation="softmax", bias_initializer="normal")
    features = np.random.default_rng(0).normal(size=(5, 8)).astype("float32")
    before = head(features).numpy()
    calibration.divide_logits(head, 2.5)
    np.testing.assert_allclose(head(features), calibration.apply_temperature(before, 2.5), atol=1e-6)


# --- Grad-CAM -----------------------------------------------------------------------------------------------------


def test_grad_cam_points_at_the_place_that_decides():
    """A net that can only see bright green: the heat must lie where the green patch is."""
    pixels = keras.Input((32, 32, 3))
    green = keras.layers.Conv2D(1, 1, activation="relu", name="green")
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(keras.layers.AveragePooling2D(4)(green(pixels)))
    extractor = keras.Model(pixels, pooled)
    green.set_weights([np.array([-1.0, 1.0, -1.0]).reshape(1, 1, 3, 1), np.zeros(1)])
    head = keras.layers.Dense(2, activation="softmax")
    head.build((None, 1))
    head.set_weights([np.array([[-0.1, 0.1]]), np.zeros(2)])
    images = np.full((2, 32, 32, 3), 100, "float32")
    images[0, 0:8, 24:32], images[1, 24:32, 0:8] = (0, 255, 0), (0, 255, 0)
    heat = gradcam.grad_cam(extractor, head, images, np.array([1, 1]))
    assert heat.shape == (2, 32, 32) and heat.max() == 1 and heat.min() == 0
    assert [np.unravel_index(one.argmax(), one.shape) for one in heat] == [(0, 28), (28, 0)] or (
        heat[0, :8, 24:].mean() > 0.7 and heat[1, 24:, :8].mean() > 0.7
    )
    assert heat[0, 16:].max() < 0.1 and heat[1, :16].max() < 0.1
    assert not gradcam.grad_cam(extractor, head, images, np.array([0, 0])).any()  # green speaks against class 0


def test_vectors_have_no_feature_map():
    inputs = keras.Input((4,))
    assert not gradcam.has_feature_map(keras.Model(inputs, keras.layers.Dense(3)(inputs)))
    assert gradcam.has_feature_map(load_source("bundled:resnet_mini").extractor)


# --- near-duplicates ----------------------------------------------------------------------------------------------


def random_features(rng: np.random.Generator, count: int, width: int = 64) -> np.ndarray:
    return np.maximum(rng.normal(size=(count, width)) + 0.5, 0).astype("float32")


def test_planted_near_duplicates_are_found_and_nothing_else():
    rng = np.random.default_rng(0)
    features = [random_features(rng, count) for count in (300, 40, 60)]
    thumbnails = [rng.integers(0, 256, (count, 256)).astype("uint8") for count in (300, 40, 60)]
    thumbnails[2][5] = np.clip(thumbnails[0][7] * 0.8 + 10, 0, 255)  # darker
    features[2][9] = features[1][3] + 0.02 * rng.normal(size=64)  # mirrored, say
    features[1][8] = features[0][250] * 1.1
    found = data_quality.near_duplicates(thumbnails, features)
    assert {(pair.place, pair.other) for pair in found} == {(345, 7), (349, 303), (308, 250)}
    assert [pair.similarity for pair in found] == sorted((pair.similarity for pair in found), reverse=True)


def test_images_within_one_part_may_repeat():
    rng = np.random.default_rng(0)
    features, thumbnails = random_features(rng, 100), rng.integers(0, 256, (100, 256)).astype("uint8")
    features[4], thumbnails[4] = features[3], thumbnails[3]
    parts = (slice(0, 60), slice(60, 80), slice(80, 100))
    assert not data_quality.near_duplicates([thumbnails[part] for part in parts], [features[part] for part in parts])


def photo(path: Path) -> np.ndarray:
    return thumbnail(tf.io.decode_image(path.read_bytes(), channels=3, expand_animations=False)).numpy()


def test_ten_changed_copies_among_real_photos_are_found(shared_photos, tmp_path):
    """Another size, another compression, another brightness: the ways in which copies get into a collection."""
    photos = shared_photos
    thumbnails = np.stack([photo(path) for path in photos])
    features = load_source("bundled:resnet_mini")
    copies = []
    for number, path in enumerate(photos[:10]):
        image = Image.open(path).convert("RGB")
        if number % 3 == 0:
            image = image.resize((image.width // 2, image.height // 2))
        if number % 3 == 1:
            image = ImageEnhance.Brightness(image).enhance(0.8)
        copies.append(tmp_path / f"{number}.jpg")
        image.save(copies[-1], quality=60)
    pixels = read_images([str(path) for path in [*photos, *copies]], features.image_size)
    said = extract_features(features, pixels, tmp_path / "features")[0]
    half = len(photos) // 2
    parts = [np.arange(half), np.arange(half, len(photos)), len(photos) + np.arange(10)]
    both = np.concatenate([thumbnails, [photo(path) for path in copies]])
    found = data_quality.near_duplicates([both[part] for part in parts], [said[part] for part in parts])
    assert {(pair.place, pair.other) for pair in found} == {(len(photos) + i, i) for i in range(10)}


@pytest.fixture
def shared_photos(shared_data) -> list[Path]:
    """Real photos of the project's shared data, 150 of them."""
    photos = sorted((shared_data / "hymenoptera_data").rglob("*.jpg"))[:150]
    assert len(photos) == 150
    return photos


# --- suspected labels ---------------------------------------------------------------------------------------------


def clusters(rng: np.random.Generator, count: int, classes: int, width: int = 20) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(count) % classes
    centres = rng.normal(size=(classes, width)) * 1.5
    return (centres[labels] + rng.normal(size=(count, width))).astype("float32"), labels


def test_flipped_labels_are_the_first_suspects():
    rng = np.random.default_rng(0)
    features, true = clusters(rng, 600, 4)
    flipped = rng.choice(600, 30, replace=False)
    given = true.copy()
    given[flipped] = (true[flipped] + 1) % 4
    suspects = data_quality.suspected_labels([features[:400], features[400:]], given, 4)
    first = [one.place for one in suspects[:60]]
    assert np.isin(flipped, first).mean() >= 0.9
    named = {one.place: one.suggested for one in suspects}
    assert np.mean([named.get(i) == true[i] for i in flipped]) >= 0.9


def test_clean_labels_are_hardly_suspected():
    features, true = clusters(np.random.default_rng(0), 600, 3)
    suspects = data_quality.suspected_labels([features], true, 3)
    assert sum(one.confident for one in suspects) < 12


@pytest.mark.parametrize("width", [20, 90])  # less and more than examples
def test_the_left_out_answer_is_that_of_a_model_fitted_without_the_example(width, monkeypatch):
    rng = np.random.default_rng(0)
    features, labels = clusters(rng, 60, 3, width)
    monkeypatch.setattr(data_quality.np, "geomspace", lambda *arguments: np.array([0.5]))
    monkeypatch.setattr(data_quality, "fit_temperature", lambda labels, probabilities: 1.0)
    got = data_quality.leave_one_out_probabilities([features[:50], features[50:]], labels, 3)
    scaled = (features - features.mean(0)) / features.std(0)
    targets = np.eye(3)[labels]
    for left_out in (0, 7, 59):
        rest = np.arange(60) != left_out
        model = Ridge(alpha=0.5 * 60).fit(scaled[rest], targets[rest])
        answer = model.predict(scaled[left_out : left_out + 1])
        np.testing.assert_allclose(got[left_out], softmax(10 * answer)[0], atol=1e-3)


# --- all of it ----------------------------------------------------------------------------------------------------


def test_explain_finds_a_planted_copy_and_writes_tables(two_classes, tmp_path):
    copied = sorted((two_classes / "dark").glob("*.png"))[0]
    for part, names in (("train", range(0, 12)), ("val", range(12, 16)), ("test", range(16, 20))):
        for label in ("dark", "hell"):
            (tmp_path / "set" / part / label).mkdir(parents=True)
            for number in names:
                file = two_classes / label / f"bild ü {number}.png"
                (tmp_path / "set" / part / label / file.name).write_bytes(file.read_bytes())
    buffer = io.BytesIO()
    ImageOps.autocontrast(Image.open(copied)).save(buffer, "PNG")
    (tmp_path / "set" / "test" / "dark" / "copy.png").write_bytes(buffer.getvalue())
    data = load_image_set(f"folder:{tmp_path / 'set'}", tmp_path / "out", (32, 32))

    source = load_source("bundled:resnet_mini@random", 32)
    head = keras.layers.Dense(2, activation="softmax", name="head")
    model = keras.Model(source.extractor.input, head(source.extractor.output))
    rng = np.random.default_rng(0)
    said = {part: random_features(rng, len(getattr(data, part)), 256) for part in SPLITS}
    probabilities = softmax(rng.normal(size=(len(data.test), 2))).astype("float32")
    found = explain(
        tmp_path / "out", source, model, data, features=said, probabilities=probabilities,
        val_probabilities=softmax(rng.normal(size=(len(data.val), 2))), applied_temperature=None,
    )  # fmt: skip
    assert found.numbers["data_quality"]["near_duplicates_in_test"] == 1
    assert "1 of 9 test images have a near-duplicate" in found.sentences[0]
    with open(tmp_path / "out" / "near_duplicates.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(Path(row["path"]).name, row["split"], row["other_split"]) for row in rows] == [
        ("copy.png", "test", "train")
    ]
    assert Path(rows[0]["other_path"]).name == copied.name
    assert (tmp_path / "out" / "suspected_labels.csv").exists()
    assert 1 <= len(found.heat_maps) <= 12 and found.heat_maps[0]["heat"].shape == (32, 32)
    chapter = Elements(str(found.chapter()))
    assert "Near-duplicates across splits" in chapter.text and "1 images have a near-duplicate" in chapter.text
    images = {image["alt"]: image["src"] for image in chapter.all("img")}
    heat_maps = {f"Heat map of {Path(one['path']).name}" for one in found.heat_maps}
    assert heat_maps | {"copy.png", copied.name} <= images.keys()
    assert all(source.startswith("data:image/jpeg;base64,") for source in images.values())
