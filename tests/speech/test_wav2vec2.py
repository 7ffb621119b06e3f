"""wav2vec 2.0: against committed answers of transformers, padding, CTC by brute force, heads, pre-training.

benchmarks/refresh_wav2vec2_golden.py wrote the answers; nothing here needs PyTorch or transformers.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from common.proof.fresh_process.ops import ops_outside_tf_serving
from common.speech.wav2vec2 import heads, masking, utterance_head, weights
from common.speech.wav2vec2.config import Wav2Vec2Config
from common.speech.wav2vec2.network import FeatureExtractor, TransformerBlock, Wav2Vec2Backbone, connect
from common.speech.wav2vec2.pretraining import (
    Wav2Vec2Pretraining,
    _pretraining_targets,
    draw_distractors,
    gumbel_one_hot,
    load_pretraining,
    perplexity,
    pretraining_loss,
)

GOLDEN = Path(__file__).parent / "data/wav2vec2_golden.npz"
TINY = Wav2Vec2Config(
    conv_dim=(16,) * 7, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
    num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4, mask_time_length=3, num_codevectors_per_group=6,
    codevector_dim=8, proj_codevector_dim=10, num_negatives=5,
)  # fmt: skip
STABLE = dataclasses.replace(
    TINY, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True, num_conv_pos_embeddings=7
)
NETWORKS = {"base": TINY, "stable": STABLE}
both = pytest.mark.parametrize("network", NETWORKS)


@pytest.fixture(scope="module")
def answers() -> dict[str, np.ndarray]:
    """All that the reference said, by `network/name`."""
    with np.load(GOLDEN, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module", params=NETWORKS)
def golden(answers, request) -> dict[str, np.ndarray]:
    """What the reference said of one network."""
    return under(answers, f"{request.param}/")


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory) -> Path:
    """A Hugging Face folder of the network, as transformers writes it."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "config.json").write_text(str(golden["config"]))
    save_file(under(golden, "weights/"), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def loaded(folder) -> weights.LoadedWav2Vec2:
    """The network with the weights of the reference."""
    return weights.load_wav2vec2(folder)


@pytest.fixture(scope="module")
def pretraining(loaded, folder) -> Wav2Vec2Pretraining:
    """The same network with what pre-training needs."""
    model = Wav2Vec2Pretraining(loaded.backbone)
    load_pretraining(model, folder)
    return model


def under(arrays: dict[str, np.ndarray], place: str) -> dict[str, np.ndarray]:
    """Return the arrays of one place, without its name."""
    return {name.removeprefix(place): array for name, array in arrays.items() if name.startswith(place)}


def clips(golden: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"samples": golden["samples"].astype(np.float32), "lengths": golden["lengths"]}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def stirred(model: keras.Model) -> keras.Model:
    """Return the model with weights so large that a wrong one shows; new biases are 0."""
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:
        weight.assign_add(0.2 * rng.normal(size=weight.shape))
    return model


def close(ours, theirs, tolerance: float = 1e-4) -> None:
    """Compare, by a tolerance that grows with numbers above 1."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * max(1.0, np.abs(theirs).max())


# ---- Against the reference --------------------------------------------------------------------------------------


def test_states_of_every_layer_and_logits_are_those_of_the_reference(golden, loaded):
    inputs = clips(golden)
    frames = loaded.backbone.config.frame_lengths(inputs["lengths"])
    assert frames.tolist() == golden["frames"].tolist()
    states = [np.asarray(state) for state in loaded.backbone.every_hidden_state()(inputs)]
    assert len(states) == len(golden["states"])
    logits = np.asarray(heads.build_recogniser(loaded.backbone, loaded.head)(inputs))
    for clip, count in enumerate(frames):
        for ours, theirs in zip(states, golden["states"], strict=True):
            close(ours[clip, :count], theirs[clip, :count])
        close(logits[clip, :count], golden["logits"][clip, :count])
        assert not states[-1][clip, count:].any()


def test_gradients_of_every_weight_are_those_of_the_reference(golden, loaded):
    inputs = clips(golden)
    layers = {layer.name: layer for layer in loaded.backbone.layers}
    with tf.GradientTape() as tape:
        hidden = connect(layers, **inputs, masked=golden["masked"])["hidden"]
        frames = loaded.backbone.config.frame_lengths(inputs["lengths"])
        losses = heads.ctc_loss(golden["labels"], loaded.head(hidden), golden["label_lengths"], frames)
        loss = tf.reduce_sum(losses)
    close(losses, golden["losses"])
    order = list(range(loaded.head.dense.units))
    targets = [*weights.backbone_targets(loaded.backbone), *weights._head_targets(loaded.head, order)]
    ours = tape.gradient(loss, [variable.value for _, variable, _ in targets])
    theirs = {weights._plain_name(name): array for name, array in under(golden, "gradients/").items()}
    assert len(targets) == len(theirs) == len(loaded.backbone.trainable_weights) + 2
    for (name, _, arrange), gradient in zip(targets, ours, strict=True):
        close(gradient, arrange(theirs[name]))
        # The bias of keys adds the same to all scores of a query: softmax does not see it.
        assert name.endswith("k_proj.bias") or np.abs(gradient).max() > 1e-3, name


def test_classes_are_those_of_the_reference(golden, loaded):
    head = utterance_head.UtteranceHead(3, projection_size=12)
    model = utterance_head.build_classifier(loaded.backbone, head)
    for layer, name in ((head.projection, "projector"), (head.dense, "classifier")):
        layer.kernel.assign(golden[f"weights/{name}.weight"].T)
        layer.bias.assign(golden[f"weights/{name}.bias"])
    close(model(clips(golden)), golden["classes"])


def test_pretraining_is_that_of_the_reference(golden, pretraining):
    inputs, distractors = clips(golden) | {"masked": golden["masked"]}, golden["pretraining/distractors"]
    outputs = pretraining(inputs)
    real = np.arange(outputs["predicted"].shape[1]) < golden["frames"][:, None]
    close(np.asarray(outputs["predicted"])[real], golden["pretraining/predicted"][real])
    close(np.asarray(outputs["quantized"])[real], golden["pretraining/quantized"][real])
    close(perplexity(outputs["probabilities"], inputs["masked"]), golden["pretraining/perplexity"])
    losses = pretraining_loss(outputs, inputs["masked"], distractors, pretraining.backbone.config)
    count = inputs["masked"].sum()  # theirs is a sum over the masked frames
    close(losses["contrastive"] * count, golden["pretraining/contrastive"])
    close(losses["diversity"] * count, golden["pretraining/diversity"])


def test_pretraining_with_noise_and_its_gradients_are_those_of_the_reference(golden, pretraining, monkeypatch):
    inputs, distractors = clips(golden) | {"masked": golden["masked"]}, golden["pretraining/distractors"]
    noisy = under(golden, "pretraining/noisy/")
    drawn = []
    monkeypatch.setattr(keras.random, "uniform", lambda *_, **__: drawn.append(1) or noisy["uniform"])
    with tf.GradientTape() as tape:
        outputs = pretraining(inputs, training=True)
        losses = pretraining_loss(outputs, inputs["masked"], distractors, pretraining.backbone.config)
        loss = losses["loss"] * tf.reduce_sum(tf.cast(inputs["masked"], tf.float32))
    assert drawn == [1]  # nothing else is random in this network
    close(loss, noisy["loss"])
    theirs = {weights._plain_name(name): array for name, array in under(noisy, "gradients/").items()}
    targets = [*weights.backbone_targets(pretraining.backbone), *_pretraining_targets(pretraining)]
    targets = [target for target in targets if target[0] in theirs]
    assert len(targets) == len(theirs)
    ours = tape.gradient(loss, [variable.value for _, variable, _ in targets])
    for (name, _, arrange), gradient in zip(targets, ours, strict=True):
        close(gradient, arrange(theirs[name]))


def test_normalised_clips_are_those_of_the_reference(answers):
    ours = masking.normalise(answers["audio/samples"], answers["audio/lengths"])
    close(ours, answers["audio/normalised"], 1e-5)


# ---- Lengths ----------------------------------------------------------------------------------------------------


@both
def test_a_clip_in_a_long_batch_gets_what_it_gets_alone(network):
    backbone = stirred(Wav2Vec2Backbone(NETWORKS[network]))
    short, long = 3000, 40000
    samples = 5 * noise(3, long)  # behind the end of a clip lies noise, which must change nothing
    batch = backbone({"samples": samples, "lengths": np.array([short, long, 1234])})
    for row, length in enumerate((short, long, 1234)):
        alone = np.asarray(backbone({"samples": samples[row : row + 1, :length], "lengths": np.array([length])}))
        frames = backbone.config.frame_lengths(length)
        assert alone.shape[1] == frames
        np.testing.assert_allclose(np.asarray(batch)[row, :frames], alone[0], rtol=0, atol=1e-5)
        assert not np.asarray(batch)[row, frames:].any()
    states = backbone.every_hidden_state()({"samples": samples, "lengths": np.array([short, long, 1234])})
    np.testing.assert_array_equal(states[-1], batch)
    assert np.std(np.asarray(batch)[0, :8], axis=0).min() > 1e-3  # frames differ: the comparison says something


def test_frames_are_counted_as_the_convolutions_give_them():
    config = Wav2Vec2Config.base()
    assert config.receptive_field == 400
    assert [config.frame_lengths(samples) for samples in (0, 3, 399, 400, 719, 720, 16000)] == [0, 0, 0, 1, 1, 2, 49]
    extractor = FeatureExtractor(TINY)
    for samples in (400, 719, 720, 1000, 5001):
        assert extractor(np.zeros((1, samples)), np.array([samples])).shape[1] == TINY.frame_lengths(samples)
    np.testing.assert_array_equal(config.frame_lengths(np.array([399, 720])), [0, 2])
    np.testing.assert_array_equal(config.frame_lengths(tf.constant([399, 720])), [0, 2])


@pytest.mark.filterwarnings("ignore:You are using a softmax over axis -1")  # of the only frame there is
@both
def test_clips_too_short_for_a_frame_give_zeros(network):
    backbone = stirred(Wav2Vec2Backbone(NETWORKS[network]))
    only_short = np.asarray(backbone({"samples": noise(2, 7), "lengths": np.array([7, 0])}))
    assert only_short.shape == (2, 1, 32) and not only_short.any()
    beside = np.asarray(backbone({"samples": noise(2, 900), "lengths": np.array([900, 399])}))
    assert np.isfinite(beside).all() and beside[0].any() and not beside[1].any()
    head = utterance_head.UtteranceHead(3)
    assert np.isfinite(
        utterance_head.build_classifier(backbone, head)({"samples": noise(1, 7), "lengths": np.array([7])})
    ).all()


def test_normalised_clips_have_unit_variance_whatever_lies_behind_them():
    samples, lengths = 3 + 2 * noise(3, 500), np.array([500, 60, 0])
    said = np.asarray(masking.normalise(samples, lengths))
    np.testing.assert_allclose(said[1, :60].mean(), 0, atol=1e-5)
    np.testing.assert_allclose(said[1, :60].var(), 1, atol=1e-4)
    assert not said[1, 60:].any() and not said[2].any()
    np.testing.assert_allclose(said[:1], masking.normalise(samples[:1], lengths[:1]), atol=1e-6)


@pytest.mark.filterwarnings("ignore:You are using a softmax over axis -1")  # of the only frame there is
@both
def test_a_graph_takes_any_batch_and_holds_only_operations_of_the_stock_server(network, tmp_path):
    module = tf.Module()
    module.model = model = heads.build_recogniser(Wav2Vec2Backbone(NETWORKS[network]), heads.CTCHead(5))

    @tf.function(input_signature=[tf.TensorSpec((None, None)), tf.TensorSpec((None,), tf.int32)])
    def serve(samples, lengths):
        return model({"samples": samples, "lengths": lengths}, training=False)

    for batch, time in ((1, 400), (3, 2345), (2, 12)):
        inputs = {"samples": noise(batch, time), "lengths": np.full(batch, time, np.int32)}
        np.testing.assert_allclose(serve(**inputs), model(inputs), atol=1e-5)
    tf.saved_model.save(module, tmp_path, serve)
    assert ops_outside_tf_serving(tmp_path) == []
    # Grouped convolutions of Keras are compiled, which no list of operations shows.
    functions = serve.get_concrete_function().graph.as_graph_def().library.function
    assert not [function for function in functions if function.attr["_XlaMustCompile"].b]


# ---- CTC --------------------------------------------------------------------------------------------------------


def probability_by_hand(labels: list[int], logits: np.ndarray) -> float:
    """Return the sum over all paths that become the labels when repeats are merged and blanks dropped."""
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    total = 0.0
    for path in itertools.product(range(logits.shape[1]), repeat=len(logits)):
        merged = [token for token, _ in itertools.groupby(path)]
        if [token for token in merged if token] == labels:
            total += np.prod([probabilities[frame, token] for frame, token in enumerate(path)])
    return total


def test_ctc_loss_is_the_sum_over_all_paths():
    transcripts = [[1], [1, 2], [2, 2], [1, 1, 2], [], [2, 1, 2]]
    frames = [1, 4, 3, 5, 3, 5]
    logits = 2 * noise(len(frames), 6, 3)  # frames behind the end of a clip have logits too
    labels = np.full((len(frames), 4), 2)  # and behind the end of a transcript there are tokens
    for row, transcript in enumerate(transcripts):
        labels[row, : len(transcript)] = transcript
    said = heads.ctc_loss(labels, logits, [len(one) for one in transcripts], frames)
    expected = [
        -np.log(probability_by_hand(transcript, logits[row, : frames[row]]))
        for row, transcript in enumerate(transcripts)
    ]
    np.testing.assert_allclose(said, expected, rtol=1e-4)


def test_a_transcript_longer_than_its_clip_teaches_nothing():
    labels, lengths = np.array([[1, 2, 1], [2, 2, 0], [1, 2, 0], [1, 0, 0]]), np.array([3, 2, 2, 1])
    logits = tf.constant(noise(4, 3, 3))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = heads.ctc_loss(labels, logits, lengths, np.array([2, 2, 2, 0]))
    gradient = np.asarray(tape.gradient(losses, logits))
    assert np.asarray(losses)[[0, 1, 3]].tolist() == [0, 0, 0] and losses[2] > 0
    assert not gradient[[0, 1, 3]].any() and gradient[2, :2].any() and not gradient[2, 2].any()


# ---- Training ---------------------------------------------------------------------------------------------------


def test_a_recogniser_learns_two_clips_by_heart():
    config = dataclasses.replace(TINY, mask_feature_prob=0.05, mask_feature_length=2)
    model = heads.build_recogniser(Wav2Vec2Backbone(config), heads.CTCHead(4))
    inputs = {"samples": tf.constant(noise(2, 6000)), "lengths": tf.constant([6000, 4000])}
    labels, label_lengths = tf.constant([[1, 2, 3], [3, 1, 0]]), tf.constant([3, 2])
    optimizer = keras.optimizers.Adam(3e-3)
    optimizer.build(model.trainable_weights)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            frames = config.frame_lengths(inputs["lengths"])
            loss = tf.reduce_mean(heads.ctc_loss(labels, model(inputs, training=True), label_lengths, frames))
        gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
        optimizer.apply(gradients, model.trainable_weights)
        return loss

    losses = [float(step()) for _ in range(40)]
    assert np.isfinite(losses).all() and np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_training_masks_and_drops_and_inference_does_not():
    config = dataclasses.replace(TINY, mask_time_prob=0.5, layerdrop=0.5)
    backbone = Wav2Vec2Backbone(config)
    inputs = {"samples": noise(1, 9000), "lengths": np.array([9000])}
    still = [np.asarray(backbone(inputs, training=False)) for _ in range(2)]
    moving = [np.asarray(backbone(inputs, training=True)) for _ in range(2)]
    np.testing.assert_array_equal(*still)
    assert np.abs(moving[0] - moving[1]).max() > 1e-3
    plain = dataclasses.replace(
        config, hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, layerdrop=0.0,
        apply_spec_augment=False,
    )  # fmt: skip
    certain = Wav2Vec2Backbone(plain)
    np.testing.assert_array_equal(certain(inputs, training=True), certain(inputs, training=False))


def test_a_dropped_block_changes_nothing():
    block = TransformerBlock(dataclasses.replace(TINY, layerdrop=1.0))
    hidden, real = noise(2, 5, 32), np.ones((2, 5), bool)
    np.testing.assert_array_equal(block(hidden, real, training=True), hidden)
    assert np.abs(np.asarray(block(hidden, real, training=False)) - hidden).max() > 0.1


def test_half_precision_gives_nearly_the_same():
    backbone = Wav2Vec2Backbone(TINY)
    half = Wav2Vec2Backbone(TINY, dtype="mixed_bfloat16")
    half.set_weights(backbone.get_weights())
    inputs = {"samples": noise(2, 4000), "lengths": np.array([4000, 2000])}
    said = half(inputs)
    assert said.dtype == "bfloat16"
    np.testing.assert_allclose(np.asarray(said, np.float32), backbone(inputs), atol=0.2)


# ---- Saving -----------------------------------------------------------------------------------------------------


@both
def test_a_saved_backbone_comes_back(network, tmp_path):
    backbone = stirred(Wav2Vec2Backbone(NETWORKS[network]))
    backbone.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.config == NETWORKS[network]
    inputs = {"samples": noise(2, 3000), "lengths": np.array([3000, 2100])}
    np.testing.assert_array_equal(again(inputs), backbone(inputs))


@pytest.mark.parametrize("head", ["tokens", "classes"])
def test_a_saved_model_with_a_head_comes_back(head, tmp_path):
    backbone = stirred(Wav2Vec2Backbone(TINY, dtype="float32"))
    if head == "tokens":
        model = heads.build_recogniser(backbone, heads.CTCHead(5, dropout=0.3))
    else:
        model = utterance_head.build_classifier(backbone, utterance_head.UtteranceHead(3, projection_size=7))
    model.save(tmp_path / "model.keras")
    inputs = {"samples": noise(2, 3000), "lengths": np.array([3000, 2100])}
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(inputs), model(inputs))


def test_a_saved_pretraining_comes_back_with_its_backbone(tmp_path):
    model = stirred(Wav2Vec2Pretraining(Wav2Vec2Backbone(TINY)))
    model.quantizer.temperature.assign(0.7)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    inputs = {"samples": noise(1, 3000), "lengths": np.array([3000]), "masked": np.arange(9)[None] % 3 == 0}
    ours, theirs = model(inputs), again(inputs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    del inputs["masked"]
    np.testing.assert_array_equal(model.backbone(inputs), again.backbone(inputs))
    assert float(again.quantizer.temperature) == pytest.approx(0.7)


# ---- Draws of SpecAugment and of pre-training --------------------------------------------------------------------


def test_spans_lie_within_their_clips_and_cover_what_is_asked():
    lengths = np.array([100, 40, 9, 3])
    drawn = masking.draw_spans(np.tile(lengths, 200), 100, 0.3, 5, 1, keras.random.SeedGenerator(0))
    masks = np.asarray(drawn).reshape(200, 4, 100)
    assert masks.dtype == bool
    for clip, length in enumerate(lengths):
        assert not masks[:, clip, length:].any()
    assert not masks[:, 3].any()  # shorter than a span
    assert (masks[:, 2].sum(axis=-1) == 5).all()  # room for one, and at least one is asked for
    # 6 spans of 5: each place that a span can reach is left out by all of them with about (1 - 5/96) ** 6.
    assert masks[:, 0, 10:90].mean() == pytest.approx(1 - (1 - 5 / 96) ** 6, abs=0.03)
    assert masks[:, 0].any(axis=0).all()
    for row in masks[:, 0]:
        runs = [len(list(run)) for masked, run in itertools.groupby(row) if masked]
        assert min(runs) >= 5


def test_the_number_of_spans_is_right_on_average():
    random = keras.random.SeedGenerator(0)
    masks = [masking.draw_spans(np.array([40]), 40, 0.06, 1, 0, random) for _ in range(100)]  # 2.4 spans
    counts = np.array([np.asarray(mask).sum() for mask in masks])
    assert set(counts) == {2, 3} and counts.mean() == pytest.approx(2.4, abs=0.2)


def test_distractors_are_other_masked_frames_of_the_clip_each_as_likely():
    masked = np.zeros((3, 12), bool)
    masked[0, [1, 4, 5, 9]] = masked[1, [0, 11]] = masked[2, 6] = True
    drawn = np.asarray(draw_distractors(masked, 3000, 1))
    assert drawn.shape == (3, 12, 3000)
    for frame in (1, 4, 5, 9):
        found, counts = np.unique(drawn[0, frame], return_counts=True)
        assert found.tolist() == [other for other in (1, 4, 5, 9) if other != frame]
        assert np.abs(counts - 1000).max() < 150
    assert set(drawn[1, 0]) == {11} and set(drawn[1, 11]) == {0}
    assert set(drawn[2, 6]) == {6}  # there is no other


def test_gumbel_chooses_one_entry_as_often_as_its_probability_and_passes_the_soft_gradient():
    scores = tf.constant([[1.0, 0.0, -1.0]])
    uniform = np.random.default_rng(0).uniform(size=(20000, 3)).astype(np.float32)
    drawn = gumbel_one_hot(tf.repeat(scores, 20000, axis=0), -np.log(-np.log(uniform)), 1.0)
    np.testing.assert_allclose(np.mean(drawn, axis=0), tf.nn.softmax(scores)[0], atol=0.02)
    np.testing.assert_allclose(np.max(drawn, axis=1), 1.0, atol=1e-6)
    weights_of = tf.constant([[0.3, -0.2, 0.5]])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(scores)
        hard = tf.reduce_sum(gumbel_one_hot(scores, 0.0, 0.5) * weights_of)
        soft = tf.reduce_sum(tf.nn.softmax(scores / 0.5) * weights_of)
    np.testing.assert_allclose(tape.gradient(hard, scores), tape.gradient(soft, scores), atol=1e-6)
    assert float(hard) == pytest.approx(0.3)


def test_the_objective_by_hand():
    rng = np.random.default_rng(0)
    predicted, quantized = rng.normal(size=(2, 1, 4, 3)).astype(np.float32)
    outputs = {"predicted": predicted, "quantized": quantized, "codes": np.array([[[0], [1], [1], [2]]]),
               "probabilities": np.full((1, 4, 1, 5), 0.2, np.float32)}  # fmt: skip
    masked, distractors = np.array([[True, True, False, True]]), np.array([[[1, 3], [2, 3], [0, 0], [0, 1]]])
    said = pretraining_loss(outputs, masked, distractors, TINY)

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b) / 0.1

    total = 0.0
    for frame, others in ((0, [1, 3]), (1, [3]), (3, [0, 1])):  # frames 1 and 2 have the same code
        logits = [cosine(predicted[0, frame], quantized[0, place]) for place in (frame, *others)]
        total += np.log(np.sum(np.exp(logits))) - logits[0]
    assert float(said["contrastive"]) == pytest.approx(total / 3, rel=1e-4)
    assert float(said["diversity"]) == pytest.approx(0.0, abs=1e-5)  # all entries alike
    outputs["probabilities"] = np.eye(5, dtype=np.float32)[np.zeros((1, 4, 1), int)]
    one_entry = pretraining_loss(outputs, masked, distractors, TINY)
    assert float(one_entry["diversity"]) == pytest.approx(0.8)
    assert float(one_entry["loss"]) == pytest.approx(float(one_entry["contrastive"]) + 0.08, rel=1e-5)


@pytest.mark.slow
def test_pretraining_lowers_its_loss():
    config = dataclasses.replace(TINY, layerdrop=0.0)
    model = Wav2Vec2Pretraining(Wav2Vec2Backbone(config))
    rng = np.random.default_rng(0)
    pitch = np.repeat(rng.uniform(0.02, 1.0, (4, 30)), 400, axis=1)  # clips of tones that last a frame or two
    samples = masking.normalise(np.sin(np.cumsum(pitch, axis=1)), np.full(4, 12000))
    lengths = tf.constant([12000, 12000, 9000, 12000])
    frames = config.frame_lengths(lengths)
    optimizer = keras.optimizers.Adam(2e-3)
    optimizer.build(model.trainable_weights)
    random = keras.random.SeedGenerator(0)

    @tf.function
    def step():
        masked = masking.draw_spans(frames, tf.reduce_max(frames), 0.6, 3, 2, random)
        distractors = draw_distractors(masked, 5, random)
        with tf.GradientTape() as tape:
            outputs = model({"samples": samples, "lengths": lengths, "masked": masked}, training=True)
            losses = pretraining_loss(outputs, masked, distractors, config)
        gradients = tape.gradient(losses["loss"], [weight.value for weight in model.trainable_weights])
        optimizer.apply(gradients, model.trainable_weights)
        return losses["contrastive"]

    losses = [float(step()) for _ in range(80)]
    assert np.isfinite(losses).all() and np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.1


def test_configs_that_cannot_work_say_why():
    with pytest.raises(ValueError, match="one number per convolution"):
        Wav2Vec2Config(conv_dim=(16,))
    with pytest.raises(ValueError, match="hidden_size 768 must be a multiple of num_attention_heads 5"):
        Wav2Vec2Config.base(num_attention_heads=5)
    assert Wav2Vec2Config.xls_r_300m().do_stable_layer_norm and not Wav2Vec2Config.large().do_stable_layer_norm
    again = Wav2Vec2Config.from_dict(json.loads(json.dumps(dataclasses.asdict(TINY))) | {"unknown": 1})
    assert again == TINY
