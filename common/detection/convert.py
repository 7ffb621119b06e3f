"""Conversion of detectors for phones: `common.converting` for boxes, with a proof box by box.

Non-maximum suppression stays outside the file: each runtime has its own op for it, or none. The outputs are candidates,
and the README.md beside the file has the few lines that select among them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tensorflow as tf

from common.converting import Converter, PixelFunction
from common.detection.batches import evaluation_batches
from common.detection.dataset import BoxSet, load_box_set
from common.detection.inference import MOST, OVERLAP, TOLERANCE
from common.progress import median_seconds
from common.proof.fresh_process.boxes import match

# Lower scores are of no use. A box just above the limit in one model may be just below it in the other.
_MIN_SCORE, _SLACK = 0.05, 0.01


def prove_conversion(saved: PixelFunction, converted: PixelFunction, batches: Iterable[np.ndarray]) -> dict:
    """Run the SavedModel and the converted model on the same images and compare all selected boxes.

    Args:
        saved: the original model, as returned by `converting.open_saved_model`.
        converted: the converted model, as returned by `converting.open_litert` or `open_onnx`.
        batches: pixels float32 [batch, height, width, 3], letterboxed as in serving.

    Returns:
        {"examples", "boxes", "agreement" (share of the boxes of either model that the other one has: same class,
        IoU >= 0.99, score within the tolerance), "max_abs_diff" (of a score), "batch_max_abs_diff" (of a score, the
        first batch as a whole against image by image), "milliseconds", "saved_model_milliseconds" (median for one
        image, warm, without non-maximum suppression)}.
    """
    examples, total, same, largest, first = 0, 0, 0, 0.0, None
    for pixels in batches:
        first = pixels if first is None else first
        for original, result in zip(choose(saved(pixels)), choose(converted(pixels)), strict=True):
            examples += 1
            for expected, found in ((original, result), (result, original)):
                expected = _above(expected, _MIN_SCORE)
                some, difference = match(**_above(found, _MIN_SCORE - _SLACK), expected=expected)
                total, same, largest = total + len(expected["scores"]), same + some, max(largest, difference)
    together = choose(converted(first))
    alone = [choose(converted(first[i : i + 1]))[0] for i in range(len(first))]
    apart = max(float(np.abs(a["scores"] - b["scores"]).max()) for a, b in zip(together, alone, strict=True))
    return {
        "examples": examples,
        "boxes": total // 2,
        "agreement": same / total if total else 1.0,
        "max_abs_diff": largest,
        "batch_max_abs_diff": apart,
        "milliseconds": round(1e3 * median_seconds(lambda: converted(first[:1]), repeats=30), 3),
        "saved_model_milliseconds": round(1e3 * median_seconds(lambda: saved(first[:1]), repeats=30), 3),
    }


def failure(proof: dict, _int8: bool = False) -> str:
    """Return why a converted detector must not be used, or "", from the result of `prove_conversion`."""
    if proof["batch_max_abs_diff"] > TOLERANCE:
        return f"gives different results for an image alone and in a batch (by {proof['batch_max_abs_diff']:.1e})"
    if proof["agreement"] < 1.0 or proof["max_abs_diff"] > TOLERANCE:
        return (
            f"agrees on {proof['agreement']:.4f} of the boxes (required: 1), with scores that differ by up to "
            f"{proof['max_abs_diff']:.1e} (allowed: {TOLERANCE:.0e})"
        )
    return ""


def load_data(config: dict, scratch: Path, _size: tuple[int, int]) -> BoxSet:
    """Return the images of a run in the same splits; scenes and tfds images are written again, into `scratch`."""
    # The demo of runs before format 2 was the scenes.
    data = "demo:scenes" if config["data"] == "demo" and config.get("format", 1) < 2 else config["data"]
    return load_box_set(data, scratch, limit=config.get("limit"), class_names=config.get("class_names") or None)


def prove(saved: PixelFunction, converted: PixelFunction, data: BoxSet, size: tuple[int, int]) -> dict:
    """Return the result of `prove_conversion` on the test images."""
    letterboxed = evaluation_batches(data.test, size, 8).as_numpy_iterator()
    return prove_conversion(saved, converted, (pixels for pixels, _, _ in letterboxed))


def choose(candidates: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Return the candidates of each image that remain after non-maximum suppression, as in the SavedModel.

    Args:
        candidates: float32 [batch, n, 4 + classes]: xmin, ymin, xmax, ymax in pixels of the input, then scores.

    Returns:
        For each image {"boxes" float32 [k, 4], "scores" float32 [k], "labels" int [k]}; k is always MOST.
    """
    boxes, scores, labels, _ = tf.image.combined_non_max_suppression(
        candidates[:, :, None, :4], candidates[:, :, 4:], MOST, MOST, iou_threshold=OVERLAP, clip_boxes=False
    )
    found = zip(boxes.numpy(), scores.numpy(), labels.numpy().astype(int), strict=True)
    return [dict(zip(("boxes", "scores", "labels"), one, strict=True)) for one in found]


def how_to_use(file: str, _takes: str, size: tuple[int, int], _resize: str, classes: int) -> str:
    """Return the README.md beside a converted detector: inputs, outputs, and how to select boxes.

    Args:
        file: name of the model file, *.tflite or *.onnx; it takes float32, letterboxed.
        size: (height, width) of its input.
        classes: number of classes.
    """
    height, width = size
    run = (
        f"""import onnxruntime

session = onnxruntime.InferenceSession("{file}")
(candidates,) = session.run(None, {{"pixels": pixels}})"""
        if file.endswith(".onnx")
        else f"""from ai_edge_litert.interpreter import Interpreter

interpreter = Interpreter("{file}")
interpreter.allocate_tensors()
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pixels)
interpreter.invoke()
candidates = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])"""
    )
    return f"""# {file}

In: `pixels`, float32 [1, {height}, {width}, 3]: RGB, 0 to 255. The model includes normalisation.
Out: float32 [1, n, 4 + {classes}]: xmin, ymin, xmax, ymax in pixels of the input, then the score of each class in the
order of the lines of `labels.txt`. Boxes may overlap; the program below keeps those with the highest scores.

To prepare an image as in training: decode it to RGB without applying its EXIF orientation, resize it (bilinear, with
antialiasing) to fit into {height} x {width} with its aspect ratio, place it in the upper left corner, and
fill the rest with grey (128). Divide boxes by the same scale to get pixels of the image.

```python
import numpy as np
{run}


def overlap(box, others):
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    area, areas = np.prod(box[2:] - box[:2]), np.prod(others[:, 2:] - others[:, :2], axis=1)
    return shared / (area + areas - shared)


found = []  # (box, class number, score), highest score first
for label in range({classes}):
    boxes, scores = candidates[0, :, :4], candidates[0, :, 4 + label]
    left = [i for i in np.argsort(-scores) if scores[i] > 0.3]
    while left:
        found.append((boxes[left[0]], label, scores[left[0]]))
        left = [i for i in left[1:] if overlap(boxes[left[0]], boxes[[i]])[0] < {OVERLAP}]
found.sort(key=lambda one: -one[2])
```

Comparison with the SavedModel on the test images: `conversion.json`.
"""


def _above(found: dict[str, np.ndarray], score: float) -> dict[str, np.ndarray]:
    keep = found["scores"] >= score
    return {name: values[keep] for name, values in found.items()}


DETECTOR = Converter("candidates", load_data, lambda _: "letterbox", None, prove, failure, how_to_use)
