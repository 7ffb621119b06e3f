"""Pipelines of tf.data."""

from __future__ import annotations

import os

import tensorflow as tf

PARALLEL = max(2, os.cpu_count() or 2)  # calls of a pipeline's functions at a time


def without_autotune(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Return a pipeline that keeps the parallelism it was written with, and ends at once.

    TensorFlow's autotuning runs in a thread that sleeps twice as long each time, up to a minute. Whoever drops an
    iterator waits for that thread, which often misses the signal to stop: a training of a minute then ends half a
    minute late. tests/test_streams.py shows it.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
