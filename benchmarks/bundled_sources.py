"""Train sources of common/bundled, each with a recipe of this project.

    python benchmarks/prepare_data.py pretrain/pictures pretrain/texts pretrain/speech
    python benchmarks/bundled_sources.py resnet_mini              # hours; the same command continues a stopped run
    python benchmarks/bundled_sources.py resnet_mini --install    # the finished run becomes common/bundled/resnet_mini
    python benchmarks/bundled_sources.py resnet_mini --strict     # without the data whose rights are least clear

wav2vec2_mini takes three commands:

    python benchmarks/bundled_sources.py wav2vec2_mini_sounds     # on sound alone
    python benchmarks/speak.py corpus --out ../prepared_data/spoken --real ../prepared_data/pretrain_speech
    python benchmarks/bundled_sources.py wav2vec2_mini            # on transcripts

The data are those of ../shared/data/pretrain; ../shared/data/README.md states the licence of each source. Runs are
kept in ../prepared_data/bundled. What was made, and from what, stands in card.json of each source, and in NOTICE.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.files import write_json  # noqa: E402 (the script's folder, not the checkout, is on sys.path)

PREPARED, SHARED = "../prepared_data", "../shared/data"  # relative: the commands stand in the cards
STRICT, SOUNDS = "_strict", "wav2vec2_mini_sounds"
COMMANDS = {
    "resnet_mini": (
        "pretraining", "--data", f"folder:{PREPARED}/pretrain_pictures", "--epochs", "23", "--batch-size", "64",
        "--teacher", "bundled:mobilenet_v2", "--teacher-size", "128", "--teacher-views", "8", "--teacher-weight", "10",
        "--mix", "0.3", "--licence", "Apache-2.0",
    ),
    "bert_mini": (
        "pretraining_text", "--data", f"jsonl:{SHARED}/pretrain/texts/train.jsonl.gz", "--kind-column", "source",
        "--limit", "220000", "--epochs", "5", "--teacher", "minilm", "--licence", "Apache-2.0",
    ),
    SOUNDS: (
        "pretraining_speech", "--data", f"csv:{PREPARED}/pretrain_speech/sounds.csv", "--objective", "contrastive",
        "--licence", "Apache-2.0",
    ),
    "wav2vec2_mini": (  # after `speak.py corpus`
        "pretraining_speech", "--data", f"tsv:{PREPARED}/spoken/manifest.tsv", "--epochs", "4",
        "--start", f"preset:{PREPARED}/bundled/{SOUNDS}/preset", "--licence", "Apache-2.0",
    ),
}  # fmt: skip
# Credits of what a source was trained on, and what its teacher was trained on: for card.json and NOTICE.
CREDITS = {
    "resnet_mini": (
        "Caltech-101 (Li, Andreeto, Ranzato and Perona 2022, CC BY 4.0, https://doi.org/10.22002/D1.20086)",
        "Oxford-IIIT Pet (Parkhi, Vedaldi, Zisserman and Jawahar 2012, CC BY-SA 4.0)",
        "GroceryStoreDataset (Marcus Klasson 2019, MIT)",
        "TrashNet (Gary Thung 2017, MIT)",
        "PlantVillage (Hughes and Salathe 2015, CC0 1.0, first published under CC BY-SA 3.0)",
        "flower_photos of TensorFlow (CC BY 2.0, photographers in the LICENSE.txt of that set)",
        "Sign-Language-Digits-Dataset (Arda Mavi, Apache-2.0)",
        "teacher: MobileNetV2 of Google (Apache-2.0), which was trained on ImageNet-1k",
    ),
    "bert_mini": (
        "44 books of Standard Ebooks (CC0 1.0; texts in the public domain)",
        "sentences of Common Voice (CC0 1.0)",
        "Schema-Guided Dialogue (Google Research, CC BY-SA 4.0)",
        "GoEmotions (Google Research, Apache-2.0; comments of Reddit users, whose own rights are not cleared)",
        "IBM Debater key point analysis, shared task of 2021 (IBM, Apache-2.0)",
        "WikiSplit (Google Research, from Wikipedia, CC BY-SA 4.0)",
        "addresses of US presidents (public domain)",
        "teacher: all-MiniLM-L6-v2 (Apache-2.0), which was trained on MS MARCO, Reddit comments and others",
    ),
    "wav2vec2_mini": (
        "espeak-ng, reading sentences of Common Voice and Standard Ebooks (CC0 1.0)",
        "speechocean762 (Zhang and others 2021, free for commercial use)",
        "LJ Speech (Keith Ito and Linda Johnson, public domain)",
        "Speech Commands v0.02 (Pete Warden, Google, CC BY 4.0; sound alone)",
        "Common Voice 6.1 in other languages (CC0 1.0; sound alone)",
    ),
}
STRICT_DATA = {
    "resnet_mini": f"folder:{PREPARED}/pretrain_pictures{STRICT}",
    "bert_mini": f"jsonl:{PREPARED}/pretrain_texts{STRICT}/train.jsonl.gz",
}


def command_of(name: str, strict: bool, out: Path) -> list[str]:
    """Return the arguments of `python` that train a source, or that continue a run that was stopped."""
    recipe, *flags = COMMANDS[name]
    if strict and name not in STRICT_DATA:
        raise SystemExit(f"--strict is for {', '.join(STRICT_DATA)}: the rights of the other data are clear.")
    if strict:
        flags[flags.index("--data") + 1] = STRICT_DATA[name]
    resumed = (out / "config.json").exists()
    return ["-m", "recipes", "run", recipe, *(("--resume", str(out)) if resumed else (*flags, "--out", str(out)))]


def install(name: str, strict: bool, out: Path) -> None:
    """Make the preset of a finished run the bundled source."""
    if name == SOUNDS:
        raise SystemExit(f"{name} is where the training of wav2vec2_mini starts, and is not bundled itself.")
    if not (out / "metrics.json").exists():
        following = f"python benchmarks/bundled_sources.py {name}{' --strict' * strict}"
        raise SystemExit(f"{out} holds no finished run. Next: {following}")
    target = Path("common") / "bundled" / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(out / "preset", target)
    card = json.loads((target / "card.json").read_text("utf-8"))
    write_json(target / "card.json", {"origin": "this project", **card, "credits": CREDITS[name]})
    print(f"{target}: {sum(file.stat().st_size for file in target.iterdir()) / 1e6:.1f} MB")


def main() -> None:
    """Train or install one source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=COMMANDS)
    parser.add_argument("--strict", action="store_true", help="without the data whose rights are least clear")
    parser.add_argument("--install", action="store_true", help="copy the finished run into common/bundled")
    given = parser.parse_args()
    os.chdir(ROOT)
    out = Path(PREPARED) / "bundled" / (given.name + STRICT * given.strict)
    if given.install:
        install(given.name, given.strict, out)
        return
    command = command_of(given.name, given.strict, out)
    print(f"python {shlex.join(command)}", flush=True)
    os.execv(sys.executable, [sys.executable, *command])  # so that Ctrl-C reaches the recipe, which saves and stops


if __name__ == "__main__":
    main()
