"""Recordings to a small wav2vec 2.0: what a run writes, with transcripts and without, and a run that was stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from common.speech.dataset import SYNTHETIC
from common.speech.sources import load_speech_source
from common.training import EpochLines
from recipes.__main__ import main

# The demo words, two epochs of a tiny network: seconds, not results.
QUICK = ["--limit", "40", "--epochs", "2", "--width", "48", "--layers", "1", "--channels", "16"]


def run(out: Path, *more: str) -> int:
    return main(["run", "pretraining_speech", *QUICK, *more, "--out", str(out)])


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a quick run that nothing disturbed."""
    out = tmp_path_factory.mktemp("pretraining_speech") / "run"
    assert run(out) == 0
    return out


def test_run_folder(finished: Path):
    for file in ("config.json", "metrics.json", "history.csv", "report.html", "preset/card.json", "preset/vocab.json"):
        assert (finished / file).stat().st_size > 0, file
    assert not (finished / "checkpoints").exists()
    metrics = read(finished / "metrics.json")
    assert {"recipe", "test", "baselines", "seconds", "counts", "parameters", "proof", "peak_memory_mb", "source",
            "data", "seed", "versions"} <= set(metrics)  # fmt: skip
    assert metrics["counts"]["train"] == 40 and 0 < metrics["test"]["wer"] and "random_weights" in metrics["baselines"]
    assert read(finished / "preset" / "card.json")["command"].startswith("python -m recipes run pretraining_speech")
    report = (finished / "report.html").read_text("utf-8")
    assert "word error rate" in report and report.count("data:image/png") == 2


def test_the_preset_is_half_as_large_and_a_source(finished: Path):
    tensors = load_file(finished / "preset" / "model.safetensors")
    assert {array.dtype for array in tensors.values()} == {np.dtype(np.float16)}
    source = load_speech_source(f"preset:{finished / 'preset'}")
    assert (
        source.characters
        and source.head
        and source.normalises
        and source.card["data"].startswith("demo:synthetic: 40 clips")
    )
    assert "Use it" in (finished / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_a_stopped_run_ends_as_if_it_had_not_been(finished: Path, tmp_path: Path, monkeypatch, capsys):
    seen = []

    def stop_at_the_second_step(lines, batch, logs=None):
        seen.append(batch)
        if len(seen) == 2:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(EpochLines, "on_train_batch_end", stop_at_the_second_step)
        assert run(out, "--save-every", "0") == 130
    assert run(out) == 2  # not overwritten
    assert "--resume" in capsys.readouterr().err
    assert main(["run", "pretraining_speech", "--resume", str(out)]) == 0
    assert (out / "history.csv").read_bytes() == (finished / "history.csv").read_bytes()
    ours, theirs = (load_file(folder / "preset" / "model.safetensors") for folder in (out, finished))
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)


@pytest.mark.slow
def test_without_transcripts(tmp_path: Path):
    """A folder of sounds, and nothing else."""
    for number, clip in enumerate(sorted((SYNTHETIC.parent / "clips").glob("*.flac"))[:30]):
        (tmp_path / "sounds" / str(number % 3)).mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, tmp_path / "sounds" / str(number % 3))
    data = f"folder:{tmp_path / 'sounds'}"
    assert run(tmp_path / "run", "--data", data, "--objective", "contrastive", "--epochs", "1") == 0
    metrics = read(tmp_path / "run" / "metrics.json")
    assert metrics["counts"]["train"] + metrics["counts"]["val"] + metrics["counts"]["test"] == 30
    assert metrics["test"]["contrastive_loss"] > 0 and metrics["test"]["codes_used"] >= 1
    source = load_speech_source(f"preset:{tmp_path / 'run' / 'preset'}")
    assert source.head is None and source.characters is None


@pytest.mark.slow
def test_a_run_begins_with_an_earlier_one(finished: Path, tmp_path: Path, capsys):
    start = f"preset:{finished / 'preset'}"
    assert run(tmp_path / "run", "--start", start, "--learning-rate", "0", "--epochs", "1") == 0
    ours, theirs = (load_file(folder / "preset" / "model.safetensors") for folder in (tmp_path / "run", finished))
    backbone = [name for name in theirs if not name.startswith("lm_head")]
    assert len(backbone) > 20
    for name in backbone:  # nothing was learned, and half precision changes nothing twice
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert run(tmp_path / "other", "--start", start, "--width", "96") == 2
    assert "with width 48, 1 layers and 16 channels" in capsys.readouterr().err


@pytest.mark.slow
def test_check_trains_nothing_and_lets_listen(tmp_path: Path, capsys):
    assert main(["check", "pretraining_speech", *QUICK, "--out", str(tmp_path)]) == 0
    assert "estimate:" in capsys.readouterr().out
    assert (tmp_path / "samples.html").read_text("utf-8").count("<audio") == 16
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data", "tsv:nowhere.tsv"], "does not exist"),
        (["--objective", "guess"], "--objective"),
        (["--width", "100"], "multiple of 48"),
        (["--channels", "20"], "multiple of 8"),
        (["--microphone", "2"], "--microphone"),
    ],
)
def test_wrong_settings_are_refused(arguments: list[str], expected: str, tmp_path: Path, capsys):
    assert main(["run", "pretraining_speech", *arguments, "--out", str(tmp_path / "run")]) == 2
    assert expected in capsys.readouterr().err and not (tmp_path / "run").exists()
