"""speech_wav2vec end to end: commands, few clips with a language model, a run as the next source, predict."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from common.speech.dataset import SYNTHETIC
from recipes.__main__ import RECIPES, main
from tests.speech.test_models import LETTERS, tiny_config

QUICK = ["--limit", "24", "--epochs", "1", "--head-epochs", "1"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """A source of a few thousand parameters, with initial weights and a head."""
    from common.speech.wav2vec2.heads import CTCHead
    from common.speech.wav2vec2.network import Wav2Vec2Backbone
    from common.speech.wav2vec2.weights import save_wav2vec2

    head = CTCHead(len(LETTERS))
    head.build((None, None, 32))
    folder = tmp_path_factory.mktemp("tiny") / "preset"
    return f"preset:{save_wav2vec2(folder, Wav2Vec2Backbone(tiny_config()), head, LETTERS.to_json())}"


def read(out: Path) -> dict:
    return json.loads((out / "metrics.json").read_text("utf-8"))


def test_seeds_need_a_choice_on_validation(capsys):
    assert main(["run", "speech_commands", "--seeds", "0,1", "--shots", "2"]) == 2
    assert "--seeds cannot be used with --shots" in capsys.readouterr().err


@pytest.mark.slow
def test_commands_are_named_with_two_seeds(tiny, tmp_path: Path, capsys):
    out = tmp_path / "run"
    flags = ["--baselines", "frozen,spectrogram", "--seeds", "0,1"]
    assert main(["run", "speech_commands", "--source", tiny, *QUICK, *flags, "--out", str(out)]) == 0
    metrics = read(out)
    of_each = [metrics["seeds"][seed]["test"]["ece"] for seed in ("0", "1")]
    assert of_each[0] != of_each[1] and metrics["mean"]["test"]["ece"] == pytest.approx(np.mean(of_each))
    assert metrics["test"]["ece"] in [pytest.approx(one) for one in of_each]
    assert set(metrics["std"]["baselines"]) == {"frozen", "spectrogram"}
    assert "validation examples" in (out / "report.html").read_text("utf-8")  # how far fine-tuning is kept
    assert metrics["proof"]["passed"] and 0 <= metrics["test"]["accuracy"] <= 1 and "frozen" in metrics["baselines"]
    assert "<audio" in (out / "report.html").read_text("utf-8")
    capsys.readouterr()
    clips = sorted((SYNTHETIC.parent / "clips").glob("*.flac"))[:2]
    assert main(["predict", str(out), *map(str, clips), "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["file"] for answer in answers] == list(map(str, clips))
    assert all(sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4) for answer in answers)


@pytest.mark.slow
@pytest.mark.parametrize("alone", ["--unfreeze frozen --epochs 2", "--epochs 0"])
@pytest.mark.parametrize("recipe", ["speech_commands", "speech_wav2vec"])
def test_the_baseline_frozen_is_what_a_frozen_run_exports(recipe: str, alone: str, tiny, tmp_path: Path):
    shared, scores = ["--source", tiny, "--limit", "24", "--head-epochs", "2", "--baselines", "frozen"], []
    # The head of a classifier is a stage of its own; that of a recogniser is trained as long as both stages.
    for flags in (alone, alone if recipe == "speech_wav2vec" and "0" in alone else "--epochs 2"):
        out = tmp_path / str(len(scores))
        assert main(["run", recipe, *shared, *flags.split(), "--out", str(out)]) == 0
        scores.append(read(out))
    first, second = scores
    names = ("accuracy", "macro_f1", "ece") if recipe == "speech_commands" else ("wer", "cer")
    for name in names:
        assert first["test"][name] == first["baselines"]["frozen"][name] == second["baselines"]["frozen"][name]
    assert "finetune" not in first["seconds"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["speech_commands", "speech_wav2vec"])
def test_a_run_that_is_killed_in_a_baseline_has_its_export_and_resumes(recipe: str, tiny, tmp_path: Path):
    out = tmp_path / "run"
    flags = ["--source", tiny, "--limit", "24", "--head-epochs", "1", "--epochs", "40", "--baselines", "spectrogram"]
    command = [sys.executable, "-m", "recipes", "run", recipe, *flags, "--save-every", "0", "--out", str(out)]
    process = subprocess.Popen(command, cwd=RECIPES.parent)
    deadline = time.monotonic() + 300
    while not (out / "checkpoints" / "spectrogram.npz").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert (out / "serving" / recipe / "1" / "saved_model.pb").exists() and not (out / "metrics.json").exists()
    assert main(["run", recipe, "--resume", str(out)]) == 0
    metrics = read(out)
    assert metrics["proof"]["passed"] and metrics["seconds"]["baselines"] > 0
    assert metrics["baselines"]["spectrogram"]["seconds"] == metrics["seconds"]["baseline_spectrogram"]
    card = (out / "model_card.md").read_text("utf-8")
    assert "stopped at a plateau after" in card or "was still improving after" in card


@pytest.mark.slow
def test_a_run_is_the_source_of_the_next_and_words_are_decoded(tiny, tmp_path: Path, capsys):
    many, one, text = tmp_path / "many", tmp_path / "one", tmp_path / "sentences.txt"
    assert main(["run", "speech_wav2vec", "--source", tiny, *QUICK, "--beams", "0", "--out", str(many)]) == 0
    assert read(many)["proof"]["passed"] and set(read(many)["baselines"]) == {"zero_shot"}
    text.write_text("yes no up down\nleft right on off\n")
    flags = ["--source", f"preset:{many / 'preset'}", "--shots", "1", "--language-model", str(text), "--beams", "2"]
    assert main(["run", "speech_wav2vec", *flags, *QUICK, "--out", str(one)]) == 0
    metrics = read(one)
    assert metrics["proof"]["passed"] and set(metrics["decoders"]) == {"beam", "beam_lm"}
    # What it can write before it learns is what the run before wrote of the same clips at its end.
    assert metrics["baselines"]["zero_shot"]["wer"] == read(many)["test"]["wer"]

    samples = np.concatenate(
        [soundfile.read(path)[0] for path in sorted((SYNTHETIC.parent / "clips").glob("*.flac"))[:110]]
    )
    soundfile.write(tmp_path / "long.flac", samples, 16_000)
    (tmp_path / "text.wav").write_text("this is no sound")
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "long.flac", tmp_path / "again")
    capsys.readouterr()
    files = [str(tmp_path / name) for name in ("long.flac", "text.wav", "again/long.flac")]
    assert main(["predict", str(one), *files]) == 1  # one of them has no answer
    told = capsys.readouterr()
    assert "subtitles:" in told.out and "text.wav: cannot be decoded" in told.err
    assert sorted(file.name for file in (one / "predictions").iterdir()) == ["1_long.flac.srt", "3_long.flac.srt"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data", "tsv:nowhere.tsv"], "does not exist"),
        (["--augment", "loud"], "--augment"),
        (["--outside", "keep"], "--outside"),
        (["--language-model", "nowhere.txt"], "must be a text file"),
        (["--source", "keras:ResNet50"], "not a speech model"),
    ],
)
def test_wrong_settings_are_told(arguments: list[str], expected: str, tmp_path: Path, capsys):
    assert main(["run", "speech_wav2vec", *arguments, "--out", str(tmp_path / "run")]) == 2
    assert expected in capsys.readouterr().err


def test_clips_that_cannot_be_used_are_named(tiny, tmp_path: Path, capsys):
    rng, rows = np.random.default_rng(0), ["path\ttext\tspeaker\tsplit"]
    for number in range(12):
        soundfile.write(tmp_path / f"{number}.wav", 0.1 * rng.standard_normal(8000), 16_000)
        rows.append(
            f"{number}.wav\t{'abc'[number % 3]}\tspeaker{number % 4}\t{('train', 'train', 'val', 'test')[number % 4]}"
        )
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.full(8000, np.nan), 16_000, subtype="FLOAT")
    (tmp_path / "cut.wav").write_bytes((tmp_path / "0.wav").read_bytes()[:4000])
    soundfile.write(tmp_path / "talk.wav", 0.1 * rng.standard_normal(8000), 16_000)
    rows += [f"{name}.wav\tabc\tspeaker0\ttrain" for name in ("silent", "nan", "cut", "missing")]
    rows.append(f"talk.wav\t{'ab' * 60}\tspeaker0\ttrain")
    (tmp_path / "clips.tsv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "run"
    flags = ["--data", f"tsv:{tmp_path / 'clips.tsv'}", "--source", tiny, "--epochs", "1", "--head-epochs", "0"]
    assert main(["run", "speech_wav2vec", *flags, "--baselines", "none", "--beams", "0", "--out", str(out)]) == 0
    assert read(out)["counts"] == {"train": 6, "val": 3, "test": 3, "skipped": 5}
    report = (out / "report.html").read_text("utf-8")
    for reason in ("is silent", "not numbers", "cut off", "does not exist", "120 characters need"):
        assert reason in report, reason
