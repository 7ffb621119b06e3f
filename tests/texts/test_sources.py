"""Text sources from generated folders: conversion is corrected, and what does not match is refused."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file, save_file

from common.errors import UserError
from common.sources.catalogue import CATALOGUE
from common.sources.specs import BUNDLED_FOLDER
from common.texts import export
from common.texts.batches import TextReader, run_on_tokens
from common.texts.models import build_classifier, build_encoder, unfreeze
from common.texts.sources import BertBackbone, load_text_source
from common.texts.tokenizers.byte_pair import _letters_of_bytes
from common.texts.tokenizers.wordpiece import WordPiece
from tests.texts.test_unigram import train as train_unigrams

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "world", "w", "##orld", "World", "##ing"]
SMALL = {"vocab_size": len(WORDS), "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8}
CONFIG = SMALL | {"model_type": "bert", "intermediate_size": 16, "max_position_embeddings": 12, "hidden_act": "gelu"}
ROBERTA = CONFIG | {"model_type": "roberta", "max_position_embeddings": 14, "layer_norm_eps": 1e-5, "pad_token_id": 1,
                    "hidden_dropout_prob": 0.1, "bos_token_id": 0, "eos_token_id": 2}  # fmt: skip
GPT_2 = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 12, "resid_pdrop": 0.1,
         "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    """A BERT as the Hugging Face hub holds it, with random weights as large as trained ones."""
    write_weights(tmp_path, bert_shapes(len(WORDS), positions=12))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    return tmp_path


@pytest.fixture
def roberta(tmp_path) -> Path:
    """A RoBERTa in the files used before tokenizer.json."""
    vocabulary = write_byte_pairs(tmp_path, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    write_weights(tmp_path, bert_shapes(len(vocabulary), positions=14))
    (tmp_path / "config.json").write_text(json.dumps(ROBERTA | {"vocab_size": len(vocabulary)}))
    return tmp_path


@pytest.fixture
def gpt_2(tmp_path) -> Path:
    """A GPT-2, likewise."""
    vocabulary = write_byte_pairs(tmp_path, ["<|endoftext|>"])
    width = 8
    shapes = {"wte.weight": (len(vocabulary), width), "wpe.weight": (12, width)}
    shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    for number in range(2):
        for name, out, into in [("attn.c_attn", 3, 1), ("attn.c_proj", 1, 1), ("mlp.c_fc", 4, 1), ("mlp.c_proj", 1, 4)]:
            shapes |= {f"h.{number}.{name}.weight": (into * width, out * width)}
            shapes |= {f"h.{number}.{name}.bias": (out * width,)}
        shapes |= {f"h.{number}.{name}.{part}": (width,) for name in ("ln_1", "ln_2") for part in ("weight", "bias")}
    write_weights(tmp_path, shapes)
    (tmp_path / "config.json").write_text(json.dumps(GPT_2 | {"vocab_size": len(vocabulary)}))
    return tmp_path


def bert_shapes(tokens: int, positions: int) -> dict[str, tuple[int, ...]]:
    width, inner = SMALL["hidden_size"], CONFIG["intermediate_size"]
    shapes = {"embeddings.word_embeddings.weight": (tokens, width), "embeddings.LayerNorm.weight": (width,),
              "embeddings.position_embeddings.weight": (positions, width), "embeddings.LayerNorm.bias": (width,),
              "embeddings.token_type_embeddings.weight": (2, width), "pooler.dense.weight": (width, width),
              "pooler.dense.bias": (width,)}  # fmt: skip
    for number in range(SMALL["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= {f"{layer}.{name}.weight": (width, width), f"{layer}.{name}.bias": (width,)}
        shapes |= {f"{layer}.intermediate.dense.weight": (inner, width), f"{layer}.intermediate.dense.bias": (inner,)}
        shapes |= {f"{layer}.output.dense.weight": (width, inner), f"{layer}.output.dense.bias": (width,)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{layer}.{name}.weight": (width,), f"{layer}.{name}.bias": (width,)}
    return shapes


def write_weights(folder: Path, shapes: dict[str, tuple[int, ...]], prefix: str = "") -> None:
    rng = np.random.default_rng(0)
    weights = {prefix + name: rng.normal(size=shape).astype("float32") for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def byte_pairs(special: list[str]) -> tuple[dict[str, int], list[str]]:
    """A vocabulary of every byte and two rules: token ids and rules."""
    rules = ["w o", "\u0120 wo"]  # U+0120 stands for a space
    tokens = [*special, *_letters_of_bytes(), *(rule.replace(" ", "") for rule in rules)]
    return {token: number for number, token in enumerate(tokens)}, rules


def write_byte_pairs(folder: Path, special: list[str]) -> dict[str, int]:
    vocabulary, rules = byte_pairs(special)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *rules, ""]), "utf-8")
    return vocabulary


def change(file: Path, **values) -> None:
    """Set some entries of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values))


