"""What computes the features of a frozen source: TensorFlow, or what agrees with it and is faster."""

from __future__ import annotations

import contextlib
import importlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from common.errors import first_line
from common.files import write_json
from common.images.batches import image_batches
from common.images.pixels import Pixels
from common.images.sources import Source, load_source
from common.progress import median_seconds
from common.training import copy_weights, dtype_policy, speedup_of_bfloat16

WORTH = 60.0  # seconds of TensorFlow from which converting the network, which takes up to ten, may pay
AGREES, AGREES_IN_BFLOAT16 = 0.9999, 0.999  # smallest cosine similarity of the features of an image
SLOWER = 0.8  # times as fast in bfloat16; what is closer to 1 may be noise
_TIMED = 32  # images


@dataclass(frozen=True)
class Engine:
    """What computes the features.

    Attributes:
        forward: pixels float32 [batch, height, width, 3] -> features float32 [batch, width].
        name: of the engine.
        reason: why it was chosen, a sentence.
        images_per_second: measured on one batch, of each engine that was tried.
        agreement: smallest cosine similarity with TensorFlow's features; None where no other engine was tried.
    """

    forward: Callable[[tf.Tensor], np.ndarray]
    name: str
    reason: str
    images_per_second: dict[str, float]
    agreement: float | None = None

    def report(self) -> dict:
        """Return all but the function, for metrics.json."""
        return {
            "name": self.name, "reason": self.reason, "images_per_second": self.images_per_second,
            "agreement": self.agreement,
        }  # fmt: skip


def choose_engine(source: Source, pixels: Pixels, passes: int, kept: Path, *, worth: float = WORTH) -> Engine:
    """Return the faster engine for the features of a frozen source; the choice is printed where there was one.

    Args:
        source: frozen, in float32.
        pixels: images of its input size; the first of them are timed.
        passes: images whose features are needed, each view counted.
        kept: file of the choice, by which a resumed run goes on with the same engine.
        worth: seconds of TensorFlow from which another engine is tried.
    """
    if kept.exists():
        report = json.loads(kept.read_text("utf-8"))
        if report["name"] == "tensorflow":
            return Engine(source.forward, **report)
        with contextlib.suppress(Exception):  # where OpenVINO was removed since, the engine is chosen again
            return Engine(_in_openvino(source), **report)
    engine = _fastest(source, pixels, passes, worth)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_json(kept, engine.report())
    return engine


def _fastest(source: Source, pixels: Pixels, passes: int, worth: float) -> Engine:
    some = next(iter(image_batches(pixels.take(slice(_TIMED)), _TIMED)))
    expected = source.forward(some).numpy()  # also warms up
    rates = {"tensorflow": round(len(some) / median_seconds(lambda: source.forward(some).numpy()), 1)}

    def tensorflow(reason: str, **more) -> Engine:
        return Engine(source.forward, "tensorflow", reason, rates, **more)

    if passes / rates["tensorflow"] < worth:
        return tensorflow(f"{passes:,} images take less than {worth:.0f} s")
    try:
        forward = _in_openvino(source)
        found = forward(some)
        rates["openvino"] = round(len(some) / median_seconds(lambda: forward(some)), 1)
    except Exception as error:  # an old version, or a processor without its instructions: any error may be raised
        engine = tensorflow(f"openvino cannot run this network here: {first_line(error)}")
    else:
        agreement = _agreement(found, expected)
        if not agreement >= AGREES:  # also where it is NaN
            engine = tensorflow("the features of openvino differ", agreement=agreement)
        elif rates["openvino"] <= rates["tensorflow"]:
            engine = tensorflow("openvino is not faster", agreement=agreement)
        else:
            engine = Engine(forward, "openvino", "openvino agrees and is faster", rates, agreement)
    said = ", ".join(f"{name} {rate:,.0f} images a second" for name, rate in rates.items())
    print(f"  features by {engine.name}: {engine.reason} ({said})")
    return engine


def choose_bfloat16(source: Source, pixels: Pixels, *_) -> Engine:
    """Return a copy of a source in bfloat16 if it agrees, for `--mixed-precision`; the choice is printed."""
    some = next(iter(image_batches(pixels.take(slice(_TIMED)), _TIMED)))
    twin = _in_bfloat16(source)
    agreement = _agreement(twin.forward(some).numpy(), source.forward(some).numpy())
    agrees = agreement >= AGREES_IN_BFLOAT16
    dtype = "bfloat16" if agrees else "float32"
    reason = f"the smallest cosine similarity of both is {agreement:.5f}"
    print(f"  features in {dtype}: {reason}")
    return Engine((twin if agrees else source).forward, f"tensorflow, {dtype}", reason, {}, agreement)


def _agreement(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the smallest cosine similarity of two features of an image, float32 [n, width]."""
    found, expected = found.astype("float64"), expected.astype("float64")
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return float(np.min(np.sum(found * expected, axis=1) / np.maximum(lengths, 1e-12)))


def _in_bfloat16(source: Source) -> Source:
    """Return a copy of a source that computes in bfloat16 and returns float32 features."""
    with dtype_policy("mixed_bfloat16"):
        twin = load_source(source.spec, source.image_size)
    copy_weights(source.extractor, twin.extractor)
    return twin


def _in_openvino(source: Source) -> Callable[[tf.Tensor], np.ndarray]:
    """Return the extractor as a function that OpenVINO runs in float32."""
    openvino = importlib.import_module("openvino")  # optional: requirements-fast.txt
    module = tf.Module()
    module.forward, module.weights = source.forward, [weight.value for weight in source.extractor.weights]
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=source.forward.get_concrete_function())
        model = openvino.convert_model(folder)
    compiled = openvino.Core().compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    )
    return lambda images: compiled(np.asarray(images))[0]


def warn_of_slow_bfloat16() -> None:
    """Print a warning where this machine computes in bfloat16 more slowly, as CPUs without instructions for it do."""
    if (times := speedup_of_bfloat16()) < SLOWER:
        print(
            f"  warning: here, products of matrices take {1 / times:.1f} times as long in bfloat16 as in float32. "
            "Try: the same command without --mixed-precision"
        )
