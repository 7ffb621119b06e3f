"""Batches of images with boxes: boxes follow their pixels, and a run can resume at any step."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from common.detection import batches
from common.detection.batches import (
    AUGMENTATIONS,
    CROWD,
    GREY,
    PADDING,
    evaluation_batches,
    input_size,
    letterbox,
    to_stored,
    training_batches,
)
from common.detection.checks import turn_boxes
from common.detection.dataset import BoxExamples, load_box_set
from common.detection.drawing import colour_of, draw_boxes

SIZE = (96, 128)
COLOURS = ((235, 20, 20), (20, 235, 20), (20, 20, 235))  # of class 0, 1 and 2
GROUND = (90, 90, 90)


def encoded(pixels: np.ndarray, orientation: int = 1) -> bytes:
    """The bytes of a PNG file, optionally with an EXIF orientation."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, "PNG", **({"exif": exif} if orientation != 1 else {}))
    return file.getvalue()


def rectangles(number: int, size: tuple[int, int], count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image with rectangles that do not touch, and their boxes and classes."""
    rng, pixels = np.random.default_rng(number), np.full((*size, 3), GROUND, np.uint8)
    boxes, labels = [], []
    for place in rng.permutation(6)[:count]:  # each in its own cell of a grid of 2 x 3
        cell_height, cell_width = size[0] // 2, size[1] // 3
        height, width = (int(side * rng.uniform(0.4, 0.8)) for side in (cell_height, cell_width))
        top = place // 3 * cell_height + int(rng.integers(2, cell_height - height - 1))
        left = place % 3 * cell_width + int(rng.integers(2, cell_width - width - 1))
        labels.append(int(rng.integers(3)))
        boxes.append([left, top, left + width, top + height])
        pixels[top : top + height, left : left + width] = COLOURS[labels[-1]]
    return pixels, np.float32(boxes).reshape(-1, 4), np.int64(labels)


@pytest.fixture
def examples(tmp_path: Path) -> BoxExamples:
    """Seven images of odd sizes with 0 to 5 rectangles; the last one is rotated, with an EXIF orientation."""
    sizes = [(96, 128), (240, 320), (131, 77), (60, 201), (150, 150), (96, 128), (160, 110)]
    paths, all_boxes, all_labels = [], [], []
    for number, (size, count) in enumerate(zip(sizes, (3, 5, 2, 4, 3, 0, 3), strict=True)):
        pixels, boxes, labels = rectangles(number, size, count)
        turned = number == len(sizes) - 1
        path = tmp_path / f"{number}.png"
        path.write_bytes(encoded(np.rot90(pixels) if turned else pixels, 6 if turned else 1))
        paths.append(str(path))
        all_boxes.append(boxes)
        all_labels.append(labels)
    return BoxExamples(
        np.array(paths, dtype=object),
        tuple(all_boxes),
        tuple(all_labels),
        tuple(np.zeros(len(one), bool) for one in all_labels),
        np.array(sizes, np.int64),
        np.array([1] * (len(sizes) - 1) + [6], np.int64),
    )


def take(examples: BoxExamples, count: int, **options) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The first batches of a training stream."""
    settings = {"size": SIZE, "batch_size": 4, "seed": 0} | options
    return [tuple(one.numpy() for one in batch) for batch in islice(training_batches(examples, **settings), count)]


def seen_box(image: np.ndarray, label: int, window: np.ndarray) -> np.ndarray:
    """The box of what has the colour of a class in a part of an image, to a fraction of a pixel."""
    left, top, right, bottom = window
    colours = image[top:bottom, left:right]
    others = [channel for channel in range(3) if channel != label]
    strength = colours[..., label] - colours[..., others].max(axis=-1)
    # A blurred edge is where the colour is half as strong; the ramp keeps the fraction of a pixel.
    found = np.clip(2 * strength / np.percentile(strength, 80) - 0.5, 0, 1)
    ends = []
    for axis, start in ((0, left), (1, top)):
        profile = found.max(axis=axis)
        length, middle = profile.sum(), (profile * (np.arange(len(profile)) + 0.5)).sum() / profile.sum()
        ends.append(start + middle + np.array([-0.5, 0.5]) * length)
    return np.float32(ends).T.ravel()


def agreement(image: np.ndarray, box: np.ndarray, label: int, mosaic: bool = False) -> float:
    """Intersection over union of a box and what is seen of its colour in it and just around it."""
    limits = np.array([image.shape[1], image.shape[0]] * 2)
    around = np.stack([np.floor(box[:2]) - 3, np.ceil(box[2:]) + 3]).ravel().clip(0, limits).astype(int)
    inside = box.round().astype(int)
    # Beyond the edge of a tile may lie the same colour. Then the box's other side is looked at.
    sides = [(1, 1, 1, 1)]
    if mosaic:
        sides += [(x, y, not x, not y) for x in (0, 1) for y in (0, 1)]
        sides += [(0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0)]
    seen = (seen_box(image, label, np.where(one, around, inside)) for one in sides)
    return max(overlap(box, one) for one in seen)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    shared = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))


