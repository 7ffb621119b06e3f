"""A converted detector finds what its SavedModel finds, the proof rejects one that does not, its program runs."""

from __future__ import annotations

import importlib.util
import re

import keras
import numpy as np
import pytest

from common.converting import (
    load_to_convert,
    open_litert,
    open_onnx,
    open_saved_model,
    size_and_class_names,
    to_litert,
    to_onnx,
    with_constant_weights,
)
from common.detection import inference, one_grid
from common.detection.convert import DETECTOR, choose, failure, how_to_use, prove_conversion
from common.errors import UserError
from common.images.sources import load_source
from recipes.commands.convert import PACKAGES

SIZE = (64, 96)


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    """The export of a detector whose random weights find something everywhere."""
    keras.utils.set_random_seed(0)
    detector = one_grid.build_detector(load_source("keras:MobileNetV2@random", SIZE), 3, width=16)
    kernel, bias = detector.model.get_layer("heat").get_weights()
    detector.model.get_layer("heat").set_weights([30 * kernel, bias + 3])
    folder = tmp_path_factory.mktemp("export") / "object_detection"
    return inference.export_detector(detector, folder, ["a", "b", "c"], threshold=0.3)


@pytest.fixture(scope="module")
def loaded(version):
    return load_to_convert(version, DETECTOR.gives)


def images(count: int = 6) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (count, *SIZE, 3)).astype("float32")


def test_what_is_converted_knows_what_it_gives_its_size_and_its_names(version, loaded):
    with pytest.raises(UserError, match="must take pixels and return class_names and probabilities"):
        load_to_convert(version, "probabilities")
    assert open_saved_model(loaded, "candidates")(images(1)).shape[-1] == 4 + 3
    assert size_and_class_names(loaded) == (SIZE, ["a", "b", "c"])


@pytest.mark.parametrize("form", ["litert", pytest.param("onnx", marks=pytest.mark.slow)])
def test_conversions_find_the_same_boxes_and_the_program_beside_them_too(loaded, form, tmp_path, monkeypatch):
    absent = [package for package in PACKAGES[form] if importlib.util.find_spec(package) is None]
    if absent:
        pytest.skip(f"no {', '.join(absent)}: pip install -r requirements-convert.txt")
    function, saved = with_constant_weights(loaded, DETECTOR.gives), open_saved_model(loaded, DETECTOR.gives)
    model = {"litert": to_litert, "onnx": to_onnx}[form](function)
    ask = {"litert": open_litert, "onnx": open_onnx}[form](model, 2)
    proof = prove_conversion(saved, ask, [images()[:4], images()[4:]])
    assert failure(proof) == "", proof
    assert proof["examples"] == 6 and proof["boxes"] > 20

    monkeypatch.chdir(tmp_path)
    name = "model.onnx" if form == "onnx" else "model.tflite"
    (tmp_path / name).write_bytes(model)
    (program,) = re.findall("```python\n(.*?)```", how_to_use(name, "float32", SIZE, "letterbox", 3), re.DOTALL)
    given = {"pixels": images(1)}
    exec(program, given)
    (chosen,) = choose(saved(images(1)))
    sure = chosen["scores"] > 0.3
    assert len(given["found"]) == sure.sum() > 0
    for (box, label, score), i in zip(given["found"], np.flatnonzero(sure), strict=True):
        np.testing.assert_allclose(box, chosen["boxes"][i], atol=1e-2)
        assert label == chosen["labels"][i] and score == pytest.approx(chosen["scores"][i], abs=1e-4)


def test_the_proof_sees_moved_boxes_other_scores_and_a_missing_class(loaded):
    saved = open_saved_model(loaded, DETECTOR.gives)

    def changed(change):
        return lambda pixels: np.concatenate(change(*np.split(saved(pixels), [4], axis=-1)), axis=-1)

    def proof(change):
        return prove_conversion(saved, changed(change), [images(2)])

    assert failure(proof(lambda boxes, scores: (boxes, scores))) == ""
    assert proof(lambda boxes, scores: (boxes + np.float32(5), scores))["agreement"] < 1
    assert proof(lambda boxes, scores: (boxes, scores - 0.004))["max_abs_diff"] == pytest.approx(0.004, abs=1e-5)
    assert "scores that differ by up to 4.0e-03" in failure(proof(lambda boxes, scores: (boxes, scores - 0.004)))
    assert proof(lambda boxes, scores: (boxes, scores * [1, 1, 0]))["agreement"] < 1
