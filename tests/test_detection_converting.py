"""A converted detector finds what its SavedModel finds, the proof sees one that does not, its program runs."""

from __future__ import annotations

import importlib.util
import re

import keras
import numpy as np
import pytest

from common import anchor_free, converting, detecting, detection_converting
from common.sources import load_source
from recipes.converting import PACKAGES

SIZE = (64, 96)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """The loaded export of a detector whose random weights find something everywhere."""
    keras.utils.set_random_seed(0)
    detector = anchor_free.build_detector(load_source("keras:MobileNetV2@random", SIZE), 3, width=16)
    kernel, bias = detector.model.get_layer("heat").get_weights()
    detector.model.get_layer("heat").set_weights([30 * kernel, bias + 3])
    folder = tmp_path_factory.mktemp("export") / "object_detection"
    version = detecting.export_detector(detector, folder, ["a", "b", "c"], threshold=0.3)
    return converting.load_to_convert(version)


def pictures(count: int = 6) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (count, *SIZE, 3)).astype("float32")


def test_what_is_converted_knows_its_size_and_names(loaded):
    assert converting.what_it_gives(loaded) == "candidates"
    assert converting.size_and_class_names(loaded) == (SIZE, ["a", "b", "c"])


@pytest.mark.parametrize("form", PACKAGES)
def test_conversions_find_the_same_boxes_and_the_program_beside_them_too(loaded, form, tmp_path, monkeypatch):
    absent = [package for package in PACKAGES[form] if importlib.util.find_spec(package) is None]
    if absent:
        pytest.skip(f"no {', '.join(absent)}: pip install -r requirements-convert.txt")
    function, saved = converting.with_constant_weights(loaded), converting.ask_saved_model(loaded)
    model = {"litert": converting.to_litert, "onnx": converting.to_onnx}[form](function)
    ask = {"litert": converting.open_litert, "onnx": converting.open_onnx}[form](model, 2)
    proof = detection_converting.prove_conversion(saved, ask, [pictures()[:4], pictures()[4:]])
    assert detection_converting.passes(proof), proof
    assert proof["examples"] == 6 and proof["boxes"] > 20

    monkeypatch.chdir(tmp_path)
    name = "model.onnx" if form == "onnx" else "model.tflite"
    (tmp_path / name).write_bytes(model)
    (program,) = re.findall("```python\n(.*?)```", detection_converting.how_to_use(name, SIZE, 3), re.DOTALL)
    given = {"pixels": pictures(1)}
    exec(program, given)
    (chosen,) = detection_converting.choose(saved(pictures(1)))
    sure = chosen["scores"] > 0.3
    assert len(given["found"]) == sure.sum() > 0
    for (box, label, score), i in zip(given["found"], np.flatnonzero(sure), strict=True):
        np.testing.assert_allclose(box, chosen["boxes"][i], atol=1e-2)
        assert label == chosen["labels"][i] and score == pytest.approx(chosen["scores"][i], abs=1e-4)


def test_the_proof_sees_moved_boxes_other_scores_and_a_missing_class(loaded):
    saved = converting.ask_saved_model(loaded)

    def changed(change):
        return lambda pixels: np.concatenate(change(*np.split(saved(pixels), [4], axis=-1)), axis=-1)

    def proof(change):
        return detection_converting.prove_conversion(saved, changed(change), [pictures(2)])

    assert detection_converting.passes(proof(lambda boxes, scores: (boxes, scores)))
    assert proof(lambda boxes, scores: (boxes + np.float32(5), scores))["agreement"] < 1
    assert proof(lambda boxes, scores: (boxes, scores - 0.004))["max_abs_diff"] == pytest.approx(0.004, abs=1e-5)
    assert not detection_converting.passes(proof(lambda boxes, scores: (boxes, scores - 0.004)))
    assert proof(lambda boxes, scores: (boxes, scores * [1, 1, 0]))["agreement"] < 1
