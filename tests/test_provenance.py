"""The hash of a row of results.json changes with what can change its scores, and with nothing else."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.provenance import DEMOS, LEFT_OUT, code_files, commit, data_files, machine, row_hash, stale_rows
from recipes.__main__ import RECIPES

ROOT = RECIPES.parent
DEMO = "python -m recipes run image_classification --baselines frozen --seed SEED --out OUT"
PHOTOS = "python -m recipes run image_classification --data folder:PHOTOS --source keras:ResNet50 --seed SEED --out OUT"
DEMO_FOLDERS = sorted(
    path for path in (ROOT / "common").rglob("demo_*") if path.is_dir() and path.name != "demo_synthetic"
)
MEASURED = sorted(file.parent.name for file in RECIPES.glob("*/results.json"))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The code of the checkout, with the bundled sources of images and the demos but for the sounds."""
    kept_out = shutil.ignore_patterns("__pycache__", "*.flac", "bert_mini", "wav2vec2_mini")
    for folder in ("common", "recipes"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=kept_out)
    return tmp_path


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new), "utf-8")


def test_comments_docstrings_and_formatting_keep_the_hash(copy: Path):
    before = row_hash(copy, "image_classification", DEMO)
    training = copy / "common" / "training.py"
    edit(training, '"""Training stages', '"""Other words')
    edit(training, "    before = keras", "    # a comment\n\n    before = keras")
    edit(training, '    """Build layers', '    """Layers are built')
    assert row_hash(copy, "image_classification", DEMO) == before
    for file in code_files(copy, "image_classification"):  # other line breaks and quotes, no comments
        file.write_text(ast.unparse(ast.parse(file.read_bytes())), "utf-8")
    assert row_hash(copy, "image_classification", DEMO) == before
    edit(copy / "recipes" / "image_classification" / "recipe.py", '"""', 'r"""')
    assert row_hash(copy, "image_classification", DEMO) == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("common/training.py", "warmup_share: float = 0.1", "warmup_share: float = 0.2"),
        ("recipes/image_classification/recipe.py", "weight_decay: float = 0.05", "weight_decay: float = 0.06"),
        ("common/hub.py", "import annotations\n", "import annotations\n\nEXTRA = 1\n"),  # imported on demand, by name
    ],
)
def test_a_changed_constant_changes_the_hash(copy: Path, file: str, old: str, new: str):
    before = row_hash(copy, "image_classification", DEMO)
    edit(copy / file, old, new)
    assert row_hash(copy, "image_classification", DEMO) != before


def test_a_changed_report_keeps_the_hash(copy: Path):
    before = row_hash(copy, "image_classification", DEMO)
    for name in ("classification/report.py", "reporting.py", "images/preview.py", "serving/kit/write.py", "flags.py"):
        with (copy / "common" / name).open("a") as file:
            file.write("\n\nEXTRA = 1\n")
    with (copy / "common" / "texts" / "models.py").open("a") as file:  # of another wing
        file.write("\n\nEXTRA = 1\n")
    assert row_hash(copy, "image_classification", DEMO) == before