def test_bert_has_its_own_gelu_also_in_a_file(folder, tmp_path):
    source = load_text_source(f"preset:{folder}")
    inputs = {"token_ids": np.array([[2, 5, 3]]), "padding_mask": np.ones((1, 3)), "segment_ids": np.zeros((1, 3))}
    ours = np.asarray(source.backbone(inputs)["sequence_output"])
    theirs = np.asarray(keras_hub.models.Backbone.from_preset(str(folder))(inputs)["sequence_output"])
    assert isinstance(source.backbone, BertBackbone) and np.abs(ours - theirs).max() > 1e-4
    source.backbone.save(tmp_path / "backbone.keras")
    again = keras.models.load_model(tmp_path / "backbone.keras")
    np.testing.assert_array_equal(again(inputs)["sequence_output"], ours)


def test_another_activation_is_left_alone(folder):
    (folder / "config.json").write_text(json.dumps(CONFIG | {"hidden_act": "gelu_new"}))
    assert not isinstance(load_text_source(f"preset:{folder}").backbone, BertBackbone)


@pytest.mark.parametrize(
    ("family", "other"),
    [
        ("folder", {"hidden_act": "relu"}),
        ("folder", {"layer_norm_eps": 0.1}),
        ("folder", {"position_embedding_type": "relative_key"}),
        ("roberta", {"layer_norm_eps": 1e-12}),  # what transformers takes unless told
        ("roberta", {"pad_token_id": 0}),
        ("roberta", {"is_decoder": True}),
        ("gpt_2", {"activation_function": "relu"}),
        ("gpt_2", {"n_inner": 16}),
        ("gpt_2", {"scale_attn_by_inverse_layer_idx": True}),
    ],
)
def test_what_keras_hub_would_compute_otherwise_is_refused(family, other, request):
    folder = request.getfixturevalue(family)
    change(folder / "config.json", **other)
    with pytest.raises(UserError, match=f"has {next(iter(other))}"):
        load_text_source(f"preset:{folder}")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"do_lower_case": True}, [5]),
        ({}, [5]),  # KerasHub's own conversion fails without the setting
        ({"do_lower_case": False}, [1]),
        ({"do_lower_case": True, "strip_accents": False}, [1]),
    ],
)
def test_accents_are_dropped_as_the_folder_states(settings, expected, folder):
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    source = load_text_source(f"preset:{folder}")
    assert isinstance(source.tokenize, WordPiece) and source.max_length == 12
    assert source.tokenize(["Wörld"]).to_list() == [expected]


def test_tokenizer_json_takes_precedence(folder):
    normalizer = {"type": "BertNormalizer", "lowercase": False, "strip_accents": True, "handle_chinese_chars": True}
    (folder / "tokenizer.json").write_text(json.dumps({"normalizer": normalizer}))
    assert load_text_source(f"preset:{folder}").tokenize(["Wörld"]).to_list() == [[8]]


def test_roberta_loads_as_transformers_saves_it(roberta):
    source = load_text_source(f"preset:{roberta}")
    special = [source.tokenize.start, source.tokenize.end, source.tokenize.padding]
    assert (special, source.max_length) == ([0, 2, 1], 12)
    word = len(source.tokenize.vocabulary()) - 1
    assert source.tokenize(["w wo", "</s>"]).to_list()[0][1:] == [word]  # a blank and `wo`
    assert 2 not in source.tokenize(["</s>"]).to_list()[0]
    weights = load_file(roberta / "model.safetensors")
    positions = weights["embeddings.position_embeddings.weight"][2:]  # KerasHub ignores the token type
    expected = positions + weights["embeddings.token_type_embeddings.weight"][0]
    np.testing.assert_array_equal(source.backbone.embeddings.position_embedding.position_embeddings, expected)
    # The same with the names of a model that has a head, which are the only ones that KerasHub finds.
    with_head = {f"roberta.{name}": value for name, value in weights.items()}
    save_file(with_head, roberta / "model.safetensors", metadata={"format": "pt"})
    for one, other in zip(load_text_source(f"preset:{roberta}").backbone.weights, source.backbone.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_gpt_2_ends_a_text_with_its_only_special_token(gpt_2):
    source = load_text_source(f"preset:{gpt_2}")
    assert (source.tokenize.start, source.tokenize.end, source.max_length) == (None, 0, 12)
    inputs, _ = TextReader(source.tokenize, 4).batch(tf.constant(["w", "w wo wo wo wo"]))
    assert inputs["token_ids"].numpy()[:, -1].tolist() == [0, 0] and inputs["padding_mask"].numpy().sum() == 2 + 4
    # The embedding of a text is the state of its last token, regardless of padding.
    encoder = build_encoder(source)
    whole = source.backbone(inputs)
    expected = [np.asarray(whole)[0, 1], np.asarray(whole)[1, 3]]
    np.testing.assert_allclose(encoder(inputs), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "in_file", "expected"),
    [({}, True, True), ({"add_prefix_space": False}, True, False), ({}, False, False)],
)
def test_byte_pairs_may_stand_in_one_file(settings, in_file, expected, gpt_2):
    before = load_text_source(f"preset:{gpt_2}").tokenize(["wo wo"]).to_list()
    write_tokenizer_json(gpt_2, add_prefix_space=in_file)
    (gpt_2 / "tokenizer_config.json").write_text(json.dumps(settings))
    (gpt_2 / "vocab.json").unlink()
    (gpt_2 / "merges.txt").unlink()
    after = load_text_source(f"preset:{gpt_2}").tokenize(["wo wo"]).to_list()
    assert after == ([[before[0][1]] * 2] if expected else before)


