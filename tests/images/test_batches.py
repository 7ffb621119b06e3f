"""Images to batches: one decoder everywhere, geometry as promised, and an order that a run can continue."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from common.images.batches import AUGMENTATIONS, augment_images, image_batches, steps_per_epoch, training_batches
from common.images.decoding import RESIZE_MODES, SPARE, decode_image, decode_images, decode_scaled, fit_to_size
from common.images.pixels import Pixels, read_images

SHAPES = [(1, 1), (1, 40), (40, 1), (3, 3000), (8, 8), (8, 16), (17, 13), (100, 30)]


def noise(*shape: int) -> np.ndarray:
    """Random pixels, the same in every run."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    """A colour gradient, which JPEG and resizing hardly change; rows and columns are told apart."""
    y, x = np.mgrid[:height, :width]
    return np.stack([40 + 160 * x / width, 220 - 180 * y / height, 60 + 100 * y / height], axis=2).astype(np.uint8)


def encoded(pixels: np.ndarray | Image.Image, form: str = "PNG", **options) -> bytes:
    """The bytes of an image file."""
    image, file = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels), io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def decoded(content: bytes, size: tuple[int, int], resize: str = "squash") -> np.ndarray:
    """What the eager decoder says."""
    return decode_image(tf.constant(content), size, resize).numpy()


# --- decoding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "form"),
    [("RGB", "PNG"), ("RGBA", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("1", "PNG"), ("RGB", "GIF"),
     ("L", "GIF"), ("RGB", "BMP"), ("RGBA", "BMP"), ("L", "BMP")],
)  # fmt: skip
def test_lossless_files_are_decoded_exactly(mode, form):
    image = Image.fromarray(noise(9, 7, 3)).convert(mode)
    content = encoded(image, form)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.float32)
    pixels = decoded(content, (9, 7))  # nothing to resize: also the case in which tf.image.resize returns early
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_decoded_as_pillow_does(mode):
    content = encoded(Image.fromarray(smooth(32, 24)).convert(mode), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.float32)
    # Two IDCTs and two ways to enlarge the colour planes; a swapped channel would be off by a hundred.
    assert np.abs(decoded(content, (32, 24)) - expected).mean() < 2


def test_sixteen_bit_png_keeps_its_high_byte():
    grey = np.linspace(0, 65535, 63).astype(np.uint16).reshape(9, 7)
    np.testing.assert_array_equal(decoded(encoded(grey), (9, 7))[..., 1], grey >> 8)


def test_transparency_does_not_change_colours():
    pixels = noise(6, 6, 4)
    np.testing.assert_array_equal(decoded(encoded(pixels), (6, 6)), pixels[..., :3])


def test_animated_gif_gives_its_first_frame():
    first, second = Image.new("RGB", (6, 5), (255, 0, 0)), Image.new("RGB", (6, 5), (0, 0, 255))
    content = encoded(first, "GIF", save_all=True, append_images=[second, first])
    np.testing.assert_array_equal(decoded(content, (5, 6)), np.full((5, 6, 3), (255, 0, 0)))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP"])
def test_no_channel_is_swapped_and_no_axis_turned(form):
    red, green, blue, white = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
    quarters = np.repeat(np.repeat(np.array([[red, green], [blue, white]], np.uint8), 16, axis=0), 16, axis=1)
    small = decoded(encoded(quarters, form), (8, 8))
    np.testing.assert_allclose(small[1::5, 1::5], quarters[4::20, 4::20], atol=3)


def test_unknown_resize_mode_is_refused():
    with pytest.raises(ValueError, match=r"crop, squash, pad.*'crpo'"):
        decode_image(tf.constant(encoded(noise(4, 4, 3))), (4, 4), "crpo")


# --- resizing ---------------------------------------------------------------------------------------------


def reference(pixels: np.ndarray, size: tuple[int, int], resize: str) -> np.ndarray:
    """The same with Pillow, whose bilinear filter is antialiased too."""
    image, (height, width) = Image.fromarray(pixels), size
    if resize == "crop":
        factor = min(image.height / height, image.width / width)
        part = max(1, round(height * factor)), max(1, round(width * factor))
        top, left = (image.height - part[0]) // 2, (image.width - part[1]) // 2
        image = image.crop((left, top, left + part[1], top + part[0]))
    if resize != "pad":
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    factor = min(height / image.height, width / image.width)
    inner = max(1, round(image.height * factor)), max(1, round(image.width * factor))
    canvas = Image.new("RGB", (width, height))
    small = image.resize(inner[::-1], Image.Resampling.BILINEAR)
    canvas.paste(small, ((width - inner[1]) // 2, (height - inner[0]) // 2))
    return np.asarray(canvas, np.float32)


@pytest.mark.parametrize("resize", RESIZE_MODES)
def test_resizing_agrees_with_pillow_for_every_shape(resize):
    for shape in SHAPES:
        pixels = noise(*shape, 3)
        small = decoded(encoded(pixels), (8, 12), resize)
        assert small.shape == (8, 12, 3) and small.dtype == np.float32
        assert small.min() >= 0 and small.max() <= 255 and (small == small.round()).all()
        # Both round to whole numbers, Pillow once for each axis.
        np.testing.assert_allclose(small, reference(pixels, (8, 12), resize), atol=2, err_msg=str(shape))


def test_crop_takes_the_centre():
    pixels = np.zeros((30, 90, 3), np.uint8)
    pixels[:, 30:60] = (10, 200, 30)
    np.testing.assert_allclose(decoded(encoded(pixels), (6, 6), "crop"), np.full((6, 6, 3), (10, 200, 30)), atol=1e-3)


def test_pad_keeps_the_shape_and_fills_with_black():
    wide = decoded(encoded(np.full((20, 80, 3), 200, np.uint8)), (16, 16), "pad")
    rows = wide.mean(axis=(1, 2))
    np.testing.assert_allclose(rows, [0] * 6 + [200] * 4 + [0] * 6, atol=1e-3)  # 80:20 stays 16:4, in the middle


@pytest.mark.parametrize("resize", RESIZE_MODES)
def test_resizing_is_antialiased(resize):
    checkerboard = np.repeat(((np.indices((128, 128)).sum(axis=0) % 2) * 255).astype(np.uint8)[..., None], 3, axis=2)
    grey = decoded(encoded(checkerboard), (12, 12), resize)
    assert grey.std() < 3 and abs(grey.mean() - 127.5) < 2


def large(height: int = 700, width: int = 900) -> np.ndarray:
    """A gradient with noise: more than twice as large as wanted, and with detail that resizing removes."""
    pixels = smooth(height, width) + np.random.default_rng(1).normal(0, 25, (height, width, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("resize", RESIZE_MODES)
def test_training_evaluation_and_serving_see_the_same_bits(resize, tmp_path):
    contents = [encoded(noise(*shape, 3)) for shape in SHAPES] + [encoded(smooth(33, 47), "JPEG")]
    check_bits(contents, (8, 8), resize, tmp_path)


@pytest.mark.parametrize("resize", RESIZE_MODES)
def test_large_photos_are_the_same_bits_too(resize, tmp_path):
    photos = [large(), large(900, 700), large(300, 1300)]
    contents = [encoded(photo, "JPEG", quality=85) for photo in photos] + [encoded(photos[0])]
    assert decode_scaled(tf.constant(contents[0]), (64, 64)).shape == (175, 225, 3)
    check_bits(contents, (64, 64), resize, tmp_path)


def check_bits(contents: list[bytes], size: tuple[int, int], resize: str, folder: Path) -> None:
    """Compare pixels that are kept, those that are streamed from them and from files, and those of serving."""
    paths = [str(folder / f"{number} ü.img") for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        Path(path).write_bytes(content)
    eager = np.stack([decoded(content, size, resize) for content in contents])
    pixels = read_images(paths, size, resize)
    assert pixels.kept.dtype == np.uint8
    np.testing.assert_array_equal(pixels.kept, eager)
    for one in (pixels, replace(pixels, kept=None)):
        streamed = list(image_batches(one, 4).as_numpy_iterator())
        assert {batch.dtype for batch in streamed} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(np.concatenate(streamed), eager)
        for images, indices in training_batches(one, lambda index: index, 4, seed=0).take(3).as_numpy_iterator():
            np.testing.assert_array_equal(images, eager[indices])
    signature = tf.function(
        lambda image: decode_images(image, size, resize), input_signature=[tf.TensorSpec([None], tf.string)]
    )
    served = signature(tf.constant(contents))
    assert served.shape == (len(contents), *size, 3)
    np.testing.assert_array_equal(served, eager)
    np.testing.assert_array_equal(signature(tf.constant(contents[:1])), eager[:1])


def test_image_batches_keep_order_and_the_rest(tmp_path):
    batches = list(image_batches(write_greys(tmp_path, range(10)), 4).as_numpy_iterator())
    assert [len(batch) for batch in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(batches)[:, 0, 0, 0], range(10))


# --- JPEGs at a fraction of their size --------------------------------------------------------------------


@pytest.mark.parametrize("side", [31, 95, 96, 97, 191, 192, 193, 383, 384, 385, 500, 767, 768, 769, 1600])
@pytest.mark.parametrize("wanted", [(64, 64), (48, 64)])
def test_a_jpeg_is_decoded_at_the_smallest_ratio_that_is_large_enough(side, wanted):
    content = tf.constant(encoded(smooth(side, 2 * side), "JPEG"))
    height, width, _ = decode_scaled(content, wanted).shape
    ratio = next(ratio for ratio in (1, 2, 4, 8) if height == -(-side // ratio))
    assert width == -(-2 * side // ratio)

    def enough(ratio: int) -> bool:
        return side / ratio >= SPARE * wanted[0] and 2 * side / ratio >= SPARE * wanted[1]

    assert ratio == max((ratio for ratio in (2, 4, 8) if enough(ratio)), default=1)
    if side >= SPARE * wanted[0]:
        assert height >= SPARE * wanted[0] and width >= SPARE * wanted[1]


def test_all_ratios_are_used_and_only_for_jpeg():
    def side(form: str, wanted: int) -> int:
        return decode_scaled(tf.constant(encoded(smooth(800, 800), form)), (wanted, wanted)).shape[0]

    assert [side("JPEG", wanted) for wanted in (600, 300, 266, 134, 133, 67, 66, 8)] == [800, 800, 400, 400, 200, 200,
                                                                                         100, 100]  # fmt: skip
    assert all(side(form, 8) == 800 for form in ("PNG", "GIF", "BMP"))


@pytest.mark.parametrize("resize", RESIZE_MODES)
@pytest.mark.parametrize("shape", [(700, 900), (901, 643), (450, 1337)])
def test_a_fraction_of_the_size_hardly_changes_the_result(shape, resize):
    """By less than half of what the same image would change if it lay one pixel of the result further."""
    y, x = np.mgrid[: shape[0], : shape[1]] / 60
    texture = 40 * np.sin(x * 1.7 + np.sin(y)) + 30 * np.cos(y * 2.3 - x) + 25 * (np.sin(x) * np.cos(y) > 0)
    photo = np.clip(smooth(*shape) * 0.6 + 50 + texture[..., None] * (1.0, 0.8, 0.5), 0, 255).astype(np.uint8)
    for image in (photo, large(*shape)):
        content = tf.constant(encoded(image, "JPEG", quality=90))
        whole = tf.io.decode_image(content, channels=3, expand_animations=False)
        assert decode_scaled(content, (64, 64)).shape[0] <= -(-shape[0] // 2)
        wanted = fit_to_size(whole, (64, 64), resize).numpy()
        changed = np.abs(decode_image(content, (64, 64), resize).numpy() - wanted).mean()
        assert changed < 2 and (image is not photo or changed < np.abs(np.diff(wanted, axis=1)).mean() / 2)


# --- augmentation -----------------------------------------------------------------------------------------


def augmented(images: np.ndarray, names, seed: int = 0) -> np.ndarray:
    """Augment with one seed."""
    return augment_images(tf.constant(images, tf.float32), names, tf.constant([seed, 7], tf.int64)).numpy()


@pytest.mark.parametrize("names", [(name,) for name in AUGMENTATIONS] + [AUGMENTATIONS])
def test_augmentation_follows_from_the_seed_and_differs_by_image(names):
    images = np.repeat(noise(1, 16, 16, 3), 16, axis=0)
    once = augmented(images, names)
    assert once.shape == images.shape and once.dtype == np.float32
    assert once.min() >= 0 and once.max() <= 255
    np.testing.assert_array_equal(once, augmented(images, names))
    assert not np.array_equal(once, augmented(images, names, seed=1))
    assert len(np.unique(once.reshape(16, -1), axis=0)) >= (2 if names == ("flip",) else 16)


def test_augmentation_is_the_same_inside_a_graph():
    images, seed = tf.constant(noise(4, 16, 12, 3), tf.float32), tf.constant([3, 4], tf.int64)
    graph = tf.function(lambda images, seed: augment_images(images, AUGMENTATIONS, seed))
    # Not bitwise: grappler may fold the coefficients differently.
    np.testing.assert_allclose(graph(images, seed), augment_images(images, AUGMENTATIONS, seed), atol=1e-2)


def test_no_names_change_nothing_and_unknown_names_are_refused():
    images = noise(2, 8, 8, 3).astype(np.float32)
    np.testing.assert_array_equal(augmented(images, ()), images)
    with pytest.raises(ValueError, match=r"flip, crop, rotate, color.*'flp'"):
        augmented(images, ("flip", "flp"))


@pytest.mark.parametrize("width", [15, 16])
def test_flip_gives_the_image_or_its_exact_mirror(width):
    images = noise(200, 6, width, 3).astype(np.float32)
    flipped = augmented(images, ("flip",))
    same = (flipped == images).all(axis=(1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert 60 < mirrored.sum() < 140


def test_crop_never_leaves_the_image():
    # Each pixel says where it stands. Reading beyond the border repeats its last pixels, so the steps
    # between the pixels of a crop would not stay equal, and could be 0.
    y, x = np.mgrid[:20, :30].astype(np.float32)
    images = np.repeat(np.stack([x, y, 0 * x], axis=2)[None], 500, axis=0)
    cropped = augmented(images, ("crop",))
    for channel, axis, side in ((0, 2, 30), (1, 1, 20)):
        steps = np.diff(cropped[..., channel], axis=axis)
        zoom = steps.mean(axis=(1, 2))
        assert np.abs(steps - zoom[:, None, None]).max() < 1e-3
        assert zoom.min() > 0.5 and zoom.max() <= 1 + 1e-5
        centre = cropped[..., channel].mean(axis=(1, 2))
        assert centre.min() < 0.44 * side and centre.max() > 0.52 * side  # at a random place
    area = np.diff(cropped[..., 0], axis=2).mean(axis=(1, 2)) * np.diff(cropped[..., 1], axis=1).mean(axis=(1, 2))
    assert area.min() > 0.49 and area.max() < 1 + 1e-4 and 0.7 < area.mean() < 0.8


@pytest.mark.parametrize("names", [("flip",), ("crop",), ("rotate",), ("flip", "crop", "rotate")])
def test_geometry_keeps_a_plain_image_plain(names):
    plain = np.full((64, 9, 12, 3), (10, 120, 250), np.float32)
    np.testing.assert_allclose(augmented(plain, names), plain, atol=1e-3)


def dot_positions(names, at: tuple[int, int], side: int = 41, count: int = 1500) -> np.ndarray:
    """Where a soft dot comes to lie, (y, x) for each of many augmentations; nan where it left the image."""
    y, x = np.mgrid[:side, :side]
    dot = 255 * np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / 8)
    images = augmented(np.repeat(np.stack([dot] * 3, axis=2)[None], count, axis=0), names)[..., 0]
    whole = images.sum(axis=(1, 2), keepdims=True)
    return np.stack([(images * y).sum(axis=(1, 2)), (images * x).sum(axis=(1, 2))], axis=1) / whole[:, :, 0]


@pytest.mark.parametrize("names", [("flip",), ("crop",), ("rotate",), ("flip", "crop", "rotate")])
def test_geometry_does_not_drift(names):
    positions = dot_positions(names, (20, 20))
    deviation = positions.std(axis=0) / np.sqrt(len(positions))
    assert (np.abs(positions.mean(axis=0) - 20) < 4 * deviation + 0.01).all()


def test_rotation_turns_about_the_centre_by_up_to_15_degrees():
    # Two dots at equal distance right and left of the centre in one and the same draw: their middle is where the
    # centre goes, which only the shift moves; the line between them turns by the angle.
    right, left = (dot_positions(("rotate",), (20, x)) for x in (28, 12))
    middle, arm = (right + left) / 2 - 20, (right - left) / 2
    degrees = np.degrees(np.arctan2(arm[:, 0], arm[:, 1]))
    assert 14 < degrees.max() < 15.5 and -15.5 < degrees.min() < -14 and abs(degrees.mean()) < 1
    np.testing.assert_allclose(np.hypot(*arm.T), 8, atol=0.1)  # nothing grows or shrinks
    assert 3.8 < np.abs(middle).max() < 4.4 * np.sqrt(2)  # 10 % of 41 pixels on each axis, whatever the angle
    # The shift is drawn apart from the angle: how far the centre goes says nothing of the turn.
    assert abs(np.corrcoef(degrees, middle[:, 0])[0, 1]) < 0.1


def test_rotation_has_one_direction_for_the_whole_image():
    # A dot above the centre and one right of it turn the same way: right becomes down where up becomes right.
    above, right = dot_positions(("rotate",), (12, 20)), dot_positions(("rotate",), (20, 28))
    below, left = dot_positions(("rotate",), (28, 20)), dot_positions(("rotate",), (20, 12))
    right_goes_down, above_goes_right = (right - left)[:, 0], (above - below)[:, 1]
    np.testing.assert_allclose(right_goes_down, above_goes_right, atol=0.15)
    assert np.abs(right_goes_down).max() > 3


def test_colour_changes_by_up_to_30_percent_and_keeps_the_place():
    images = np.full((400, 4, 4, 3), 100, np.float32)
    brightness = augmented(images, ("color",)).mean(axis=(1, 2, 3)) / 100
    assert 0.7 <= brightness.min() < 0.73 and 1.27 < brightness.max() <= 1.3001
    halves = images.copy()
    halves[:, :, 2:] = 140
    changed = augmented(halves, ("color",))
    assert (changed[:, :, 2:].min(axis=(1, 2, 3)) > changed[:, :, :2].max(axis=(1, 2, 3))).all()
    assert np.ptp(changed, axis=1).max() < 1e-3
    contrast = (changed[:, 0, 2, 0] - changed[:, 0, 1, 0]) / 40 / (changed.mean(axis=(1, 2, 3)) / 120)
    assert contrast.min() < 0.73 and contrast.max() > 1.27


# --- training batches -------------------------------------------------------------------------------------


def write_greys(folder: Path, levels) -> Pixels:
    """A plain 4x4 image of each grey level."""
    paths = [str(folder / f"{level}.png") for level in levels]
    for level, path in zip(levels, paths, strict=True):
        Image.new("RGB", (4, 4), (level,) * 3).save(path)
    return read_images(paths, (4, 4))


def take(pixels: Pixels, batches: int, **options) -> list[tuple]:
    """The first batches, with the index itself as target."""
    settings = {"batch_size": 4, "seed": 0} | options
    return list(training_batches(pixels, lambda index: index, **settings).take(batches).as_numpy_iterator())


def order(batches: list[tuple]) -> list[int]:
    """The indices in their order."""
    return np.concatenate([indices for _, indices in batches]).tolist()


def test_each_epoch_holds_every_image_once_in_its_own_order(tmp_path):
    pixels = write_greys(tmp_path, range(10))
    steps = steps_per_epoch(10, 4)
    assert steps == 3 and steps_per_epoch(8, 4) == 2 and steps_per_epoch(1, 4) == 1
    batches = take(pixels, 3 * steps)
    assert [len(indices) for _, indices in batches] == [4, 4, 2] * 3
    epochs = [order(batches[start : start + steps]) for start in range(0, 9, steps)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, range(10)]}) == 4
    for images, indices in batches:  # image and target belong together
        np.testing.assert_array_equal(images[:, 1, 1, 0], indices)
    assert order(take(pixels, 3 * steps)) == order(batches)
    assert order(take(pixels, 3 * steps, seed=1)) != order(batches)


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_continues_at_any_step_bit_by_bit(kept, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(7)]
    for number, path in enumerate(paths):
        Image.fromarray(np.roll(noise(12, 12, 3), number, axis=1)).save(path)
    pixels = read_images(paths, (4, 4))
    if not kept:
        pixels = replace(pixels, kept=None)
    options = {"augment": AUGMENTATIONS, "batch_size": 3, "seed": 5}
    whole = take(pixels, 9, **options)
    for first in ((2, 0), (1, 2), (0, 1)):
        start = first[0] * 3 + first[1]
        tail = take(pixels, 9 - start, first=first, **options)
        for (images, indices), (later_images, later_indices) in zip(whole[start:], tail, strict=True):
            np.testing.assert_array_equal(indices, later_indices)
            np.testing.assert_array_equal(images, later_images)
    # The same image looks different in each epoch.
    views = [images[list(indices).index(0)] for images, indices in whole if 0 in indices]
    assert len(views) == 3 and not any(np.array_equal(views[0], view) for view in views[1:])


def test_targets_may_be_labels_with_weights(tmp_path):
    pixels = write_greys(tmp_path, range(5))
    labels, weights = tf.constant(np.eye(5, dtype="float32")), tf.range(5, dtype=tf.float32)
    batches = training_batches(pixels, lambda index: (tf.gather(labels, index), tf.gather(weights, index)), 2, seed=0)
    for images, label, weight in batches.take(3).as_numpy_iterator():
        np.testing.assert_array_equal(label.argmax(axis=1), images[:, 0, 0, 0])
        np.testing.assert_array_equal(weight, images[:, 0, 0, 0])
