"""Blend training images with others of their batch: mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899)."""

from __future__ import annotations

import tensorflow as tf


def mix_images(
    images: tf.Tensor, targets: dict[str, tf.Tensor], share: float, seed: tf.Tensor
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Blend some images with their neighbour in the batch, and all targets in the same proportion.

    Of the blended images, half are averaged with the other one as a whole (mixup), and half get a rectangle of it
    (CutMix). An image keeps about half of itself or more.

    Args:
        images: float32 [batch, height, width, 3].
        targets: one-hot labels, features of a teacher, or others that may be averaged, float32 [batch, width].
        share: of the images that are blended, 0 to 1.
        seed: int64 [2].

    Returns:
        (images, targets), of the same shapes.
    """
    count, height, width = tf.shape(images)[0], images.shape[1], images.shape[2]
    seeds = tf.unstack(tf.random.split(seed, 5), num=5)
    blended, pasted, kept, down, right = (tf.random.stateless_uniform([count, 1, 1], one) for one in seeds)
    kept = 1.0 - 0.5 * kept  # share of the image itself
    side = tf.sqrt(1.0 - kept)  # of the rectangle, as a share of the height and width
    rows = (tf.range(height, dtype=tf.float32)[None, :, None] + 0.5) / height
    columns = (tf.range(width, dtype=tf.float32)[None, None, :] + 0.5) / width
    inside = (abs(rows - (down * (1.0 - side) + side / 2)) < side / 2) & (
        abs(columns - (right * (1.0 - side) + side / 2)) < side / 2
    )
    weights = tf.where(pasted < 0.5, 1.0 - tf.cast(inside, tf.float32), kept * tf.ones_like(rows * columns))
    weights = tf.where(blended < share, weights, 1.0)[..., None]
    kept = tf.reduce_mean(weights, axis=[1, 2])  # of the pixels, exactly

    def blend(values, weights):
        return weights * values + (1.0 - weights) * tf.roll(values, 1, axis=0)

    return blend(images, weights), {name: blend(values, kept) for name, values in targets.items()}