def write_tokenizer_json(folder: Path, add_prefix_space: bool = False) -> None:
    vocabulary, rules = byte_pairs(["<|endoftext|>"])
    end = {"content": "<|endoftext|>", "id": vocabulary.pop("<|endoftext|>")}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [rule.split(" ") for rule in rules]}
    cuts = {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "use_regex": True}
    content = {"model": model, "added_tokens": [end], "pre_tokenizer": cuts, "normalizer": None}
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "does not tokenize as GPT-2.* normalizer"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "does not tokenize as GPT-2.* pre_tokenizer"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": [], "end_of_word_suffix": "</w>"}}, "end_of_word_suffix"),
        ({"model": {"type": "Unigram", "vocab": []}}, "is a Unigram tokenizer; this model requires BPE"),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(other, words, gpt_2):
    write_tokenizer_json(gpt_2)
    change(gpt_2 / "tokenizer.json", **other)
    with pytest.raises(UserError, match=words):
        load_text_source(f"preset:{gpt_2}")


DEBERTA = SMALL | {"model_type": "deberta-v2", "intermediate_size": 16, "max_position_embeddings": 12,
                   "position_buckets": 4}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "settings", "words"),
    [
        ({}, {}, "There is no spm.model"),  # tokenizer.json alone normalises text in another way
        ({}, {"split_by_punct": True}, "has split_by_punct set"),
        ({"share_att_key": False}, {}, "has share_att_key False"),
        ({"type_vocab_size": 2}, {}, "has type_vocab_size 2"),
    ],
)
def test_a_deberta_that_would_be_wrong_is_refused(config, settings, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(DEBERTA | config))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=words):
        load_text_source(f"preset:{tmp_path}@random")


def test_a_family_whose_tokenizer_needs_other_ops_is_refused(tmp_path):
    electra = keras_hub.models.ElectraBackbone(10, 1, 2, 8, 8, 16, max_sequence_length=12)
    electra.save_to_preset(tmp_path)
    with pytest.raises(UserError, match="ElectraBackbone, whose tokenizer does not run"):
        load_text_source(f"preset:{tmp_path}")


@pytest.mark.parametrize("words", [["extra"], [f"w{number}" for number in range(200)]])
def test_more_tokens_than_embeddings_are_refused(words, folder):
    (folder / "vocab.txt").write_text("\n".join(WORDS + words) + "\n", "utf-8")
    with pytest.raises(UserError, match=rf"it has {10 + len(words)} tokens, and the embedding table has 10 rows"):
        load_text_source(f"preset:{folder}")


def test_far_fewer_tokens_than_embeddings_are_refused(folder):
    for rows, fits in ((10 + 127, True), (10 + 128, False)):  # a table may be padded
        write_weights(folder, bert_shapes(rows, positions=12))
        change(folder / "config.json", vocab_size=rows)
        if fits:
            assert load_text_source(f"preset:{folder}").backbone.vocabulary_size == rows
        else:
            with pytest.raises(UserError, match=r"does not match the weights: it has 10 tokens.*138 rows"):
                load_text_source(f"preset:{folder}")


@pytest.mark.parametrize(
    ("family", "stated"),
    [("folder", {"pad_token_id": 4}), ("roberta", {"eos_token_id": 3}), ("gpt_2", {"eos_token_id": 50256})],
)
def test_special_tokens_with_other_numbers_are_refused(family, stated, request):
    folder = request.getfixturevalue(family)
    change(folder / "config.json", **stated)
    name, number = next(iter(stated.items()))
    with pytest.raises(UserError, match=rf"{name} is {number} in config\.json, but \d+ in the vocabulary"):
        load_text_source(f"preset:{folder}")


