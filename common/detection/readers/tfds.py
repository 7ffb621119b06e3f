"""Boxes of TensorFlow Datasets and of the demo scenes."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np

from common.data.splits import SPLIT_OF_NAME
from common.detection.demo_scenes import write_scenes
from common.detection.readers.rows import BoxRow, Noticed, box_row
from common.errors import UserError
from common.images.files import write_image


def tfds_rows(name: str, folder: Path, noticed: Noticed) -> list[BoxRow]:
    """Write the images of a TensorFlow data set into a folder, with unchanged bytes, and return them with their boxes.

    A split without any box is skipped: COCO and VOC do not publish the boxes of their test splits.

    Raises:
        UserError: it cannot be loaded, or has no images with boxes and labels.
    """
    builder = importlib.import_module("common.data.tfds").prepared_builder(name)  # few need it
    import tensorflow_datasets as tfds  # here: slow to import; installed, as there is a builder

    features, split_of = builder.info.features, {s: SPLIT_OF_NAME.get(s.lower()) for s in builder.info.splits}
    objects = next((key for key, feature in features.items() if _holds_boxes(tfds, feature)), None)
    if "image" not in features or objects is None:
        raise UserError(
            f"--data tfds:{name} needs an image and a list of bbox (ymin, xmin, ymax, xmax, as fractions of the image) "
            f"and label. Received: {features}."
        )
    if not any(split_of.values()):
        raise UserError(f"--data tfds:{name} has no split named train, validation or test. Received: {list(split_of)}.")
    folder = folder / builder.info.full_name  # keeps data sets in one run folder apart
    inner = features[objects].feature
    rows = []
    decoders = {"image": tfds.decode.SkipDecoding()}  # the original bytes, as serving receives them
    for key, split in split_of.items():
        if split is None:
            continue
        examples = builder.as_dataset(split=key, decoders=decoders)
        if not any(len(example[objects]["bbox"]) for example in examples.as_numpy_iterator()):
            noticed["splits without any box, skipped"].append(key)
            continue
        for index, example in enumerate(examples.as_numpy_iterator()):
            path = folder / key / f"{index:07d}.img"
            write_image(path, example["image"])
            found = example[objects]
            labels = [inner["label"].int2str(int(label)) if label >= 0 else "" for label in found["label"]]
            crowds = found.get("is_crowd", found.get("is_difficult", np.zeros(len(labels), bool)))
            boxes = found["bbox"].reshape(-1, 4)[:, [1, 0, 3, 2]]
            rows.append(box_row(path, boxes, labels, split, f"{key}:{index}", crowds=map(bool, crowds), relative=True))
    return rows


def _holds_boxes(tfds, feature) -> bool:
    """Return whether a feature is a list of boxes with class labels, in the box format of TensorFlow Datasets."""
    inner = getattr(feature, "feature", None)
    if not isinstance(inner, tfds.features.FeaturesDict) or not {"bbox", "label"} <= set(inner):
        return False
    usual = tfds.features.BBoxFeature().bbox_format
    return getattr(inner["bbox"], "bbox_format", None) == usual and isinstance(inner["label"], tfds.features.ClassLabel)


def scene_rows(folder: Path) -> list[BoxRow]:
    """Draw the scenes with handwritten digits into a folder and return them with their boxes."""
    return [
        box_row(scene.path, scene.boxes, scene.labels, scene.split, f"{scene.split}/{Path(scene.path).name}")
        for scene in write_scenes(folder / "scenes")
    ]
