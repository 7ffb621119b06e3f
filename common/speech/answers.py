"""How `python -m recipes predict` reads sounds and shows transcripts; long recordings are read in windows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile

from common.exporting import Answers
from common.speech.export import served_wav
from common.speech.inference import build_forward
from common.speech.long_recordings import confidence_of, join_words, transcribe_long, write_srt
from common.speech.models import as_recogniser
from common.speech.sources import load_speech_source

LONG_SECONDS = 60.0  # a longer recording is read in windows, and its words get time stamps
BATCH = 4  # clips per request


def read_recording(name: str, run: Path, place: Path) -> bytes | dict:
    """Return a sound as the bytes of a WAV file, or for a long recording its transcript."""
    try:
        long = soundfile.info(name).duration > LONG_SECONDS
    except soundfile.SoundFileError:
        long = False  # reading it below reports what is wrong
    return _transcribe_long(Path(name), run, place) if long else served_wav(Path(name))


def _transcribe_long(file: Path, run: Path, place: Path) -> dict:
    """Transcribe a long recording with the model of the run, which is proved equal to its export."""
    recogniser = as_recogniser(load_speech_source(f"preset:{(run / 'preset').absolute()}"))
    characters = recogniser.characters
    words = transcribe_long(build_forward(recogniser), recogniser.config, characters, file)
    place.parent.mkdir(exist_ok=True)
    return {
        "text": join_words(words, characters),
        "confidence": confidence_of(words),
        "subtitles": str(write_srt(words, characters, Path(f"{place}.srt"))),
        "words": [vars(word) for word in words],
    }


def parse_transcript(outputs: Mapping[str, np.ndarray], row: int) -> dict:
    """Return text and confidence of one clip."""
    return {"text": outputs["text"][row].decode("utf-8"), "confidence": float(outputs["confidence"][row])}


def show_transcript(answer: dict, name: str, _place: Path) -> str:
    """Return the printed line of a transcript."""
    written = f"  subtitles: {answer['subtitles']}" if "subtitles" in answer else ""
    return f"{name}  {answer['text']!r}  {answer['confidence']:.4f}{written}"


TRANSCRIPTS = Answers(("text", "confidence"), parse_transcript, show_transcript)
