"""Presets from the Hugging Face hub and from Kaggle, fetched from a server on this machine that plays both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import keras_hub
import pytest

from common.images.sources import load_source
from tests.upstream import Upstream, serve

ROOT = Path(__file__).parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> Path:
    """A small picture preset as KerasHub writes it."""
    folder = tmp_path_factory.mktemp("preset") / "tiny"
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64], input_conv_kernel_sizes=[3], stackwise_num_filters=[64], stackwise_num_blocks=[1],
        stackwise_num_strides=[1], block_type="basic_block", image_shape=(32, 32, 3),
    )  # fmt: skip
    backbone.save_to_preset(folder)
    keras_hub.layers.ImageConverter(image_size=(32, 32), scale=1 / 255).save_to_preset(folder)
    return folder


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with serve() as server:
        yield server


def play_hugging_face(upstream: Upstream, preset: Path) -> None:
    names = [path.relative_to(preset).as_posix() for path in preset.rglob("*") if path.is_file()]
    names.append("pytorch_model.bin")
    listed = [{"rfilename": name} for name in names]
    about = json.dumps({"id": "owner/tiny", "sha": COMMIT, "siblings": listed, "private": False, "gated": False})
    upstream.files["/api/models/owner/tiny/revision/main"] = upstream.files["/api/models/owner/tiny"] = about.encode()
    tree = [{"type": "file", "path": name, "oid": "0" * 40, "size": 1} for name in names]
    upstream.files[f"/api/models/owner/tiny/tree/{COMMIT}"] = json.dumps(tree).encode()
    for name in names:
        content = (preset / name).read_bytes() if (preset / name).is_file() else b"a pickle"
        upstream.files[f"/owner/tiny/resolve/{COMMIT}/{name}"] = content
    upstream.headers = {"X-Repo-Commit": COMMIT}


def play_kaggle(upstream: Upstream, preset: Path) -> None:
    names = [path.relative_to(preset).as_posix() for path in preset.rglob("*") if path.is_file()]
    service = "/v1/models.ModelApiService"
    listed = json.dumps({"files": [{"name": name} for name in names], "nextPageToken": ""}).encode()
    upstream.calls[f"{service}/ListModelInstanceVersionFiles"] = lambda posted: listed
    upstream.calls[f"{service}/DownloadModelInstanceVersion"] = lambda posted: (preset / posted["path"]).read_bytes()


# The libraries have no setting for the address of Kaggle; nothing else of them is replaced.
PROGRAM = """
import os, sys
from kagglesdk import kaggle_env
for environment in kaggle_env._env_to_endpoint:
    kaggle_env._env_to_endpoint[environment] = os.environ["HF_ENDPOINT"]
from recipes.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def fetch(source: str, upstream: Upstream, tmp_path: Path) -> subprocess.CompletedProcess:
    own = {"HF_ENDPOINT": upstream.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1",
           "KAGGLEHUB_CACHE": str(tmp_path / "kaggle"), "HF_HUB_DISABLE_TELEMETRY": "1"}  # fmt: skip
    command = [sys.executable, "-c", PROGRAM, "fetch", source]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("play", "source"),
    [(play_hugging_face, "preset:hf://owner/tiny"), (play_kaggle, "preset:kaggle://owner/tiny/keras/small/1")],
)
def test_a_preset_is_fetched_and_loads_without_network(play, source, upstream, preset, tmp_path):
    play(upstream, preset)
    finished = fetch(source, upstream, tmp_path)
    assert finished.returncode == 0, finished.stderr
    folder = Path(finished.stdout.split("--source 'preset:")[1].split("'")[0])
    assert folder.is_relative_to(tmp_path) and not list(folder.rglob("*.bin"))
    assert load_source(f"preset:{folder}").fingerprint() == load_source(f"preset:{preset}").fingerprint()
    asked = len(upstream.asked)
    assert "pytorch_model.bin" not in str(upstream.asked)
    upstream.files.clear()
    upstream.calls.clear()
    again = fetch(source, upstream, tmp_path)
    assert again.returncode == 0 and str(folder) in again.stdout, again.stderr
    assert asked


@pytest.mark.parametrize(
    "source",
    ["preset:hf://owner/none", pytest.param("preset:kaggle://owner/none/keras/small/1", marks=pytest.mark.slow)],
)
def test_what_is_not_there_is_told(source, upstream, tmp_path):
    finished = fetch(source, upstream, tmp_path)
    assert finished.returncode == 2 and "Traceback" not in finished.stderr, finished.stderr
    assert "The preset cannot be loaded" in finished.stderr and source in finished.stderr
