"""Data sets of TensorFlow Datasets, by name."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError


def prepared_builder(name: str):
    """Return the builder of a TensorFlow data set, downloaded and prepared.

    Raises:
        UserError: TensorFlow Datasets is not installed, or the data set cannot be loaded.
    """
    try:
        import tensorflow_datasets as tfds  # here: it takes seconds to import and few users need it
    except ImportError as error:
        raise UserError(
            f"--data tfds:{name} needs TensorFlow Datasets: pip install tensorflow-datasets ({error})."
        ) from error

    print(f"Loading {name} with TensorFlow Datasets; it may download into {Path(tfds.core.constants.DATA_DIR)}")
    try:
        builder = tfds.builder(name)
        builder.download_and_prepare()
    except Exception as error:  # TFDS raises dozens of types for unknown names, no network and full disks
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:300]
        raise UserError(
            f"--data tfds:{name} cannot be loaded: {reason}. Names: "
            "https://www.tensorflow.org/datasets/catalog/overview. Without a network, prepare it elsewhere and "
            "set TFDS_DATA_DIR, or use --data folder:PATH."
        ) from error
    return builder
