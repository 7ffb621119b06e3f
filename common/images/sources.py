"""Pretrained image models: a spec string becomes a loaded Source with its preprocessing inside."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from common.errors import UserError, first_line
from common.images.folding import fold_batch_norm
from common.images.keras_applications import load_application
from common.sources.cards import card_entries
from common.sources.specs import BUNDLED_FOLDER, SourceSpec, parse_source

# Networks that have learned from 224 pixels classify smaller images better when these are enlarged, but not without
# limit. Measured on training splits: benchmarks/results/image_size_choice.json.
ENLARGE = 2.5


@dataclass(frozen=True)
class Source:
    """A loaded pretrained image model together with its preprocessing.

    Attributes:
        spec: the source as the user typed it.
        extractor: maps RGB pixels, float [batch, height, width, 3] from 0 to 255, to features, float32
            [batch, feature_width]; its own preprocessing is inside.
        backbone: the pretrained part of the extractor; freezing policies refer to its layers.
        image_size: (height, width) in pixels.
        card: origin and terms: spec, origin, licence, data.
    """

    spec: str
    extractor: keras.Model
    backbone: keras.Model
    image_size: tuple[int, int]
    card: dict[str, str]

    @property
    def feature_width(self) -> int:
        """Length of the feature vector."""
        return int(self.extractor.output.shape[-1])

    @functools.cached_property
    def forward(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """The extractor in inference mode as one graph, traced once for all batch sizes."""
        pixels = tf.TensorSpec((None, *self.image_size, 3), tf.float32)
        folded = fold_batch_norm(self.extractor)
        return tf.function(lambda images: folded(images, training=False), input_signature=[pixels])

    def fingerprint(self) -> str:
        """Return a hash of all weights and of the preprocessing: equal hashes, equal features."""
        config = json.dumps(self.extractor.get_config(), default=str, sort_keys=True)
        # Keras numbers generated names (conv2d_7) by what the process built before: not part of the model.
        digest = hashlib.sha256(re.sub(r'_\d+"', '"', config).encode())
        for weight in self.extractor.weights:
            digest.update(np.ascontiguousarray(weight.numpy()).tobytes())
        return digest.hexdigest()[:16]


def load_source(text: str, image_size: int | tuple[int, int] | None = None, *, random_weights: bool = False) -> Source:
    """Load a source by its spec string.

    Args:
        text: `bundled:NAME`, `keras:NAME`, `keras:NAME@WEIGHTS_FILE`, `preset:NAME_OR_FOLDER`,
            `hub:FOLDER_OR_HANDLE`, or a short name of the catalogue; a final `@random` keeps the initial weights.
        image_size: side of the square input in pixels, or (height, width); None for the source's own.
        random_weights: same architecture, initial weights: the from-scratch baseline.

    Returns:
        The Source, built under Keras' current dtype policy.

    Raises:
        UserError: unknown name, unreadable or unsuitable weights, no network.
    """
    spec = parse_source(text)
    if spec.entry and "images" not in spec.entry.takes:
        raise UserError(f"{spec.entry.name} takes {spec.entry.takes}, not images. Received: --source {text}.")
    wanted = (image_size, image_size) if isinstance(image_size, int) else image_size
    loaders = {"bundled": _load_bundled, "preset": _load_preset, "keras": load_application, "hub": _load_hub,
               "network": _load_network}  # fmt: skip
    load = loaders[spec.kind]
    backbone, preprocessing, size, card = load(spec, wanted, random_weights or spec.random)
    pixels = keras.Input((*size, 3), name="pixels")
    try:
        features = _pool(backbone(preprocessing(pixels)))
    except ValueError as error:
        raise UserError(
            f"The source cannot take RGB images of {size[0]} x {size[1]} pixels. Received: {text!r}. "
            f"Try another --image-size. Keras says: {first_line(error)}"
        ) from error
    # Float32 from here on: under mixed precision the head and the exported features keep full precision.
    features = keras.layers.Activation("linear", dtype="float32", name="features")(features)
    extractor = keras.Model(pixels, features, name="extractor")
    return Source(text, extractor, backbone, size, {"spec": text, **card})


def load_fitting(text: str, image_size: int | None, shorter_side: int | None) -> Source:
    """Load a source by its spec string, at the input size that suits the images.

    Args:
        text: as for `load_source`.
        image_size: side of the square input in pixels; None: of the sizes that a source has, the smallest that is at
            least ENLARGE times the shorter side, or else the largest. Most sources have one.
        shorter_side: of the images, in pixels; None if unknown.
    """
    spec = parse_source(text)
    if image_size is None and shorter_side and spec.kind == "bundled":
        config = json.loads((BUNDLED_FOLDER / spec.name / "config.json").read_text("utf-8"))
        sizes = config.get("image_sizes", ())
        enough = [size for size in sizes if size >= ENLARGE * shorter_side]
        image_size = min(enough, default=max(sizes, default=None))
    return load_source(text, image_size)


def _load_bundled(spec: SourceSpec, wanted: tuple[int, int] | None, random_weights: bool):
    """Load a preset, or a network of keras.applications whose weights are in the checkout."""
    folder = BUNDLED_FOLDER / spec.name
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if "application" not in config:
        return _load_preset(spec, wanted, random_weights)
    weights = str(folder / "model.safetensors")
    twin = SourceSpec("keras", config["application"], {"size": config["image_sizes"][0]}, weights)
    backbone, preprocessing, size, card = load_application(twin, wanted, random_weights)
    return backbone, preprocessing, size, card if random_weights else card | card_entries(folder)


def _load_preset(*arguments):
    # Imported by name, on demand: it needs KerasHub, which takes seconds to import.
    return importlib.import_module("common.images.preset_sources").load_preset(*arguments)


def _load_hub(*arguments):
    # Imported by name, on demand: it runs the code of a SavedModel, which no other source needs.
    return importlib.import_module("common.images.hub_sources").load_hub(*arguments)


def _load_network(*arguments):
    return importlib.import_module("common.images.efficientnet_lite0").load_lite0(*arguments)


def _pool(features):
    """Average a feature map [b, h, w, c] or tokens [b, n, c] to [b, c]; leave vectors alone."""
    if len(features.shape) == 4:
        return keras.layers.GlobalAveragePooling2D(name="pool")(features)
    if len(features.shape) == 3:
        return keras.layers.GlobalAveragePooling1D(name="pool")(features)
    return features
