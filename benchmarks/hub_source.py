"""One MobileNetV2 from three places: keras:, and two SavedModels of the same weights as hub:.

    python benchmarks/prepare_data.py                        # once: the data, outside the checkout
    python benchmarks/hub_source.py                          # six minutes on 2 cores

One SavedModel is written by Keras 3, one by tf_keras with a switch for training. Ants or bees: the linear head on the
frozen source is as good as fine-tuning, and is what the run keeps. A thousand pictures of CIFAR-10: fine-tuning is
better, and the weights of the SavedModel change. After each run the SavedModel is moved away, and the run's export
must answer all the same. Writes benchmarks/results/hub_source.json.
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

from common import files, runs  # noqa: E402
from common.hub import SavedModelLayer  # noqa: E402

WEIGHTS = "../shared/data/weights/mobilenet_imagenet_keras/mobilenet_v2_1.0_224_notop.weights.h5"
DATA = {
    "hymenoptera": (224, "../prepared_data/hymenoptera_data", ("--epochs", "3", "--unfreeze", "last_block")),
    "cifar10": (96, "../prepared_data/cifar10_subset", ("--limit", "1000", "--epochs", "3")),
}


def write_with_keras_3(folder: Path, side: int) -> None:
    """Write the network as `model.export` does: pictures in [-1, 1], inference mode."""
    network = keras.applications.MobileNetV2(
        include_top=False, weights=ROOT / WEIGHTS, input_shape=(side, side, 3), pooling="avg"
    )
    network.export(folder, verbose=False)


def write_with_tf_keras(folder: Path, side: int) -> None:
    """Write it as TF Hub publishes image models: pictures in [0, 1], with a switch for training."""
    import tf_keras

    trained = keras.applications.MobileNetV2(include_top=False, weights=ROOT / WEIGHTS, input_shape=(side, side, 3))
    twin = tf_keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=(side, side, 3), pooling="avg"
    )
    for layer in twin.layers:
        layer.set_weights(trained.get_layer(layer.name).get_weights() if layer.weights else [])
    pixels = tf_keras.Input((side, side, 3))
    tf_keras.Model(pixels, twin(tf_keras.layers.Rescaling(2.0, -1.0)(pixels))).save(folder, save_format="tf")


def run(source: str, out: Path, flags: tuple[str, ...]) -> dict:
    """Train and evaluate with the recipe, as a user does.

    Returns:
        Its metrics.json.
    """
    command = [sys.executable, "-m", "recipes", "run", "image_classification", "--source", source, "--out", str(out)]
    finished = subprocess.run([*command, "--no-explain", *flags], cwd=ROOT, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(finished.stdout[-2000:] + finished.stderr[-2000:])
    return json.loads((out / "metrics.json").read_text("utf-8"))


def weights_that_changed(out: Path, saved_model: Path) -> int:
    """Return how many weights of the SavedModel are others in the model of the run."""
    model = keras.models.load_model(out / "model.keras", safe_mode=False)
    (layer,) = [layer for layer in model._flatten_layers() if isinstance(layer, SavedModelLayer)]
    before = SavedModelLayer(str(saved_model)).get_weights()
    return sum(not np.array_equal(one, other) for one, other in zip(before, layer.get_weights(), strict=True))


def answers(out: Path, data: str) -> bool:
    """Whether the export classifies a picture."""
    picture = next((ROOT / data).glob("*/*/*.jpg"))
    command = [sys.executable, "-m", "recipes", "predict", str(out), str(picture)]
    return subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0


def compare(side: int, data: str, flags: tuple[str, ...]) -> dict[str, dict]:
    """Run the recipe with each of the three sources.

    Args:
        side: of the pictures, in pixels.
        data: folder.
        flags: more, for the recipe.

    Returns:
        For each source its scores, proof and, for a SavedModel, how many of its weights changed.
    """
    found = {}
    with tempfile.TemporaryDirectory() as top:
        sources = {"keras": f"keras:MobileNetV2(size={side})@{WEIGHTS}"}
        for write, option in ((write_with_keras_3, "(range=-1..1)"), (write_with_tf_keras, "")):
            folder = Path(top, write.__name__)
            write(folder, side)
            sources[write.__name__] = f"hub:{folder}{option}"
        for name, source in sources.items():
            out = Path(top, f"run_{name}")
            metrics = run(source, out, ("--data", f"folder:{data}", *flags))
            row = {"accuracy": metrics["test"]["accuracy"], "frozen": metrics["baselines"]["frozen"]["accuracy"]}
            row |= {"proof": metrics["proof"], "size_ratio": metrics["export"]["ratio"], "seconds": metrics["seconds"]}
            if name != "keras":
                folder = Path(top, name)
                row["weights_changed"] = weights_that_changed(out, folder)
                shutil.move(folder, Path(top, "moved_away"))
                row["export_answers_without_the_saved_model"] = answers(out, data)
                shutil.rmtree(Path(top, "moved_away"))
            found[name] = row
            told = {key: value for key, value in row.items() if key not in ("proof", "seconds")}
            print(f"{Path(data).name}, {name}: {json.dumps(told)}", flush=True)
    return found


def main() -> None:
    """Compare on both data sets and write what came of it."""
    found = {name: compare(*settings) for name, settings in DATA.items()}
    content = {
        "command": "python benchmarks/hub_source.py",
        "flags": {name: " ".join(flags) for name, (_, _, flags) in DATA.items()},
        "data": found,
        "versions": runs.versions(),
        "machine": f"{os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
    }
    files.write_json(ROOT / "benchmarks" / "results" / "hub_source.json", content)


if __name__ == "__main__":
    main()
