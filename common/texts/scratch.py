"""The from-scratch baseline of text classification: the network of the source, trained until validation stops."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np

from common import training
from common.classification.plateau import fit_to_plateau
from common.texts import models

RATE, EPOCHS, PATIENCE = 5e-4, 20, 3  # learning rate of all layers; epochs are long where texts are many


def train_from_scratch(
    spec: str, classes: int, settings: Callable[[keras.Model, keras.Model], dict],
    predict: Callable[[keras.Model, keras.Model], dict[str, np.ndarray]], *, dropout: float, weight_decay: float,
    gradient_norm: float, seed: int, save: Callable[[str], dict],
) -> tuple[dict[str, np.ndarray], list[dict], str]:  # fmt: skip
    """Train the network of a source, token embeddings included, from random weights.

    Args:
        spec: the source, of which only the architecture and the tokenizer are used.
        classes: number of classes.
        settings: (encoder, classifier) -> batches, loss, steps and validation, as `fit_stage` takes them.
        predict: (encoder, classifier) -> {"val", "test"}: probabilities, float32 [n, classes].
        dropout, weight_decay, gradient_norm: as in fine-tuning.
        seed: of the initial weights.
        save: stage -> where its checkpoints are, as `Run.saves` returns it.

    Returns:
        (what `predict` returns, history rows, a sentence on what it is).
    """
    keras.utils.set_random_seed(seed)
    source, encoder, model = models.load_classifier(spec, classes, dropout, random_weights=True)
    models.unfreeze(model, source.backbone, tables=True)
    rows, ended = fit_to_plateau(
        model, stage="scratch", rate=RATE, epochs=EPOCHS, patience=PATIENCE, save=save,
        optimizer=lambda rate: training.DiscriminativeAdamW(
            learning_rate=rate, weight_decay=weight_decay, global_clipnorm=gradient_norm
        ),
        **settings(encoder, model),
    )  # fmt: skip
    return predict(encoder, model), rows, f"From scratch: the network of {spec}, {ended}."