# --- one image ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [(1, 1), (3, 1000), (1000, 3), (641, 479), (96, 128), (95, 128), (192, 256), (7, 9)])
def test_letterbox_keeps_the_shape_and_tells_how_to_go_back(stored):
    y, x = np.mgrid[: stored[0], : stored[1]]
    ramp = np.stack([40 + 160 * (x + 0.5) / stored[1], 220 - 180 * (y + 0.5) / stored[0], 0 * x + 60], axis=2)
    image, scale, size = (one.numpy() for one in letterbox(tf.constant(encoded(ramp.astype(np.uint8))), SIZE))
    assert image.shape == (*SIZE, 3) and image.dtype == scale.dtype == np.float32
    assert tuple(size) == stored
    width, height = (scale * stored[::-1]).round(3)
    assert width % 1 == height % 1 == 0 and max(width / SIZE[1], height / SIZE[0]) == 1
    exact = min(SIZE[0] / stored[0], SIZE[1] / stored[1])
    assert abs(width - exact * stored[1]) <= 0.5 or width == 1
    assert abs(height - exact * stored[0]) <= 0.5 or height == 1
    inner = image[: int(height), : int(width)]
    assert (image[int(height) :] == GREY).all() and (image[:, int(width) :] == GREY).all()
    # Each pixel shows what lies at its place: nothing is moved by half a pixel. At the edges smoothing sees one side.
    y, x = np.mgrid[: inner.shape[0], : inner.shape[1]] + 0.5
    expected = np.stack([40 + 160 * x / width, 220 - 180 * y / height, 0 * x + 60], axis=2)
    middle = tuple(
        slice(2, -2) if side > 8 and before > 4 else slice(None)
        for side, before in zip(inner.shape, stored, strict=False)
    )
    limit = 3 if min(stored) > 10 else 180  # an image of a few pixels is as coarse as they are
    assert np.abs(inner[middle] - expected[middle]).max() < limit


@pytest.mark.parametrize("stored", [(1, 1), (3, 1000), (641, 479)])
def test_boxes_come_back_to_the_sent_image(stored):
    size = np.array(stored)
    _, scale, found = letterbox(tf.constant(encoded(np.zeros((*stored, 3), np.uint8))), SIZE)
    fractions = np.float32([[0, 0, 1, 1], [0.25, 0.5, 0.75, 1], [0.1, 0.2, 0.3, 0.4]])
    boxes = fractions * np.tile(size[::-1], 2).astype(np.float32)
    inputs = boxes * np.tile(scale, 2)
    np.testing.assert_allclose(to_stored(inputs, scale, found), boxes, rtol=1e-5)
    beyond = to_stored(inputs + np.float32([-50, -50, 500, 500]), scale, found).numpy()
    assert (beyond >= 0).all() and (beyond <= np.tile(size[::-1], 2)).all()
    assert to_stored(np.zeros((0, 4), np.float32), scale, found).shape == (0, 4)


