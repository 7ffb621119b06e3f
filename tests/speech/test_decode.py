"""Any sound file becomes mono samples of one rate, and one that cannot be used gives a reason."""

from __future__ import annotations

import io
import json
import os
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from common.speech.audio.decode import SAMPLE_RATE, UnreadableSound, decode_sound, read_sound
from common.speech.audio.resampling import resample


def sine(seconds: float = 0.5, rate: int = SAMPLE_RATE, hertz: float = 440.0, peak: float = 0.5) -> np.ndarray:
    return (peak * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = SAMPLE_RATE, format: str = "WAV", subtype: str | None = None) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, subtype=subtype, format=format)
    return stream.getvalue()


def strongest(samples: np.ndarray, rate: int = SAMPLE_RATE) -> float:
    """Return the frequency with the most power, Hz."""
    return float(np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax() * rate / len(samples))


def why(content: bytes, **limits) -> str:
    with pytest.raises(UnreadableSound) as error:
        decode_sound(content, **limits)
    return str(error.value)


@pytest.mark.parametrize(
    ("format", "subtype", "rate", "channels"),
    [("WAV", "PCM_U8", 8000, 1), ("WAV", "PCM_16", 11025, 2), ("WAV", "PCM_24", 192_000, 6),
     ("WAV", "PCM_32", 96_000, 1), ("WAV", "FLOAT", 44_100, 2), ("WAV", "DOUBLE", 16_000, 1),
     ("WAV", "ULAW", 8000, 1), ("WAVEX", "PCM_16", 48_000, 6),
     ("FLAC", "PCM_16", 22_050, 1), ("FLAC", "PCM_24", 48_000, 2), ("OGG", "VORBIS", 44_100, 2),
     ("OGG", "OPUS", 48_000, 1), ("MP3", None, 44_100, 2), ("AIFF", "PCM_16", 32_000, 1), ("AU", "PCM_16", 8000, 1)],
)  # fmt: skip
def test_every_format_rate_and_depth_becomes_the_same_tone(format: str, subtype: str, rate: int, channels: int):
    samples = np.repeat(sine(1.0, rate)[:, None], channels, axis=1)
    clip = decode_sound(encoded(samples, rate, format, subtype))
    assert clip.samples.dtype == np.float32 and clip.samples.ndim == 1 and clip.rate == SAMPLE_RATE
    assert (clip.file_rate, clip.channels) == (rate, channels)
    assert clip.seconds == pytest.approx(1.0, abs=0.06 if format == "MP3" else 0.01)
    middle = clip.samples[4000:12_000]
    assert strongest(middle) == pytest.approx(440, abs=2)
    assert np.abs(middle).max() == pytest.approx(0.5, rel=0.03)
    assert not clip.clipped and not clip.silent


def test_another_rate_may_be_asked_for():
    clip = decode_sound(encoded(sine(1.0, 48_000), 48_000), rate=8000)
    assert (clip.rate, len(clip.samples)) == (8000, 8000)
    assert strongest(clip.samples, 8000) == pytest.approx(440, abs=2)


def test_resampling_is_that_of_the_textbook():
    """A tone comes out as if it had been recorded at the new rate; what that rate cannot hold is gone, not folded."""
    wanted, found = sine(1.0, 16_000, 1000), resample(sine(1.0, 44_100, 1000), 44_100, 16_000)
    assert len(found) == 16_000
    assert np.abs(found - wanted)[1000:-1000].max() < 1e-3
    high = resample(sine(1.0, 44_100, 10_000), 44_100, 16_000)  # would be 6 kHz if samples were only left out
    assert np.abs(high[1000:-1000]).max() < 1e-3


