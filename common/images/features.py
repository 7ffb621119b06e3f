"""Features of a frozen source, extracted once and cached on disk; the head on those of a fine-tuned one."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from common.checkpoints import stop_at_next_step
from common.files import room_for, write_json
from common.images.batches import augment_images, image_batches
from common.images.dataset import ImageSet
from common.images.pixels import Pixels
from common.images.sources import Source
from common.linear_head import REFIT_PENALTY, fit_on_both
from common.progress import ProgressLine


def extract_features(
    source: Source,
    pixels: Pixels,
    cache: Path,
    *,
    batch_size: int = 64,
    augment: Sequence[str] = (),
    views: int = 1,
    seed: int = 0,
    title: str = "features",
    save_every: float = 30.0,
    forward: Callable | None = None,
    engine: str = "tensorflow",
) -> np.ndarray:
    """Extract the features of images, or read them from the cache of an earlier run.

    Args:
        source: the frozen model.
        pixels: n images, of the source's input size: `read_images(PATHS, source.image_size)`.
        cache: folder for the feature files; one file per source, set of images and preprocessing.
        batch_size: images per batch.
        augment: augmentations of the extra views, as for `augment_images`.
        views: views per image: the original, then augmented copies.
        seed: of the augmentation.
        title: of the progress line.
        save_every: seconds between saves; a killed process continues from the last one.
        forward: pixels float32 [batch, height, width, 3] -> features float32 [batch, feature_width]; None for
            `source.forward`.
        engine: name of what that runs on; each has files of its own.

    Returns:
        A read-only memory map, float32 [views, n, feature_width].

    Raises:
        UserError: not enough disk space.
    """
    settings = [
        views,
        *((tuple(augment), seed) if views > 1 else ()),
        *((engine,) if engine != "tensorflow" else ()),
    ]
    key = _cache_key(source, pixels, *settings)
    final = cache / f"{key}.npy"
    if not final.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _write_features(
            final, source, forward or source.forward, pixels, batch_size, augment, views, seed, title, save_every
        )
    return np.load(final, mmap_mode="r")


def extract_splits(
    source: Source, data: ImageSet, cache: Path, *, augment: Sequence[str], views: int, seed: int, save_every: float,
    bfloat16: bool,
) -> tuple[dict[str, np.ndarray], dict]:  # fmt: skip
    """Extract the features of each split from a frozen source, with the engine that is fastest here.

    Those of test are always TensorFlow's in float32, as the exported model computes them.

    Args:
        source, cache, augment, seed, save_every: as for `extract_features`.
        data: the images.
        views: of each training image.
        bfloat16: whether a copy of the source in bfloat16 may compute those of train and validation.

    Returns:
        (float32 [views, n, width] of each split, one view of val and test; what `Engine.report` returns).
    """
    engine, report, options = {}, {"name": "tensorflow"}, dict(cache=cache, save_every=save_every)
    if bfloat16 or importlib.util.find_spec("openvino"):  # optional: requirements-fast.txt
        of = importlib.import_module("common.images.engine")
        choose = of.choose_bfloat16 if bfloat16 else of.choose_engine
        chosen = choose(source, data.train.pixels, views * len(data.train) + len(data.val), cache / "engine.json")
        engine, report = {"forward": chosen.forward, "engine": chosen.name}, chosen.report()
    return {
        "train": extract_features(
            source, data.train.pixels, title="features of train", augment=augment, views=views, seed=seed,
            **engine, **options,
        ),
        "val": extract_features(source, data.val.pixels, title="features of val", **engine, **options),
        "test": extract_features(source, data.test.pixels, title="features of test", **options),
    }, report  # fmt: skip


def refit_head(
    head: keras.layers.Dense, source: Source, data: ImageSet, cache: Path, *,
    sample_weights: np.ndarray, val_weights: np.ndarray, penalty: float, save_every: float = 30.0,
) -> np.ndarray:  # fmt: skip
    """Fit the head on the features of a fine-tuned source, on train and validation.

    The source was not trained on validation, so that its features of it are as those of new images (last-layer
    retraining, arXiv:2204.02937).

    Args:
        head: of the classifier, [feature width] -> [classes]; its weights are set.
        source: fine-tuned.
        data: its images of train and val are read.
        cache: as for `extract_features`.
        sample_weights: of the training images, float32 [n].
        val_weights: of the validation images, float32 [m].
        penalty: of the head on the frozen source; a weak one is raised to REFIT_PENALTY.
        save_every: as for `extract_features`.

    Returns:
        Probabilities for validation, float32 [m, classes], as of `linear_head.fit_on_both`.
    """
    pixels, n = data.train.pixels + data.val.pixels, len(data.train)
    found = extract_features(source, pixels, cache, save_every=save_every, title="new head")
    return fit_on_both(
        head, found[:, :n], data.train.labels, found[0, n:], data.val.labels, sample_weights=sample_weights,
        val_weights=val_weights, val_groups=data.val.groups, penalty=max(penalty, REFIT_PENALTY),
    )  # fmt: skip


def seed_of_view(seed: int, view: int, step: int) -> tf.Tensor:
    """Return the seed of the augmentation of one batch of a view."""
    return tf.constant([seed * 1000 + view, step], tf.int64)


def _write_features(
    final: Path, source: Source, forward: Callable, pixels: Pixels, batch_size, augment, views, seed, title, save_every
) -> None:
    """Fill a .partial file batch by batch, continuing that of a killed process, and rename it when complete."""
    partial, finished = final.with_suffix(".partial.npy"), final.with_suffix(".finished.json")
    shape = (views, len(pixels), source.feature_width)
    steps = -(-len(pixels) // batch_size)
    done = json.loads(finished.read_text())["batches"] if finished.exists() and partial.exists() else 0
    if not done:
        _reserve(partial, shape)
    written = np.lib.format.open_memmap(partial, mode="r+")

    progress = ProgressLine(title, len(pixels) * views)
    saved_at = time.monotonic()
    with stop_at_next_step() as stop:
        for view in range(done // steps, views):
            first = done % steps
            batches = image_batches(pixels.take(slice(first * batch_size, None)), batch_size)
            for step, images in enumerate(batches, start=first):
                if view:
                    images = augment_images(images, augment, seed=seed_of_view(seed, view, step))
                start = step * batch_size
                written[view, start : start + len(images)] = forward(images)
                done += 1
                progress.update(view * len(pixels) + start + len(images))
                if stop.asked or time.monotonic() - saved_at > save_every:
                    written.flush()  # first the rows, then the record of them
                    write_json(finished, {"batches": done})
                    saved_at = time.monotonic()
                if stop.asked:
                    raise KeyboardInterrupt
    progress.close()
    written.flush()
    os.replace(partial, final)
    finished.unlink(missing_ok=True)


def _reserve(path: Path, shape: tuple[int, ...]) -> None:
    """Write a file of zeros and reserve its disk space: a memory map without space would kill the process later."""
    with room_for("the features", path.parent, 4 * math.prod(shape)):
        try:
            np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            if hasattr(os, "posix_fallocate"):  # not on macOS
                with open(path, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError:
            path.unlink(missing_ok=True)
            raise


def _cache_key(source: Source, pixels: Pixels, *settings) -> str:
    digest = hashlib.sha256(source.fingerprint().encode())
    digest.update(json.dumps([pixels.resize, pixels.size, *settings], default=str).encode())
    digest.update("\n".join(pixels.hashes).encode())
    return digest.hexdigest()[:24]
