"""A served graph decodes WAV files as training and evaluation do, and bad bytes give clear errors."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tensorflow as tf

from common.proof.fresh_process.ops import ops_outside_tf_serving
from common.speech.audio.decode import UnreadableSound, decode_sound
from common.speech.audio.in_graph import decode_wav_in_graph, prepare_wav_in_graph

KINDS = [("WAV", kind) for kind in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")]
KINDS += [("WAVEX", kind) for kind in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT")]
every_kind = pytest.mark.parametrize(("form", "subtype"), KINDS)


@pytest.fixture(scope="module")
def prepare():
    """`prepare_wav_in_graph`, traced once: what a server runs."""
    return tf.function(prepare_wav_in_graph, input_signature=[tf.TensorSpec([], tf.string)])


def noise(count: int = 3000, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Noise around an offset, not as loud in every channel."""
    rng = np.random.default_rng(seed)
    return np.clip(0.1 + rng.normal(0, 0.2, (count, channels)) * np.linspace(1, 0.5, channels), -0.99, 0.99)


def written(samples: np.ndarray, rate: int = 16_000, form: str = "WAV", subtype: str = "PCM_16") -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, subtype=subtype, format=form)
    return stream.getvalue()


def with_chunk(content: bytes, chunk: bytes, place: int = 12) -> bytes:
    """Return a WAV file with one more chunk, before the format unless told."""
    longer = content[:place] + chunk + content[place:]
    return longer[:4] + struct.pack("<I", len(longer) - 8) + longer[8:]


def difference(prepare, content: bytes) -> float:
    wanted, found = decode_sound(content).samples, prepare(content).numpy()
    assert found.dtype == np.float32 and found.shape == wanted.shape
    return float(np.abs(found - wanted).max())


@every_kind
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_the_graph_hears_what_evaluation_hears(prepare, form: str, subtype: str, channels: int):
    for rate in (8000, 16_000, 44_100):
        assert difference(prepare, written(noise(channels=channels), rate, form, subtype)) < 1e-5


@every_kind
def test_samples_are_those_of_the_file_to_the_last_bit(form: str, subtype: str):
    content = written(noise(channels=3), 11_025, form, subtype)
    samples, rate = decode_wav_in_graph(tf.constant(content))
    wanted, _ = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    assert rate.dtype == tf.int32 and int(rate) == 11_025
    assert np.array_equal(samples, wanted)


