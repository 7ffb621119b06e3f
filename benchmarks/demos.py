"""Write the demo data that come from public data sets, from ../shared/data, each with its licence beside it.

    python benchmarks/demos.py products cells

products    common/texts/demo_products: sentences of customers' reviews (CC BY 4.0), for bert_sentiment
cells       common/detection/demo_cells: blood cells under a microscope (MIT), for object_detection
words       common/speech/demo_words: ten spoken words (CC BY 4.0), for speech_commands
voices      common/speech/demo_voices: read sentences (CC0, public domain), for speech_wav2vec

The splits are those of the data sets: by product, by image, by speaker. Same data, same files.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from prepare_data import extract_tar  # noqa: E402 (beside this script)
from speak import COMMANDS  # noqa: E402

from common.detection.readers.rows import BoxRow  # noqa: E402
from common.detection.readers.voc import voc_rows  # noqa: E402 (the script's folder, not the checkout, is on sys.path)
from common.speech.audio.decode import SAMPLE_RATE, decode_sound  # noqa: E402

CELLS = {"train": 80, "val": 20, "test": 60}  # images; upstream's training split gives train and val
CELL_SIDE = (256, 192)  # width and height, of 640 x 480
SPEAKERS = {"train": 24, "val": 10, "test": 16}  # of the words, those who said most of them
COMPRESSION = 0.935  # of Opus in libsndfile: about 22 kbit/s, which for one voice below 8 kHz is much
CC_BY = "Creative Commons Attribution 4.0 International: https://creativecommons.org/licenses/by/4.0/legalcode"
CREDITS = {
    "products": f"""\
Sentences of customers' reviews of 11 products, by Bing Liu and others: "Mining and Summarizing Customer Reviews"
(Hu and Liu, KDD 2004) and "A Holistic Lexicon-Based Approach to Opinion Mining" (Ding, Liu and Yu, WSDM 2008), as the
corpora product_reviews_1 and product_reviews_2 of NLTK (github:nltk/nltk_data) hold them. Copyright Bing Liu.

{CC_BY}

Changes: only sentences of 4 to 45 words whose marked opinions have one sign and add up to 2 or more; the tokenizer's
spaces removed; copies left out; as many positive as negative ones; split by product.
""",
    "words": f"""\
Clips of Speech Commands v0.02 (Pete Warden, Google, arXiv:1804.03209): the ten command words.

{CC_BY}

Changes: {sum(SPEAKERS.values())} speakers chosen, no speaker in two splits; encoded as Opus.
""",
    "voices": """\