def test_the_name_of_a_file_says_nothing(tmp_path: Path):
    for number, (format, subtype) in enumerate((("FLAC", None), ("MP3", None), ("OGG", "VORBIS"))):
        path = tmp_path / f"{number}.wav"
        path.write_bytes(encoded(sine(1.0), SAMPLE_RATE, format, subtype))
        assert strongest(read_sound(path).samples[2000:14_000]) == pytest.approx(440, abs=3)
    (tmp_path / "a.raw").write_bytes(encoded(sine()))
    assert len(read_sound(tmp_path / "a.raw").samples) == 8000


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "AIFF", "AU"])
def test_a_file_whose_end_is_missing_is_refused(format: str):
    noise = np.random.default_rng(0).normal(0, 0.1, 48_000)
    content = encoded(noise, SAMPLE_RATE, format)
    assert decode_sound(content).seconds == pytest.approx(3, abs=0.01)
    for end in (len(content) // 2, len(content) - 1000):
        assert "cut off" in why(content[:end])


def test_an_mp3_is_refused_where_much_is_missing():
    content = encoded(np.random.default_rng(0).normal(0, 0.1, 48_000), format="MP3")
    assert "cut off: it states 48,000 samples" in why(content[: len(content) // 2])
    assert len(decode_sound(bytes(500) + content).samples) == 48_000  # zeros before it are passed over


def test_only_the_header_is_no_sound():
    assert "cut off" in why(encoded(sine())[:44]) or "no samples" in why(encoded(sine())[:44])
    assert why(encoded(np.zeros(0))) == "has no samples"
    assert "cannot be decoded" in why(encoded(sine())[:8])


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "is empty"), (b"\0" * 5000, "cannot be decoded"), (b"hello", "cannot be decoded"),
     (b"\0\0\0\x20ftypM4A ", "is MP4 or M4A. Allowed: wav"), (b"<!DOCTYPE html>", "is a web page"),
     (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"), (b"\x1a\x45\xdf\xa3webm", "ffmpeg -i FILE")],
)  # fmt: skip
def test_what_is_no_sound_says_what_it_is(content: bytes, says: str):
    assert says in why(content)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "AU"])
def test_damaged_bytes_are_read_or_refused_and_nothing_else(format: str, capfd):
    rng = np.random.default_rng(0)
    content, refused = encoded(rng.normal(0, 0.1, 4000), format=format), 0
    for trial in range(60):
        damaged = bytearray(content)
        for place in rng.integers(0, 64 if trial % 2 else len(content), size=4):
            damaged[place] = rng.integers(0, 256)
        try:
            assert np.isfinite(decode_sound(bytes(damaged), max_seconds=30.0).samples).all()
        except UnreadableSound as error:
            assert len(str(error)) > 10
            refused += 1
    assert refused
    assert "Traceback" not in capfd.readouterr().err  # callbacks of the decoder print theirs


def test_samples_that_are_no_numbers_are_refused():
    for bad in (np.nan, np.inf):
        samples = sine()
        samples[100] = bad
        assert "not numbers" in why(encoded(samples, subtype="FLOAT"))
    assert "full scale" in why(encoded(sine(peak=20_000), subtype="FLOAT"))
    assert decode_sound(encoded(sine(peak=1.5), subtype="FLOAT")).samples.max() == pytest.approx(1.5, abs=0.01)


def test_a_header_with_an_absurd_rate_is_refused():
    content = bytearray(encoded(sine()))
    content[24:28] = struct.pack("<I", 7)
    assert "impossible sampling rate: 7 Hz" in why(bytes(content))


def test_the_offset_is_taken_away_before_resampling():
    clip = decode_sound(encoded(sine(1.0, 44_100) + 0.3, 44_100, subtype="PCM_24"))
    assert clip.offset == pytest.approx(0.3, abs=1e-3)
    assert abs(clip.samples.mean()) < 1e-3
    assert np.abs(clip.samples).max() < 0.56  # no ring where the sound begins and ends


def test_clipped_recordings_are_noticed_and_loud_ones_are_not():
    assert decode_sound(encoded(np.clip(sine(peak=3.0), -1, 1))).clipped
    assert not decode_sound(encoded(sine(peak=0.999))).clipped
    assert not decode_sound(encoded(np.zeros(8000))).clipped


