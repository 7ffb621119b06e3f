"""Run a frozen backbone over the pictures once, keep what it said on disk, and train the head on that."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from scipy.optimize import minimize

from common.checkpoints import stop_at_next_step
from common.data.images import augment_images, image_batches
from common.progress import ProgressLine
from common.runs import room_for, write_json
from common.sources import Source, load_source
from common.training import copy_weights, dtype_policy


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

    Raises:
        UserError: the disk has no room for it.
    """
    key = _cache_key(source, paths, resize, views, *((tuple(augment), seed) if views > 1 else ()))
    final = cache / f"{key}.npy"
    if not final.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _write_features(final, source, paths, batch_size, resize, augment, views, seed, title, save_every)
    return np.load(final, mmap_mode="r")


def in_bfloat16(source: Source) -> Source:
    """Return a twin of a source, with the same weights, that computes in bfloat16 and gives float32 features."""
    with dtype_policy("mixed_bfloat16"):
        twin = load_source(source.spec, source.image_size[0])
    copy_weights(source.extractor, twin.extractor)
    return twin


def faster_if_it_agrees(source: Source, paths: Sequence[str], resize: str = "crop", pictures: int = 32) -> Source:
    """Return a bfloat16 twin of a source if it says the same of some pictures, else the source itself.

    Args:
        source: computes in float32.
        paths: picture files; the first of them are asked about.
        resize: as for `decode_image`.
        pictures: how many to ask about.

    Returns:
        The twin where the cosine of both features is at least 0.999 for each of the pictures; what it will be
        used for, and why, is printed.
    """
    twin = in_bfloat16(source)
    some = next(iter(image_batches(paths[:pictures], source.image_size, pictures, resize=resize)))
    ours, theirs = (np.asarray(one.look(some), "float64") for one in (source, twin))
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosine = float(np.min(np.sum(ours * theirs, axis=1) / np.maximum(lengths, 1e-12)))
    agrees = cosine >= 0.999
    print(f"  features in {'bfloat16' if agrees else 'float32'}: smallest cosine of both {cosine:.5f}")
    return twin if agrees else source


