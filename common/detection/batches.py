"""Batches of images with boxes: one decoder and resizer for training, evaluation and serving.

Boxes are xmin, ymin, xmax, ymax, measured from the left and upper edge of the image, not between pixel centres: the
first pixel extends from 0 to 1. There are two coordinate systems: pixels of the image as stored in its file, and pixels
of the network's input.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from common.detection.dataset import BoxExamples
from common.progress import ProgressLine
from common.training import without_autotune

AUGMENTATIONS = ("flip", "scale", "crop", "color")

PADDING, CROWD = -1, -2  # labels of padding, and of a box that is ignored in training

# Fills the input beside an image. Grey is the mean of photos, about zero after preprocessing; black would be a dark
# object with a sharp edge. An integer, because images are cached as integers.
GREY = 128.0

_LEAST_VISIBLE = 0.3  # fraction of a box's area; with less of it in the image, the class is unrecognisable
_KEPT_BYTES = 2**30

# Random numbers of one image: the layout of a mosaic, then the changes of each of its tiles, then its colours. Without
# a mosaic, those of the first tile apply.
_MOSAIC, _TILE, _COLOUR = 3, 6, 6
_DRAWS = _MOSAIC + 4 * _TILE + _COLOUR


# --- one image --------------------------------------------------------------------------------------------


def letterbox(encoded: tf.Tensor, size: tuple[int, int]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Decode one JPEG, PNG, GIF (first frame), BMP or plain WebP file and fit it into the input, here and in serving.

    The image keeps its aspect ratio, up to rounding to whole pixels, and is placed in the upper left corner: boxes are
    scaled, not moved. The rest is grey. The EXIF orientation is ignored; `BoxExamples.as_stored` returns the boxes that
    match.

    Args:
        encoded: scalar string, the bytes of the file.
        size: (height, width) of the input, in pixels.

    Returns:
        (float32 [height, width, 3], RGB, 0 to 255; input pixels per stored pixel in x and in y, float32 [2];
        height and width as stored, in pixels, int32 [2]). Rounding to whole pixels makes the two scales differ: mostly
        a little, much where a side would be less than a pixel.
    """
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image = tf.ensure_shape(image, (None, None, 3))
    stored = tf.shape(image)[:2]
    inner, scale = _fitted(stored, size)
    # Antialiasing: without it, a large photo becomes noise that no backbone was trained on.
    image = tf.clip_by_value(tf.image.resize(image, inner, antialias=True), 0.0, 255.0)
    beside = tf.constant(size) - inner
    image = tf.pad(image, [[0, beside[0]], [0, beside[1]], [0, 0]], constant_values=GREY)
    return tf.ensure_shape(image, (*size, 3)), scale, stored


def to_stored(boxes: tf.Tensor, scale: tf.Tensor, stored: tf.Tensor) -> tf.Tensor:
    """Return boxes in pixels of the stored image, clipped at its edges.

    Args:
        boxes: in input pixels, float32 [k, 4] of one image or [batch, k, 4].
        scale: as returned by `letterbox`, float32 [2] or [batch, 2].
        stored: as returned by `letterbox`, height and width, int [2] or [batch, 2].

    Returns:
        float32, the shape of boxes.
    """
    scale = tf.convert_to_tensor(scale)
    edges = tf.cast(tf.reverse(tf.convert_to_tensor(stored), [-1]), tf.float32)
    boxes = boxes / tf.concat([scale, scale], axis=-1)[..., None, :]
    return tf.clip_by_value(boxes, 0.0, tf.concat([edges, edges], axis=-1)[..., None, :])


