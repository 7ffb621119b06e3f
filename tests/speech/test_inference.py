"""A recogniser gives the same text alone, in a batch, and served; and the proof fails if it does not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import grpc
import keras
import numpy as np
import pytest
import soundfile
import tensorflow as tf

from common.errors import UserError
from common.proof.fresh_process.ops import ops_outside_tf_serving
from common.serving.refusals import Refusal
from common.serving.servables import Servable, replay_warmup
from common.serving.warmup import read_warmup
from common.speech.audio.decode import read_sound
from common.speech.batches import Clips
from common.speech.commands import CommandModel, build_command_forward, classify, export_commands, prove_commands
from common.speech.ctc.characters import Characters
from common.speech.ctc.decoding import best_path
from common.speech.export import as_served_wav, export_recogniser, prove_recogniser
from common.speech.inference import Recogniser, Transcripts, build_forward, transcribe, write_text
from common.speech.wav2vec2 import heads, utterance_head
from common.speech.wav2vec2.config import Wav2Vec2Config
from common.speech.wav2vec2.network import Wav2Vec2Backbone

TINY = Wav2Vec2Config(
    conv_dim=(16,) * 7, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
    num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4,
)  # fmt: skip
STABLE = dataclasses.replace(TINY, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
NETWORKS = {"base": TINY, "stable": STABLE}
LETTERS = Characters(("", " ", *"abcdefgh", "é", "ß", "語"))
NAMES = ("yes", "no", "später")


def recogniser(config: Wav2Vec2Config = TINY, seed: int = 0, normalises: bool = True) -> Recogniser:
    """Return a random network whose frames differ and that writes all of its characters."""
    keras.utils.set_random_seed(seed)
    head = heads.CTCHead(len(LETTERS))
    model = heads.build_recogniser(Wav2Vec2Backbone(config), head)
    head.dense.set_weights([keras.random.normal(weight.shape, seed=seed) for weight in head.dense.weights])
    return Recogniser(model, config, LETTERS, normalises)


def commands(seed: int = 0) -> CommandModel:
    keras.utils.set_random_seed(seed)
    head = utterance_head.UtteranceHead(len(NAMES))
    model = utterance_head.build_classifier(Wav2Vec2Backbone(TINY), head)
    head.dense.set_weights([keras.random.normal(weight.shape, seed=seed) for weight in head.dense.weights])
    return CommandModel(model, TINY, NAMES, True)


def chirp(seconds: float, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """Return tones that change, with noise and an offset, float32 [samples]."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    tones = np.sin(2 * np.pi * 600 * time * (1 + np.sin(7 * time))) * (1 + np.sin(19 * time + seed))
    return (0.05 + 0.2 * tones + rng.normal(0, 0.02, len(time))).astype(np.float32)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[list[str], np.ndarray]:
    """Clips of many lengths, rates, channels and formats: their paths and seconds."""
    folder, paths = tmp_path_factory.mktemp("clips"), []
    kinds = [
        ("wav", "PCM_16", 16_000, 1, 1.3), ("wav", "PCM_U8", 8000, 1, 0.7), ("wav", "PCM_24", 44_100, 2, 2.1),
        ("wav", "FLOAT", 192_000, 1, 0.4), ("wav", "PCM_16", 48_000, 6, 0.9), ("wav", "PCM_32", 22_050, 1, 0.2),
        ("flac", "PCM_16", 16_000, 1, 1.7), ("mp3", None, 44_100, 2, 1.1), ("ogg", "VORBIS", 48_000, 1, 0.5),
        ("wav", "ULAW", 8000, 1, 0.8),
    ]  # fmt: skip
    for number, (ending, subtype, rate, channels, seconds) in enumerate(kinds):
        paths.append(str(folder / f"clip ü {number}.{ending}"))
        samples = np.repeat(chirp(seconds, rate, number)[:, None], channels, axis=1) * np.linspace(1, 0.6, channels)
        soundfile.write(paths[-1], samples, rate, subtype=subtype)
    return paths, np.array([read_sound(path).seconds for path in paths])


@pytest.fixture(scope="module")
def served(tmp_path_factory, written):
    """A recogniser, its export, and the export loaded."""
    spoken = recogniser(STABLE, normalises=False)  # an offset would change what it writes
    version = export_recogniser(spoken, tmp_path_factory.mktemp("serving") / "speech", example=Path(written[0][6]))
    return spoken, version, tf.saved_model.load(str(version))


@pytest.fixture(scope="module")
def transcripts(served, written) -> Transcripts:
    """What evaluation wrote of the clips."""
    paths, seconds = written
    return transcribe(build_forward(served[0]), Clips(paths, title=""), seconds, LETTERS, 3.0, title="")