def test_serving_runs_it_on_a_batch_of_any_images():
    sizes = [(1, 1), (3, 1000), (641, 479), (96, 128)]
    files = tf.constant([encoded(np.full((*size, 3), 200, np.uint8)) for size in sizes])
    specs = (tf.TensorSpec((*SIZE, 3)), tf.TensorSpec((2,)), tf.TensorSpec((2,), tf.int32))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def serve(files):
        images, scales, stored = tf.map_fn(lambda one: letterbox(one, SIZE), files, fn_output_signature=specs)
        all_of_it = tf.tile(tf.constant([[[0.0, 0.0, SIZE[1], SIZE[0]]]]), [tf.shape(files)[0], 1, 1])
        return images, scales, to_stored(all_of_it, scales, stored)

    images, scales, boxes = serve(files)
    for place, size in enumerate(sizes):
        image, scale, _ = letterbox(files[place], SIZE)
        np.testing.assert_array_equal(images[place], image)
        np.testing.assert_array_equal(scales[place], scale)
        np.testing.assert_allclose(boxes[place, 0], [0, 0, size[1], size[0]], rtol=1e-6)
    assert serve(files[:0])[0].shape == (0, *SIZE, 3)


@pytest.mark.parametrize(
    ("sizes", "side", "expected"),
    [
        ([(480, 640)], 320, (256, 320)),
        ([(640, 480)], 320, (320, 256)),
        ([(128, 128)], 128, (128, 128)),
        ([(480, 640)] * 3 + [(640, 480)], 640, (480, 640)),
        ([(10, 1000)], 256, (32, 256)),
        ([(1, 1)], 5, (32, 32)),
        ([], 200, (192, 192)),
    ],
)
def test_the_size_of_the_input_is_that_of_the_median_image(sizes, side, expected):
    assert input_size(np.array(sizes, np.int64).reshape(-1, 2), side) == expected


def test_evaluation_preprocesses_as_serving_in_order(examples):
    images, scales, stored = (np.concatenate(one) for one in zip(*evaluation_batches(examples, SIZE, 3), strict=True))
    np.testing.assert_array_equal(stored, examples.as_stored().sizes)
    for place, path in enumerate(examples.paths):
        image, scale, _ = letterbox(tf.io.read_file(path), SIZE)
        np.testing.assert_array_equal(images[place], image)
        np.testing.assert_array_equal(scales[place], scale)


# --- boxes follow the pixels ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("augment", "mosaic"),
    [((), 0.0), *(((name,), 0.0) for name in AUGMENTATIONS), (AUGMENTATIONS, 0.0), (AUGMENTATIONS, 0.5), ((), 1.0)],
)
def test_boxes_follow_the_pixels(examples, augment, mosaic):
    values, kept = [], []
    for images, boxes, labels in take(examples, 28, augment=augment, mosaic=mosaic):  # 14 epochs
        assert (images.dtype, boxes.dtype, labels.dtype) == (np.float32, np.float32, np.int32)
        assert images.shape[1:] == (*SIZE, 3) and boxes.shape == (*labels.shape, 4) and len(labels) == len(images)
        assert images.min() >= 0 and images.max() <= 255
        real = labels != PADDING
        assert (boxes[~real] == 0).all() and set(np.unique(labels[real])) <= {0, 1, 2}
        assert not (~real[:, :-1] & real[:, 1:]).any()  # padding stands behind the boxes
        assert (boxes[real] >= 0).all() and (boxes[real] <= [SIZE[1], SIZE[0]] * 2).all()
        assert (boxes[real][:, 2:] > boxes[real][:, :2]).all()
        kept.append(real.sum())
        for image, some, kinds in zip(images, boxes, labels, strict=True):
            for box, label in zip(some[kinds >= 0], kinds[kinds >= 0], strict=True):
                if (box[2:] - box[:2]).min() >= 10:
                    values.append(agreement(image, box, label, mosaic > 0))
    assert min(values) >= 0.9 and len(values) > 150
    drawn = 14 * sum(map(len, examples.boxes))
    assert sum(kept) == drawn if not augment and not mosaic else sum(kept) > 0.8 * drawn


