"""What the recipes of speech promise, on real recordings: padding, real voices through server and client, an hour.

    python benchmarks/prepare_speech.py --out ../prepared_data/fsdd
    python -m recipes run speech_wav2vec --data tsv:../prepared_data/fsdd/all.tsv --out runs/fsdd
    python benchmarks/speech_checks.py runs/fsdd

Each test clip of FSDD alone and in a batch that is padded to ten seconds; the clips of LibriSpeech and LJSpeech with
the bundled source as it is, exported, served as `python -m recipes serve` does and asked by the client that every run
writes; and the clips of LibriSpeech again and again for an hour. Writes benchmarks/results/speech_checks.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402 (the script's folder, not the checkout, is on sys.path)
import soundfile  # noqa: E402
import tensorflow as tf  # noqa: E402

from common import files, runs  # noqa: E402
from common.serving.kit.write import write_serving_files  # noqa: E402
from common.serving.models import ModelConfig  # noqa: E402
from common.serving.server import Address, Server  # noqa: E402
from common.speech.audio.decode import SAMPLE_RATE, read_sound  # noqa: E402
from common.speech.dataset import load_speech_set  # noqa: E402
from common.speech.export import as_served_wav, export_recogniser  # noqa: E402
from common.speech.inference import build_forward, write_text  # noqa: E402
from common.speech.long_recordings import transcribe_long  # noqa: E402
from common.speech.metrics import transcription_metrics  # noqa: E402
from common.speech.models import as_recogniser  # noqa: E402
from common.speech.sources import load_speech_source  # noqa: E402

REAL = {"LibriSpeech, 6 sentences": "folder:../shared/data/librispeech_84_121123",
        "LJSpeech, 8 sentences": "folder:../shared/data/ljspeech_8"}  # fmt: skip
PADDED_SECONDS = 10
HOUR = 3600


def padding(run: Path) -> dict:
    """Compare what a model writes of each clip alone and beside ten seconds of padding."""
    recogniser = as_recogniser(load_speech_source(f"preset:{(run / 'preset').absolute()}"))
    forward = build_forward(recogniser)

    def write(audio: np.ndarray, counts: list[int]) -> list[bytes]:
        logits, frames = forward(tf.constant(audio), tf.constant(counts, tf.int32))
        return list(write_text(logits, frames, recogniser.characters)[0].numpy())

    data = load_speech_set("tsv:../prepared_data/fsdd/all.tsv")
    clips = [read_sound(path).samples for path in data.test.paths]
    alone = [write(samples[None], [len(samples)])[0] for samples in clips]
    padded: list[bytes] = []
    for first in range(0, len(clips), 10):
        some = clips[first : first + 10]
        shape = len(some), PADDED_SECONDS * SAMPLE_RATE
        audio = np.random.default_rng(first).standard_normal(shape).astype(np.float32)  # not even silence
        for row, samples in zip(audio, some, strict=True):
            row[: len(samples)] = samples
        padded += write(audio, [len(samples) for samples in some])
    same = sum(one == other for one, other in zip(alone, padded, strict=True))
    return {"clips": len(clips), "seconds": PADDED_SECONDS, "same_transcript": same}


def real_voices() -> dict:
    """Export the bundled source as it is, serve it, and ask it about real recordings with the client."""
    recogniser, found = as_recogniser(load_speech_source("bundled:wav2vec2_mini")), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_recogniser(recogniser, folder / "serving" / "speech")
        for title, data in REAL.items():
            examples = load_speech_set(data, share_speakers=True)
            parts = [getattr(examples, part) for part in ("train", "val", "test")]
            texts = [recogniser.characters.normalise(text) for part in parts for text in part.texts]
            (folder / "wavs").mkdir(exist_ok=True)
            wavs = [as_served_wav(path, folder / "wavs") for part in parts for path in part.paths]
            write_serving_files(folder / "serving", "speech", input_name="audio", example=wavs[0])
            with Server([ModelConfig("speech", folder / "serving" / "speech")], Address(rest_port=0)) as server:
                command = [sys.executable, str(folder / "serving" / "client.py"), "--url", server.url, "--json"]
                done = subprocess.run([*command, *map(str, wavs)], capture_output=True, text=True, check=True)
            answers = [json.loads(line) for line in done.stdout.splitlines()]
            written = [answer["text"] for answer in answers]
            scores = transcription_metrics(texts, written, [""] * len(texts))
            found[title] = {name: scores[name] for name in ("wer", "cer", "words")} | {"first": [texts[0], written[0]]}
    return found


def an_hour() -> dict:
    """Write down a recording of an hour; the memory that it took beside what was there before."""
    recogniser = as_recogniser(load_speech_source("bundled:wav2vec2_mini"))
    clips = [read_sound(path).samples for path in sorted(Path("../shared/data/librispeech_84_121123").glob("*.flac"))]
    with tempfile.TemporaryDirectory() as folder:
        path, written = Path(folder) / "hour.flac", 0
        with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1) as file:
            while written < HOUR * SAMPLE_RATE:
                samples = clips[written % len(clips)]
                file.write(samples)
                written += len(samples)
        forward = build_forward(recogniser)
        transcribe_long(forward, recogniser.config, recogniser.characters, _first_minute(path, Path(folder)))
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        words = transcribe_long(forward, recogniser.config, recogniser.characters, path)
        seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds_of_sound": written // SAMPLE_RATE, "seconds": round(seconds, 1), "words": len(words),
            "peak_memory_mb_after_a_minute": round(before / 1024), "after_an_hour": round(after / 1024)}  # fmt: skip


def _first_minute(path: Path, folder: Path) -> Path:
    samples, rate = soundfile.read(path, frames=60 * SAMPLE_RATE)
    soundfile.write(folder / "minute.flac", samples, rate)
    return folder / "minute.flac"


def main() -> None:
    """Run all checks and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run of speech_wav2vec on FSDD")
    options = parser.parse_args()
    found = {"padding": padding(options.run), "real_voices": real_voices(), "an_hour": an_hour()}
    found |= {"versions": runs.versions(), "date": time.strftime("%Y-%m-%d")}
    files.write_json(ROOT / "benchmarks" / "results" / "speech_checks.json", found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
