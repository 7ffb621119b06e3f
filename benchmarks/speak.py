"""Let espeak-ng read: a corpus to pre-train bundled:wav2vec2_mini on, or the demo of the speech recipes.

    apt install espeak-ng
    python benchmarks/prepare_data.py pretrain/speech
    git clone --depth 1 https://github.com/jimbozhang/speechocean762 ../prepared_data/speechocean762     # 690 MB
    python benchmarks/speak.py corpus --out ../prepared_data/spoken --real ../prepared_data/pretrain_speech \\
        --speechocean ../prepared_data/speechocean762
    python benchmarks/speak.py demo --out common/speech/demo_synthetic

A voice is an accent of English with one of espeak-ng's variants (other throats), and each clip has its own pitch and
pace. The voices of the demo's validation and test, and those of the corpus', speak nowhere else. The corpus lists real
recordings too, each several times, since they are few; with --speechocean also all clips of that corpus, of which
../shared/data has a part. It holds no sentence that real voices are tested with. Same
arguments, same clips, as long as espeak-ng is of one version.
"""

from __future__ import annotations

import argparse
import csv
import io
import subprocess
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.progress import ProgressLine  # noqa: E402 (the script's folder, not the checkout, is on sys.path)
from common.speech.audio.decode import SAMPLE_RATE, decode_sound  # noqa: E402
from common.speech.ctc.characters import Characters  # noqa: E402

ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-us-nyc", "en-gb-x-gbclan")
HELD_OUT_ACCENTS = ("en-029", "en-gb-x-gbcwmd")  # the Caribbean, the West Midlands
VARIANTS = (
    "m1", "m2", "m3", "m4", "m6", "m7", "m8", "f1", "f2", "f4", "f5", "klatt", "klatt2", "klatt4", "klatt5", "Adam",
    "Alex", "Alicia", "Andrea", "Andy", "Annie", "antonio", "aunty", "belinda", "benjamin", "boris", "caleb", "david",
    "Denis", "Diogo", "ed", "edward", "Gene", "Gustave", "Henrique", "Hugo", "iven", "iven3", "Jacky", "john",
    "kaukovalta", "Lee", "linda", "Marco", "Mario", "max", "michael", "Michel", "miguel", "Mr", "Nguyen", "pablo",
    "paul", "quincy", "rob", "robert", "sandro", "steph", "steph3", "Storm", "travis", "victor", "Zac", "grandpa",
)  # fmt: skip
HELD_OUT_VARIANTS = ("m5", "f3", "anika", "mike", "pedro", "steph2")  # of the demo
HELD_OUT_OF_CORPUS = {"val": ("klatt3", "shelby"), "test": ("norbert", "grandma")}

DIGITS = "zero one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million oh".split()
NUMBERS = [*DIGITS, *TEENS, *TENS]
COMMANDS = "yes no up down left right on off stop go".split()
WORDS = [*DIGITS, *COMMANDS]
LONGEST = 10  # words of a sentence of the corpus
SHARES = {"words": 0.2, "numbers": 0.2}  # of the corpus; the rest are sentences
HELD_OUT_SHARE = 0.015  # of the corpus, for validation and for test
REAL_TIMES = 4  # that each real recording is listed
CHARACTERS = Characters(("", " ", *"abcdefghijklmnopqrstuvwxyz'"))


def speak(text: str, accent: str, variant: str, rng: np.random.Generator) -> np.ndarray:
    """Return a sentence as espeak-ng reads it, float32 [samples] at 16 kHz."""
    pace, pitch, gap = rng.integers(110, 220), rng.integers(10, 90), rng.integers(0, 4)
    command = ["espeak-ng", "-v", f"{accent}+{variant}", "-s", str(pace), "-p", str(pitch), "-g", str(gap), "--stdout"]
    wav = subprocess.run(command, input=text.encode(), capture_output=True, check=True).stdout
    samples = decode_sound(wav).samples
    heard = np.flatnonzero(np.abs(samples) > 1e-3)
    margin = int(0.05 * SAMPLE_RATE)  # espeak-ng leaves long pauses at either end
    return samples[max(0, heard[0] - margin) : heard[-1] + margin] if len(heard) else samples