# --- text -------------------------------------------------------------------------------------------------


SCRIPTS = {
    "english": LETTERS,
    "blank in the middle": Characters((" ", "a", "b", "", "c"), blank=3),
    "tokens never written": Characters(("", "", " ", "a", "'"), blank=0),
    "devanagari": Characters(("", " ", "न", "म", "स", "्", "त", "े")),
    "chinese, no space": Characters(("", *"你好世界語言")),
    "beyond the basic plane": Characters(("", " ", "😀", "\U0001d4b3", "𐍈")),
    "white space of all kinds": Characters(("", " ", "\u3000", "\u00a0", "\u2003", "\x1c", "x", "\u200b")),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_graph_writes_what_collapse_writes(script: str):
    characters, rng = SCRIPTS[script], np.random.default_rng(0)
    batch, time, size = 40, 30, len(characters)
    path = rng.integers(0, size, (batch, time))
    path = np.where(rng.uniform(size=path.shape) < 0.4, np.roll(path, 1, axis=1), path)  # some repeats
    logits = rng.normal(size=(batch, time, size)).astype(np.float32) + 5 * np.eye(size, dtype=np.float32)[path]
    frames = rng.integers(0, time + 1, batch).astype(np.int32)
    text, _ = write_text(tf.constant(logits), tf.constant(frames), characters)
    wanted = [characters.collapse(row[:count].argmax(axis=1)) for row, count in zip(logits, frames, strict=True)]
    assert [one.decode("utf-8") for one in text.numpy()] == wanted
    assert len(set(wanted)) > batch / 3


def test_the_confidence_is_the_geometric_mean_where_something_is_written():
    probabilities = np.full((4, 4, len(LETTERS)), 1e-9)
    for frame, (token, probability) in enumerate([(0, 0.999), (2, 0.5), (2, 0.9), (3, 0.8)]):
        probabilities[0, frame, token] = probabilities[3, frame, token] = probability
    probabilities[1, :, 0] = [0.9, 0.8, 0.9, 0.7]  # nothing but the blank
    probabilities[..., -1] = 1 - probabilities[..., :-1].sum(axis=-1)
    probabilities[0, 1, -1], probabilities[3, 1, -1] = 0.25, 0.25  # no tie; the softmax divides by 0.75
    text, confidence = write_text(tf.math.log(tf.constant(probabilities, tf.float32)), [4, 4, 0, 2], LETTERS)
    assert text.numpy().tolist() == [b"ab", b"", b"", b"a"]
    half = 0.5 / 0.75
    wanted = [(half * 0.9 * 0.8) ** (1 / 3), (0.9 * 0.8 * 0.9 * 0.7) ** 0.25, 0.0, half]
    assert confidence.numpy() == pytest.approx(wanted, abs=1e-4)


# --- evaluation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_a_clip_in_a_long_batch_gets_what_it_gets_alone(network: str, seed: int):
    spoken = recogniser(NETWORKS[network], seed, normalises=bool(seed))
    forward, lengths = build_forward(spoken), [0, 5, 399, 400, 3000, 16_017, 23_456]
    batch = np.random.default_rng(seed).normal(0, 9, (len(lengths), 160_000)).astype(np.float32)  # also behind the end
    for row, length in enumerate(lengths):
        batch[row, :length] = chirp(length / 16_000, seed=seed + row)
    logits, frames = forward(tf.constant(batch), tf.constant(lengths, tf.int32))
    texts, confidences = write_text(logits, frames, LETTERS)
    assert frames.numpy().tolist() == [0, 0, 0, 1, 9, 49, 73]
    assert len(texts.numpy()[-1]) > 5
    for row, length in enumerate(lengths):
        alone, count = forward(tf.constant(batch[row : row + 1, :length]), tf.constant([length], tf.int32))
        assert count[0] == frames[row]
        np.testing.assert_allclose(logits[row, : frames[row]], alone[0, : frames[row]], atol=1e-4)
        text, confidence = write_text(alone, count, LETTERS)
        assert text[0] == texts[row]
        np.testing.assert_allclose(confidence[0], confidences[row], atol=1e-4)


def test_clips_are_normalised_where_the_model_wants_it():
    samples, length = tf.constant(chirp(0.5)[None]), tf.constant([8000], tf.int32)
    for normalises in (True, False):
        forward = build_forward(recogniser(STABLE, normalises=normalises))
        difference = np.abs(forward(samples, length)[0] - forward(0.5 * samples + 0.1, length)[0]).max()
        assert (difference < 1e-3) == normalises


def test_transcripts_are_of_each_clip_in_its_place(served, written, transcripts, capsys):
    paths, seconds = written
    forward = build_forward(served[0])
    again = transcribe(forward, Clips(paths, title=""), seconds, LETTERS, 100.0, keep_log_probabilities=False)
    assert "transcribing: 10 in" in capsys.readouterr().out
    assert again.texts == transcripts.texts and again.log_probabilities == ()
    np.testing.assert_allclose(again.confidences, transcripts.confidences, atol=1e-4)
    assert len(set(transcripts.texts)) == len(paths)
    for place, path in enumerate(paths):
        samples = read_sound(path).samples
        logits, frames = forward(tf.constant(samples[None]), tf.constant([len(samples)], tf.int32))
        found = transcripts.log_probabilities[place]
        assert found.shape == (int(frames[0]), len(LETTERS)) and found.dtype == np.float32
        np.testing.assert_allclose(found, tf.nn.log_softmax(logits[0]), atol=1e-4)
        np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, atol=1e-5)
        assert transcripts.texts[place] == LETTERS.decode(best_path(found))


