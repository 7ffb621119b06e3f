"""Sound files of any format to mono float32 samples, for training and evaluation."""

from __future__ import annotations

import hashlib
import io
import os
import re
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np
import soundfile

from common.speech.audio.resampling import resample

SAMPLE_RATE = 16_000  # Hz, of speech models
# Some of these cannot be decoded: they are listed so that they are counted as skipped, with a reason.
SOUND_SUFFIXES = {".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd",
                  ".w64", ".caf", ".sph", ".m4a", ".mp4", ".aac", ".wma", ".webm", ".amr", ".3gp"}  # fmt: skip
READABLE = "wav, flac, ogg (Vorbis, Opus), mp3, aiff, au"
_CONVERT = f"Allowed: {READABLE}. Convert it: ffmpeg -i FILE -ar {SAMPLE_RATE} -ac 1 FILE.wav"
# Other common formats, by their first bytes (at an offset): the decoder only reports "not recognised".
_NOT_DECODED = (
    (4, b"ftyp", "MP4 or M4A"), (0, b"\x1a\x45\xdf\xa3", "WebM or Matroska"), (0, b"\x30\x26\xb2\x75", "WMA"),
    (0, b"#!AMR", "AMR"), (0, b"\xff\xf1", "AAC"), (0, b"\xff\xf9", "AAC"), (0, b"<", "a web page or XML, not a sound"),
    (0, b"version https://git-lfs", "a pointer of Git LFS and not the sound itself: git lfs pull"),
)  # fmt: skip
# In the decoder's log: the bytes of samples stated in the header, and those found. It reads these without an error.
_LENGTHS = re.compile(r"(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)")
STREAMED = 0x7FFF0000  # bytes; a program that wrote to a pipe did not know the length and wrote the maximum
_BLOCK_SECONDS = 10  # decoded at once; a header may state hours that are not there
_LARGEST_BYTES = 2**30
LOWEST_RATE, HIGHEST_RATE = 1_000, 1_000_000  # Hz; beyond that, a header is broken
_SILENT_PEAK = 1e-3  # -60 dB of full scale; even speech recorded far too low peaks above
CANCELLED = 0.1  # the mix of the channels is this much weaker than they are: they have opposite signs
_FULL_SCALE = 0.99  # the highest level of 8 bits is 127/128
_CLIPPED_SHARE = 1e-4  # of the samples that are flat at full scale
ABSURD_PEAK = 8.0  # for floats: 1 is full scale, a few above occur, thousands are integers written as floats
_MISSING_SHARE = {"MP3": 0.05}  # an MP3 states its length rounded to frames and with the encoder's delay


class UnreadableSound(Exception):
    """A file that cannot be used; the message is the end of a sentence that starts with its name."""


@dataclass(frozen=True)
class Clip:
    """One decoded sound.

    Attributes:
        samples: mono, float32 [samples], around 0, full scale is -1 to 1.
        rate: of the samples, Hz.
        file_rate: of the file, Hz.
        channels: of the file.
        offset: the mean (DC offset) that was removed from the samples, share of full scale.
        clipped: whether the recording was too loud: its peaks are cut off at full scale.
    """

    samples: np.ndarray
    rate: int
    file_rate: int
    channels: int
    offset: float
    clipped: bool

    @property
    def seconds(self) -> float:
        """Return the length of the clip."""
        return len(self.samples) / self.rate

    @property
    def silent(self) -> bool:
        """Return whether the clip is silent: no sample is above -60 dB of full scale."""
        return not len(self.samples) or float(np.abs(self.samples).max()) < _SILENT_PEAK

    def content_hash(self) -> str:
        """Return a hash of the samples at 16 bits: the same for a copy in another lossless file format."""
        levels = np.round(np.clip(self.samples, -1, 1) * 32767).astype("<i2")
        return hashlib.sha256(levels.tobytes()).hexdigest()


