"""Where a pretrained image model comes from: one spec string, one loaded Source with its preprocessing inside."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import keras
import numpy as np

from common.errors import UserError
from common.specs import BUNDLED_FOLDER, KERAS_APPLICATIONS, SourceSpec, parse_source

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """What a backbone expects of RGB pixels from 0 to 255: `pixels * scale + offset`, per channel.

    Attributes:
        scale: one factor, or one for each channel in the order that the backbone reads.
        offset: added after the factor, likewise.
        bgr: whether the backbone reads blue, green, red.
    """

    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    bgr: bool = False

    def __call__(self, pixels):
        """Apply it to a KerasTensor or tensor [batch, height, width, 3]."""
        if self.bgr:
            pixels = keras.ops.flip(pixels, axis=-1)
        if self == Preprocessing(bgr=self.bgr):
            return pixels
        return keras.layers.Rescaling(list(self.scale), list(self.offset), dtype="float32", name="preprocessing")(
            pixels
        )


# The three ways in which keras.applications models were trained, and the fourth: it is inside the model.
_CAFFE = Preprocessing(offset=(-103.939, -116.779, -123.68), bgr=True)
_TF = Preprocessing((1 / 127.5,), (-1.0,))
_TORCH = Preprocessing(
    tuple(1 / (255 * std) for std in _IMAGENET_STD),
    tuple(-mean / std for mean, std in zip(_IMAGENET_MEAN, _IMAGENET_STD, strict=True)),
)
_INSIDE = Preprocessing()


@dataclass(frozen=True)
class _Family:
    pattern: str
    preprocessing: Preprocessing
    licence: str


# First match wins. Licences: https://github.com/keras-team/keras-applications (the ports name their origins).
_FAMILIES = (
    _Family(r"ResNet\d+V2", _TF, "MIT (Kaiming He) / Apache-2.0 (Keras port)"),
    _Family(r"ResNet\d+", _CAFFE, "MIT (Kaiming He) / Apache-2.0 (Keras port)"),
    _Family(r"VGG\d+", _CAFFE, "CC BY 4.0 (VGG, Oxford) / Apache-2.0 (Keras port)"),
    _Family(r"InceptionV3|Xception|MobileNet|MobileNetV2", _TF, "Apache-2.0"),
    _Family(r"DenseNet\d+", _TORCH, "BSD-3-Clause (Zhuang Liu) / Apache-2.0 (Keras port)"),
    _Family(r"MobileNetV3\w+|EfficientNet\w+|ConvNeXt\w+", _INSIDE, "Apache-2.0"),
)


@dataclass(frozen=True)
class Source:
    """A loaded pretrained image model that cannot be fed wrongly.

    Attributes:
        spec: what the user typed.
        extractor: maps RGB pixels, float [batch, height, width, 3] from 0 to 255, to features, float32
            [batch, feature_width]; its own preprocessing is inside.
        backbone: the part of the extractor that was pretrained; freezing policies speak of its layers.
        image_size: (height, width) in pixels.
        card: where it came from and under which terms: spec, origin, licence, data.
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

    def fingerprint(self) -> str:
        """Return a hash of all weights and of the preprocessing: equal text, equal features."""
        digest = hashlib.sha256(json.dumps(self.extractor.get_config(), default=str, sort_keys=True).encode())
        for weight in self.extractor.weights:
            digest.update(np.ascontiguousarray(weight.numpy()).tobytes())
        return digest.hexdigest()[:16]


def load_source(text: str, image_size: int | None = None, *, random_weights: bool = False) -> Source:
    """Load a source by its spec string.

    Args:
        text: `bundled:NAME`, `keras:NAME`, `keras:NAME@WEIGHTS_FILE` or `preset:NAME_OR_FOLDER`; `@random` at
            the end keeps the initial weights.
        image_size: side of the square input in pixels; the source's own where None.
        random_weights: same architecture, initial weights: the from-scratch baseline.

    Returns:
        The Source, built under Keras' current dtype policy.

    Raises:
        UserError: unknown name, unreadable or foreign weights, no network.
    """
    spec = parse_source(text)
    load = {"bundled": _load_preset, "preset": _load_preset, "keras": _load_keras}[spec.kind]
    backbone, preprocessing, size, card = load(spec, image_size, random_weights or spec.random)
    pixels = keras.Input((*size, 3), name="pixels")
    features = _pool(backbone(preprocessing(pixels)))
    # Float32 from here on: under mixed precision the head and the exported features stay exact.
    features = keras.layers.Activation("linear", dtype="float32", name="features")(features)
    extractor = keras.Model(pixels, features, name="extractor")
    return Source(text, extractor, backbone, size, {"spec": text, **card})


def _pool(features):
    """Average a feature map [b, h, w, c] or tokens [b, n, c] to [b, c]; leave vectors alone."""
    if len(features.shape) == 4:
        return keras.layers.GlobalAveragePooling2D(name="pool")(features)
    if len(features.shape) == 3:
        return keras.layers.GlobalAveragePooling1D(name="pool")(features)
    return features


# --- keras.applications -------------------------------------------------------------------------------


