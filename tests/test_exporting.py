"""The export serves what was evaluated, and the proof would notice if it did not."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import exporting
from common.images import export
from common.images.batches import image_batches
from common.images.folding import fold_batch_norm
from common.images.pixels import read_images
from common.images.sources import load_source
from common.proof.prove import FreshProcess, in_background
from recipes.__main__ import RECIPES

SIZE = (32, 32)


@pytest.fixture
def pictures(two_classes: Path) -> list[str]:
    return [str(path) for path in sorted(two_classes.rglob("*.png"))]


def small_classifier(names: int = 2) -> keras.Model:
    """A model with everything that behaves differently in training: BatchNorm, Dropout, a preprocessing layer."""
    pixels = keras.Input((*SIZE, 3))
    x = keras.layers.Resizing(24, 24)(pixels)  # from here on Keras 3.15 defaults to training mode
    x = keras.layers.Conv2D(8, 3, strides=2)(keras.layers.Rescaling(1 / 255)(x))
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.5)(keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x)))
    model = keras.Model(pixels, keras.layers.Dense(names, activation="softmax", name="head")(x))
    model.compile("sgd", "sparse_categorical_crossentropy")
    rng = np.random.default_rng(0)
    model.fit(rng.uniform(0, 255, (32, *SIZE, 3)), rng.integers(0, names, 32), verbose=0)
    return model


def predicted(model: keras.Model, paths: list[str]) -> np.ndarray:
    return model.predict(image_batches(read_images(paths, SIZE), 16), verbose=0)


def encoded(paths: list[str]) -> tf.Tensor:
    return tf.constant([Path(path).read_bytes() for path in paths])


def test_plain_keras_export_serves_in_training_mode_and_stores_variables_twice(tmp_path: Path):
    """Pins the two traps that `export_image_classifier` avoids; when this fails, Keras has mended one of them."""
    model = small_classifier()
    pixels = np.random.default_rng(1).uniform(0, 255, (8, *SIZE, 3)).astype("float32")
    model.export(tmp_path / "plain", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "plain"))
    assert np.abs(loaded.serve(pixels).numpy() - model.predict(pixels, verbose=0)).max() > 1e-3
    stored = [name for name, _ in tf.train.list_variables(str(tmp_path / "plain" / "variables" / "variables"))]
    assert len([name for name in stored if "OBJECT_GRAPH" not in name]) >= 2 * len(model.weights)


def test_served_answers_equal_predict_and_repeat(tmp_path: Path, pictures: list[str]):
    model = small_classifier()
    version = export.export_image_classifier(model, tmp_path / "servable", ("dark", "hell"))
    loaded = tf.saved_model.load(str(version))
    serve = loaded.signatures["serving_default"]
    for paths in (pictures[:1], pictures[:5]):  # the batch is dynamic
        answer = serve(image=encoded(paths))
        wanted = predicted(model, paths)
        np.testing.assert_allclose(answer["probabilities"], wanted, atol=1e-5)
        assert [label.decode() for label in answer["label"].numpy()] == [
            ("dark", "hell")[i] for i in wanted.argmax(axis=1)
        ]
        np.testing.assert_array_equal(answer["probabilities"], serve(image=encoded(paths))["probabilities"])
        assert answer["class_names"].numpy().tolist() == [[b"dark", b"hell"]] * len(paths)


def test_signatures_take_what_the_outside_world_has(tmp_path: Path, pictures: list[str]):
    model = small_classifier()
    version = export.export_image_classifier(model, tmp_path / "servable", ("dark", "größer"))
    loaded = tf.saved_model.load(str(version))
    assert set(loaded.signatures) == {"serving_default", "tensors", "embed"}
    inputs = {name: sig.structured_input_signature[1] for name, sig in loaded.signatures.items()}
    assert inputs["serving_default"] == {"image": tf.TensorSpec([None], tf.string, name="image")}
    assert inputs["tensors"] == {"pixels": tf.TensorSpec((None, *SIZE, 3), tf.float32, name="pixels")}
    batch = next(iter(image_batches(read_images(pictures[:4], SIZE), 4)))
    tensors = loaded.signatures["tensors"](pixels=batch)
    by_bytes = loaded.signatures["serving_default"](image=encoded(pictures[:4]))
    np.testing.assert_allclose(tensors["probabilities"], by_bytes["probabilities"], atol=1e-6)
    assert loaded.signatures["embed"](image=encoded(pictures[:4]))["embedding"].shape == (4, 8)
    assert by_bytes["class_names"].numpy()[0, 1].decode() == "größer"
    with pytest.raises(tf.errors.InvalidArgumentError):
        loaded.signatures["serving_default"](image=tf.constant([b"no picture"]))


def test_loads_the_way_tf_serving_loads(tmp_path: Path, pictures: list[str]):
    """Graph, restore op and signature by tensor name: what the C++ server does, and what slimming must keep."""
    model = small_classifier()
    version = export.export_image_classifier(model, tmp_path / "servable", ("dark", "hell"))
    raw = [Path(path).read_bytes() for path in pictures[:3]]
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], str(version))
        signature = meta_graph.signature_def["serving_default"]
        answer = session.run(signature.outputs["probabilities"].name, {signature.inputs["image"].name: raw})
    np.testing.assert_allclose(answer, predicted(model, pictures[:3]), atol=1e-5)


def test_export_is_hardly_larger_than_the_weights_and_stores_each_once(tmp_path: Path):
    source = load_source("keras:MobileNetV2(size=96)@random")
    head = keras.layers.Dense(2, activation="softmax", name="head")(source.extractor.output)
    model = keras.Model(source.extractor.input, head)
    version = export.export_image_classifier(model, tmp_path / "servable", ("a", "b"))
    stored = [name for name, _ in tf.train.list_variables(str(version / "variables" / "variables"))]
    served = fold_batch_norm(model, for_serving=True)
    assert exporting.size_report(version, served)["ratio"] <= 1.05
    assert len([name for name in stored if "OBJECT_GRAPH" not in name]) == len(served.weights) < len(model.weights)


def test_export_of_a_half_precision_model_is_refused(tmp_path: Path):
    keras.config.set_dtype_policy("float16")
    pixels = keras.Input((*SIZE, 3))
    x = keras.layers.GlobalAveragePooling2D()(pixels)
    model = keras.Model(pixels, keras.layers.Dense(2, activation="softmax", name="head")(x))
    with pytest.raises(ValueError, match="float32"):
        export.export_image_classifier(model, tmp_path / "servable", ("a", "b"))


def test_versions_count_up_and_a_failed_export_leaves_nothing(tmp_path: Path):
    model = small_classifier()
    first = export.export_image_classifier(model, tmp_path / "servable", ("a", "b"))
    (tmp_path / "servable" / "7").mkdir()
    second = export.export_image_classifier(model, tmp_path / "servable", ("a", "b"))
    assert (first.name, second.name) == ("1", "8")

    def full_disk(partial: Path):
        (partial / "half").write_text("written")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        exporting.write_version(tmp_path / "servable", full_disk)
    assert sorted(path.name for path in (tmp_path / "servable").iterdir()) == ["1", "7", "8"]


def test_proof_passes_for_the_true_export(tmp_path: Path, pictures: list[str]):
    model = small_classifier()
    version = export.export_image_classifier(model, tmp_path / "servable", ("dark", "größer"))
    proof = export.prove_image_classifier(version, pictures, predicted(model, pictures), ("dark", "größer"))
    assert proof["passed"], proof
    assert proof["examples"] == len(pictures) and proof["agreement"] == 1.0
    assert proof["max_abs_diff"] <= 1e-5 and proof["ops_outside_tf_serving"] == []


LIES = ["probabilities", *(pytest.param(lie, marks=pytest.mark.slow) for lie in ("labels", "nan"))]


@pytest.mark.parametrize("lie", LIES)
def test_proof_notices_an_export_that_answers_otherwise(tmp_path: Path, pictures: list[str], lie: str):
    model = small_classifier()
    version = export.export_image_classifier(model, tmp_path / "servable", ("dark", "hell"))
    probabilities, names = predicted(model, pictures), ("dark", "hell")
    if lie == "probabilities":
        probabilities = probabilities + np.array([3e-4, -3e-4], "float32")
    elif lie == "nan":
        probabilities[1, 1 - probabilities[1].argmax()] = np.nan  # the first: each larger number passes over it
    else:
        names = ("hell", "dark")
    proof = export.prove_image_classifier(version, pictures, probabilities, names)
    assert not proof["passed"]


def test_proof_notices_ops_that_no_server_has(tmp_path: Path, pictures: list[str]):
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image")])
    def serve(image):
        probabilities = tf.numpy_function(lambda b: np.full((len(b), 2), 0.5, "float32"), [image], tf.float32)
        return {"label": tf.fill(tf.shape(image), "dark"), "probabilities": probabilities}

    tf.saved_model.save(module, str(tmp_path / "1"), {"serving_default": serve})
    halves = np.full((4, 2), 0.5, "float32")
    proof = export.prove_image_classifier(tmp_path / "1", pictures[:4], halves, ("dark", "hell"))
    assert not proof["passed"]
    # The fresh process has no such Python function: it cannot even answer.
    assert "error" in proof or "PyFunc" in proof["ops_outside_tf_serving"]


def test_an_image_that_has_changed_is_not_the_fault_of_the_export(tmp_path: Path, pictures: list[str]):
    copies = [str(shutil.copy(picture, tmp_path / f"{number}.png")) for number, picture in enumerate(pictures[:3])]
    model, hashes = small_classifier(), [hashlib.sha256(Path(copy).read_bytes()).hexdigest() for copy in copies]
    version = export.export_image_classifier(model, tmp_path / "servable", ("dark", "hell"))
    proved = version, copies, predicted(model, copies), ("dark", "hell")
    shutil.copy(pictures[3], copies[1])
    with pytest.raises(FileNotFoundError, match="its content has changed") as raised:
        export.prove_image_classifier(*proved, hashes=hashes)
    assert raised.value.filename == copies[1]
    Path(copies[1]).unlink()
    with pytest.raises(FileNotFoundError, match="No such file"):
        export.prove_image_classifier(*proved, hashes=hashes)


def test_a_proof_in_the_background_returns_or_raises_and_does_not_hold_up_the_end():
    def fail():
        raise OSError("lost")

    assert in_background(lambda one, more: one + more, 1, more=2).result() == 3
    with pytest.raises(OSError, match="lost"):
        in_background(fail).result()
    program = "from common.proof.prove import in_background; import time; in_background(time.sleep, 60)"
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True, cwd=RECIPES.parent)
    assert time.monotonic() - began < 30


def test_a_process_that_was_killed_during_the_training_is_started_again(tmp_path: Path):
    process = FreshProcess()
    process._process.kill()
    process._process.wait()
    assert "inputs.json" in process.run("classes", tmp_path, tmp_path / "inputs.json", tmp_path, tmp_path)


def test_proof_of_a_folder_that_is_no_export_fails_with_the_reason(tmp_path: Path, pictures: list[str]):
    proof = export.prove_image_classifier(tmp_path, pictures[:2], np.full((2, 2), 0.5, "float32"), ("a", "b"))
    assert not proof["passed"] and "error" in proof
