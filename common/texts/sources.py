"""Load pretrained text models: presets, Hugging Face folders (with KerasHub's conversion corrected), SavedModels."""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from pathlib import Path

import keras
import keras_nlp  # now an alias of keras_hub, and the name under which text models are registered
import numpy as np
from keras_hub.src.utils.transformers import convert_distilbert, convert_roberta
from keras_hub.src.utils.transformers.safetensor_utils import SafetensorLoader

from common.errors import UserError
from common.sources.entries import fetch_entry
from common.sources.presets import preset_error, preset_folder
from common.sources.specs import BUNDLED_FOLDER, SourceSpec, parse_source
from common.texts.deberta import COMPUTED as COMPUTED_BY_DEBERTA
from common.texts.deberta import build_deberta, convert_deberta
from common.texts.tokenizers.load import Tokenizer, check_vocabulary, load_tokenizer, read_json


@keras.saving.register_keras_serializable("recipes")
class BertBackbone(keras_nlp.models.BertBackbone):
    """KerasHub's BERT with the activation that Google's and Hugging Face's checkpoints were trained with.

    KerasHub approximates gelu by tanh in every BERT, also when it converts checkpoints with exact `gelu` (by the error
    function, https://arxiv.org/abs/1606.08415): hidden states then differ in the third digit.
    """

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        for layer in self.transformer_layers:
            layer._feedforward_intermediate_dense.activation = keras.activations.gelu


