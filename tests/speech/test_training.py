"""A stage of training a speech model: its epochs, what it trains, and the weights that it keeps."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import freezing
from common import training as common_training
from common.speech import models, training
from common.speech.sources import SpeechSource
from common.speech.wav2vec2.network import Wav2Vec2Backbone
from tests.speech.test_models import LETTERS, batch, tiny_config


@pytest.fixture
def source() -> SpeechSource:
    """A source of a few thousand parameters with initial weights and no head."""
    keras.utils.set_random_seed(0)
    return SpeechSource("tiny", Wav2Vec2Backbone(tiny_config()), None, None, True, {})


# Two steps: the first one of the warm-up has a learning rate of 0.
def train(source: SpeechSource, model: keras.Model, folder: Path, validate, stage: str, **changes) -> list[dict]:
    inputs, targets = batch()
    stream = tf.data.Dataset.from_tensors((inputs, targets)).repeat()
    settings = {"epochs": 1, "steps": 2, "head_rate": 1e-2, "encoder_rate": 1e-3, "weight_decay": 0.01, "choose": True,
                "rank": lambda logs: (-logs.get("val_wer", np.inf),), "score": "wer", "save_every": 1e9,
                "checkpoint": folder / f"{stage}.npz"} | changes  # fmt: skip
    return training.train_stage(source, model, lambda epoch, step: stream, validate, stage=stage, **settings)


def changed(model: keras.Model, before: list[np.ndarray]) -> list[bool]:
    return [not np.array_equal(ours, theirs) for ours, theirs in zip(model.get_weights(), before, strict=True)]


@pytest.mark.parametrize(
    ("steps", "head_epochs", "epochs", "head", "finetune"),
    [(1, None, None, 60, 300), (20, None, None, 3, 20), (100, None, None, 2, 15), (1000, None, None, 2, 10),
     (1, 3, 0, 3, 0), (1, 3, 4, 3, 4), (1000, 0, None, 0, 10)],
)  # fmt: skip
def test_few_steps_give_many_epochs_unless_the_user_chooses(steps, head_epochs, epochs, head, finetune):
    found = training.stage_epochs(steps, head_epochs, epochs)
    scratch = head + finetune if epochs else max(10, 6000 // steps)
    assert found == {"head": head, "finetune": finetune, "frozen": head + finetune, "scratch": scratch,
                     "spectrogram": scratch}  # fmt: skip
    fixed = training.stage_epochs(steps, head_epochs, epochs, choose=False, head_steps=400)
    assert fixed["scratch"] <= max(scratch, 1500) and fixed["head"] >= head and fixed["finetune"] == finetune


def test_the_first_stage_trains_the_head_alone(source, tmp_path: Path):
    model = models.build_recogniser(source, LETTERS)
    freezing.freeze(model, source.backbone, "frozen")
    backbone, head = source.backbone.get_weights(), model.get_layer("head").get_weights()
    rows = train(source, model, tmp_path, lambda: {"wer": 0.5, "cer": 0.25}, "head")
    assert [(row["stage"], row["epoch"], row["val_wer"], row["val_cer"]) for row in rows] == [("head", 1, 0.5, 0.25)]
    assert 0 < rows[0]["loss"] < 100
    assert not any(changed(source.backbone, backbone)) and all(changed(model.get_layer("head"), head))


@pytest.mark.parametrize("choose", [True, False])
def test_fine_tuning_that_hurts_is_undone_only_where_validation_chooses(source, tmp_path: Path, choose: bool):
    model = models.build_recogniser(source, LETTERS)
    freezing.freeze(model, source.backbone, models.ENCODER)
    before, scores = model.get_weights(), iter([0.1, 0.9] if choose else [0.9])
    rows = train(source, model, tmp_path, lambda: {"wer": next(scores)}, "finetune", choose=choose)
    assert rows[-1]["val_wer"] == 0.9 and next(scores, None) is None
    assert any(changed(model, before)) == (not choose)


def test_long_stages_are_validated_at_intervals_and_at_the_end(source, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(training, "VALIDATIONS", 2)
    model = models.build_recogniser(source, LETTERS)
    freezing.freeze(model, source.backbone, "frozen")
    rows = train(source, model, tmp_path, lambda: {"wer": 0.5}, "head", epochs=5)
    assert [row["epoch"] for row in rows if "val_wer" in row] == [2, 4, 5] and len(rows) == 5


def test_a_network_from_scratch_is_trained_until_validation_stops_improving(source, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(training, "_PLATEAU", 4)  # two epochs of two steps
    model = models.build_recogniser(source, LETTERS)
    scores = iter([0.9, 0.8, 0.7, *[0.7] * 20])
    rows = train(source, model, tmp_path, lambda: {"wer": next(scores)}, "scratch", epochs=20)
    assert len(rows) == 3 + 3 * 2  # three plateaus in a row
    assert training.how_it_ended(rows, 20, True) == "stopped at a plateau after 9 epochs"
    assert training.how_it_ended(rows, 9, True).startswith("was still improving after 9 epochs")
    assert training.how_it_ended(rows, 9, False) == "trained for 9 epochs, fixed in advance"


def test_the_learning_rate_falls_at_each_plateau_and_a_stopped_stage_continues_with_it(source, tmp_path: Path):
    model = models.build_recogniser(source, LETTERS)
    learner = models.Learner(model, source.backbone.config)
    learner.compile(optimizer=common_training.DiscriminativeAdamW(learning_rate=0.9), jit_compile=False)
    keep, rates = training.KeepBestToPlateau(2, lambda logs: (logs["score"],)), []
    keep.set_model(learner)
    keep.on_train_begin()
    for epoch, score in enumerate([1, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3]):
        keep.on_epoch_end(epoch, {"score": score})
        rates.append(round(float(learner.optimizer.learning_rate), 4))
    assert rates == [0.9, 0.9, 0.9, 0.3, 0.3, 0.3, 0.1, 0.1, 0.0333, 0.0333, 0.0111]
    assert learner.stop_training and keep.best_epoch == 5
    assert any(variable.path.endswith("learning_rate") for variable in learner.optimizer.variables)  # in checkpoints
