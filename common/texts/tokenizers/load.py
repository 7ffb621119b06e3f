"""Load the tokenizer of a preset or Hugging Face folder as one of ours, and check that it matches the weights."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import keras_nlp  # now an alias of keras_hub

from common.errors import UserError
from common.texts.tokenizers.byte_pair import BytePairs
from common.texts.tokenizers.unigram import Unigrams
from common.texts.tokenizers.wordpiece import WordPiece

Tokenizer = WordPiece | BytePairs | Unigrams
_OF_WORD_PIECES = (keras_nlp.models.BertBackbone, keras_nlp.models.DistilBertBackbone)
# The tokens before and after a text, and the padding token. GPT-2 was trained without a start token. Its last token
# attends to all others, so a text ends with the end-of-document token.
_OF_BYTE_PAIRS = {
    keras_nlp.models.RobertaBackbone: ("<s>", "</s>", "<pad>"),
    keras_nlp.models.GPT2Backbone: (None, "<|endoftext|>", "<|endoftext|>"),
}


def load_tokenizer(name: str, backbone: keras.Model, text: str) -> Tokenizer:
    """Load the tokenizer as one of ours, which gives the same ids as the checkpoint's own, in any server.

    Args:
        name: folder or name of the preset.
        backbone: its family determines the kind of tokenizer.
        text: the value of --source.

    Raises:
        UserError: none of ours implements the tokenizer of the folder.
        ValueError: the vocabulary is of another kind.
    """
    special = _OF_BYTE_PAIRS.get(type(backbone))
    if special:
        vocabulary, merges, prefix_space = _read_byte_pairs(name, text)
        start, end, padding = special
        return BytePairs(vocabulary, merges, start=start, end=end, padding=padding, prefix_space=prefix_space)
    if isinstance(backbone, _OF_WORD_PIECES):
        vocabulary, normalisation = _read_word_pieces(name, text)
        return WordPiece(vocabulary, **normalisation)
    if isinstance(backbone, keras_nlp.models.DebertaV3Backbone):
        return Unigrams(_read_unigrams(name, text))
    raise UserError(
        f"The preset is a {type(backbone).__name__}, whose tokenizer does not run in the SavedModel on a plain server. "
        f"Received: {text!r}. Allowed: presets and Hugging Face folders of BERT, DistilBERT, RoBERTa, DeBERTa v3 and "
        "GPT-2, for example minilm or preset:hf://distilbert/distilroberta-base."
    )


def _read_word_pieces(name: str, text: str) -> tuple[list[str], dict[str, bool | None]]:
    """Return the tokens in the order of their ids, and the normalisation of text."""
    folder = Path(name)
    model = read_json(folder / "tokenizer.json").get("model", {})
    if (folder / "vocab.txt").is_file():
        vocabulary = (folder / "vocab.txt").read_text("utf-8").split("\n")
        return vocabulary[:-1] if not vocabulary[-1] else vocabulary, _normalisation(folder)
    if model:  # as written by newer versions of transformers
        _check_kind(model, "WordPiece", text)
        ids = model["vocab"] | _added_tokens(folder)
        named = {number: token for token, number in ids.items()}
        return [named.get(number, "") for number in range(max(named) + 1)], _normalisation(folder)
    tokenizer = keras_nlp.models.Tokenizer.from_preset(name)
    return tokenizer.get_vocabulary(), {"lowercase": tokenizer.lowercase}


def _read_byte_pairs(name: str, text: str) -> tuple[dict[str, int], list[str], bool]:
    """Return the id of each token, the rules, and whether a text begins with a space."""
    folder = Path(name)
    tokenizer, settings = read_json(folder / "tokenizer.json"), read_json(folder / "tokenizer_config.json")
    if "model" in tokenizer:  # the file of this name in a KerasHub preset is different
        model, cuts = tokenizer["model"], tokenizer.get("pre_tokenizer") or {}
        _check_kind(model, "BPE", text)
        others = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
        found = [key for key in others if model.get(key)] + ["normalizer"] * bool(tokenizer.get("normalizer"))
        if cuts.get("type") != "ByteLevel" or not cuts.get("use_regex", True):
            found.append("pre_tokenizer")
        if found:
            raise UserError(
                f"The tokenizer.json in {text} does not tokenize as GPT-2 and RoBERTa do, so ids would be wrong. "
                f"Differences: {', '.join(found)}."
            )
        merges = [rule if isinstance(rule, str) else " ".join(rule) for rule in model["merges"]]
        prefix_space = settings.get("add_prefix_space", cuts["add_prefix_space"])
        return model["vocab"] | _added_tokens(folder), merges, prefix_space
    if (folder / "vocab.json").is_file():
        merges = (folder / "merges.txt").read_text("utf-8").split("\n")
        vocabulary = read_json(folder / "vocab.json") | read_json(folder / "added_tokens.json")
        return vocabulary, merges, settings.get("add_prefix_space", False)
    theirs = keras_nlp.models.Tokenizer.from_preset(name)
    return theirs.vocabulary, theirs.merges, theirs.add_prefix_space


def _read_unigrams(name: str, text: str) -> bytes:
    """Return the SentencePiece model."""
    folder = Path(name)
    settings = read_json(folder / "tokenizer_config.json")
    changed = [key for key in ("do_lower_case", "split_by_punct") if settings.get(key)]
    if changed:
        raise UserError(f"The tokenizer in {text} has {changed[0]} set, which is not supported; ids would be wrong.")
    if (folder / "spm.model").is_file():
        return (folder / "spm.model").read_bytes()
    if "model_type" in read_json(folder / "config.json"):
        raise UserError(
            f"There is no spm.model in {text}, the tokenizer of a DeBERTa; tokenizer.json does not replace it. "
            "Copy it from the model that this one was fine-tuned from, for example microsoft/deberta-v3-small."
        )
    return keras_nlp.models.Tokenizer.from_preset(name).proto


def _check_kind(model: dict, kind: str, text: str) -> None:
    """Refuse a tokenizer that is not of the kind of the model's family."""
    inferred = "BPE" if "merges" in model else "Unigram" if isinstance(model.get("vocab"), list) else "WordPiece"
    found = model.get("type", inferred)  # missing in older files
    if found != kind:
        raise UserError(
            f"The tokenizer.json in {text} is a {found} tokenizer; this model requires {kind}. "
            "Use a folder whose model and tokenizer belong together, or another model, for example minilm."
        )


