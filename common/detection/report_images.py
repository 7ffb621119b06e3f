"""Test images of the report, drawn once with the labelled and once with the detected boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from common import reporting
from common.detection.dataset import BoxExamples
from common.detection.drawing import colour_of, draw_boxes
from common.detection.matching import NOT_JUDGED, UNMATCHED, Matching
from common.detection.metrics import Detections

MAX_IMAGES = 4  # of each kind, each drawn twice, large enough to see boxes
IMAGE_PIXELS = 480


def draw_images(
    examples: BoxExamples, detections: Detections, matchings: Sequence[Matching], class_names: Sequence[str],
    threshold: float,
) -> dict[str, list[dict]]:  # fmt: skip
    """Draw images with most misses, with confident false positives, and random ones; skip repeated and unreadable."""
    chance = np.random.default_rng(0).random(len(matchings))
    worth = {  # rank of each image; None excludes it from this row
        "missed": [(len(one.missed), len(one.missed) / len(one.found_by)) if len(one.missed) else None
                   for one in matchings],
        "false_positives": [max(scores[one.false_positives], default=None)
                   for scores, one in zip(detections.scores, matchings, strict=True)],
        "ordinary": chance.tolist(),
    }  # fmt: skip
    seen: set[int] = set()
    drawn: dict[str, list[dict]] = {kind: [] for kind in worth}
    for kind, values in worth.items():
        places = [place for place, value in enumerate(values) if value is not None and place not in seen]
        for place in sorted(places, key=lambda place: values[place], reverse=True):
            if len(drawn[kind]) == MAX_IMAGES:
                break
            if image := _draw_image(examples, detections, matchings[place], place, class_names, threshold):
                drawn[kind].append(image)
                seen.add(place)
    return drawn


def _draw_image(
    examples: BoxExamples, detections: Detections, matching: Matching, place: int, class_names: Sequence[str],
    threshold: float,
) -> dict | None:  # fmt: skip
    """Draw one image twice, with labelled and with detected boxes; None where it can no longer be read."""
    path = str(examples.paths[place])
    try:
        with Image.open(path) as image:
            # Not rotated by its EXIF orientation, which TensorFlow's decoder ignores as well.
            times = IMAGE_PIXELS / max(image.size)
            pixels = image.convert("RGB").resize([max(1, round(side * times)) for side in image.size])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    truths, boxes = examples.boxes[place] * times, detections.boxes[place] * times
    labels, names, scores = examples.labels[place], detections.labels[place], detections.scores[place]
    missed, wrong = matching.missed, matching.false_positives
    judged = matching.finds >= 0
    on_crowd = (matching.finds == NOT_JUDGED) & (scores >= np.float32(threshold))
    right = _outlined(pixels, truths, np.where(examples.crowds[place], -2, labels), matching.found_by != UNMATCHED)
    labelled = draw_boxes(right, truths[missed], labels[missed], class_names)
    right = _outlined(pixels, boxes, np.where(on_crowd, -2, names), judged | on_crowd)
    detected = draw_boxes(right, boxes[wrong], names[wrong], class_names, scores[wrong])
    return {
        "labelled": reporting.jpeg_of_image(labelled),
        "detected": reporting.jpeg_of_image(detected),
        "name": Path(path).name,
        "text": _caption(matching, labels, names, scores, class_names),
    }


def _outlined(pixels: Image.Image, boxes: np.ndarray, labels: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Return the image with some of the boxes as thin unnamed outlines, uint8 [height, width, 3]."""
    image = pixels.copy()
    draw = ImageDraw.Draw(image)
    for place in np.flatnonzero(which):
        left, top, right, bottom = (round(float(number)) for number in boxes[place])
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour_of(labels[place]))
    return np.asarray(image)


def _caption(
    matching: Matching, labels: np.ndarray, detected: np.ndarray, scores: np.ndarray, class_names: Sequence[str]
) -> str:
    """Return the caption of the two images."""
    missed, wrong = matching.missed, matching.false_positives
    objects = int((matching.found_by != NOT_JUDGED).sum())
    if not objects:
        text = "No objects."
    elif len(missed):
        names = Counter(class_names[label] for label in labels[missed]).most_common()
        text = f"Missed {len(missed)} of {objects}: " + ", ".join(f"{times} {name}" for name, times in names) + "."
    else:
        text = f"Found all {objects}." if objects > 1 else "Found the only object."
    if not len(wrong):
        return f"{text} No false positives."
    top = wrong[scores[wrong].argmax()]
    count = "1 false positive" if len(wrong) == 1 else f"{len(wrong)} false positives, most confident"
    text += f" {count}: {class_names[detected[top]]} {scores[top]:.2f}."
    if len(matching.misnamed):
        pairs = Counter((class_names[labels[box]], class_names[detected[one]]) for box, one in matching.misnamed)
        text += " Wrong class: " + ", ".join(f"{times} {true} as {other}" for (true, other), times in
                                                    pairs.most_common()) + "."  # fmt: skip
    return text