def test_no_clips_are_no_transcripts(served):
    nothing = transcribe(build_forward(served[0]), Clips([]), np.zeros(0), LETTERS)
    assert (nothing.texts, len(nothing.confidences), nothing.log_probabilities) == ((), 0, ())


# --- export -----------------------------------------------------------------------------------------------


def in_graph(paths: list[str]) -> list[str]:
    return [path for path in paths if path.endswith(".wav")][:6]


def contents(paths: list[str]) -> tf.Tensor:
    return tf.constant([Path(path).read_bytes() for path in paths])


def test_what_is_served_is_what_was_evaluated(served, written, transcripts):
    serve = served[2].signatures["serving_default"]
    paths = in_graph(written[0])
    together = serve(audio=contents(paths))
    assert [text.decode() for text in together["text"].numpy()] == list(transcripts.texts[:6])
    np.testing.assert_allclose(together["confidence"], transcripts.confidences[:6], atol=1e-4)
    for place, path in enumerate(paths):  # mixed lengths and rates in one batch, and each alone
        alone = serve(audio=contents([path]))
        assert alone["text"][0] == together["text"][place]
        np.testing.assert_allclose(alone["confidence"][0], together["confidence"][place], atol=1e-4)


def test_samples_and_logits_have_signatures_of_their_own(served, written, transcripts):
    samples = [read_sound(path).samples for path in in_graph(written[0])]
    lengths = np.array(list(map(len, samples)), np.int32)
    batch = np.full((6, lengths.max() + 500), np.nan, np.float32)  # behind its end a row may hold anything
    for row, one in zip(batch, samples, strict=True):
        row[: len(one)] = one + 0.3  # an offset is taken away, as that of a file is
    answer = served[2].signatures["tensors"](samples=tf.constant(batch), lengths=tf.constant(lengths))
    assert [text.decode() for text in answer["text"].numpy()] == list(transcripts.texts[:6])
    # Resampling has left some of those clips a hair off zero: here that goes too.
    np.testing.assert_allclose(answer["confidence"], transcripts.confidences[:6], atol=2e-3)
    np.testing.assert_allclose(answer["confidence"][0], transcripts.confidences[0], atol=1e-4)

    said = served[2].signatures["logits"](audio=contents(in_graph(written[0])))
    for place in range(6):
        wanted = transcripts.log_probabilities[place]
        assert said["frames"][place] == len(wanted)
        logs = tf.nn.log_softmax(said["logits"][place, : len(wanted)]).numpy()
        np.testing.assert_allclose(logs, wanted, atol=1e-3)
        symbols = [symbol.decode() for symbol in said["characters"].numpy()[place]]
        assert "".join(symbols[token] for token in best_path(logs)).split() == transcripts.texts[place].split()


def test_what_a_server_is_asked_first_is_a_sound_that_it_decodes(served):
    """The example was a flac file."""
    requests = {request.model_spec.signature_name: request.inputs for request in read_warmup(served[1])}
    assert set(requests) == {"serving_default", "tensors", "logits"}
    for name, inputs in requests.items():
        served[2].signatures[name](**{key: tf.constant(tf.make_ndarray(value)) for key, value in inputs.items()})


def test_the_exports_hold_only_operations_of_the_stock_server(served):
    assert ops_outside_tf_serving(served[1]) == []
    types = {key: value.dtype for key, value in served[2].signatures["serving_default"].structured_outputs.items()}
    assert types == {"text": tf.string, "confidence": tf.float32}


