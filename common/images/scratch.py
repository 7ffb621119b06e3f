"""The from-scratch baseline of image classification: networks trained on this data alone, until validation stops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np

from common import freezing, training
from common.classification.choice import best_on_validation
from common.classification.plateau import fit_to_plateau
from common.data.splits import SPLITS
from common.images.batches import image_batches
from common.images.dataset import ImageSet
from common.images.folding import fold_batch_norm
from common.images.pixels import read_images
from common.images.sources import Source, load_source
from common.sources.specs import parse_source

RATE = 1e-3  # learning rate of all layers: nothing pretrained is to be preserved
PATIENCE = 15  # epochs without improvement on validation that are a plateau
SMALL = ("bundled:resnet_mini", 64)  # network and size in pixels: on little data often better than a large one


def train_from_scratch(
    data: ImageSet, same: tuple[str, tuple[int, int]], build: Callable[[Source], keras.Model],
    settings: Callable[[ImageSet], dict], *, epochs: int, weight_decay: float, seed: int,
    save: Callable[[str], dict], folder: Path | None = None,
) -> tuple[dict[str, np.ndarray], list[dict], str]:  # fmt: skip
    """Train a small network and that of the source from random weights, each until validation stops improving.

    Args:
        data: the images; validation chooses the network and its epoch.
        same: source and (height, width) of the pretrained model, whose architecture is trained beside the small one,
            unless it is the small one.
        build: source -> classifier, pixels to probabilities.
        settings: images of the network's input size -> batches, loss, steps and validation, as `fit_stage` takes them.
        epochs: at most, at each of two learning rates.
        weight_decay: of AdamW.
        seed: of the initial weights.
        save: stage -> where its checkpoints are, as `Run.saves` returns it.
        folder: as for `check_images`.

    Returns:
        (probabilities {"val", "test"}: float32 [n, classes] of the one that is better on validation; history rows of
        both; a sentence on what it is).
    """
    is_small = parse_source(same[0]).name == parse_source(SMALL[0]).name and same[1] == (SMALL[1], SMALL[1])
    found, sentences, history = {}, {}, []
    for number, (spec, size) in enumerate((SMALL,) if is_small else (SMALL, same)):
        keras.utils.set_random_seed(seed)
        source = load_source(spec, size, random_weights=True)
        model, own = build(source), at_size(data, source.image_size, folder)
        freezing.freeze(model, source.backbone, "all", "train")
        rows, ended = fit_to_plateau(
            fold_batch_norm(model), stage=f"scratch_{number}", rate=RATE, epochs=epochs, patience=PATIENCE, save=save,
            optimizer=lambda rate: training.DiscriminativeAdamW(learning_rate=rate, weight_decay=weight_decay),
            **settings(own),
        )  # fmt: skip
        found[number] = {
            name: model.predict(image_batches(split.pixels, 64), verbose=0)
            for name, split in (("val", own.val), ("test", own.test))
        }
        sentences[number] = f"From scratch: the network of {spec}, {source.image_size[0]} pixels, {ended}."
        history += rows
    best = best_on_validation(data.val.labels, {number: of["val"] for number, of in found.items()})
    return found[best], history, sentences[best]


def at_size(data: ImageSet, size: tuple[int, int], folder: Path | None = None) -> ImageSet:
    """Return the same images decoded at another size.

    Args:
        data: the images.
        size: (height, width), in pixels.
        folder: as for `check_images`.
    """
    if data.train.pixels.size == size:
        return data
    whole = data.train.pixels + data.val.pixels + data.test.pixels
    again, start, parts = read_images(whole.paths, size, whole.resize, folder), 0, {}
    for split in SPLITS:
        end = start + len(getattr(data, split))
        parts[split] = replace(getattr(data, split), pixels=again.take(slice(start, end)))
        start = end
    return replace(data, **parts)
