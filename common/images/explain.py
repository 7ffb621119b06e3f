"""What a report says beyond the score: calibration, where the model looked, near-duplicates, suspected labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from markupsafe import Markup
from PIL import Image

from common.classification import calibration, metrics
from common.data.splits import PARTS
from common.files import write_table
from common.images import data_quality, gradcam
from common.images.batches import image_batches
from common.images.dataset import ImageSet
from common.images.preview import thumbnail
from common.images.sources import Source
from common.reporting import jpeg_of_picture, render_chapter

SUSPECT_COLUMNS = ("part", "path", "given", "suggested", "probability_of_given", "confident")
MAX_SHOWN = 12  # pairs of near-duplicates, and suspected labels, in the report
LOOKED_AT = 6  # pictures with a heat map among the right answers, and as many among the wrong ones


@dataclass(frozen=True)
class Explanation:
    """What was found out about a finished model and its data.

    Attributes:
        numbers: for metrics.json: "calibration" and "data_quality".
        reliability: rows of `calibration.reliability` for the test part.
        looks: one dict for each heat map: path, true, predicted, probability, pixels [h, w, 3], heat [h, w].
        near_duplicates: one dict each: part, path, other_part, other_path, similarity, the most alike first.
        suspects: one dict each with SUSPECT_COLUMNS, the least probable label first.
        sentences: findings in plain words.
    """

    numbers: dict
    reliability: list[dict]
    looks: list[dict]
    near_duplicates: list[dict]
    suspects: list[dict]
    sentences: tuple[str, ...]

    def chapter(self) -> Markup:
        """Return the chapter of the report, in HTML."""
        near, suspects = self.near_duplicates, [one for one in self.suspects if one["confident"]]
        context = {
            "looks": [
                {**look, "picture": _overlay(look["pixels"], look["heat"]), "name": Path(look["path"]).name}
                for look in self.looks
            ],
            "near": [
                {**pair, "picture": thumbnail(pair["path"]), "other_picture": thumbnail(pair["other_path"]),
                 "name": Path(pair["path"]).name, "other_name": Path(pair["other_path"]).name}
                for pair in near[:MAX_SHOWN]
            ],
            "near_count": len(near),
            "suspects": [
                {**one, "picture": thumbnail(one["path"]), "name": Path(one["path"]).name}
                for one in suspects[:MAX_SHOWN]
            ],
            "suspect_count": len(suspects),
        }  # fmt: skip
        return render_chapter(Path(__file__).with_name("templates") / "explanation.html", context)


def explain(
    out: Path, source: Source, model: keras.Model, data: ImageSet, *, features: dict[str, np.ndarray],
    probabilities: np.ndarray, val_probabilities: np.ndarray, applied_temperature: float | None, resize: str,
) -> Explanation:  # fmt: skip
    """Look behind the score of a classifier; also writes near_duplicates.csv and suspected_labels.csv into OUT.

    Args:
        out: the run folder.
        source: the model's extractor, with the weights that it has now.
        model: whose layer `head` maps the features to probabilities.
        data: the pictures.
        features: of each part from the frozen source, float32 [n, width].
        probabilities: of the test part, as exported, float32 [n, classes].
        val_probabilities: of the validation part, before any temperature, float32 [m, classes].
        applied_temperature: the one built into the model; None where there is none.
        resize: how pictures come to the model's size.

    Returns:
        The Explanation.
    """
    parts = [getattr(data, part) for part in PARTS]
    paths = np.concatenate([part.paths for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    part_of = np.repeat(PARTS, [len(part) for part in parts])

    pairs = data_quality.near_duplicates([part.thumbnails for part in parts], [features[part] for part in PARTS])
    near = [
        {"part": str(part_of[pair.place]), "path": str(paths[pair.place]), "other_part": str(part_of[pair.other]),
         "other_path": str(paths[pair.other]), "similarity": round(pair.similarity, 4)}
        for pair in pairs
    ]  # fmt: skip
    suspects = [
        {"part": str(part_of[one.place]), "path": str(paths[one.place]), "given": data.class_names[labels[one.place]],
         "suggested": data.class_names[one.suggested], "probability_of_given": round(one.probability_of_given, 4),
         "confident": one.confident}
        for one in data_quality.suspected_labels([features[p] for p in PARTS], labels, len(data.class_names))
    ]  # fmt: skip
    write_table(out / "near_duplicates.csv", near, ("part", "path", "other_part", "other_path", "similarity"))
    write_table(out / "suspected_labels.csv", suspects, SUSPECT_COLUMNS)

    in_test = np.array([pair.place for pair in pairs if part_of[pair.place] == "test"], int)
    clean = np.setdiff1d(np.arange(len(data.test)), in_test - len(data.train) - len(data.val))
    without = metrics.accuracy(data.test.labels[clean], probabilities[clean]) if len(clean) else None
    numbers = {
        "calibration": calibration.with_and_without_temperature(
            data.val.labels, val_probabilities, data.test.labels, probabilities, applied_temperature
        ),
        "data_quality": {
            "near_duplicates": len(near),
            "near_duplicates_in_test": len(in_test),
            "accuracy_without_near_duplicates": without,
            "suspected_labels": sum(one["confident"] for one in suspects),
        },
    }
    return Explanation(
        numbers=numbers,
        reliability=calibration.reliability(data.test.labels, probabilities),
        looks=_looks(source, model, data, probabilities, resize),
        near_duplicates=near,
        suspects=suspects,
        sentences=_sentences(numbers, len(paths), probabilities, data.test.labels),
    )


def _looks(source: Source, model: keras.Model, data: ImageSet, probabilities: np.ndarray, resize: str) -> list[dict]:
    """Return heat maps of the surest wrong answers and of the surest right ones, each class in its turn."""
    if not gradcam.has_feature_map(source.extractor):
        return []
    predicted, surest = probabilities.argmax(axis=1), np.argsort(-probabilities.max(axis=1), kind="stable")
    right = predicted[surest] == data.test.labels[surest]
    chosen = [*surest[~right][:LOOKED_AT], *_in_turn(surest[right], predicted)[:LOOKED_AT]]
    pixels = next(
        image_batches(data.test.paths[chosen], source.image_size, 2 * LOOKED_AT, resize=resize).as_numpy_iterator()
    )
    heat = gradcam.grad_cam(source.extractor, model.get_layer("head"), pixels, predicted[chosen])
    return [
        {"path": str(data.test.paths[i]), "true": data.class_names[data.test.labels[i]],
         "predicted": data.class_names[predicted[i]], "probability": float(probabilities[i].max()),
         "pixels": pixels[row], "heat": heat[row]}
        for row, i in enumerate(chosen)
    ]  # fmt: skip


def _in_turn(places: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Reorder places so that each class gives one before any gives its second."""
    seen: dict[int, int] = {}
    turn = []
    for place in places:
        turn.append(seen.setdefault(int(classes[place]), 0))
        seen[int(classes[place])] += 1
    return places[np.argsort(turn, kind="stable")]


