"""Converted models answer as the SavedModel does, in their own runtime; and the proof notices those that do not."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from common import converting
from common.images import convert, export
from common.images.dataset import load_image_set
from recipes.__main__ import main
from recipes.commands.convert import PACKAGES

ROOT = Path(__file__).resolve().parents[2]
SIZE = (32, 32)
GIVES = convert.CLASSIFIER.gives


def needs(form: str):
    absent = [package for package in PACKAGES[form] if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(absent), reason=f"no {', '.join(absent)}: pip install -r requirements-convert.txt")


def network(classes: int = 2, head: np.ndarray | None = None) -> keras.Model:
    """A small trained-looking classifier: BatchNorm with real statistics, a residual sum, and a given linear head."""
    pixels = keras.Input((*SIZE, 3), name="pixels")
    x = keras.layers.Rescaling(1 / 127.5, -1.0)(pixels)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(keras.layers.Conv2D(16, 3, strides=2)(x)))
    more = keras.layers.BatchNormalization()(keras.layers.Conv2D(16, 3, padding="same")(x))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(keras.layers.Add()([x, more])))
    model = keras.Model(pixels, keras.layers.Dense(classes, activation="softmax", name="head")(x))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([np.full(16, value, "float32") for value in (1.0, 0.1, 0.2, 0.5)])
    if head is not None:
        model.get_layer("head").set_weights([head, np.zeros(classes, "float32")])
    return model


def some_pixels(count: int, seed: int = 0) -> np.ndarray:
    """Images that differ in colour and in texture, float32 [count, 32, 32, 3], whole numbers."""
    rng = np.random.default_rng(seed)
    levels, contrasts = rng.uniform(0, 255, (count, 1, 1, 3)), rng.uniform(5, 80, (count, 1, 1, 1))
    return np.clip(levels + contrasts * rng.normal(size=(count, *SIZE, 3)), 0, 255).round().astype("float32")


def exported(model: keras.Model, folder: Path):
    names = [f"class {number}" for number in range(model.output.shape[-1])]
    return converting.load_to_convert(export.export_image_classifier(model, folder / "servable", names), GIVES)


def one_by_one(pixels: np.ndarray) -> Callable[[], list[np.ndarray]]:
    return lambda: [pixels[i : i + 1] for i in range(len(pixels))]


# --- the functions, as in a notebook ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", [pytest.param(form, marks=needs(form)) for form in PACKAGES])
def test_float_conversions_answer_as_the_saved_model(tmp_path: Path, form: str):
    loaded, pixels = exported(network(5), tmp_path), some_pixels(40)
    function = converting.with_constant_weights(loaded, GIVES)
    model = {"litert": converting.to_litert, "onnx": converting.to_onnx}[form](function)
    ask = {"litert": converting.open_litert, "onnx": converting.open_onnx}[form](model, 2)
    saved = converting.open_saved_model(loaded, GIVES)
    proof = convert.prove_conversion(saved, ask, [pixels[:16], pixels[16:]], saved(pixels).argmax(axis=1))
    assert convert.failure(proof, int8=False) == "", proof
    assert proof["examples"] == 40 and proof["agreement"] == proof["accuracy"] == proof["saved_model_accuracy"] == 1.0
    assert proof["max_abs_diff"] < 1e-5 and proof["batch_max_abs_diff"] < 1e-5
    assert proof["milliseconds"] > 0 and proof["saved_model_milliseconds"] > 0


@needs("onnx")
def test_onnx_takes_pixels_and_nothing_else(tmp_path: Path):
    """tf2onnx alone makes an input of the class names, a constant of the SavedModel that nobody could feed."""
    import onnx

    model = converting.to_onnx(converting.with_constant_weights(exported(network(), tmp_path), GIVES))
    onnx.checker.check_model(onnx.load_model_from_string(model))
    graph = onnx.load_model_from_string(model).graph
    told = [(one.name, [d.dim_param or d.dim_value for d in one.type.tensor_type.shape.dim])
            for one in (*graph.input, *graph.output)]  # fmt: skip
    assert told == [("pixels", ["batch", *SIZE, 3]), ("probabilities", ["batch", 2])]


def int8_proof(tmp_path: Path, model: keras.Model) -> dict:
    loaded, pixels = exported(model, tmp_path), some_pixels(300, seed=1)
    function = converting.with_constant_weights(loaded, GIVES)
    ask = converting.open_litert(converting.to_litert_int8(function, one_by_one(some_pixels(100))), 2)
    saved = converting.open_saved_model(loaded, GIVES)
    return convert.prove_conversion(saved, ask, [pixels], saved(pixels).argmax(axis=1))


def head_with_an_outlier(features: int = 16, classes: int = 4) -> np.ndarray:
    """What a fit on standardised features finds where one feature hardly ever varies: for it, a huge weight."""
    head = np.random.default_rng(3).normal(size=(features, classes)).astype("float32") * 1.5
    head[0] = (400, -400, 400, -400)
    return head


def network_with_a_dead_feature() -> keras.Model:
    model = network(4, head_with_an_outlier())
    first, second = (layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
    for norm in (first, second):  # of the first channel nothing is left but less than zero, which ReLU cuts off
        gamma, beta, mean, variance = norm.get_weights()
        gamma[0], beta[0] = 0.0, -1.0
        norm.set_weights([gamma, beta, mean, variance])
    return model


@needs("litert")
def test_int8_bears_a_head_whose_weights_differ_a_hundredfold(tmp_path: Path, monkeypatch):
    proof = int8_proof(tmp_path / "float head", network_with_a_dead_feature())
    assert proof["agreement"] >= 0.98, proof
    # With the head in 8 bits like the rest, most of its weights become 0: this is what the test guards against.
    monkeypatch.setattr(converting, "_head_tensors", lambda model: [])
    assert int8_proof(tmp_path / "int8 head", network_with_a_dead_feature())["agreement"] < 0.9


@needs("litert")
def test_int8_is_smaller_takes_camera_bytes_and_keeps_the_head_in_float(tmp_path: Path):
    from ai_edge_litert.interpreter import Interpreter

    function = converting.with_constant_weights(exported(network(), tmp_path), GIVES)
    model = converting.to_litert_int8(function, one_by_one(some_pixels(20)))
    interpreter = Interpreter(model_content=model)
    takes, gives = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    assert takes["dtype"] == np.uint8 and takes["quantization"] == (1.0, 0)  # the pixels themselves, not scaled
    assert gives["dtype"] == np.float32
    kinds = {one["name"]: one["dtype"] for one in interpreter.get_tensor_details()}
    assert all(kinds[name] == np.float32 for name in converting._head_tensors(converting.to_litert(function)))
    assert list(kinds.values()).count(np.int8) >= 4  # the two convolutions and what they give
    # Any batch, and an image answers the same alone and among others.
    ask, pixels = converting.open_litert(model, 2), some_pixels(5)
    together = ask(pixels)
    np.testing.assert_allclose(np.concatenate([ask(pixels[i : i + 1]) for i in range(5)]), together, atol=1e-6)


@needs("litert")
def test_zero_points_are_stored_once_and_nothing_else_changes(tmp_path: Path):
    from ai_edge_litert import schema_py_generated as schema

    function = converting.with_constant_weights(exported(network(), tmp_path), GIVES)
    converter = converting._converter(function)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([one] for one in one_by_one(some_pixels(20))())
    plain = converter.convert()
    packed = converting._take_bytes_and_share_zeros(plain)
    zeros = 8 * 16 * 4  # of the weights and the biases of two convolutions with 16 channels
    assert len(packed) <= len(plain) - zeros / 2
    pixels = some_pixels(8, seed=2)
    np.testing.assert_array_equal(converting.open_litert(packed, 1)(pixels), converting.open_litert(plain, 1)(pixels))
    start = np.frombuffer(packed, np.uint8).ctypes.data
    buffers = schema.Model.GetRootAs(packed, 0)
    held = [buffers.Buffers(i) for i in range(buffers.BuffersLength())]
    assert all((one.DataAsNumpy().ctypes.data - start) % 16 == 0 for one in held if one.DataLength())


@pytest.mark.parametrize(
    ("change", "int8", "said"),
    [
        ({}, False, ""),
        ({"max_abs_diff": 2e-4}, False, "probabilities differ by up to 2.0e-04 (1e-04 is allowed)"),
        ({"agreement": 0.999}, False, "gives 0.9990 of the test images the same label (1 is required)"),
        ({"batch_max_abs_diff": 2e-4}, False, "gives different results for an image alone and in a batch (by 2.0e-04)"),
        ({"max_abs_diff": 0.2, "agreement": 0.98}, True, ""),
        ({"max_abs_diff": 0.2, "agreement": 0.979}, True, "gives 0.9790 of the test images the same label"),
        ({"batch_max_abs_diff": 2e-4}, True, "gives different results for an image alone and in a batch (by 2.0e-04)"),
    ],
)
def test_what_fails_and_why(change: dict, int8: bool, said: str):
    flawless = {"agreement": 1.0, "max_abs_diff": 1e-6, "batch_max_abs_diff": 0.0}
    failure = convert.failure(flawless | change, int8)
    assert said in failure and bool(said) == bool(failure)


def test_proof_sees_other_answers_and_answers_that_depend_on_the_batch():
    wanted = np.eye(3, dtype="float32")[np.arange(12) % 3]

    def saved(pixels: np.ndarray) -> np.ndarray:
        return wanted[pixels[:, 0, 0, 0].astype(int)]

    pixels = np.broadcast_to(np.arange(12, dtype="float32")[:, None, None, None], (12, 2, 2, 3))
    proof = convert.prove_conversion(saved, lambda x: saved(x)[:, ::-1], [pixels[:8], pixels[8:]], np.arange(12) % 3)
    assert proof["agreement"] == proof["accuracy"] == pytest.approx(1 / 3)
    assert proof["saved_model_accuracy"] == 1.0 and proof["max_abs_diff"] == 1.0
    proof = convert.prove_conversion(saved, lambda x: saved(x) + len(x) * 1e-3, [pixels], np.arange(12) % 3)
    assert proof["batch_max_abs_diff"] == pytest.approx(0.011, abs=1e-6)


# --- the command ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a real run on photos that are easy to tell apart; `photos` lies beside it."""
    top, rng = tmp_path_factory.mktemp("convert"), np.random.default_rng(0)
    for name, level in (("dark", 60), ("größer", 190)):
        (top / "photos" / name).mkdir(parents=True)
        for number in range(30):
            pixels = np.clip(rng.normal(level, 30, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(top / "photos" / name / f"{number}.png")
    flags = ["--source", "resnet_mini", "--unfreeze", "frozen", "--views", "1", "--no-explain", "--baselines", "none"]
    data = ["--data", f"folder:{top / 'photos'}", "--out", str(top / "run")]
    assert main(["run", "image_classification", *flags, *data]) == 0
    return top / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run, to convert and to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


class _Rows(HTMLParser):
    """The rows of the table of conversions."""

    def __init__(self, html: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(re.search("<!-- conversions -->(.*)<!-- end of conversions -->", html, re.DOTALL)[1])

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data):
        if self.rows and data.strip():
            self.rows[-1].append(data.strip())


def contents(run: Path) -> dict[str, str]:
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in run.rglob("*")
        if path.is_file() and "converted" not in path.parts and path.name != "report.html"
    }


def test_every_package_is_in_the_requirements():
    text = (ROOT / "requirements-convert.txt").read_text("utf-8")
    listed = {re.split("[<>=]", line)[0].replace("-", "_") for line in text.splitlines() if not line.startswith("#")}
    assert listed == {package for packages in PACKAGES.values() for package in packages}


@needs("litert")
@needs("onnx")
def test_convert_writes_proves_and_shows(run: Path, capsys):
    before = contents(run)
    commands = (["--to", "litert"], ["--to", "litert", "--int8"], ["--to", "onnx"], ["--to", "litert"])
    for command in commands:
        assert main(["convert", str(run), *command]) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    assert "passed" in said.out and "report.html" in said.out and "error" not in said.err
    found = {path.parent.name: json.loads(path.read_text("utf-8")) for path in run.glob("converted/*/conversion.json")}
    assert set(found) == {"litert", "litert_int8", "onnx"}
    for kind, one in found.items():
        file = run / "converted" / kind / ("model.onnx" if kind == "onnx" else "model.tflite")
        assert one["passed"] and one["examples"] == json.loads((run / "metrics.json").read_text())["counts"]["test"]
        assert one["bytes"] == file.stat().st_size and one["from"] == "serving/image_classification/1"
        assert file.with_name("labels.txt").read_text("utf-8") == "dark\ngrößer\n"
    assert found["litert_int8"]["float_bytes"] == found["litert"]["bytes"] > 3.5 * found["litert_int8"]["bytes"]
    assert 0 < found["litert_int8"]["calibration_images"] <= 60
    rows = _Rows((run / "report.html").read_text("utf-8")).rows
    assert [row[0] for row in rows] == ["model", "litert", "litert_int8", "onnx"]  # converted twice, shown once
    assert all(row[-1] == "passed" for row in rows[1:])
    assert contents(run) == before  # nothing else of the run was touched


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["--to", "litert", "--int8"], marks=needs("litert")),
        pytest.param(["--to", "onnx"], marks=needs("onnx")),
    ],
)
def test_the_program_in_the_readme_runs(run: Path, flags: list[str], monkeypatch):
    assert main(["convert", str(run), *flags]) == 0
    folder = run / "converted" / ("onnx" if "onnx" in flags else "litert_int8")
    text = (folder / "README.md").read_text("utf-8")
    (program,) = re.findall("```python\n(.*?)```", text, re.DOTALL)
    dtype = re.search(r"`pixels`, (\w+) \[1, 64, 64, 3\]", text)[1]
    for level, name in ((60, "dark"), (190, "größer")):
        noisy = np.random.default_rng(5).normal(level, 30, (1, 64, 64, 3))
        given = {"pixels": np.clip(noisy, 0, 255).astype(dtype)}
        monkeypatch.chdir(folder)
        exec(program, given)
        labels = (folder / "labels.txt").read_text("utf-8").splitlines()
        assert labels[given["probabilities"][0].argmax()] == name


