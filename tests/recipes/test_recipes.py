"""What every recipe promises: it runs offline end to end, writes the run folder, and proves its export."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from common.sources.catalogue import CATALOGUE
from recipes.__main__ import RECIPES, main
from recipes.commands import _discovery as discovery

FOUND = discovery.find_recipes(RECIPES)
# Those without an INPUT make a preset and export nothing: see tests/recipes/test_pretraining_text.py and _speech.py.
NAMES = [recipe.name for recipe in FOUND if recipe.literal("INPUT")]
# A few examples and one epoch of everything, as each recipe says: seconds, not results.
QUICK = {recipe.name: recipe.literal("QUICK").split() for recipe in FOUND}
SCORE = {recipe.name: recipe.literal("SCORES")[0] for recipe in FOUND}


@pytest.fixture(scope="module", params=NAMES)
def finished(request, tmp_path_factory) -> tuple[str, Path, int]:
    """(recipe, run folder, exit code) of a quick run with the demo data, as the command line does it."""
    out = tmp_path_factory.mktemp(request.param) / "run"
    return request.param, out, main(["run", request.param, *QUICK[request.param], "--out", str(out)])


@pytest.mark.parametrize("recipe", FOUND, ids=lambda recipe: recipe.name)
def test_every_recipe_declares_what_is_its_own(recipe):
    """Literals, read without TensorFlow: commands, tables and tests need no list of recipes."""
    gallery = recipe.literal("GALLERY")
    assert gallery["in"] and gallery["out"] and "row" in gallery
    assert recipe.literal("SCORES") and recipe.literal("QUICK")
    assert set(recipe.literal("SOURCES", ())) <= set(CATALOGUE)
    assert len((recipe.file.parent / "README.md").read_text("utf-8")) > 1000
    predictor = discovery.load_only(recipe.file, "PREDICTOR").PREDICTOR if recipe.literal("INPUT") else None
    assert predictor is None or predictor.takes == recipe.literal("INPUT")
    assert all(isinstance(title, str) for title in recipe.literal("BASELINES", {}).values())


def test_run_folder_holds_what_the_design_promises(finished):
    name, out, code = finished
    assert code == 0
    for file in ("config.json", "metrics.json", "history.csv", "report.html", "model_card.md", "serving/request.json"):
        assert (out / file).stat().st_size > 0, file
    metrics = json.loads((out / "metrics.json").read_text("utf-8"))
    if name != "object_detection":  # boxes are not compared in pairs
        rows = (out / "predictions.csv").read_text("utf-8").splitlines()
        assert rows[0].startswith("example,label,predicted,errors,confidence")
        assert len(rows) == 1 + metrics["counts"]["test"]
    assert {"recipe", "test", "baselines", "seconds", "counts", "parameters", "proof", "peak_memory_mb", "source",
            "data", "seed", "versions"} <= set(metrics)  # fmt: skip
    assert metrics["recipe"] == name
    score = SCORE[name]
    low, high = metrics["test"][f"{score}_ci95"]
    assert low <= metrics["test"][score] <= high
    assert set(metrics["counts"]) == {"train", "val", "test", "skipped"}
    assert "total" in metrics["seconds"]


def test_export_is_proved(finished):
    _, out, _ = finished
    proof = json.loads((out / "metrics.json").read_text("utf-8"))["proof"]
    assert proof["passed"] and proof["agreement"] == 1.0 and proof["max_abs_diff"] <= proof["tolerance"]
    assert proof["ops_outside_tf_serving"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "pretraining"])
def test_every_baseline_is_trained_and_told(name: str, tmp_path: Path):
    """All baselines that a recipe declares, but those that are fetched."""
    baselines = [key for key in discovery.find_recipe(RECIPES, name).literal("BASELINES") if key != "vectors"]
    out = tmp_path / "run"
    assert main(["run", name, *QUICK[name], "--baselines", ",".join(baselines), "--out", str(out)]) == 0
    found = json.loads((out / "metrics.json").read_text("utf-8"))["baselines"]
    assert set(found) == set(baselines)
    assert all(SCORE[name] in scores and scores["seconds"] >= 0 for scores in found.values())


def test_request_file_works_against_the_export(finished):
    name, out, _ = finished
    request = json.loads((out / "serving" / "request.json").read_text("utf-8"))
    [(key, value)] = request["instances"][0].items()
    raw = value.encode() if isinstance(value, str) else base64.b64decode(value["b64"])
    loaded = tf.saved_model.load(str(out / "serving" / name / "1"))
    answer = loaded.signatures["serving_default"](**{key: tf.constant([raw])})
    if name == "object_detection":
        assert answer["boxes"].shape == (1, 100, 4) and answer["count"].numpy()[0] <= 100
    elif name == "speech_wav2vec":
        assert answer["text"].shape == (1,) and 0 <= answer["confidence"].numpy()[0] <= 1
    else:
        assert answer["probabilities"].numpy().sum() == pytest.approx(1.0, abs=1e-5)


def test_finished_run_is_not_overwritten(finished, capsys):
    name, out, _ = finished
    before = (out / "metrics.json").read_bytes()
    assert main(["run", name, *QUICK[name], "--out", str(out)]) == 2
    assert "finished run" in capsys.readouterr().err
    assert (out / "metrics.json").read_bytes() == before


@pytest.mark.slow  # quick: tests/test_checkpoints.py, tests/recipes/test_runs_from_before.py
def test_a_killed_run_resumes_to_the_same_result(finished, tmp_path):
    """SIGKILL as soon as the first checkpoint lies there; `--resume` then ends where the undisturbed run ended."""
    name, whole, _ = finished
    out, command = tmp_path / "run", [sys.executable, "-m", "recipes", "run", name]
    process = subprocess.Popen([*command, *QUICK[name], "--save-every", "0", "--out", str(out)], cwd=RECIPES.parent)
    deadline = time.monotonic() + 300
    while not any((out / "checkpoints").glob("*.npz")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (out / "metrics.json").exists()
    assert main(["run", name, *QUICK[name], "--out", str(out)]) == 2  # not overwritten
    assert main(["run", name, "--resume", str(out)]) == 0
    assert (out / "history.csv").read_bytes() == (whole / "history.csv").read_bytes()
    results = [json.loads((folder / "metrics.json").read_text("utf-8"))["test"] for folder in (whole, out)]
    assert results[0] == results[1]
    exports = [tf.saved_model.load(str(folder / "serving" / name / "1")) for folder in (whole, out)]
    for one, other in zip(*(export.weights for export in exports), strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_a_calibrated_export_says_what_the_report_says(finished):
    name, out, _ = finished
    if not json.loads((out / "config.json").read_text("utf-8")).get("calibrate"):
        pytest.skip(f"{name} does not calibrate by default, or has boxes instead of classes")
    found = json.loads((out / "metrics.json").read_text("utf-8"))
    assert found["calibration"]["applied"] and found["proof"]["passed"]
    assert found["test"]["ece"] == pytest.approx(found["calibration"]["ece_with"], abs=0.02)


@pytest.mark.slow  # tests/detection/test_convert.py converts a detector without a run
def test_a_detector_converts_to_litert(finished):
    name, out, _ = finished
    if name != "object_detection":
        pytest.skip("a classifier is converted in tests/images/test_convert.py, other exports cannot be")
    pytest.importorskip("ai_edge_litert", reason="no ai_edge_litert: pip install -r requirements-convert.txt")
    assert main(["convert", str(out), "--to", "litert"]) == 0
    found = json.loads((out / "converted" / "litert" / "conversion.json").read_text("utf-8"))
    assert found["passed"] and found["examples"] == 12
    assert "litert" in (out / "report.html").read_text("utf-8").partition("<!-- conversions -->")[2]
    assert main(["convert", str(out), "--to", "litert", "--int8"]) == 2  # for classifiers only


@pytest.mark.parametrize(
    "name", [name if name == "image_classification" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_check_trains_nothing_and_draws_samples(name: str, tmp_path: Path, capsys):
    out = tmp_path / "check"
    assert main(["check", name, *QUICK[name], "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "estimate:" in text and "train" in text
    assert any(out.glob("samples.*")) and not (out / "metrics.json").exists()
