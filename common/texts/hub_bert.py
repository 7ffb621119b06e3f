"""A BERT from TF Hub, or another SavedModel that takes token ids, as a trainable text source with our tokenizer."""

from __future__ import annotations

from pathlib import Path

import keras

from common.errors import UserError
from common.hub import SavedModelLayer, check_saved_model, reinitialise
from common.sources.handles import is_handle
from common.sources.hub_cache import resolve_handle
from common.sources.specs import SourceSpec
from common.texts.tokenizers.wordpiece import WordPiece

# TF Hub's input names for text encoders, and ours.
_INPUTS = {"input_word_ids": "token_ids", "input_mask": "padding_mask", "input_type_ids": "segment_ids"}


def load_hub_bert(spec: SourceSpec, text: str, random_weights: bool) -> tuple[keras.Model, WordPiece, int, int]:
    """Load an encoder that takes word ids, mask and type ids, and its vocabulary.

    TF Hub has a preprocessing SavedModel for each encoder, which needs the ops of TF Text; our WordPiece with its
    vocabulary does the same in any server.

    Args:
        spec: of kind `hub`; `output` names the output of the hidden states, sequence_output by default.
        text: what the user typed.
        random_weights: whether to give every weight a fresh initial value.

    Returns:
        (backbone as in TextSource, tokenizer, maximum number of tokens, rows of the token embedding table).

    Raises:
        UserError: its inputs differ, or there is no vocabulary.
    """
    print(f"hub: {spec.name} is a SavedModel, that is, code that runs here; load only what you trust", flush=True)
    folder = resolve_handle(spec.name, check_saved_model) if is_handle(spec.name) else Path(spec.name).expanduser()
    layer = SavedModelLayer(
        spec.name, trainable=True, name="bert", signature=spec.options.get("signature"),
        output_key=spec.options.get("output", "sequence_output"),
    )  # fmt: skip
    if set(layer.input_specs) != set(_INPUTS):
        raise UserError(
            f"The SavedModel must take the inputs of a BERT from TF Hub: {', '.join(_INPUTS)}. Received: {text}, which "
            f"takes {', '.join(map(str, layer.input_specs)) or 'nothing'}. For images: image_classification."
        )
    tokens, positions = (_table(layer, name, text) for name in ("word_embeddings", "position_embedding"))
    vocabulary = _read_vocabulary(folder)
    if random_weights:
        reinitialise(layer)
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in _INPUTS.values()}
    states = layer({theirs: inputs[ours] for theirs, ours in _INPUTS.items()})
    backbone = keras.Model(inputs, {"sequence_output": states}, name="hub_bert")
    tokenize = WordPiece(vocabulary, lowercase=_lowercases(layer, vocabulary))
    return backbone, tokenize, positions.shape[0], tokens.shape[0]


def _table(layer: SavedModelLayer, name: str, text: str) -> keras.Variable:
    found = [variable for variable in layer.module_variables if name in variable.name and len(variable.shape) == 2]
    if len(found) != 1:
        raise UserError(
            f"The SavedModel must have exactly one table named {name}, as a BERT from TF Hub has. It has {len(found)}. "
            f"Received: {text}."
        )
    return found[0]


def _read_vocabulary(folder: Path) -> list[str]:
    file = folder / "assets" / "vocab.txt"
    if not file.is_file():
        raise UserError(
            f"The encoder has no vocabulary. Required: {file}. Its page on TF Hub names its preprocessing model; copy "
            "assets/vocab.txt from that one."
        )
    lines = file.read_text("utf-8").split("\n")
    return lines[:-1] if not lines[-1] else lines


def _lowercases(layer: SavedModelLayer, vocabulary: list[str]) -> bool:
    """Return whether text is lowercased: as the SavedModel states, else if its vocabulary has no capital letters."""
    stated = getattr(layer.saved_model, "do_lower_case", None)
    if stated is not None:
        return bool(stated.numpy())
    return all(token == token.lower() for token in vocabulary if not token.startswith("["))