@needs("litert")
@pytest.mark.parametrize("flags", [[], pytest.param(["--int8"], marks=pytest.mark.slow)])
def test_a_conversion_that_answers_otherwise_is_told_and_fails(run: Path, tmp_path, flags, monkeypatch, capsys):
    other = converting.to_litert(converting.with_constant_weights(exported(network(), tmp_path), GIVES))
    monkeypatch.setattr(converting, "to_litert_int8" if flags else "to_litert", lambda *arguments: other)
    assert main(["convert", str(run), "--to", "litert", *flags]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: the proof failed:") and "Do not use it" in said.err
    assert "FAILED" in said.out and "FAILED" in _Rows((run / "report.html").read_text("utf-8")).rows[1][-1]
    written = json.loads((run / "converted" / ("litert_int8" if flags else "litert") / "conversion.json").read_text())
    assert written["passed"] is False and written["agreement"] < 1


def refused(arguments: list[str], capsys) -> str:
    capsys.readouterr()
    assert main(["convert", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and len(said.splitlines()) == 1
    return said


def test_wrong_arguments_are_told_before_tensorflow(finished: Path, tmp_path: Path, capsys):
    assert "Allowed: litert, onnx" in refused([str(finished), "--to", "torch"], capsys)
    assert "--to litert --int8" in refused([str(finished), "--to", "onnx", "--int8"], capsys)
    assert "there is no folder" in refused([str(tmp_path / "none"), "--to", "litert"], capsys)
    assert "holds no export" in refused([str(tmp_path), "--to", "litert"], capsys)
    program = "import sys; from recipes.__main__ import main; code = main(sys.argv[1:]); "
    program += "print(code, *{'recipes.commands.convert', 'tensorflow', 'numpy'} & set(sys.modules))"
    command = [sys.executable, "-c", program, "convert", str(finished), "--to", "torch"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["2", "recipes.commands.convert"], done.stderr


def test_a_run_that_is_not_finished_or_has_no_images_is_refused(run: Path, capsys):
    metrics = (run / "metrics.json").read_text()
    (run / "metrics.json").unlink()
    said = refused([str(run), "--to", "litert"], capsys)
    assert "holds no finished run (metrics.json" in said and "--resume" in said
    (run / "metrics.json").write_text("{")
    assert "cannot be read" in refused([str(run), "--to", "litert"], capsys)
    (run / "metrics.json").write_text(metrics)
    (run / "config.json").write_text("{}")
    assert "labelled images" in refused([str(run), "--to", "litert"], capsys)


@pytest.mark.parametrize("form", PACKAGES)
def test_what_is_not_installed_is_named_with_the_command(finished: Path, form: str, capsys):
    if all(importlib.util.find_spec(package) for package in PACKAGES[form]):
        pytest.skip(f"what --to {form} needs is installed here")
    assert "pip install -r requirements-convert.txt" in refused([str(finished), "--to", form], capsys)


@needs("litert")
def test_images_that_moved_or_changed_are_told(run: Path, tmp_path: Path, capsys):
    config = json.loads((run / "config.json").read_text())
    photos = Path(shutil.copytree(config["data"].removeprefix("folder:"), tmp_path / "photos"))
    next(photos.glob("dark/*.png")).unlink()
    (run / "config.json").write_text(json.dumps(config | {"data": f"folder:{photos}"}))
    said = refused([str(run), "--to", "litert"], capsys)
    assert "are no longer those of" in said and "or run the recipe again" in said
    shutil.rmtree(photos)
    said = refused([str(run), "--to", "litert", "--int8"], capsys)
    assert "but were not found" in said and str(photos) in said and "Restore them" in said
    assert not (run / "converted").exists()


@needs("litert")
def test_an_export_of_another_kind_is_refused(run: Path, capsys):
    module, version = tf.Module(), run / "serving" / "image_classification" / "2"
    double = tf.function(lambda x: {"y": 2 * x}, input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    tf.saved_model.save(module, str(version), {"serving_default": double})
    said = refused([str(run), "--to", "litert"], capsys)
    assert "Its signatures: serving_default" in said and "image classifier" in said
    (version / "saved_model.pb").write_bytes(b"")
    assert "cannot be loaded" in refused([str(run), "--to", "litert"], capsys)


@pytest.mark.slow
@needs("litert")
def test_a_full_disk_is_told_and_the_model_before_stays(run: Path):
    """RLIMIT_FSIZE makes the kernel refuse what is written beyond it, as a full disk does."""
    assert main(["convert", str(run), "--to", "litert"]) == 0
    model = run / "converted" / "litert" / "model.tflite"
    before = model.read_bytes()
    program = "import resource, sys; from recipes.__main__ import main\n"
    program += "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
    program += f"sys.exit(main(['convert', {str(run)!r}, '--to', 'litert']))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "Not enough disk space for the converted model" in done.stderr
    assert model.read_bytes() == before and not list(model.parent.glob(".*"))


def test_a_report_without_a_place_for_it_stays_as_it_is(tmp_path: Path):
    one = {"kind": "onnx", "bytes": 2, "saved_model_bytes": 3, "agreement": 1.0, "examples": 4, "max_abs_diff": 0.0,
           "accuracy": 1.0, "saved_model_accuracy": 1.0, "milliseconds": 1.0, "saved_model_milliseconds": 2.0,
           "passed": True}  # fmt: skip
    report = tmp_path / "report.html"
    assert not converting.show_in_report(report, [one]) and not report.exists()
    report.write_text("<main>of an older version</main>")
    assert not converting.show_in_report(report, [one])
    assert report.read_text() == "<main>of an older version</main>"


def test_what_only_a_server_needs_does_not_count_as_the_model(tmp_path: Path):
    for name in ("saved_model.pb", "variables/variables.index", "assets.extra/tf_serving_warmup_requests"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    assert converting.saved_model_bytes(tmp_path) == 10


def test_calibration_images_are_few_and_the_same_for_the_same_seed(tmp_path: Path):
    of = {"train": range(210), "val": range(210, 214), "test": range(214, 218)}
    for split, levels in of.items():
        for level in levels:
            folder = tmp_path / "photos" / split / ("even", "odd")[level % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (level, 0, 0)).save(folder / f"{level}.png")
    data = load_image_set(f"folder:{tmp_path / 'photos'}", tmp_path, (4, 4))

    def levels_of(seed: int) -> list[int]:
        count, stream = convert.calibrate(data, seed)
        pixels = list(stream())
        assert count == len(pixels) and {one.shape for one in pixels} == {(1, 4, 4, 3)}
        return [int(one[0, 0, 0, 0]) for one in pixels]

    chosen = levels_of(7)
    assert len(set(chosen)) == len(chosen) == convert.CALIBRATION_IMAGES and set(chosen) <= set(of["train"])
    assert chosen == levels_of(7) and chosen != levels_of(8)
    few = load_image_set(f"folder:{tmp_path / 'photos'}", tmp_path, (4, 4), limit=6)
    count, stream = convert.calibrate(few, 0)
    assert count == len(few.train) == len(list(stream())) < 210
