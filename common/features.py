"""Run a frozen backbone over the pictures once, keep what it said on disk, and train the head on that."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from common.checkpoints import stop_at_next_step
from common.data.images import augment_images, image_batches
from common.runs import write_json
from common.sources import Source
from common.training import DiscriminativeAdamW, ProgressLine, fit_stage, warmup_cosine


def extract_features(
    source: Source,
    paths: Sequence[str],
    cache: Path,
    *,
    batch_size: int = 64,
    resize: str = "crop",
    augment: Sequence[str] = (),
    views: int = 1,
    seed: int = 0,
    title: str = "features",
    save_every: float = 30.0,
) -> np.ndarray:
    """Run a source over pictures, or read what an earlier run wrote.

    Args:
        source: the frozen model.
        paths: n picture files.
        cache: folder for the feature files; one file for each source, set of pictures and preprocessing.
        batch_size: pictures in a batch.
        resize: as for `decode_image`.
        augment: how the extra views are changed, as for `augment_images`.
        views: how many times to look at each picture: first as it is, then augmented.
        seed: decides the augmentation.
        title: what the progress line calls it.
        save_every: seconds between saves; a killed process goes on from the last.

    Returns:
        A read-only memory map, float32 [views, n, feature_width].
    """
    key = _cache_key(source, paths, resize, views, *((tuple(augment), seed) if views > 1 else ()))
    final = cache / f"{key}.npy"
    if not final.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _write_features(final, source, paths, batch_size, resize, augment, views, seed, title, save_every)
    return np.load(final, mmap_mode="r")


def _write_features(
    final: Path, source: Source, paths, batch_size, resize, augment, views, seed, title, save_every
) -> None:
    """Fill a .partial file batch by batch, from where a killed process left it, and rename it when it is whole."""
    partial, finished = final.with_suffix(".partial.npy"), final.with_suffix(".finished.json")
    shape = (views, len(paths), source.feature_width)
    steps = -(-len(paths) // batch_size)
    done = json.loads(finished.read_text())["batches"] if finished.exists() and partial.exists() else 0
    written = np.lib.format.open_memmap(partial, mode="r+" if done else "w+", dtype=np.float32, shape=shape)

    predict = tf.function(lambda images: source.extractor(images, training=False), reduce_retracing=True)
    progress = ProgressLine(title, len(paths) * views)
    saved_at = time.monotonic()
    with stop_at_next_step() as stop:
        for view in range(done // steps, views):
            first = done % steps
            batches = image_batches(paths[first * batch_size :], source.image_size, batch_size, resize=resize)
            for step, images in enumerate(batches, start=first):
                if view:
                    images = augment_images(images, augment, seed=tf.constant([seed * 1000 + view, step], tf.int64))
                start = step * batch_size
                written[view, start : start + len(images)] = predict(images)
                done += 1
                progress.update(view * len(paths) + start + len(images))
                if stop.asked or time.monotonic() - saved_at > save_every:
                    written.flush()  # first the rows, then the claim that they are there
                    write_json(finished, {"batches": done})
                    saved_at = time.monotonic()
                if stop.asked:
                    raise KeyboardInterrupt
    progress.close()
    written.flush()
    os.replace(partial, final)
    finished.unlink(missing_ok=True)


def _cache_key(source: Source, paths: Sequence[str], resize: str, *settings) -> str:
    digest = hashlib.sha256(source.fingerprint().encode())
    digest.update(json.dumps([resize, source.image_size, *settings], default=str).encode())
    for path in paths:
        status = os.stat(path)
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


def feature_batches(
    features: np.ndarray, targets: np.ndarray, weights: np.ndarray, mean: np.ndarray, std: np.ndarray,
    batch_size: int, seed: int | None, first: tuple[int, int] = (0, 0),
) -> tf.data.Dataset:  # fmt: skip
    """Stream standardised batches of memory-mapped features: only the rows of one batch are in memory.

    Not a keras PyDataset: Keras ends an epoch of it after a first look, before there was one, and so shifts what
    epoch has which order; a stage that is resumed inside an epoch would see other batches.

    Args:
        features: float32 [views, n, width], as `extract_features` returns them.
        targets: float32 [n, classes], one-hot.
        weights: float32 [n], sample weights.
        mean, std: float32 [width], to standardise with.
        batch_size: rows in a batch; the last one of an epoch may hold fewer.
        seed: with the epoch's number it decides the order, and there is no end; None keeps the order, once.
        first: (epoch, step) to begin with.

    Returns:
        A dataset of (float32 [batch, width], float32 [batch, classes], float32 [batch]).
    """
    count = features.shape[0] * features.shape[1]

    def batches():
        epoch, step = first
        while True:
            order = np.arange(count) if seed is None else np.random.default_rng((seed, epoch)).permutation(count)
            for start in range(step * batch_size, count, batch_size):
                views, rows = np.divmod(order[start : start + batch_size], features.shape[1])
                yield (features[views, rows] - mean) / std, targets[rows], weights[rows]
            if seed is None:
                return
            epoch, step = epoch + 1, 0

    signature = tuple(
        tf.TensorSpec((None, *shape), tf.float32) for shape in (features.shape[2:], targets.shape[1:], ())
    )
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    length = tf.data.INFINITE_CARDINALITY if seed is not None else -(-count // batch_size)
    return dataset.apply(tf.data.experimental.assert_cardinality(length)).prefetch(4)


def mean_and_std(features: np.ndarray, chunk: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each feature, reading the memory map in pieces.

    Args:
        features: float32 [views, n, width].
        chunk: rows read at once.

    Returns:
        (mean, std), float32 [width]; a feature that never changes, but for rounding, has std 1.
    """
    count, total, squares = 0, 0.0, 0.0
    for view in features:
        for start in range(0, len(view), chunk):
            rows = np.asarray(view[start : start + chunk], np.float64)
            count, total, squares = count + len(rows), total + rows.sum(0), squares + np.square(rows).sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    noise = 1e-6 * (np.abs(mean) + std.max())  # float32 cannot tell less apart; dividing by it would blow it up
    return mean.astype("float32"), np.where(std > noise, std, 1.0).astype("float32")


