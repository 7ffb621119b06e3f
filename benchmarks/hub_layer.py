"""Fine-tuning a SavedModel through SavedModelLayer, beside the same network as Keras layers, in one run.

    python benchmarks/hub_layer.py                           # three minutes on 2 cores

The CIFAR-10 ResNet-56 of ../shared: built in Keras 3; and written as a SavedModel, by Keras 3 (no switch for
training) and by tf_keras (with one), and loaded by the layer. Each pair takes the same 20 batches; then their steps
alternate and are timed. Writes benchmarks/results/hub_layer.json.
"""

from __future__ import annotations

import io
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
from PIL import Image  # noqa: E402

from benchmarks.convert_resnet import build, convert  # noqa: E402
from common import files, freezing, runs  # noqa: E402
from common.hub import SavedModelLayer  # noqa: E402

SHARED = ROOT.parent / "shared" / "data"
WEIGHTS = SHARED / "weights" / "resnet_cifar10" / "resnet56-4bfd9763.npz"
SIDE, BATCH, STEPS, CLASSES, LEARNING_RATE = 32, 32, 20, 10, 2e-3


def native() -> keras.Model:
    """Build the network from Keras layers."""
    return build(WEIGHTS, keras)


def write_with_keras_3(folder: Path) -> None:
    """Write the network as `model.export` does: one function, in inference mode."""
    native().export(folder, verbose=False)


def write_with_tf_keras(folder: Path) -> None:
    """Write the same network as tf_keras writes SavedModels: with a switch for training."""
    convert(WEIGHTS, folder)


def classifier(backbone: keras.Model, batch_norm: str) -> keras.Model:
    """Put the same head behind a backbone, and unfreeze all of it but, where so asked, its BatchNorm."""
    pixels = keras.Input((SIDE, SIDE, 3))
    head = keras.layers.Dense(CLASSES, kernel_initializer=keras.initializers.GlorotUniform(seed=1))
    model = keras.Model(pixels, head(backbone(pixels)))
    freezing.freeze(model, backbone, "all", batch_norm)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(LEARNING_RATE, momentum=0.9), loss)
    return model


def batches(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return batches of CIFAR-10 pictures in [0, 1] and their classes, in one order."""
    with np.load(SHARED / "cifar10_subset" / "train.npz", allow_pickle=False) as arrays:
        jpeg, offsets, labels = (arrays[name] for name in ("jpeg", "offsets", "labels"))
    order = np.random.default_rng(0).permutation(len(labels))[: count * BATCH]
    pictures = (Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes())) for i in order)
    pixels = np.stack([np.asarray(picture, "float32") / 255 for picture in pictures])
    return [(pixels[at : at + BATCH], labels[order[at : at + BATCH]]) for at in range(0, len(order), BATCH)]


def compare(batch_norm: str, folder: Path) -> dict:
    """Train both ways on the same batches, and time their steps in turn.

    Args:
        batch_norm: `frozen` or `train`.
        folder: the SavedModel.

    Returns:
        Losses of both, their largest difference, median seconds of a step, and the ratio.
    """
    pixels = keras.Input((SIDE, SIDE, 3))
    layer = SavedModelLayer(str(folder), trainable=True)
    backbones = {"native": native(), "twin": native(), "layer": keras.Model(pixels, layer(pixels))}
    models = {name: classifier(backbone, batch_norm) for name, backbone in backbones.items()}
    examples = batches(STEPS)
    losses = {name: [float(model.train_on_batch(*example)) for example in examples] for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for example in examples * 2:
        for name, model in models.items():
            began = time.perf_counter()
            model.train_on_batch(*example)
            seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(found) for name, found in seconds.items()}
    return {
        "losses": {name: [round(float(loss), 6) for loss in found] for name, found in losses.items()},
        "largest_difference": _apart(losses["native"], losses["layer"]),
        "largest_difference_of_native_and_its_twin": _apart(losses["native"], losses["twin"]),
        "median_step_seconds": {name: round(found, 5) for name, found in median.items()},
        "step_time_ratio": round(median["layer"] / median["native"], 4),
    }


def _apart(one: list[float], other: list[float]) -> float:
    return round(float(np.abs(np.subtract(one, other)).max()), 7)


def main() -> None:
    """Compare the kinds of SavedModel and the modes of BatchNorm, and write what came of it."""
    found = {}
    pairs = ((write_with_keras_3, "frozen"), (write_with_tf_keras, "frozen"), (write_with_tf_keras, "train"))
    with tempfile.TemporaryDirectory() as top:
        for write, batch_norm in pairs:
            folder, name = Path(top, write.__name__), f"{write.__name__}, BatchNorm {batch_norm}"
            if not folder.exists():
                write(folder)
            found[name] = compare(batch_norm, folder)
            apart, ratio = found[name]["largest_difference"], found[name]["step_time_ratio"]
            twin = found[name]["largest_difference_of_native_and_its_twin"]
            said = f"{STEPS} losses within {apart:.1e} (native and its twin: {twin:.1e})"
            print(f"{name}: {said}, a step takes {ratio:.3f} x", flush=True)
    content = {
        "command": "python benchmarks/hub_layer.py",
        "network": f"ResNet-56, {SIDE} pixels, batch {BATCH}, SGD {LEARNING_RATE}",
        "saved_models": found,
        "versions": runs.versions(),
        "machine": f"{os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
    }
    files.write_json(ROOT / "benchmarks" / "results" / "hub_layer.json", content)


if __name__ == "__main__":
    main()