def wav(folder: Path, samples: np.ndarray, rate: int = 16_000, subtype: str = "FLOAT") -> bytes:
    soundfile.write(str(folder / "sent.wav"), samples, rate, subtype=subtype)
    return (folder / "sent.wav").read_bytes()


def test_odd_sounds_are_answered(served, tmp_path: Path):
    serve = served[2].signatures["serving_default"]
    nothing, short, one = (wav(tmp_path, chirp(1.0)[:count]) for count in (0, 300, 1))
    silent, offset = wav(tmp_path, np.zeros(8000)), wav(tmp_path, np.full(8000, 0.4))
    answer = serve(audio=tf.constant([nothing, short, one, silent, offset, wav(tmp_path, chirp(0.5))]))
    assert answer["text"].numpy()[:3].tolist() == [b""] * 3 and answer["confidence"].numpy()[:3].tolist() == [0.0] * 3
    assert answer["text"][3] == answer["text"][4]
    assert np.isfinite(answer["confidence"]).all() and float(answer["confidence"][3]) > 0
    alone = serve(audio=tf.constant([nothing]))
    assert alone["text"].numpy().tolist() == [b""] and alone["confidence"].numpy().tolist() == [0.0]


@pytest.mark.parametrize("kind", ["text", "cut off", "not a number", "flac", "numbers as floats"])
def test_bad_sounds_say_what_is_wrong(served, tmp_path: Path, kind: str):
    good = wav(tmp_path, chirp(0.2))
    soundfile.write(str(tmp_path / "a.flac"), chirp(0.2), 16_000)
    bad, says = {
        "text": (b"good morning", "not a WAV file. Allowed: WAV files"),
        "cut off": (good[:-400], "cut off"),
        "not a number": (wav(tmp_path, np.array([0.1, np.nan])), "not numbers"),
        "flac": ((tmp_path / "a.flac").read_bytes(), "ffmpeg -i FILE"),
        "numbers as floats": (wav(tmp_path, 20_000 * chirp(0.2)), "full scale"),
    }[kind]
    with pytest.raises(tf.errors.InvalidArgumentError, match=says):
        served[2].signatures["serving_default"](audio=tf.constant([good, bad]))


@pytest.mark.parametrize(
    ("length", "value", "says"),
    [(9000, 0.0, "`lengths` must be 0 to"), (-1, 0.0, "`lengths` must be 0 to"), (100, np.nan, "not numbers"),
     (100, 1e4, "full scale")],
)  # fmt: skip
def test_bad_samples_say_what_is_wrong(served, length: int, value: float, says: str):
    samples = np.full((1, 8000), value, np.float32)
    with pytest.raises(tf.errors.InvalidArgumentError, match=says):
        served[2].signatures["tensors"](samples=tf.constant(samples), lengths=tf.constant([length], tf.int32))


