"""A speech source as it is on people who read English sentences: word and character error rates.

    python benchmarks/real_voices.py bundled:wav2vec2_mini preset:OLD_FOLDER

Of Common Voice all clips of ../shared/data/common_voice_en, and six of LibriSpeech; apart from them eight of LJ Speech,
whose speaker is in pretrain/speech. None of their sentences is in what bundled:wav2vec2_mini learned from. Intervals
resample speakers. Writes benchmarks/results/real_voices.json.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402 (the script's folder, not the checkout, is on sys.path)
from demos import read_table  # noqa: E402 (beside this script)
from prepare_data import extract_tar  # noqa: E402
from provenance import commit, machine  # noqa: E402

from common.files import write_json  # noqa: E402
from common.speech.batches import Clips  # noqa: E402
from common.speech.dataset import load_speech_set  # noqa: E402
from common.speech.inference import build_forward, transcribe  # noqa: E402
from common.speech.metrics import transcription_metrics  # noqa: E402
from common.speech.models import as_recogniser  # noqa: E402
from common.speech.sources import load_speech_source  # noqa: E402

OUT = ROOT / "benchmarks" / "results" / "real_voices.json"
SCORES = ("wer", "wer_ci95", "cer", "cer_ci95", "ci95_over", "words", "sentence_accuracy")


def sentences_read(shared: Path, unpacked: Path) -> dict[str, list[tuple[str, str, str]]]:
    """Return (path, text, speaker) of the clips of each set."""
    extract_tar(shared / "common_voice_en" / "audio.tar", unpacked)
    rows = read_table(shared / "common_voice_en" / "clips.csv")
    sets = {
        "Common Voice and LibriSpeech": [
            (str(next(unpacked.rglob(row["file"]))), row["sentence"], row["speaker"]) for row in rows
        ],
        "LJ Speech": [],
    }
    for title, folder in zip(sets, ("librispeech_84_121123", "ljspeech_8"), strict=True):
        found = load_speech_set(f"folder:{shared / folder}", share_speakers=True)
        for part in (found.train, found.val, found.test):
            sets[title] += [(path, text, folder) for path, text in zip(part.paths, part.texts, strict=True)]
    return sets


def error_rates(source: str, clips: list[tuple[str, str, str]]) -> dict:
    """Return the scores of a source as it is, without a language model."""
    recogniser = as_recogniser(load_speech_source(source))
    paths, texts, speakers = (list(column) for column in zip(*clips, strict=True))
    decoded = Clips(paths, title="")
    seconds = np.array([len(decoded[place]) / 16_000 for place in range(len(paths))])
    written = transcribe(
        build_forward(recogniser), decoded, seconds, recogniser.characters, keep_log_probabilities=False, title=""
    ).texts  # fmt: skip
    references = [recogniser.characters.normalise(text) for text in texts]
    scores = transcription_metrics(references, written, speakers)
    first = [list(pair) for pair in zip(references[:5], written[:5], strict=True)]
    return {"clips": len(clips)} | {name: scores[name] for name in SCORES} | {"first": first}


def main() -> None:
    """Measure each source on each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", help="bundled:NAME or preset:FOLDER")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data")
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        sets = sentences_read(options.shared, Path(folder))
        for source in options.sources:
            found[source] = {title: error_rates(source, clips) for title, clips in sets.items()}
            for title, scores in found[source].items():
                print(f"{source}, {title}: WER {scores['wer']:.3f}, CER {scores['cer']:.3f}", flush=True)
    origin = {"commit": commit(ROOT), **machine(), "date": time.strftime("%Y-%m-%d")}
    write_json(OUT, {"command": f"python benchmarks/real_voices.py {' '.join(options.sources)}", **found, **origin})


if __name__ == "__main__":
    main()
