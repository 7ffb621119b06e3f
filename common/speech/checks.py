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

_OTHER_LENGTH = 0.5  # seconds by which a file may differ from what its manifest states


@dataclass(frozen=True)
class Wanted:
    """What a clip must be; `text` is what it needs to have, transcript, label or nothing."""

    text: str
    rate: int
    silence: bool
    min_seconds: float
    max_seconds: float


@dataclass(frozen=True)
class CheckedClip:
    """A row whose file was decoded; `reason` says why it cannot be used, or is ""."""

    row: SpeechRow
    reason: str
    content: str = ""
    seconds: float = 0.0
    file_rate: int = 0
    channels: int = 0
    offset: float = 0.0
    clipped: bool = False
    silent: bool = False


def check_all(rows: Sequence[SpeechRow], wanted: Wanted) -> list[CheckedClip]:
    """Decode every file once, so that a bad one is known before training; the samples are not kept."""
    checked, progress = [], ProgressLine("checking clips", len(rows))
    with ThreadPool(max(2, os.cpu_count() or 2)) as pool:  # threads: decoding and resampling let go of the GIL
        for clip in pool.imap(lambda row: _check(row, wanted), rows, chunksize=8):
            checked.append(clip)
            progress.update(len(checked))
    progress.close()
    return checked


def _check(row: SpeechRow, wanted: Wanted) -> CheckedClip:
    if reason := _why_not_read(row, wanted):
        return CheckedClip(row, reason)
    try:
        clip = read_sound(row.path, wanted.rate, wanted.max_seconds)
    except UnreadableSound as error:
        return CheckedClip(row, str(error))
    return CheckedClip(
        row, _why_unusable(row, clip, wanted), clip.content_hash(), clip.seconds, clip.file_rate, clip.channels,
        clip.offset, clip.clipped, clip.silent,
    )  # fmt: skip


def _why_not_read(row: SpeechRow, wanted: Wanted) -> str:
    if not row.path:
        return "names no file"
    if wanted.text and not any(character.isprintable() and not character.isspace() for character in row.text):
        where = " (it stands in no class folder, or its cell in the table is empty)" if wanted.text == "label" else ""
        return f"has no {wanted.text}{where}"
    if row.begin:
        return f"is a piece of a longer recording (offset {row.begin:g} s), which is not read: cut it into files first"
    return ""


def _why_unusable(row: SpeechRow, clip: Clip, wanted: Wanted) -> str:
    if clip.seconds < wanted.min_seconds:
        return f"is too short: {clip.seconds:.3f} s; at least {wanted.min_seconds:g} s are needed"
    if clip.silent and not wanted.silence:
        return "is silent: nothing above -60 dB of full scale"
    if row.seconds is not None and abs(row.seconds - clip.seconds) > max(_OTHER_LENGTH, 0.1 * clip.seconds):
        return (
            f"lasts {clip.seconds:.1f} s, and its manifest says {row.seconds:.1f} s: cut off, or a piece of it is meant"
        )
    return ""
