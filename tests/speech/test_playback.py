"""Sounds embedded in a page: every sample that the model receives, within the size limit of the page."""

from __future__ import annotations

import base64
import io

import numpy as np
import soundfile

from common.speech.audio import playback
from common.speech.audio.decode import read_sound


def decoded(uri: str) -> tuple[np.ndarray, int]:
    kind, content = uri.removeprefix("data:").split(";base64,")
    file = io.BytesIO(base64.b64decode(content, validate=True))
    assert soundfile.info(file).format == {"audio/flac": "FLAC", "audio/wav": "WAV"}[kind]
    file.seek(0)
    return soundfile.read(file, dtype="int16")


def write(path, seconds: float, rate: int = 16_000, channels: int = 1, seed: int = 0) -> str:
    samples = np.random.default_rng(seed).normal(0, 0.1, (round(seconds * rate), channels))
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return str(path)


def test_the_page_holds_what_the_model_hears(tmp_path):
    path = write(tmp_path / "stereo.wav", 0.5, rate=44_100, channels=2)
    [one] = playback.embed_sounds([path])
    levels, rate = decoded(one["sound"])
    heard = read_sound(path).samples
    assert rate == 16_000 and levels.shape == heard.shape and one["note"] == ""
    np.testing.assert_allclose(levels / 32767, heard, atol=1 / 32767)


def test_the_smaller_format_is_taken_and_loud_samples_do_not_wrap_around():
    tone = np.sin(np.arange(16_000) * 0.05).astype("float32")
    assert playback.encode_sound(tone).startswith("data:audio/flac") and len(playback.encode_sound(tone)) < 32_000
    assert playback.encode_sound(tone[:20]).startswith("data:audio/wav")
    levels, _ = decoded(playback.encode_sound(np.array([2.0, -2.0], "float32")))
    assert levels.tolist() == [32767, -32767]


def test_long_sounds_are_cut_and_say_so(tmp_path):
    path = write(tmp_path / "long.flac", playback.MAX_SECONDS + 2)
    [one] = playback.embed_sounds([path])
    assert len(decoded(one["sound"])[0]) == playback.MAX_SECONDS * 16_000
    assert one["note"] == "Only the first 15 s can be played."


def test_all_together_stay_within_their_room_and_what_is_missing_is_said(tmp_path):
    long, short = write(tmp_path / "long.wav", 2.0), write(tmp_path / "short.wav", 0.2)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    paths = [long, long, str(tmp_path / "broken.wav"), short, str(tmp_path / "gone.wav")]
    size = len(playback.embed_sounds([long])[0]["sound"])
    sounds = playback.embed_sounds(paths, room=int(1.5 * size))
    assert [bool(one["sound"]) for one in sounds] == [True, False, False, True, False]
    assert sum(len(one["sound"]) for one in sounds) <= 1.5 * size
    assert "too large" in sounds[1]["note"] and sounds[2]["note"].startswith("The file cannot be decoded")
    assert sounds[4]["note"] == "The file does not exist."