def _load_keras(spec: SourceSpec, image_size: int | None, random_weights: bool):
    side = image_size or int(spec.options.get("size", KERAS_APPLICATIONS[spec.name]))
    arguments = {key: value for key, value in spec.options.items() if key != "size"}
    build = getattr(keras.applications, spec.name)
    family = next(f for f in _FAMILIES if re.fullmatch(f.pattern, spec.name))
    weights = None if random_weights or spec.weights else "imagenet"
    try:
        backbone = build(include_top=False, weights=weights, input_shape=(side, side, 3), **arguments)
    except Exception as error:
        raise _keras_error(spec, side, error) from error
    if spec.weights and not random_weights:
        _load_weights_file(backbone, spec)
    origin = "keras.applications, " + ("initial weights" if random_weights else spec.weights or "ImageNet weights")
    card = {"origin": origin, "licence": family.licence, "data": "none" if random_weights else "ImageNet-1k"}
    return backbone, family.preprocessing, (side, side), card


def _load_weights_file(backbone: keras.Model, spec: SourceSpec) -> None:
    path = Path(spec.weights).expanduser()
    try:
        backbone.load_weights(path)
    except Exception as error:  # h5py, Keras' two formats and truncated files raise many types
        raise UserError(
            f"The weights file does not fit {spec.name}. Allowed: the 'no top' weights of {spec.name}"
            f"{' with the same alpha' if 'MobileNet' in spec.name else ''}, as keras.applications publishes them or "
            f"`model.save_weights` writes them. Received: {path} ({_describe_weights(path)}). "
            f"Keras says: {str(error).splitlines()[0][:200]}"
        ) from error
    if spec.name.startswith("EfficientNetB") and _is_published_file(path, spec.name):
        # Keras divides once more by sqrt(std) when, and only when, it loads weights="imagenet" itself
        # (keras/src/applications/efficientnet.py); the published file alone would be fed wrong pixels.
        normalization = next(la for la in backbone.layers if isinstance(la, keras.layers.Normalization))
        mean, variance, *_ = normalization.weights
        variance.assign(variance * np.array(_IMAGENET_STD, "float32"))
        normalization.finalize_state()


def _is_published_file(path: Path, name: str) -> bool:
    from keras.src.applications.efficientnet import WEIGHTS_HASHES  # MD5 of the files that Keras fetches

    return hashlib.md5(path.read_bytes()).hexdigest() in WEIGHTS_HASHES[name.removeprefix("EfficientNet").lower()]


def _describe_weights(path: Path) -> str:
    try:
        with h5py.File(path) as file:
            names: list[str] = []
            file.visit(names.append)
        return f"an HDF5 file with {len(names)} entries such as {', '.join(names[1:4])}"
    except OSError:
        return f"not a readable HDF5 file, {path.stat().st_size:,} bytes"


def _keras_error(spec: SourceSpec, side: int, error: Exception) -> UserError:
    """Turn a failed download into what to fetch and where to put it; pass on what Keras says otherwise."""
    url = re.search(r"https?://\S+?\.h5", str(error))
    if not url:
        return UserError(
            f"keras.applications.{spec.name} cannot be built at {side} x {side} pixels: "
            f"{str(error).splitlines()[0][:300]} Try another --image-size."
        )
    name = url[0].rsplit("/", 1)[-1]
    folder = Path(keras.config.keras_home() if hasattr(keras.config, "keras_home") else "~/.keras") / "models"
    return UserError(
        f"The ImageNet weights of {spec.name} cannot be fetched (no network?). Fetch {url[0]} on a machine that "
        f"has one and place it at {folder / name}, or name it: --source keras:{spec.name}@PATH/{name}. "
        "Offline and without any file: --source bundled:resnet_mini"
    )


# --- KerasHub presets ----------------------------------------------------------------------------------


def _load_preset(spec: SourceSpec, image_size: int | None, random_weights: bool):
    import keras_hub  # here: seconds to import, and keras: sources do without

    name = str(BUNDLED_FOLDER / spec.name) if spec.kind == "bundled" else spec.name
    is_folder = spec.kind == "bundled" or Path(name).expanduser().is_dir()
    name = str(Path(name).expanduser()) if is_folder else name
    try:
        backbone = keras_hub.models.Backbone.from_preset(
            name, load_weights=not random_weights, dtype=keras.config.dtype_policy()
        )
    except Exception as error:  # Kaggle, Hugging Face, h5py and safetensors each raise their own types
        known = ", ".join(sorted(keras_hub.models.ImageClassifier.presets)[:8])
        raise UserError(
            f"The preset cannot be loaded. Received: {spec.kind}:{spec.name}. Allowed: a KerasHub name ({known}, ...), "
            f"hf://OWNER/NAME, or a folder with config.json and model.weights.h5. "
            f"It said: {str(error).splitlines()[0][:300]}"
        ) from error
    try:
        converter = keras_hub.layers.ImageConverter.from_preset(name)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(
            f"The preset does not say how its pictures were preprocessed, and guessing would give wrong answers. "
            f"Received: {spec.kind}:{spec.name}. Allowed: an image preset with an image converter."
        ) from error
    preprocessing = Preprocessing(_channels(converter.scale, 1.0), _channels(converter.offset, 0.0))
    side = image_size or (converter.image_size or (224, 224))[0]
    card_file = Path(name) / "card.json"
    card = json.loads(card_file.read_text("utf-8")) if is_folder and card_file.is_file() else {}
    card = {"origin": f"KerasHub preset {spec.name}", "licence": "see the preset's own page", "data": "see the preset's own page",
            **{key: card[key] for key in ("licence", "data") if key in card}}  # fmt: skip
    if random_weights:
        card |= {"origin": card["origin"] + ", initial weights", "data": "none"}
    return backbone, preprocessing, (side, side), card


def _channels(value: float | Sequence[float] | None, default: float) -> tuple[float, ...]:
    if value is None:
        return (default,)
    return tuple(float(v) for v in np.ravel(value))
