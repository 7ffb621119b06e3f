"""wav2vec 2.0 from Hugging Face folders: names of every version, vocabularies, and folders that cannot work.

That the weights land where they belong is shown by tests/speech/test_wav2vec2.py, which compares outputs.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from common.errors import UserError
from common.speech.ctc.characters import Characters, characters_of
from common.speech.wav2vec2 import heads, weights

GOLDEN = Path(__file__).parent / "data/wav2vec2_golden.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    """Outputs of the reference for the network with a norm per channel."""
    with np.load(GOLDEN, allow_pickle=False) as file:
        return {name.removeprefix("base/"): file[name] for name in file.files if name.startswith("base/")}


@pytest.fixture
def folder(golden, tmp_path) -> Path:
    """A Hugging Face folder of it, as transformers writes one."""
    (tmp_path / "config.json").write_text(str(golden["config"]))
    tensors = {name: array for name, array in golden.items() if name.startswith("weights/")}
    write_tensors(tmp_path, {name.removeprefix("weights/"): array for name, array in tensors.items()})
    return tmp_path


def write_tensors(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def renamed(folder: Path, names: dict[str, str]) -> None:
    """Rename parts of the names of the tensors."""
    tensors = load_file(folder / "model.safetensors")
    for old, new in names.items():
        tensors = {name.replace(old, new): array for name, array in tensors.items()}
    write_tensors(folder, tensors)


@pytest.mark.slow
def test_names_of_every_version_load_to_the_same(folder):
    expected = weights.load_wav2vec2(folder).backbone.get_weights()
    assert any("original0" in name for name in load_file(folder / "model.safetensors"))
    for names in (
        {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"},
        {"wav2vec2.": ""},
    ):
        renamed(folder, names)
        for ours, theirs in zip(weights.load_wav2vec2(folder).backbone.get_weights(), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_every_tensor_is_used_or_named(folder):
    loaded = weights.load_wav2vec2(folder)
    tensors = load_file(folder / "model.safetensors")
    places = {name.split(".")[0] for name in loaded.ignored}
    assert places == {"quantizer", "project_q", "project_hid", "projector", "classifier"}
    backbone_and_head = len(loaded.backbone.trainable_weights) + 2
    assert backbone_and_head + len(loaded.ignored) == len(tensors)
    assert loaded.vocabulary is None and loaded.normalises and loaded.sampling_rate == 16000


def test_the_blank_becomes_token_0(folder, golden):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"pad_token_id": 4}))
    (folder / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate("abcd_efgh")}))
    (folder / "added_tokens.json").write_text(json.dumps({"<s>": 9}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False, "sampling_rate": 8000}))
    loaded = weights.load_wav2vec2(folder)
    assert loaded.vocabulary == ["_", *"abcdefgh", "<s>", ""]  # 11 outputs, of which one has no name
    assert not loaded.normalises and loaded.sampling_rate == 8000
    clips = {"samples": golden["samples"].astype(np.float32), "lengths": golden["lengths"]}
    logits = heads.build_recogniser(loaded.backbone, loaded.head)(clips)
    order = [4, 0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    np.testing.assert_allclose(logits, golden["logits"][..., order], atol=1e-4)


def test_a_network_that_never_masks_needs_no_mask_vector(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["wav2vec2.masked_spec_embed"]
    write_tensors(folder, tensors)
    with pytest.raises(UserError, match=r"lacks 1 of the tensors.*masked_spec_embed"):
        weights.load_wav2vec2(folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"mask_time_prob": 0.0}))
    weights.load_wav2vec2(folder)


def test_folders_that_cannot_work_say_why(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())

    def refused(changes: dict | None = None, arrays: dict | None = None) -> str:
        (folder / "config.json").write_text(json.dumps(settings | (changes or {})))
        write_tensors(folder, arrays or tensors)
        with pytest.raises(UserError) as error:
            weights.load_wav2vec2(folder)
        return str(error.value)

    assert "not a wav2vec 2.0" in refused({"model_type": "hubert"}) and "'hubert'" in refused({"model_type": "hubert"})
    assert "add_adapter True" in refused({"add_adapter": True})
    assert "feat_extract_norm must be group or layer. Received: 'batch'" in refused({"feat_extract_norm": "batch"})
    assert "Allowed: (16, 48). Received: (16, 32)" in refused({"hidden_size": 48})
    assert "lacks 16 of the tensors" in refused({"num_hidden_layers": 3})
    assert "does not have: encoder.layers.1.attention.k_proj.bias, " in refused({"num_hidden_layers": 1})
    assert "no output for the blank" in refused({"pad_token_id": 11})
    strange = {"wav2vec2.adapter.weight": np.zeros(1, np.float32)}
    assert "does not have: adapter.weight. Outputs would be wrong" in refused(arrays=tensors | strange)
    (folder / "config.json").write_text(json.dumps(settings))
    write_tensors(folder, tensors)
    (folder / "vocab.json").write_text(json.dumps({"eng": {"a": 1}}))
    with pytest.raises(UserError, match=r"vocab.json .* is not a table of tokens"):
        weights.load_wav2vec2(folder)
    (folder / "vocab.json").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"vocab.json is not a table"):
        weights.load_wav2vec2(folder)
    (folder / "vocab.json").write_text("{")
    with pytest.raises(UserError, match=r"vocab.json is not JSON"):
        weights.load_wav2vec2(folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-5])
    with pytest.raises(UserError, match="damaged or half-written"):
        weights.load_wav2vec2(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no model.safetensors .*pytorch_model.bin.*pickled.*save_pretrained"):
        weights.load_wav2vec2(folder)
    with pytest.raises(UserError, match=r"There is no config.json"):
        weights.load_wav2vec2(tmp_path / "nowhere")


def test_what_is_saved_is_what_was_loaded(folder, tmp_path):
    loaded = weights.load_wav2vec2(folder)
    before = {name: array for name, array in load_file(folder / "model.safetensors").items() if "quantizer" not in name}
    characters = Characters(("", " ", *"abcdefghijklmnopqrstuvwxyz"))
    head = heads.CTCHead(len(characters))
    head.build((None, None, loaded.backbone.config.hidden_size))
    again = weights.save_wav2vec2(tmp_path / "again", loaded.backbone, head, characters.to_json(), normalises=False)
    written = load_file(again / "model.safetensors")
    for name, array in before.items():
        for new, old in (("parametrizations.weight.original0", "weight_g"),
                         ("parametrizations.weight.original1", "weight_v")):  # fmt: skip
            name = name.replace(new, old)
        if name.startswith("wav2vec2."):
            np.testing.assert_array_equal(written[name], array)
    second = weights.load_wav2vec2(again)
    for ours, theirs in zip(second.backbone.get_weights(), loaded.backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(second.head.get_weights(), head.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not second.normalises and characters_of(second.vocabulary) == characters

    half = weights.save_wav2vec2(tmp_path / "half", loaded.backbone, half=True)
    assert load_file(half / "model.safetensors")["feature_projection.projection.weight"].dtype == np.float16
    assert (half / "model.safetensors").stat().st_size < 0.6 * (again / "model.safetensors").stat().st_size
    assert weights.load_wav2vec2(half).head is None
