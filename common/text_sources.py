"""Where a pretrained text model comes from: KerasHub presets and Hugging Face folders, with what conversion loses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import keras_nlp  # today another name of keras_hub, and the one under which text models are known

from common.errors import UserError
from common.fetching import fetch_entry
from common.presets import preset_error, preset_folder
from common.specs import BUNDLED_FOLDER, SourceSpec, parse_source
from common.wordpiece import WordPiece


@keras.saving.register_keras_serializable("recipes")
class BertBackbone(keras_nlp.models.BertBackbone):
    """KerasHub's BERT with the activation that Google's and Hugging Face's checkpoints were trained with.

    KerasHub approximates gelu by tanh in every BERT, and converts checkpoints that say `gelu` (by the error function,
    https://arxiv.org/abs/1606.08415) all the same: hidden states then differ in the third digit.
    """

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        for layer in self.transformer_layers:
            layer._feedforward_intermediate_dense.activation = keras.activations.gelu


@dataclass(frozen=True)
class TextSource:
    """A loaded pretrained text model.

    Attributes:
        spec: what the user typed.
        backbone: maps {"token_ids", "padding_mask", for BERT also "segment_ids"}, int32 [batch, length], to hidden
            states: float32 [batch, length, width], for BERT {"sequence_output", "pooled_output"}.
        tokenize: maps string [batch] to token ids, ragged int32 [batch, (tokens)], without special tokens. For BERT
            it is a WordPiece, which runs in any TensorFlow graph; else KerasHub's tokenizer, which needs TF Text.
        max_length: tokens that the backbone can read.
        card: where it came from and under which terms: spec, origin, licence, data.
    """

    spec: str
    backbone: keras.Model
    tokenize: Callable
    max_length: int
    card: dict[str, str]


def load_text_source(text: str, *, random_weights: bool = False) -> TextSource:
    """Load a text model by its spec string.

    Args:
        text: `bundled:bert_mini`, `preset:NAME_OR_FOLDER`, `preset:hf://OWNER/NAME`, or a short name of the catalogue
            such as `minilm`; `@random` at the end keeps the initial weights.
        random_weights: same architecture, initial weights: the from-scratch baseline.

    Returns:
        The TextSource, built under Keras' current dtype policy.

    Raises:
        UserError: unknown name, no network, or not a model of text.
    """
    spec = parse_source(text)
    if spec.entry and spec.entry.sha256:
        fetch_entry(spec.entry)
    of_pictures = spec.kind == "bundled" and not (BUNDLED_FOLDER / spec.name / "vocab.txt").exists()
    if spec.kind not in ("preset", "bundled") or of_pictures:
        raise UserError(
            f"--source is not a model of text. Allowed: minilm, bundled:bert_mini, preset:NAME_OR_FOLDER. Received: "
            f"{text!r}."
        )
    random_weights = random_weights or spec.random
    name = preset_folder(spec)
    try:
        # Under our policy: a preset that was saved in float16, to be small, would compute in it.
        policy = keras.config.dtype_policy()
        backbone = keras_nlp.models.Backbone.from_preset(name, load_weights=not random_weights, dtype=policy)
        tokenize = _load_tokenizer(name, backbone)
    except UserError:
        raise
    except Exception as error:  # Kaggle, Hugging Face, h5py and safetensors each raise their own types
        raise preset_error(spec, error, of_text=True) from error
    if isinstance(backbone, keras_nlp.models.BertBackbone):
        _check_bert(_read(Path(name) / "config.json"), text)
    if isinstance(backbone, keras_nlp.models.BertBackbone) and _hidden_activation(name) == "gelu":
        exact = BertBackbone.from_config(backbone.get_config())
        exact.set_weights(backbone.get_weights())
        backbone = exact
    max_length = getattr(backbone, "max_sequence_length", None)
    if max_length is None:
        raise UserError(f"The preset is not a model of text: it is a {type(backbone).__name__}. Received: {text!r}.")
    return TextSource(text, backbone, tokenize, max_length, _card(spec, name, random_weights))


def _card(spec: SourceSpec, name: str, random_weights: bool) -> dict[str, str]:
    own = _read(Path(name) / "card.json")  # of a preset that this project made
    unknown = "see the preset's own page"
    origin = ", ".join(spec.entry.places) if spec.entry and spec.entry.places else f"{spec.kind} {spec.name}"
    licence = spec.entry.licence if spec.entry else own.get("licence", unknown)
    if random_weights:
        return {"origin": f"{origin}, initial weights", "licence": licence, "data": "none"}
    return {"origin": origin, "licence": licence, "data": own.get("data", unknown)}


def _check_bert(config: dict, text: str) -> None:
    """Refuse what KerasHub's BERT would compute in another way than the checkpoint was trained with, and not say so."""
    allowed = {"hidden_act": ("gelu", "gelu_new", "gelu_pytorch_tanh"), "layer_norm_eps": (1e-12,)}
    for key, values in allowed.items():
        if config.get("model_type") == "bert" and config.get(key, values[0]) not in values:
            raise UserError(
                f"The BERT in {text} has {key} {config[key]!r}, and KerasHub's would compute with another one. "
                f"Allowed: {', '.join(map(str, values))}."
            )


def _hidden_activation(name: str) -> str:
    """What the config of a Hugging Face folder says; BERT's own, where there is none (a preset of KerasHub)."""
    return _read(Path(name) / "config.json").get("hidden_act", "gelu")


def _load_tokenizer(name: str, backbone: keras.Model) -> Callable:
    """Load the tokenizer; of BERT's family as WordPiece, which folds text as the checkpoint's own tokenizer does."""
    folder, family = Path(name), (keras_nlp.models.BertBackbone, keras_nlp.models.DistilBertBackbone)
    if isinstance(backbone, family) and (folder / "vocab.txt").is_file():
        vocabulary = (folder / "vocab.txt").read_text("utf-8").split("\n")
        return WordPiece(vocabulary[:-1] if not vocabulary[-1] else vocabulary, **_normalisation(folder))
    tokenizer = keras_nlp.models.Tokenizer.from_preset(name)
    if isinstance(backbone, family) and hasattr(tokenizer, "lowercase"):
        return WordPiece(tokenizer.get_vocabulary(), lowercase=tokenizer.lowercase)
    return tokenizer


def _normalisation(folder: Path) -> dict[str, bool | None]:
    """How a Hugging Face folder says text is folded: tokenizer.json, tokenizer_config.json, or as in uncased BERT."""
    normalizer = _read(folder / "tokenizer.json").get("normalizer") or {}
    if normalizer.get("type") == "BertNormalizer":
        return {
            "lowercase": normalizer["lowercase"],
            "strip_accents": normalizer["strip_accents"],
            "split_chinese": normalizer["handle_chinese_chars"],
        }
    config = _read(folder / "tokenizer_config.json")
    return {
        "lowercase": config.get("do_lower_case", True),
        "strip_accents": config.get("strip_accents"),
        "split_chinese": config.get("tokenize_chinese_chars", True),
    }


def _read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}
