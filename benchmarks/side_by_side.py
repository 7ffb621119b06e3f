"""The tutorial way, KerasHub's own task, logistic regression on features, and ours: same pictures, size and weights.

    python benchmarks/prepare_data.py                            # once: the data, outside the checkout
    python benchmarks/side_by_side.py                            # everything; hours on 2 cores, resumable
    python benchmarks/side_by_side.py clothing10_96 --seeds 0    # one data set, one seed

For each seed, another nine tenths of the training pictures are trained on, by all ways. The ways alternate, seed by
seed, each in a process of its own. Seconds count from the first look at the pictures; imports, the loading of weights
and the measuring of test accuracy count for nobody. A mark is the mean accuracy over the seeds at the end of the
tutorial's head, and at its end, less half a point; each way, the tutorial too, is timed to the first time that it is at
the mark.

The tutorial way is https://www.tensorflow.org/tutorials/images/transfer_learning: the frozen backbone inside the graph
behind augmentation layers, 10 epochs of the head, then the layers from 100 on at 1e-5. Its head is trained here at a
higher rate, 1e-3, and its layers for 5 epochs, not 10: it is at its ends sooner. KerasHub's way is the
guide of keras.io: `ImageClassifier` on a backbone, `fit`, first with the backbone frozen; it takes KerasHub's backbones
only, so that it is compared on the bundled ResNet. Writes benchmarks/results/side_by_side.json.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
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

from benchmarks.provenance import code_digest, commit, machine, row_hash  # noqa: E402 (the checkout is not on sys.path)
from common import runs  # noqa: E402
from common.files import write_json  # noqa: E402

OUT = ROOT / "benchmarks" / "results" / "side_by_side.json"
DATA = {
    "clothing10_96": {"data": "folder:../prepared_data/clothing10_96", "group": "sender_([0-9]+)_", "side": 160},
    "cifar10_subset": {"data": "folder:../prepared_data/cifar10_subset", "group": None, "side": 96},
}
SOURCES = {"tutorial": "bundled:mobilenet_v2", "ours": "bundled:mobilenet_v2",
           "logistic_regression": "bundled:mobilenet_v2", "keras_hub": "bundled:resnet_mini",
           "ours_resnet_mini": "bundled:resnet_mini"}  # fmt: skip
RESNET_SIDE, MARGIN = 64, 0.005
COMPARED = {"ours": "tutorial", "logistic_regression": "tutorial", "ours_resnet_mini": "keras_hub"}


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

    from common.images.listing import list_images
    from common.images.sources import load_source
    from recipes.image_classification.recipe import Config

    settings, source = DATA[name], SOURCES[way]
    side = RESNET_SIDE if source == "bundled:resnet_mini" else settings["side"]
    keras.utils.set_random_seed(seed)
    with tempfile.TemporaryDirectory() as out:
        listed = list_images(settings["data"], Path(out), group=settings["group"])
        rows = [row for row in listed.rows if row.label]
        drawn = np.random.default_rng(seed).random(len(rows)) < 0.9
        train = [row for row, own in zip(rows, drawn, strict=True) if row.split == "train" and own]
        test = [row for row in rows if row.split != "train"]
        classes = sorted({row.label for row in rows})
        config = Config(source=source, image_size=side, views=1, seed=seed, out=out, unfreeze="auto")
        loaded, points, clock = load_source(source, side), [], Clock()

        def start() -> None:
            clock.began = time.monotonic()

        def note(stage: str, epoch: int, predict: Callable[[object], np.ndarray]) -> None:
            with clock.stop():
                from common.images.batches import image_batches
                from common.images.pixels import read_images

                if not kept:
                    kept.append(read_images([row.path for row in test], (side, side)))
                said = np.concatenate([predict(images.numpy()) for images in image_batches(kept[0], 64)])
                right = said.argmax(axis=1) == [classes.index(row.label) for row in test]
            point = {"stage": stage, "epoch": epoch, "seconds": round(clock.seconds(), 2)}
            points.append(point | {"accuracy": round(float(np.mean(right)), 4)})

        kept: list = []
        WAYS[way](loaded, train, classes, config, start, note)
    return points


def _tutorial(source, rows, classes, config, start: Callable, note: Callable) -> None:
    """Follow the tutorial; nothing is spent on watching validation."""
    import keras

    start()
    train, size = _dataset(rows, classes, source.image_size, config.seed), source.image_size
    backbone = source.backbone
    backbone.trainable = False
    pixels = keras.Input((*size, 3))
    augmented = keras.layers.RandomRotation(0.2)(keras.layers.RandomFlip("horizontal")(pixels))
    scaled = keras.applications.mobilenet_v2.preprocess_input(augmented)
    pooled = keras.layers.GlobalAveragePooling2D()(backbone(scaled, training=False))
    outputs = keras.layers.Dense(len(classes))(keras.layers.Dropout(0.2)(pooled))
    model = keras.Model(pixels, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    model.fit(train, epochs=10, callbacks=[_watch("head", model, note)], verbose=0)
    backbone.trainable = True
    for layer in backbone.layers[:100]:
        layer.trainable = False
    model.compile(keras.optimizers.RMSprop(1e-5), loss, metrics=["accuracy"])
    model.fit(train, epochs=15, initial_epoch=10, callbacks=[_watch("finetune", model, note)], verbose=0)


def _keras_hub(source, rows, classes, config, start: Callable, note: Callable) -> None:
    """Follow KerasHub's guide: its task on a backbone, the head first, then all of it at a low rate."""
    import keras
    import keras_hub

    from common.sources.specs import BUNDLED_FOLDER

    preset = str(BUNDLED_FOLDER / "resnet_mini")
    backbone = keras_hub.models.Backbone.from_preset(preset, dtype="float32")
    converter = keras_hub.layers.ImageConverter.from_preset(preset)
    task = keras_hub.models.ResNetImageClassifier(
        backbone, len(classes), preprocessor=keras_hub.models.ResNetImageClassifierPreprocessor(converter)
    )
    start()
    train = _dataset(rows, classes, source.image_size, config.seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for stage, rate, first, last in (("head", 1e-3, 0, 10), ("finetune", 1e-5, 10, 15)):
        backbone.trainable = stage == "finetune"
        task.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
        task.fit(train, initial_epoch=first, epochs=last, callbacks=[_watch(stage, task, note)], verbose=0)


def _logistic_regression(source, rows, classes, config, start: Callable, note: Callable) -> None:
    """Fit scikit-learn's on features; a tenth of the training pictures chooses its penalty."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from common.images.features import extract_features
    from common.images.pixels import read_images

    start()
    pixels = read_images([row.path for row in rows], source.image_size)
    found = np.asarray(extract_features(source, pixels, Path(config.out) / "features")[0])
    labels = np.array([classes.index(row.label) for row in rows])
    scaler, val = StandardScaler().fit(found), np.random.default_rng(config.seed).random(len(rows)) < 0.1
    found = scaler.transform(found)
    fit = lambda c, own: LogisticRegression(C=c, max_iter=300).fit(found[own], labels[own])  # noqa: E731
    best = max((1e-3, 3e-3, 1e-2), key=lambda c: fit(c, ~val).score(found[val], labels[val]))
    model = fit(best, np.ones(len(rows), bool))
    note("head", 0, lambda images: model.predict_proba(scaler.transform(source.forward(images).numpy())))


def _ours(source, rows, classes, config, start: Callable, note: Callable) -> None:
    """Follow the recipe; its validation split is carved from the training pictures, as in a run."""
    from dataclasses import replace

    from common import linear_head
    from common.classification.choice import BOLD, keep_what_helps, too_few_errors
    from common.images import features
    from common.images.dataset import split_images
    from common.images.listing import ImageList
    from recipes.image_classification import recipe

    start()
    run, grouped = runs.Run(config), any(row.group for row in rows)
    # The recipe makes a test split where none is given; it is trained on as well, so that all ways have the same.
    data = split_images(
        ImageList("side by side", [replace(row, split=None) for row in rows], grouped), source.image_size
    )
    both = data.train.pixels + data.test.pixels
    data = replace(data, train=recipe_examples(data, both))
    model = recipe.build_model(source, len(classes), config)
    head = model.get_layer("head")
    weights = {
        "sample_weights": recipe.weights_of_images(data, config),
        "val_weights": recipe.weights_of_images(data, config, data.val.labels),
    }
    cache = {"cache": run.out / "features", "save_every": config.save_every}
    train = features.extract_features(source, data.train.pixels, **cache)
    val = features.extract_features(source, data.val.pixels, **cache)[0]
    splits = train, data.train.labels, val, data.val.labels
    history, on_val, beginning = linear_head.fit_final_head(head, *splits, **weights, val_groups=data.val.groups)
    alone = model.get_weights()
    note("head", 0, lambda images: model.predict_on_batch(images))
    if too_few_errors(data.val.labels, on_val):  # the recipe tries no more
        note("finetune", 0, lambda images: model.predict_on_batch(images))
        return
    head.set_weights(beginning)
    before = model.get_weights()
    tuning, _ = recipe.fine_tune(run, source, model, data, config.seed, history)
    refit = functools.partial(
        features.refit_head, head, source, data, penalty=linear_head.chosen_penalty(history), **weights, **cache
    )
    share, _, _ = keep_what_helps(model, before, on_val, refit, data.val.labels, order=BOLD, head=head)
    if not share:
        model.set_weights(alone)
    note("finetune", len(tuning), lambda images: model.predict_on_batch(images))


def recipe_examples(data, pixels):
    """Return train and test of a data set as one split."""
    import numpy as np

    from common.images.dataset import Examples

    labels, thumbnails = (
        np.concatenate([getattr(one, name) for one in (data.train, data.test)]) for name in ("labels", "thumbnails")
    )
    return Examples(pixels, labels, thumbnails)


WAYS = {"tutorial": _tutorial, "ours": _ours, "logistic_regression": _logistic_regression, "keras_hub": _keras_hub,
        "ours_resnet_mini": _ours}  # fmt: skip


def _dataset(rows, classes, size, seed: int):
    """Return shuffled batches of pictures and class numbers, as the tutorial reads them: decoded in each epoch."""
    import tensorflow as tf

    paths, labels = [row.path for row in rows], [classes.index(row.label) for row in rows]

    def read(path, label):
        image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        return tf.image.resize(tf.ensure_shape(image, (None, None, 3)), size), label

    files = tf.data.Dataset.from_tensor_slices((paths, labels)).shuffle(len(rows), seed=seed)
    return files.map(read, num_parallel_calls=tf.data.AUTOTUNE).batch(32).prefetch(tf.data.AUTOTUNE)


def _watch(stage: str, model, note: Callable):
    """Return a callback that notes the accuracy after each epoch, while the clock stands still."""
    import keras

    # KerasHub's tasks preprocess within `predict_on_batch`.
    return keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: note(stage, epoch + 1, model.predict_on_batch)
    )


def summarise(by_seed: dict[str, dict[str, list[dict]]]) -> dict:
    """Return the marks, the seconds to each of every way and seed, and how much sooner one way is than another.

    Args:
        by_seed: the points of each way, by seed.
    """
    table = {}
    for way, reference in COMPARED.items():
        for stage in ("head", "finetune"):
            ends = [[point for point in ways[reference] if point["stage"] == stage][-1] for ways in by_seed.values()]
            mark = statistics.mean(end["accuracy"] for end in ends) - MARGIN
            seconds = {
                one: [next((point["seconds"] for point in ways[one] if point["accuracy"] >= mark), None)
                      for ways in by_seed.values()]
                for one in (reference, way)
            }  # fmt: skip
            pairs = [(theirs, ours) for theirs, ours in zip(*seconds.values(), strict=True) if theirs and ours]
            table[f"{way} and {reference}, {stage}"] = {
                "mark": round(mark, 4),
                "seconds": seconds,
                "times_sooner": round(statistics.median(a / b for a, b in pairs), 2) if pairs else None,
                "seeds_at_the_mark": {one: sum(value is not None for value in of) for one, of in seconds.items()},
            }
    return table


def main(names: list[str], seeds: list[int]) -> None:
    """Run what is missing, way by way and seed by seed, and write all of it after each."""
    kept = json.loads(OUT.read_text("utf-8")).get("runs", {}) if OUT.exists() else {}
    code = row_hash(ROOT, "image_classification", "") + code_digest(Path(__file__))[:8]
    for name in names:
        for seed in seeds:
            for way in WAYS:
                key = f"{name} | {seed} | {way}"
                if kept.get(key, {}).get("code") == code:
                    continue
                load = os.getloadavg()[0]
                with tempfile.NamedTemporaryFile(suffix=".json") as answer:
                    command = [sys.executable, __file__, "--one", way, name, str(seed), answer.name]
                    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
                    if finished.returncode:
                        raise SystemExit(finished.stderr[-3000:])
                    points = json.loads(Path(answer.name).read_text())
                about = {"commit": commit(ROOT), "code": code, "load_average": round(load, 2), **machine()}
                kept[key] = {"points": points, **about}
                print(f"{key}: {points[-1]['accuracy']:.4f} after {points[-1]['seconds']:.0f} s", flush=True)
                write_json(OUT, {"command": "python benchmarks/side_by_side.py", **_tables(kept), "runs": kept})


def _tables(kept: dict) -> dict:
    """Return the summary of every data set of which at least one seed is complete."""
    tables = {}
    for name in DATA:
        seeds = {key.split(" | ")[1] for key in kept if key.startswith(f"{name} | ")}
        complete = {
            seed: {way: kept[f"{name} | {seed} | {way}"]["points"] for way in WAYS}
            for seed in sorted(seeds)
            if all(f"{name} | {seed} | {way}" in kept for way in WAYS)
        }
        if complete:
            tables[name] = {"settings": DATA[name], "seeds": list(complete), **summarise(complete)}
    return {"tables": tables, "versions": runs.versions()}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        Path(sys.argv[5]).write_text(json.dumps(run_way(sys.argv[2], sys.argv[3], int(sys.argv[4]))))
    else:
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(DATA))
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        options = parser.parse_args()
        main(options.names or list(DATA), options.seeds)
