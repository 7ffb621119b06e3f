"""A pretrained wav2vec 2.0 in a Hugging Face folder, as written by `save_pretrained` of transformers.

`hf download facebook/wav2vec2-base-960h --local-dir FOLDER` creates one. The files read are config.json,
model.safetensors and, if present, vocab.json, added_tokens.json and preprocessor_config.json. Nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from common import files
from common.errors import UserError, first_line
from common.speech.wav2vec2.config import Wav2Vec2Config
from common.speech.wav2vec2.heads import CTCHead
from common.speech.wav2vec2.network import Wav2Vec2Backbone

# Settings that this network supports; the first one is the default where config.json has none.
_COMPUTED = {
    "hidden_act": ("gelu",),
    "feat_extract_activation": ("gelu",),
    "add_adapter": (False,),
    "adapter_attn_dim": (None,),
}
# Heads of single tasks, or used in pretraining only.
_OTHER_HEADS = (
    "quantizer.", "project_q.", "project_hid.", "projector.", "classifier.", "layer_weights", "tdnn.", "objective.",
)  # fmt: skip
_MASK_VECTOR = "masked_spec_embed"  # absent where transformers saved a network that never masks
_SPELLINGS = {  # of weight norm, since PyTorch 2.0 and earlier
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}

# Name in the folder, our variable, and a function that reorders the axes of the array.
Target = tuple[str, Any, Callable[[np.ndarray], np.ndarray]]


@dataclass(frozen=True)
class LoadedWav2Vec2:
    """The content of a Hugging Face folder.

    Attributes:
        backbone: with the weights of the folder.
        head: CTC head; None where the folder has none.
        vocabulary: token of each output of the head, blank first; None without a head or vocab.json.
        normalises: whether clips go through `normalise` before the network.
        sampling_rate: samples per second.
        ignored: unused tensors of the folder.
    """

    backbone: Wav2Vec2Backbone
    head: CTCHead | None
    vocabulary: list[str] | None
    normalises: bool
    sampling_rate: int
    ignored: tuple[str, ...]


def load_wav2vec2(folder: Path | str) -> LoadedWav2Vec2:
    """Load network, CTC head and vocabulary.

    Token 0 of the head is the blank: it is moved to the front if necessary, and the others keep their order.

    Args:
        folder: with config.json and model.safetensors.

    Returns:
        Its content, built under Keras' current dtype policy.

    Raises:
        UserError: no such folder, another architecture, or weights that are missing, unexpected or of another shape.
    """
    folder = Path(folder).expanduser()
    settings = _read_settings(folder)
    tensors = read_tensors(folder)
    backbone = Wav2Vec2Backbone(_network_config(settings, folder))
    used = assign_backbone(backbone, tensors, folder)
    head, vocabulary = None, None
    if "lm_head.weight" in tensors:
        order = _blank_first(len(tensors["lm_head.weight"]), settings.get("pad_token_id", 0), folder)
        vocabulary = _read_vocabulary(folder, order)
        head = CTCHead(len(order), backbone.config.final_dropout, name="ctc_head")
        head.build((None, None, backbone.config.hidden_size))
        used |= assign_tensors(_head_targets(head, order), tensors, folder)
    audio = _read_json(folder / "preprocessor_config.json")
    return LoadedWav2Vec2(
        backbone, head, vocabulary, audio.get("do_normalize", True), audio.get("sampling_rate", 16000),
        _ignored(tensors, used, folder),
    )  # fmt: skip


def save_wav2vec2(
    folder: Path | str,
    backbone: Wav2Vec2Backbone,
    head: CTCHead | None = None,
    vocabulary: str | None = None,
    *,
    normalises: bool = True,
    sampling_rate: int = 16000,
    half: bool = False,
) -> Path:
    """Write network, CTC head and vocabulary in the format that `load_wav2vec2` and transformers read.

    Args:
        folder: to write to.
        backbone: with its weights.
        head: built, or None.
        vocabulary: content of vocab.json, or None.
        normalises: whether clips go through `normalise` before the network.
        sampling_rate: samples per second.
        half: write float16, half the size; the loaded network computes in float32 regardless.

    Returns:
        The folder.
    """
    folder = Path(folder)
    targets = list(backbone_targets(backbone))
    kind = "Wav2Vec2Model"
    if head is not None:
        kind = "Wav2Vec2ForCTC"
        targets = [(f"wav2vec2.{name}", variable, arrange) for name, variable, arrange in targets]
        targets += _head_targets(head, list(range(head.dense.units)))
    # The reordering of axes is its own inverse.
    tensors = {name: np.ascontiguousarray(_back(arrange, variable)) for name, variable, arrange in targets}
    if half:
        tensors = {name: array.astype(np.float16) for name, array in tensors.items()}
    settings = dataclasses.asdict(backbone.config) | {
        "model_type": "wav2vec2", "architectures": [kind], "hidden_act": "gelu", "feat_extract_activation": "gelu",
        "pad_token_id": 0, "num_feat_extract_layers": len(backbone.config.conv_dim), "ctc_loss_reduction": "mean",
        "vocab_size": head.dense.units if head is not None else 32,
    }  # fmt: skip
    files.write_json(folder / "config.json", settings)
    audio = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": normalises, "feature_size": 1,
             "padding_side": "right", "padding_value": 0.0, "return_attention_mask": True,
             "sampling_rate": sampling_rate}  # fmt: skip
    files.write_json(folder / "preprocessor_config.json", audio)
    if vocabulary is not None:
        files.write_atomically(folder / "vocab.json", lambda partial: partial.write_text(vocabulary, "utf-8"))
    files.write_atomically(
        folder / "model.safetensors", lambda partial: save_file(tensors, partial, metadata={"format": "pt"})
    )
    return folder


def _back(arrange: Callable[[np.ndarray], np.ndarray], variable: Any) -> np.ndarray:
    """Return a variable with the order of axes used in the folder."""
    array = np.asarray(variable, np.float32)
    return array if arrange is _as_is or array.ndim < 2 else array.T


def _read_settings(folder: Path) -> dict:
    """Return the content of config.json."""
    if not (folder / "config.json").is_file():
        raise UserError(
            f"There is no config.json in {folder}. Allowed: a folder written by transformers. Try: "
            "hf download facebook/wav2vec2-base-960h --local-dir FOLDER"
        )
    settings = _read_json(folder / "config.json")
    if settings.get("model_type") != "wav2vec2":
        raise UserError(
            f"The network in {folder} is not a wav2vec 2.0. Allowed: model_type 'wav2vec2' in config.json. Received: "
            f"{settings.get('model_type')!r}."
        )
    for key, allowed in _COMPUTED.items():
        if settings.get(key, allowed[0]) not in allowed:
            raise UserError(
                f"The wav2vec 2.0 in {folder} has {key} {settings[key]!r}, which is not supported. "
                f"Allowed: {', '.join(map(repr, allowed))}."
            )
    return settings


def _network_config(settings: dict, folder: Path) -> Wav2Vec2Config:
    try:
        return Wav2Vec2Config.from_dict(settings)
    except ValueError as error:
        raise UserError(f"config.json in {folder} does not describe a wav2vec 2.0: {error}") from error


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Return the arrays of model.safetensors, with names independent of the head and the version."""
    path = folder / "model.safetensors"
    if not path.is_file():
        found = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
        pickled = any(name.endswith((".bin", ".pt", ".ckpt")) for name in found)
        convert = (
            " PyTorch files are pickled and can run any code, so they are not read. Convert a trusted one: "
            f'python -c "from transformers import AutoModel as m; m.from_pretrained({str(folder)!r})'
            f'.save_pretrained({str(folder)!r})" (AutoModelForCTC keeps a CTC head)'
        )
        raise UserError(
            f"There is no model.safetensors in {folder}. Received: {', '.join(found) or 'no files'}."
            f"{convert if pickled else ' Try: hf download facebook/wav2vec2-base-960h --local-dir FOLDER'}"
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(
            f"{path} cannot be read; it is damaged or half-written. Fetch it again. The error: {first_line(error)}"
        ) from error
    return {_plain_name(name): array for name, array in tensors.items()}


def _plain_name(name: str) -> str:
    name = name.removeprefix("wav2vec2.")
    for new, old in _SPELLINGS.items():
        name = name.replace(new, old)
    return name


def assign_backbone(backbone: Wav2Vec2Backbone, tensors: dict[str, np.ndarray], folder: Path) -> set[str]:
    """Set the weights of a backbone; return the names of the tensors used."""
    masks = backbone.config.mask_time_prob > 0 or backbone.config.mask_feature_prob > 0
    targets = backbone_targets(backbone)
    return assign_tensors(
        (one for one in targets if masks or one[0] != _MASK_VECTOR or one[0] in tensors), tensors, folder
    )


def assign_tensors(targets: Iterator[Target], tensors: dict[str, np.ndarray], folder: Path) -> set[str]:
    """Set variables from tensors; return the names of the tensors used.

    Raises:
        UserError: a tensor is missing or has another shape.
    """
    used, missing = set(), []
    for name, variable, arrange in targets:
        if name not in tensors:
            missing.append(name)
            continue
        array = arrange(tensors[name])
        if array.shape != tuple(variable.shape):
            raise UserError(
                f"The shape of {name} in {folder}/model.safetensors does not match config.json. Allowed: "
                f"{tuple(variable.shape)}. Received: {array.shape} (both in our order of axes)."
            )
        variable.assign(array.astype(np.float32))
        used.add(name)
    if missing:
        raise UserError(
            f"{folder}/model.safetensors lacks {len(missing)} of the tensors that config.json requires: "
            f"{_some(missing)}. Received {len(tensors)} tensors: {_some(sorted(tensors))}. Fetch the folder again, or "
            "save the model again with save_pretrained."
        )
    return used


def _ignored(tensors: dict[str, np.ndarray], used: set[str], folder: Path) -> tuple[str, ...]:
    """Return the tensors of heads that are not built here; any other tensor must have been used."""
    left = sorted(set(tensors) - used)
    strange = [name for name in left if not name.startswith(_OTHER_HEADS)]
    if strange:
        raise UserError(
            f"{folder}/model.safetensors has tensors that a wav2vec 2.0 with this config.json does not have: "
            f"{_some(strange)}. Outputs would be wrong without them. Fetch config.json and model.safetensors of the "
            "same model."
        )
    return tuple(left)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def backbone_targets(backbone: Wav2Vec2Backbone) -> Iterator[Target]:
    """Yield the tensor of the folder for each variable of a backbone.

    Args:
        backbone: with the folder's configuration.

    Yields:
        Name in the folder, variable, and a function that reorders the axes of the array.
    """
    config, layer = backbone.config, backbone.get_layer
    extractor = layer("feature_extractor")
    for number, convolution in enumerate(extractor.convolutions):
        place = f"feature_extractor.conv_layers.{number}"
        yield f"{place}.conv.weight", convolution.kernel, _convolution
        if config.conv_bias:
            yield f"{place}.conv.bias", convolution.bias, _as_is
        if number < len(extractor.norms):
            yield from _norm(f"{place}.layer_norm", extractor.norms[number])
    yield from _norm("feature_projection.layer_norm", layer("feature_norm"))
    yield from dense_targets("feature_projection.projection", layer("feature_projection"))
    yield _MASK_VECTOR, layer("spec_augment").mask_vector, _as_is
    positions = layer("positional_embedding")
    yield "encoder.pos_conv_embed.conv.weight_g", positions.length, _convolution
    yield "encoder.pos_conv_embed.conv.weight_v", positions.direction, _convolution
    yield "encoder.pos_conv_embed.conv.bias", positions.bias, _as_is
    yield from _norm("encoder.layer_norm", layer("encoder_norm"))
    for number in range(config.num_hidden_layers):
        yield from _block_targets(f"encoder.layers.{number}", layer(f"block_{number}"))


def _block_targets(place: str, block: keras.layers.Layer) -> Iterator[Target]:
    attention = block.attention
    yield from dense_targets(f"{place}.attention.q_proj", attention.query_projection)
    yield from dense_targets(f"{place}.attention.k_proj", attention.key_projection)
    yield from dense_targets(f"{place}.attention.v_proj", attention.value_projection)
    yield from dense_targets(f"{place}.attention.out_proj", attention.output_projection)
    yield from _norm(f"{place}.layer_norm", block.attention_norm)
    yield from dense_targets(f"{place}.feed_forward.intermediate_dense", block.inner)
    yield from dense_targets(f"{place}.feed_forward.output_dense", block.outer)
    yield from _norm(f"{place}.final_layer_norm", block.output_norm)


def _head_targets(head: CTCHead, order: list[int]) -> Iterator[Target]:
    yield "lm_head.weight", head.dense.kernel, lambda array: array[order].T
    yield "lm_head.bias", head.dense.bias, lambda array: array[order]


def _norm(name: str, layer: keras.layers.Layer) -> Iterator[Target]:
    yield f"{name}.weight", layer.gamma, _as_is
    yield f"{name}.bias", layer.beta, _as_is


def dense_targets(name: str, layer: keras.layers.Layer) -> Iterator[Target]:
    yield f"{name}.weight", layer.kernel, np.transpose
    yield f"{name}.bias", layer.bias, _as_is


def _as_is(array: np.ndarray) -> np.ndarray:
    return array


def _convolution(array: np.ndarray) -> np.ndarray:
    """Transpose [outputs, inputs, kernel] of PyTorch to [kernel, inputs, outputs]."""
    return np.transpose(array, (2, 1, 0))


def _blank_first(size: int, blank: int, folder: Path) -> list[int]:
    """Return the outputs of the head with the blank first."""
    if not isinstance(blank, int) or not 0 <= blank < size:
        raise UserError(
            f"The CTC head in {folder} has no output for the blank. Allowed: pad_token_id of config.json from 0 to "
            f"{size - 1}. Received: {blank!r}."
        )
    return [blank, *(number for number in range(size) if number != blank)]


def _read_vocabulary(folder: Path, order: list[int]) -> list[str] | None:
    """Return the token of each output, in the given order; '' for an output without a name."""
    if not (folder / "vocab.json").is_file():
        return None
    ids = _read_json(folder / "vocab.json") | _read_json(folder / "added_tokens.json")
    if not all(isinstance(number, int) for number in ids.values()):
        raise UserError(
            f"vocab.json in {folder} is not a table of tokens. Allowed: a number per token. Received: "
            f"{_some(sorted(ids))} with other values, as in models of several languages."
        )
    tokens = {number: token for token, number in ids.items()}
    return [tokens.get(number, "") for number in order]


def _read_json(path: Path) -> dict:
    """Return the content of a JSON file, or {} if there is none."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON. Fetch it again. The error: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a table of names and values. Fetch it again. It begins: {str(content)[:50]}")
    return content
