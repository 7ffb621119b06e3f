"""The tutorial way, ours, and logistic regression on features: same pictures, same weights, same run.

    python benchmarks/prepare_data.py                        # once: the data, outside the checkout
    python benchmarks/side_by_side.py                        # everything; about an hour on 2 cores
    python benchmarks/side_by_side.py ucmerced21 --seeds 0   # one data set, one seed

The ways alternate, seed by seed, each in a process of its own. Seconds count from the first look at the pictures;
imports, the loading of weights and the measuring of test accuracy do not count, for nobody. Writes
benchmarks/results/side_by_side.json and the table of README.md.

The tutorial way is https://www.tensorflow.org/tutorials/images/transfer_learning: the frozen backbone inside the
graph behind augmentation layers, 10 epochs of the head, then the layers from 100 on at 1e-5 for 5 more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common import runs  # noqa: E402 (the script's folder, not the checkout, is on sys.path)
from common.files import write_json  # noqa: E402

WEIGHTS = "../shared/data/weights/mobilenet_imagenet_keras/mobilenet_v2_1.0_224_notop.weights.h5"
DATA = {
    "ucmerced21": {  # both ways enlarge the 64 pixels to 160, the size of the tutorial's own pictures
        "data": "folder:../shared/data/ucmerced21_64", "tutorial_side": 160,
        "ours": {"image_size": 160, "views": 1, "unfreeze": "frozen"},
    },
    "cifar10": {
        "data": "folder:../prepared_data/cifar10_subset", "tutorial_side": 96,
        "ours": {"image_size": 96, "views": 1, "epochs": 2},
    },
}  # fmt: skip
WAYS = ("tutorial", "ours", "logistic_regression")


class Clock:
    """Seconds since the start, without the time in which it was stopped to measure."""

    def __init__(self):
        self.began, self.stopped = time.monotonic(), 0.0

    def seconds(self) -> float:
        return time.monotonic() - self.began - self.stopped

    @contextlib.contextmanager
    def stop(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.stopped += time.monotonic() - began


def run_way(way: str, name: str, seed: int) -> list[dict]:
    """Train one way on one data set.

    Returns:
        Points on its path: stage, epoch, seconds so far, test accuracy.
    """
    import keras
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from common.images import features
    from common.images.dataset import load_image_set
    from common.images.sources import load_source
    from recipes.image_classification import recipe

    settings = DATA[name]
    with tempfile.TemporaryDirectory() as out:
        config = recipe.Config(
            data=settings["data"], source=f"keras:MobileNetV2@{WEIGHTS}", out=out, seed=seed, **settings["ours"]
        )
        source = load_source(config.source, settings["tutorial_side"] if way == "tutorial" else config.image_size)
        keras.utils.set_random_seed(seed)
        clock, points = Clock(), []

        def note(stage: str, epoch: int, predict: Callable[[], np.ndarray]) -> None:
            with clock.stop():
                accuracy = float(np.mean(predict().argmax(axis=1) == data.test.labels))
            points.append(
                {"stage": stage, "epoch": epoch, "seconds": round(clock.seconds(), 2), "accuracy": round(accuracy, 4)}
            )

        # Ours reads and decodes every file here; the tutorial's own look costs less.
        data = load_image_set(config.data, Path(out), source.image_size, resize=config.resize)
        if way == "tutorial":
            clock = Clock()
            _tutorial(source, data, seed, note)
        elif way == "logistic_regression":
            parts = {p: features.extract_features(source, getattr(data, p).pixels, Path(out)) for p in ("train", "val")}
            scaler = StandardScaler().fit(parts["train"][0])
            train, val = (scaler.transform(parts[part][0]) for part in ("train", "val"))
            fitted = [LogisticRegression(C=c, max_iter=300).fit(train, data.train.labels) for c in (1e-3, 3e-3, 1e-2)]
            best = max(fitted, key=lambda model: model.score(val, data.val.labels))
            note("head", 0, lambda: best.predict_proba(
                scaler.transform(features.extract_features(source, data.test.pixels, Path(out))[0])
            ))  # fmt: skip
        else:
            _ours(source, data, config, note)
    return points


def _ours(source, data, config, note: Callable) -> None:
    """Follow the recipe, without the features of the test split: they are only for its baseline."""
    from common import linear_head
    from common.images import features
    from recipes.image_classification import recipe

    run = runs.Run(config)
    model = recipe.build_model(source, len(data.class_names), config)
    head = model.get_layer("head")
    weights = {
        "sample_weights": recipe.weights_of_images(data, config),
        "val_weights": recipe.weights_of_images(data, config, data.val.labels),
    }
    augment = recipe.augmentations(config, data)
    settings = recipe.feature_files(config)
    views = dict(views=config.views if augment else 1, augment=augment, seed=config.seed)
    train = features.extract_features(source, data.train.pixels, **settings, **views)
    val = features.extract_features(source, data.val.pixels, **settings)[0]
    splits = train, data.train.labels, val, data.val.labels
    history, _, start = linear_head.fit_final_head(head, *splits, **weights, val_groups=data.val.groups)
    note("head", 0, lambda: recipe.predict(model, data))
    if recipe.fine_tuning_epochs(data, config):
        head.set_weights(start)
        rows, _ = recipe.fine_tune(run, source, model, data, config.seed, history)
        penalty = linear_head.chosen_penalty(history)
        features.refit_head(head, source, data, penalty=penalty, **weights, **settings)
        note("finetune", len(rows), lambda: recipe.predict(model, data))


def _tutorial(source, data, seed: int, note: Callable) -> None:
    """Follow the tutorial on the pictures of the training part; validation is watched each epoch, as it does."""
    import keras
    import tensorflow as tf

    from common.images.batches import image_batches

    size = source.image_size

    def dataset(part, shuffled: bool):
        files = tf.data.Dataset.from_tensor_slices((part.paths, part.labels))
        if shuffled:
            files = files.shuffle(len(part), seed=seed)

        def read(path, label):
            image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
            return tf.image.resize(tf.ensure_shape(image, (None, None, 3)), size), label

        return files.map(read, num_parallel_calls=tf.data.AUTOTUNE).batch(32).prefetch(tf.data.AUTOTUNE)

    train, val = dataset(data.train, True), dataset(data.val, False)
    backbone = source.backbone
    backbone.trainable = False
    pixels = keras.Input((*size, 3))
    augmented = keras.layers.RandomRotation(0.2)(keras.layers.RandomFlip("horizontal")(pixels))
    scaled = keras.applications.mobilenet_v2.preprocess_input(augmented)
    pooled = keras.layers.GlobalAveragePooling2D()(backbone(scaled, training=False))
    outputs = keras.layers.Dense(len(data.class_names))(keras.layers.Dropout(0.2)(pooled))
    model = keras.Model(pixels, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def watch(stage: str):
        test = image_batches(data.test.pixels, 32)
        return keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: note(stage, epoch + 1, lambda: model.predict(test, verbose=0))
        )

    settings = {"validation_data": val, "verbose": 0}
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    model.fit(train, epochs=10, callbacks=[watch("head")], **settings)
    backbone.trainable = True
    for layer in backbone.layers[:100]:
        layer.trainable = False
    model.compile(keras.optimizers.RMSprop(1e-5), loss, metrics=["accuracy"])
    model.fit(train, epochs=15, initial_epoch=10, callbacks=[watch("finetune")], **settings)


def summarise(name: str, by_way: dict[str, list[dict]]) -> dict:
    """Put the ways side by side for one data set and seed.

    Returns:
        For the tutorial's head and its end: its accuracy and seconds, and when each other way first had that accuracy.
    """
    marks = {}
    for stage in ("head", "finetune"):
        last = [point for point in by_way["tutorial"] if point["stage"] == stage][-1]
        marks[stage] = {"accuracy": last["accuracy"], "tutorial_seconds": last["seconds"]}
        for way in WAYS[1:]:
            reached = [point["seconds"] for point in by_way[way] if point["accuracy"] >= last["accuracy"]]
            marks[stage][f"{way}_seconds"] = reached[0] if reached else None
            marks[stage][f"{way}_times_sooner"] = round(last["seconds"] / reached[0], 2) if reached else None
    return {"data": name, "marks": marks}


def main(names: list[str], seeds: list[int]) -> None:
    """Run every way on every data set and seed, alternating, and write what came of it."""
    file = ROOT / "benchmarks" / "results" / "side_by_side.json"
    results = json.loads(file.read_text("utf-8"))["data"] if file.exists() else {}
    for name in names:
        found = []
        for seed in seeds:
            by_way = {}
            for way in WAYS:
                with tempfile.NamedTemporaryFile(suffix=".json") as answer:
                    command = [sys.executable, __file__, "--one", way, name, str(seed), answer.name]
                    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
                    if finished.returncode:
                        raise SystemExit(finished.stderr[-3000:])
                    by_way[way] = json.loads(Path(answer.name).read_text())
                last = by_way[way][-1]
                print(f"{name} seed {seed} {way}: {last['accuracy']:.4f} after {last['seconds']:.0f} s", flush=True)
            found.append({"seed": seed, "points": by_way, **summarise(name, by_way)})
        results[name] = {
            "settings": DATA[name], "seeds": found,
            "final": {
                way: {key: _spread([one["points"][way][-1][key] for one in found]) for key in ("accuracy", "seconds")}
                for way in WAYS
            },
        }  # fmt: skip
        content = {
            "command": f"python benchmarks/side_by_side.py {name} --seeds {' '.join(map(str, seeds))}",
            "data": results,
            "versions": runs.versions(),
            "machine": f"{os.cpu_count()} cores",
            "date": time.strftime("%Y-%m-%d"),
        }
        write_json(file, content)


def _spread(values: list[float]) -> dict:
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.mean(values), 4), "std": round(std, 4)}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        Path(sys.argv[5]).write_text(json.dumps(run_way(sys.argv[2], sys.argv[3], int(sys.argv[4]))))
    else:
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(DATA))
        parser.add_argument("--seeds", type=int, nargs="+", default=[0])
        options = parser.parse_args()
        main(options.names or list(DATA), options.seeds)
