"""Heads that keep known characters, losses of real frames only, and training on sound alone."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import soundfile

from common import freezing
from common.errors import UserError
from common.speech import commands, contrastive, models
from common.speech.batches import Clips
from common.speech.ctc.characters import Characters
from common.speech.sources import load_speech_source
from common.speech.wav2vec2.config import Wav2Vec2Config
from common.speech.wav2vec2.heads import CTCHead
from common.speech.wav2vec2.network import Wav2Vec2Backbone
from common.speech.wav2vec2.pretraining import Wav2Vec2Pretraining
from common.speech.wav2vec2.weights import save_wav2vec2

LETTERS = Characters(("", " ", *"abcdefgh"))


def tiny_config(**changes) -> Wav2Vec2Config:
    sizes = {"conv_dim": (16,) * 3, "conv_kernel": (10, 8, 4), "conv_stride": (5, 8, 4), "hidden_size": 32,
             "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "num_conv_pos_embeddings": 8,
             "num_conv_pos_embedding_groups": 4, "num_codevectors_per_group": 8, "codevector_dim": 16,
             "proj_codevector_dim": 16, "num_negatives": 5, "layerdrop": 0.0, "mask_time_min_masks": 0}  # fmt: skip
    return Wav2Vec2Config(**sizes | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model with a head, as a run writes it."""
    keras.utils.set_random_seed(1)
    backbone = Wav2Vec2Backbone(tiny_config())
    head = CTCHead(len(LETTERS))
    head.build((None, None, 32))
    head.dense.bias.assign(np.arange(len(LETTERS)))
    return save_wav2vec2(tmp_path / "preset", backbone, head, LETTERS.to_json())


def test_a_new_head_keeps_the_characters_that_the_old_one_wrote(folder):
    source = load_speech_source(f"preset:{folder}")
    wanted = Characters(("", " ", *"BXA"), case="upper")
    assert models.head_places(LETTERS, wanted) == {0: 0, 1: 1, 2: 3, 4: 2}
    dense = models.build_recogniser(source, wanted).get_layer("head").dense
    old = source.head.dense
    for new, known in ((0, 0), (1, 1), (2, 3), (4, 2)):
        np.testing.assert_array_equal(dense.kernel[:, new], old.kernel[:, known])
        assert dense.bias[new] == old.bias[known]
    assert dense.bias[3] == 0.0 and not np.allclose(dense.kernel[:, 3], old.kernel[:, 2])


def test_the_source_is_what_was_saved_and_random_weights_are_not(folder):
    source, again = (load_speech_source(f"preset:{folder}") for _ in range(2))
    assert source.fingerprint() == again.fingerprint() and source.characters == LETTERS and source.normalises
    for random in (load_speech_source(f"preset:{folder}@random"),
                   load_speech_source(f"preset:{folder}", random_weights=True)):  # fmt: skip
        assert random.head is None and random.characters is None
        assert random.fingerprint() != source.fingerprint() and random.card["data"] == "none"


@pytest.mark.parametrize(
    ("spec", "told"),
    [("bundled:resnet_mini", "not a speech model"), ("keras:MobileNetV2", "not a speech model")],
)
def test_what_is_no_model_of_speech_is_told(spec, told):
    with pytest.raises(UserError, match=told):
        load_speech_source(spec)


def test_freezing_leaves_the_convolutions_alone(folder):
    source = load_speech_source(f"preset:{folder}")
    model = models.build_recogniser(source, LETTERS)
    freezing.freeze(model, source.backbone, "frozen")
    assert {id(weight) for weight in model.trainable_weights} == {
        id(weight) for weight in model.get_layer("head").weights
    }
    freezing.freeze(model, source.backbone, models.ENCODER)
    reading = {id(weight) for weight in source.backbone.get_layer("feature_extractor").weights}
    training = {id(weight) for weight in model.trainable_weights}
    freezing.freeze(model, source.backbone, "all")
    assert reading and training == {id(weight) for weight in model.trainable_weights} - reading


def batch() -> tuple[dict, dict]:
    rng = np.random.default_rng(0)
    inputs = {"samples": rng.standard_normal((3, 4000)).astype(np.float32), "lengths": np.int32([4000, 2500, 3000])}
    return inputs, {"labels": np.int32([[2, 3, 4], [5, 6, 0], [7, 0, 0]]), "characters": np.int32([3, 2, 1])}


def test_the_loss_is_that_of_each_clip_alone_per_character(folder):
    source = load_speech_source(f"preset:{folder}")
    learner = models.Learner(models.build_recogniser(source, LETTERS), source.backbone.config)
    inputs, targets = batch()
    together = float(learner.compute_loss(inputs, targets, learner(inputs, training=False)))
    losses = []
    for place in range(3):
        one = {name: values[place : place + 1] for name, values in inputs.items()}
        one["samples"] = one["samples"][:, : one["lengths"][0]]
        its = {name: values[place : place + 1] for name, values in targets.items()}
        losses.append(float(learner.compute_loss(one, its, learner(one, training=False))) * its["characters"][0])
    assert together == pytest.approx(sum(losses) / 6, rel=1e-4)


@pytest.mark.slow
def test_classes_are_learned_too(folder):
    source = load_speech_source(f"preset:{folder}")
    learner = models.Learner(commands.build_classifier(source, 3), source.backbone.config)
    learner.compile(optimizer=keras.optimizers.Adam(1e-3), jit_compile=False)
    inputs, labels = batch()[0], np.int64([0, 1, 2])
    losses = [float(learner.train_on_batch(inputs, labels)) for _ in range(25)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_sound_alone_teaches(tmp_path: Path):
    """Tones that stay the same for a while: what is hidden can be told from what is around it."""
    rng = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    learner = contrastive.ContrastiveLearner(Wav2Vec2Pretraining(Wav2Vec2Backbone(tiny_config())), seed=0)
    learner.compile(optimizer=keras.optimizers.Adam(2e-3), jit_compile=False)
    times = np.arange(2000) / 16_000

    def sound() -> np.ndarray:
        return np.concatenate([np.sin(2 * np.pi * rng.uniform(200, 3000) * times) for _ in range(4)]).astype(np.float32)

    paths = []
    for number in range(6):
        paths.append(str(tmp_path / f"{number}.wav"))
        soundfile.write(paths[-1], sound(), 16_000)
    clips, seconds = Clips(paths, title=""), np.full(6, 0.5)
    before, same = (contrastive.contrastive_scores(learner, clips, seconds, 10.0) for _ in range(2))
    assert before == same  # the same places are hidden each time
    hidden = learner({"samples": np.zeros((2, 8000), np.float32), "lengths": np.int32([8000, 4000])}, training=True)
    share = np.asarray(hidden["masked"]).mean(axis=1)
    assert 0.2 < share[0] < 0.9 and not np.asarray(hidden["masked"])[1, 30:].any()
    for _ in range(60):
        learner.train_on_batch(
            {"samples": np.stack([sound() for _ in range(8)]), "lengths": np.full(8, 8000, np.int32)}, np.zeros(8)
        )
    after = contrastive.contrastive_scores(learner, clips, seconds, 10.0)
    assert after["contrastive_loss"] < 0.9 * before["contrastive_loss"]
    learner.cool(1.0)
    assert float(learner.network.quantizer.temperature) == pytest.approx(0.5)
