"""Checks of every clip before training: decoding, length, silence, transcript."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool

from common.progress import ProgressLine
from common.speech.audio.decode import Clip, UnreadableSound, read_sound
from common.speech.readers import SpeechRow

OFFSET_WORTH_A_NOTE = 0.01  # of full scale
_OTHER_LENGTH = 0.5  # seconds by which a file may differ from its manifest


@dataclass(frozen=True)
class Required:
    """What a clip must have; `text` is transcript, label or "" (no text needed)."""

    text: str
    rate: int
    silence: bool
    min_seconds: float
    max_seconds: float


@dataclass(frozen=True)
class CheckedClip:
    """A row whose file was decoded; `reason` is why it cannot be used, or ""."""

    row: SpeechRow
    reason: str
    content: str = ""
    seconds: float = 0.0
    file_rate: int = 0
    channels: int = 0
    offset: float = 0.0
    clipped: bool = False
    silent: bool = False


def check_all(rows: Sequence[SpeechRow], required: Required) -> list[CheckedClip]:
    """Decode every file once, to find bad ones before training; the samples are not kept."""
    checked, progress = [], ProgressLine("checking clips", len(rows))
    with ThreadPool(max(2, os.cpu_count() or 2)) as pool:  # threads: decoding and resampling release the GIL
        for clip in pool.imap(lambda row: _check(row, required), rows, chunksize=8):
            checked.append(clip)
            progress.update(len(checked))
    progress.close()
    return checked


def _check(row: SpeechRow, required: Required) -> CheckedClip:
    if reason := _why_not_read(row, required):
        return CheckedClip(row, reason)
    try:
        clip = read_sound(row.path, required.rate, required.max_seconds)
    except UnreadableSound as error:
        return CheckedClip(row, str(error))
    return CheckedClip(
        row, _why_unusable(row, clip, required), clip.content_hash(), clip.seconds, clip.file_rate, clip.channels,
        clip.offset, clip.clipped, clip.silent,
    )  # fmt: skip


def _why_not_read(row: SpeechRow, required: Required) -> str:
    if not row.path:
        return "has no path"
    if required.text and not any(character.isprintable() and not character.isspace() for character in row.text):
        where = " (it is in no class folder, or its cell in the table is empty)" if required.text == "label" else ""
        return f"has no {required.text}{where}"
    if row.begin:
        return f"is a piece of a longer recording (offset {row.begin:g} s): not supported, cut it into files first"
    return ""


def _why_unusable(row: SpeechRow, clip: Clip, required: Required) -> str:
    if clip.seconds < required.min_seconds:
        return f"is too short: {clip.seconds:.3f} s; at least {required.min_seconds:g} s are required"
    if clip.silent and not required.silence:
        return "is silent: nothing above -60 dB of full scale"
    if row.seconds is not None and abs(row.seconds - clip.seconds) > max(_OTHER_LENGTH, 0.1 * clip.seconds):
        return f"lasts {clip.seconds:.1f} s, but {row.seconds:.1f} s in its manifest: cut off, or only a piece is meant"
    return ""
