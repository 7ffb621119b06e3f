"""Images and tokens a second on a GPU, and the share of what it can do: feature extraction and fine-tuning.

    python benchmarks/gpu.py                 # ResNet50 and the shapes of BERT-base, random weights; minutes on a GPU
    python benchmarks/gpu.py --tiny          # seconds on a CPU: that it runs, not how fast

The networks are those of the recipes' sources, in float32 and in mixed float16 with loss scaling, compiled by XLA or
not, fed by tf.data that prefetches to the device. The peak is what a large product of matrices of the same type reaches
on the device; operations of a network are counted by TensorFlow's profiler, and a training step counts three times its
forward pass. Prints a table, and writes JSON with --json FILE.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import tensorflow as tf

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.progress import median_seconds  # noqa: E402 (the checkout is not on sys.path)
from common.training import dtype_policy  # noqa: E402

POLICIES = ("float32", "mixed_float16")


def resnet(tiny: bool) -> tuple[keras.Model, np.ndarray, int]:
    """Return ResNet50 as a classifier of pixels, a batch, and what is counted in it: images."""
    side, batch = (64, 2) if tiny else (224, 128)
    model = keras.applications.ResNet50(weights=None, classes=10, input_shape=(side, side, 3))
    return model, np.random.default_rng(0).uniform(0, 255, (batch, side, side, 3)).astype("float32"), batch


def bert(tiny: bool) -> tuple[keras.Model, dict[str, np.ndarray], int]:
    """Return a classifier with the shapes of BERT-base, a batch, and what is counted in it: tokens."""
    import keras_hub  # here: it takes seconds to import

    layers, heads, width, batch, length = (2, 2, 32, 2, 16) if tiny else (12, 12, 768, 64, 128)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=30522, num_layers=layers, num_heads=heads, hidden_dim=width, intermediate_dim=4 * width,
        max_sequence_length=length,
    )  # fmt: skip
    outputs = keras.layers.Dense(2, activation="softmax", dtype="float32")(backbone.output["pooled_output"])
    rng, shape = np.random.default_rng(0), (batch, length)
    inputs = {
        "token_ids": rng.integers(1, 30522, shape).astype("int32"),
        "segment_ids": np.zeros(shape, "int32"),
        "padding_mask": np.ones(shape, "int32"),
    }
    return keras.Model(backbone.input, outputs), inputs, batch * length


NETWORKS = {"ResNet50": (resnet, "images"), "BERT-base": (bert, "tokens")}


def operations(model: keras.Model, batch) -> float:
    """Return the floating-point operations of a forward pass on a batch, as TensorFlow's profiler counts them."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    specs = tf.nest.map_structure(lambda values: tf.TensorSpec(values.shape, values.dtype), batch)
    function = tf.function(lambda inputs: model(inputs, training=False)).get_concrete_function(specs)
    graph = convert_variables_to_constants_v2(function).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    return float(tf.compat.v1.profiler.profile(graph, options=options).total_float_ops)


def peak(dtype: str, side: int) -> float:
    """Return the operations a second that a product of square matrices reaches on this device."""
    matrix = tf.cast(tf.random.normal((side, side)), dtype)
    multiply = tf.function(lambda left: tf.reduce_sum(tf.cast(tf.matmul(left, left), tf.float32)))
    float(multiply(matrix))
    return 2 * side**3 / median_seconds(lambda: float(multiply(matrix)))


def stream(batch, count: int, classes: int) -> tf.data.Dataset:
    """Return endless batches of inputs and targets, prefetched to the device."""
    targets = np.eye(classes, dtype="float32")[np.arange(count) % classes]
    endless = tf.data.Dataset.from_tensors((tf.nest.map_structure(tf.constant, batch), targets)).repeat()
    device = "/gpu:0" if tf.config.list_physical_devices("GPU") else "/cpu:0"
    return endless.apply(tf.data.experimental.prefetch_to_device(device))


def seconds_of(step: Callable, batches, warm: int, steps: int) -> float:
    """Return the median seconds of a step, once the first ones have traced, compiled and chosen algorithms."""
    taken, batches = [], iter(batches)
    for number in range(warm + steps):
        inputs, targets = next(batches)
        began = time.monotonic()
        float(step(inputs, targets))  # waits for the device
        if number >= warm:
            taken.append(time.monotonic() - began)
    return statistics.median(taken)


def measure(name: str, policy: str, xla: bool, tiny: bool, steps: int) -> dict:
    """Return the rate of feature extraction and of fine-tuning, and their share of the peak."""
    build, unit = NETWORKS[name]
    keras.utils.clear_session()
    with dtype_policy(policy):
        model, batch, count = build(tiny)
        optimizer = keras.optimizers.AdamW(1e-5)
        if policy == "mixed_float16":  # small gradients would become 0
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    needed, loss = operations(model, batch), keras.losses.CategoricalCrossentropy()

    @tf.function(jit_compile=xla)
    def extract(inputs, _):
        return tf.reduce_sum(tf.cast(model(inputs, training=False), tf.float32))

    @tf.function(jit_compile=xla)
    def train(inputs, targets):
        with tf.GradientTape() as tape:
            value = loss(targets, tf.cast(model(inputs, training=True), tf.float32))
            scaled = optimizer.scale_loss(value)
        optimizer.apply(tape.gradient(scaled, model.trainable_variables), model.trainable_variables)
        return value

    top = peak("float16" if policy == "mixed_float16" else "float32", 256 if tiny else 8192)
    classes, found = model.output_shape[-1], {}
    for stage, step, passes in (("features", extract, 1), ("fine-tuning", train, 3)):
        seconds = seconds_of(step, stream(batch, len(tf.nest.flatten(batch)[0]), classes), 3, steps)
        found[stage] = {
            f"{unit}_per_second": round(count / seconds, 1), "milliseconds": round(1000 * seconds, 2),
            "share_of_peak": round(passes * needed / seconds / top, 4),
        }  # fmt: skip
    return {"network": name, "policy": policy, "xla": xla, "peak_teraflops": round(top / 1e12, 3), **found}


def main() -> None:
    """Measure every network under every policy, with XLA and without."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small networks and batches, to see that all of it runs")
    parser.add_argument("--steps", type=int, default=20, help="that are timed")
    parser.add_argument("--json", type=Path, help="file to write")
    given = parser.parse_args()
    for device in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(device, True)
    names = [tf.config.experimental.get_device_details(one).get("device_name", one.name)
             for one in tf.config.list_physical_devices("GPU")]  # fmt: skip
    print(f"device: {', '.join(names) or 'CPU'}")
    rows = []
    for name, policy, xla in itertools.product(NETWORKS, POLICIES, (False, True)):
        rows.append(measure(name, policy, xla, given.tiny, given.steps))
        print(json.dumps(rows[-1]), flush=True)
    if given.json:
        given.json.write_text(json.dumps({"device": names or ["CPU"], "rows": rows}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
