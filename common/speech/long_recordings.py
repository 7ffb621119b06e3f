"""Recordings of any length to words with time stamps, in the memory of one window.

The memory of attention grows with the square of the length. So the recording is cut into overlapping windows; the
frames in the middle of each, with context on both sides, are kept and decoded together: no word is lost or doubled at a
seam.

    words = transcribe_long(build_forward(recogniser), recogniser.config, recogniser.characters, "lecture.flac")
"""

from __future__ import annotations

import itertools
import math
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from common import files
from common.errors import UserError
from common.progress import ProgressLine
from common.speech.audio.decode import (
    SAMPLE_RATE,
    UnreadableSound,
    mixed,
    refuse_absurd_rate,
    refuse_cut_off,
    refuse_no_file,
    refuse_no_sound,
    why_not_decoded,
)
from common.speech.audio.resampling import resample
from common.speech.ctc.characters import Characters
from common.speech.inference import Forward
from common.speech.wav2vec2.config import Wav2Vec2Config

WINDOW_SECONDS, OVERLAP_SECONDS = 20.0, 4.0
_BLOCK_SECONDS = 10  # decoded at once
_END_BYTES = 2**17
_LINE_CHARACTERS, _LINE_SECONDS, _PAUSE_SECONDS = 84, 6.0, 0.8  # limits of a subtitle, and the pause before a new one
# Scripts without spaces between words, by the Unicode names of their letters.
_WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


@dataclass(frozen=True)
class Word:
    """A word and its time.

    Attributes:
        text: the word; in a script without spaces one character with its marks.
        begin, end: seconds from the beginning of the recording, accurate to a frame (0.02 s with the usual strides).
            CTC emits a character approximately in time, late rather than early.
        confidence: 0 to 1, as defined in `inference.write_text`, of the frames of this word.
    """

    text: str
    begin: float
    end: float
    confidence: float


def transcribe_long(
    forward: Forward, config: Wav2Vec2Config, characters: Characters, path: str | Path,
    *, window_seconds: float = WINDOW_SECONDS, overlap_seconds: float = OVERLAP_SECONDS,
    title: str = "seconds transcribed",
) -> list[Word]:  # fmt: skip
    """Transcribe a recording of any length.

    The mean of each window is removed, and each is normalised separately if the model requires it: loud and quiet hours
    are treated alike, and a clip that fits into one window gets exactly the transcript of the evaluation.

    Args:
        forward: as returned by `inference.build_forward`.
        config: of the model, for the number of samples between frames.
        characters: the vocabulary.
        path: a sound file: wav, flac, ogg, mp3, aiff, au.
        window_seconds: length of a window. Longer ones give more context and take more memory.
        overlap_seconds: of two windows; half of it at either end of a window is context only.
        title: of the progress line; no line if empty.

    Raises:
        UserError: the file cannot be read, or the overlap does not fit into the window.
    """
    if not 0 < overlap_seconds < window_seconds < math.inf:
        raise UserError(
            "Windows must be longer than their overlap, and both longer than 0 s. "
            f"Received: window_seconds {window_seconds:g}, overlap_seconds {overlap_seconds:g}."
        )
    try:
        seconds = _measure(path)
        best, logs = _best_path(forward, config, path, window_seconds, overlap_seconds, seconds, title)
    except UnreadableSound as error:
        raise UserError(f"{path} {error}.") from error
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(f"{path} {_why(Path(path), error)}.") from error
    return _words(best, logs, characters, math.prod(config.conv_stride) / SAMPLE_RATE)


def _why(path: Path, error: Exception) -> str:
    """Return why a file cannot be read: the end of a sentence that starts with its name."""
    try:
        with path.open("rb") as file:
            begins = file.read(64)
    except OSError as unread:
        return "does not exist" if isinstance(unread, FileNotFoundError) else f"cannot be read: {unread.strerror}"
    return why_not_decoded(begins, error) if begins else "is empty (0 bytes)"


def join_words(words: Sequence[Word], characters: Characters) -> str:
    """Return the text of words, as in `Characters.collapse`."""
    return _between(characters).join(word.text for word in words)


def confidence_of(words: Sequence[Word]) -> float:
    """Return the geometric mean of the confidences of words, 0 for no words."""
    return math.exp(sum(math.log(max(word.confidence, 1e-30)) for word in words) / len(words)) if words else 0.0


def _between(characters: Characters) -> str:
    """Return the separator of words: a space, or "" in a script without spaces."""
    letters = [symbol for symbol in characters.symbols if symbol.isalpha()]
    unspaced = sum(unicodedata.name(letter, "").startswith(_WITHOUT_SPACES) for letter in letters)
    return "" if unspaced > len(letters) / 2 else " "


def write_srt(words: Sequence[Word], characters: Characters, path: Path) -> Path:
    """Write words as subtitles (SubRip), for video players and editors.

    Args:
        words: as returned by `transcribe_long`.
        characters: the vocabulary.
        path: of the file.

    Returns:
        The path.

    Raises:
        UserError: the disk is full.
    """
    lines: list[list[Word]] = []
    for word in words:
        line = lines[-1] if lines else []
        full = line and (
            word.begin - line[-1].end > _PAUSE_SECONDS
            or word.end - line[0].begin > _LINE_SECONDS
            or len(join_words([*line, word], characters)) > _LINE_CHARACTERS
        )
        if full or not line:
            lines.append([])
        lines[-1].append(word)
    text = "".join(
        f"{number}\n{_clock(line[0].begin)} --> {_clock(line[-1].end)}\n{join_words(line, characters)}\n\n"
        for number, line in enumerate(lines, 1)
    )
    with files.room_for("the subtitles", path.parent):
        return files.write_atomically(path, partial(Path.write_text, data=text, encoding="utf-8"))


