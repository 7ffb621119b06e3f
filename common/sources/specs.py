"""`--source` strings, parsed without importing TensorFlow."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path

from common.errors import UserError, did_you_mean, first_line
from common.sources.catalogue import CATALOGUE, WORD_VECTORS, CatalogueEntry

SOURCE_KINDS = ("bundled", "keras", "preset", "hub")

BUNDLED_FOLDER = Path(__file__).parents[1] / "bundled"

# Classes of keras.applications and the image size (pixels) of their published ImageNet weights.
KERAS_APPLICATIONS = {
    **{f"ResNet{depth}{version}": 224 for version in ("", "V2") for depth in (50, 101, 152)},
    **{"VGG16": 224, "VGG19": 224, "InceptionV3": 299, "Xception": 299},
    **{"MobileNet": 224, "MobileNetV2": 224, "MobileNetV3Small": 224, "MobileNetV3Large": 224},
    **{f"EfficientNetB{i}": size for i, size in enumerate((224, 240, 260, 300, 380, 456, 528, 600))},
    **{f"EfficientNetV2B{i}": size for i, size in enumerate((224, 240, 260, 300))},
    **{"EfficientNetV2S": 384, "EfficientNetV2M": 480, "EfficientNetV2L": 480},
    **{f"DenseNet{depth}": 224 for depth in (121, 169, 201)},
    **{f"ConvNeXt{size}": 224 for size in ("Tiny", "Small", "Base", "Large", "XLarge")},
}

_KERAS_OPTIONS = {"alpha": float, "size": int}


@dataclass(frozen=True)
class SourceSpec:
    """One parsed `--source`: `kind:name[(option=value,...)][@weights]`, or a short name of the catalogue."""

    kind: str
    name: str
    options: dict[str, float | int | str | tuple[float, float]] = field(default_factory=dict)
    weights: str | None = None
    entry: CatalogueEntry | None = None

    @property
    def random(self) -> bool:
        """Whether the weights stay randomly initialised (a baseline, not a pretrained source)."""
        return self.weights == "random"


def parse_source(text: str, flag: str = "--source") -> SourceSpec:
    """Parse a `--source` string.

    Args:
        text: for example `bundled:resnet_mini`, `keras:MobileNetV2@notop.weights.h5`,
            `keras:MobileNet(alpha=0.25,size=128)`, `preset:resnet_50_imagenet`, `preset:FOLDER`,
            `hub:FOLDER(range=-1..1)`, `hub:https://tfhub.dev/...`, `kaggle:OWNER/...`, or a name of the catalogue.
        flag: name of the flag, for messages.

    Returns:
        The parsed SourceSpec; nothing is loaded.

    Raises:
        UserError: unknown kind, name or option, or a missing weights file.
    """
    try:
        return _parse_source(text)
    except UserError as error:
        raise UserError(str(error).replace("--source", flag)) from error
    except (OSError, RuntimeError, ValueError) as error:  # ~nobody/x, too long a name, a null byte
        raise UserError(f"{flag} holds an invalid path: {first_line(error)}. Received: {text!r}.") from error


def _parse_source(text: str) -> SourceSpec:
    short, at, random = text.partition("@")
    if short in CATALOGUE and (not at or random == "random"):
        entry = CATALOGUE[short]
        if short in WORD_VECTORS:
            raise UserError(f"--source names word vectors. Received: {text!r}. Try: --word-vectors {short}")
        if entry.source:
            return replace(parse_source(entry.source + at + random), entry=entry)
        return SourceSpec(entry.kind, str(entry.folder), weights=random or None, entry=entry)
    kind, colon, rest = text.partition(":")
    if kind == "kaggle":
        kind, rest = "hub", text
    if not colon or kind not in SOURCE_KINDS:
        names = [name for name in CATALOGUE if name not in WORD_VECTORS]
        known = re.split(r"[@(]", text)[0] in KERAS_APPLICATIONS
        raise UserError(
            f"--source is unknown. Allowed: {', '.join(f'{k}:NAME' for k in SOURCE_KINDS)}, kaggle:HANDLE, or a short "
            f"name: {', '.join(names)}. Received: {text!r}.{did_you_mean(kind, [*names, *SOURCE_KINDS])} "
            f"Try: {f'--source keras:{text}' if known else 'python -m recipes sources'}"
        )
    if kind == "keras":
        return _parse_keras(text, rest)
    if kind == "hub":
        return _parse_hub(text, rest)
    name, random = (rest[: -len("@random")], "random") if rest.endswith("@random") else (rest, None)
    if kind == "bundled":
        bundled = sorted(path.parent.name for path in BUNDLED_FOLDER.glob("*/config.json"))
        if not bundled:
            raise UserError(
                f"--source names a bundled model, but this checkout has none: {BUNDLED_FOLDER} is empty. "
                f"Received: {text!r}. Clone the repository again, or try --source keras:MobileNetV2"
            )
        if name not in bundled:
            raise UserError(
                f"--source names no bundled model. Allowed: {', '.join('bundled:' + b for b in bundled)}. "
                f"Received: {text!r}.{did_you_mean(name, bundled)}"
            )
    elif not name:
        raise UserError(f"--source preset: needs a KerasHub name, hf://OWNER/NAME or a folder. Received: {text!r}.")
    elif ("/" in name or name.startswith(".")) and "://" not in name and not Path(name).expanduser().is_dir():
        is_file = Path(name).expanduser().is_file()
        raise UserError(
            f"--source names a preset folder that {'is a file' if is_file else 'does not exist'}. Received: {text!r}. "
            "A preset folder holds config.json and weights, as `python -m recipes run pretraining` or pretraining_text "
            "writes it."
        )
    return SourceSpec(kind, name, weights=random)


def _parse_keras(text: str, rest: str) -> SourceSpec:
    architecture, at, weights = rest.partition("@")
    match = re.fullmatch(r"(\w+)(?:\(([^()]*)\))?", architecture)
    name = match[1] if match else architecture
    if name not in KERAS_APPLICATIONS:
        raise UserError(
            f"--source names no keras.applications model that is supported. Received: {text!r}."
            f"{did_you_mean(name, KERAS_APPLICATIONS)} Allowed: {', '.join(KERAS_APPLICATIONS)}."
        )
    options = {}
    for option in filter(None, (match[2] or "").split(",")):
        key, _, value = (piece.strip() for piece in option.partition("="))
        if key not in _KERAS_OPTIONS or (key == "alpha" and name not in ("MobileNet", "MobileNetV2")):
            raise UserError(
                f"--source has an unknown option. Allowed: size=PIXELS, and alpha=WIDTH for MobileNet and "
                f"MobileNetV2. Received: {option.strip()!r} in {text!r}."
            )
        try:
            options[key] = _KERAS_OPTIONS[key](value)
            if not 0 < options[key] < float("inf"):
                raise ValueError
        except ValueError:
            number = "a whole number" if _KERAS_OPTIONS[key] is int else "a number"
            raise UserError(f"--source option {key} needs {number} above 0. Received: {value!r} in {text!r}.") from None
    if at and weights != "random" and not Path(weights).expanduser().is_file():
        problem = "is a folder" if weights and Path(weights).expanduser().is_dir() else "does not exist"
        raise UserError(
            f"--source names a weights file that {problem}. Received: {weights!r}. Allowed after '@': the path "
            f"of a 'no top' weights file of {name}, or 'random'. Without '@' the ImageNet weights are fetched."
        )
    return SourceSpec("keras", name, options, weights or None)


_HUB_OPTIONS = {
    "range": "range=LOW..HIGH",
    "size": "size=PIXELS",
    "output": "output=KEY",
    "signature": "signature=NAME",
}


def _parse_hub(text: str, rest: str) -> SourceSpec:
    match = re.fullmatch(r"(.*?)(?:\(([^()]*=[^()]*)\))?(?:@(random))?", rest, flags=re.DOTALL)
    name, chosen, random = match.groups()
    options = {}
    for option in filter(None, (chosen or "").split(",")):
        key, _, value = (piece.strip() for piece in option.partition("="))
        try:
            if key == "range":
                low, high = (float(number) for number in value.split(".."))
                if not -inf < low < high < inf:
                    raise ValueError
                options[key] = (low, high)
            elif key == "size" and int(value) > 0:
                options[key] = int(value)
            elif key in ("output", "signature") and value:
                options[key] = value
            else:
                raise ValueError
        except ValueError:
            raise UserError(
                f"--source has an option that cannot be read. Allowed: {', '.join(_HUB_OPTIONS.values())}, for example "
                f"hub:FOLDER(range=-1..1,size=160). Received: {option.strip()!r} in {text!r}."
                f"{did_you_mean(key, _HUB_OPTIONS)}"
            ) from None
    if re.match(r"https?://|kaggle:", name):
        # On demand: only handles need it, and requests takes a while to import.
        importlib.import_module("common.sources.handles").parse_handle(name)
    elif Path(name).expanduser().is_file():
        raise UserError(
            f"--source names a file, but a SavedModel is a folder. Received: {text!r}. {_advice_on_file(name)}"
        )
    elif not Path(name).expanduser().is_dir() or not name:
        raise UserError(
            "--source hub: needs the folder of a SavedModel, or a handle: https://tfhub.dev/..., "
            f"https://www.kaggle.com/models/..., kaggle:... Received: {text!r}. The current directory is {Path.cwd()}."
        )
    return SourceSpec("hub", name, options, random)


def _advice_on_file(name: str) -> str:
    """Return how to use a model file as a source, or why it cannot be used."""
    if name.endswith(".tflite"):
        return (
            "A .tflite file holds an inference graph, often quantised, which cannot be trained. Use the model it was "
            "converted from, as SavedModel or Keras weights."
        )
    if name.endswith((".tar.gz", ".tgz", ".tar", ".zip")):
        return "Unpack it, and name the folder that holds saved_model.pb."
    if name.endswith((".h5", ".keras", ".hdf5")):
        return (
            "Weights of a keras.applications model: --source keras:NAME@FILE. A whole Keras model: write the part "
            "before its head as a SavedModel, python -c \"import keras; model = keras.models.load_model('FILE', "
            "compile=False); keras.Model(model.inputs, model.layers[-2].output).export('FOLDER')\", and use "
            "--source 'hub:FOLDER(range=LOW..HIGH)' with the range of its pixels."
        )
    return "Allowed: a folder with saved_model.pb and variables/."