def fit_linear_head(
    head: keras.layers.Dense,
    train: np.ndarray,
    train_targets: np.ndarray,
    val: np.ndarray,
    val_targets: np.ndarray,
    *,
    sample_weights: np.ndarray | None = None,
    epochs: int = 60,
    patience: int = 10,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.05,
    label_smoothing: float = 0.0,
    seed: int = 0,
    checkpoint: Path | None = None,
    save_every: float = 30.0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> list[dict]:
    """Train a linear softmax head on stored features and put it onto the whole model's head.

    The features are standardised for the training, which makes one learning rate fit every backbone; the
    standardisation is folded into the head's weights, so the whole model needs no extra layer.

    Args:
        head: the Dense layer of the whole model, [width] -> [classes]; its weights are set.
        train: float32 [views, n, width].
        train_targets: one-hot float32 [n, classes].
        val: float32 [m, width].
        val_targets: one-hot float32 [m, classes].
        sample_weights: float32 [n]; all 1 where None.
        epochs: at most this many passes.
        patience: passes without a better validation result before stopping.
        learning_rate: peak.
        weight_decay: decoupled, times the learning rate.
        label_smoothing: share of the target spread over all classes.
        seed: decides the order; the initial weights are zero, since one layer has no symmetry to break.
        checkpoint: file that a killed run continues from; None for none.
        save_every: seconds between saves.
        callbacks: more Keras callbacks.

    Returns:
        History rows, as `training.fit_stage` gives them.
    """
    rows = train.shape[0] * train.shape[1]
    batch_size = int(np.clip(rows // 20, 16, 256))  # few pictures still make 20 steps a pass
    mean, std = mean_and_std(train)
    weights = np.ones(len(train_targets), "float32") if sample_weights is None else sample_weights
    steps = -(-rows // batch_size)
    held_out = feature_batches(val[None], val_targets, np.ones(len(val), "float32"), mean, std, 1024, None)
    inputs = keras.Input((train.shape[2],))
    small = keras.layers.Dense(
        head.units, activation="softmax", dtype="float32", kernel_initializer="zeros", name="linear_head"
    )
    model = keras.Model(inputs, small(inputs))
    history = fit_stage(
        model,
        lambda *first: feature_batches(train, train_targets, weights, mean, std, batch_size, seed, first),
        stage="head",
        epochs=epochs,
        steps=steps,
        validation=held_out,
        optimizer=DiscriminativeAdamW(
            learning_rate=warmup_cosine(learning_rate, epochs * steps), weight_decay=weight_decay
        ),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=label_smoothing),
        select_by="cross_entropy",
        patience=patience,
        every=10,
        checkpoint=checkpoint,
        save_every=save_every,
        callbacks=callbacks,
    )
    kernel, bias = (weight.astype("float64") for weight in small.get_weights())
    kernel = kernel / std[:, None]
    head.set_weights([kernel, bias - mean @ kernel])
    return history


def predict_head(head: keras.layers.Dense, features: np.ndarray, chunk: int = 4096) -> np.ndarray:
    """Return what a head says of stored features, read in pieces.

    Args:
        head: [width] -> [classes].
        features: float32 [n, width].
        chunk: rows read at once.

    Returns:
        float32 [n, classes].
    """
    starts = range(0, len(features), chunk)
    return np.concatenate([keras.ops.convert_to_numpy(head(np.asarray(features[at : at + chunk]))) for at in starts])
