"""Pretrained speech models: folders of wav2vec 2.0, bundled, local or on the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from common.errors import UserError
from common.sources.presets import fetch_preset
from common.sources.specs import BUNDLED_FOLDER, SourceSpec, parse_source
from common.speech.ctc.characters import Characters, characters_of
from common.speech.wav2vec2.heads import CTCHead
from common.speech.wav2vec2.network import Wav2Vec2Backbone
from common.speech.wav2vec2.weights import load_wav2vec2

_ALLOWED = (
    "Allowed: bundled:wav2vec2_mini, preset:FOLDER and preset:hf://OWNER/NAME (such as "
    "preset:hf://facebook/wav2vec2-base-960h), with config.json of a wav2vec 2.0 and model.safetensors."
)


@dataclass(frozen=True)
class SpeechSource:
    """A loaded pretrained speech model.

    Attributes:
        spec: what the user typed.
        backbone: {"samples": float32 [batch, time] at 16 kHz, "lengths": int32 [batch]} -> hidden states.
        head: the CTC head it was trained with, or None.
        characters: of each output of that head, or None.
        normalises: whether clips go through `masking.normalise` first.
        card: origin, licence and training data.
    """

    spec: str
    backbone: Wav2Vec2Backbone
    head: CTCHead | None
    characters: Characters | None
    normalises: bool
    card: dict[str, str]

    def fingerprint(self) -> str:
        """Return a hash of all weights and of the characters: equal for equal outputs."""
        digest = hashlib.sha256(repr((self.normalises, self.characters)).encode("utf-8", "surrogatepass"))
        for weight in (*self.backbone.weights, *(self.head.weights if self.head else ())):
            digest.update(np.ascontiguousarray(weight.numpy()).tobytes())
        return digest.hexdigest()[:16]


def load_speech_source(text: str, *, random_weights: bool = False) -> SpeechSource:
    """Load a speech model by its spec string.

    Args:
        text: `bundled:wav2vec2_mini`, `preset:FOLDER` (of transformers' `save_pretrained`, of `hf download`, or
            OUT/preset of a run), `preset:hf://OWNER/NAME`; `@random` at the end keeps the initial weights.
        random_weights: same architecture, initial weights, no head: the from-scratch baseline.

    Returns:
        The SpeechSource, built under Keras' current dtype policy.

    Raises:
        UserError: no such model, no network, or not a wav2vec 2.0.
    """
    spec = parse_source(text)
    folder = _folder_of(spec, text)
    loaded = load_wav2vec2(folder)
    if loaded.sampling_rate != 16_000:
        raise UserError(f"--source {text} takes {loaded.sampling_rate:,} samples per second. Allowed: 16,000.")
    backbone, head, characters = loaded.backbone, loaded.head, None
    if loaded.vocabulary is not None:
        try:
            characters = characters_of(loaded.vocabulary)
        except UserError as error:  # phonemes, for example: the backbone is of use nevertheless
            print(f"--source {text}: its head is not used. {error}")
    head = head if characters else None
    if random_weights or spec.random:
        backbone = Wav2Vec2Backbone(backbone.config, dtype=keras.config.dtype_policy())
        return SpeechSource(text, backbone, None, None, loaded.normalises, _card(spec, folder, initial=True))
    return SpeechSource(text, backbone, head, characters, loaded.normalises, _card(spec, folder))


def _folder_of(spec: SourceSpec, text: str) -> Path:
    """Return the folder of the model, downloaded from the hub if necessary."""
    if spec.kind not in ("bundled", "preset"):
        raise UserError(f"--source is not a speech model. {_ALLOWED} Received: {text!r}.")
    if spec.kind == "bundled":
        folder = BUNDLED_FOLDER / spec.name
    elif spec.name.startswith("hf://"):
        folder = Path(fetch_preset(spec))
    else:
        folder = Path(spec.name).expanduser()
    if not folder.is_dir():
        raise UserError(f"--source is neither a folder nor a model on the hub. {_ALLOWED} Received: {text!r}.")
    try:
        kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return folder  # loading it reports what is wrong
    if kind != "wav2vec2":
        raise UserError(f"--source is not a speech model: it is a {kind or 'preset of KerasHub'}. {_ALLOWED}")
    return folder


def _card(spec: SourceSpec, folder: Path, initial: bool = False) -> dict[str, str]:
    file = folder / "card.json"  # of a model made by this project
    own = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    unknown = "see the model's own page"
    licence = own.get("licence", spec.entry.licence if spec.entry else unknown)
    if initial:
        return {"origin": f"{spec.kind} {spec.name}, initial weights", "licence": licence, "data": "none"}
    return {"origin": f"{spec.kind} {spec.name}", "licence": licence, "data": own.get("data", unknown)}
