"""Sounds embedded in a page, to be played without any other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile

from common.speech.audio.decode import SAMPLE_RATE, UnreadableSound, read_sound

MAX_SECONDS = 15  # of each clip
MAX_CHARACTERS = 3_000_000  # of all encoded clips of a page
# Browsers play both. FLAC is lossless too, and about half as large except for very short sounds.
_FORMATS = {"audio/flac": "FLAC", "audio/wav": "WAV"}


def embed_sounds(paths: Sequence[str], room: int = MAX_CHARACTERS) -> list[dict[str, str]]:
    """Return sounds as data URIs: mono, 16 kHz, 16 bits, as a speech model receives them.

    Args:
        paths: n files.
        room: maximum number of characters of all together; sounds that do not fit are omitted.

    Returns:
        n of {"sound": the data URI or "", "note": what is missing, or ""}.
    """
    sounds = []
    for path in paths:
        try:
            samples = read_sound(path).samples
        except UnreadableSound as error:
            sounds.append({"sound": "", "note": f"The file {error}."})
            continue
        sound = encode_sound(samples[: MAX_SECONDS * SAMPLE_RATE])
        note = f"Only the first {MAX_SECONDS} s can be played." if len(samples) > MAX_SECONDS * SAMPLE_RATE else ""
        if len(sound) > room:
            sound, note = "", "Its sound is omitted: this page would be too large."
        room -= len(sound)
        sounds.append({"sound": sound, "note": note})
    return sounds


def encode_sound(samples: np.ndarray) -> str:
    """Return samples (mono, 16 kHz, float32 [n], full scale is -1 to 1) as the shorter of a FLAC and a wav data URI."""
    levels, encoded = np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16), {}
    for kind, name in _FORMATS.items():
        file = io.BytesIO()
        soundfile.write(file, levels, SAMPLE_RATE, format=name, subtype="PCM_16")
        encoded[kind] = file.getvalue()
    kind = min(encoded, key=lambda kind: len(encoded[kind]))
    return f"data:{kind};base64,{base64.b64encode(encoded[kind]).decode('ascii')}"


def players(paths: Sequence[str]) -> Callable[[Sequence[int]], list[dict]]:
    """Return the preview of a report: positions in `paths` -> "sound" (a data URI), "note" and "name" of each."""

    def preview(places: Sequence[int]) -> list[dict]:
        some = [str(paths[place]) for place in places]
        return [sound | {"name": Path(path).name} for path, sound in zip(some, embed_sounds(some), strict=True)]

    return preview
