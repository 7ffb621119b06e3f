"""An image classifier as LiteRT or ONNX: what `common.converting` must know of it, and the proof label by label."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from common.converting import Ask, Converter
from common.images.batches import image_batches
from common.images.dataset import ImageSet, load_image_set
from common.progress import median_seconds

# Largest difference of a probability that a float conversion may show; ResNets and MobileNets stay below 1e-5.
FLOAT_TOLERANCE = 1e-4
# Share of the test pictures that an 8-bit conversion must answer as the SavedModel does.
INT8_AGREEMENT = 0.98
# They set the range of each 8-bit tensor. From 30 to 200 the agreement did not grow beyond chance.
CALIBRATION_IMAGES = 200


def load_data(config: dict, scratch: Path) -> ImageSet:
    """Return the images of a run, split again as they were; demo and tfds write them anew, and the run's own stay."""
    return load_image_set(config["data"], scratch, **{k: config[k] for k in ("limit", "val_share") if k in config})


def calibrate(data: ImageSet, size: tuple[int, int], resize: str, seed: int) -> tuple[int, Callable]:
    """Return how many training images set the ranges of an 8-bit model, and what streams them, one in a batch."""
    some = np.random.default_rng(seed).permutation(np.asarray(data.train.paths))[:CALIBRATION_IMAGES]
    return len(some), lambda: image_batches(some, size, 1, resize=resize).as_numpy_iterator()


def prove(saved: Ask, converted: Ask, data: ImageSet, size: tuple[int, int], resize: str) -> dict:
    """Return what `prove_conversion` finds on the test images."""
    batches = image_batches(data.test.paths, size, 32, resize=resize).as_numpy_iterator()
    return prove_conversion(saved, converted, batches, data.test.labels)


def prove_conversion(saved: Ask, converted: Ask, batches: Iterable[np.ndarray], labels: np.ndarray) -> dict:
    """Ask the SavedModel and the converted model about the same pictures, each in its own runtime, and compare.

    Args:
        saved: what was converted, as `ask_saved_model` returns it.
        converted: the same, as `open_litert` or `open_onnx` return it.
        batches: pixels float32 [batch, height, width, 3] as serving decodes and resizes them; n pictures in all.
        labels: int [n], the true classes.

    Returns:
        {"examples", "agreement", "max_abs_diff", "accuracy", "saved_model_accuracy", "batch_max_abs_diff" (the
        pictures of the first batch asked together and one by one), "milliseconds", "saved_model_milliseconds" (median
        for one picture, warm)}.
    """
    wanted, answered, first = [], [], None
    for pixels in batches:
        first = pixels if first is None else first
        wanted.append(saved(pixels))
        answered.append(converted(pixels))
    alone = np.concatenate([converted(first[i : i + 1]) for i in range(len(first))])
    batch_difference = float(np.abs(alone - answered[0]).max())
    wanted, answered = np.concatenate(wanted), np.concatenate(answered)
    said, answer = wanted.argmax(axis=1), answered.argmax(axis=1)
    return {
        "examples": len(labels),
        "agreement": float((said == answer).mean()),
        "max_abs_diff": float(np.abs(wanted - answered).max()),
        "accuracy": float((answer == labels).mean()),
        "saved_model_accuracy": float((said == labels).mean()),
        "batch_max_abs_diff": batch_difference,
        "milliseconds": round(1e3 * median_seconds(lambda: converted(first[:1]), repeats=30), 3),
        "saved_model_milliseconds": round(1e3 * median_seconds(lambda: saved(first[:1]), repeats=30), 3),
    }


def failure(proof: dict, int8: bool) -> str:
    """Return why a conversion must not be used, or "".

    Args:
        proof: as `prove_conversion` returns it.
        int8: a share of INT8_AGREEMENT of the labels must then be the same; all of them otherwise, and all
            probabilities within FLOAT_TOLERANCE.
    """
    if proof["batch_max_abs_diff"] > FLOAT_TOLERANCE:
        return f"answers an image alone differently than in a batch (by {proof['batch_max_abs_diff']:.1e})"
    if int8 and proof["agreement"] < INT8_AGREEMENT:
        return f"gives {proof['agreement']:.4f} of the test images the same label; {INT8_AGREEMENT} are required"
    if not int8 and (proof["agreement"] < 1.0 or proof["max_abs_diff"] > FLOAT_TOLERANCE):
        return (
            f"agrees on {proof['agreement']:.4f} of the answers (1 is required), with probabilities up to "
            f"{proof['max_abs_diff']:.1e} away ({FLOAT_TOLERANCE:.0e} is allowed)"
        )
    return ""


def how_to_use(file: str, takes: str, size: tuple[int, int], resize: str, classes: int) -> str:
    """Return the README.md beside a converted model: what goes in, what comes out, how to prepare a picture.

    Args:
        file: name of the model's file, *.tflite or *.onnx.
        takes: dtype of its pixels, "uint8" or "float32".
        size: (height, width) of its pictures.
        resize: how pictures came to this size in training.
        classes: how many there are.
    """
    height, width = size
    ways = {
        "crop": f"cut out the largest centred part with the shape {height}:{width}, and resize it to",
        "squash": "resize it, whatever its shape, to",
        "pad": "shrink or enlarge it until it just fits, and fill the rest with black (0), centred, to",
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

In: `pixels`, {takes} [1, {height}, {width}, 3]: RGB, 0 to 255. The model itself subtracts and divides what it needs.
Out: float32 [1, {classes}], probabilities in the order of the lines of `labels.txt`.

To prepare a picture as in training: decode it to RGB without turning it by its EXIF note, {ways[resize]}
{height} x {width} pixels (bilinear, with antialiasing{", rounded to whole numbers" if takes == "uint8" else ""}).
Other libraries resize a little differently; try yours on pictures whose class you know.

```python
{code}
```

How it compares with the SavedModel on the test pictures: `conversion.json`.
"""


CLASSIFIER = Converter(
    "probabilities", load_data, lambda config: config.get("resize", "crop"), calibrate, prove, failure, how_to_use
)