def test_a_request_that_would_take_all_memory_is_refused(tmp_path: Path):
    version = export_recogniser(recogniser(), tmp_path / "speech", longest_seconds=2.0)
    signatures = tf.saved_model.load(str(version)).signatures
    long, most = wav(tmp_path, chirp(2.1)), wav(tmp_path, chirp(2.0))
    of_files, of_samples = signatures["serving_default"], signatures["tensors"]
    assert len(of_files(audio=tf.constant([most] * 10))["text"]) == 10
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"may have at most 2 seconds.*predict.*2\.1"):
        of_files(audio=tf.constant([most, long]))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"may have at most 20 seconds.*fewer.*\[22\]"):
        of_files(audio=tf.constant([wav(tmp_path, chirp(0.1))] * 10 + [most]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="may have at most 2 seconds"):
        of_samples(samples=tf.zeros((1, 33_000)), lengths=tf.constant([100]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="may have at most 20 seconds"):
        of_samples(samples=tf.zeros((11, 32_000)), lengths=tf.constant([100] * 11))


def test_loads_the_way_tf_serving_loads(served, written, transcripts):
    """Graph, restore op and signature by tensor name: what the C++ server does, and what slimming must keep."""
    raw = [Path(path).read_bytes() for path in in_graph(written[0])]
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        signature = tf.compat.v1.saved_model.load(session, ["serve"], str(served[1])).signature_def["serving_default"]
        audio, text = signature.inputs["audio"].name, signature.outputs["text"].name
        assert [one.decode() for one in session.run(text, {audio: raw})] == list(transcripts.texts[:6])
        with pytest.raises(tf.errors.InvalidArgumentError, match="not a WAV file"):
            session.run(text, {audio: [b"hello"]})


def test_a_client_is_told_what_is_wrong_with_its_sound(served):
    servable = Servable("speech", 1, served[1])
    assert replay_warmup(servable) == 3
    with pytest.raises(Refusal) as refusal:
        servable.predict(servable.signature(), {"audio": np.array([b"\xff\xfbhello"], object)})
    assert refusal.value.code == grpc.StatusCode.INVALID_ARGUMENT
    assert "The sound is not a WAV file. Allowed: WAV files (RIFF) of 8, 16" in refusal.value.message


def test_characters_of_another_model_are_refused(tmp_path: Path):
    other = dataclasses.replace(recogniser(), characters=Characters(("", " ", "a")))
    with pytest.raises(ValueError, match="has 13 outputs, but 3 characters"):
        export_recogniser(other, tmp_path / "speech")


# --- proof ------------------------------------------------------------------------------------------------


def test_the_proof_compares_every_file_and_notices_what_differs(served, written, transcripts):
    paths, _ = written
    proof = prove_recogniser(served[1], paths, transcripts.texts, transcripts.confidences)
    assert proof["passed"] and proof["agreement"] == 1.0 and proof["max_abs_diff"] < 1e-3, proof
    assert (proof["examples"], proof["rewritten"], proof["ops_outside_tf_serving"]) == (10, 4, [])

    texts = (*transcripts.texts[:7], "something else", *transcripts.texts[8:])
    proof = prove_recogniser(served[1], paths, texts, transcripts.confidences)
    assert not proof["passed"] and proof["agreement"] == 0.9
    assert proof["first_difference"] == {
        "path": paths[7], "expected": "something else", "served": transcripts.texts[7]
    }  # fmt: skip


@pytest.mark.slow
def test_the_proof_fails_where_confidences_differ_or_nothing_is_there(served, written, transcripts, tmp_path: Path):
    paths = written[0][:3]
    proof = prove_recogniser(served[1], paths, transcripts.texts[:3], transcripts.confidences[:3] + 0.01)
    assert not proof["passed"] and proof["agreement"] == 1.0 and proof["max_abs_diff"] > 5e-3
    proof = prove_recogniser(tmp_path / "nowhere", paths, transcripts.texts[:3], transcripts.confidences[:3])
    assert not proof["passed"] and "nowhere" in proof["error"]
    with pytest.raises(UserError, match=r"none\.wav does not exist"):
        prove_recogniser(served[1], [str(tmp_path / "none.wav")], ["a"], np.ones(1))


def test_what_no_graph_decodes_is_rewritten_without_loss(written, tmp_path: Path):
    for path in written[0]:
        sent = as_served_wav(path, tmp_path)
        assert (sent == Path(path)) == (path in in_graph(written[0]))
        wanted, found = read_sound(path), read_sound(sent)
        assert np.array_equal(wanted.samples, found.samples) and wanted.file_rate == found.file_rate
    assert len(list(tmp_path.iterdir())) == 4


# --- commands ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_commands_are_served_and_proved(written, tmp_path: Path):
    paths, seconds = written
    spoken = commands()
    forward = build_command_forward(spoken)
    probabilities = classify(forward, Clips(paths, title=""), seconds, 3.0, title="")
    assert probabilities.shape == (10, 3) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    for place, path in enumerate(paths[:3]):
        samples = read_sound(path).samples
        alone = forward(tf.constant(samples[None]), tf.constant([len(samples)], tf.int32))
        np.testing.assert_allclose(alone[0], probabilities[place], atol=1e-5)

    version = export_commands(spoken, tmp_path / "commands", example=Path(paths[0]))
    loaded = tf.saved_model.load(str(version))
    answer = loaded.signatures["serving_default"](audio=contents(in_graph(paths)))
    np.testing.assert_allclose(answer["probabilities"], probabilities[:6], atol=1e-4)
    labels = [NAMES[best].encode() for best in probabilities[:6].argmax(axis=1)]
    assert answer["label"].numpy().tolist() == labels
    assert answer["class_names"].numpy().tolist() == [[name.encode() for name in NAMES]] * 6
    samples = read_sound(paths[0]).samples[None]
    answer = loaded.signatures["tensors"](samples=tf.constant(samples), lengths=tf.constant([samples.size], tf.int32))
    np.testing.assert_allclose(answer["probabilities"][0], probabilities[0], atol=1e-4)
    assert len(read_warmup(version)) == 2

    proof = prove_commands(version, paths, probabilities, NAMES)
    assert proof["passed"] and (proof["examples"], proof["rewritten"]) == (10, 4), proof
    proof = prove_commands(version, paths[:2], probabilities[:2, ::-1].copy(), NAMES)
    assert not proof["passed"] and proof["max_abs_diff"] > 1e-3
