"""Baselines without a network, on images whose classes are easy or hard for them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.images.baselines import (
    MOST_IMAGES,
    SIDE,
    in_proportion,
    neighbour_probabilities,
    oriented_gradients,
    pixel_probabilities,
)
from common.images.dataset import load_image_set

SIZES = {"train": 12, "val": 6, "test": 8}


def striped(rng: np.random.Generator, upright: bool) -> np.ndarray:
    """Return stripes of random width, phase and colour: the class is their direction, which no single pixel shows."""
    wave = np.sin(np.arange(40) * rng.uniform(0.8, 1.4) + rng.uniform(0, 6)) > 0
    image = np.tile(wave, (40, 1))[..., None] * rng.uniform(100, 255, 3)
    return (image if upright else image.transpose(1, 0, 2)).astype(np.uint8)


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("stripes")
    for split, count in SIZES.items():
        for name in ("across", "upright"):
            folder = Path(root, split, name)
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(striped(rng, name == "upright")).save(folder / f"{number}.png")
    return load_image_set(f"folder:{root}", root / "out", (SIDE, SIDE))


def weights(data) -> np.ndarray:
    return np.ones(len(data.train), "float32")


def accuracy(data, found) -> float:
    assert found["val"].shape == (len(data.val), 2)
    probabilities = found["test"]
    assert probabilities.shape == (len(data.test), 2) and np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    return float(np.mean(probabilities.argmax(axis=1) == data.test.labels))


def test_the_svm_chooses_gradients_where_pixels_say_nothing(stripes):
    found, rows, note = pixel_probabilities(stripes, weights(stripes))
    assert note.startswith("SVM on pixels: oriented gradients, C ") and not rows and accuracy(stripes, found) == 1.0


def test_neighbours_are_chosen_on_validation_and_never_certain(stripes):
    found, _, note = neighbour_probabilities(stripes, weights(stripes))
    assert "on 16 x 16 pixels" in note and accuracy(stripes, found) > 0.5
    assert found["test"].min() > 0


def test_baselines_are_fitted_on_validation_too_once_all_is_chosen(stripes):
    train, val = stripes.train, stripes.val
    copied = dataclasses.replace(stripes, test=val)  # validation images as the test split: known by then
    assert accuracy(copied, neighbour_probabilities(copied, weights(copied))[0]) == 1.0
    assert len(train) > len(val)


def test_oriented_gradients_know_the_direction_and_not_the_brightness():
    rng = np.random.default_rng(1)
    across, upright = (np.stack([striped(rng, up)[:32, :32] / 255 for _ in range(4)]) for up in (False, True))
    found = [oriented_gradients(images.astype("float32")) for images in (across, upright, 0.5 * across)]
    assert np.allclose(found[0], found[2], atol=0.05)
    histograms = [one.reshape(4, -1, 9).mean(axis=(0, 1)) for one in found[:2]]
    assert histograms[0].argmax() == 4 and histograms[1].argmax() == 0  # of 9 directions between 0 and 180 degrees


def test_a_large_set_is_cut_for_the_svm(stripes, monkeypatch):
    monkeypatch.setattr("common.images.baselines.MOST_IMAGES", 6)
    found, *_ = pixel_probabilities(stripes, weights(stripes))
    assert MOST_IMAGES > 1000 and accuracy(stripes, found) >= 0.5


def test_a_draw_keeps_the_proportions_and_every_class():
    labels = np.array([0] * 900 + [1] * 90 + [2])
    drawn = labels[in_proportion(labels, 100)]
    assert len(drawn) == 100 and np.bincount(drawn).tolist() == [90, 9, 1]
    assert in_proportion(labels, 5000).tolist() == list(range(991))
