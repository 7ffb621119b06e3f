"""One decoder and resizer of image files, for training, evaluation and serving."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

RESIZE_MODES = ("crop", "squash", "pad")

# A JPEG decodes at a half, a quarter or an eighth of its size in a fraction of the time. It is done where the result is
# still this much larger than wanted, so that the final, antialiased step decides how sharp the image is.
SPARE = 1.5


def decode_image(encoded: tf.Tensor, size: tuple[int, int], resize: str = "crop") -> tf.Tensor:
    """Decode one JPEG, PNG, GIF (first frame), BMP or plain WebP file and resize it. Serving runs exactly this graph.

    Transparency and the EXIF orientation are ignored, here as in serving; `camera_turns` returns whether there is an
    orientation. The values are whole numbers, so that images can be kept as bytes.

    Args:
        encoded: scalar string, the bytes of the file.
        size: (height, width) of the result, in pixels.
        resize: `crop` takes the largest centred part with this aspect ratio, `squash` ignores the aspect ratio,
            `pad` keeps everything and fills the rest with black.

    Returns:
        float32 [height, width, 3], RGB, 0 to 255.
    """
    return fit_to_size(decode_scaled(encoded, size), size, resize)


def decode_scaled(encoded: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Decode one image file; a JPEG much larger than wanted at a fraction of its size.

    Args:
        encoded: scalar string, the bytes of the file.
        size: (height, width) that are wanted, in pixels.

    Returns:
        uint8 [height, width, 3], RGB, at least SPARE times as large as wanted if the file is.
    """

    def decode_jpeg():
        shape = tf.cast(tf.io.extract_jpeg_shape(encoded)[:2], tf.float32)
        spare = tf.reduce_min(shape / (SPARE * tf.constant(size, tf.float32)))
        halvings = tf.cast(tf.math.floor(tf.math.log(tf.maximum(spare, 1.0)) / np.log(2) + 1e-6), tf.int32)
        at_ratios = [lambda ratio=ratio: tf.io.decode_jpeg(encoded, channels=3, ratio=ratio) for ratio in (1, 2, 4, 8)]
        return tf.switch_case(tf.minimum(halvings, 3), at_ratios)

    def decode_other():
        return tf.io.decode_image(encoded, channels=3, expand_animations=False)

    image = tf.cond(tf.io.is_jpeg(encoded), decode_jpeg, decode_other)
    return tf.ensure_shape(image, (None, None, 3))


def fit_to_size(image: tf.Tensor, size: tuple[int, int], resize: str) -> tf.Tensor:
    """Resize one decoded image, uint8 [height, width, 3]; further arguments and result as for `decode_image`."""
    if resize not in RESIZE_MODES:
        raise ValueError(f"resize must be one of {', '.join(RESIZE_MODES)}. Received: {resize!r}.")
    if resize == "crop":
        image = _largest_centred_part(image, size)
    if resize == "pad":
        # Not tf.image.resize_with_pad: not every version can antialias with a dynamic shape.
        scale = tf.reduce_min(tf.constant(size, tf.float32) / tf.cast(tf.shape(image)[:2], tf.float32))
        inner = tf.maximum(1, tf.cast(tf.round(tf.cast(tf.shape(image)[:2], tf.float32) * scale), tf.int32))
        image = tf.image.resize(image, inner, antialias=True)
        image = tf.image.resize_with_crop_or_pad(image, *size)
    else:
        # With antialiasing: without it a large photo becomes noise that no backbone was trained on.
        image = tf.image.resize(image, size, antialias=True)
    return tf.ensure_shape(tf.round(tf.clip_by_value(image, 0.0, 255.0)), (*size, 3))


def _largest_centred_part(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    shape = tf.shape(image)[:2]
    wanted = tf.constant(size, tf.float32)
    part = tf.cast(shape, tf.float32)
    part = tf.cast(tf.round(wanted * tf.reduce_min(part / wanted)), tf.int32)
    part = tf.clip_by_value(part, 1, shape)
    top_left = (shape - part) // 2
    return tf.image.crop_to_bounding_box(image, top_left[0], top_left[1], part[0], part[1])


def decode_images(encoded: tf.Tensor, size: tuple[int, int], resize: str = "crop") -> tf.Tensor:
    """Decode a batch of files, as `decode_image`; for use inside an exported signature.

    Args:
        encoded: string [batch].
        size: (height, width) of the result, in pixels.
        resize: as for `decode_image`.

    Returns:
        float32 [batch, height, width, 3], RGB, 0 to 255.
    """
    spec = tf.TensorSpec((*size, 3), tf.float32)
    return tf.map_fn(lambda one: decode_image(one, size, resize), encoded, fn_output_signature=spec)


THUMBNAIL_SIDE = 16


def thumbnail(image: tf.Tensor) -> tf.Tensor:
    """Return a tiny grey copy, used to find near-duplicates.

    Args:
        image: uint8 [height, width, 3].

    Returns:
        uint8 [THUMBNAIL_SIDE * THUMBNAIL_SIDE].
    """
    small = tf.image.resize(image, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), method="area")
    return tf.reshape(tf.cast(tf.round(tf.reduce_mean(small, axis=-1)), tf.uint8), [-1])
