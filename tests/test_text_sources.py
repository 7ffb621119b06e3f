"""Text sources from folders made on the spot: what conversion loses is put right, and what is no text is refused."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from common.catalogue import CATALOGUE
from common.data.texts import tokens_of_batch
from common.errors import UserError
from common.specs import BUNDLED_FOLDER
from common.text_models import build_encoder
from common.text_sources import BertBackbone, load_text_source
from common.wordpiece import WordPiece

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "world", "w", "##orld", "World", "##ing"]
SMALL = {"vocab_size": len(WORDS), "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8}
CONFIG = SMALL | {"model_type": "bert", "intermediate_size": 16, "max_position_embeddings": 12, "hidden_act": "gelu"}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A BERT as the Hugging Face hub holds it, with random weights as large as trained ones."""
    rng, width, inner = np.random.default_rng(0), SMALL["hidden_size"], CONFIG["intermediate_size"]
    shapes = {"embeddings.word_embeddings.weight": (len(WORDS), width), "embeddings.LayerNorm.weight": (width,),
              "embeddings.position_embeddings.weight": (12, width), "embeddings.LayerNorm.bias": (width,),
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
    save_file({name: rng.normal(size=shape).astype("float32") for name, shape in shapes.items()},
              tmp_path / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    return tmp_path


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


@pytest.mark.parametrize("other", [{"hidden_act": "relu"}, {"layer_norm_eps": 0.1}])
def test_what_keras_hub_would_compute_otherwise_is_refused(other, folder):
    (folder / "config.json").write_text(json.dumps(CONFIG | other))
    with pytest.raises(UserError, match=f"has {next(iter(other))}"):
        load_text_source(f"preset:{folder}")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"do_lower_case": True}, [5]),
        ({}, [5]),  # KerasHub's own conversion fails without the word
        ({"do_lower_case": False}, [1]),
        ({"do_lower_case": True, "strip_accents": False}, [1]),
    ],
)
def test_accents_are_dropped_as_the_folder_says(settings, expected, folder):
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    source = load_text_source(f"preset:{folder}")
    assert isinstance(source.tokenize, WordPiece) and source.max_length == 12
    assert source.tokenize(["Wörld"]).to_list() == [expected]


def test_tokenizer_json_has_the_last_word(folder):
    normalizer = {"type": "BertNormalizer", "lowercase": False, "strip_accents": True, "handle_chinese_chars": True}
    (folder / "tokenizer.json").write_text(json.dumps({"normalizer": normalizer}))
    assert load_text_source(f"preset:{folder}").tokenize(["Wörld"]).to_list() == [[8]]


def test_random_weights(folder):
    trained, fresh = load_text_source(f"preset:{folder}"), load_text_source(f"preset:{folder}@random")
    assert fresh.card["data"] == "none" and fresh.backbone.count_params() == trained.backbone.count_params()
    assert not np.array_equal(fresh.backbone.get_weights()[0], trained.backbone.get_weights()[0])


@pytest.mark.parametrize(
    ("text", "words"),
    [("keras:MobileNetV2", "is not a model of text"), ("bundled:resnet_mini", "is not a model of text")],
)
def test_what_is_no_text_is_refused(text, words):
    with pytest.raises(UserError, match=words):
        load_text_source(text)


def test_a_picture_preset_is_refused():
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
        inputs = tokens_of_batch(source.tokenize, tf.constant([b"a joy to read", b"an awful film"]), 16)
        vectors = np.asarray(build_encoder(source)(inputs, training=False))
        assert np.isfinite(vectors).all() and np.abs(vectors[0] - vectors[1]).max() > 1e-2
        assert {v.dtype for v in source.backbone.weights} == {"float32"}  # saved in float16, to be small
        assert source.backbone.count_params() == CATALOGUE[name].parameters
        assert "research" in source.card["licence"]
