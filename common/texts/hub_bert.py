"""A BERT of TF Hub, or another SavedModel that reads token ids, as a text source: with our tokenizer, and trainable."""

from __future__ import annotations

from pathlib import Path

import keras

from common.errors import UserError
from common.hub import SavedModelLayer, check_saved_model, reinitialise
from common.sources.handles import is_handle
from common.sources.hub_cache import resolve_handle
from common.sources.specs import SourceSpec
from common.texts.tokenizers.wordpiece import WordPiece

# What TF Hub agreed on for text encoders, and what we call it.
_INPUTS = {"input_word_ids": "token_ids", "input_mask": "padding_mask", "input_type_ids": "segment_ids"}


def load_hub_bert(spec: SourceSpec, text: str, random_weights: bool) -> tuple[keras.Model, WordPiece, int, int]:
    """Load an encoder that takes word ids, mask and type ids, and its vocabulary.

    TF Hub has a preprocessing SavedModel for each encoder, which needs the ops of TF Text; its vocabulary with our
    WordPiece does the same in any server.

    Args:
        spec: of kind `hub`; `output` says which output holds the hidden states, sequence_output unless said.
        text: what the user typed.
        random_weights: whether to give every weight a fresh initial value.

    Returns:
        (backbone as in TextSource, tokenizer, the tokens that it can read, rows of the table of token vectors).

    Raises:
        UserError: it takes something else, or there is no vocabulary.
    """
    print(f"hub: {spec.name} is a SavedModel, which is code that will run here; load only what you trust", flush=True)
    folder = resolve_handle(spec.name, check_saved_model) if is_handle(spec.name) else Path(spec.name).expanduser()
    layer = SavedModelLayer(
        spec.name, trainable=True, name="bert", signature=spec.options.get("signature"),
        output_key=spec.options.get("output", "sequence_output"),
    )  # fmt: skip
    if set(layer.input_specs) != set(_INPUTS):
        raise UserError(
            f"The SavedModel does not take what a BERT of TF Hub takes: {', '.join(_INPUTS)}. Received: {text}, which "
            f"takes {', '.join(map(str, layer.input_specs)) or 'nothing'}. For pictures: image_classification."
        )
    tokens, positions = (_table(layer, part, text) for part in ("word_embeddings", "position_embedding"))
    vocabulary = _read_vocabulary(folder)
    if random_weights:
        reinitialise(layer)
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in _INPUTS.values()}
    states = layer({theirs: inputs[ours] for theirs, ours in _INPUTS.items()})
    backbone = keras.Model(inputs, {"sequence_output": states}, name="hub_bert")
    tokenize = WordPiece(vocabulary, lowercase=_lowercases(layer, vocabulary))
    return backbone, tokenize, positions.shape[0], tokens.shape[0]


def _table(layer: SavedModelLayer, part: str, text: str) -> keras.Variable:
    found = [variable for variable in layer.module_variables if part in variable.name and len(variable.shape) == 2]
    if len(found) != 1:
        raise UserError(
            f"The SavedModel has no table, or several, whose name says {part}. Received: {text}. Allowed: BERT as TF "
            "Hub has it."
        )
    return found[0]


def _read_vocabulary(folder: Path) -> list[str]:
    file = folder / "assets" / "vocab.txt"
    if not file.is_file():
        raise UserError(
            f"There is no vocabulary beside the encoder. Needed: {file}. Its page on TF Hub names the model that "
            "prepares texts for it; copy assets/vocab.txt from that one."
        )
    lines = file.read_text("utf-8").split("\n")
    return lines[:-1] if not lines[-1] else lines


def _lowercases(layer: SavedModelLayer, vocabulary: list[str]) -> bool:
    """Whether text is lowercased: as the SavedModel says, or else, as its vocabulary has capital letters or not."""
    said = getattr(layer.saved_model, "do_lower_case", None)
    if said is not None:
        return bool(said.numpy())
    return all(token == token.lower() for token in vocabulary if not token.startswith("["))
