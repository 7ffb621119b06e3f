"""The small log-mel network: padding has no influence, masks in training only, and stages as of a pretrained source."""

from __future__ import annotations

import itertools
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import freezing
from common.speech import commands, models, training
from common.speech.spectrogram import BANDS, LogMel, spectrogram_source
from common.speech.wav2vec2.masking import normalise
from tests.speech.test_models import LETTERS

RATE = 16_000


def tone(hertz: float, seconds: float) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE).astype(np.float32)


def inputs(lengths: list[int], seed: int = 0) -> dict[str, np.ndarray]:
    samples = np.random.default_rng(seed).standard_normal((len(lengths), max(lengths))).astype(np.float32)
    return {"samples": samples, "lengths": np.array(lengths, np.int32)}


@pytest.fixture(params=[True, False], ids=["transcripts", "classes"])
def network(request) -> tuple[bool, object, keras.Model]:
    keras.utils.set_random_seed(0)
    source = spectrogram_source(recurrent=request.param)
    build = models.build_recogniser(source, LETTERS) if request.param else commands.build_classifier(source, 3)
    return request.param, source, build


def band_of(hertz: float) -> int:
    """Return the band with this frequency in the middle, by the definition of the mel scale."""
    low, high, here = (np.log(1 + one / 700) for one in (60.0, 7600.0, hertz))
    return round((here - low) / (high - low) * (BANDS + 1)) - 1


@pytest.mark.parametrize("loud", [1e-2, 1.0])
def test_bands_are_those_of_the_mel_scale_whatever_the_level(loud):
    low, high = 400.0, 3000.0
    clip = normalise((loud * np.concatenate([tone(low, 0.5), tone(high, 0.5)]))[None], np.array([RATE]))
    bands = np.array(LogMel()(clip, np.array([RATE], np.int32)))[0]
    assert bands.shape == (98, BANDS) and np.abs(bands.mean(axis=0)).max() < 1e-3
    for hertz, first in ((low, True), (high, False)):
        begun, ended = bands[5:40, band_of(hertz)].mean(), bands[60:, band_of(hertz)].mean()
        assert (begun > 0.8 and ended < -0.8) if first else (begun < -0.8 and ended > 0.8)


def test_padding_has_no_influence_and_short_clips_pass(network):
    _, source, model = network
    whole = inputs([9000, 16000, 300])
    together = np.array(model(whole, training=False))
    whole["samples"][0, 9000:] = 7.0  # beyond the end a row may have any content
    np.testing.assert_allclose(np.array(model(whole, training=False)), together, atol=1e-5)
    alone = np.array(model({"samples": whole["samples"][:1, :9000], "lengths": whole["lengths"][:1]}, training=False))
    frames = source.backbone.config.frame_lengths(9000) if together.ndim == 3 else None
    np.testing.assert_allclose(alone[0][:frames], together[0][:frames], atol=1e-5)
    assert source.backbone.config.frame_lengths(300) == 0 and np.isfinite(together).all()
    # The batch norms count real frames only: silence beyond the end does not move their statistics.
    statistics = []
    for time in (9000, 16000):
        keras.utils.set_random_seed(1)
        fresh = spectrogram_source(recurrent=False).backbone
        norm = next(layer for layer in fresh.layers if isinstance(layer, keras.layers.BatchNormalization))
        masks = fresh.get_layer("log_mel").masking
        masks.state.assign(keras.ops.zeros_like(masks.state))
        fresh({"samples": np.resize(whole["samples"][1], (1, time)), "lengths": np.array([9000])}, training=True)
        statistics.append(np.array(norm.moving_mean))
    assert np.abs(statistics[0]).max() > 0
    # The masks are drawn for the padded length, so the two differ by them alone.
    assert np.abs(statistics[0] - statistics[1]).max() < 0.3 * np.abs(statistics[0]).max()


def test_masks_are_drawn_in_training_only():
    layer, batch = LogMel(), inputs([RATE] * 4)
    plain, again = (np.array(layer(**batch, training=False)) for _ in range(2))
    np.testing.assert_array_equal(plain, again)
    masked, other = (np.array(layer(**batch, training=True)) for _ in range(2))
    share = np.mean(masked == 0)
    assert 0.1 < share < 0.5 and not np.array_equal(masked, other)
    np.testing.assert_array_equal(masked[masked != 0], plain[masked != 0])


def test_a_stage_that_was_stopped_ends_the_same(network, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(training, "_PLATEAU", 4)
    transcripts, _, _ = network
    labels = {"labels": np.array([[2, 3], [4, 2]], np.int32), "characters": np.array([2, 2], np.int32)}
    targets = labels if transcripts else np.array([0, 2])
    stream = tf.data.Dataset.from_tensors((inputs([8000, 6000]), targets)).repeat()

    def train(checkpoint: str, stop_at: int | None = None) -> tuple[list[dict], list[np.ndarray]]:
        keras.utils.set_random_seed(0)
        source = spectrogram_source(recurrent=transcripts)
        model = models.build_recogniser(source, LETTERS) if transcripts else commands.build_classifier(source, 3)
        freezing.freeze(model, source.backbone, "all", batch_norm="train")
        validations = itertools.count(1)

        def validate():
            if next(validations) == stop_at:
                raise KeyboardInterrupt
            return {"wer": 0.5}  # no epoch but the first is better: the rate falls, and training stops

        rows = training.train_stage(
            source, model, lambda epoch, step: stream, validate, stage="spectrogram", epochs=20, steps=2, head_rate=1.0,
            encoder_rate=1.0, weight_decay=0.0, choose=True, rank=lambda logs: (-logs["val_wer"],), score="wer",
            checkpoint=tmp_path / checkpoint, save_every=0.0,
        )  # fmt: skip
        return rows, model.get_weights()

    rows, weights = train("whole.npz")
    assert len(rows) == 7 and rows[-1]["loss"] < rows[0]["loss"]
    with pytest.raises(KeyboardInterrupt):
        train("stopped.npz", stop_at=5)
    again, same = train("stopped.npz")
    assert again == rows
    for one, other in zip(weights, same, strict=True):
        np.testing.assert_array_equal(one, other)
