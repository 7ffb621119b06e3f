"""Sources of keras.applications: preprocessing, sizes, weights."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import keras
import numpy as np
from keras.src.backend.config import keras_home
from keras.src.utils import file_utils
from safetensors.numpy import load_file

from common.errors import UserError, first_line
from common.sources.fetching import fetch_file
from common.sources.specs import KERAS_APPLICATIONS, SourceSpec

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """What a backbone expects of RGB pixels from 0 to 255: `pixels * scale + offset`, per channel.

    Attributes:
        scale: one factor, or one per channel in the order that the backbone expects.
        offset: added after scaling, likewise.
        bgr: whether the backbone expects blue, green, red.
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


# The three kinds of preprocessing of keras.applications, and the fourth: it is inside the model.
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


def own_size(spec: SourceSpec) -> tuple[int, int]:
    side = int(spec.options.get("size", KERAS_APPLICATIONS[spec.name]))
    return side, side


def build_application(spec: SourceSpec, size: tuple[int, int], weights: str | None) -> keras.Model:
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


def load_application(spec: SourceSpec, wanted: tuple[int, int] | None, random_weights: bool):
    size = wanted or own_size(spec)
    family = next(f for f in _FAMILIES if re.fullmatch(f.pattern, spec.name))
    with explained_download(spec):
        backbone = build_application(spec, size, None if random_weights or spec.weights else "imagenet")
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
def explained_download(spec: SourceSpec) -> Iterator[list[Path]]:
    """Replace the download of weights while Keras builds an application; errors say what to do.

    Yields:
        The files that were fetched, now or earlier.
    """
    get_file, fetched = file_utils.get_file, []

    def fetch(name: str, origin: str, file_hash: str | None = None, **_) -> str:
        home = Path(keras_home()).expanduser()
        # Chosen as get_file does: where Keras' folder is not writable, Keras uses this literal path
        path = (home if os.access(home, os.W_OK) else Path("/tmp/.keras")) / "models" / name
        try:
            fetch_file(origin, path, file_hash, what=f"weights of {spec.name}")
        except UserError as error:
            chosen = ",".join(f"{key}={value:g}" for key, value in spec.options.items())
            raise UserError(
                f"The ImageNet weights of {spec.name} are not available: {error} Or name the file: --source "
                f"keras:{spec.name}{f'({chosen})' if chosen else ''}@PATH/{name}. "
                "Offline and without weights files: --source bundled:mobilenet_v2"
            ) from error
        try:
            h5py.File(path).close()
        except OSError as error:  # for MobileNet and MobileNetV2 no hash is published: incomplete files are kept
            raise UserError(
                f"The ImageNet weights of {spec.name} at {path} are damaged, probably incomplete. Delete that file and "
                f"run again: it is downloaded again from {origin}. h5py says: {first_line(error)}"
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
        if path.suffix == ".safetensors":
            _load_safetensors(backbone, path)
        else:
            backbone.load_weights(path)
    except Exception as error:  # h5py, safetensors, Keras' two formats and truncated files raise many types
        raise UserError(
            f"The weights file does not fit {spec.name}. Allowed: the 'no top' weights of {spec.name}"
            f"{' with the same alpha' if 'MobileNet' in spec.name else ''}, as keras.applications publishes them or "
            f"`model.save_weights` writes them. Received: {path} ({_describe_weights(path)}). "
            f"Keras says: {first_line(error)}"
        ) from error
    if spec.name.startswith("EfficientNetB") and _expects_another_division(path, spec.name):
        # Keras divides again by sqrt(std) only when it loads weights="imagenet" itself
        # (keras/src/applications/efficientnet.py); with the file alone the pixels would be wrong.
        normalization = next(la for la in backbone.layers if isinstance(la, keras.layers.Normalization))
        _, variance, *_ = normalization.weights
        variance.assign(variance * np.array(_IMAGENET_STD, "float32"))
        normalization.finalize_state()


def _load_safetensors(backbone: keras.Model, path: Path) -> None:
    """Load a file that holds a tensor for each variable, named by its path, such as `Conv1/kernel`."""
    tensors = load_file(path)
    wanted = {variable.path: variable for variable in backbone.weights}
    if tensors.keys() != wanted.keys():
        raise ValueError(f"it lacks {sorted(wanted.keys() - tensors.keys())[:3]}, and has {len(tensors)} tensors")
    for name, value in tensors.items():
        wanted[name].assign(value.astype("float32"))


def _expects_another_division(path: Path, name: str) -> bool:
    """Return whether a weights file was published by Keras, or saved from a model with published weights."""
    from keras.src.applications.efficientnet import WEIGHTS_HASHES  # MD5 of the files that Keras fetches

    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if digest in WEIGHTS_HASHES[name.removeprefix("EfficientNet").lower()]:
        return True
    if not h5py.is_hdf5(path):
        return False
    with h5py.File(path) as file:  # both formats also list layers without weights: the division is a Rescaling
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