def test_bundled_weights_and_demo_data_count_where_the_command_uses_them(copy: Path):
    weights = copy / "common" / "bundled" / "mobilenet_v2" / "model.safetensors"
    bundled, photos = (row_hash(copy, "image_classification", command) for command in (DEMO, PHOTOS))
    edit(weights.with_name("card.json"), "licence", "license")  # describes the weights
    assert row_hash(copy, "image_classification", DEMO) == bundled
    with weights.open("ab") as file:
        file.write(b"1")
    assert row_hash(copy, "image_classification", DEMO) != bundled
    assert row_hash(copy, "image_classification", PHOTOS) == photos

    products, reviews = (f"python -m recipes run bert_sentiment {flags}" for flags in ("", "--data demo:reviews"))
    before = [row_hash(copy, "bert_sentiment", command) for command in (products, reviews)]
    edit(copy / "common" / "texts" / "demo_products" / "train.csv", "phone", "camera")
    after = [row_hash(copy, "bert_sentiment", command) for command in (products, reviews)]
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_what_a_command_reads_of_the_checkout():
    def names(recipe: str, flags: str) -> set[str]:
        found = data_files(ROOT, recipe, f"python -m recipes run {recipe} {flags}")
        return {file.relative_to(ROOT).as_posix() for file in found}

    digits = "--source keras:ResNet50 --data demo:digits"  # scikit-learn has them
    assert names("image_classification", digits) == set()
    photos = names("image_classification", "--source keras:ResNet50")
    assert sum(name.startswith("common/images/demo_clothing/test/") for name in photos) == 200
    assert "common/bundled/resnet_mini/model.weights.h5" in names(
        "object_detection", "--source bundled:resnet_mini@random"
    )
    assert names("bert_sentiment", "--source minilm --data demo:reviews") == {"common/texts/demo_reviews.tsv"}
    cells = names("object_detection", "--source keras:ResNet50")
    assert "common/detection/demo_cells/boxes.csv" in cells and len(cells) == 162
    spoken = names("speech_wav2vec", "")
    assert {"common/speech/demo_voices/clips.csv", "common/bundled/wav2vec2_mini/model.safetensors"} <= spoken
    assert sum(name.endswith(".ogg") for name in spoken) > 500
    assert sum(name.endswith(".flac") for name in names("speech_commands", "--data demo:synthetic")) > 300


def test_demos_of_the_table_exist():
    assert all((ROOT / "common" / package / demo).exists() for (package, _), demos in DEMOS.items() for demo in demos)


@pytest.mark.parametrize("folder", DEMO_FOLDERS, ids=lambda folder: folder.name)
def test_a_demo_of_other_people_has_its_licence_beside_it(folder: Path):
    text = (folder / "LICENSE").read_text("utf-8")
    assert re.search("MIT License|CC0 1.0|creativecommons.org", text)
    assert f"common/{folder.parent.name}/{folder.name}" in (ROOT / "NOTICE").read_text("utf-8")


@pytest.mark.parametrize("recipe", MEASURED)
def test_what_trains_and_measures_counts(recipe: str):
    counted = {file.relative_to(ROOT).as_posix() for file in code_files(ROOT, recipe)}
    assert {f"recipes/{recipe}/recipe.py", "common/training.py", "common/checkpoints.py"} <= counted
    for word in ("dataset.py", "batches.py", "sources.py", "metrics.py"):
        assert any(name.endswith(f"/{word}") for name in counted), word
    assert not any("report" in name or "/serving/" in name or "/proof/" in name for name in counted)


def test_what_is_left_out_exists():
    for name in LEFT_OUT:
        path = ROOT.joinpath(*name.split("."))
        assert path.is_dir() or path.with_suffix(".py").is_file(), name


def test_rows_of_other_code_and_without_a_hash_are_stale():
    fresh = {"name": "fresh", "command": DEMO, "code": row_hash(ROOT, "image_classification", DEMO)}
    rows = [fresh, fresh | {"name": "old", "code": "0" * 16}, {"name": "unknown", "command": DEMO}]
    rows += [fresh | {"name": "other", "command": PHOTOS}]
    assert stale_rows(ROOT, "image_classification", rows) == {"old", "unknown", "other"}


def test_the_commit_says_whether_the_code_has_changes(tmp_path: Path):
    assert commit(tmp_path) == "unknown"
    for name in ("common/training.py", "README.md", "recipes/toy/results.json"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1\n")
    who = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for command in (("init",), ("add", "."), (*who, "commit", "-m", "first")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    clean = commit(tmp_path)
    assert len(clean) >= 7 and "+" not in clean
    for name in ("README.md", "recipes/toy/results.json"):  # pages and results change nothing
        (tmp_path / name).write_text("2\n")
    assert commit(tmp_path) == clean
    (tmp_path / "common" / "training.py").write_text("2\n")
    assert commit(tmp_path) == f"{clean}+changes"


def test_the_machine_is_named():
    found = machine()
    assert found["processor"] and found["cores"] >= 1
    assert json.loads(json.dumps(found)) == found
