"""`sources`, `fetch` and `doctor` on the command line, and the facts of the catalogue."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import keras
import pytest

from common.sources import entries, handles
from common.sources.catalogue import CATALOGUE
from recipes.__main__ import main
from recipes.commands import doctor
from recipes.commands.doctor import (
    Finding,
    check_caches,
    check_disk_and_memory,
    check_gpus,
    check_network,
    check_versions,
)

ROOT = Path(__file__).parents[2]


def test_sources_are_listed(capsys):
    assert main(["sources"]) == 0
    told = capsys.readouterr().out
    for name, entry in CATALOGUE.items():
        assert f"\n{name} " in f"\n{told}" and entry.licence in told
        assert entry.trained_on and f"trained on {entry.trained_on}" in told


def test_sources_of_one_recipe(capsys):
    assert main(["sources", "--for", "image_classification"]) == 0
    told = capsys.readouterr().out
    assert "mobilenet_v2" in told and "minilm" not in told


def test_sources_of_no_recipe(capsys):
    assert main(["sources", "--for", "image_clasification"]) == 2
    assert "image_classification" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_v2_b0"])
def test_parameters_are_those_of_the_network(name):
    entry = CATALOGUE[name]
    application = getattr(keras.applications, entry.source.removeprefix("keras:"))
    assert application(include_top=False, weights=None).count_params() == entry.parameters


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet_mini"])
def test_parameters_of_the_bundled_networks(name):
    from common.images.sources import load_source

    assert load_source(name).backbone.count_params() == CATALOGUE[name].parameters


def test_parameters_of_the_models_of_speech():
    from common.speech.sources import load_speech_source
    from common.speech.wav2vec2.config import Wav2Vec2Config
    from common.speech.wav2vec2.network import Wav2Vec2Backbone

    assert load_speech_source("wav2vec2_mini").backbone.count_params() == CATALOGUE["wav2vec2_mini"].parameters
    base = Wav2Vec2Backbone(Wav2Vec2Config.base())
    assert base.count_params() == CATALOGUE["wav2vec2_base_960h"].parameters


@pytest.mark.network
def test_minilm_can_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = entries.fetch_entry(CATALOGUE["minilm"])
    from common.texts.sources import load_text_source

    source = load_text_source(f"preset:{folder}")
    assert source.backbone.count_params() == CATALOGUE["minilm"].parameters and source.max_length == 512
    assert source.tokenize(["Wörld"]).to_list() == [[2088]]  # `world`; accents are dropped


def test_fetching_what_is_here_already(capsys):
    assert main(["fetch", "bundled:resnet_mini"]) == 0
    assert "--source 'bundled:resnet_mini'" in capsys.readouterr().out


@pytest.mark.parametrize("source", ["nonsense", "keras:ResNet5000", "hub:https://tfhub.dev"])
def test_fetching_a_mistake_is_told_at_once(source, capsys):
    assert main(["fetch", source]) == 2
    assert "Received" in capsys.readouterr().err


# --- doctor -------------------------------------------------------------------------------------------------


def levels(findings) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {"ok": [], "note": [], "wrong": []}
    for finding in findings:
        found[finding.level].append(finding)
        assert finding.level == "ok" or finding.fix or "stand-in" in finding.text
    return found


def test_this_installation_is_well(capsys):
    assert levels(check_versions())["wrong"] == []
    assert levels(check_disk_and_memory())["wrong"] == []
    assert levels(check_gpus())["wrong"] == []


def test_the_whole_of_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(doctor._CHAPTERS, "network", lambda: check_network(0.5))
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "no problems found" in told and "tensorflow 2." in told


@pytest.mark.parametrize(
    ("package", "version", "words", "fix"),
    [
        ("tf-keras", "2.16.0", "tf-keras 2.16.0 with TensorFlow", "pip install 'tf-keras=="),
        ("keras", "2.15.0", "keras 2.15.0; tested with", "pip install -r requirements.txt"),
        ("protobuf", "3.20.0", "requires protobuf", "pip install 'protobuf"),
        ("tensorflow-text", "2.12.1", "tensorflow-text 2.12.1 with TensorFlow", "pip install 'tensorflow-text=="),
        ("keras-hub", None, "keras-hub is not installed", "pip install -r requirements.txt"),
    ],
)
def test_known_bad_pairs_are_found(package, version, words, fix, monkeypatch):
    real = importlib.metadata.version
    said = lambda name: version if name.replace("_", "-") == package else _version_or_none(real, name)  # noqa: E731
    monkeypatch.setattr(doctor, "_version", said)
    wrong = levels(check_versions())["wrong"]
    assert any(words in finding.text and finding.fix.startswith(fix) for finding in wrong), wrong


def _version_or_none(real, name: str) -> str | None:
    try:
        return real(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def test_setuptools_without_pkg_resources_is_no_fault(monkeypatch):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "82.0.1" if name == "setuptools" else real(name))
    found = levels(check_versions())
    assert any("stand-in" in finding.text for finding in found["note"])
    assert not any("setuptools" in finding.text for finding in found["wrong"])


def test_a_gpu_that_tensorflow_does_not_see(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: Some Card (UUID: x)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (wrong,) = levels(check_gpus())["wrong"]
    assert "Some Card" in wrong.text and "tensorflow[and-cuda]" in wrong.fix


def test_caches_that_are_not_whole(monkeypatch, tmp_path):
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    handle = handles.parse_handle("https://tfhub.dev/google/tiny/1")
    handle.folder.mkdir(parents=True)
    (handle.folder / "saved_model.pb").write_bytes(b"changed")
    manifest = {"handle": handle.url, "files": {"saved_model.pb": "0" * 64}}
    handle.manifest.write_text(json.dumps(manifest))
    entry = CATALOGUE["minilm"]
    entry.folder.mkdir(parents=True)
    (entry.folder / "vocab.txt").write_text("half of it")
    wrong = levels(check_caches())["wrong"]
    assert [finding.fix for finding in wrong] == [
        f"python -m recipes fetch 'hub:{handle.url}'", "python -m recipes fetch minilm"
    ]  # fmt: skip


def test_servers_that_cannot_be_reached_are_notes(monkeypatch):
    monkeypatch.setattr(doctor, "_SERVERS", {"http://127.0.0.1:9": "nothing"})
    (note,) = levels(check_network(1.0))["note"]
    assert "cannot be reached" in note.text and "recipes fetch" in note.fix
