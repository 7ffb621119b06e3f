"""An image classifier as LiteRT or ONNX: its Converter for `common.converting`, and the proof by labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from common.converting import Converter, PixelFunction
from common.images.batches import image_batches
from common.images.dataset import ImageSet, draw_shots, load_image_set
from common.images.readers import ImageColumns
from common.progress import median_seconds

# Largest allowed difference of a probability in a float conversion; ResNets and MobileNets stay below 1e-5.
FLOAT_TOLERANCE = 1e-4
# Share of the test images for which an 8-bit conversion must predict the label of the SavedModel.
INT8_AGREEMENT = 0.98
# They set the range of each 8-bit tensor. From 30 to 200 the agreement did not improve measurably.
CALIBRATION_IMAGES = 200


def load_data(config: dict, scratch: Path, size: tuple[int, int]) -> ImageSet:
    """Return the images of a run, split as in the run; digits and tfds images are written again, into `scratch`.

    Args:
        config: settings of the run.
        scratch: folder for files.
        size: (height, width) of the model, in pixels.
    """
    # A run without the setting `group` is older than the photos: its demo was the digits.
    data = "demo:digits" if config["data"] == "demo" and "group" not in config else config["data"]
    columns = ImageColumns(*(config.get(f"{name}_column", name) for name in ("path", "label", "split")))
    kept = {name: config[name] for name in ("group", "limit", "resize", "val_share") if name in config}
    loaded = load_image_set(data, scratch, size, columns=columns, **kept)
    return draw_shots(loaded, config["shots"], config["seed"]) if config.get("shots") else loaded


def calibrate(data: ImageSet, seed: int) -> tuple[int, Callable]:
    """Return the number of training images that calibrate an 8-bit model, and a function that streams them singly."""
    some = data.train.pixels.take(np.random.default_rng(seed).permutation(len(data.train))[:CALIBRATION_IMAGES])
    return len(some), lambda: image_batches(some, 1).as_numpy_iterator()


def prove(saved: PixelFunction, converted: PixelFunction, data: ImageSet, _size: tuple[int, int]) -> dict:
    """Return the result of `prove_conversion` on the test images."""
    batches = image_batches(data.test.pixels, 32).as_numpy_iterator()
    return prove_conversion(saved, converted, batches, data.test.labels)


def prove_conversion(
    saved: PixelFunction, converted: PixelFunction, batches: Iterable[np.ndarray], labels: np.ndarray
) -> dict:
    """Run the SavedModel and the converted model on the same images, each in its own runtime, and compare.

    Args:
        saved: the SavedModel, as returned by `open_saved_model`.
        converted: the converted model, as returned by `open_litert` or `open_onnx`.
        batches: pixels float32 [batch, height, width, 3] as serving decodes and resizes them; n images in all.
        labels: int [n], the true classes.

    Returns:
        {"examples", "agreement", "max_abs_diff", "accuracy", "saved_model_accuracy", "batch_max_abs_diff" (the
        images of the first batch together and one by one), "milliseconds", "saved_model_milliseconds" (median per
        image, warm)}.
    """
    expected, received, first = [], [], None
    for pixels in batches:
        first = pixels if first is None else first
        expected.append(saved(pixels))
        received.append(converted(pixels))
    alone = np.concatenate([converted(first[i : i + 1]) for i in range(len(first))])
    batch_difference = float(np.abs(alone - received[0]).max())
    expected, received = np.concatenate(expected), np.concatenate(received)
    expected_class, received_class = expected.argmax(axis=1), received.argmax(axis=1)
    return {
        "examples": len(labels),
        "agreement": float((expected_class == received_class).mean()),
        "max_abs_diff": float(np.abs(expected - received).max()),
        "accuracy": float((received_class == labels).mean()),
        "saved_model_accuracy": float((expected_class == labels).mean()),
        "batch_max_abs_diff": batch_difference,
        "milliseconds": round(1e3 * median_seconds(lambda: converted(first[:1]), repeats=30), 3),
        "saved_model_milliseconds": round(1e3 * median_seconds(lambda: saved(first[:1]), repeats=30), 3),
    }


def failure(proof: dict, int8: bool) -> str:
    """Return why a conversion must not be used, or "".

    Args:
        proof: as `prove_conversion` returns it.
        int8: whether only a share of INT8_AGREEMENT of the labels must agree; otherwise all labels, and all
            probabilities within FLOAT_TOLERANCE.
    """
    if proof["batch_max_abs_diff"] > FLOAT_TOLERANCE:
        return f"gives different results for an image alone and in a batch (by {proof['batch_max_abs_diff']:.1e})"
    if int8 and proof["agreement"] < INT8_AGREEMENT:
        return f"gives {proof['agreement']:.4f} of the test images the same label; {INT8_AGREEMENT} are required"
    if not int8 and (proof["agreement"] < 1.0 or proof["max_abs_diff"] > FLOAT_TOLERANCE):
        return (
            f"gives {proof['agreement']:.4f} of the test images the same label (1 is required), probabilities differ "
            f"by up to {proof['max_abs_diff']:.1e} ({FLOAT_TOLERANCE:.0e} is allowed)"
        )
    return ""


def how_to_use(file: str, takes: str, size: tuple[int, int], resize: str, classes: int) -> str:
    """Return the README.md of a converted model: its input, its output, how to prepare an image.

    Args:
        file: name of the model file, *.tflite or *.onnx.
        takes: dtype of its pixels, "uint8" or "float32".
        size: (height, width) of its images.
        resize: how images were resized in training.
        classes: number of classes.
    """
    height, width = size
    ways = {
        "crop": f"crop the largest centred part with the aspect ratio {height}:{width}, and resize it to",
        "squash": "resize it, ignoring its aspect ratio, to",
        "pad": "resize it to fit, keeping its aspect ratio, and pad it with black (0), centred, to",
    }
    code = {
        ".onnx": f"""import onnxruntime

session = onnxruntime.InferenceSession("{file}")
(probabilities,) = session.run(["probabilities"], {{"pixels": pixels}})""",
        ".tflite": f"""from ai_edge_litert.interpreter import Interpreter

interpreter = Interpreter("{file}")
interpreter.allocate_tensors()
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pixels)
interpreter.invoke()
probabilities = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])""",
    }[Path(file).suffix]
    return f"""# {file}

Input: `pixels`, {takes} [1, {height}, {width}, 3]: RGB, 0 to 255. The model includes the normalization.
Output: float32 [1, {classes}], probabilities in the order of the lines of `labels.txt`.

To prepare an image as in training: decode it to RGB without applying the EXIF orientation, {ways[resize]}
{height} x {width} pixels (bilinear, with antialiasing{", rounded to whole numbers" if takes == "uint8" else ""}).
Other libraries resize slightly differently; test yours on images of known classes.

```python
{code}
```

Comparison with the SavedModel on the test images: `conversion.json`.
"""


CLASSIFIER = Converter(
    "probabilities", load_data, lambda config: config.get("resize", "crop"), calibrate, prove, failure, how_to_use
)