def _sentences(numbers: dict, pictures: int, probabilities: np.ndarray, labels: np.ndarray) -> tuple[str, ...]:
    quality, found = numbers["data_quality"], []
    if count := quality["near_duplicates_in_test"]:
        without = quality["accuracy_without_near_duplicates"]
        score = "no test picture is left without them" if without is None else f"without them accuracy is {without:.3f}"
        found.append(
            f"{count} of {len(labels)} test pictures have a near-duplicate in another part, so the model may have seen "
            f"them: {score}, with them {metrics.accuracy(labels, probabilities):.3f}. See near_duplicates.csv."
        )
    if count := quality["suspected_labels"]:
        found.append(
            f"{count} of {pictures} labels are contradicted with confidence by the other pictures; the worst are shown "
            "below. See suspected_labels.csv."
        )
    return (*found, *calibration.sentences(numbers["calibration"]))


def _overlay(pixels: np.ndarray, heat: np.ndarray) -> str:
    """Return a picture with the heat map over it: what spoke for the answer keeps its colour and glows."""
    strength = heat[..., None]
    glow = np.stack([np.full_like(heat, 255), 200 * (1 - heat), np.zeros_like(heat)], axis=-1)
    mixed = pixels * (0.45 + 0.55 * strength) * (1 - 0.4 * strength) + glow * 0.4 * strength
    return jpeg_of_picture(Image.fromarray(np.clip(mixed, 0, 255).astype("uint8")))