def test_an_object_of_which_too_little_is_left_is_dropped():
    pixels, boxes = tf.zeros((*SIZE, 3)), tf.constant([[10.0, 10, 20, 30], [40, 50, 60, 70], [100, 70, 126, 90]])
    content = tf.constant([126.0, 90.0])

    def placed(shift, labels=(0, 1, 2), zooms=(1.0, 1.0), mirror=False):
        loaded = (pixels, boxes, tf.constant(labels), content)
        result = batches._placed(loaded, SIZE, tf.constant(zooms), tf.constant(shift), tf.constant(mirror))
        return result[1].numpy().tolist(), result[2].numpy().tolist()

    moved = [[0, 10, 2.5, 30], [22.5, 50, 42.5, 70], [82.5, 70, 108.5, 90]]
    assert placed((-17.5, 0.0)) == (moved[1:], [1, 2])  # a quarter of the first is left
    assert placed((-16.9, 0.0))[1] == [0, 1, 2]  # 31 % are
    assert placed((-17.5, 0.0), (CROWD, 1, 2)) == (moved, [CROWD, 1, 2])
    assert placed((-25.0, 0.0), (CROWD, 1, 2))[1] == [1, 2]
    assert placed((0.0, 0.0), mirror=True)[0] == [[106, 10, 116, 30], [66, 50, 86, 70], [0, 70, 26, 90]]
    assert placed((3.0, 1.0), zooms=(0.5, 0.25))[0][0] == [8, 3.5, 13, 8.5]
    assert placed((500.0, 0.0)) == ([], [])


def test_flipping_is_half_of_the_time_exact_and_stays_in_the_corner(examples):
    plain = {0: [], 1: []}
    for images, boxes, _ in take(examples.take(np.array([2])), 60, augment=("flip",)):
        narrow = int(examples.sizes[2][1] * SIZE[0] / examples.sizes[2][0] + 0.5)
        assert (images[0, :, narrow:] == GREY).all() and (images[0, :, :narrow] != GREY).any()
        plain[int(boxes[0, 0, 0] > narrow / 2)].append((images[0, :, :narrow], boxes[0]))
    assert min(map(len, plain.values())) > 15
    (one, box), (other, mirrored) = (found[0] for found in plain.values())
    np.testing.assert_allclose(one, other[:, ::-1], atol=1e-3)
    np.testing.assert_allclose(mirrored, turn_boxes(box, (SIZE[0], narrow), 2), atol=1e-3)


def test_each_change_does_what_its_name_says(examples):
    small = np.float32([[60, 44, 68, 52]])  # in the middle, so that it stays whole
    one = examples.take(np.array([0]))  # fills the input
    one = replace(one, boxes=(small,), labels=(one.labels[0][:1],), crowds=(one.crowds[0][:1],))

    def placed(augment):
        """Zooms in x and y, and the middles, of a hundred images, each [n, 2]."""
        boxes = np.concatenate([boxes[0] for _, boxes, _ in take(one, 100, augment=augment)])
        boxes = boxes[(boxes > 0).all(axis=1) & (boxes < [SIZE[1], SIZE[0]] * 2).all(axis=1)]
        return (boxes[:, 2:] - boxes[:, :2]) / 8, (boxes[:, 2:] + boxes[:, :2]) / 2

    zooms, middles = placed(("scale",))
    assert len(zooms) == 100
    np.testing.assert_allclose(zooms[:, 0], zooms[:, 1], rtol=1e-4)
    assert 0.5 <= zooms.min() < 0.53 and 1.4 < zooms.max() <= 1.5
    assert 0.35 < np.mean(zooms[:, 0] > 0.866) < 0.65  # half as large as often as
    np.testing.assert_allclose(middles, np.tile([64, 48], (100, 1)), atol=1e-2)

    zooms, middles = placed(("crop",))
    shapes = zooms[:, 0] / zooms[:, 1]
    assert 0.86 <= shapes.min() < 0.9 and 1.12 < shapes.max() <= 1.16
    assert zooms.min() >= 0.92 and zooms.prod(axis=1).max() <= 1.22**2 + 1e-4
    assert (middles.std(axis=0) > 1.5).all()

    (image, boxes, _), *_ = take(one, 1, augment=("color",))
    plain, _, _ = letterbox(tf.io.read_file(one.paths[0]), SIZE)
    np.testing.assert_array_equal(boxes[0], small)
    assert np.abs(image[0].mean(axis=(0, 1)) - plain.numpy().mean(axis=(0, 1))).max() > 3


