"""Test images drawn for the report, once as labelled and once as detected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from common import reporting
from common.detection.dataset import BoxExamples
from common.detection.drawing import colour_of, draw_boxes
from common.detection.metrics import NOBODY, NOT_JUDGED, Detections, Matching

MAX_PICTURES = 4  # of each kind: two pictures each, large enough to see boxes

PICTURE_PIXELS = 480


def draw_images(
    examples: BoxExamples, detections: Detections, matchings: Sequence[Matching], class_names: Sequence[str],
    threshold: float,
) -> dict[str, list[dict]]:  # fmt: skip
    """Draw the worst misses, then the surest false alarms, then some by chance: each picture once, those that open."""
    chance = np.random.default_rng(0).random(len(matchings))
    worth = {  # of each picture; None is not shown in this row
        "missed": [(len(one.missed), len(one.missed) / len(one.found_by)) if len(one.missed) else None
                   for one in matchings],
        "alarms": [max(scores[one.false_alarms], default=None)
                   for scores, one in zip(detections.scores, matchings, strict=True)],
        "ordinary": chance.tolist(),
    }  # fmt: skip
    seen: set[int] = set()
    drawn: dict[str, list[dict]] = {kind: [] for kind in worth}
    for kind, values in worth.items():
        places = [place for place, value in enumerate(values) if value is not None and place not in seen]
        for place in sorted(places, key=lambda place: values[place], reverse=True):
            if len(drawn[kind]) == MAX_PICTURES:
                break
            if picture := _picture(examples, detections, matchings[place], place, class_names, threshold):
                drawn[kind].append(picture)
                seen.add(place)
    return drawn


def _picture(
    examples: BoxExamples, detections: Detections, matching: Matching, place: int, class_names: Sequence[str],
    threshold: float,
) -> dict | None:  # fmt: skip
    """Draw one picture twice, as it is labelled and as it was answered; None where it cannot be read any more."""
    path = str(examples.paths[place])
    try:
        with Image.open(path) as image:
            # Not turned by its EXIF note: TensorFlow's decoder ignores it, so this is how the model saw it.
            times = PICTURE_PIXELS / max(image.size)
            pixels = image.convert("RGB").resize([max(1, round(side * times)) for side in image.size])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    truths, answers = examples.boxes[place] * times, detections.boxes[place] * times
    labels, said, scores = examples.labels[place], detections.labels[place], detections.scores[place]
    missed, alarms = matching.missed, matching.false_alarms
    judged = matching.finds >= 0
    on_crowd = (matching.finds == NOT_JUDGED) & (scores >= np.float32(threshold))
    right = _outlined(pixels, truths, np.where(examples.crowds[place], -2, labels), matching.found_by != NOBODY)
    labelled = draw_boxes(right, truths[missed], labels[missed], class_names)
    right = _outlined(pixels, answers, np.where(on_crowd, -2, said), judged | on_crowd)
    answered = draw_boxes(right, answers[alarms], said[alarms], class_names, scores[alarms])
    return {
        "labelled": reporting.jpeg_of_picture(labelled),
        "answered": reporting.jpeg_of_picture(answered),
        "name": Path(path).name,
        "text": _told(matching, labels, said, scores, class_names),
    }


def _outlined(pixels: Image.Image, boxes: np.ndarray, labels: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Return the picture with some of the boxes as thin lines without a name, uint8 [height, width, 3]."""
    picture = pixels.copy()
    draw = ImageDraw.Draw(picture)
    for place in np.flatnonzero(which):
        left, top, right, bottom = (round(float(number)) for number in boxes[place])
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour_of(labels[place]))
    return np.asarray(picture)


def _told(
    matching: Matching, labels: np.ndarray, said: np.ndarray, scores: np.ndarray, class_names: Sequence[str]
) -> str:
    """Say in words what the two pictures show."""
    missed, alarms = matching.missed, matching.false_alarms
    objects = int((matching.found_by != NOT_JUDGED).sum())
    if not objects:
        text = "No objects here."
    elif len(missed):
        names = Counter(class_names[label] for label in labels[missed]).most_common()
        text = f"Missed {len(missed)} of {objects}: " + ", ".join(f"{times} {name}" for name, times in names) + "."
    else:
        text = f"Found all {objects}." if objects > 1 else "Found the only object."
    if not len(alarms):
        return f"{text} No false alarm."
    surest = alarms[scores[alarms].argmax()]
    count = "1 false alarm" if len(alarms) == 1 else f"{len(alarms)} false alarms, the surest"
    text += f" {count}: {class_names[said[surest]]} {scores[surest]:.2f}."
    if len(matching.misnamed):
        pairs = Counter((class_names[labels[box]], class_names[said[alarm]]) for box, alarm in matching.misnamed)
        text += " Under a wrong name: " + ", ".join(f"{times} {true} as {answer}" for (true, answer), times in
                                                    pairs.most_common()) + "."  # fmt: skip
    return text