def _write_features(
    final: Path, source: Source, paths, batch_size, resize, augment, views, seed, title, save_every
) -> None:
    """Fill a .partial file batch by batch, from where a killed process left it, and rename it when it is whole."""
    partial, finished = final.with_suffix(".partial.npy"), final.with_suffix(".finished.json")
    shape = (views, len(paths), source.feature_width)
    steps = -(-len(paths) // batch_size)
    done = json.loads(finished.read_text())["batches"] if finished.exists() and partial.exists() else 0
    if not done:
        _reserve(partial, shape)
    written = np.lib.format.open_memmap(partial, mode="r+")

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
                written[view, start : start + len(images)] = source.look(images)
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


def _reserve(path: Path, shape: tuple[int, ...]) -> None:
    """Make a file of zeros with all its room on the disk: a memory map that finds none later kills the process."""
    with room_for("the features", path.parent, 4 * math.prod(shape)):
        try:
            np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            if hasattr(os, "posix_fallocate"):  # not on macOS
                with open(path, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError:
            path.unlink(missing_ok=True)
            raise


def _cache_key(source: Source, paths: Sequence[str], resize: str, *settings) -> str:
    digest = hashlib.sha256(source.fingerprint().encode())
    digest.update(json.dumps([resize, source.image_size, *settings], default=str).encode())
    for path in paths:
        status = os.stat(path)
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


def mean_and_std(features: Sequence[np.ndarray], chunk: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each feature, reading the memory map in pieces.

    Args:
        features: float32 [views, n, width], or arrays of any length, each [n, width].
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


# Strong to weak, per example and on standardised features: from a handful of pictures to hundreds of thousands.
PENALTIES = tuple(float(penalty) for penalty in np.geomspace(10.0, 1e-5, 13))
# Fine-tuning starts from a head with weights at least this small: one that is sure of itself teaches the backbone
# little at first and too much then. Chosen on the digits of the demo, whose validation is too small to tell.
START_PENALTY = 0.3
_IN_MEMORY = 2**28  # bytes of features that are standardised once; more are read again in each pass


def fit_linear_head(
    head: keras.layers.Dense,
    train: np.ndarray,
    train_labels: np.ndarray,
    val: np.ndarray,
    val_labels: np.ndarray,
    *,
    sample_weights: np.ndarray | None = None,
    penalties: Sequence[float] = PENALTIES,
    patience: int = 2,
) -> list[dict]:
    """Fit a linear softmax head on stored features and put it onto the whole model's head.

    Multinomial logistic regression by L-BFGS on all features, one penalty on the squared weights after the other,
    each from the solution of the one before; validation cross-entropy chooses. The features are standardised for
    that, which makes the same penalties fit every backbone; the standardisation is folded into the head's weights.

    Args:
        head: the Dense layer of the whole model, [width] -> [classes]; its weights are set.
        train: float32 [views, n, width].
        train_labels: int [n].
        val: float32 [m, width].
        val_labels: int [m].
        sample_weights: float32 [n]; all 1 where None.
        penalties: falling.
        patience: penalties without a better validation result before stopping.

    Returns:
        A history row for each penalty: stage, epoch (its number), penalty, loss, val_loss, val_accuracy,
        val_cross_entropy.
    """
    weights = np.ones(train.shape[1], "float32") if sample_weights is None else sample_weights
    objective = _PenalisedRegression([(view, train_labels, weights) for view in train], head.units)
    progress = ProgressLine("head", len(penalties))
    solution, best, history = objective.start(), (np.inf, 0, None), []
    for number, penalty in enumerate(penalties, start=1):
        solution, loss = objective.minimise(solution, penalty)
        head.set_weights(objective.kernel_and_bias(solution))
        said = predict_head(head, val)
        cross_entropy = -float(np.mean(np.log(np.maximum(said[np.arange(len(val)), val_labels], 1e-30))))
        history.append(
            {"stage": "head", "epoch": number, "penalty": penalty, "loss": loss, "val_loss": cross_entropy,
             "val_accuracy": float(np.mean(said.argmax(axis=1) == val_labels)), "val_cross_entropy": cross_entropy}
        )  # fmt: skip
        progress.update(number)
        if cross_entropy < best[0]:
            best = (cross_entropy, number, head.get_weights())
        elif number - best[1] >= patience:
            break
    head.set_weights(best[2])
    chosen = history[best[1] - 1]
    progress.close(f"; penalty {chosen['penalty']:.3g}, validation accuracy {chosen['val_accuracy']:.4f}")
    return history


def linear_head_weights(
    pieces: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], classes: int, penalty: float
) -> list[np.ndarray]:
    """Return the weights of a linear softmax head on stored features for one penalty, as `fit_linear_head` finds them.

    Args:
        pieces: (features float32 [n, width], labels int [n], weights float32 [n]) of each part and view.
        classes: of the head.
        penalty: on the squared weights, for standardised features.

    Returns:
        Kernel [width, classes] and bias [classes], as a Dense layer takes them.
    """
    objective = _PenalisedRegression(pieces, classes)
    solution, _ = objective.minimise(objective.start(), penalty)
    return objective.kernel_and_bias(solution)


class _PenalisedRegression:
    """Weighted mean cross-entropy of a linear softmax model of standardised features, plus penalty / 2 * |kernel|^2.

    A solution is flat: the kernel [width, classes], row by row, and then the bias.
    """

    def __init__(self, pieces: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], classes: int):
        self.pieces, self.shape = pieces, (pieces[0][0].shape[1] + 1, classes)
        self.mean, self.std = mean_and_std([rows for rows, _, _ in pieces])
        self.total = float(sum(weights.sum() for _, _, weights in pieces))
        small = sum(rows.nbytes for rows, _, _ in pieces) <= _IN_MEMORY
        self.kept = [(tf.constant(rows), *rest) for rows, *rest in self._read()] if small else None

    def _read(self, chunk: int = 4096) -> Iterator[tuple]:
        for rows, labels, weights in self.pieces:
            for start in range(0, len(rows), chunk):
                own = slice(start, start + chunk)
                yield (np.asarray(rows[own]) - self.mean) / self.std, labels[own], weights[own].astype("float32")

    def start(self) -> np.ndarray:
        return np.zeros(np.prod(self.shape))

    def minimise(self, start: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
        found = minimize(
            self._loss_and_slope,
            start,
            args=(penalty,),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 200, "ftol": 1e-5},
        )
        return found.x, float(found.fun)

    def _loss_and_slope(self, flat: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        solution, loss, slope = tf.constant(flat.reshape(self.shape), tf.float32), 0.0, np.zeros(self.shape)
        for rows, labels, weights in self.kept or self._read():
            block_loss, block_slope = _cross_entropy_and_slope(rows, labels, weights, solution)
            loss += float(block_loss)
            slope += block_slope.numpy()
        kernel, slope = flat.reshape(self.shape)[:-1], slope / self.total
        slope[:-1] += penalty * kernel
        return loss / self.total + penalty / 2 * float(np.sum(kernel**2)), slope.ravel()

    def kernel_and_bias(self, flat: np.ndarray) -> list[np.ndarray]:
        """Fold the standardisation into the weights."""
        solution = flat.reshape(self.shape)
        kernel = solution[:-1] / self.std[:, None]
        return [kernel, solution[-1] - self.mean @ kernel]


@tf.function(reduce_retracing=True)
def _cross_entropy_and_slope(rows, labels, weights, solution):
    """Return the weighted sum of the cross-entropies of a block, and its slope in (kernel, then bias)."""
    logits = rows @ solution[:-1] + solution[-1]
    loss = weights * tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    slope = weights[:, None] * (tf.nn.softmax(logits) - tf.one_hot(labels, tf.shape(logits)[1]))
    return tf.reduce_sum(loss), tf.concat([tf.matmul(rows, slope, transpose_a=True), tf.reduce_sum(slope, 0)[None]], 0)


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
