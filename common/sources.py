"""Where a pretrained image model comes from: one spec string, one loaded Source with its preprocessing inside."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.config import keras_home
from keras.src.utils import file_utils

from common.errors import UserError, first_line
from common.fetching import fetch_entry, fetch_file, is_handle, resolve_handle
from common.hub import SavedModelLayer, check_saved_model, reinitialise
from common.presets import fetch_preset, picture_preprocessing, preset_error, preset_folder, with_its_own_epsilon
from common.specs import KERAS_APPLICATIONS, SourceSpec, parse_source

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

    @functools.cached_property
    def look(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """The extractor in inference mode as one graph, traced once for batches of every size."""
        pixels = tf.TensorSpec((None, *self.image_size, 3), tf.float32)
        return tf.function(lambda images: self.extractor(images, training=False), input_signature=[pixels])

    def fingerprint(self) -> str:
        """Return a hash of all weights and of the preprocessing: equal text, equal features."""
        config = json.dumps(self.extractor.get_config(), default=str, sort_keys=True)
        # Keras numbers the names that it makes up (conv2d_7) by what the process built before: no part of the model.
        digest = hashlib.sha256(re.sub(r'_\d+"', '"', config).encode())
        for weight in self.extractor.weights:
            digest.update(np.ascontiguousarray(weight.numpy()).tobytes())
        return digest.hexdigest()[:16]


def load_source(text: str, image_size: int | tuple[int, int] | None = None, *, random_weights: bool = False) -> Source:
    """Load a source by its spec string.

    Args:
        text: `bundled:NAME`, `keras:NAME`, `keras:NAME@WEIGHTS_FILE`, `preset:NAME_OR_FOLDER`,
            `hub:FOLDER_OR_HANDLE`, or a short name of the catalogue; `@random` at the end keeps the initial weights.
        image_size: side of the square input in pixels, or (height, width); the source's own where None.
        random_weights: same architecture, initial weights: the from-scratch baseline.

    Returns:
        The Source, built under Keras' current dtype policy.

    Raises:
        UserError: unknown name, unreadable or foreign weights, no network.
    """
    spec = parse_source(text)
    if spec.entry and "pictures" not in spec.entry.takes:
        raise UserError(f"{spec.entry.name} takes {spec.entry.takes}, not pictures. Received: --source {text}.")
    wanted = (image_size, image_size) if isinstance(image_size, int) else image_size
    load = {"bundled": _load_preset, "preset": _load_preset, "keras": _load_keras, "hub": _load_hub}[spec.kind]
    backbone, preprocessing, size, card = load(spec, wanted, random_weights or spec.random)
    pixels = keras.Input((*size, 3), name="pixels")
    try:
        features = _pool(backbone(preprocessing(pixels)))
    except ValueError as error:
        raise UserError(
            f"The source cannot take RGB pictures of {size[0]} x {size[1]} pixels. Received: {text!r}. "
            f"Try another --image-size. Keras says: {first_line(error)}"
        ) from error
    # Float32 from here on: under mixed precision the head and the exported features stay exact.
    features = keras.layers.Activation("linear", dtype="float32", name="features")(features)
    extractor = keras.Model(pixels, features, name="extractor")
    return Source(text, extractor, backbone, size, {"spec": text, **card})


def fetch_source(text: str) -> str:
    """Fetch what a source needs ahead of time, and verify it where upstream says how.

    Args:
        text: as for `load_source`.

    Returns:
        The same source, spelled so that it needs no network.

    Raises:
        UserError: it cannot be fetched, or what came is not what was expected.
    """
    spec = parse_source(text)
    if spec.random:
        raise UserError(f"Initial weights need not be fetched. Received: {text!r}. Leave out '@random'.")
    if spec.entry and spec.entry.sha256:
        return f"preset:{fetch_entry(spec.entry)}"
    long = spec.entry.source if spec.entry else text
    if spec.kind == "hub" and is_handle(spec.name):
        folder = resolve_handle(spec.name, check_saved_model)
        return f"hub:{long.removeprefix('hub:').replace(spec.name, str(folder))}"
    if spec.kind == "hub":
        check_saved_model(Path(spec.name).expanduser())
    if spec.kind == "keras" and not spec.weights:
        with _explained_download(spec) as fetched:
            _build_application(spec, _own_size(spec), "imagenet")
        return f"{long}@{fetched[0]}"
    if spec.kind == "preset" and not Path(spec.name).expanduser().is_dir():
        return f"preset:{fetch_preset(spec)}"
    return long


def _pool(features):
    """Average a feature map [b, h, w, c] or tokens [b, n, c] to [b, c]; leave vectors alone."""
    if len(features.shape) == 4:
        return keras.layers.GlobalAveragePooling2D(name="pool")(features)
    if len(features.shape) == 3:
        return keras.layers.GlobalAveragePooling1D(name="pool")(features)
    return features


# --- keras.applications -------------------------------------------------------------------------------


def _own_size(spec: SourceSpec) -> tuple[int, int]:
    side = int(spec.options.get("size", KERAS_APPLICATIONS[spec.name]))
    return side, side


def _build_application(spec: SourceSpec, size: tuple[int, int], weights: str | None) -> keras.Model:
    options = {key: value for key, value in spec.options.items() if key != "size"}
    application = getattr(keras.applications, spec.name)
    try:
        return application(include_top=False, input_shape=(*size, 3), weights=weights, **options)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"keras.applications.{spec.name} cannot be built at {size[0]} x {size[1]} pixels"
            f"{f' with {spec.options}' if spec.options else ''}. Keras says: {first_line(error)}"
        ) from error


def _load_keras(spec: SourceSpec, wanted: tuple[int, int] | None, random_weights: bool):
    size = wanted or _own_size(spec)
    family = next(f for f in _FAMILIES if re.fullmatch(f.pattern, spec.name))
    with _explained_download(spec):
        backbone = _build_application(spec, size, None if random_weights or spec.weights else "imagenet")
    if random_weights:
        return backbone, family.preprocessing, size, _keras_card(family, "initial weights", "none")
    if not spec.weights:
        return backbone, family.preprocessing, size, _keras_card(family, "ImageNet weights", "ImageNet-1k")
    _load_weights_file(backbone, spec)
    card = _keras_card(family, spec.weights, "what the weights file was trained on")
    return backbone, family.preprocessing, size, card


def _keras_card(family: _Family, weights: str, data: str) -> dict[str, str]:
    return {"origin": f"keras.applications, {weights}", "licence": family.licence, "data": data}


@contextlib.contextmanager
def _explained_download(spec: SourceSpec) -> Iterator[list[Path]]:
    """While Keras builds an application: fetch its weights our way, and say what to do where that fails.

    Yields:
        The files that were fetched, or had been before.
    """
    get_file, fetched = file_utils.get_file, []

    def fetch(name: str, origin: str, file_hash: str | None = None, **_) -> str:
        home = Path(keras_home()).expanduser()
        # get_file's own choice, on every machine: where Keras' folder cannot be written, this one is Keras' literal
        path = (home if os.access(home, os.W_OK) else Path("/tmp/.keras")) / "models" / name
        try:
            fetch_file(origin, path, file_hash, what=f"weights of {spec.name}")
        except UserError as error:
            chosen = ",".join(f"{key}={value:g}" for key, value in spec.options.items())
            raise UserError(
                f"The ImageNet weights of {spec.name} are not here: {error} Or name the file: --source "
                f"keras:{spec.name}{f'({chosen})' if chosen else ''}@PATH/{name}. "
                "Offline and without any file: --source bundled:resnet_mini"
            ) from error
        try:
            h5py.File(path).close()
        except OSError as error:  # for MobileNet and MobileNetV2 no hash is published: a half-written file is taken
            raise UserError(
                f"The ImageNet weights of {spec.name} at {path} are damaged, probably half-written. "
                f"Delete that file and run again: it is fetched anew from {origin}. It said: {first_line(error)}"
            ) from error
        fetched.append(path)
        return str(path)

    file_utils.get_file = fetch
    try:
        yield fetched
    finally:
        file_utils.get_file = get_file


def _load_weights_file(backbone: keras.Model, spec: SourceSpec) -> None:
    path = Path(spec.weights).expanduser()
    try:
        backbone.load_weights(path)
    except Exception as error:  # h5py, Keras' two formats and truncated files raise many types
        raise UserError(
            f"The weights file does not fit {spec.name}. Allowed: the 'no top' weights of {spec.name}"
            f"{' with the same alpha' if 'MobileNet' in spec.name else ''}, as keras.applications publishes them or "
            f"`model.save_weights` writes them. Received: {path} ({_describe_weights(path)}). "
            f"Keras says: {first_line(error)}"
        ) from error
    if spec.name.startswith("EfficientNetB") and _expects_another_division(path, spec.name):
        # Keras divides once more by sqrt(std) when, and only when, it loads weights="imagenet" itself
        # (keras/src/applications/efficientnet.py); the file alone would be fed wrong pixels.
        normalization = next(la for la in backbone.layers if isinstance(la, keras.layers.Normalization))
        _, variance, *_ = normalization.weights
        variance.assign(variance * np.array(_IMAGENET_STD, "float32"))
        normalization.finalize_state()


def _expects_another_division(path: Path, name: str) -> bool:
    """Whether a weights file was published by Keras, or saved from a model that had loaded what is published."""
    from keras.src.applications.efficientnet import WEIGHTS_HASHES  # MD5 of the files that Keras fetches

    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if digest in WEIGHTS_HASHES[name.removeprefix("EfficientNet").lower()]:
        return True
    if not h5py.is_hdf5(path):
        return False
    with h5py.File(path) as file:  # both formats list the layers without weights too: the division is a Rescaling
        layers = file.get("layers", file.get("model_weights", file))
        return sum(layer.startswith("rescaling") for layer in layers) > 1


def _describe_weights(path: Path) -> str:
    try:
        with h5py.File(path) as file:
            names: list[str] = []
            file.visit(names.append)
        return f"an HDF5 file with {len(names)} entries such as {', '.join(names[1:4])}"
    except OSError:
        return f"not a readable HDF5 file, {path.stat().st_size:,} bytes"


# --- TF Hub and other SavedModels ----------------------------------------------------------------------


def _load_hub(spec: SourceSpec, wanted: tuple[int, int] | None, random_weights: bool):
    # What is unfrozen is decided later; what can train must be known as such from the start.
    arguments = {"trainable": True, "signature": spec.options.get("signature"), "name": "saved_model"}
    print(f"hub: {spec.name} is a SavedModel, which is code that will run here; load only what you trust", flush=True)
    layer = SavedModelLayer(spec.name, **arguments)
    size = _picture_size(spec, layer, wanted)
    pixels = keras.Input((*size, 3), name="saved_model_pixels")
    try:
        gives = layer.compute_output_spec(pixels)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"The SavedModel cannot take pictures of {size[0]} x {size[1]} pixels. Received: hub:{spec.name}. "
            f"TensorFlow says: {first_line(error)}"
        ) from error
    layer.output_key = _features_among(gives, spec)
    features = layer(pixels)
    if random_weights:
        reinitialise(layer)
    low, high = spec.options.get("range", (0.0, 1.0))
    unknown = "see the page of the model"
    card = {"origin": f"SavedModel {spec.name}", "licence": unknown, "data": unknown}
    if random_weights:
        card |= {"origin": card["origin"] + ", initial weights", "data": "none"}
    backbone = keras.Model(pixels, features, name="saved_model_backbone")
    return backbone, Preprocessing(((high - low) / 255,), (low,)), size, card


def _features_among(gives, spec: SourceSpec) -> str | int | None:
    """Return the key of the output that is the features: the one chosen, or `default`, as TF Hub names it."""
    if isinstance(gives, keras.KerasTensor):
        outputs = {None: gives}
    else:
        outputs = dict(sorted(gives.items())) if isinstance(gives, dict) else dict(enumerate(gives))
    usable = {
        str(key): key for key, tensor in outputs.items()
        if isinstance(tensor, keras.KerasTensor) and len(tensor.shape) in (2, 3, 4) and "float" in tensor.dtype
    }  # fmt: skip
    wanted = spec.options.get("output", "default")
    if wanted in usable:
        return usable[wanted]
    if len(outputs) == len(usable) == 1 and "output" not in spec.options:
        return next(iter(usable.values()))
    told = ", ".join(f"{key} {getattr(tensor, 'shape', '')}" for key, tensor in outputs.items())
    raise UserError(
        "The SavedModel has several outputs, or none that is features: real numbers, of 2 to 4 dimensions. Allowed: "
        f"'hub:FOLDER(output=KEY)' with one of {', '.join(usable) or 'none: it has no such output'}. "
        f"Received: hub:{spec.name}{f' with output={wanted}' if 'output' in spec.options else ''}, which gives "
        f"{told}."
    )


def _picture_size(spec: SourceSpec, layer: SavedModelLayer, wanted: tuple[int, int] | None) -> tuple[int, int]:
    takes = list(layer.input_specs.values())
    shape = takes[0].shape if len(takes) == 1 and isinstance(takes[0], tf.TensorSpec) else tf.TensorShape(None)
    if takes and takes[0].dtype == tf.float32 and shape.rank is None:
        shape = tf.TensorShape((None, None, None, 3))
    if shape.rank != 4 or shape[-1] not in (3, None) or takes[0].dtype != tf.float32:
        raise UserError(
            "The SavedModel does not take RGB pictures. Allowed: one input, float32 [batch, height, width, 3]. "
            f"Received: hub:{spec.name} with input {', '.join(map(str, takes)) or 'none'}; its signatures: "
            f"{', '.join(layer.saved_model.signatures) or 'none'}. Another one: 'hub:FOLDER(signature=NAME)'"
        )
    if not wanted and "size" in spec.options:
        wanted = (spec.options["size"], spec.options["size"])
    size = tuple(given or one for given, one in zip(shape[1:3], wanted or (224, 224), strict=True))
    if wanted and size != wanted:
        raise UserError(
            f"The SavedModel takes pictures of {size[0]} x {size[1]} pixels only. Received: hub:{spec.name} at "
            f"{wanted[0]} x {wanted[1]}. Try it without --image-size and size=."
        )
    return size


# --- KerasHub presets ----------------------------------------------------------------------------------


def _load_preset(spec: SourceSpec, wanted: tuple[int, int] | None, random_weights: bool):
    import keras_hub  # here: seconds to import, and keras: sources do without

    name = preset_folder(spec)
    load = functools.partial(
        keras_hub.models.Backbone.from_preset,
        name,
        load_weights=not random_weights,
        dtype=keras.config.dtype_policy(),
    )
    try:
        # The small file first: it tells pictures from text.
        scale, offset, preferred = picture_preprocessing(name)
        backbone = with_its_own_epsilon(load(), name)
        if isinstance(backbone, keras_hub.models.RetinaNetBackbone):  # of a whole detector, what looks at the picture
            backbone = backbone.image_encoder
        if not isinstance(backbone, keras.Model):
            raise TypeError(f"The files describe a {type(backbone).__name__}.")
    except Exception as error:  # Kaggle, Hugging Face, h5py and safetensors each raise their own types
        raise preset_error(spec, error) from error
    takes, gives = backbone.input, backbone.output
    if not isinstance(takes, keras.KerasTensor) or not isinstance(gives, keras.KerasTensor) or takes.shape[-1] != 3:
        raise UserError(
            f"The preset is not a model of RGB pictures. Received: {spec.kind}:{spec.name}, {type(backbone).__name__}, "
            f"with input {takes}. Allowed: a backbone that turns one RGB picture into one tensor."
        )
    native = takes.shape[1:3] if all(takes.shape[1:3]) else None  # None: it takes pictures of any size
    size = wanted or preferred or native or (224, 224)
    if native and native != size:
        try:
            backbone = with_its_own_epsilon(load(image_shape=(*size, 3)), name)
        except Exception as error:  # learned positions, for example, are as many as the picture has patches
            raise UserError(
                f"The preset takes pictures of {native[0]} x {native[1]} pixels only. "
                f"Received: {spec.kind}:{spec.name} at {size[0]} x {size[1]}. Try it without --image-size. "
                f"It said: {first_line(error)}"
            ) from error
    preprocessing = Preprocessing(_channels(spec, scale, 1.0), _channels(spec, offset, 0.0))
    card = _read_card(Path(name) / "card.json")
    unknown = "see the preset's own page"
    licence = spec.entry.licence if spec.entry else unknown
    card = {"licence": licence, "data": unknown, **{key: card[key] for key in ("licence", "data") if key in card}}
    card["origin"] = f"KerasHub preset {spec.name}"
    if random_weights:
        card |= {"origin": card["origin"] + ", initial weights", "data": "none"}
    return backbone, preprocessing, size, card


def _read_card(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read: {first_line(error)}. Mend or remove it; the model does not need it."
        ) from error


def _channels(spec: SourceSpec, value: float | Sequence[float] | None, default: float) -> tuple[float, ...]:
    values = (default,) if value is None else tuple(float(v) for v in np.ravel(value))
    if len(values) not in (1, 3):
        raise UserError(
            f"The preset's image converter has {len(values)} factors or offsets. Received: {spec.kind}:{spec.name}. "
            "Allowed: one, or one for each of red, green and blue."
        )
    return values