def test_silence_is_noticed_and_quiet_speech_is_not():
    assert decode_sound(encoded(np.zeros(8000))).silent
    assert decode_sound(encoded(np.full(8000, 0.2))).silent  # an offset is nothing that is heard
    assert not decode_sound(encoded(sine(peak=0.005), subtype="PCM_24")).silent


def test_channels_that_cancel_each_other_leave_the_loudest():
    both = np.stack([sine(), -sine(peak=0.4999)], axis=1)
    assert np.abs(decode_sound(encoded(both)).samples).max() == pytest.approx(0.5, abs=0.01)
    centre = np.zeros((8000, 6), np.float32)
    centre[:, 2] = sine()
    assert np.abs(decode_sound(encoded(centre)).samples).max() == pytest.approx(0.5 / 6, abs=0.01)


def test_the_hash_is_of_what_is_heard():
    levels = np.round(sine() * 32767).astype(np.int16)
    wav, flac = (decode_sound(encoded(levels, format=format)) for format in ("WAV", "FLAC"))
    assert wav.content_hash() == flac.content_hash()
    assert wav.content_hash() != decode_sound(encoded(sine(hertz=441))).content_hash()


def test_a_long_file_is_not_decoded_to_its_end():
    content = encoded(np.zeros(SAMPLE_RATE * 60), format="FLAC")
    assert why(content, max_seconds=30.0) == "is too long: 60.0 s; at most 30 s are allowed"
    assert decode_sound(content, max_seconds=60.0).seconds == 60
    unknown = bytearray(content)  # a header that does not know its length, as programs write that stream
    unknown[21] &= 0xF0
    unknown[22:26] = bytes(4)
    assert "is too long: more" in why(bytes(unknown), max_seconds=30.0)


def test_a_wav_written_into_a_pipe_is_whole():
    content = bytearray(encoded(sine()))
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    assert len(decode_sound(bytes(content)).samples) == 8000


def test_samples_after_other_chunks_are_found(tmp_path: Path):
    """As recorders write it: a chunk of an odd length before the samples."""
    content = encoded(sine())
    chunk = b"note" + struct.pack("<I", 3) + b"abc\0"
    longer = content[:36] + chunk + content[36:]
    longer = longer[:4] + struct.pack("<I", len(longer) - 8) + longer[8:]
    assert np.array_equal(decode_sound(longer).samples, decode_sound(content).samples)
    assert "cut off: 1,000 bytes" in why(longer[:-1000])


def test_the_samples_are_those_of_the_standard_library(tmp_path: Path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        levels = np.random.default_rng(0).integers(-9000, 9000, 4000).astype("<i2")
        file.writeframes(levels.tobytes())
    clip = read_sound(tmp_path / "a.wav")
    assert np.allclose(clip.samples + clip.offset, levels / 32768, atol=1e-6)


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "link.wav").symlink_to(tmp_path / "nowhere")
    for name, says in (("pipe.wav", "device, pipe"), ("folder.wav", "a folder"), ("link.wav", "does not exist"),
                       ("x\0.wav", "cannot be read"), ("none.wav", "does not exist")):  # fmt: skip
        with pytest.raises(UnreadableSound, match=says):
            read_sound(str(tmp_path / name))


def test_real_speech(shared_data: Path):
    read = read_sound(shared_data / "librispeech_84_121123" / "84-121123-0000.flac")
    assert (read.file_rate, read.channels) == (16_000, 1) and 1 < read.seconds < 10 and not read.silent
    lj = read_sound(shared_data / "ljspeech_8" / "wavs" / "LJ001-0002.flac")
    assert lj.file_rate == 22_050 and lj.seconds == pytest.approx(1.9, abs=0.1)
    assert json.dumps(lj.offset)  # a plain number, which reports can write
