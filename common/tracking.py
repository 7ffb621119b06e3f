"""Experiment tracking: TensorBoard during training, MLflow for finished runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import keras

from common.files import flatten


def tensorboard_callbacks(out: Path, stage: str) -> list[keras.callbacks.Callback]:
    """Return the callbacks that write the curves of a stage for `tensorboard --logdir OUT/tensorboard`."""
    return [keras.callbacks.TensorBoard(str(out / "tensorboard" / stage), write_graph=False)]


def log_to_mlflow(uri: str, recipe: str, config, metrics: dict, history: Sequence[dict]) -> str:
    """Log a finished run: settings, curves, numbers, report and model card; not the model, which stays in OUT.

    Args:
        uri: tracking server or folder, as for `mlflow.set_tracking_uri`.
        recipe: name of the experiment.
        config: the settings, a dataclass with `out`.
        metrics: contents of metrics.json.
        history: rows of history.csv.

    Returns:
        The id of the MLflow run.
    """
    import mlflow  # optional: requirements-observe.txt; the recipe has checked that it is installed

    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(recipe)
    with mlflow.start_run(run_name=Path(config.out).name) as run:
        mlflow.log_params(dataclasses.asdict(config))
        for row in history:
            numbers = {key: value for key, value in row.items() if isinstance(value, float)}
            mlflow.log_metrics({f"{row['stage']}.{key}": value for key, value in numbers.items()}, step=row["epoch"])
        flat = flatten(metrics)
        mlflow.log_metrics({name: float(value) for name, value in flat.items() if isinstance(value, int | float)})
        mlflow.set_tags({name: value for name, value in flat.items() if isinstance(value, str)})
        for name in ("report.html", "model_card.md", "metrics.json"):
            mlflow.log_artifact(str(Path(config.out) / name))
    return run.info.run_id