def _clock(seconds: float) -> str:
    thousandths = round(seconds * 1000)
    minutes, thousandths = divmod(thousandths, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{thousandths // 1000:02d},{thousandths % 1000:03d}"


# --- windows ----------------------------------------------------------------------------------------------


def _measure(path: str | Path) -> float:
    """Return the length of a recording in seconds, by decoding it once.

    Decoding takes seconds, transcribing minutes: a damaged end is found before.
    """
    refuse_no_file(path)
    with soundfile.SoundFile(str(path)) as file:
        refuse_absurd_rate(file.samplerate)
        count = 0
        while len(block := file.read(_BLOCK_SECONDS * file.samplerate, dtype="float32", always_2d=True)):
            refuse_no_sound(block)
            count += len(block)
        with open(path, "rb") as raw:
            raw.seek(max(0, os.path.getsize(path) - _END_BYTES))
            refuse_cut_off(raw.read(), file, count)
        if not count:
            raise UnreadableSound("has no samples")
        return count / file.samplerate


def _best_path(
    forward: Forward, config: Wav2Vec2Config, path: str | Path, window_seconds: float, overlap_seconds: float,
    seconds: float, title: str,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return the best token of each frame of the recording, int [frames], and the logarithm of its probability."""
    hop = math.prod(config.conv_stride)
    with soundfile.SoundFile(str(path)) as file:
        # A window starts at a frame and at a sample of the file: its frames are those of the whole recording.
        unit = math.lcm(hop, SAMPLE_RATE // math.gcd(SAMPLE_RATE, file.samplerate))
        step = unit * max(1, round((window_seconds - overlap_seconds) * SAMPLE_RATE / unit))
        half = hop * max(1, round(overlap_seconds * SAMPLE_RATE / 2 / hop))
        progress, done = (ProgressLine(title, math.ceil(seconds)) if title else None), 0
        kept, tail = [], None
        for samples in _windows(file, step, step + 2 * half):
            frames = _best_tokens(forward, samples)
            begin, end = (0 if tail is None else half // hop), (half + step) // hop
            kept.append(frames[:, begin:end])
            tail = frames[:, end:]  # kept as well for the last window
            done += step
            if progress:
                progress.update(min(done // SAMPLE_RATE, progress.total))
        if progress:
            progress.update(progress.total)  # the last step may end before or after the end
            progress.close()
    best, logs = np.concatenate([*kept, tail], axis=1)
    return best.astype(np.int32), logs


def _windows(file: soundfile.SoundFile, step: int, length: int) -> Iterator[np.ndarray]:
    """Yield overlapping windows of a file, each as from `decode.decode_sound`: float32 [samples] at 16 kHz.

    Args:
        file: at its beginning.
        step: between the starts of windows, in samples at 16 kHz; a whole number of samples in the file too.
        length: of a window, in samples at 16 kHz; the last one is shorter.
    """
    step, length = step * file.samplerate // SAMPLE_RATE, math.ceil(length * file.samplerate / SAMPLE_RATE)
    window = file.read(length, dtype="float32", always_2d=True)
    while True:
        mono = mixed(window)
        yield resample(mono - np.float32(mono.mean(dtype=np.float64)), file.samplerate, SAMPLE_RATE)
        further = file.read(step, dtype="float32", always_2d=True)
        if not len(further):
            return
        window = np.concatenate([window[step:], further])


def _best_tokens(forward: Forward, samples: np.ndarray) -> np.ndarray:
    """Return the best token of each frame and the logarithm of its probability, float32 [2, frames]."""
    logits, frames = forward(samples[None], np.array([len(samples)], np.int32))
    logits = np.asarray(logits)[0, : int(frames[0])]
    highest = logits.max(axis=1, initial=-math.inf)
    logs = -np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    return np.stack([logits.argmax(axis=1), logs]).astype(np.float32)


# --- words ------------------------------------------------------------------------------------------------


def _words(best: np.ndarray, logs: np.ndarray, characters: Characters, frame_seconds: float) -> list[Word]:
    """Return the words of a best path."""
    spaced = _between(characters) == " "
    words: list[Word] = []
    text, runs_of_word = "", []  # a run: the first frame of a character, and the one after its last

    def finish() -> None:
        if text:
            of_frames = np.concatenate([logs[begin:end] for begin, end in runs_of_word])
            begin, end = runs_of_word[0][0] * frame_seconds, runs_of_word[-1][1] * frame_seconds
            words.append(Word(text, round(begin, 6), round(end, 6), float(np.exp(of_frames.mean()))))

    edges = np.flatnonzero(np.diff(best, prepend=-1, append=-1))
    for begin, end in itertools.pairwise(edges):
        number = int(best[begin])
        symbol = "" if number == characters.blank else characters.symbols[number]
        is_mark = bool(symbol) and unicodedata.category(symbol[0])[0] == "M"  # belongs to the letter before it
        if symbol.isspace() or (symbol and not spaced and not is_mark):
            finish()
            text, runs_of_word = "", []
        if symbol and not symbol.isspace():
            text += symbol
            runs_of_word.append((int(begin), int(end)))
    finish()
    return words
