"""Blended images: targets in the proportion of the pixels, and the share that was asked for."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from common.images.mixing import mix_images

COUNT = 400


def mixed(share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blend images of one colour each; return their pixels, labels and the blended values of the colours."""
    colours = np.arange(COUNT, dtype=np.float32)
    images = np.broadcast_to(colours[:, None, None, None], (COUNT, 8, 12, 3))
    targets = {"classes": tf.eye(COUNT), "teacher": tf.constant(colours[:, None])}
    found, of = mix_images(tf.constant(images), targets, share, tf.constant([seed, 5], tf.int64))
    return found.numpy(), of["classes"].numpy(), of["teacher"].numpy()


def test_targets_are_blended_as_the_pixels_are():
    images, classes, teacher = mixed(1.0)
    assert images.shape == (COUNT, 8, 12, 3)
    np.testing.assert_allclose(classes.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), teacher[:, 0], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(classes @ np.arange(COUNT), teacher[:, 0], rtol=1e-4, atol=1e-3)


def test_half_are_averaged_and_half_get_a_rectangle():
    images, classes, _ = mixed(1.0)
    averaged = np.array([len(np.unique(one[..., 0])) == 1 for one in images])
    assert 0.4 < averaged.mean() < 0.6
    for number, one in enumerate(images):
        if not averaged[number]:  # nothing but its own colour and that of its neighbour, in a rectangle
            assert set(np.unique(one)) == {number, (number - 1) % COUNT}
            other = one[..., 0] != number
            rows, columns = other.any(axis=1), other.any(axis=0)
            assert other.sum() == rows.sum() * columns.sum()
    assert classes.diagonal().min() > 0.4  # a small image rounds the rectangle


def test_only_the_share_asked_for_is_blended_and_the_seed_decides():
    images, classes, _ = mixed(0.3)
    assert 0.2 < np.mean(classes.diagonal() < 1.0) < 0.4
    np.testing.assert_array_equal(images, mixed(0.3)[0])
    assert not np.array_equal(images, mixed(0.3, seed=1)[0])
    np.testing.assert_array_equal(mixed(0.0)[1], np.eye(COUNT))