def test_a_mosaic_shows_four_images_and_no_grey(tmp_path):
    paths = []
    for number in range(4):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(encoded(np.full((96, 128, 3), 40 * number, np.uint8)))
    empty = (np.zeros((0, 4), np.float32),) * 4
    none = (np.zeros(0, np.int64),) * 4
    examples = BoxExamples(
        np.array(list(map(str, paths)), object), empty, none, none, np.array([SIZE] * 4), np.ones(4, np.int64)
    )
    several = 0
    for images, boxes, labels in take(examples, 10, augment=(), mosaic=0.5):
        assert boxes.shape == (4, 0, 4) and labels.shape == (4, 0)
        images = images.round()
        assert set(np.unique(images)) <= {0, 40, 80, 120}
        own = images[:, 0, 0, 0] / 40  # the upper left one is the image itself: each is seen once an epoch
        assert sorted(own) == [0, 1, 2, 3]
        for image in images:
            corners = image[[0, 0, -1, -1], [0, -1, 0, -1], 0]
            several += len(set(corners)) > 1
            across = np.flatnonzero(np.diff(image[0, :, 0]))
            assert ((across > 0.28 * SIZE[1]) & (across < 0.72 * SIZE[1])).all() and len(across) <= 1
    assert 10 < several < 25  # of 40, half of them mosaics; some are of one image alone


# --- the stream -------------------------------------------------------------------------------------------


def same(one, other) -> None:
    """Both hold the same batches."""
    assert len(one) == len(other)
    for batch, expected in zip(one, other, strict=True):
        for values, wanted in zip(batch, expected, strict=True):
            np.testing.assert_array_equal(values, wanted)


def test_a_run_continues_at_any_step(examples):
    whole = take(examples, 8, mosaic=0.5)  # 2 batches an epoch, of 4 and of 3
    assert [len(batch[0]) for batch in whole] == [4, 3] * 4
    for first in ((2, 1), (1, 2)):  # the second is the beginning of the next epoch
        start = first[0] * 2 + first[1]
        same(take(examples, 8 - start, mosaic=0.5, first=first), whole[start:])
    other = take(examples, 1, mosaic=0.5, seed=1)
    assert not np.array_equal(whole[0][0], whole[2][0]) and not np.array_equal(whole[0][0], other[0][0])


def test_the_size_of_the_batch_changes_no_image(examples):
    large, small = (take(examples, count, batch_size=size) for count, size in ((2, 7), (14, 1)))
    for batch, singles in zip(large, (small[:7], small[7:]), strict=True):
        for place, (image, boxes, labels) in enumerate(singles):
            np.testing.assert_allclose(image[0], batch[0][place], atol=1e-3)
            np.testing.assert_array_equal(boxes[0], batch[1][place][: boxes.shape[1]])
            np.testing.assert_array_equal(labels[0], batch[2][place][: labels.shape[1]])
            assert (batch[2][place][labels.shape[1] :] == PADDING).all()


def test_images_are_kept_where_there_is_room(examples, capsys, monkeypatch):
    kept = take(examples, 3)
    assert "kept in memory" in capsys.readouterr().out
    streamed = take(examples, 3, cache=False)
    monkeypatch.setattr(batches, "_KEPT_BYTES", 7 * SIZE[0] * SIZE[1] * 3)
    take(examples, 1)
    assert not capsys.readouterr().out
    for one, other in zip(kept, streamed, strict=True):
        assert np.abs(one[0] - other[0]).max() < 2  # whole numbers are kept
        np.testing.assert_array_equal(one[1], other[1])
        np.testing.assert_array_equal(one[2], other[2])