@pytest.mark.parametrize("rate", [11_025, 22_050, 22_257, 48_000, 96_000, 192_000])
def test_any_rate(prepare, rate: int):
    assert difference(prepare, written(noise(rate // 4), rate, subtype="PCM_24")) < 1e-5


def test_full_scale_of_every_number_of_bits():
    for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32"):
        samples, _ = decode_wav_in_graph(tf.constant(written(np.array([-1.0, 0.0, 1.0]), subtype=subtype)))
        assert samples.numpy().ravel() == pytest.approx([-1, 0, 1], abs=0.01)


def test_channels_that_cancel_each_other_leave_the_loudest(prepare):
    one = noise() - noise().mean()
    content = written(np.concatenate([one, -0.999 * one], axis=1))
    assert difference(prepare, content) < 1e-5
    assert prepare(content).numpy().std() > 0.1


def test_the_offset_goes_before_resampling(prepare):
    found = prepare(written(np.full((4000, 1), 0.5), 44_100, subtype="FLOAT")).numpy()
    assert np.abs(found).max() < 1e-6  # a jump from 0 to 0.5 would ring


@pytest.mark.parametrize("size", [0, 3, 10, 70_000])
def test_other_chunks_are_skipped(prepare, size: int):
    chunk = b"LIST" + struct.pack("<I", size) + bytes(size + size % 2)
    content = written(noise())
    for place in (12, 36):  # before the format, and before the samples
        longer = with_chunk(content, chunk, place)
        assert np.array_equal(prepare(longer), prepare(content))
        assert difference(prepare, longer) < 1e-5
    assert np.array_equal(prepare(content + chunk), prepare(content))  # behind them


@pytest.mark.parametrize("stated", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_file_written_into_a_pipe_is_whole(prepare, stated: int):
    content = bytearray(written(noise()))
    content[4:8] = content[40:44] = struct.pack("<I", stated)
    assert np.array_equal(prepare(bytes(content)), prepare(written(noise())))
    assert not stated or difference(prepare, bytes(content)) < 1e-5  # libsndfile takes a 0 at its word
    half = bytes(content[:-1])  # killed within a sample
    assert len(prepare(half)) == 2999


def test_a_file_without_samples_is_empty_and_silence_is_zeros(prepare):
    assert prepare(written(np.zeros((0, 2)), 44_100)).shape == (0,)
    followed = with_chunk(written(np.zeros((0, 1))), b"note" + struct.pack("<I", 4) + b"abcd", 44)
    assert prepare(followed).shape == (0,)
    silence = prepare(written(np.zeros((4410, 2)), 44_100)).numpy()
    assert len(silence) == 1600 and not silence.any()
    assert len(prepare(written(np.full((1, 1), 0.5), 8000))) == 2


def refused(prepare, content: bytes) -> str:
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        prepare(content)
    return str(error.value)


def damaged(place: int, value: bytes) -> bytes:
    content = written(noise())
    return content[:place] + value + content[place + len(value) :]


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "not a WAV file. Allowed: WAV files (RIFF) of 8, 16"), (b"RIFF", "not a WAV file"),
     (b"hello " * 9, "not a WAV file"),
     (written(noise(), form="FLAC"), "Bytes received:] ["), (written(noise())[:12], "cut off or damaged"),
     (written(noise())[:40], "cut off or damaged"), (written(noise())[:-1000], "samples:] [1000]"),
     (written(noise())[:44], "samples:] [6000]"), (damaged(12, b"junk"), "no format"),
     (written(noise(), subtype="ULAW"), "another encoding. Allowed"),
     (written(noise(), subtype="IMA_ADPCM"), "another encoding"),
     (damaged(22, b"\0\0"), "another encoding"), (damaged(34, b"\x07\x01"), "another encoding"),
     (damaged(24, struct.pack("<I", 7)), "impossible sampling rate"),
     (damaged(24, struct.pack("<I", 0xFFFFFFF0)), "impossible sampling rate"),
     (written(np.array([0.1, np.nan, 0.1]), subtype="FLOAT"), "not numbers"),
     (written(np.array([0.1, -np.inf, 0.1]), subtype="FLOAT"), "not numbers"),
     (written(np.array([0.1, 20_000, 0.1]), subtype="FLOAT"), "full scale. Peak:] [20000]"),
     (with_chunk(written(noise()), (b"junk" + bytes(4)) * 1001), "cut off or damaged")],
    ids=range(19),
)  # fmt: skip
def test_bad_bytes_say_what_is_wrong(prepare, content: bytes, says: str):
    assert says in refused(prepare, content)


def test_damaged_bytes_are_read_as_evaluation_reads_them_or_refused(prepare):
    rng = np.random.default_rng(0)
    content, read = written(noise(channels=2), 22_050, "WAVEX", "PCM_24"), 0
    for _ in range(150):
        harmed = bytearray(content)
        for place in rng.integers(0, 80, size=2):
            harmed[place] = rng.integers(0, 256)
        try:
            found = prepare(bytes(harmed)).numpy()
        except tf.errors.InvalidArgumentError as error:
            assert "Assert" in str(error) or "assertion" in str(error)  # and never an op that got lost
            continue
        read += 1
        assert np.isfinite(found).all()
        try:
            wanted = decode_sound(bytes(harmed)).samples
        except UnreadableSound:
            continue  # it looks at more of the header
        assert found.shape == wanted.shape and np.abs(found - wanted).max() < 1e-5
    assert read > 10


def test_the_graph_holds_only_operations_of_the_stock_server(prepare, tmp_path: Path):
    tf.saved_model.save(tf.Module(), str(tmp_path), {"serving_default": prepare})
    assert ops_outside_tf_serving(tmp_path) == []
    served = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    assert np.array_equal(*served(tf.constant(written(noise()))).values(), prepare(written(noise())))
    with pytest.raises(tf.errors.InvalidArgumentError, match="not a WAV file"):
        served(tf.constant(b"hello"))
