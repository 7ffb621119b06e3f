"""Explanations in the report: calibration, Grad-CAM heat maps, near-duplicates, suspected label errors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from markupsafe import Markup
from PIL import Image

from common.classification import calibration, metrics
from common.data.splits import SPLITS
from common.files import write_table
from common.images import data_quality, gradcam
from common.images.batches import image_batches
from common.images.dataset import ImageSet
from common.images.preview import thumbnail
from common.images.sources import Source
from common.reporting import jpeg_of_image, render_chapter

SUSPECT_COLUMNS = ("split", "path", "given", "suggested", "probability_of_given", "confident")
MAX_SHOWN = 12  # pairs of near-duplicates, and suspected label errors, in the report
HEAT_MAPS = 6  # of correct predictions, and as many of wrong ones


@dataclass(frozen=True)
class Explanation:
    """Explanations of a finished model and its data.

    Attributes:
        numbers: for metrics.json: "calibration" and "data_quality".
        reliability: rows of `calibration.reliability` for the test split.
        heat_maps: one dict per heat map: path, true, predicted, probability, pixels [h, w, 3], heat [h, w].
        near_duplicates: one dict each: split, path, other_split, other_path, similarity, the most similar first.
        suspects: one dict each with SUSPECT_COLUMNS, the least probable label first.
        sentences: findings for the report.
    """

    numbers: dict
    reliability: list[dict]
    heat_maps: list[dict]
    near_duplicates: list[dict]
    suspects: list[dict]
    sentences: tuple[str, ...]

    def chapter(self) -> Markup:
        """Return the chapter of the report, in HTML."""
        near, suspects = self.near_duplicates, [one for one in self.suspects if one["confident"]]
        context = {
            "heat_maps": [
                {**one, "image": _overlay(one["pixels"], one["heat"]), "name": Path(one["path"]).name}
                for one in self.heat_maps
            ],
            "near": [
                {**pair, "image": thumbnail(pair["path"]), "other_image": thumbnail(pair["other_path"]),
                 "name": Path(pair["path"]).name, "other_name": Path(pair["other_path"]).name}
                for pair in near[:MAX_SHOWN]
            ],
            "near_count": len(near),
            "suspects": [
                {**one, "image": thumbnail(one["path"]), "name": Path(one["path"]).name}
                for one in suspects[:MAX_SHOWN]
            ],
            "suspect_count": len(suspects),
        }  # fmt: skip
        return render_chapter(Path(__file__).with_name("templates") / "explanation.html", context)


def explain(
    out: Path, source: Source, model: keras.Model, data: ImageSet, *, features: dict[str, np.ndarray],
    probabilities: np.ndarray, val_probabilities: np.ndarray, applied_temperature: float | None,
) -> Explanation:  # fmt: skip
    """Explain a classifier and check its data; also writes near_duplicates.csv and suspected_labels.csv into OUT.

    Args:
        out: the run folder.
        source: the model's extractor, with its final weights.
        model: the classifier; its layer `head` maps the features to probabilities.
        data: the images.
        features: of each split from the frozen source, float32 [n, width].
        probabilities: of the test split, as exported, float32 [n, classes].
        val_probabilities: of the validation split, before any temperature, float32 [m, classes].
        applied_temperature: the temperature built into the model; None without one.

    Returns:
        The Explanation.
    """
    splits = [getattr(data, split) for split in SPLITS]
    paths = np.concatenate([split.paths for split in splits])
    labels = np.concatenate([split.labels for split in splits])
    split_of = np.repeat(SPLITS, [len(split) for split in splits])

    pairs = data_quality.near_duplicates([split.thumbnails for split in splits], [features[split] for split in SPLITS])
    near = [
        {"split": str(split_of[pair.place]), "path": str(paths[pair.place]), "other_split": str(split_of[pair.other]),
         "other_path": str(paths[pair.other]), "similarity": round(pair.similarity, 4)}
        for pair in pairs
    ]  # fmt: skip
    suspects = [
        {"split": str(split_of[one.place]), "path": str(paths[one.place]), "given": data.class_names[labels[one.place]],
         "suggested": data.class_names[one.suggested], "probability_of_given": round(one.probability_of_given, 4),
         "confident": one.confident}
        for one in data_quality.suspected_labels([features[p] for p in SPLITS], labels, len(data.class_names))
    ]  # fmt: skip
    write_table(out / "near_duplicates.csv", near, ("split", "path", "other_split", "other_path", "similarity"))
    write_table(out / "suspected_labels.csv", suspects, SUSPECT_COLUMNS)

    in_test = np.array([pair.place for pair in pairs if split_of[pair.place] == "test"], int)
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
        heat_maps=_heat_maps(source, model, data, probabilities),
        near_duplicates=near,
        suspects=suspects,
        sentences=_sentences(numbers, len(paths), probabilities, data.test.labels),
    )


def _heat_maps(source: Source, model: keras.Model, data: ImageSet, probabilities) -> list[dict]:
    """Return heat maps of the most confident wrong and correct predictions; the correct ones class by class in turn."""
    if not gradcam.has_feature_map(source.extractor):
        return []
    predicted, surest = probabilities.argmax(axis=1), np.argsort(-probabilities.max(axis=1), kind="stable")
    right = predicted[surest] == data.test.labels[surest]
    chosen = [*surest[~right][:HEAT_MAPS], *_in_turn(surest[right], predicted)[:HEAT_MAPS]]
    pixels = next(image_batches(data.test.pixels.take(chosen), 2 * HEAT_MAPS).as_numpy_iterator())
    heat = gradcam.grad_cam(source.extractor, model.get_layer("head"), pixels, predicted[chosen])
    return [
        {"path": str(data.test.paths[i]), "true": data.class_names[data.test.labels[i]],
         "predicted": data.class_names[predicted[i]], "probability": float(probabilities[i].max()),
         "pixels": pixels[row], "heat": heat[row]}
        for row, i in enumerate(chosen)
    ]  # fmt: skip


def _in_turn(places: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Reorder indices so that every class has its first before any class has its second."""
    seen: dict[int, int] = {}
    turn = []
    for place in places:
        turn.append(seen.setdefault(int(classes[place]), 0))
        seen[int(classes[place])] += 1
    return places[np.argsort(turn, kind="stable")]


def _sentences(numbers: dict, images: int, probabilities: np.ndarray, labels: np.ndarray) -> tuple[str, ...]:
    quality, found = numbers["data_quality"], []
    if count := quality["near_duplicates_in_test"]:
        without = quality["accuracy_without_near_duplicates"]
        score = "no test image remains without them" if without is None else f"accuracy is {without:.3f} without them"
        found.append(
            f"{count} of {len(labels)} test images have a near-duplicate in another split, maybe in training: "
            f"{score}, {metrics.accuracy(labels, probabilities):.3f} with them. See near_duplicates.csv."
        )
    if count := quality["suspected_labels"]:
        found.append(
            f"{count} of {images} labels are confidently contradicted by the other images (suspected label errors). "
            "See suspected_labels.csv."
        )
    return (*found, *calibration.sentences(numbers["calibration"]))


def _overlay(pixels: np.ndarray, heat: np.ndarray) -> str:
    """Return an image with the heat map over it: regions that contributed keep their colour and are highlighted."""
    strength = heat[..., None]
    glow = np.stack([np.full_like(heat, 255), 200 * (1 - heat), np.zeros_like(heat)], axis=-1)
    mixed = pixels * (0.45 + 0.55 * strength) * (1 - 0.4 * strength) + glow * 0.4 * strength
    return jpeg_of_image(Image.fromarray(np.clip(mixed, 0, 255).astype("uint8")))
