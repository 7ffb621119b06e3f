"""KerasHub presets and Hugging Face folders: where they are, and errors for those that cannot be loaded."""

from __future__ import annotations

import re
from pathlib import Path

from common.errors import UserError, did_you_mean, first_line
from common.sources.specs import BUNDLED_FOLDER, SourceSpec

# Presets and Hugging Face folders, without the formats that run code when they are read (PyTorch's .bin and .pt).
_FILES = ["*.json", "*.txt", "*.h5", "*.safetensors", "*.model", "*.spm"]


def preset_folder(spec: SourceSpec) -> str:
    """Return the name of a preset for KerasHub: an absolute folder, or one of KerasHub's own names.

    Args:
        spec: of kind `bundled` or `preset`; a preset of the Hugging Face hub is fetched.

    Raises:
        UserError: it cannot be fetched.
    """
    folder = BUNDLED_FOLDER / spec.name if spec.kind == "bundled" else Path(spec.name).expanduser()
    if folder.is_dir():
        return str(folder.resolve())  # absolute: KerasHub's own names win over folders
    return fetch_preset(spec) if spec.name.startswith("hf://") else spec.name


def fetch_preset(spec: SourceSpec) -> str:
    """Fetch a preset from Kaggle or the Hugging Face hub into their own caches, without files that could run code.

    Args:
        spec: of kind `preset`: a name of KerasHub, kaggle://..., or hf://OWNER/NAME.

    Returns:
        Its folder.

    Raises:
        UserError: no such preset, or no network and it was not fetched before.
    """
    import keras_hub

    address = keras_hub.models.Backbone.presets.get(spec.name, {}).get("kaggle_handle", spec.name)
    try:
        if address.startswith("hf://"):
            from huggingface_hub import constants, snapshot_download

            print(f"{address} is kept in {constants.HF_HUB_CACHE}", flush=True)
            return snapshot_download(address.removeprefix("hf://"), allow_patterns=_FILES)
        if address.startswith("kaggle://"):
            import kagglehub

            print(f"{address} is kept in {kagglehub.config.get_cache_folder()}", flush=True)
            return kagglehub.model_download(address.removeprefix("kaggle://"))
    except Exception as error:  # httpx, requests and both hubs each raise their own types
        raise preset_error(spec, error) from error
    raise preset_error(spec, ValueError("There is no preset of this name."))


def preset_error(spec: SourceSpec, error: Exception, of_text: bool = False) -> UserError:
    """Return the error for a preset that cannot be loaded: what is missing, and what to do without network."""
    import keras_hub

    received = f"Received: {spec.kind}:{spec.name}."
    if isinstance(error, UserError):
        return error
    if isinstance(error, FileNotFoundError) and re.search("image_converter|preprocessor_config", str(error)):
        return UserError(
            f"The preset does not specify the preprocessing of its images, and a guess could give wrong predictions. "
            f"{received} Allowed: an image preset with an image converter (image_converter.json), or a Hugging Face "
            "folder with preprocessor_config.json."
        )
    if "subclass of ImageConverter" in str(error):
        return UserError(f"The preset is not an image model. {received} Error: {first_line(error)}")
    is_folder = spec.kind == "bundled" or Path(spec.name).expanduser().is_dir()
    task = keras_hub.models.TextClassifier if of_text else keras_hub.models.ImageClassifier
    presets, preprocessor = task.presets, "tokenizer" if of_text else "image converter"
    files = "a vocabulary" if of_text else "image_converter.json"
    offline = (
        f"Without network, write the folder on another machine (`save_to_preset` of backbone and {preprocessor}"
        ", or `hf download OWNER/NAME --local-dir FOLDER`) and use --source preset:FOLDER. "
    )
    return UserError(
        f"The preset cannot be loaded. {received} Allowed: a KerasHub name ({', '.join(sorted(presets)[:8])}, ...), "
        f"hf://OWNER/NAME, or a folder with config.json, {files} and model.weights.h5 or model.safetensors."
        f"{'' if is_folder or '://' in spec.name or spec.name in presets else did_you_mean(spec.name, presets)} "
        f"{'' if is_folder else offline}Error: {first_line(error)}"
    )