def test_displayed_and_stored_pixels_give_the_same_batches(examples):
    same(take(examples, 2), take(examples.as_stored(), 2))


def test_images_without_boxes_stay_so(examples):
    empty = examples.take(np.array([5, 5]))
    for images, boxes, labels in take(empty, 4, mosaic=0.5):
        assert images.shape == (2, *SIZE, 3) and boxes.shape == (2, 0, 4) and labels.shape == (2, 0)
    (_, boxes, labels), *_ = take(examples, 1, batch_size=7, augment=())
    assert sorted((labels >= 0).sum(axis=1)) == [0, 2, 3, 3, 3, 4, 5] and boxes.shape == (7, 5, 4)


def test_crowds_are_told_apart(examples):
    crowds = tuple(np.arange(len(one)) == 0 for one in examples.labels)
    (_, boxes, labels), *_ = take(replace(examples, crowds=crowds), 1, batch_size=7, augment=())
    (_, same_boxes, expected), *_ = take(examples, 1, batch_size=7, augment=())
    np.testing.assert_array_equal(boxes, same_boxes)
    assert (labels[:, 0] == np.where(expected[:, 0] == PADDING, PADDING, CROWD)).all()
    np.testing.assert_array_equal(labels[:, 1:], expected[:, 1:])


def test_wrong_settings_are_refused(examples):
    with pytest.raises(ValueError, match=r"flip, scale, crop, color\. Received: \['rotate'\]"):
        take(examples, 1, augment=("rotate",))
    with pytest.raises(ValueError, match="from 0 to 1"):
        take(examples, 1, mosaic=2)


def test_real_photos_pass(shared_data, tmp_path):
    data = load_box_set(f"voc:{shared_data / 'bccd'}", tmp_path, limit=2)
    size = input_size(data.train.sizes, 160)
    images, boxes, labels = take(data.train, 1, size=size, batch_size=8, mosaic=0.5)[0]
    assert images.shape[1:] == (128, 160, 3) and (labels >= 0).any() and (boxes <= [160, 128, 160, 128]).all()


# --- drawing ----------------------------------------------------------------------------------------------


def test_boxes_are_drawn_in_the_colour_of_their_class():
    image = np.full((400, 500, 3), 128, np.uint8)
    boxes = np.float32([[50, 60, 150, 200], [200.4, 60, 300, 200], [0, 0, 0, 0], [300, 300, 600, 500]])
    drawn = draw_boxes(image, boxes, np.array([0, 1, -1, -2]), ("cat", "dög"), scores=np.array([0.9, 0.25, 0, 1]))
    assert drawn.size == (500, 400) and drawn.mode == "RGB" and (image == 128).all()
    pixels = np.asarray(drawn)
    for x, y, label in ((50, 150, 0), (149, 150, 0), (100, 199, 0), (200, 150, 1), (299, 150, 1), (300, 350, -2)):
        assert tuple(pixels[y, x]) == colour_of(label)
    for x, y in ((47, 150), (152, 150), (100, 130), (250, 130), (10, 10)):
        assert tuple(pixels[y, x]) == (128, 128, 128)
    assert (pixels[40:60, 50:100] != 128).any()  # the name stands above its box
    plain = np.asarray(draw_boxes(image, boxes, np.array([0, 1, -1, -2]), ("cat", "dög")))
    assert (plain != pixels).any()  # without scores the names are shorter
    assert len({colour_of(label) for label in range(20)}) == 20


@pytest.mark.parametrize("size", [(1, 1), (96, 128), (3, 900)])
def test_small_images_are_enlarged_to_be_read(size):
    image = np.zeros((*size, 3), np.uint8)
    box = np.float32([[0, 0, size[1], size[0]]])
    drawn = draw_boxes(image, box, np.array([0]), ("a",), np.array([1.0]))
    times = drawn.size[0] // size[1]
    assert drawn.size == (size[1] * times, size[0] * times) and max(drawn.size) >= 320
    nothing = draw_boxes(image, np.zeros((0, 4)), np.zeros(0, int), ("a",))
    assert not np.asarray(nothing).any() and nothing.size == drawn.size
