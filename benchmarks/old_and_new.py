"""A bundled source against the one that it replaces, on data that neither has seen: the same commands, in turn.

    python benchmarks/old_and_new.py resnet_mini --old FOLDER        # FOLDER: common/bundled/resnet_mini of before

Frozen runs do not depend on the seed, so that they run once; random weights and fine-tuning run with three seeds.
Writes benchmarks/results/old_and_new.json, where what is measured is kept.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from provenance import commit, machine  # noqa: E402 (beside this script)

from common.files import write_json  # noqa: E402
from common.sources.fetching import file_digest  # noqa: E402

OUT = ROOT / "benchmarks" / "results" / "old_and_new.json"
PREPARED, SHARED = "../prepared_data", "../shared/data"
SEEDS = (0, 1, 2)
CIFAR10, ANTS = f"folder:{PREPARED}/cifar10_subset", f"folder:{PREPARED}/hymenoptera_data"
PROBE = ("--unfreeze", "frozen", "--baselines", "none", "--image-size", "64")
HEAD = ("--method", "frozen", "--baselines", "none", "--no-explain")
SST2 = ("--data", f"tsv:{SHARED}/sst2", "--text-column", "1", "--label-column", "2")
WORDS = (
    "--data", f"csv:{PREPARED}/speech_commands_v2_subset/clips.csv", "--path-column", "file", "--label-column", "class",
)  # fmt: skip
# What is measured: recipe and flags. A name that ends in "fine-tuned" runs with every seed.
CHECKS = {
    "resnet_mini": {
        "cifar10_subset, linear probe": ("image_classification", ("--data", CIFAR10, *PROBE)),
        "hymenoptera, linear probe": ("image_classification", ("--data", ANTS, *PROBE)),
        "ucmerced21_64, linear probe": ("image_classification", ("--data", f"folder:{SHARED}/ucmerced21_64", *PROBE)),
        "clothes of the demo, linear probe": ("image_classification", PROBE),
        "clothes of the demo, fine-tuned": ("image_classification", ("--baselines", "none")),
    },
    "bert_mini": {
        "sst2, frozen": ("bert_sentiment", (*SST2, *HEAD)),
        "trec6, frozen": (
            "bert_sentiment", ("--data", f"csv:{SHARED}/trec6", "--label-column", "coarse", *HEAD),
        ),
        "banking77, frozen": (
            "bert_sentiment", ("--data", f"csv:{SHARED}/banking77", "--label-column", "category", *HEAD),
        ),
        "products of the demo, fine-tuned": ("bert_sentiment", ("--baselines", "words", "--no-explain")),
        "sst2, fine-tuned": ("bert_sentiment", (*SST2, "--baselines", "none", "--no-explain")),
    },
    "wav2vec2_mini": {
        "demo:synthetic, fine-tuned": ("speech_wav2vec", ("--data", "demo:synthetic")),
        "voices of the demo, fine-tuned": ("speech_wav2vec", ()),
        "words of the demo, fine-tuned": ("speech_commands", ("--baselines", "frozen,spectrogram")),
        "speech_commands_v2_subset, fine-tuned": ("speech_commands", (*WORDS, "--baselines", "frozen,spectrogram")),
    },
}  # fmt: skip
SCORES = {"speech_wav2vec": "wer"}  # accuracy for the others


def measure(recipe: str, flags: tuple[str, ...], source: str, seed: int) -> dict:
    """Run a recipe once; return its score with its interval, its baselines' and its seconds."""
    with tempfile.TemporaryDirectory() as out:
        command = ["-m", "recipes", "run", recipe, *flags, "--source", source, "--seed", str(seed)]
        subprocess.run([sys.executable, *command, "--out", out], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        metrics = json.loads(Path(out, "metrics.json").read_text("utf-8"))
    score = SCORES.get(recipe, "accuracy")
    baselines = {name: scores[score] for name, scores in metrics["baselines"].items()}
    typed = shlex.join(["python", *command, "--out", "OUT"]).replace(str(ROOT.parent), "..")
    return {
        "seed": seed, "score": score, score: metrics["test"][score], "ci95": metrics["test"][f"{score}_ci95"],
        "baselines": baselines, "seconds": metrics["seconds"]["total"], "command": typed, "commit": commit(ROOT),
    }  # fmt: skip


def score_of(row: dict) -> float:
    """Return the score of a row; those of before speech was measured have accuracy only."""
    return row[row.get("score", "accuracy")]


def hash_of(folder: Path) -> str:
    """Return the hash of the weights file of a preset."""
    [file] = [file for file in folder.iterdir() if file.name.startswith("model.") and file.suffix != ".json"]
    return file_digest(file)[:16]


def main() -> None:
    """Measure what is not yet there, the sources in turn, and print the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CHECKS)
    parser.add_argument("--old", type=Path, required=True, metavar="FOLDER", help="the preset that it replaces")
    options = parser.parse_args()
    sources = {"old": f"preset:{options.old.resolve()}", "new": f"bundled:{options.name}"}
    new = hash_of(ROOT / "common" / "bundled" / options.name)
    weights = {"old": hash_of(options.old), "new": new, "random": "random"}
    kept = json.loads(OUT.read_text("utf-8")) if OUT.exists() else {"checks": {}}
    for seed, check in itertools.product(SEEDS, CHECKS[options.name]):
        recipe, flags = CHECKS[options.name][check]
        tuned, found = check.endswith("fine-tuned"), kept["checks"].setdefault(check, {"old": [], "new": []})
        controls = {} if tuned else {"random": f"bundled:{options.name}@random"}
        for which, source in (sources | controls).items():
            rows = found.setdefault(which, [])
            rows[:] = [row for row in rows if row["weights"] == weights[which]]  # of another training
            if any(row["seed"] == seed for row in rows) or (seed and not tuned and which != "random"):
                continue
            rows.append({"weights": weights[which], **measure(recipe, flags, source, seed), **machine()})
            print(f"{check}, {which}, seed {seed}: {score_of(rows[-1]):.4f}", flush=True)
            write_json(OUT, {"command": "python benchmarks/old_and_new.py NAME --old FOLDER", **kept})
    for check, found in kept["checks"].items():
        means = {which: round(statistics.mean(map(score_of, rows)), 4) for which, rows in found.items()}
        print(f"{check}: {means}", flush=True)


if __name__ == "__main__":
    main()