def _added_tokens(folder: Path) -> dict[str, int]:
    return {token["content"]: token["id"] for token in read_json(folder / "tokenizer.json").get("added_tokens", ())}


def check_vocabulary(tokenize: Tokenizer, rows: int, config: dict, text: str) -> None:
    """Refuse a vocabulary that the weights were not trained with: every id would mean another token.

    Args:
        tokenize: with the vocabulary.
        rows: of the token embedding table.
        config: of a Hugging Face folder.
        text: the value of --source.

    Raises:
        UserError: vocabulary and weights do not match.
    """
    advice = "Use vocabulary files and weights of the same model, in one folder."
    spare = max(127, rows // 100)  # tables are padded to a round number for speed
    if not 0 <= rows - tokenize.size <= spare:
        raise UserError(
            f"The vocabulary in {text} does not match the weights: it has {tokenize.size} tokens, and the embedding "
            f"table has {rows} rows. Allowed: as many rows as tokens, or up to {spare} more. {advice}"
        )
    stated = {"bos_token_id": tokenize.start, "eos_token_id": tokenize.end}
    if tokenize.padding != tokenize.end:  # GPT-2 has no padding token; any will do, as padding is masked
        stated["pad_token_id"] = tokenize.padding
    for key, found in stated.items():
        if found is not None and config.get(key) not in (None, found):
            raise UserError(
                f"The vocabulary in {text} does not match the weights: {key} is {config[key]} in config.json, but "
                f"{found} in the vocabulary. {advice}"
            )


def _normalisation(folder: Path) -> dict[str, bool | None]:
    """Return the normalisation from tokenizer.json or tokenizer_config.json, by default that of uncased BERT."""
    normalizer = read_json(folder / "tokenizer.json").get("normalizer") or {}
    if normalizer.get("type") == "BertNormalizer":
        return {
            "lowercase": normalizer["lowercase"],
            "strip_accents": normalizer["strip_accents"],
            "split_chinese": normalizer["handle_chinese_chars"],
        }
    config = read_json(folder / "tokenizer_config.json")
    return {
        "lowercase": config.get("do_lower_case", True),
        "strip_accents": config.get("strip_accents"),
        "split_chinese": config.get("tokenize_chinese_chars", True),
    }


def read_json(path: Path) -> dict:
    """Return the content of a JSON file, empty if there is no file."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}