common_voice_*: clips of Mozilla Common Voice 6.1, English. CC0 1.0: https://creativecommons.org/publicdomain/zero/1.0/
Mozilla asks not to try to identify the speakers.
LJ001-*: clips of the LJ Speech Dataset (Keith Ito and Linda Johnson, https://keithito.com/LJ-Speech-Dataset/), read
from books of LibriVox. Public domain.

Changes: 16 kHz, mono, silence at both ends cut, encoded as Opus.
""",
}


def write_table(file: Path, rows: list[dict]) -> None:
    """Write rows as a CSV table."""
    with open(file, "w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def read_table(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV table."""
    with open(file, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def write_products(shared: Path, folder: Path) -> None:
    """Copy the tables of the three splits."""
    for split in ("train", "val", "test"):
        shutil.copyfile(shared / "product_sentences" / f"{split}.csv", folder / f"{split}.csv")


def write_cells(shared: Path, folder: Path) -> None:
    """Write images of half the side or less, and one table of boxes; boxes without area are left out."""
    by_split = defaultdict(list)
    for row in sorted(voc_rows(shared / "bccd", defaultdict(list)), key=lambda row: row.path):
        by_split["test" if row.split == "test" else "train"].append(row)
    order = {split: np.random.default_rng(0).permutation(len(found)) for split, found in by_split.items()}
    train, val = CELLS["train"], CELLS["val"]
    chosen = {"train": ("train", order["train"][:train]), "val": ("train", order["train"][train : train + val]),
              "test": ("test", order["test"][: CELLS["test"]])}  # fmt: skip
    (folder / "images").mkdir()
    table = []
    for split, (given, places) in chosen.items():
        for place in sorted(places):
            row = by_split[given][place]
            with Image.open(row.path) as image:
                scale = np.tile(np.array(CELL_SIDE) / image.size, 2)
                small = image.convert("RGB").resize(CELL_SIDE, Image.Resampling.LANCZOS)
            name = f"images/{Path(row.path).stem}.jpg"
            small.save(folder / name, "JPEG", quality=85, optimize=True)
            table += [line | {"split": split} for line in lines_of_boxes(row, name, scale)]
    write_table(folder / "boxes.csv", table)
    shutil.copyfile(shared / "bccd" / "LICENSE", folder / "LICENSE")


def lines_of_boxes(row: BoxRow, path: str, scale: np.ndarray | float = 1.0) -> list[dict]:
    """Return the lines of a table for the boxes of an image, scaled; those without area are left out."""
    return [
        {"path": path, "xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax, "label": label}
        for label, (xmin, ymin, xmax, ymax) in zip(row.labels, np.round(row.boxes * scale, 1).tolist(), strict=True)
        if xmin < xmax and ymin < ymax
    ]


def write_words(shared: Path, folder: Path) -> None:
    """Write the ten words of some speakers of each split."""
    rows, by_speaker = [], defaultdict(list)
    for row in read_table(shared / "speech_commands_v2_subset" / "clips.csv"):
        if row["word"] in COMMANDS:
            by_speaker[row["split"], row["speaker"]].append(row)
    for split, count in SPEAKERS.items():
        speakers = sorted(key for key in by_speaker if key[0] == split)
        most = sorted(speakers, key=lambda key: (-len(by_speaker[key]), key))[:count]
        rows += [row for key in most for row in by_speaker[key]]
    with tempfile.TemporaryDirectory() as unpacked:
        extract_tar(shared / "speech_commands_v2_subset" / "audio.tar", Path(unpacked))
        write_clips(folder, [row | {"text": row["word"]} for row in rows], sounds_under(Path(unpacked)))


def write_voices(shared: Path, folder: Path) -> None:
    """Write the sentences of Common Voice, in its splits, and those of LJ Speech, for training."""
    rows = [row | {"text": row["sentence"]} for row in read_table(shared / "common_voice_en" / "clips.csv")]
    with tempfile.TemporaryDirectory() as unpacked:
        extract_tar(shared / "common_voice_en" / "audio.tar", Path(unpacked))
        sounds = sounds_under(Path(unpacked))
    for line in (shared / "ljspeech_8" / "metadata.csv").read_text("utf-8").splitlines():
        name, _, text = line.split("|")
        [file] = (shared / "ljspeech_8" / "wavs").glob(f"{name}.*")
        sounds[file.name] = file.read_bytes()
        rows.append({"file": file.name, "text": text, "speaker": "LJ", "split": "train"})
    write_clips(folder, rows, sounds)


def sounds_under(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files under a folder, by their paths in it."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def write_clips(folder: Path, rows: list[dict], sounds: dict[str, bytes]) -> None:
    """Write sounds as Opus at 16 kHz, and their table; rows have `file`, `text`, `speaker` and `split`."""
    (folder / "clips").mkdir()
    table = []
    for row in rows:
        name = f"clips/{row['file'].replace('/', '_').rpartition('.')[0]}.ogg"
        encoded = io.BytesIO()
        samples = decode_sound(sounds[row["file"]], SAMPLE_RATE).samples
        soundfile.write(encoded, samples, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=COMPRESSION)
        (folder / name).write_bytes(encoded.getvalue())
        table.append({"path": name, "text": row["text"], "speaker": row["speaker"], "split": row["split"]})
    write_table(folder / "clips.csv", table)


DEMOS = {
    "products": ("texts/demo_products", write_products),
    "cells": ("detection/demo_cells", write_cells),
    "words": ("speech/demo_words", write_words),
    "voices": ("speech/demo_voices", write_voices),
}


def main() -> None:
    """Write the demos anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=DEMOS, metavar="NAME", help=", ".join(DEMOS))
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data")
    options = parser.parse_args()
    for name in options.names:
        where, write = DEMOS[name]
        folder = ROOT / "common" / where
        aside = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        write(options.shared, aside)
        if name in CREDITS:
            (aside / "LICENSE").write_text(CREDITS[name], "utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
        files = [file for file in folder.rglob("*") if file.is_file()]
        print(f"{folder.relative_to(ROOT)}: {len(files)} files, {sum(f.stat().st_size for f in files) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