# Families that KerasHub does not convert, or only if they were saved with a head.
_CONVERTED = {
    "distilbert": convert_distilbert.convert_weights,
    "roberta": convert_roberta.convert_weights,
    "deberta-v2": convert_deberta,  # also the name of version 3
}
# What KerasHub's models compute regardless of config.json; a missing key means the first value.
_COMPUTED = {
    "bert": {
        "hidden_act": ("gelu", "gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_eps": (1e-12,),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
    },
    "distilbert": {"activation": ("gelu",)},
    "roberta": {
        "hidden_act": ("gelu",),
        "layer_norm_eps": (1e-5,),
        "pad_token_id": (1,),  # positions count from the id after it, in KerasHub from 2
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
    },
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (1e-5,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    "deberta-v2": COMPUTED_BY_DEBERTA,
}


@dataclass(frozen=True)
class TextSource:
    """A loaded pretrained text model.

    Attributes:
        spec: the value of --source.
        backbone: maps {"token_ids", "padding_mask", for BERT also "segment_ids"}, int32 [batch, length], to hidden
            states: float32 [batch, length, width], for BERT {"sequence_output", "pooled_output"}.
        tokenize: maps string [batch] to token ids, ragged int32 [batch, (tokens)], without special tokens, in any
            TensorFlow graph.
        max_length: maximum number of tokens of the backbone.
        card: provenance and terms: spec, origin, licence, data.
    """

    spec: str
    backbone: keras.Model
    tokenize: Tokenizer
    max_length: int
    card: dict[str, str]

    def fingerprint(self) -> str:
        """Return a hash of all weights and the vocabulary: if equal, embeddings are equal."""
        digest = hashlib.sha256("\n".join(map(str, self.tokenize.vocabulary())).encode("utf-8", "replace"))
        for weight in self.backbone.weights:
            digest.update(np.ascontiguousarray(weight.numpy()).tobytes())
        return digest.hexdigest()[:16]


def load_text_source(text: str, *, random_weights: bool = False) -> TextSource:
    """Load a text model by its spec string.

    Args:
        text: `bundled:bert_mini`, `preset:NAME_OR_FOLDER`, `preset:hf://OWNER/NAME`, `hub:FOLDER_OR_HANDLE`, or a short
            name from the catalogue such as `minilm`; the suffix `@random` keeps the initial weights.
        random_weights: keep the initial weights, as for the from-scratch baseline.

    Returns:
        The TextSource, built under Keras' current dtype policy.

    Raises:
        UserError: unknown name, no network access, or not a text model.
    """
    spec = parse_source(text)
    of_images = spec.kind == "bundled" and not (BUNDLED_FOLDER / spec.name / "vocab.txt").exists()
    if spec.kind not in ("preset", "bundled", "hub") or of_images:
        raise UserError(
            "--source is not a text model. Allowed: minilm, bundled:bert_mini, preset:NAME_OR_FOLDER, "
            f"hub:FOLDER_OR_HANDLE of a BERT. Received: {text!r}."
        )
    if spec.entry and spec.entry.sha256:
        fetch_entry(spec.entry)
    random_weights = random_weights or spec.random
    if spec.kind == "hub":
        # Imported on demand: it imports what runs the code of a SavedModel, which no other source needs.
        hub_bert = importlib.import_module("common.texts.hub_bert")
        backbone, tokenize, max_length, rows = hub_bert.load_hub_bert(spec, text, random_weights)
        check_vocabulary(tokenize, rows, {}, text)
        return TextSource(text, backbone, tokenize, max_length, _card(spec, spec.name, random_weights))
    name = preset_folder(spec)
    try:
        config = read_json(Path(name) / "config.json")
        _check_architecture(config, text)
        backbone = _load_backbone(name, config, random_weights)
        max_length = getattr(backbone, "max_sequence_length", None)
        if max_length is None:
            kind = type(backbone).__name__
            raise UserError(f"The preset is not a text model but a {kind}. Received: {text!r}.")
        tokenize = load_tokenizer(name, backbone, text)
    except UserError:
        raise
    except Exception as error:  # Kaggle, Hugging Face, h5py and safetensors each raise their own types
        raise preset_error(spec, error, of_text=True) from error
    check_vocabulary(tokenize, backbone.vocabulary_size, config, text)
    return TextSource(text, backbone, tokenize, max_length, _card(spec, name, random_weights))


def _card(spec: SourceSpec, name: str, random_weights: bool) -> dict[str, str]:
    own = read_json(Path(name) / "card.json")  # of a preset that this project made
    unknown = "see the preset's own page"
    origin = ", ".join(spec.entry.places) if spec.entry and spec.entry.places else f"{spec.kind} {spec.name}"
    licence = spec.entry.licence if spec.entry else own.get("licence", unknown)
    if random_weights:
        return {"origin": f"{origin}, initial weights", "licence": licence, "data": "none"}
    return {"origin": origin, "licence": licence, "data": own.get("data", unknown)}


def _check_architecture(config: dict, text: str) -> None:
    """Refuse a checkpoint that KerasHub would silently compute in another way than it was trained.

    Args:
        config: of a Hugging Face folder; empty, or without model_type, for a preset of KerasHub.
        text: what the user typed.
    """
    kind = config.get("model_type")
    for key, allowed in _COMPUTED.get(kind, {}).items():
        if config.get(key, allowed[0]) not in allowed:
            raise UserError(
                f"The {kind} in {text} has {key} {config[key]!r}, which KerasHub does not implement. "
                f"Allowed: {', '.join(map(str, allowed))}."
            )
    if kind == "gpt2" and config.get("n_inner") not in (None, 4 * config["n_embd"]):
        raise UserError(
            f"The gpt2 in {text} has n_inner {config['n_inner']}, but KerasHub's always has 4 x n_embd. Allowed: "
            f"{4 * config['n_embd']}."
        )


def _load_backbone(name: str, config: dict, random_weights: bool) -> keras.Model:
    """Load or build the network, and correct KerasHub's conversion.

    Args:
        name: folder or name of the preset.
        config: of a Hugging Face folder.
        random_weights: whether to keep the initial weights.
    """
    convert = _CONVERTED.get(config.get("model_type"))
    # Under our policy: a preset saved in float16, for its size, would otherwise compute in float16.
    policy = keras.config.dtype_policy()
    load_weights = convert is None and not random_weights
    if config.get("model_type") == "deberta-v2":
        backbone = build_deberta(config, policy)
    else:
        backbone = keras_nlp.models.Backbone.from_preset(name, load_weights=load_weights, dtype=policy)
    if convert and not random_weights:
        with _Weights(name) as weights:
            convert(backbone, weights, config)
            if config["model_type"] == "roberta":
                _add_token_types(backbone, weights)
    if type(backbone) is keras_nlp.models.BertBackbone and config.get("hidden_act", "gelu") == "gelu":
        exact = BertBackbone.from_config(backbone.get_config())
        exact.set_weights(backbone.get_weights())
        backbone = exact
    return backbone


class _Weights(SafetensorLoader):
    """The weights of a Hugging Face folder, whether or not a model with a head was saved.

    With a head they are named `roberta.embeddings...`, without one `embeddings...`; KerasHub knows only the former.
    """

    def get_tensor(self, hf_weight_key):
        return super().get_tensor(hf_weight_key.partition(".")[2])  # matches names that end with this


def _add_token_types(backbone: keras.Model, weights: _Weights) -> None:
    """Add the embedding of the first token type, which KerasHub ignores, to every position.

    It is zero in the RoBERTa of its authors, but not in those trained with Hugging Face's library.
    """
    positions = backbone.embeddings.position_embedding.position_embeddings
    positions.assign_add(np.asarray(weights.get_tensor("roberta.embeddings.token_type_embeddings.weight")[0]))
