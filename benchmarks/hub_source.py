"""Ants or bees with MobileNetV2 from three places: keras:, and two SavedModels of the same weights as hub:.

    python benchmarks/prepare_data.py                        # once: the data, outside the checkout
    python benchmarks/hub_source.py                          # three minutes on 2 cores

One SavedModel is written by Keras 3, one by tf_keras with a switch for training. Each run fine-tunes the last block;
then the SavedModel is moved away, and the run's export must answer all the same. Writes
benchmarks/results/hub_source.json.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
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

WEIGHTS = "../shared/data/weights/mobilenet_imagenet_keras/mobilenet_v2_1.0_224_notop.weights.h5"
DATA = "../prepared_data/hymenoptera_data"
SHAPE = (224, 224, 3)
FLAGS = ("--data", f"folder:{DATA}", "--epochs", "3", "--unfreeze", "last_block", "--no-explain")


def write_with_keras_3(folder: Path) -> None:
    """Write the network as `model.export` does: pictures in [-1, 1], inference mode."""
    network = keras.applications.MobileNetV2(
        include_top=False, weights=ROOT / WEIGHTS, input_shape=SHAPE, pooling="avg"
    )
    network.export(folder, verbose=False)


def write_with_tf_keras(folder: Path) -> None:
    """Write it as TF Hub publishes image models: pictures in [0, 1], with a switch for training."""
    import tf_keras

    trained = keras.applications.MobileNetV2(include_top=False, weights=ROOT / WEIGHTS, input_shape=SHAPE)
    twin = tf_keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=SHAPE, pooling="avg")
    for layer in twin.layers:
        layer.set_weights(trained.get_layer(layer.name).get_weights() if layer.weights else [])
    pixels = tf_keras.Input(SHAPE)
    tf_keras.Model(pixels, twin(tf_keras.layers.Rescaling(2.0, -1.0)(pixels))).save(folder, save_format="tf")


def run(source: str, out: Path) -> dict:
    """Train and evaluate with the recipe, as a user does.

    Returns:
        Its metrics.json.
    """
    command = [sys.executable, "-m", "recipes", "run", "image_classification", "--source", source, "--out", str(out)]
    finished = subprocess.run([*command, *FLAGS], cwd=ROOT, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(finished.stdout[-2000:] + finished.stderr[-2000:])
    return json.loads((out / "metrics.json").read_text("utf-8"))


def weights_that_changed(out: Path, saved_model: Path) -> int:
    """Return how many weights of the SavedModel are others in the model of the run."""
    model = keras.models.load_model(out / "model.keras", safe_mode=False)
    (layer,) = [layer for layer in model._flatten_layers() if isinstance(layer, SavedModelLayer)]
    before = SavedModelLayer(str(saved_model)).get_weights()
    return sum(not np.array_equal(one, other) for one, other in zip(before, layer.get_weights(), strict=True))


def answers(out: Path) -> bool:
    """Whether the export classifies a picture."""
    picture = next((ROOT / DATA / "val").glob("*/*.jpg"))
    command = [sys.executable, "-m", "recipes", "predict", str(out), str(picture)]
    return subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0


def main() -> None:
    """Run all three and write what came of it."""
    found = {}
    with tempfile.TemporaryDirectory() as top:
        sources = {"keras": f"keras:MobileNetV2@{WEIGHTS}"}
        for write, option in ((write_with_keras_3, "(range=-1..1)"), (write_with_tf_keras, "")):
            folder = Path(top, write.__name__)
            write(folder)
            sources[write.__name__] = f"hub:{folder}{option}"
        for name, source in sources.items():
            out = Path(top, f"run_{name}")
            metrics = run(source, out)
            row = {"accuracy": metrics["test"]["accuracy"], "frozen": metrics["baselines"]["frozen"]["accuracy"]}
            row |= {"proof": metrics["proof"], "size_ratio": metrics["export"]["ratio"], "seconds": metrics["seconds"]}
            if name != "keras":
                folder = Path(top, name)
                row["weights_changed"] = weights_that_changed(out, folder)
                shutil.move(folder, Path(top, "moved_away"))
                row["export_answers_without_the_saved_model"] = answers(out)
                shutil.rmtree(Path(top, "moved_away"))
            found[name] = row
            print(
                f"{name}: {json.dumps({key: row[key] for key in row if key not in ('proof', 'seconds')})}", flush=True
            )
    content = {
        "command": "python benchmarks/hub_source.py",
        "flags": " ".join(FLAGS),
        "sources": found,
        "versions": runs.versions(),
        "machine": f"{os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
    }
    runs.write_json(ROOT / "benchmarks" / "results" / "hub_source.json", content)


if __name__ == "__main__":
    main()
