"""The command line: quick answers without TensorFlow, clear errors, honest exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.errors import UserError
from recipes.__main__ import RECIPES, main
from recipes.commands._discovery import config_class, find_recipes

REPOSITORY = Path(__file__).resolve().parents[2]

CONFIG = '''"""Tell apples from pears.

The second paragraph tells more.
"""

from __future__ import annotations

import heavy_library_that_nobody_has
from dataclasses import dataclass, field
from os import path, heavy_name_that_os_does_not_have
from typing import Literal

HEAVY = heavy_library_that_nobody_has.load()
LARGEST = 2 * 50
SMALLEST, UNUSED = 1, 2
Kind = Literal["apple", "pear"]


def is_allowed(value: int) -> bool:
    return SMALLEST <= value <= LARGEST


@dataclass(frozen=True)
class Config:
    """What one run does."""

    out: str = path.join("runs", "toy")
    """The folder that receives everything."""

    # How often each fruit is looked at.
    epochs: int = 3

    kind: Kind = "apple"
    """Which fruit counts as right."""

    ripe: bool = False
    """Only ripe ones."""

    def __post_init__(self) -> None:
        if not is_allowed(self.epochs):
            raise ValueError(f"epochs must be 1 to {LARGEST}, received {self.epochs}. Type: --epochs 3")


def main(config: Config) -> dict:
    return heavy_library_that_nobody_has.train(config)
'''

# The same recipe without its heavy side, so that it can really run.
LIGHT = (
    CONFIG.replace("import heavy_library_that_nobody_has\n", "")
    .replace(", heavy_name_that_os_does_not_have", "")
    .replace("HEAVY = heavy_library_that_nobody_has.load()\n", "")
    .replace("    return heavy_library_that_nobody_has.train(config)\n", "    {body}\n")
)


def write_recipe(root: Path, name: str, text: str) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "recipe.py").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def heavy(tmp_path: Path) -> Path:
    """A root with one recipe that fails as soon as it is really imported."""
    root = tmp_path / "toys"
    write_recipe(root, "fruit_sorting", CONFIG)
    return root


def light(tmp_path: Path, body: str) -> Path:
    root = tmp_path / "toys"
    write_recipe(root, "fruit_sorting", LIGHT.replace("{body}", body))
    return root


def exit_code(arguments: list[str], root: Path) -> int:
    """What the shell would see, whether main returns or tyro and argparse leave by SystemExit."""
    try:
        return main(arguments, root)
    except SystemExit as leaving:
        return leaving.code


# --- list, show ---------------------------------------------------------------------------------


def test_list_prints_name_and_first_line_of_every_recipe(heavy: Path, capsys: pytest.CaptureFixture) -> None:
    write_recipe(heavy, "broken", "def (:\n")
    write_recipe(heavy, "silent", "x = 1\n")
    write_recipe(heavy, "_private", CONFIG)
    (heavy / "no_recipe").mkdir()
    assert exit_code(["list"], heavy) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["broken", "fruit_sorting", "silent"]
    assert "cannot be read" in lines[0] and "line 1" in lines[0]
    assert lines[1] == "fruit_sorting  Tell apples from pears."


def test_show_prints_docstring_flags_and_results_without_importing(heavy: Path, capsys: pytest.CaptureFixture) -> None:
    accuracy = {"mean": 0.91234, "std": 0.004, "seeds": [0, 1, 2]}
    run = {
        "command": "run fruit_sorting --epochs 3",
        "metric": {"accuracy": accuracy},
        "seconds": {"total": 61.5},
    }
    results = heavy / "fruit_sorting" / "results.json"
    results.write_text(json.dumps({"runs": [run]}))
    assert exit_code(["show", "fruit_sorting"], heavy) == 0
    output = capsys.readouterr().out
    assert "The second paragraph tells more." in output
    for text in (
        "--epochs",
        "How often each fruit is looked at.",
        "Which fruit counts as right.",
        "--ripe",
    ):
        assert text in output
    assert "run fruit_sorting --epochs 3" in output
    assert "accuracy 0.9123 ± 0.004 (3 seeds)" in output
    assert "seconds.total 61.5" in output


@pytest.mark.parametrize("text", ["{", "[]", '{"runs": 5}', '{"runs": [null, {"metric": 0.5}]}', "{}"])
def test_show_survives_any_results_file(heavy: Path, text: str, capsys: pytest.CaptureFixture) -> None:
    (heavy / "fruit_sorting" / "results.json").write_text(text)
    assert exit_code(["show", "fruit_sorting"], heavy) == 0
    assert "results.json" in capsys.readouterr().out


def test_config_class_executes_only_what_config_uses(heavy: Path) -> None:
    config = config_class(heavy / "fruit_sorting" / "recipe.py")
    assert config().epochs == 3
    module = vars(sys.modules[config.__module__])
    assert "LARGEST" in module and "is_allowed" in module and "path" in module
    assert not {"HEAVY", "main", "field", "heavy_library_that_nobody_has"} & set(module)


def test_config_class_names_what_is_missing(tmp_path: Path) -> None:
    folder = write_recipe(tmp_path, "empty", '"""Nothing."""\n')
    with pytest.raises(UserError, match="no class Config"):
        config_class(folder / "recipe.py")


# --- run, check ---------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "check"])
def test_wrong_flag_and_bad_value_are_told_before_the_recipe_is_imported(
    heavy: Path, command: str, capsys: pytest.CaptureFixture
) -> None:
    recipe = heavy / "fruit_sorting" / "recipe.py"
    recipe.write_text(recipe.read_text() + "\n\ndef check(config: Config) -> None:\n    pass\n")
    assert exit_code([command, "fruit_sorting", "--epoch", "3"], heavy) == 2
    assert "--epochs" in capsys.readouterr().err
    assert exit_code([command, "fruit_sorting", "--epochs", "many"], heavy) == 2
    capsys.readouterr()
    assert exit_code([command, "fruit_sorting", "--epochs", "1000"], heavy) == 2
    error = capsys.readouterr().err
    assert error == "error: epochs must be 1 to 100, received 1000. Type: --epochs 3\n"
    # And with right flags the recipe is really imported: the toy proves what the others have avoided.
    with pytest.raises(ImportError):
        main([command, "fruit_sorting", "--epochs", "3"], heavy)


def test_run_gives_the_recipe_its_own_config(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = light(tmp_path, "print(type(config) is Config, config.epochs, config.ripe); return {}")
    assert exit_code(["run", "fruit_sorting", "--epochs", "7", "--ripe"], root) == 0
    assert capsys.readouterr().out == "True 7 True\n"


def test_user_error_is_one_line_and_a_bug_keeps_its_traceback(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    body = "from common.errors import UserError; raise UserError('one class only, give two')"
    root = light(tmp_path, body)
    assert exit_code(["run", "fruit_sorting"], root) == 2
    assert capsys.readouterr().err == "error: one class only, give two\n"
    root = light(tmp_path / "second", "raise ValueError('a bug')")
    with pytest.raises(ValueError, match="a bug"):
        main(["run", "fruit_sorting"], root)


@pytest.mark.parametrize(
    ("returned", "code"),
    [
        ("{}", 0),
        ("{'proof': None}", 0),
        ("{'proof': {'agreement': 1.0}}", 0),
        ("{'proof': {'passed': True}}", 0),
        ("{'proof': {'passed': False}}", 1),
    ],
)
def test_exit_code_follows_the_proof(tmp_path: Path, returned: str, code: int, capsys: pytest.CaptureFixture) -> None:
    root = light(tmp_path, f"return {returned}")
    assert exit_code(["run", "fruit_sorting", "--out", "somewhere"], root) == code
    error = capsys.readouterr().err
    assert ("proof failed" in error and "somewhere" in error) == (code == 1)


def test_interruption_is_130_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = light(tmp_path, "raise KeyboardInterrupt")
    assert exit_code(["run", "fruit_sorting"], root) == 130
    assert "interrupted" in capsys.readouterr().err


def test_check_calls_check_and_says_when_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = light(tmp_path, "return {}")
    assert exit_code(["check", "fruit_sorting"], root) == 2
    assert "has no check" in capsys.readouterr().err
    recipe = root / "fruit_sorting" / "recipe.py"
    recipe.write_text(recipe.read_text() + "\n\ndef check(config):\n    print('12 apples')\n")
    assert exit_code(["check", "fruit_sorting"], root) == 0
    assert capsys.readouterr().out == "12 apples\n"


def test_output_of_a_failing_import_is_not_swallowed(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    # What native code writes goes to file descriptor 2: hidden when all is well, shown when it is not.
    noise = "import os; os.write(2, b'native noise')\n"
    root = tmp_path / "toys"
    text = LIGHT.replace("{body}", "return {}").replace("from typing", noise + "from typing")
    write_recipe(root, "fruit_sorting", text)
    assert exit_code(["run", "fruit_sorting"], root) == 0
    assert "native noise" not in capfd.readouterr().err
    write_recipe(root, "failing", text + "\nraise RuntimeError('at import')\n")
    with pytest.raises(RuntimeError):
        main(["run", "failing"], root)
    assert "native noise" in capfd.readouterr().err


# --- wrong commands and names -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "python -m recipes list"),
        (["lst"], "python -m recipes list"),
        (["fruit_sorting"], "python -m recipes run fruit_sorting"),
        (["show"], "fruit_sorting"),
        (["run", "--epochs", "3"], "fruit_sorting"),
        (["run", "fruit-sortin"], "Did you mean 'fruit_sorting'"),
        (["show", "fruit"], "Did you mean 'fruit_sorting'"),
        (["show", "zebra"], "Recipes: fruit_sorting"),
    ],
)
def test_wrong_words_are_answered_with_the_nearest_right_one(
    heavy: Path, arguments: list[str], expected: str, capsys: pytest.CaptureFixture
) -> None:
    assert exit_code(arguments, heavy) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["run", "fruit_sorting", "--help"], ["predict", "--help"]]
)
def test_help_is_no_error(heavy: Path, arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    assert exit_code(arguments, heavy) == 0
    assert "python -m recipes" in capsys.readouterr().out


# --- the real repository, in fresh processes ----------------------------------------------------


def python(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)


def test_list_answers_quickly_and_without_tensorflow() -> None:
    seconds = []
    for _ in range(3):  # the best of three: another program may keep the machine busy
        start = time.perf_counter()
        assert python("-m", "recipes", "list").returncode == 0
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1
    imported = python("-X", "importtime", "-m", "recipes", "list").stderr
    assert "recipes.commands._discovery" in imported
    assert not any(library in imported for library in ("tensorflow", "keras", "numpy", "tyro"))


def test_config_of_every_real_recipe_is_free_of_tensorflow() -> None:
    names = [recipe.name for recipe in find_recipes(REPOSITORY / "recipes")]
    if not names:
        pytest.skip("there is no recipe yet")
    for name in names:
        shown = python("-X", "importtime", "-m", "recipes", "show", name)
        assert shown.returncode == 0, shown.stderr[-2000:]
        assert "--out" in shown.stdout
        imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
        assert not {"tensorflow", "keras"} & imported, f"the Config of {name} imports TensorFlow"


@pytest.mark.parametrize("command", ["show image_classification", "sources"])
def test_a_closed_pipe_is_quiet(command: str) -> None:
    command = f"'{sys.executable}' -u -m recipes {command} | (read line; exec <&-; sleep 0.5)"
    shell = ["bash", "-c", command]
    finished = subprocess.run(shell, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert finished.stderr == ""


# --- predict ------------------------------------------------------------------------------------


def empty_export(run: Path, name: str, version: str) -> None:
    folder = run / "serving" / name / version
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"")


def test_predict_checks_its_arguments_before_tensorflow(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"x")
    run = tmp_path / "run"
    assert exit_code(["predict"], tmp_path) == 2
    assert exit_code(["predict", str(run), str(image)], tmp_path) == 2
    assert "there is no folder" in capsys.readouterr().err
    (run / "serving" / "image_classification" / "aside").mkdir(parents=True)
    assert exit_code(["predict", str(run), str(image)], tmp_path) == 2
    assert "holds no export" in capsys.readouterr().err
    empty_export(run, "image_classification", "1")
    assert exit_code(["predict", str(run), str(image), str(tmp_path / "absent.png")], RECIPES) == 2
    assert "absent.png" in capsys.readouterr().err
    empty_export(run, "boats", "1")
    assert exit_code(["predict", str(run), str(image)], tmp_path) == 2
    assert "--name boats, --name image_classification" in capsys.readouterr().err
    arguments = ["-X", "importtime", "-m", "recipes", "predict", str(run), str(tmp_path / "absent.png")]
    assert "tensorflow" not in python(*arguments).stderr


def test_predict_answers_every_readable_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    tf = pytest.importorskip("tensorflow")

    class Brightness(tf.Module):
        """Calls an image bright by its mean: a model whose right answer is known."""

        def __init__(self) -> None:
            self.scale = tf.Variable(1 / 255)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image")])
        def serve(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
            def mean(encoded: tf.Tensor) -> tf.Tensor:
                pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
                return tf.reduce_mean(tf.cast(pixels, tf.float32)) * self.scale

            bright = tf.map_fn(mean, image, fn_output_signature=tf.float32)
            names = tf.constant(["dark", "größer"])
            probabilities = tf.stack([1 - bright, bright], axis=1)
            return {
                "label": tf.gather(names, tf.argmax(probabilities, axis=1)),
                "probabilities": probabilities,
                "class_names": tf.tile(names[tf.newaxis], [tf.shape(image)[0], 1]),
            }

    run = tmp_path / "run"
    empty_export(run, "image_classification", "9")  # older than 10, although not by its letters; loading it would fail
    model = Brightness()
    tf.saved_model.save(model, str(run / "serving" / "image_classification" / "10"), signatures=model.serve)
    files = []
    for name, value in (("black", 0), ("white", 255), ("broken", None), ("locked", 0), ("again", 255)):
        file = tmp_path / f"{name}.png"
        pixels = tf.fill([4, 5, 3], tf.constant(value or 0, tf.uint8))
        file.write_bytes(b"no image" if value is None else tf.io.encode_png(pixels).numpy())
        files.append(str(file))

    read_bytes = Path.read_bytes

    def read_unless_locked(path: Path) -> bytes:
        if path.name == "locked.png":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read_unless_locked)

    many = [files[0]] * 30  # more than are sent at once
    assert exit_code(["predict", str(run), *many, *files], RECIPES) == 1
    captured = capsys.readouterr()
    expected = [f"{files[0]}  dark  1.0000", f"{files[1]}  größer  1.0000", f"{files[4]}  größer  1.0000"]
    assert captured.out.splitlines() == expected[:1] * 30 + expected
    errors = captured.err.splitlines()
    assert len(errors) == 2
    assert errors[0].startswith(f"error: {files[2]}: Unknown image file format")
    assert errors[1] == f"error: {files[3]}: Permission denied"

    assert exit_code(["predict", str(run), "--json", files[1]], RECIPES) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["label"] == "größer" and answer["file"] == files[1]
    assert answer["probabilities"] == {"dark": pytest.approx(0, abs=1e-6), "größer": pytest.approx(1)}

    empty_export(run, "image_classification", "11")
    assert exit_code(["predict", str(run), files[0]], RECIPES) == 2
    assert "cannot be loaded" in capsys.readouterr().err
