"""Choose the input sizes of bundled:mobilenet_v2, on training splits: no test image is read.

    python benchmarks/prepare_data.py --out ../prepared_data
    python benchmarks/choose_image_size.py            # about ten minutes on 2 cores

Of the training images of each data set, five folds are made; a linear head on the features of four classifies the
fifth, at each input size. Writes benchmarks/results/image_size_choice.json.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from provenance import commit, machine  # noqa: E402 (beside this script)
from unfreeze_policies import GROUPS, SETS  # noqa: E402

from common.files import write_json  # noqa: E402
from common.images.features import extract_features  # noqa: E402
from common.images.listing import list_images  # noqa: E402
from common.images.pixels import read_images  # noqa: E402
from common.images.sources import load_source  # noqa: E402
from common.linear_head import linear_head_weights  # noqa: E402
from recipes.image_classification import recipe  # noqa: E402

OUT = ROOT / "benchmarks" / "results" / "image_size_choice.json"
SOURCE, PIXELS = "bundled:mobilenet_v2", (96, 128, 160, 192, 224)
FOLDS, MOST, PENALTIES = 5, 500, (1.0, 0.1, 0.01)


def measure(name: str, data_spec: str, group: str | None) -> dict:
    """Return the accuracy of the held-out folds at each size, for the best of the penalties, and images a second."""
    with tempfile.TemporaryDirectory() as folder:
        config = recipe.Config(data=data_spec, group=group, out=folder)
        data, _ = recipe.load_data(config)
        some = data.train.take(np.random.default_rng(0).permutation(len(data.train))[:MOST])
        folds = folds_of(some.paths, group)
        found = {}
        for pixels in PIXELS:
            began = time.monotonic()
            images = read_images(some.paths, (pixels, pixels), folder=Path(folder))
            features = extract_features(load_source(SOURCE, pixels), images, Path(folder, "features"))[0]
            seconds = time.monotonic() - began
            accuracy = max(cross_validated(features, some.labels, folds, penalty) for penalty in PENALTIES)
            found[str(pixels)] = {"accuracy": round(accuracy, 4), "images_per_second": round(len(some) / seconds, 1)}
            print(f"{name} at {pixels}: {found[str(pixels)]}", flush=True)
        shorter_side = list_images(data_spec, Path(folder), group=group).shorter_side
    return {"images": len(some), "shorter_side": shorter_side, "by_size": found}


def folds_of(paths: np.ndarray, group: str | None) -> np.ndarray:
    """Return the fold of each image; images of one group are in the same fold."""
    names = [re.search(group, Path(path).name)[1] if group else path for path in paths]
    _, numbers = np.unique(names, return_inverse=True)
    return np.random.default_rng(0).permutation(numbers.max() + 1)[numbers] % FOLDS


def cross_validated(features: np.ndarray, labels: np.ndarray, folds: np.ndarray, penalty: float) -> float:
    """Return the share of images that a head on the other folds classifies correctly."""
    correct, features = np.zeros(len(labels), bool), np.asarray(features)
    for fold in range(FOLDS):
        there, away = folds == fold, folds != fold
        piece = (features[away], labels[away], np.ones(int(away.sum()), "float32"))
        kernel, bias = linear_head_weights([piece], int(labels.max()) + 1, penalty)
        correct[there] = (features[there] @ kernel + bias).argmax(axis=1) == labels[there]
    return float(correct.mean())


def main() -> None:
    """Measure all data sets."""
    rows = {name: measure(name, spec, GROUPS.get(name)) for name, spec in SETS.items()}
    about = {"command": "python benchmarks/choose_image_size.py", "source": SOURCE, "commit": commit(ROOT)}
    write_json(OUT, {**about, **machine(), "rows": rows})


if __name__ == "__main__":
    main()
