"""Seconds and peak memory of the baseline `words`, for small and large sets of texts.

    python benchmarks/word_counts.py           # minutes

SST-2 is as it is. The others imitate sets of 100 classes: requests of clinc150 with words exchanged for those of
../shared/data/pretrain/texts, which has the frequencies of real text, and one label in 20 wrong. Each set is measured
in a process of its own, with one thread: CPU seconds hold on a machine that others use as well. Writes
benchmarks/results/word_counts.json.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a waiting thread would count as CPU time
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 (the script's folder, not the checkout, is on sys.path)

from common import files, runs  # noqa: E402
from common.texts.dataset import TextExamples, TextSet  # noqa: E402
from common.texts.word_baselines import tfidf_probabilities  # noqa: E402

DATA = ROOT.parent / "shared" / "data"
SETS = ("sst2", "2000x100", "100000x100")  # texts x classes
ANSWERING = 2000  # validation and test texts of a synthetic set
EXCHANGED, WRONG = 0.25, 0.05  # shares of the words and of the labels


def sst2() -> TextSet:
    """Return SST-2 with its own splits."""
    found = []
    for split in ("train", "dev", "test"):
        rows = [line.rsplit("\t", 1) for line in (DATA / "sst2" / f"{split}.tsv").read_text("utf-8").splitlines()]
        found.append(examples([text for text, _ in rows], [int(label) for _, label in rows]))
    return TextSet("sst2", ("negative", "positive"), *found)


def synthetic(texts: int, classes: int) -> TextSet:
    """Return a set with so many training texts, made from those of clinc150."""
    with open(DATA / "clinc150" / "train.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["intent"] for row in rows})[:classes]
    rows = [(row["text"].split(), names.index(row["intent"])) for row in rows if row["intent"] in names]
    with gzip.open(DATA / "pretrain" / "texts" / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
        words = [word for line in itertools.islice(lines, 20_000) for word in json.loads(line)["text"].split()]
    rng, made, labels = np.random.default_rng(0), [], []
    for _ in range(texts + 2 * ANSWERING):
        some, label = rows[rng.integers(len(rows))]
        # Every occurrence in the texts has an equal chance, so that frequent words are drawn often.
        other = (words[rng.integers(len(words))] if rng.random() < EXCHANGED else word for word in some)
        made.append(" ".join(other))
        labels.append(int(rng.integers(classes)) if rng.random() < WRONG else label)
    bounds = [0, texts, texts + ANSWERING, texts + 2 * ANSWERING]
    parts = [examples(made[low:high], labels[low:high]) for low, high in itertools.pairwise(bounds)]
    return TextSet(f"{texts}x{classes}", tuple(names), *parts)


def examples(texts: list[str], labels: list[int]) -> TextExamples:
    """Return texts as the recipe has them."""
    return TextExamples(np.array(texts, dtype=object), np.array(labels))


def measured(name: str) -> dict[str, float]:
    """Return seconds, peak memory and accuracy of one set."""
    data = sst2() if name == "sst2" else synthetic(*map(int, name.split("x")))
    before, began, cpu = runs.peak_memory_mb(), time.monotonic(), time.process_time()
    probabilities = tfidf_probabilities(data)["test"]
    return {
        "texts": len(data.train), "classes": len(data.class_names),
        "seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_memory_mb": runs.peak_memory_mb(), "memory_before_mb": before,
        "accuracy": round(float(np.mean(probabilities.argmax(axis=1) == data.test.labels)), 4),
    }  # fmt: skip


def main() -> None:
    """Measure each set in a process of its own, and write the results."""
    if len(sys.argv) > 1:
        print(json.dumps(measured(sys.argv[1])))
        return
    rows = {}
    for name in SETS:
        done = subprocess.run([sys.executable, __file__, name], check=True, stdout=subprocess.PIPE, text=True)
        rows[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, rows[name], flush=True)
    result = {"sets": rows, "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d"), "versions": runs.versions()}
    files.write_json(ROOT / "benchmarks" / "results" / "word_counts.json", result)


if __name__ == "__main__":
    main()
