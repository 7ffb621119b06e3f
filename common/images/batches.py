"""Batches of images, in order or shuffled and augmented."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from common.images.pixels import Pixels
from common.training import without_autotune

AUGMENTATIONS = ("flip", "crop", "rotate", "color")
_DRAWS = 10  # seeds that are split from that of a batch; the last one is not used


def image_batches(pixels: Pixels, batch_size: int) -> tf.data.Dataset:
    """Stream images in their order, for evaluation and feature extraction.

    Args:
        pixels: the images.
        batch_size: images per batch; the last one may be smaller.

    Returns:
        A dataset of float32 [batch, height, width, 3], 0 to 255.
    """
    batches = pixels.batches(tf.data.Dataset.range(len(pixels)), batch_size)
    return without_autotune(batches.map(lambda images, _: images).prefetch(2))


def training_batches(
    pixels: Pixels,
    targets: Callable[[tf.Tensor], object],
    batch_size: int,
    *,
    seed: int,
    augment: Sequence[str] = (),
    first: tuple[int, int] = (0, 0),
) -> tf.data.Dataset:
    """Stream shuffled, augmented images endlessly; the order and every random choice follow from the seed.

    Args:
        pixels: the images.
        targets: maps indices, int64 [batch], to what Keras `fit` takes next to the images: labels, or
            a tuple (labels, sample weights).
        batch_size: images per batch; the last batch of an epoch may be smaller.
        seed: together with the epoch it determines order and augmentation, so a run can continue at any step.
        augment: names from AUGMENTATIONS.
        first: (epoch, step) to begin with.

    Returns:
        A dataset of (float32 [batch, height, width, 3], *targets); an epoch is `steps_per_epoch` batches.
    """
    count, steps = len(pixels), steps_per_epoch(len(pixels), batch_size)

    def one_epoch(epoch):
        order = tf.random.experimental.stateless_shuffle(tf.range(count, dtype=tf.int64), seed=[seed, epoch])
        seen = tf.where(epoch == first[0], tf.constant(first[1] * batch_size, tf.int64), 0)
        return tf.data.Dataset.from_tensor_slices(order[seen:])

    def finish(step, batch):
        images, indices = batch
        images = augment_images(images, augment, seed=tf.stack([tf.cast(seed, tf.int64), step]))
        values = targets(indices)
        return (images, *values) if isinstance(values, tuple) else (images, values)

    epochs = tf.data.Dataset.range(first[0], tf.int64.max)
    # Batched per epoch, so that every epoch has the same number of steps.
    batches = epochs.flat_map(lambda epoch: pixels.batches(one_epoch(epoch), batch_size))
    numbered = batches.enumerate(start=first[0] * steps + first[1])
    return without_autotune(numbered.map(finish, num_parallel_calls=2).prefetch(4))


def labelled_batches(
    pixels: Pixels, labels: np.ndarray, weights: np.ndarray, classes: int, batch_size: int, **options
) -> Callable[[int, int], tf.data.Dataset]:
    """Return a function that streams training images with one-hot labels and weights, from (epoch, step) on.

    Args:
        pixels: n images.
        labels: int [n].
        weights: of the examples, float32 [n].
        classes: number of classes.
        batch_size, **options: as for `training_batches`.
    """
    labels, weights = tf.constant(labels), tf.constant(weights)

    def targets(indices):
        return tf.one_hot(tf.gather(labels, indices), classes), tf.gather(weights, indices)

    return lambda *first: training_batches(pixels, targets, batch_size, first=first, **options)


def labelled_images(pixels: Pixels, labels: np.ndarray, classes: int) -> tf.data.Dataset:
    """Stream images in the given order with one-hot labels, for validation; arguments as for `labelled_batches`."""
    targets = tf.data.Dataset.from_tensor_slices(labels).batch(64).map(lambda y: tf.one_hot(y, classes))
    return tf.data.Dataset.zip(image_batches(pixels, 64), targets)


def stage_inputs(train, val, weights: np.ndarray, classes: int, batch_size: int, **options) -> dict:
    """Return the arguments of `fit_stage` that follow from the data: `batches_from`, `validation` and `steps`.

    Args:
        train, val: splits with `pixels` and `labels`.
        weights: of the training images, float32 [n].
        classes, batch_size, **options: as for `labelled_batches`.
    """
    return {
        "batches_from": labelled_batches(train.pixels, train.labels, weights, classes, batch_size, **options),
        "validation": labelled_images(val.pixels, val.labels, classes),
        "steps": steps_per_epoch(len(train.pixels), batch_size),
    }


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of batches for `count` examples."""
    return -(-count // batch_size)


def augment_images(images: tf.Tensor, names: Sequence[str], seed: tf.Tensor) -> tf.Tensor:
    """Apply random changes to a batch, different for each image; all geometry is one resampling.

    Args:
        images: float32 [batch, height, width, 3], 0 to 255.
        names: from AUGMENTATIONS: `flip` mirrors horizontally, `crop` takes 50 to 100 % of the area at a
            random position and slightly changes the aspect ratio, `rotate` rotates by up to 15 degrees and shifts by
            up to 10 %, `color` changes brightness, contrast and saturation by up to 30 %.
        seed: int64 [2].

    Returns:
        float32 [batch, height, width, 3], 0 to 255.
    """
    if unknown := set(names) - set(AUGMENTATIONS):
        raise ValueError(f"Augmentations are {', '.join(AUGMENTATIONS)}. Received: {sorted(unknown)}.")
    if set(names) & {"flip", "crop", "rotate"}:
        images = transform_images(images, draw_transforms(names, seed, tf.shape(images)[0], images.shape[1:3]))
    if "color" in names:
        seeds = tf.unstack(tf.random.split(tf.random.split(seed, _DRAWS)[8], 3), num=3)
        brightness, contrast, saturation = (
            tf.random.stateless_uniform([tf.shape(images)[0], 1, 1, 1], seed, 0.7, 1.3) for seed in seeds
        )
        grey = tf.reduce_mean(images, axis=3, keepdims=True)
        images = grey + (images - grey) * saturation
        mean = tf.reduce_mean(images, axis=[1, 2, 3], keepdims=True)
        images = (mean + (images - mean) * contrast) * brightness
    return tf.clip_by_value(images, 0.0, 255.0) if names else images


def draw_transforms(names: Sequence[str], seed: tf.Tensor, count: tf.Tensor | int, size: tuple[int, int]) -> tf.Tensor:
    """Draw the geometry of `augment_images` for so many images.

    Args:
        names: from AUGMENTATIONS; `color` has no geometry.
        seed: int64 [2].
        count: number of images.
        size: (height, width) of them, in pixels. The same seed draws the same part of an image, whatever its size.

    Returns:
        Coefficients of a projective transform per image, as for `transform_images`, float32 [count, 8].
    """
    seeds = tf.unstack(tf.random.split(seed, _DRAWS), num=_DRAWS)
    height, width = size

    def uniform(seed, low, high):
        return tf.random.stateless_uniform([count], seed, low, high)

    # An output pixel p, measured from the centre, is read at  rotate(p * zoom) + shift.
    zoom_x, zoom_y = tf.ones([count]), tf.ones([count])
    shift_x, shift_y, angle = tf.zeros([count]), tf.zeros([count]), tf.zeros([count])
    if "crop" in names:
        side, ratio = tf.sqrt(uniform(seeds[0], 0.5, 1.0)), tf.exp(uniform(seeds[1], -0.15, 0.15))
        zoom_x, zoom_y = tf.minimum(side * ratio, 1.0), tf.minimum(side / ratio, 1.0)
        shift_x = uniform(seeds[2], -0.5, 0.5) * (1 - zoom_x) * (width - 1)
        shift_y = uniform(seeds[3], -0.5, 0.5) * (1 - zoom_y) * (height - 1)
    if "rotate" in names:
        angle = uniform(seeds[4], -np.pi / 12, np.pi / 12)
        shift_x += uniform(seeds[5], -0.1, 0.1) * width
        shift_y += uniform(seeds[6], -0.1, 0.1) * height
    if "flip" in names:
        zoom_x *= tf.where(uniform(seeds[7], 0.0, 1.0) < 0.5, -1.0, 1.0)
    cos, sin = tf.cos(angle), tf.sin(angle)
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    xx, xy, yx, yy = cos * zoom_x, -sin * zoom_y, sin * zoom_x, cos * zoom_y
    from_x = centre_x + shift_x - xx * centre_x - xy * centre_y
    from_y = centre_y + shift_y - yx * centre_x - yy * centre_y
    return tf.stack([xx, xy, from_x, yx, yy, from_y, tf.zeros([count]), tf.zeros([count])], axis=1)


def transform_images(images: tf.Tensor, transforms: tf.Tensor) -> tf.Tensor:
    """Return images, float32 [batch, height, width, 3], each resampled by its coefficients, float32 [batch, 8]."""
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images, transforms=transforms, output_shape=images.shape[1:3], fill_value=0.0,
        interpolation="BILINEAR", fill_mode="NEAREST",
    )  # fmt: skip