def write_clips(folder: Path, wanted: list[tuple[str, str, str, str]], seed: int) -> None:
    """Write FLAC files and manifest.tsv.

    Of each sample 12 bits are kept: what lies below is quieter than any room, and half of the file.

    Args:
        folder: to write to.
        wanted: (text, accent, variant, part) of each clip.
        seed: decides pitch and pace.
    """
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    progress = ProgressLine("speaking", len(wanted))

    def one(numbered):
        number, (text, accent, variant, part) = numbered
        samples = speak(text, accent, variant, np.random.default_rng((seed, number)))
        name = f"clips/{number:05d}.flac"
        levels = np.round(0.7 * samples / max(1e-3, np.abs(samples).max()) * 2047).astype(np.int16) * 16
        encoded = io.BytesIO()
        soundfile.write(encoded, levels, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        (folder / name).write_bytes(encoded.getvalue())
        return name, text, f"{accent}+{variant}", part

    with ThreadPool(4) as pool, open(folder / "manifest.tsv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["path", "text", "speaker", "split"])
        for done, row in enumerate(pool.imap(one, enumerate(wanted), chunksize=16)):
            table.writerow(row)
            progress.update(done + 1)
    progress.close()


def normalised(line: str) -> str:
    """Return a sentence in the characters of the corpus, as it is scored."""
    return CHARACTERS.normalise(line).replace(" '", "'")


def sentences_of(folder: Path) -> list[str]:
    """Return the short sentences of the public domain, each once, without those that real voices are tested with."""
    lines = (folder / "pretrain/speakable/sentences.txt").read_text("utf-8").splitlines()
    kept = {text for text in map(normalised, lines) if 1 <= len(text.split()) <= LONGEST}
    return sorted(text for text in kept - tested_sentences(folder) if not CHARACTERS.unknown(text))


def tested_sentences(folder: Path) -> set[str]:
    """Return what is read in the recordings of real voices that the model is tested on."""
    with open(folder / "common_voice_en/clips.csv", newline="", encoding="utf-8") as file:
        lines = [row["sentence"] for row in csv.DictReader(file)]
    for line in (folder / "librispeech_84_121123/84-121123.trans.txt").read_text("utf-8").splitlines():
        lines.append(line.partition(" ")[2])
    for line in (folder / "ljspeech_8/metadata.csv").read_text("utf-8").splitlines():
        lines.append(line.rpartition("|")[2])
    return set(map(normalised, lines))


def add_real(folder: Path, recordings: Path, texts: Path, speechocean: Path | None = None) -> None:
    """List real recordings in the manifest of the corpus, those of training several times.

    Args:
        folder: of the corpus.
        recordings: as benchmarks/prepare_data.py made it; its transcripts.csv is read.
        texts: with the sentences that are tested, which are left out.
        speechocean: a clone of the corpus speechocean762, whose other clips are listed, too.
    """
    left_out = tested_sentences(texts)
    with open(recordings / "transcripts.csv", newline="", encoding="utf-8") as table:
        rows = [row | {"path": (recordings / row["path"]).resolve()} for row in csv.DictReader(table)]
    if speechocean:
        rows += more_of_speechocean(speechocean, rows)
    with open(folder / "manifest.tsv", "a", newline="", encoding="utf-8") as manifest:
        written = csv.writer(manifest, delimiter="\t", lineterminator="\n")
        for row in rows:
            if normalised(row["text"]) not in left_out:
                for _ in range(REAL_TIMES if row["split"] == "train" else 1):
                    written.writerow([row["path"], row["text"], row["speaker"], row["split"]])


def more_of_speechocean(clone: Path, rows: list[dict]) -> list[dict]:
    """Return the clips of speechocean762 that are not among the rows, in the splits of their speakers there."""
    known, split_of = {row["path"].stem for row in rows}, {row["speaker"]: row["split"] for row in rows}
    found = []
    for part in ("train", "test"):  # of the corpus: both are learned from here
        texts, speakers, paths = (
            dict(line.split(maxsplit=1) for line in (clone / part / name).read_text("utf-8").splitlines())
            for name in ("text", "utt2spk", "wav.scp")
        )
        for name in sorted(texts.keys() - known):
            speaker = f"so{speakers[name]}"
            row = {"path": (clone / paths[name]).resolve(), "text": texts[name].lower(), "speaker": speaker}
            found.append(row | {"split": split_of.get(speaker, "train")})
    return found


def corpus(folder: Path, texts: Path, clips: int, seed: int, real: Path | None, speechocean: Path | None) -> None:
    """Speak sentences, numbers and single words with the voices that the demo's test does not have; add real voices."""
    rng, sentences = np.random.default_rng(seed), sentences_of(texts)
    vocabulary = np.array(sorted({word for text in sentences for word in text.split() if len(word) > 1}))
    sentences = np.array(sentences)  # numpy would make an array of a list at every draw
    wanted = []
    for _ in range(clips):
        kind = rng.random()
        if kind < SHARES["words"]:
            text = str(rng.choice(WORDS if rng.random() < 0.5 else vocabulary))
        elif kind < SHARES["words"] + SHARES["numbers"]:
            text = " ".join(rng.choice(NUMBERS, rng.integers(1, 8)))
        else:
            text = str(rng.choice(sentences))
        draw = rng.random()
        part = "val" if draw < HELD_OUT_SHARE else "test" if draw < 2 * HELD_OUT_SHARE else "train"
        variant = str(rng.choice(HELD_OUT_OF_CORPUS.get(part, VARIANTS)))
        wanted.append((text, str(rng.choice(ACCENTS)), variant, part))
    write_clips(folder, wanted, seed)
    if real:
        add_real(folder, real, texts, speechocean)


def demo(folder: Path, seed: int) -> None:
    """Speak twenty words, alone and in short phrases; validation and test in accents and voices of their own.

    Each voice of training speaks every other word: more voices teach more than more clips of each.
    """
    rng, wanted = np.random.default_rng(seed), []
    variants = "m3 f2 Annie paul klatt2 Andrea max m7 f4 john linda Alex belinda robert Zac f1".split()
    voices = {
        "train": [(ACCENTS[number % len(ACCENTS)], variant) for number, variant in enumerate(variants)],
        "val": [("en-029", "f3"), ("en-gb-x-gbcwmd", "pedro")],
        "test": [("en-029", "mike"), ("en-gb-x-gbcwmd", "anika"), ("en-029", "steph2"), ("en-gb-x-gbcwmd", "m5")],
    }
    for part, speakers in voices.items():
        for number, (accent, variant) in enumerate(speakers):
            held_out = accent in HELD_OUT_ACCENTS and variant in HELD_OUT_VARIANTS
            assert held_out == (part != "train"), f"{accent}+{variant} speaks elsewhere"
            half = (number + number // len(ACCENTS)) % 2  # both halves in each accent
            words, phrases = (WORDS[half::2], 4) if part == "train" else (WORDS, 8)
            texts = [*words, *(" ".join(rng.choice(WORDS, rng.integers(2, 4))) for _ in range(phrases))]
            wanted += [(text, accent, variant, part) for text in texts]
    write_clips(folder, wanted, seed)


def main() -> None:
    """Read the arguments and speak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("corpus", "demo"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--texts", type=Path, default=Path("../shared/data"))
    parser.add_argument("--clips", type=int, default=16_000)
    parser.add_argument("--real", type=Path, help="of the corpus: real recordings, as prepare_data.py made them")
    parser.add_argument("--speechocean", type=Path, help="of the corpus, with --real: a clone of speechocean762")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.what == "corpus":
        corpus(options.out, options.texts, options.clips, options.seed, options.real, options.speechocean)
    else:
        demo(options.out, options.seed)


if __name__ == "__main__":
    main()
