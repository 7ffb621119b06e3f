"""A detector on a phone: what `common.converting` must know of boxes, and the proof box by box.

The suppression of doubles stays outside of the file: each runtime has its own op for it, or none. What comes out are
candidates, and the README.md beside the file shows the few lines that choose among them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tensorflow as tf

from common.converting import Ask, Converter
from common.detection.batches import evaluation_batches
from common.detection.dataset import BoxSet, load_box_set
from common.detection.inference import MOST, OVERLAP, TOLERANCE
from common.progress import median_seconds
from common.proof.fresh_process.boxes import match

# What scores less is no detection that anybody would use. A box just above the limit here may lie just below it there.
_SURE, _SLACK = 0.05, 0.01


def prove_conversion(saved: Ask, converted: Ask, batches: Iterable[np.ndarray]) -> dict:
    """Ask the SavedModel and the converted model about the same pictures, and compare every box that both choose.

    Args:
        saved: what was converted, as `converting.ask_saved_model` returns it.
        converted: the same, as `convert.open_litert` or `open_onnx` return it.
        batches: pixels float32 [batch, height, width, 3] as serving letterboxes them.

    Returns:
        {"examples", "boxes", "agreement" (share of the boxes that come again, here and there: same class, IoU >= 0.99,
        score within the tolerance), "max_abs_diff" (of a score), "batch_max_abs_diff" (of a score, the pictures of the
        first batch asked together and one by one), "milliseconds", "saved_model_milliseconds" (median for one picture,
        warm, without the suppression of doubles)}.
    """
    examples, asked, came, largest, first = 0, 0, 0, 0.0, None
    for pixels in batches:
        first = pixels if first is None else first
        for wanted, answered in zip(choose(saved(pixels)), choose(converted(pixels)), strict=True):
            examples += 1
            for expected, found in ((wanted, answered), (answered, wanted)):
                expected = _above(expected, _SURE)
                some, difference = match(**_above(found, _SURE - _SLACK), expected=expected)
                asked, came, largest = asked + len(expected["scores"]), came + some, max(largest, difference)
    together = choose(converted(first))
    alone = [choose(converted(first[i : i + 1]))[0] for i in range(len(first))]
    apart = max(float(np.abs(a["scores"] - b["scores"]).max()) for a, b in zip(together, alone, strict=True))
    return {
        "examples": examples,
        "boxes": asked // 2,
        "agreement": came / asked if asked else 1.0,
        "max_abs_diff": largest,
        "batch_max_abs_diff": apart,
        "milliseconds": round(1e3 * median_seconds(lambda: converted(first[:1]), repeats=30), 3),
        "saved_model_milliseconds": round(1e3 * median_seconds(lambda: saved(first[:1]), repeats=30), 3),
    }


def failure(proof: dict, _int8: bool = False) -> str:
    """Return why a converted detector must not be used, or ""; of what `prove_conversion` returns."""
    if proof["batch_max_abs_diff"] > TOLERANCE:
        return f"answers an image alone differently than in a batch (by {proof['batch_max_abs_diff']:.1e})"
    if proof["agreement"] < 1.0 or proof["max_abs_diff"] > TOLERANCE:
        return (
            f"agrees on {proof['agreement']:.4f} of the boxes (1 is required), with scores up to "
            f"{proof['max_abs_diff']:.1e} away ({TOLERANCE:.0e} is allowed)"
        )
    return ""


def load_data(config: dict, scratch: Path) -> BoxSet:
    """Return the images of a run, split again as they were; demo and tfds write them anew, and the run's own stay."""
    return load_box_set(
        config["data"], scratch, limit=config.get("limit"), class_names=config.get("class_names") or None
    )


def prove(saved: Ask, converted: Ask, data: BoxSet, size: tuple[int, int], _resize: str) -> dict:
    """Return what `prove_conversion` finds on the test images."""
    letterboxed = evaluation_batches(data.test, size, 8).as_numpy_iterator()
    return prove_conversion(saved, converted, (pixels for pixels, _, _ in letterboxed))


def choose(candidates: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Return what is left of the candidates of each picture when doubles are suppressed, as the SavedModel does it.

    Args:
        candidates: float32 [batch, n, 4 + classes]: xmin, ymin, xmax, ymax in pixels of the input, then scores.

    Returns:
        For each picture {"boxes" float32 [k, 4], "scores" float32 [k], "labels" int [k]}, and k is always MOST.
    """
    boxes, scores, labels, _ = tf.image.combined_non_max_suppression(
        candidates[:, :, None, :4], candidates[:, :, 4:], MOST, MOST, iou_threshold=OVERLAP, clip_boxes=False
    )
    found = zip(boxes.numpy(), scores.numpy(), labels.numpy().astype(int), strict=True)
    return [dict(zip(("boxes", "scores", "labels"), one, strict=True)) for one in found]


def how_to_use(file: str, _takes: str, size: tuple[int, int], _resize: str, classes: int) -> str:
    """Return the README.md beside a converted detector: what goes in, what comes out, how to choose among boxes.

    Args:
        file: name of the model's file, *.tflite or *.onnx; it takes float32, letterboxed.
        size: (height, width) of its pictures.
        classes: how many there are.
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

In: `pixels`, float32 [1, {height}, {width}, 3]: RGB, 0 to 255. The model itself subtracts and divides what it needs.
Out: float32 [1, n, 4 + {classes}]: xmin, ymin, xmax, ymax in pixels of the input, then the score of each class in the
order of the lines of `labels.txt`. A box may stand there several times; the program below keeps the surest.

To prepare a picture as in training: decode it to RGB without turning it by its EXIF note, resize it (bilinear, with
antialiasing) so that it just fits into {height} x {width} and keeps its shape, put it into the upper left corner, and
fill the rest with grey (128). Divide boxes by the same scale to get pixels of the picture.

```python
import numpy as np
{run}


def overlap(box, others):
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    area, areas = np.prod(box[2:] - box[:2]), np.prod(others[:, 2:] - others[:, :2], axis=1)
    return shared / (area + areas - shared)


found = []  # (box, class number, score), the surest first
for label in range({classes}):
    boxes, scores = candidates[0, :, :4], candidates[0, :, 4 + label]
    left = [i for i in np.argsort(-scores) if scores[i] > 0.3]
    while left:
        found.append((boxes[left[0]], label, scores[left[0]]))
        left = [i for i in left[1:] if overlap(boxes[left[0]], boxes[[i]])[0] < {OVERLAP}]
found.sort(key=lambda one: -one[2])
```

How it compares with the SavedModel on the test pictures: `conversion.json`.
"""


def _above(found: dict[str, np.ndarray], score: float) -> dict[str, np.ndarray]:
    keep = found["scores"] >= score
    return {name: values[keep] for name, values in found.items()}


DETECTOR = Converter("candidates", load_data, lambda _: "letterbox", None, prove, failure, how_to_use)
