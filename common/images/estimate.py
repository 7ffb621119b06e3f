"""How long a run on images would take, from a few timed steps."""

from __future__ import annotations

import keras
import numpy as np

from common.images.batches import steps_per_epoch
from common.images.dataset import ImageSet
from common.images.folding import fold_batch_norm
from common.images.sources import Source
from common.progress import median_seconds
from common.training import use_xla


def seconds_of_run(
    model: keras.Model, source: Source, data: ImageSet, images: np.ndarray, targets: np.ndarray,
    *, views: int, epochs: int, new_heads: int, seeds: int,
) -> float:  # fmt: skip
    """Return the seconds of feature extraction, fine-tuning and evaluation; this changes the weights of the model.

    Args:
        model: pixels -> class probabilities, with its trainable weights as in training.
        source: its part up to the features.
        data: the images.
        images: a training batch, float32 [n, height, width, 3].
        targets: of these images, float32 [n, classes].
        views: of each training image for the head.
        epochs: of fine-tuning.
        new_heads: fitted after fine-tuning, each on features of train and validation.
        seeds: runs of fine-tuning.
    """
    trained = fold_batch_norm(model)
    trained.compile("adam", "categorical_crossentropy", jit_compile=use_xla())
    step = median_seconds(lambda: trained.train_on_batch(images, targets))
    forward = median_seconds(lambda: source.forward(images)) / len(images)
    train, val, test = len(data.train), len(data.val), len(data.test)
    passes = views * train + val + test  # of the frozen source
    passes += seeds * (new_heads * (train + val) + test) + test  # fine-tuned, and in the proof
    return passes * forward + seeds * epochs * (steps_per_epoch(train, len(images)) * step + val * forward)
