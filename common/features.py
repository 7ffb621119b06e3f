"""Run a frozen backbone over the pictures once, keep what it said on disk, and train the head on that."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from common.data.images import augment_images, image_batches
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

    Returns:
        A read-only memory map, float32 [views, n, feature_width].
    """
    key = _cache_key(source, paths, resize, views, *((tuple(augment), seed) if views > 1 else ()))
    final, partial = cache / f"{key}.npy", cache / f"{key}.partial.npy"
    if not final.exists():
        cache.mkdir(parents=True, exist_ok=True)
        shape = (views, len(paths), source.feature_width)
        written = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
        predict = tf.function(lambda images: source.extractor(images, training=False), reduce_retracing=True)
        batches = image_batches(paths, source.image_size, batch_size, resize=resize)
        progress = ProgressLine(title, len(paths) * views)
        for view in range(views):
            for step, images in enumerate(batches):
                if view:
                    images = augment_images(images, augment, seed=tf.constant([seed * 1000 + view, step], tf.int64))
                start = step * batch_size
                written[view, start : start + len(images)] = predict(images)
                progress.update(view * len(paths) + start + len(images))
        progress.close()
        written.flush()
        del written
        os.replace(partial, final)  # a killed run leaves only the .partial file, which nobody reads
    return np.load(final, mmap_mode="r")


def _cache_key(source: Source, paths: Sequence[str], resize: str, *settings) -> str:
    digest = hashlib.sha256(source.fingerprint().encode())
    digest.update(json.dumps([resize, source.image_size, *settings], default=str).encode())
    for path in paths:
        status = os.stat(path)
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


class FeatureBatches(keras.utils.PyDataset):
    """Shuffled batches of memory-mapped features: only the rows of one batch are in memory.

    Args:
        features: float32 [views, n, width], as `extract_features` returns them.
        targets: float32 [n, classes], one-hot.
        weights: float32 [n], sample weights.
        mean, std: float32 [width], to standardise with.
        batch_size: rows in a batch.
        seed: decides the order; None keeps the order given.
    """

    def __init__(self, features, targets, weights, mean, std, batch_size: int, seed: int | None):
        super().__init__()
        self.features, self.targets, self.weights = features, targets, weights
        self.mean, self.std, self.batch_size, self.seed, self.epoch = mean, std, batch_size, seed, 0
        self.on_epoch_end()

    def __len__(self) -> int:
        return -(-self.features.shape[0] * self.features.shape[1] // self.batch_size)

    def __getitem__(self, step: int):
        views, rows = np.divmod(
            self.order[step * self.batch_size : (step + 1) * self.batch_size], self.features.shape[1]
        )
        return (self.features[views, rows] - self.mean) / self.std, self.targets[rows], self.weights[rows]

    def on_epoch_end(self) -> None:
        count = self.features.shape[0] * self.features.shape[1]
        rng = np.random.default_rng((self.seed or 0, self.epoch))
        self.order = np.arange(count) if self.seed is None else rng.permutation(count)
        self.epoch += 1


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

    Returns:
        History rows, as `training.fit_stage` gives them.
    """
    rows = train.shape[0] * train.shape[1]
    batch_size = int(np.clip(rows // 20, 16, 256))  # few pictures still make 20 steps a pass
    mean, std = mean_and_std(train)
    weights = np.ones(len(train_targets), "float32") if sample_weights is None else sample_weights
    batches = FeatureBatches(train, train_targets, weights, mean, std, batch_size, seed)
    held_out = FeatureBatches(val[None], val_targets, np.ones(len(val), "float32"), mean, std, 1024, None)
    inputs = keras.Input((train.shape[2],))
    small = keras.layers.Dense(
        head.units, activation="softmax", dtype="float32", kernel_initializer="zeros", name="linear_head"
    )
    model = keras.Model(inputs, small(inputs))
    history = fit_stage(
        model,
        batches,
        stage="head",
        epochs=epochs,
        steps=len(batches),
        validation=held_out,
        optimizer=DiscriminativeAdamW(
            learning_rate=warmup_cosine(learning_rate, epochs * len(batches)), weight_decay=weight_decay
        ),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=label_smoothing),
        select_by="cross_entropy",
        patience=patience,
        every=10,
    )
    kernel, bias = (weight.astype("float64") for weight in small.get_weights())
    kernel = kernel / std[:, None]
    head.set_weights([kernel, bias - mean @ kernel])
    return history
