"""The requests that a server replays when it loads a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from common.images import export
from common.proof.warmup import MOST_RECORDS, WARMUP_FILE, write_warmup
from common.serving.models import ModelConfig, Models
from common.serving.servables import Servable, replay_warmup
from common.serving.warmup import read_warmup
from tests.serving import serving_models
from tests.test_exporting import small_classifier


@pytest.fixture
def version(tmp_path: Path, two_classes: Path) -> Path:
    example = sorted(two_classes.rglob("*.png"))[0]
    return export.export_image_classifier(small_classifier(), tmp_path / "servable", ("dark", "hell"), example=example)


def test_an_export_holds_a_real_example_for_every_signature(version: Path, two_classes: Path):
    requests = {request.model_spec.signature_name: request for request in read_warmup(version)}
    assert set(requests) == set(tf.saved_model.load(str(version)).signatures) == {"serving_default", "tensors", "embed"}
    assert {request.model_spec.name for request in requests.values()} == {"servable"}
    sent = tf.make_ndarray(requests["serving_default"].inputs["image"])
    assert sent[0] == sorted(two_classes.rglob("*.png"))[0].read_bytes()
    assert tf.make_ndarray(requests["tensors"].inputs["pixels"]).shape == (1, 32, 32, 3)


def test_every_recorded_request_is_answered(version: Path):
    """As the real server does at load: a SavedModel whose warm-up fails is not served there."""
    servable, asked = Servable("servable", 1, version), []
    for name, answer in list(servable.answer.items()):
        servable.answer[name] = lambda inputs, name=name, answer=answer: asked.append(name) or answer(inputs)
    assert replay_warmup(servable) == 3
    assert sorted(asked) == ["embed", "serving_default", "tensors"]


def test_a_version_whose_warm_up_fails_is_not_served(tmp_path: Path):
    version = serving_models.constant(tmp_path / "model" / "1", 1.0)

    def refused() -> str:
        models = Models([ModelConfig("model", tmp_path / "model")])
        with pytest.raises(UserError) as caught:
            models.start()
        return str(caught.value)

    write_warmup(version, "model", [("serving_default", {"z": np.zeros(1, np.float32)})])
    assert "Missing but required: {x}" in refused()
    write_warmup(version, "model", [("absent", {"x": np.zeros(1, np.float32)})])
    assert '"absent" not found' in refused()
    (version / WARMUP_FILE).write_bytes(b"no TFRecord at all, but long enough to look like one")
    assert "tf_serving_warmup_requests is damaged" in refused()
    (version / WARMUP_FILE).unlink()
    models = Models([ModelConfig("model", tmp_path / "model")])
    models.start()
    models.close()


def test_no_more_requests_than_the_real_server_takes(tmp_path: Path):
    version = serving_models.constant(tmp_path / "1", 1.0)
    request = ("serving_default", {"x": np.zeros(1, np.float32)})
    write_warmup(version, "model", [request] * MOST_RECORDS)
    assert len(read_warmup(version)) == MOST_RECORDS
    with pytest.raises(ValueError, match="at most 1000"):
        write_warmup(version, "model", [request] * (MOST_RECORDS + 1))
