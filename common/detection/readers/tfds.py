"""Boxes of TensorFlow Datasets, and of the demo scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.data.splits import PART_OF_NAME
from common.data.tfds import prepared_builder
from common.detection.demo_scenes import write_scenes
from common.detection.readers.rows import BoxRow, Noticed, box_row
from common.errors import UserError
from common.images.files import write_picture


def tfds_rows(name: str, folder: Path, noticed: Noticed) -> list[BoxRow]:
    """Write the pictures of a TensorFlow data set into a folder, as the files they are, and list them with their boxes.

    A split without any box is left out: COCO and VOC keep the boxes of their test part to themselves.

    Raises:
        UserError: it cannot be loaded, or has no image with boxes and labels.
    """
    builder = prepared_builder(name)
    import tensorflow_datasets as tfds  # here: installed, as there is a builder, and it takes seconds to import

    features, parts = builder.info.features, {s: PART_OF_NAME.get(s.lower()) for s in builder.info.splits}
    objects = next((key for key, feature in features.items() if _holds_boxes(tfds, feature)), None)
    if "image" not in features or objects is None:
        raise UserError(
            f"--data tfds:{name} has no image with a list of bbox (ymin, xmin, ymax, xmax, in shares of the picture) "
            f"and label. Received: {features}."
        )
    if not any(parts.values()):
        raise UserError(f"--data tfds:{name} has no split named train, validation or test. Received: {list(parts)}.")
    folder = folder / builder.info.full_name  # so that another data set in the same run folder is not taken for this
    inner = features[objects].feature
    rows = []
    decoders = {"image": tfds.decode.SkipDecoding()}  # the file's own bytes are what serving will see
    for split, part in parts.items():
        if part is None:
            continue
        examples = builder.as_dataset(split=split, decoders=decoders)
        if not any(len(example[objects]["bbox"]) for example in examples.as_numpy_iterator()):
            noticed["splits without any box, left out"].append(split)
            continue
        for index, example in enumerate(examples.as_numpy_iterator()):
            path = folder / split / f"{index:07d}.img"
            write_picture(path, example["image"])
            found = example[objects]
            labels = [inner["label"].int2str(int(label)) if label >= 0 else "" for label in found["label"]]
            crowds = found.get("is_crowd", found.get("is_difficult", np.zeros(len(labels), bool)))
            boxes = found["bbox"].reshape(-1, 4)[:, [1, 0, 3, 2]]
            rows.append(box_row(path, boxes, labels, part, f"{split}:{index}", crowds=map(bool, crowds), relative=True))
    return rows


def _holds_boxes(tfds, feature) -> bool:
    """Return whether a feature is a list of boxes with class labels, in the corners that TensorFlow Datasets agreed."""
    inner = getattr(feature, "feature", None)
    if not isinstance(inner, tfds.features.FeaturesDict) or not {"bbox", "label"} <= set(inner):
        return False
    usual = tfds.features.BBoxFeature().bbox_format
    return getattr(inner["bbox"], "bbox_format", None) == usual and isinstance(inner["label"], tfds.features.ClassLabel)


def demo_rows(folder: Path) -> list[BoxRow]:
    """Draw the scenes with handwritten digits into a folder, and list them with their boxes."""
    return [
        box_row(scene.path, scene.boxes, scene.labels, scene.part, f"{scene.part}/{Path(scene.path).name}")
        for scene in write_scenes(folder / "scenes")
    ]
