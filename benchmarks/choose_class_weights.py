"""Class weights of the frozen method on sets of unequal classes: none, softened (square root) and balanced.

    python benchmarks/choose_class_weights.py  # minutes

A linear head on bert_mini's embeddings is trained on training splits of ../shared/data and answers validation splits.
trec6 and product_sentences are as they are; of the classes of banking77 and clinc150, which are equally large, less and
less is kept, down to a RATIO-th. Writes benchmarks/results/class_weights_choice.json.
"""

from __future__ import annotations

import csv
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import keras  # noqa: E402 (the script's folder, not the checkout, is on sys.path)
import numpy as np  # noqa: E402

from common import files, runs  # noqa: E402
from common.classification.metrics import classification_metrics  # noqa: E402
from common.classification.training import sample_weights  # noqa: E402
from common.linear_head import fit_linear_head, predict_head  # noqa: E402
from common.texts.batches import TextReader, run_on_tokens  # noqa: E402
from common.texts.models import build_classifier, build_encoder  # noqa: E402
from common.texts.sources import load_text_source  # noqa: E402

DATA = ROOT.parent / "shared" / "data"
WEIGHTS = ("none", "softened", "balanced")
CLASSES = 20  # of banking77 and clinc150, the first by name
SETS = (("trec6", "coarse", 1), ("product_sentences", "label", 1), *(
    (name, label, ratio) for name, label in (("banking77", "category"), ("clinc150", "intent")) for ratio in (1, 3, 10)
))  # fmt: skip
SCORES = ("accuracy", "macro_f1")


def rows_of(name: str, label: str, split: str) -> list[tuple[str, str]]:
    """Return (text, label) of a split."""
    with open(DATA / name / f"{split}.csv", encoding="utf-8", newline="") as file:
        return [(row["text"], row[label]) for row in csv.DictReader(file)]


def thinned(rows: list[tuple[str, str]], names: list[str], ratio: float) -> list[tuple[str, str]]:
    """Return rows of which the last class keeps a ratio-th, and the others more, in geometric steps."""
    kept = []
    for number, name in enumerate(names):
        some = [row for row in rows if row[1] == name]
        kept += some[: max(2, round(len(some) * ratio ** (-number / max(1, len(names) - 1))))]
    return kept


def main() -> None:
    """Measure and write."""
    source = load_text_source("bundled:bert_mini")
    encoder, found = build_encoder(source), []
    reader = TextReader(source.tokenize, 64)
    for name, label, ratio in SETS:
        train, val = (rows_of(name, label, split) for split in ("train", "val"))
        names = sorted({row[1] for row in train})[:CLASSES]
        train, val = thinned(train, names, ratio), [row for row in val if row[1] in names]
        labels, truth = (np.array([names.index(row[1]) for row in rows]) for rows in (train, val))
        embeddings, asked = (run_on_tokens(encoder, reader.read([row[0] for row in rows])) for rows in (train, val))
        counts, row = np.bincount(labels), {}
        for weights in WEIGHTS:
            keras.utils.set_random_seed(0)
            head = build_classifier(encoder, len(names), 0.0).get_layer("head")
            fit_linear_head(
                head, embeddings[None], labels, asked, truth,
                sample_weights=sample_weights(labels, labels, len(names), weights),
            )  # fmt: skip
            scores = classification_metrics(truth, predict_head(head, asked))
            row[weights] = {score: round(scores[score], 4) for score in SCORES}
        found.append(
            {"data": name, "classes": len(names), "largest": int(counts.max()), "smallest": int(counts.min()), **row}
        )
        print(found[-1], flush=True)
    result = {"sets": found, "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d"), "versions": runs.versions()}
    files.write_json(ROOT / "benchmarks" / "results" / "class_weights_choice.json", result)


if __name__ == "__main__":
    main()
