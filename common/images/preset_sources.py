"""KerasHub image presets as sources: the backbone, and the preprocessing that it was trained with.

Imported only where a preset is used: KerasHub takes seconds to import.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import keras
import keras_hub
import numpy as np

from common.errors import UserError, first_line
from common.images.keras_applications import Preprocessing
from common.sources.cards import card_entries
from common.sources.presets import preset_error, preset_folder
from common.sources.specs import SourceSpec


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


def load_preset(spec: SourceSpec, wanted: tuple[int, int] | None, random_weights: bool):
    """Return (backbone, preprocessing, (height, width), card) of a preset, as `load_application` does."""
    name = preset_folder(spec)
    load = functools.partial(
        keras_hub.models.Backbone.from_preset,
        name,
        load_weights=not random_weights,
        dtype=keras.config.dtype_policy(),
    )
    try:
        # The small file first: it distinguishes images from text.
        scale, offset, preferred = image_preprocessing(name)
        backbone = with_its_own_epsilon(load(), name)
        if isinstance(backbone, keras_hub.models.RetinaNetBackbone):  # of a detector, only the image encoder
            backbone = backbone.image_encoder
        if not isinstance(backbone, keras.Model):
            raise TypeError(f"The files describe a {type(backbone).__name__}.")
    except Exception as error:  # Kaggle, Hugging Face, h5py and safetensors each raise their own types
        raise preset_error(spec, error) from error
    takes, gives = backbone.input, backbone.output
    if not isinstance(takes, keras.KerasTensor) or not isinstance(gives, keras.KerasTensor) or takes.shape[-1] != 3:
        raise UserError(
            f"The preset is not a model of RGB images. Allowed: a backbone from one RGB image to one tensor. Received: "
            f"{spec.kind}:{spec.name}, {type(backbone).__name__}, with input {takes}."
        )
    native = takes.shape[1:3] if all(takes.shape[1:3]) else None  # None: any size
    size = wanted or preferred or native or (224, 224)
    if native and native != size:
        try:
            backbone = with_its_own_epsilon(load(image_shape=(*size, 3)), name)
        except Exception as error:  # learned positions, for example: one per patch
            raise UserError(
                f"The preset takes images of {native[0]} x {native[1]} pixels only. "
                f"Received: {spec.kind}:{spec.name} at {size[0]} x {size[1]}. Try it without --image-size. "
                f"KerasHub says: {first_line(error)}"
            ) from error
    preprocessing = Preprocessing(_channels(spec, scale, 1.0), _channels(spec, offset, 0.0))
    unknown = "see the preset's own page"
    licence = spec.entry.licence if spec.entry else unknown
    card = {"origin": f"KerasHub preset {spec.name}", "licence": licence, "data": unknown} | card_entries(Path(name))
    if random_weights:
        card |= {"origin": card["origin"] + ", initial weights", "data": "none"}
    return backbone, preprocessing, size, card


def _channels(spec: SourceSpec, value: float | Sequence[float] | None, default: float) -> tuple[float, ...]:
    values = (default,) if value is None else tuple(float(v) for v in np.ravel(value))
    if len(values) not in (1, 3):
        raise UserError(
            f"The preset's image converter has {len(values)} factors or offsets. Allowed: one, or one per channel. "
            f"Received: {spec.kind}:{spec.name}."
        )
    return values