def test_the_vocabulary_of_another_family_is_refused(gpt_2):
    config = ROBERTA | {"vocab_size": 259}
    (gpt_2 / "config.json").write_text(json.dumps(config))
    write_weights(gpt_2, bert_shapes(259, positions=14))
    with pytest.raises(UserError, match="The vocabulary has no <s>, </s>, <pad>"):
        load_text_source(f"preset:{gpt_2}")


NETWORK = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16, "max_sequence_length": 16}


def preset_of(family: str, folder: Path) -> Path:
    """Write a small network of random weights and its tokenizer as KerasHub saves a preset."""
    models, options = keras_hub.models, dict(NETWORK)
    if family in ("Bert", "DistilBert"):
        tokenizer = getattr(models, f"{family}Tokenizer")(WORDS, lowercase=True)
    elif family == "DebertaV3":
        tokenizer = models.DebertaV3Tokenizer(train_unigrams(["the world wide web, win two"] * 20))
        options["bucket_size"] = 4
    else:
        special = ["<s>", "<pad>", "</s>", "<mask>"] if family == "Roberta" else ["<|endoftext|>"]
        tokenizer = getattr(models, f"{family}Tokenizer")(*byte_pairs(special))
    backbone = getattr(models, f"{family}Backbone")(tokenizer.vocabulary_size(), **options)
    for weight in backbone.weights:  # as large as trained ones
        weight.assign_add(keras.random.normal(weight.shape, stddev=0.5, seed=0))
    backbone.save_to_preset(folder)
    tokenizer.save_to_preset(folder)
    return folder


@pytest.mark.slow  # the bundled BERT is served by the quick run of its recipe
@pytest.mark.parametrize("family", ["Bert", "DistilBert", "Roberta", "DebertaV3", "GPT2"])
def test_a_preset_of_each_family_is_served_as_it_was_trained(family, tmp_path):
    source = load_text_source(f"preset:{preset_of(family, tmp_path / 'preset')}")
    model = build_classifier(build_encoder(source), 2, dropout=0.1)
    unfreeze(model, source.backbone, tables=True)
    model.compile("adam", "categorical_crossentropy", jit_compile=False)
    reader = TextReader(source.tokenize, source.max_length)
    texts = ["world", "Wörld wing", "", "w " * 40, "don't  wo\n日本 😀", "[SEP] </s> <|endoftext|>"]
    tokens = reader.read(texts)
    model.train_on_batch(tokens.batch(range(6)), np.eye(2)[[0, 1, 0, 1, 0, 1]])
    probabilities = run_on_tokens(model, tokens)
    assert len(np.unique(probabilities[:, 0].round(5))) == len(texts)  # all outputs differ
    # The length of the padding does not matter.
    alone = np.concatenate([run_on_tokens(model, reader.read([text])) for text in texts])
    np.testing.assert_allclose(alone, probabilities, atol=1e-5)

    version = export.export_text_classifier(model, reader, tmp_path / "served", ["a", "b"], examples=texts[:1])
    proof = export.prove_text_classifier(version, texts, probabilities, ["a", "b"])
    assert proof["passed"], proof


def test_random_weights(folder):
    trained, fresh = load_text_source(f"preset:{folder}"), load_text_source(f"preset:{folder}@random")
    assert fresh.card["data"] == "none" and fresh.backbone.count_params() == trained.backbone.count_params()
    assert not np.array_equal(fresh.backbone.get_weights()[0], trained.backbone.get_weights()[0])


@pytest.mark.parametrize(
    ("text", "words"),
    [("keras:MobileNetV2", "is not a text model"), ("bundled:resnet_mini", "is not a text model")],
)
def test_other_models_are_refused(text, words):
    with pytest.raises(UserError, match=words):
        load_text_source(text)


def test_an_image_preset_is_refused():
    with pytest.raises(UserError, match=r"Received: '?preset:"):
        load_text_source(f"preset:{BUNDLED_FOLDER / 'resnet_mini'}")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_damaged_folders_are_refused(file, folder):
    (folder / file).write_bytes((folder / file).read_bytes()[:50])
    with pytest.raises(UserError, match="The preset cannot be loaded"):
        load_text_source(f"preset:{folder}")


def test_bundled_encoders_load_with_their_cards():
    names = sorted(path.parent.name for path in BUNDLED_FOLDER.glob("*/vocab.txt"))
    assert names
    for name in names:
        source = load_text_source(f"bundled:{name}")
        inputs, _ = TextReader(source.tokenize, 16).batch(tf.constant([b"a joy to read", b"an awful film"]))
        vectors = np.asarray(build_encoder(source)(inputs, training=False))
        assert np.isfinite(vectors).all() and np.abs(vectors[0] - vectors[1]).max() > 1e-2
        assert {v.dtype for v in source.backbone.weights} == {"float32"}  # saved in float16, to be small
        assert source.backbone.count_params() == CATALOGUE[name].parameters
        assert source.card["licence"] == "Apache-2.0"