def read_sound(path: str | Path, rate: int = SAMPLE_RATE, max_seconds: float = inf) -> Clip:
    """Read a sound file of any format that `decode_sound` takes, whatever its suffix.

    Args:
        path: of the file.
        rate: to resample to, Hz.
        max_seconds: longer sounds are refused.

    Raises:
        UnreadableSound: there is no such file, or it cannot be used.
    """
    return decode_sound(_content(path), rate, max_seconds)


def read_frames(path: str | Path) -> tuple[np.ndarray, int]:
    """Return (samples float32 [n, channels], samples per second) of a sound file, unchanged.

    Raises:
        UnreadableSound: there is no such file, or it cannot be used.
    """
    return _decode_frames(_content(path), inf)


def refuse_no_file(path: str | Path) -> None:
    """Raise UnreadableSound if a path exists and is not a file."""
    if os.path.isdir(path):
        raise UnreadableSound("is a folder, not a sound")
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe or /dev/zero would never end
        raise UnreadableSound("is not a file but a device, pipe or socket")


def _content(path: str | Path) -> bytes:
    refuse_no_file(path)
    try:
        if (size := os.path.getsize(path)) > _LARGEST_BYTES:
            raise UnreadableSound(f"is too large: {size / 2**30:.1f} GB; at most 1 GB is allowed. Cut it into clips")
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UnreadableSound("does not exist") from error
    except (OSError, ValueError) as error:  # a name with a null byte, or that is not UTF-8
        raise UnreadableSound(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def decode_sound(encoded: bytes, rate: int = SAMPLE_RATE, max_seconds: float = inf) -> Clip:
    """Decode a sound, mix its channels, remove its DC offset and resample it, in this order.

    The mean is removed before resampling: a jump from 0 to the offset at either end would ring.
    `in_graph.prepare_wav_in_graph` does the same in a served graph: keep them equal.

    Args:
        encoded: the bytes of a file: wav, flac, ogg, mp3, aiff, au; any rate, channels and bits.
        rate: to resample to, Hz.
        max_seconds: longer sounds are refused, and not decoded any further.

    Raises:
        UnreadableSound: it is empty, of another format, cut off, without samples, or with samples that are not numbers.
    """
    frames, file_rate = _decode_frames(encoded, max_seconds)
    refuse_no_sound(frames)
    mono = mixed(frames)
    offset = float(mono.mean(dtype=np.float64))
    samples = resample(mono - np.float32(offset), file_rate, rate)
    return Clip(samples, rate, file_rate, frames.shape[1], offset, _is_clipped(frames))


def _decode_frames(encoded: bytes, max_seconds: float) -> tuple[np.ndarray, int]:
    """Return every sample of every channel, float32 [n, channels], and the rate of the file."""
    if not encoded:
        raise UnreadableSound("is empty (0 bytes)")
    try:
        # Some MP3 files start with zeros, which other players skip.
        with soundfile.SoundFile(_Bytes(encoded.lstrip(b"\0"))) as file:
            refuse_absurd_rate(file.samplerate)
            frames = _all_frames(file, max_seconds)
            refuse_cut_off(encoded, file, len(frames))
            return frames, file.samplerate
    except (soundfile.SoundFileError, OSError) as error:
        raise UnreadableSound(why_not_decoded(encoded, error)) from error


def refuse_absurd_rate(rate: int) -> None:
    """Raise UnreadableSound if the stated rate, Hz, is impossible."""
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise UnreadableSound(f"states an impossible sampling rate: {rate:,} Hz")


class _Bytes(io.BytesIO):
    """Bytes without seeking outside: the decoder tries it in damaged files, and Python would print a traceback."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self.getbuffer().nbytes}[whence]
        return super().seek(min(max(0, start + offset), self.getbuffer().nbytes))


def _all_frames(file: soundfile.SoundFile, max_seconds: float) -> np.ndarray:
    """Return every sample of every channel, float32 [n, channels]; the length in the header is not trusted."""
    blocks, count = [], 0
    while True:
        block = file.read(_BLOCK_SECONDS * file.samplerate, dtype="float32", always_2d=True)
        if not len(block):
            break
        blocks.append(block)
        count += len(block)
        if count > max_seconds * file.samplerate:
            stated = f"{file.frames / file.samplerate:,.1f} s" if count <= file.frames < 2**48 else "more"
            raise UnreadableSound(f"is too long: {stated}; at most {max_seconds:g} s are allowed")
    return np.concatenate(blocks) if blocks else np.zeros((0, file.channels), np.float32)


def why_not_decoded(encoded: bytes, error: Exception) -> str:
    """Return why a file, or the first bytes of one, could not be decoded: the end of a sentence."""
    for place, start, what in _NOT_DECODED:
        if encoded[place:].startswith(start):
            return f"is {what}. {_CONVERT}"
    if isinstance(error, soundfile.LibsndfileError) and error.code != 1:  # 1: unknown format
        return f"is damaged or cut off ({error.error_string or 'the decoder failed'})"
    return f"cannot be decoded: its format is unknown. {_CONVERT}"


def refuse_cut_off(end: bytes, file: soundfile.SoundFile, decoded: int) -> None:
    """Refuse a file without its end, which would not match its transcript.

    Args:
        end: the last bytes of the file, 100 KB or more if it has as many.
        file: after decoding.
        decoded: number of decoded frames.

    Raises:
        UnreadableSound: it has fewer samples than stated.
    """
    if lengths := _LENGTHS.search(file.extra_info):
        stated, found = int(lengths[1]), int(lengths[2])
        if found < stated < STREAMED:
            raise UnreadableSound(f"is cut off: {stated - found:,} bytes of its samples are missing")
    if file.format == "OGG" and not _has_last_ogg_page(end):
        raise UnreadableSound("is cut off: its last page is missing")
    if decoded < file.frames * (1 - _MISSING_SHARE.get(file.format, 0)) and file.frames < 2**48:
        raise UnreadableSound(f"is cut off: it states {file.frames:,} samples and has {decoded:,}")


def _has_last_ogg_page(encoded: bytes) -> bool:
    """Return whether the last page is complete and marked as the last."""
    start = encoded.rfind(b"OggS")
    segments = encoded[start + 27 : start + 27 + encoded[start + 26]] if start + 26 < len(encoded) else b""
    return bool(segments and encoded[start + 5] & 4) and start + 27 + len(segments) + sum(segments) <= len(encoded)


def refuse_no_sound(frames: np.ndarray) -> None:
    """Raise UnreadableSound if frames, float32 [n, channels], are empty, not numbers, or far beyond full scale."""
    if not len(frames):
        raise UnreadableSound("has no samples")
    if not np.isfinite(frames).all():
        raise UnreadableSound("has samples that are not numbers (NaN or infinite)")
    if (peak := float(np.abs(frames).max())) > ABSURD_PEAK:
        raise UnreadableSound(f"has samples up to {peak:,.0f}, but 1 is full scale. Divide them, or write 16 bits")


def mixed(frames: np.ndarray) -> np.ndarray:
    """Return the mean of the channels, float32 [n]; if they cancel each other out, the loudest one."""
    if frames.shape[1] == 1:
        return frames[:, 0]
    mono, power = frames.mean(axis=1), frames.std(axis=0)
    return frames[:, power.argmax()] if mono.std() < CANCELLED * power.max() / frames.shape[1] else mono


def _is_clipped(frames: np.ndarray) -> bool:
    """Return whether peaks are cut off: three or more samples in a row at the same level near full scale."""
    same = (frames[1:] == frames[:-1]) & (np.abs(frames[1:]) >= _FULL_SCALE)
    flat = np.count_nonzero(same[1:] & same[:-1])
    return flat > max(2, _CLIPPED_SHARE * frames.size)
