"""Finished runs side by side, TensorBoard, MLflow, and several devices."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from common import runs
from common.errors import UserError
from common.flags import check_installed
from recipes.__main__ import main

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Config:
    out: str
    resume: str | None = None
    seed: int = 0
    epochs: int = 3


def finished(out: Path, accuracy: float, data: str = "demo", **settings) -> Path:
    runs.start(Config(str(out), **settings))
    metrics = {
        "recipe": "toy", "data": data, "source": "bundled:toy", "counts": {"test": 10},
        "test": {"accuracy": accuracy, "accuracy_ci95": [accuracy - 0.1, accuracy + 0.1], "ece": 0.02},
        "baselines": {"frozen": {"accuracy": 0.5}}, "seconds": {"total": 12.3, "head": 1.0},
        "proof": {"passed": accuracy > 0.5}, "peak_memory_mb": 1234.5,
    }  # fmt: skip
    runs.finish(out, metrics, [{"stage": "head", "epoch": 1, "loss": 0.5}])
    return out


# --- compare ------------------------------------------------------------------------------------------------------


def test_runs_stand_side_by_side_with_the_settings_in_which_they_differ(tmp_path, capsys):
    first, second = finished(tmp_path / "a", 0.9), finished(tmp_path / "b", 0.4, epochs=7)
    assert main(["compare", str(first), str(second)]) == 0
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "0.9000 (0.800 to 1.000)" in lines["accuracy"] and "0.4000" in lines["accuracy"]
    assert lines["frozen: accuracy"].count("0.5000") == 2
    assert lines["proof"].split() == ["proof", "passed", "FAILED"]
    assert lines["epochs"].split() == ["epochs", "3", "7"]
    assert "seed" not in lines and "out" not in lines
    assert not any("cannot be compared" in line for line in lines.values())


def test_different_test_data_is_said(tmp_path, capsys):
    main(["compare", str(finished(tmp_path / "a", 0.9)), str(finished(tmp_path / "b", 0.8, data="folder:x"))])
    assert "their scores are not comparable" in capsys.readouterr().out


def test_compare_as_json(tmp_path, capsys):
    main(["compare", "--json", str(finished(tmp_path / "a", 0.9))])
    assert json.loads(capsys.readouterr().out)["metrics"]["test"]["accuracy"] == 0.9


def test_what_is_no_finished_run_is_said(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["compare", str(tmp_path / "empty")]) == 2
    assert "holds no finished run (metrics.json: No such file or directory)" in capsys.readouterr().err


def test_compare_imports_no_tensorflow(tmp_path):
    run = finished(tmp_path / "a", 0.9)
    code = (
        f"import sys; from recipes.__main__ import main; main(['compare', {str(run)!r}]); "
        "assert 'tensorflow' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


# --- TensorBoard and MLflow ---------------------------------------------------------------------------------------


def test_a_missing_package_is_named_before_any_work():
    with pytest.raises(
        UserError, match=r"--mlflow needs the package 'no_such'.*pip install -r requirements-observe.txt"
    ):
        check_installed("--mlflow", "no_such", "requirements-observe.txt")


def test_mlflow_holds_settings_curves_and_report(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="pip install -r requirements-observe.txt")
    from mlflow.tracking import MlflowClient

    from common.tracking import log_to_mlflow

    out = finished(tmp_path / "run", 0.9)
    for name in ("report.html", "model_card.md"):
        (out / name).write_text(name)
    metrics = json.loads((out / "metrics.json").read_text())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # users have a server; a folder needs none in a test
    uri = (tmp_path / "mlruns").as_uri()
    history = [{"stage": "head", "epoch": epoch, "loss": 1.0 / epoch} for epoch in (1, 2)]
    identity = log_to_mlflow(uri, "toy", Config(str(out), epochs=7), metrics, history)
    client = MlflowClient(uri)
    logged = client.get_run(identity).data
    assert logged.params["epochs"] == "7" and logged.metrics["test.accuracy"] == 0.9
    assert logged.tags["source"] == "bundled:toy"
    assert [point.value for point in client.get_metric_history(identity, "head.loss")] == [1.0, 0.5]
    assert {file.path for file in client.list_artifacts(identity)} >= {"report.html", "model_card.md"}


def test_tensorboard_reads_the_curves_of_a_stage(tmp_path):
    pytest.importorskip("tensorboard", reason="pip install -r requirements-observe.txt")
    import keras
    import numpy as np
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from common.tracking import tensorboard_callbacks

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=3, verbose=0, callbacks=tensorboard_callbacks(tmp_path, "head"))
    (events,) = (tmp_path / "tensorboard" / "head").rglob("events.out.tfevents.*")
    reader = EventAccumulator(str(events.parent))
    reader.Reload()
    assert len(reader.Tensors("epoch_loss")) == 3


# --- several devices ----------------------------------------------------------------------------------------------


MIRRORED = """
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from common import training
from common.classification.training import fit_stage

rng = np.random.default_rng(0)
x = rng.normal(size=(64, 5)).astype("float32")
y = np.eye(3, dtype="float32")[rng.integers(0, 3, 64)]
data = tf.data.Dataset.from_tensor_slices((x, y))

def train(mirrored, width):
    keras.utils.set_random_seed(0)
    with training.devices(mirrored):
        inputs = keras.Input((5,))
        outputs = keras.layers.Dense(3, activation="softmax")(keras.layers.Dense(width, activation="relu")(inputs))
        model = keras.Model(inputs, outputs)
        optimizer = training.DiscriminativeAdamW(
            learning_rate=1e-2, weight_decay=0.1, slower=[(model.layers[1].variables, 0.1)]
        )
        fit_stage(
            model, lambda epoch, step: data.batch(16).repeat(), stage="toy", epochs=3, steps=4,
            optimizer=optimizer, validation=data.batch(64),
        )
    return model.get_weights()

for width in (8, 12):  # the second model has other shapes: one shared strategy is what makes it work
    for one, other in zip(train(False, width), train(True, width), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
assert training._mirrored_strategy().num_replicas_in_sync == 2
print("equal")
"""


@pytest.mark.slow
def test_two_devices_learn_what_one_learns():
    """In a process of its own: how many logical devices there are is decided once, before the first operation."""
    finished_process = subprocess.run([sys.executable, "-c", MIRRORED], cwd=ROOT, capture_output=True, text=True)
    assert finished_process.stdout.endswith("equal\n"), finished_process.stderr[-3000:]
