"""Preprocessing of a KerasHub image preset: size, scale, offset."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np


def image_preprocessing(name: str) -> tuple[Sequence[float], Sequence[float], tuple[int, int] | None]:
    """Return the preprocessing of a preset's images: RGB pixels from 0 to 255, times a scale, plus an offset.

    Args:
        name: as returned by `preset_folder`.

    Returns:
        (scale, offset, (height, width) or None): of the image converter, or of the preprocessor_config.json of a
        Hugging Face folder, which KerasHub converts for some architectures only (not for ViT).

    Raises:
        TypeError: the preset is not for images.
        FileNotFoundError: the preset does not describe its preprocessing.
    """
    import keras_hub

    converter = keras_hub.layers.ImageConverter.from_preset(name)
    if isinstance(converter, keras_hub.layers.ImageConverter):
        scale = 1.0 if converter.scale is None else converter.scale
        offset = 0.0 if converter.offset is None else converter.offset
        return np.ravel(scale), np.ravel(offset), tuple(converter.image_size) if converter.image_size else None
    if converter is not None:
        raise TypeError(f"The files describe a {type(converter).__name__}.")
    file = Path(name) / "preprocessor_config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{name} has no image_converter.json and no preprocessor_config.json.")
    config = json.loads(file.read_text("utf-8"))
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    mean, std = np.zeros(1), np.ones(1)
    if config.get("do_normalize", True):
        mean, std = np.ravel(config["image_mean"]), np.ravel(config["image_std"])
    size = config.get("size")
    sides = (size.get("height"), size.get("width")) if isinstance(size, dict) else (size, size)
    return factor / std, -mean / std, tuple(sides) if all(sides) else None


def with_its_own_epsilon(backbone: keras.Model, name: str) -> keras.Model:
    """Return a converted Hugging Face model with the epsilon of its config, which KerasHub's ViT ignores."""
    file = Path(name) / "config.json"
    config = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    epsilon = config.get("layer_norm_eps")
    if epsilon is None or getattr(backbone, "layer_norm_epsilon", epsilon) == epsilon:
        return backbone
    own = type(backbone).from_config({**backbone.get_config(), "layer_norm_epsilon": epsilon})
    own.set_weights(backbone.get_weights())
    return own
