"""Run folders that were written before common/ became rooms and wings still predict, compare and serve.

`data/before_rooms` was made by the revision before: `finished` and `stopped` (killed while it extracted features) are
runs of image_classification on `photos`, with `--source "keras:MobileNet(alpha=0.25,size=32)@random" --unfreeze frozen
--image-size 32 --no-explain`. Report and model.keras are left out, for their size.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from pathlib import Path

import pytest

from common.detection.convert import load_data as load_boxes
from common.images import convert
from common.runs import FORMAT, Run
from common.serving.configs import configs_of_folder
from recipes.__main__ import RECIPES, main
from recipes.commands._discovery import recipe_of_run

BEFORE = Path(__file__).parent / "data" / "before_rooms"


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with the runs and their photos as they were: a run knew its photos by path and time."""
    folder = tmp_path / "there"
    shutil.copytree(BEFORE, folder)
    for photo in folder.glob("photos/*/*.jpg"):
        os.utime(photo, (1_700_000_000, 1_700_000_000))
    monkeypatch.chdir(folder)
    return folder


def test_predict_and_compare(there: Path, capsys: pytest.CaptureFixture) -> None:
    photos = sorted(str(path) for path in Path("photos/bright").glob("*.jpg"))
    assert main(["predict", "finished", "--json", *photos]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 10 and all(set(answer["probabilities"]) == {"bright", "dark"} for answer in answers)
    assert sum(answer["label"] == "bright" for answer in answers) >= 8
    assert main(["compare", "finished", "finished"]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_serve_finds_the_export(there: Path) -> None:
    [config] = configs_of_folder(Path("finished"))
    assert config.name == "image_classification" and (config.folder / "1" / "saved_model.pb").exists()


def test_a_stopped_run_says_that_its_result_would_differ(there: Path, capsys: pytest.CaptureFixture) -> None:
    """Decoded images are whole numbers now: with the same photos, its error of calibration would differ by 0.0004."""
    assert main(["run", "image_classification", "--resume", "stopped"]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "changed since this run was started, so its result would differ" in line
    assert "start over in another --out" in line
    assert not Path("stopped/metrics.json").exists()


@pytest.mark.parametrize("recipe", ["image_classification", "pretraining"])
def test_a_stopped_run_of_the_digits_says_that_the_demo_is_another_one(
    recipe: str, there: Path, capsys: pytest.CaptureFixture
) -> None:
    settings = json.loads(Path("stopped/config.json").read_text("utf-8")) | {"data": "demo"}
    if recipe == "pretraining":
        settings = {"data": "demo", "epochs": 30}
    Path("stopped/config.json").write_text(json.dumps(settings))
    assert main(["run", recipe, "--resume", "stopped"]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "demo:digits" in line and line.endswith("Start over in another --out.")
    assert ("photos of clothes" in line) == (recipe == "image_classification")


@pytest.mark.parametrize(("recipe", "since", "said"),
    [
        ("bert_sentiment", 2, "demo:reviews"), ("object_detection", 2, "demo:scenes"),
        ("speech_commands", 3, "demo:synthetic"), ("speech_wav2vec", 3, "demo:synthetic"),
    ],
)  # fmt: skip
def test_a_stopped_run_of_an_old_demo_says_where_it_is_now(
    recipe: str, since: int, said: str, tmp_path: Path, capsys
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"data": "demo", "seed": 1, "format": since - 1}))
    assert main(["run", recipe, "--resume", str(tmp_path)]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert f"which are now --data {said}" in line and line.endswith("Start over in another --out.")
    module = importlib.import_module(f"recipes.{recipe}.recipe")
    config = module.Config(out=str(tmp_path / "new"))
    assert (
        Run(config).config == config
        and json.loads((tmp_path / "new" / "config.json").read_text())["format"] == FORMAT >= since
    )
    assert Run(module.Config(resume=str(tmp_path / "new"))).config.data == "demo"


def test_a_finished_run_of_the_scenes_converts_with_scenes(tmp_path: Path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("common.detection.convert.load_box_set", lambda data, *_, **__: asked.append(data))
    for config in ({"data": "demo"}, {"data": "demo", "format": 2}, {"data": "voc:x"}):
        load_boxes(config, tmp_path, (8, 8))
    assert asked == ["demo:scenes", "demo", "voc:x"]


def test_a_finished_run_of_the_digits_converts_with_digits(tmp_path: Path) -> None:
    before = {"data": "demo", "limit": 40}
    assert convert.load_data(before, tmp_path, (8, 8)).class_names == tuple("0123456789")
    assert "hat" in convert.load_data(before | {"group": None}, tmp_path, (8, 8)).class_names


def test_a_run_of_spoken_commands_belongs_to_its_own_recipe_now(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"task": "commands", "data": "demo"}))
    (tmp_path / "metrics.json").write_text(json.dumps({"recipe": "speech_wav2vec"}))
    assert recipe_of_run(RECIPES, tmp_path).name == "speech_commands"
    (tmp_path / "config.json").write_text(json.dumps({"task": "transcribe", "data": "demo"}))
    assert recipe_of_run(RECIPES, tmp_path).name == "speech_wav2vec"


@pytest.mark.parametrize(
    ("task", "said"), [("transcribe", "no run that was stopped"), ("commands", "--task was removed")]
)
def test_settings_that_are_gone_are_passed_over_or_told(
    task: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A retired flag with the value that is left goes on; with another one the message names it and where to read."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"task": task, "data": "demo:synthetic", "out": "x", "epochs": -1}))
    assert main(["run", "speech_wav2vec", "--resume", str(run)]) == 2
    error = capsys.readouterr().err
    assert ("--epochs" in error) if task == "transcribe" else (said in error and "CHANGELOG.md" in error)
