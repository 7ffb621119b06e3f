"""Recordings of any length: no word lost or doubled at a seam, correct times, memory of one window."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import keras
import numpy as np
import pytest
import soundfile

from common.errors import UserError
from common.speech.audio.decode import read_sound
from common.speech.batches import Clips
from common.speech.ctc.characters import Characters, build_characters
from common.speech.inference import Recogniser, build_forward, transcribe
from common.speech.long_recordings import Word, _words, join_words, transcribe_long, write_srt
from common.speech.wav2vec2 import heads, network
from common.speech.wav2vec2.config import Wav2Vec2Config

CONFIG = Wav2Vec2Config()  # only its strides count: 400 samples of a frame, 320 between two
LETTERS = Characters(("", " ", *"abcdefghijklm"))
TONES = 400.0 + 220.0 * np.arange(len(LETTERS))  # Hz; below the Nyquist frequency of 8 kHz too
QUIET = 0.6  # seconds without sound at either end of a recording
BLIND = 0.3  # seconds at either end of what it hears, in which the listener mistakes one letter for another


def frames_of(audio) -> np.ndarray:
    """Return the frames of a batch of one, float32 [frames, 400]."""
    return np.lib.stride_tricks.sliding_window_view(np.asarray(audio)[0], 400)[::320]


def as_logits(best: np.ndarray, size: int = len(LETTERS), sure: float = 5.0) -> tuple[np.ndarray, np.ndarray]:
    return sure * np.eye(size, dtype=np.float32)[best][None], np.array([len(best)], np.int32)


class Forward:
    """Outputs the letter of each tone, frame by frame, with errors at both ends, where context is missing."""

    def __init__(self):
        self.longest, self.calls = 0, 0

    def __call__(self, audio, samples):
        assert audio.shape == (1, int(samples[0])) and audio.dtype == np.float32
        self.longest, self.calls = max(self.longest, audio.shape[1]), self.calls + 1
        frames = frames_of(audio)
        spectrum = np.abs(np.fft.rfft(frames * np.hanning(400), n=1600))
        best = np.abs(TONES - 10.0 * spectrum.argmax(axis=1)[:, None]).argmin(axis=1)
        best[frames.std(axis=1) < 0.25] = 0
        blind = int(BLIND * 50)
        for edge in (slice(None, blind), slice(-blind, None)):
            best[edge] = np.where(best[edge] > 0, best[edge] % (len(LETTERS) - 1) + 1, 0)
        return as_logits(best)


def spoken(seconds: float, seed: int = 0, rate: int = 16_000) -> tuple[np.ndarray, str, list[float]]:
    """Return tones that spell a text, the text, and the start of each character in seconds."""
    rng = np.random.default_rng(seed)
    samples, text, begins = np.zeros(round(seconds * rate), np.float32), "", []
    at = QUIET
    while at < seconds - QUIET - 0.2:
        letter = int(rng.integers(1, len(LETTERS)))
        if letter == 1 and (not text or text[-1] == " "):
            continue
        length = rng.uniform(0.08, 0.2)
        first, count = round(at * rate), round(length * rate)
        samples[first : first + count] = 0.5 * np.sin(2 * np.pi * TONES[letter] * np.arange(count) / rate)
        text, begins, at = text + LETTERS.symbols[letter], [*begins, at], at + length + rng.uniform(0.08, 0.16)
    return samples, text.strip(), begins


@pytest.fixture(scope="module")
def minute(tmp_path_factory) -> tuple[str, str, list[float]]:
    """A file of 70 s, its text, and the start of each character."""
    samples, text, begins = spoken(70.0)
    path = tmp_path_factory.mktemp("long") / "minute.flac"
    soundfile.write(str(path), samples, 16_000)
    assert len(text) > 200 and any(one == other for one, other in itertools.pairwise(text))
    return str(path), text, begins


def words_of(path, forward=None, characters: Characters = LETTERS, **settings) -> list[Word]:
    return transcribe_long(forward or Forward(), CONFIG, characters, path, title="", **settings)


@pytest.mark.parametrize("window, overlap", [(20, 4), (5, 1), (3.3, 0.9), (2, 1.2), (7.77, 3.21), (30, 10), (500, 4)])
def test_no_character_is_lost_or_doubled_at_a_seam(minute, window: float, overlap: float):
    path, text, _ = minute
    forward = Forward()
    assert join_words(words_of(path, forward, window_seconds=window, overlap_seconds=overlap), LETTERS) == text
    assert forward.longest <= min(70, window + 0.05) * 16_000
    assert forward.calls == pytest.approx(max(1, 70 / (window - overlap)), abs=1.5)


def test_the_progress_counts_seconds_of_the_recording(minute, capsys):
    transcribe_long(Forward(), CONFIG, LETTERS, minute[0])
    assert "seconds transcribed: 70 in" in capsys.readouterr().out


def test_too_little_overlap_is_heard(minute):
    """The listener does make mistakes at the ends of what it hears: the test above would notice."""
    path, text, _ = minute
    assert join_words(words_of(path, window_seconds=5, overlap_seconds=0.1), LETTERS) != text


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (44_100, 2), (22_257, 1), (48_000, 6)])
def test_any_rate_and_channels(tmp_path: Path, rate: int, channels: int):
    samples, text, _ = spoken(20.0, rate, rate)
    path = tmp_path / "a.wav"
    soundfile.write(str(path), np.repeat(samples[:, None], channels, axis=1) + 0.1, rate, subtype="PCM_24")
    assert join_words(words_of(path, window_seconds=4, overlap_seconds=1), LETTERS) == text


# Windows of 5.02 s at steps of 3.74 s: 12.5 s end where a window ends, the next ones just behind.
@pytest.mark.parametrize(
    ("seconds", "rate"),
    [(0.01, 16_000), (0.03, 16_000), (1.0, 16_000), (5.02, 16_000), (12.5, 16_000), (12.5001, 16_000),
     (12.521, 16_000), (21.0, 16_000), (21.0, 8000), (21.0, 11_025), (21.0, 22_257), (21.0, 44_100), (21.0, 192_000)],
)  # fmt: skip
def test_every_frame_is_that_of_the_whole_recording(tmp_path: Path, seconds: float, rate: int):
    """Noise gives another character in each frame: one that is off by a sample would be another one."""

    def forward(audio, samples):
        if audio.shape[1] < 400:
            return as_logits(np.zeros(0, np.int64))
        # Without the lowest one: the mean of a window is not that of the recording.
        return as_logits(1 + np.abs(np.fft.rfft(frames_of(audio))[:, 1 : len(LETTERS)]).argmax(axis=1))

    path = tmp_path / "noise.wav"
    soundfile.write(str(path), np.random.default_rng(0).normal(0.05, 0.1, round(seconds * rate)), rate)
    logits, frames = forward(read_sound(path).samples[None], None)
    wanted = LETTERS.collapse(logits[0].argmax(axis=1))
    assert frames[0] == CONFIG.frame_lengths(round(seconds * 16_000))
    assert len(wanted) >= frames[0] // 2
    assert join_words(words_of(path, forward, window_seconds=5.033, overlap_seconds=1.3), LETTERS) == wanted


def test_what_fits_into_one_window_is_what_evaluation_writes(tmp_path: Path):
    config = Wav2Vec2Config(
        conv_dim=(16,) * 7, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    head = heads.CTCHead(len(LETTERS))
    model = heads.build_recogniser(network.Wav2Vec2Backbone(config), head)
    head.dense.set_weights([keras.random.normal(weight.shape, seed=0) for weight in head.dense.weights])
    forward = build_forward(Recogniser(model, config, LETTERS, True))
    path = tmp_path / "a.wav"
    soundfile.write(str(path), spoken(3.0, rate=44_100)[0], 44_100)
    wanted = transcribe(forward, Clips([str(path)], title=""), np.array([3.0]), LETTERS, title="")
    assert len(wanted.texts[0]) > 10
    assert join_words(transcribe_long(forward, config, LETTERS, path), LETTERS) == wanted.texts[0]


def test_words_say_when_they_were_said_and_how_sure_that_is(minute):
    path, text, begins = minute
    words = words_of(path)
    assert [word.text for word in words] == text.split()
    place = 0
    for word in words:
        place = text.index(word.text, place)
        assert word.begin == pytest.approx(begins[place], abs=0.03)
        last = begins[place + len(word.text) - 1]
        assert last + 0.04 < word.end < last + 0.25
        place += len(word.text)
    sure = np.exp(5) / (np.exp(5) + len(LETTERS) - 1)
    assert [word.confidence for word in words] == pytest.approx([sure] * len(words), abs=1e-4)


def test_a_script_without_spaces_has_characters_for_words(tmp_path: Path):
    thai = Characters(("", "ก", "ิ", "น", "ข", "้", "า", "ว"))
    path = tmp_path / "a.wav"
    soundfile.write(str(path), np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    best = np.array([0, 1, 1, 2, 0, 3, 3, 0, 3, 4, 5, 6, 0, 7])
    words = words_of(path, lambda audio, samples: as_logits(best, len(thai)), thai)
    assert [word.text for word in words] == ["กิ", "น", "น", "ข้", "า", "ว"]
    assert join_words(words, thai) == thai.collapse(best)
    assert (words[0].begin, words[0].end) == (0.02, 0.08)


def test_nothing_said_is_no_words(tmp_path: Path):
    path = tmp_path / "a.wav"
    soundfile.write(str(path), np.zeros(16_000 * 9), 16_000)
    assert words_of(path, window_seconds=2, overlap_seconds=1) == []
    assert write_srt([], LETTERS, tmp_path / "a.srt").read_text() == ""


def test_subtitles_break_where_somebody_pauses_and_where_a_line_is_full(tmp_path: Path):
    words = [Word("one", 0.5, 0.8, 1), Word("two", 1.0, 1.4, 1), Word("three", 3661.5, 3662.0, 1)]
    words += [Word(f"{number:06d}", 4000 + 0.3 * number, 4000.2 + 0.3 * number, 1) for number in range(40)]
    text = write_srt(words, LETTERS, tmp_path / "a.srt").read_text("utf-8")
    assert text.startswith(
        "1\n00:00:00,500 --> 00:00:01,400\none two\n\n2\n01:01:01,500 --> 01:01:02,000\nthree\n\n3\n01:06:40,000 --> "
    )
    lines = [block.split("\n") for block in text.strip().split("\n\n")]
    assert max(len(line[2]) for line in lines) <= 84
    assert " ".join(line[2] for line in lines) == " ".join(word.text for word in words)


def test_files_that_cannot_be_read_say_why(tmp_path: Path):
    soundfile.write(str(tmp_path / "a.wav"), np.zeros(16_000), 16_000)
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "half.wav").write_bytes(whole[:20_000])
    (tmp_path / "text.wav").write_text("hello")
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(str(tmp_path / "nothing.wav"), np.zeros(0), 16_000)
    soundfile.write(str(tmp_path / "nan.wav"), np.full(16_000, np.nan), 16_000, subtype="FLOAT")
    for name, says in (("half.wav", "is cut off"), ("text.wav", "cannot be decoded"), ("none.wav", "does not exist"),
                       ("nothing.wav", "has no samples"), ("nan.wav", "not numbers"), ("", "is a folder"),
                       ("empty.wav", "is empty")):  # fmt: skip
        with pytest.raises(UserError, match=says):
            words_of(tmp_path / name)


@pytest.mark.parametrize("window, overlap", [(4, 4), (4, 5), (4, 0), (0, 0), (float("inf"), 4), (float("nan"), 1)])
def test_windows_that_cannot_be_are_refused(minute, window: float, overlap: float):
    with pytest.raises(UserError, match=r"longer than their overlap.*Received: window_seconds"):
        words_of(minute[0], window_seconds=window, overlap_seconds=overlap)


def peak_memory(path: Path, forward: Forward, **settings) -> tuple[str, float]:
    """Return what was written, and the most memory that it took, MB."""
    tracemalloc.start()
    text = join_words(words_of(path, forward, **settings), LETTERS)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return text, peak


def repeated(path: Path, samples: np.ndarray, times: int) -> Path:
    with soundfile.SoundFile(str(path), "w", 16_000, 1) as file:
        for _ in range(times):
            file.write(samples)
    return path


def test_a_longer_recording_takes_no_more_memory(tmp_path: Path):
    samples, text, _ = spoken(20.0)
    _, short = peak_memory(repeated(tmp_path / "a.wav", samples, 2), Forward(), window_seconds=5, overlap_seconds=1)
    path = repeated(tmp_path / "b.wav", samples, 15)
    written, long = peak_memory(path, Forward(), window_seconds=5, overlap_seconds=1)
    assert written == text * 15
    assert long < 1.2 * short + 1  # the whole would be 19 MB


@pytest.mark.slow  # an hour is written and read twice
def test_an_hour(tmp_path: Path):
    samples, text, _ = spoken(60.0)
    forward = Forward()
    written, peak = peak_memory(repeated(tmp_path / "hour.flac", samples, 60), forward)
    assert written == text * 60
    assert forward.longest == 20 * 16_000 and peak < 60  # MB; the whole would be 230


def test_scripts_without_spaces_are_cut_into_characters():
    spaceless, spaced = build_characters(["你好", "世界"]), build_characters(["hello world"])
    assert join_words([Word("你", 0, 1, 1.0), Word("好", 1, 2, 1.0)], spaceless) == "你好"
    assert join_words([Word("a", 0, 1, 1.0), Word("b", 1, 2, 1.0)], spaced) == "a b"
    best = np.repeat([spaceless.numbers["你"], 0, spaceless.numbers["好"], 0], 5)
    words = _words(best, np.zeros(len(best)), spaceless, 0.02)
    assert [word.text for word in words] == ["你", "好"]
