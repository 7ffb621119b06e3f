"""Pipelines without autotuning: they end at once, and every pipeline of the project is one."""

from __future__ import annotations

import time

import pytest
import tensorflow as tf

from common.training import without_autotune
from recipes.__main__ import RECIPES


def seconds_to_end(dataset: tf.data.Dataset, used: float) -> float:
    """Return the seconds that dropping an iterator takes after so many seconds of use."""
    iterator, began = iter(dataset), time.monotonic()
    while time.monotonic() - began < used:
        next(iterator)
    began = time.monotonic()
    del iterator
    return time.monotonic() - began


def test_it_ends_at_once_with_the_same_elements():
    endless = tf.data.Dataset.range(10**9).map(lambda number: number + 1, num_parallel_calls=2).prefetch(4)
    dataset = without_autotune(endless)
    assert list(dataset.take(3).as_numpy_iterator()) == [1, 2, 3]
    assert not dataset.options().autotune.enabled
    assert dataset.map(lambda number: number).batch(2).options().autotune.enabled is False  # what is built on it, too
    assert max(seconds_to_end(dataset, 0.7) for _ in range(4)) < 0.2


@pytest.mark.release  # a look at TensorFlow: with a version in which this fails, without_autotune is not needed
def test_autotuning_makes_an_iterator_end_late():
    endless = tf.data.Dataset.range(10**9).map(lambda number: number + 1, num_parallel_calls=2).prefetch(4)
    assert max(seconds_to_end(endless, 1.5) for _ in range(16)) > 0.5


def test_every_pipeline_is_without_autotuning():
    builds_on_another = RECIPES / "pretraining" / "recipe.py"
    for folder in (RECIPES, RECIPES.parent / "common"):
        for file in folder.rglob("*.py"):
            text = file.read_text("utf-8")
            assert "tf.data.AUTOTUNE" not in text, file
            assert "from_generator(" not in text or file.name == "training.py", f"{file}: training.pipeline_of does it"
            pipelines = text.count(".prefetch(") if file != builds_on_another else 0
            assert text.count("without_autotune(") >= pipelines, file