def _fitted(stored: tf.Tensor, size: tuple[int, int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the size of images in the input, int32 [..., 2] (height, width), and their scales in x and y.

    Args:
        stored: height and width, int [..., 2].
        size: (height, width) of the input.
    """
    sides = tf.cast(stored, tf.float32)
    rounded = tf.round(sides * tf.reduce_min(tf.constant(size, tf.float32) / sides, axis=-1, keepdims=True))
    inner = tf.clip_by_value(rounded, 1.0, tf.constant(size, tf.float32))
    return tf.cast(inner, tf.int32), tf.reverse(inner / sides, [-1])


def input_size(sizes: np.ndarray, side: int, multiple: int = 32) -> tuple[int, int]:
    """Return an input size with the aspect ratio of the median image.

    Args:
        sizes: height and width of each image in pixels, int64 [n, 2].
        side: approximate length of the longer side in pixels.
        multiple: both sides are positive multiples of it.

    Returns:
        (height, width) in pixels.
    """
    shapes = np.log(sizes[:, 1] / sizes[:, 0])  # logarithms: symmetric for wide and high images
    shape = float(np.exp(np.median(shapes))) if len(sizes) else 1.0
    height, width = (
        max(1, int(side * share / multiple + 0.5)) * multiple for share in (min(1.0, 1 / shape), min(1.0, shape))
    )
    return height, width


def input_boxes(examples: BoxExamples, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all boxes that are trained on.

    Args:
        examples: the images and their boxes.
        size: (height, width) of the input, in pixels.

    Returns:
        (boxes in input pixels, float32 [n, 4]; their classes, int64 [n]; the index of the image of each, int64 [n]).
    """
    examples = examples.as_stored()
    _, scales = _fitted(tf.constant(examples.sizes.reshape(-1, 2)), size)
    scaled = [boxes * np.tile(scale, 2) for boxes, scale in zip(examples.boxes, scales.numpy(), strict=True)]
    used = ~np.concatenate([np.zeros(0, bool), *examples.crowds])
    boxes, labels = np.concatenate([np.zeros((0, 4), np.float32), *scaled]), np.concatenate([[], *examples.labels])
    images = np.repeat(np.arange(len(examples)), [len(one) for one in examples.boxes])
    return boxes[used], labels[used].astype(np.int64), images[used]


# --- streams ----------------------------------------------------------------------------------------------


def evaluation_batches(examples: BoxExamples, size: tuple[int, int], batch_size: int) -> tf.data.Dataset:
    """Stream images in the given order, preprocessed exactly as in serving.

    Args:
        examples: the images.
        size: (height, width) of the input, in pixels.
        batch_size: images per batch; the last one may have fewer.

    Returns:
        A tf.data.Dataset of the results of `letterbox`: (float32 [batch, height, width, 3], 0 to 255; scales, float32
        [batch, 2]; stored height and width, int32 [batch, 2]). Only the paths are kept in memory.
    """
    dataset = tf.data.Dataset.from_tensor_slices(np.asarray(examples.paths, dtype=str))
    dataset = dataset.map(lambda path: letterbox(tf.io.read_file(path), size), num_parallel_calls=os.cpu_count())
    return without_autotune(dataset.batch(batch_size).prefetch(2))


def training_batches(
    examples: BoxExamples,
    size: tuple[int, int],
    batch_size: int,
    *,
    seed: int,
    augment: Sequence[str] = AUGMENTATIONS,
    mosaic: float = 0.0,
    first: tuple[int, int] = (0, 0),
    cache: bool = True,
) -> tf.data.Dataset:
    """Stream shuffled, augmented images and their boxes without end; the seed determines every random choice.

    The augmentation of an image depends only on the seed, the epoch and the index of the image, so a run can resume at
    any step.

    Args:
        examples: the images and their boxes, in displayed or in stored pixels.
        size: (height, width) of the input, in pixels.
        batch_size: images per batch; the last batch of an epoch may have fewer.
        seed: of order and augmentation, together with the epoch.
        augment: some of AUGMENTATIONS. `flip` mirrors every second image left to right; omit it where mirroring changes
            the class (`BoxSet.mirrors`). `scale` zooms by 0.5 to 1.5. `crop` changes the aspect ratio by up to 15 %,
            removes up to a third of the area, and places the rest at random. `color` changes
            brightness, contrast and saturation by up to 30 % and each of red, green and blue by up to 8 %.
        mosaic: fraction of the images, 0 to 1, that are combined with three others, one in each corner, meeting at a
            random point and each zoomed to fill its corner.
        first: (epoch, step) to start from.
        cache: keep the images in memory as bytes if that takes less than 1 GB: the files are decoded once, before the
            first batch, with a progress line. Otherwise they are decoded in every epoch.

    Returns:
        A tf.data.Dataset of (float32 [batch, height, width, 3], 0 to 255; boxes in input pixels, float32 [batch, k, 4];
        labels int32 [batch, k]). k is the largest number of boxes of an image of the batch, possibly 0. Boxes are
        clipped at the image's edges, and removed if less than 30 % of their area is left. The label of a row without a
        box is PADDING (-1), that of a box ignored in training CROWD (-2).
    """
    if unknown := set(augment) - set(AUGMENTATIONS):
        raise ValueError(f"augment is unknown. Allowed: {', '.join(AUGMENTATIONS)}. Received: {sorted(unknown)}.")
    if not 0.0 <= mosaic <= 1.0:
        raise ValueError(f"mosaic must be from 0 to 1. Received: {mosaic}.")
    examples = examples.as_stored()
    count = len(examples)
    load = _loader(examples, size, cache)

    def one_epoch(epoch):
        seeds = tf.unstack(tf.random.split(tf.stack([tf.constant(seed, tf.int64), epoch]), 3), num=3)
        order = tf.random.experimental.stateless_shuffle(tf.range(count, dtype=tf.int64), seed=seeds[0])
        draws = tf.random.stateless_uniform([count, _DRAWS], seeds[1])
        others = tf.random.stateless_uniform([count, 3], seeds[2], maxval=count, dtype=tf.int64)
        seen = tf.where(epoch == first[0], tf.constant(first[1] * batch_size, tf.int64), 0)
        order = order[seen:]
        return tf.data.Dataset.from_tensor_slices((order, tf.gather(others, order), tf.gather(draws, order)))

    def compose(index, others, draws):
        cut, tiles, colour = tf.split(draws, [_MOSAIC, 4 * _TILE, _COLOUR])
        tiles, alone = tf.unstack(tf.reshape(tiles, [4, _TILE])), load(index)

        def combined():
            return _mosaic([alone, *map(load, tf.unstack(others))], size, augment, cut[1:], tiles)

        def single():
            return _whole(alone, size, augment, tiles[0])

        image, boxes, labels = tf.cond(cut[0] < mosaic, combined, single) if mosaic else single()
        return tf.ensure_shape(image, (*size, 3)), boxes, labels, colour

    def finish(images, boxes, labels, colour):
        return _coloured(images, colour) if "color" in augment else images, boxes, labels

    shapes = ((*size, 3), (None, 4), (None,), (_COLOUR,))
    padding = (0.0, 0.0, PADDING, 0.0)
    epochs = tf.data.Dataset.range(first[0], tf.int64.max)
    # Batched within an epoch, so that every epoch has the same number of steps.
    batches = epochs.flat_map(
        lambda epoch: (
            one_epoch(epoch)
            .map(compose, num_parallel_calls=os.cpu_count())
            .padded_batch(batch_size, padded_shapes=shapes, padding_values=padding)
        )
    )
    return without_autotune(batches.map(finish, num_parallel_calls=2).prefetch(4))


def _loader(examples: BoxExamples, size: tuple[int, int], cache: bool):
    """Return a function from an image's index to (pixels as returned by `letterbox`, boxes in input pixels, labels,
    width and height of the image in the input, without the grey, float32 [2]).
    """
    inner, scales = _fitted(tf.constant(examples.sizes.reshape(-1, 2)), size)
    contents = tf.cast(tf.reverse(inner, [-1]), tf.float32)
    # The boxes of all images in one tensor, with the start of each image: no padding for uneven numbers.
    starts = tf.constant(np.cumsum([0, *map(len, examples.boxes)]))
    all_boxes = tf.constant(np.concatenate([np.zeros((0, 4), np.float32), *examples.boxes]))
    labels = [np.where(crowds, CROWD, one) for crowds, one in zip(examples.crowds, examples.labels, strict=True)]
    all_labels = tf.constant(np.concatenate([np.zeros(0, np.int64), *labels]).astype(np.int32))
    kept = _all_pixels(examples, size) if cache and len(examples) * size[0] * size[1] * 3 < _KEPT_BYTES else None
    paths = tf.constant(np.asarray(examples.paths, dtype=str))

    def load(index):
        here = slice(starts[index], starts[index + 1])
        if kept is None:
            pixels = letterbox(tf.io.read_file(paths[index]), size)[0]
        else:
            pixels = tf.cast(tf.gather(kept, index), tf.float32)
        return pixels, all_boxes[here] * tf.tile(scales[index], [2]), all_labels[here], contents[index]

    return load


def _all_pixels(examples: BoxExamples, size: tuple[int, int]) -> tf.Tensor:
    """Decode all images: uint8 [n, height, width, 3]."""
    # A variable is filled in place; concatenating the batches would need twice the memory. On the CPU, where the
    # tf.data pipeline runs.
    with tf.device("CPU"):
        pixels, done = tf.Variable(tf.zeros((len(examples), *size, 3), tf.uint8), trainable=False), 0
        progress = ProgressLine("decoding images", len(examples))
        for images, _, _ in evaluation_batches(examples, size, 16):
            pixels[done : done + len(images)].assign(tf.cast(tf.round(images), tf.uint8))
            done += len(images)
            progress.update(done)
        progress.close(f", kept in memory ({pixels.shape.num_elements() / 1e6:,.0f} MB)")
        return pixels.read_value()


# --- augmentation -----------------------------------------------------------------------------------------


def _whole(loaded, size: tuple[int, int], augment: Sequence[str], draws: tf.Tensor):
    """Return one augmented image: (pixels, boxes, labels)."""
    if not set(augment) & {"flip", "scale", "crop"}:
        return loaded[:3]
    content, (mirror, zoom, larger, shape, *place) = loaded[3], tf.unstack(draws)
    zooms = tf.ones([2])
    if "scale" in augment:
        zooms *= _between(0.5, 1.5, zoom)
    if "crop" in augment:
        stretch = _between(0.86, 1.16, shape) ** 0.5
        zooms *= _between(1.0, 1.22, larger) * tf.stack([stretch, 1 / stretch])
        # Anywhere in the input; of an image larger than the input, any crop.
        shift = tf.stack(place) * (tf.constant(size[::-1], tf.float32) - zooms * content)
    else:
        shift = (1 - zooms) * content / 2  # the centre stays in place
    return _placed(loaded, size, zooms, shift, ("flip" in augment) & (mirror < 0.5))


def _mosaic(loaded, size: tuple[int, int], augment: Sequence[str], centre: tf.Tensor, draws: Sequence[tf.Tensor]):
    """Return a mosaic of four images that meet at a random point: (pixels, boxes, labels)."""
    sides = tf.constant(size, tf.float32)
    upper, left = tf.unstack(tf.cast(tf.round(sides * (0.3 + 0.4 * centre)), tf.int32))
    lower, right = size[0] - upper, size[1] - left
    corners = [
        ((upper, left), (0, 0)),
        ((upper, right), (0, left)),
        ((lower, left), (upper, 0)),
        ((lower, right), (upper, left)),
    ]  # height and width, then first row and column
    tiles, boxes, labels = [], [], []
    for one, numbers, (extent, (top, start)) in zip(loaded, draws, corners, strict=True):
        content, (mirror, zoom, _, _, *place) = one[3], tf.unstack(numbers)
        room = tf.cast(tf.stack(extent[::-1]), tf.float32)
        # Large enough to fill the corner, up to 1.5 times that; but at most twice the size, for elongated images.
        zooms = tf.minimum(tf.reduce_max(room / content) * _between(1.0, 1.5, zoom), 2.0) * tf.ones([2])
        shift = tf.stack(place) * (room - zooms * content)
        tile, found, kinds = _placed(one, extent, zooms, shift, ("flip" in augment) & (mirror < 0.5))
        tiles.append(tile)
        boxes.append(found + tf.cast(tf.stack([start, top, start, top]), tf.float32))
        labels.append(kinds)
    rows = [tf.concat(tiles[:2], axis=1), tf.concat(tiles[2:], axis=1)]
    return tf.concat(rows, axis=0), tf.concat(boxes, axis=0), tf.concat(labels, axis=0)


def _placed(loaded, extent, zooms: tf.Tensor, shift: tf.Tensor, mirror: tf.Tensor):
    """Zoom, mirror and move an image in one resampling, and its boxes with it.

    Args:
        loaded: what `_loader` loads.
        extent: (height, width) of the result, in pixels.
        zooms: new pixels per old pixel, in x and y, float32 [2].
        shift: new position of the left and upper edge of the image, x and y, float32 [2].
        mirror: bool, whether to swap left and right first.

    Returns:
        (float32 [height, width, 3], 0 to 255; boxes clipped at its edges, float32 [n, 4]; labels int32 [n]), without
        boxes of which too little is left.
    """
    pixels, boxes, labels, content = loaded
    # The grey is mirrored as well, so the image then starts after as many pixels as there are grey ones.
    beside = tf.where(mirror, tf.cast(tf.shape(pixels)[1], tf.float32) - content[0], 0.0)
    pixels = tf.reverse(pixels, tf.range(1, 1 + tf.cast(mirror, tf.int32)))  # the column axis, or none
    # Not ImageProjectiveTransformV3, which takes twice the time and does not antialias.
    pixels = tf.raw_ops.ScaleAndTranslate(
        images=pixels[None] - GREY,  # the op fills with 0
        size=tf.stack(extent),
        scale=zooms[::-1],
        translation=(shift - tf.stack([zooms[0] * beside, 0.0]))[::-1],
        kernel_type="triangle",
        antialias=True,
    )
    pixels = tf.clip_by_value(pixels[0] + GREY, 0.0, 255.0)

    x = tf.where(mirror, content[0] - boxes[:, 2::-2], boxes[:, 0::2]) * zooms[0] + shift[0]
    y = boxes[:, 1::2] * zooms[1] + shift[1]
    whole = tf.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)
    height, width = (tf.cast(side, tf.float32) for side in extent)
    cut = tf.clip_by_value(whole, 0.0, tf.stack([width, height, width, height]))
    before, after = (tf.reduce_prod(one[:, 2:] - one[:, :2], axis=1) for one in (whole, cut))
    # Any visible piece of a crowd is kept: detections there are ignored.
    keep = tf.where((after > 0) & ((after >= _LEAST_VISIBLE * before) | (labels == CROWD)))[:, 0]
    return pixels, tf.gather(cut, keep), tf.gather(labels, keep)


def _coloured(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Change the colours of a batch with one random matrix per image.

    Args:
        images: float32 [batch, height, width, 3], 0 to 255.
        draws: random numbers from 0 to 1, float32 [batch, 6].

    Returns:
        float32 [batch, height, width, 3], 0 to 255.
    """
    brightness, contrast, saturation = (0.7 + 0.6 * draws[:, place, None, None] for place in range(3))
    gains = brightness * (0.92 + 0.16 * draws[:, None, 3:])  # [batch, 1, 3]
    # Saturation moves each pixel away from its own grey, contrast away from the image's mean grey.
    matrix = (saturation * tf.eye(3) + (1 - saturation) / 3) * contrast * gains
    mean = tf.reduce_mean(images, axis=[1, 2, 3])[:, None, None]
    pixels = tf.reshape(images, [tf.shape(images)[0], -1, 3]) @ matrix + mean * (1 - contrast) * gains
    return tf.reshape(tf.clip_by_value(pixels, 0.0, 255.0), tf.shape(images))


def _between(low: float, high: float, draw: tf.Tensor) -> tf.Tensor:
    """Return a number from low to high on a logarithmic scale."""
    return low * (high / low) ** draw
