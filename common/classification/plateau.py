"""Training from random weights until validation stops improving: the from-scratch baseline of classifiers."""

from __future__ import annotations

from collections.abc import Callable

import keras

from common.classification.training import fit_stage


def fit_to_plateau(
    model: keras.Model, batches_from: Callable, *, optimizer: Callable[[float], keras.optimizers.Optimizer],
    rate: float, epochs: int, stage: str, save: Callable[[str], dict], patience: int = 15, **options,
) -> tuple[list[dict], str]:  # fmt: skip
    """Train from scratch until validation stops improving, twice: at a learning rate, then at a tenth of it.

    Args:
        model, batches_from, **options: as for `fit_stage`.
        optimizer: learning rate -> a new optimizer.
        rate: the first learning rate.
        epochs: at most, at each rate.
        patience: epochs without improvement on validation that make a plateau.
        stage: name of the first part in the history; the second is `STAGE_low_rate`.
        save: name of a stage -> where it saves its checkpoints, as `fit_stage` takes it (`Run.saves`).

    Returns:
        (history rows, how it ended: "stopped at a plateau after 31 epochs" or "reached its limit, after 60 epochs").
    """
    history, plateau = [], True
    for part, factor in ((stage, 1.0), (f"{stage}_low_rate", 0.1)):
        rows = fit_stage(
            model, batches_from, stage=part, epochs=epochs, patience=patience, optimizer=optimizer(rate * factor),
            start_counts=factor < 1, **save(part), **options,
        )  # fmt: skip
        plateau = plateau and len(rows) < epochs
        history += rows
    end = f"stopped at a plateau after {len(history)}" if plateau else f"reached its limit, after {len(history)}"
    return history, f"{end} epochs"
