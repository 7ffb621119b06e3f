"""Pretraining on images: the network gets the views that its teacher got, also after a run was stopped."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from common.errors import UserError
from common.images.batches import transform_images
from common.images.pixels import Pixels
from common.images.sources import load_source
from common.images.views import view_transforms
from recipes.__main__ import main
from recipes.pretraining import recipe

COUNT, SIZE, VIEWS = 10, 8, 3


class Split(SimpleNamespace):
    """Images with labels."""

    def __len__(self) -> int:
        return len(self.labels)


@pytest.fixture
def data() -> SimpleNamespace:
    """Images of noise in two classes, which may be cropped and not mirrored."""
    kept = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
    names = np.array([str(number) for number in range(COUNT)])
    pixels = Pixels(names, names, (SIZE, SIZE), "crop", kept, np.arange(COUNT))
    train = Split(pixels=pixels, labels=np.arange(COUNT) % 2)
    return SimpleNamespace(train=train, class_names=("even", "odd"), safe_augmentations=lambda: ("crop",))


@pytest.fixture
def teacher() -> recipe.Teacher:
    """A teacher whose features are the view and the number of the image."""
    features = np.stack(np.meshgrid(np.arange(VIEWS), np.arange(COUNT), indexing="ij"), axis=-1).astype(np.float32)
    transforms = view_transforms(COUNT, (SIZE, SIZE), augment=("crop",), views=VIEWS, seed=0)
    return recipe.Teacher(features, np.zeros(2, np.float32), np.ones(2, np.float32), transforms)


def batches(config: recipe.Config, data, teacher, count: int, first: tuple[int, int] = (0, 0)) -> list:
    return list(recipe.training_stream(config, data, teacher, first).take(count).as_numpy_iterator())


def test_network_and_teacher_get_the_same_views_in_turn(data, teacher):
    views_of = {number: [] for number in range(COUNT)}
    for images, targets in batches(recipe.Config(batch_size=4), data, teacher, 3 * 3):  # three epochs
        for image, label, (view, number) in zip(
            images, targets["classes"], targets["teacher"].astype(int), strict=True
        ):
            original = data.train.pixels.kept[number][None].astype(np.float32)
            seen = transform_images(original, teacher.views[view, number][None])[0]
            np.testing.assert_allclose(image, np.clip(seen, 0, 255), atol=1e-3)
            assert label.argmax() == number % 2
            views_of[number].append(view)
    assert all(sorted(views) == list(range(VIEWS)) for views in views_of.values())


@pytest.mark.parametrize("mix", [0.0, 0.7])
def test_a_stream_continues_where_it_was_stopped(data, teacher, mix):
    config = recipe.Config(batch_size=4, mix=mix)
    whole, rest = batches(config, data, teacher, 9), batches(config, data, teacher, 5, first=(1, 1))
    for (images, targets), (others, theirs) in zip(whole[4:], rest, strict=True):
        np.testing.assert_array_equal(images, others)
        for name in ("classes", "teacher"):
            np.testing.assert_array_equal(targets[name], theirs[name])
    blended = np.concatenate([targets["classes"].max(axis=1) < 1 for _, targets in whole])
    assert bool(blended.any()) == (mix > 0)  # neighbours of one class stay pure


@pytest.mark.parametrize("settings", [{"mix": 1.5}, {"teacher_views": 0}, {"teacher_views": 2}, {"teacher_size": 64}])
def test_settings_without_a_meaning_are_refused(settings):
    with pytest.raises((UserError, ValueError)):
        recipe.Config(**settings)


@pytest.mark.slow
def test_a_run_begins_with_an_earlier_one(tmp_path: Path, capsys):
    """With a learning rate of nearly 0 the convolutions stay those of the earlier run; other sizes are refused."""
    config = recipe.Config(filters=(64, 64), image_size=32, out=str(tmp_path))
    keras.utils.set_random_seed(7)
    earlier = recipe.save_preset(config, recipe.build_backbone(config))
    command = ["run", "pretraining", *shlex.split(recipe.QUICK), "--start", f"preset:{earlier}"]
    assert main([*command, "--learning-rate", "1e-9", "--out", str(tmp_path / "run")]) == 0
    preset = tmp_path / "run" / "preset"
    ours, theirs = (load_source(f"preset:{folder}").backbone.trainable_weights for folder in (preset, earlier))
    assert len(ours) > 20
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)  # float16
    assert json.loads((preset / "card.json").read_text("utf-8"))["start"]["spec"] == f"preset:{earlier}"
    assert main([*command, "--blocks", "1", "--out", str(tmp_path / "other")]) == 2
    assert "--start must be a preset of this recipe with the same --filters and --blocks" in capsys.readouterr().err
