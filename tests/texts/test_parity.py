"""Converted Hugging Face folders against the reference implementation: pip install -r requirements-parity.txt."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest

from common.errors import UserError
from common.images.sources import load_source
from common.texts.sources import load_text_source
from common.texts.tokenizers.byte_pair import BytePairs
from common.texts.tokenizers.load import _read_byte_pairs
from common.texts.tokenizers.unigram import Unigrams
from tests.texts.test_unigram import train as train_unigrams

torch = pytest.importorskip("torch", reason="pip install -r requirements-parity.txt")
transformers = pytest.importorskip("transformers", reason="pip install -r requirements-parity.txt")

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}


def lively(model):
    """Set weights as large as trained ones: with the initial 0.02, differences would vanish."""
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        with torch.no_grad():
            weight.normal_(0, 0.3)
            if "norm" in name.lower() and name.endswith("weight"):
                weight.add_(1.0)
    return model.eval()


def tokens(count: int = 50, length: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.arange(length)[None] < np.array([[length], [5]])
    return rng.integers(5, count, (2, length)) * mask, mask.astype(int)


def hidden_states(reference, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return reference(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()


def write_vocabulary(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(45))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))


def test_bert(tmp_path):
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=16, **SMALL)
    reference = lively(transformers.BertModel(config))
    reference.save_pretrained(tmp_path)
    write_vocabulary(tmp_path)
    ids, mask = tokens()
    expected = hidden_states(reference, ids, mask)
    inputs = {"token_ids": ids, "padding_mask": mask, "segment_ids": np.zeros_like(ids)}
    source = load_text_source(f"preset:{tmp_path}")
    answers = np.asarray(source.backbone(inputs)["sequence_output"])
    np.testing.assert_allclose(answers[mask == 1], expected[mask == 1], atol=2e-5)
    # The correction matters: the error of KerasHub's own conversion is more than ten times larger.
    plain = keras_hub.models.Backbone.from_preset(str(tmp_path))
    assert np.abs(np.asarray(plain(inputs)["sequence_output"]) - expected)[mask == 1].max() > 2e-4
    # and it stays corrected in a file
    source.backbone.save(tmp_path / "backbone.keras")
    again = keras.models.load_model(tmp_path / "backbone.keras")
    np.testing.assert_array_equal(again(inputs)["sequence_output"], answers)


def test_bert_as_a_new_transformers_saves_it(tmp_path):
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=16, **SMALL)
    lively(transformers.BertModel(config)).save_pretrained(tmp_path)
    write_vocabulary(tmp_path)
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path, strip_accents=False)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").unlink()  # it is in tokenizer.json only
    ours = load_text_source(f"preset:{tmp_path}").tokenize
    texts = ["w1 W12", "w3w4 wörld", "[SEP]"]
    ids = [theirs.convert_tokens_to_ids(theirs.tokenize(text, split_special_tokens=True)) for text in texts]
    assert ours(texts).to_list() == ids
    assert ours.vocabulary()[:6] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "w0"]


@pytest.mark.parametrize("kind", ["DistilBertForMaskedLM", "DistilBertModel"])  # as published, and as sentence encoder
def test_distil_bert(kind, tmp_path):
    config = transformers.DistilBertConfig(
        vocab_size=50, max_position_embeddings=16, dim=32, n_layers=3, n_heads=4, hidden_dim=64
    )
    whole = lively(getattr(transformers, kind)(config))
    whole.save_pretrained(tmp_path)
    write_vocabulary(tmp_path)
    ids, mask = tokens()
    expected = hidden_states(getattr(whole, "distilbert", whole), ids, mask)
    answers = np.asarray(load_text_source(f"preset:{tmp_path}").backbone({"token_ids": ids, "padding_mask": mask}))
    np.testing.assert_allclose(answers[mask == 1], expected[mask == 1], atol=2e-5)


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "GPT2Model"])
def test_gpt_2(kind, tmp_path):
    count = write_byte_pairs(tmp_path, "GPT2Tokenizer", ["<|endoftext|>"])
    ids_of_ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(
        vocab_size=count, n_positions=16, n_embd=32, n_layer=3, n_head=4, resid_pdrop=0.0, **ids_of_ends
    )
    whole = lively(getattr(transformers, kind)(config))
    whole.save_pretrained(tmp_path)
    ids, mask = tokens(count)
    expected = hidden_states(getattr(whole, "transformer", whole), ids, mask)
    source = load_text_source(f"preset:{tmp_path}")
    answers = np.asarray(source.backbone({"token_ids": ids, "padding_mask": mask}))
    np.testing.assert_allclose(answers[mask == 1], expected[mask == 1], atol=2e-5)
    assert (source.tokenize.start, source.tokenize.end, source.max_length) == (None, 0, 16)


@pytest.mark.parametrize("kind", ["RobertaForMaskedLM", "RobertaModel"])
def test_roberta(kind, tmp_path):
    count = write_byte_pairs(tmp_path, "RobertaTokenizer", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    config = transformers.RobertaConfig(
        vocab_size=count, max_position_embeddings=18, layer_norm_eps=1e-5, type_vocab_size=1, **SMALL
    )
    whole = lively(getattr(transformers, kind)(config))
    whole.save_pretrained(tmp_path)
    ids, mask = tokens(count)
    ids = np.where(mask, ids, 1)  # the reference infers the end of a text from the padding
    expected = hidden_states(getattr(whole, "roberta", whole), ids, mask)
    source = load_text_source(f"preset:{tmp_path}")
    assert source.max_length == 16
    answers = np.asarray(source.backbone({"token_ids": ids, "padding_mask": mask}))
    np.testing.assert_allclose(answers[mask == 1], expected[mask == 1], atol=2e-5)


@pytest.mark.parametrize("kind", ["DebertaV2ForMaskedLM", "DebertaV2Model"])
def test_deberta(kind, tmp_path):
    (tmp_path / "spm.model").write_bytes(train_unigrams(["some words to train on"] * 20, vocab_size=40))
    config = transformers.DebertaV2Config(
        vocab_size=50, max_position_embeddings=16, position_buckets=8, relative_attention=True, share_att_key=True,
        norm_rel_ebd="layer_norm", pos_att_type="p2c|c2p", position_biased_input=False, type_vocab_size=0, **SMALL
    )  # fmt: skip
    whole = lively(getattr(transformers, kind)(config))
    whole.save_pretrained(tmp_path)
    ids, mask = tokens()
    expected = hidden_states(getattr(whole, "deberta", whole), ids, mask)
    source = load_text_source(f"preset:{tmp_path}")
    assert isinstance(source.tokenize, Unigrams) and source.max_length == 16
    answers = np.asarray(source.backbone({"token_ids": ids, "padding_mask": mask}))
    np.testing.assert_allclose(answers[mask == 1], expected[mask == 1], atol=2e-5)


def write_byte_pairs(folder: Path, kind: str, special: list[str]) -> int:
    """Write a tokenizer as transformers does today, check that ours gives its ids, and return its size."""
    import tokenizers

    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(["some words to train on"] * 20, vocab_size=300, special_tokens=special)
    trained.save_model(str(folder))
    theirs = getattr(transformers, kind).from_pretrained(folder)
    vocabulary, merges, _ = _read_byte_pairs(str(folder), "")
    (folder / "vocab.json").unlink()
    (folder / "merges.txt").unlink()
    theirs.save_pretrained(folder)
    again, rules, prefix_space = _read_byte_pairs(str(folder), "")
    assert (again, rules, prefix_space) == (vocabulary, merges[1:-1], False)  # without the line of the version
    texts = ["some words, don't  train\n\non", " é日本😀", "12 wörds"]
    ours = BytePairs(again, rules, start=None, end=special[0], padding=special[0])
    assert ours(texts).to_list() == [theirs.encode(text, add_special_tokens=False) for text in texts]
    return len(theirs)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-3])
def test_vit(epsilon, tmp_path):
    config = transformers.ViTConfig(image_size=32, patch_size=8, layer_norm_eps=epsilon, **SMALL)
    whole = lively(transformers.ViTForImageClassification(config))
    whole.save_pretrained(tmp_path)
    reference = whole.vit
    settings = {"size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {"rescale_factor": 1 / 255}))
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    prepared = (pixels / 255 - settings["image_mean"]) / settings["image_std"]
    with torch.no_grad():
        expected = reference(
            torch.tensor(prepared.transpose(0, 3, 1, 2), dtype=torch.float32)
        ).last_hidden_state.numpy()
    source = load_source(f"preset:{tmp_path}")
    assert source.image_size == (32, 32)
    np.testing.assert_allclose(source.extractor(pixels), expected.mean(1), atol=2e-5)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="a guess could give wrong predictions"):
        load_source(f"preset:{tmp_path}")
