"""Fine-tuning a SavedModel through SavedModelLayer, beside the same network as Keras layers, in one run.

    python benchmarks/hub_layer.py                           # two minutes on 2 cores

MobileNetV2 with the ImageNet weights of ../shared, once built in Keras 3 and once written as a SavedModel by
tf_keras and loaded by the layer. Both take the same 20 batches; then their steps alternate and are timed. Writes
benchmarks/results/hub_layer.json.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402 (the script's folder, not the checkout, is on sys.path)
import numpy as np  # noqa: E402

from common import runs  # noqa: E402
from common.hub import SavedModelLayer  # noqa: E402

WEIGHTS = ROOT.parent / "shared/data/weights/mobilenet_imagenet_keras/mobilenet_v2_1.0_224_notop.weights.h5"
SIDE, BATCH, STEPS, CLASSES = 96, 16, 20, 5


def native(weights: Path) -> keras.Model:
    """Build the network from Keras layers: pixels in [-1, 1] to pooled features."""
    return keras.applications.MobileNetV2(
        include_top=False, weights=weights, input_shape=(SIDE, SIDE, 3), pooling="avg"
    )


def write_saved_model(network: keras.Model, folder: Path) -> None:
    """Write the same network as tf_keras writes SavedModels: with variables and a switch for training."""
    import tf_keras

    twin = tf_keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=(SIDE, SIDE, 3), pooling="avg"
    )
    for layer in twin.layers:
        layer.set_weights(network.get_layer(layer.name).get_weights() if layer.weights else [])
    twin.save(folder, save_format="tf")


def classifier(backbone, *, batch_norm: str) -> keras.Model:
    """Put the same head behind a backbone; BatchNorm in inference mode, or training along."""
    pixels = keras.Input((SIDE, SIDE, 3))
    features = backbone(pixels, training=False if batch_norm == "frozen" else None)
    head = keras.layers.Dense(CLASSES, kernel_initializer=keras.initializers.GlorotUniform(seed=1))
    model = keras.Model(pixels, head(features))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    return model


def batches(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return smooth random pictures whose class is their colour."""
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        labels = rng.integers(0, CLASSES, BATCH)
        coarse = rng.normal(size=(BATCH, 6, 6, 3)) * 0.5 + (labels[:, None, None, None] - 2) * np.array(
            [0.2, -0.1, 0.1]
        )
        found.append((np.clip(coarse.repeat(16, 1).repeat(16, 2), -1, 1).astype("float32"), labels))
    return found


def compare(batch_norm: str, folder: Path) -> dict:
    """Train both ways on the same batches, and time their steps in turn.

    Args:
        batch_norm: `frozen` or `train`.
        folder: the SavedModel.

    Returns:
        Losses of both, their largest difference, median seconds of a step, and the ratio.
    """
    layer = SavedModelLayer(str(folder), trainable=True, follow_training=batch_norm == "train")
    models = {"native": classifier(native(WEIGHTS), batch_norm=batch_norm)}
    # The layer itself keeps the module in inference mode; Keras must still know that it trains.
    models["layer"] = classifier(layer, batch_norm="train")
    examples = batches(STEPS)
    losses = {name: [float(model.train_on_batch(*example)) for example in examples] for name, model in models.items()}
    losses = {
        name: np.diff(np.arange(1, STEPS + 1) * found, prepend=0) for name, found in losses.items()
    }  # of each step
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for example in examples * 2:
        for name, model in models.items():
            began = time.perf_counter()
            model.train_on_batch(*example)
            seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(found) for name, found in seconds.items()}
    return {
        "losses": {name: [round(float(loss), 6) for loss in found] for name, found in losses.items()},
        "largest_difference": round(float(np.abs(losses["native"] - losses["layer"]).max()), 7),
        "median_step_seconds": {name: round(found, 5) for name, found in median.items()},
        "step_time_ratio": round(median["layer"] / median["native"], 4),
    }


def main() -> None:
    """Compare both modes of BatchNorm and write what came of it."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        write_saved_model(native(WEIGHTS), Path(folder, "network"))
        for batch_norm in ("frozen", "train"):
            found[batch_norm] = compare(batch_norm, Path(folder, "network"))
            difference, ratio = found[batch_norm]["largest_difference"], found[batch_norm]["step_time_ratio"]
            print(
                f"BatchNorm {batch_norm}: losses within {difference:.1e} over {STEPS} steps, a step takes {ratio:.3f} x"
            )
    content = {
        "command": "python benchmarks/hub_layer.py",
        "network": f"MobileNetV2, {SIDE} pixels, batch {BATCH}, SGD 0.01",
        "batch_norm": found,
        "versions": runs.versions(),
        "machine": f"{os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
    }
    runs.write_json(ROOT / "benchmarks" / "results" / "hub_layer.json", content)


if __name__ == "__main__":
    main()
