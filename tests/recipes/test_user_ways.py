"""The ways of users: photos and texts of their own, one result as the source of another, values that are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from recipes.__main__ import RECIPES, main
from recipes.commands._discovery import find_recipe, find_recipes
from recipes.commands._execution import refuse_early

QUICK_PRETRAINING = ["--limit", "40", "--epochs", "1", "--filters", "64", "64", "--image-size", "32"]


def test_photos_to_predictions(two_classes: Path, tmp_path: Path, capsys):
    """The way of a user: a folder with a broken file and non-ASCII names, a run, then predict on new pictures."""
    (two_classes / "dark" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    out = tmp_path / "my run"
    flags = ["--data", f"folder:{two_classes}", "--source", "bundled:resnet_mini", "--epochs", "2"]
    flags += ["--baselines", "none"]  # with the default source and baselines: test_demo_is_a_real_result
    assert main(["run", "image_classification", *flags, "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text("utf-8"))
    assert metrics["counts"]["skipped"] == 1 and metrics["test"]["accuracy"] >= 0.8
    assert "broken.jpg" in (out / "report.html").read_text("utf-8")
    capsys.readouterr()
    pictures = sorted((two_classes / "hell").glob("*.png"))[:3]
    assert main(["predict", str(out), *map(str, pictures)]) == 0
    assert capsys.readouterr().out.count("hell") >= 3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fewshot", "finetune", "frozen", "lora"])
def test_texts_to_predictions(method: str, tmp_path: Path, capsys):
    """The way of a user with a table of reviews, three labels, and each method but the default one."""
    table, out = tmp_path / "reviews.csv", tmp_path / "run"
    words = {"good": "wonderful lovely superb", "bad": "awful dreadful rotten", "so-so": "average ordinary middling"}
    lines = [f"a {word} {thing},{label}" for label, some in words.items() for word in some.split()
             for thing in ("film", "meal", "book", "room", "song", "phone")]  # fmt: skip
    table.write_text("text,label\n" + "\n".join(lines) + "\n")
    arguments = ["--data", f"csv:{table}", "--method", method, "--epochs", "1", "--pair-steps", "3", "--out", str(out)]
    assert main(["run", "bert_sentiment", *arguments]) == 0
    metrics = json.loads((out / "metrics.json").read_text("utf-8"))
    assert metrics["proof"]["passed"] and metrics["baselines"].keys() == {"frozen", "words"}
    capsys.readouterr()
    assert main(["predict", str(out), "a wonderful 😀 day", ""]) == 0
    answers = capsys.readouterr().out.splitlines()
    assert len(answers) == 2 and all(answer.split()[-2] in words for answer in answers)
    if method == "lora":
        parameters = metrics["parameters"]
        assert parameters["trainable_finetune"] < 0.1 * parameters["total"]


@pytest.mark.slow
def test_long_texts_in_windows_and_cross_validation(tmp_path: Path, capsys):
    table, out = tmp_path / "reviews.csv", tmp_path / "run"
    filler = "and then something happened that nobody will remember "
    lines = [f"{filler * n}{word} film {n},{label}" for label, word in (("good", "wonderful"), ("bad", "awful"))
             for n in range(20)]  # fmt: skip
    table.write_text("text,label\n" + "\n".join(lines) + "\n")
    arguments = ["--data", f"csv:{table}", "--method", "frozen", "--max-length", "24", "--long-text",
                 "windows", "--folds", "2", "--no-explain", "--out", str(out)]  # fmt: skip
    assert main(["run", "bert_sentiment", *arguments]) == 0
    said, metrics = capsys.readouterr().out, json.loads((out / "metrics.json").read_text("utf-8"))
    assert "are read in several windows" in said and "fold 2 of 2" in said
    assert metrics["proof"]["passed"]
    folds = metrics["cross_validation"]["accuracy"]
    assert len(folds["folds"]) == 2 and folds["mean"] == pytest.approx(np.mean(folds["folds"]))
    assert "Cross-validation of the" in (out / "report.html").read_text("utf-8")
    # what differs stands at the end, far beyond the first 24 tokens, and makes a difference
    loaded = tf.saved_model.load(str(out / "serving" / "bert_sentiment" / "1"))
    asked = [f"{filler * 30}{word} film".encode() for word in ("wonderful", "awful")]
    answer = loaded.signatures["serving_default"](text=tf.constant(asked))["probabilities"].numpy()
    assert np.abs(answer[0] - answer[1]).max() > 1e-4
    assert loaded.signatures["serving_default"](text=tf.constant([], tf.string))["probabilities"].shape == (0, 2)


@pytest.mark.slow
def test_mixed_precision_trains_and_exports_float32(two_classes: Path, tmp_path: Path):
    out = tmp_path / "run"
    arguments = ["--data", f"folder:{two_classes}", "--epochs", "1", "--mixed-precision", "--baselines", "none"]
    arguments += ["--unfreeze", "all", "--out", str(out)]
    assert main(["run", "image_classification", *arguments]) == 0
    loaded = tf.saved_model.load(str(out / "serving" / "image_classification" / "1"))
    assert {v.dtype for v in loaded.weights} == {tf.float32}


@pytest.mark.slow  # the resumed run above equals the undisturbed one already
def test_same_seed_same_result(two_classes: Path, tmp_path: Path):
    found = []
    for number in range(2):
        out = tmp_path / str(number)
        arguments = ["--data", f"folder:{two_classes}", "--epochs", "1", "--limit", "12", "--baselines", "none"]
        arguments += ["--image-size", "64", "--out", str(out)]
        assert main(["run", "image_classification", *arguments]) == 0
        rows = (out / "history.csv").read_text("utf-8").splitlines()
        found.append([float(cell) for row in rows[1:] for cell in row.split(",")[1:] if cell])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # the quick run of pretraining writes the preset, and tests of sources load others
def test_pretrained_preset_is_a_source(tmp_path: Path, capsys):
    out = tmp_path / "pretraining"
    assert main(["run", "pretraining", *QUICK_PRETRAINING, "--out", str(out)]) == 0
    card = json.loads((out / "preset" / "card.json").read_text("utf-8"))
    assert card["command"].startswith("python -m recipes run pretraining") and card["test"]["accuracy"] >= 0
    arguments = [
        "--source",
        f"preset:{out / 'preset'}",
        "--limit",
        "30",
        "--epochs",
        "0",
        "--baselines",
        "none",
        "--out",
        str(tmp_path / "use"),
    ]
    assert main(["run", "image_classification", *arguments]) == 0


@pytest.mark.slow  # a teacher of texts is learned from in test_pretraining_text.py
def test_teacher_is_learned_from(tmp_path: Path):
    arguments = [*QUICK_PRETRAINING, "--teacher", "keras:MobileNet(alpha=0.25,size=64)@random", "--mix", "0.5"]
    arguments += ["--teacher-size", "32", "--teacher-views", "2"]
    assert main(["run", "pretraining", *arguments, "--out", str(tmp_path / "run")]) == 0


def test_bad_values_are_refused_before_tensorflow(tmp_path: Path):
    """A wrong value answers without importing TensorFlow: the process would have it in sys.modules."""
    program = (
        "import sys; from recipes.__main__ import main\n"
        "code = main(['run', 'image_classification', '--source', 'keras:ResNet5O'])\n"
        "print(code, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=RECIPES.parent)
    assert done.stdout.split() == ["2", "False"]
    assert "ResNet50" in done.stderr


def test_data_that_cannot_work_is_refused_before_tensorflow(tmp_path: Path):
    """In every recipe: a table with other columns and, where classes are folders, a folder with one class."""
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "photos" / "cat" / f"{number}.jpg").write_bytes(b"is not read")
        (tmp_path / "photos" / "cat" / f"{number}.wav").write_bytes(b"is not read")
        (tmp_path / "photos" / "cat" / f"{number}.txt").write_text("a text")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    names = [recipe.name for recipe in find_recipes(RECIPES)]
    of_classes = ("image_classification", "pretraining", "bert_sentiment", "speech_commands")
    program = (
        "import sys; from recipes.__main__ import main\n"
        "for command, name, data in [line.split('\\t') for line in sys.stdin.read().splitlines()]:\n"
        "    code = main([command, name, '--data', data, '--out', sys.argv[1]])\n"
        "    print(name, code, 'tensorflow' in sys.modules)"
    )
    cases = [(command, name, f"csv:{tmp_path}/table.csv") for name in names for command in ("run", "check")]
    cases += [("run", name, f"folder:{tmp_path}/photos") for name in of_classes]
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out")], input="\n".join(map("\t".join, cases)),
        capture_output=True, text=True, cwd=RECIPES.parent,
    )  # fmt: skip
    assert done.stdout.splitlines() == [f"{name} 2 False" for _, name, _ in cases], done.stderr
    said = done.stderr.splitlines()
    assert all("Found: 'a', 'b'" in line or "Received: 'a', 'b'" in line or "Found: a, b" in line for line in said[:-4])
    assert all("has 1 class(es)" in line for line in said[-4:])


def test_a_table_from_a_pipe_is_not_read_early(tmp_path: Path):
    """It can be read only once; here, reading would never end."""
    os.mkfifo(tmp_path / "pipe")
    for name in ("bert_sentiment", "image_classification", "object_detection", "speech_wav2vec"):
        refuse_early(find_recipe(RECIPES, name), SimpleNamespace(data=f"csv:{tmp_path}/pipe"))


@pytest.mark.slow
def test_demo_is_a_real_result(tmp_path: Path):
    """`make demo`: on photos of new senders better than the frozen source, and far better than without a network."""
    out = tmp_path / "demo"
    assert main(["run", "image_classification", "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text("utf-8"))
    ours, baselines = metrics["test"]["accuracy"], metrics["baselines"]
    assert ours >= 0.7 and ours > baselines["frozen"]["accuracy"] + 0.02
    assert 0.2 < max(baselines[name]["accuracy"] for name in ("neighbours", "pixels")) < ours - 0.1


@pytest.mark.slow
def test_photos_with_imagenet_weights(shared_data: Path, tmp_path: Path):
    weights = shared_data / "weights/mobilenet_imagenet_keras/mobilenet_v2_1.0_224_notop.weights.h5"
    arguments = ["--data", f"folder:{shared_data / 'hymenoptera_data'}", "--source", f"keras:MobileNetV2@{weights}"]
    assert main(["run", "image_classification", *arguments, "--out", str(tmp_path / "run")]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text("utf-8"))
    assert metrics["test"]["accuracy"] >= 0.93
