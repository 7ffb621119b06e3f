"""Few labelled sentences: SetFit (PyTorch), ours, and logistic regression on embeddings; same weights, same run.

    pip install -r requirements.txt -r requirements-parity.txt
    python -m recipes fetch minilm
    python benchmarks/few_shot.py              # half an hour on 2 cores
    python benchmarks/few_shot.py --shots 8    # only this row; the other keeps its last numbers

SST-2 of ../shared/data: sentences are drawn from the training part as in section 8 of ../shared/facts/first_numbers.md,
and the test split answers. The three ways alternate, seed by seed. Seconds are those of training: from the drawn
sentences and the loaded weights to a finished head, without the answers to the test split, for everybody. CPU
seconds, of all threads, say the same on a machine that others use as well. Writes benchmarks/results/few_shot.json.

SetFit has its defaults of section 8: batches of 16, 20 pairs a sentence, one epoch, a logistic regression as head.
What ours has was chosen on other data: benchmarks/choose_few_shot.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common import files, runs  # noqa: E402 (the script's folder, not the checkout, is on sys.path)

DATA = ROOT.parent / "shared" / "data" / "sst2"
SHOTS = {8: (0, 1, 2, 3, 4), 64: (0, 1, 2)}
WAYS = ("probe", "setfit", "ours")
PENALTY = 1.0  # of our linear head


def read(part: str) -> tuple[list[str], list[int]]:
    """Return the sentences of a part and their labels."""
    rows = [line.rstrip("\n").split("\t") for line in (DATA / f"{part}.tsv").read_text("utf-8").splitlines()]
    return [row[0] for row in rows], [int(row[1]) for row in rows]


def draw(texts: Sequence[str], labels: Sequence[int], shots: int, seed: int) -> tuple[list[str], list[int]]:
    """Return this many sentences of each class, as section 8 draws them."""
    rng, chosen = random.Random(seed), []
    for label in sorted(set(labels)):
        chosen += rng.sample([i for i, found in enumerate(labels) if found == label], shots)
    return [texts[i] for i in chosen], [labels[i] for i in chosen]


def answer(way: str, shots: int, seed: int) -> dict[str, float]:
    """Train one way; return its accuracy on the test split and the seconds of its training."""
    drawn = draw(*read("train"), shots, seed)
    return with_setfit(*drawn, seed) if way == "setfit" else with_ours(*drawn, seed, tuned=way == "ours")


def with_ours(texts: list[str], labels: list[int], seed: int, *, tuned: bool) -> dict[str, float]:
    """The recipe's few-shot method with its defaults, or only its head."""
    import keras
    import numpy as np

    from common import linear_head
    from common.texts.batches import TextReader, run_on_tokens
    from common.texts.contrastive import default_steps, tune_on_pairs
    from common.texts.models import build_classifier, build_encoder, unfreeze
    from common.texts.sources import load_text_source
    from recipes.bert_sentiment.recipe import Config

    config = Config(source="minilm", seed=seed)
    keras.utils.set_random_seed(seed)
    source = load_text_source(config.source)
    encoder = build_encoder(source)
    model = build_classifier(encoder, len(set(labels)), config.dropout)
    unfreeze(model, source.backbone, tables=False)
    reader = TextReader(source.tokenize, config.max_length)

    began, labels = stopwatch(), np.array(labels)
    tokens = reader.read(texts)
    if tuned:
        tune_on_pairs(
            encoder, tokens, labels, steps=default_steps(len(texts)), learning_rate=config.pair_rate,
            batch_size=config.batch_size, seed=seed,
        )  # fmt: skip
    said = run_on_tokens(encoder, tokens)
    # No validation part here: a fixed penalty, and the sentences themselves where the function wants one.
    linear_head.fit_linear_head(model.get_layer("head"), said[None], labels, said, labels, penalties=(PENALTY,))
    spent = began()

    asked, truth = read("test")
    probabilities = linear_head.predict_head(model.get_layer("head"), run_on_tokens(encoder, reader.read(asked)))
    return {"accuracy": float(np.mean(probabilities.argmax(axis=1) == truth))} | spent


def with_setfit(texts: list[str], labels: list[int], seed: int) -> dict[str, float]:
    """SetFit on the same weights."""
    import numpy as np
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, models
    from setfit import SetFitModel, Trainer, TrainingArguments
    from sklearn.linear_model import LogisticRegression

    from common.sources.catalogue import CATALOGUE
    from common.sources.entries import fetch_entry

    folder = fetch_entry(CATALOGUE["minilm"])
    words = models.Transformer(str(folder), max_seq_length=256)
    body = SentenceTransformer(
        modules=[words, models.Pooling(words.get_word_embedding_dimension()), models.Normalize()], device="cpu"
    )
    model = SetFitModel(model_body=body, model_head=LogisticRegression())
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out, batch_size=16, num_epochs=1, num_iterations=20, seed=seed, report_to="none"
        )
        trainer = Trainer(
            model=model, args=arguments, train_dataset=Dataset.from_dict({"text": texts, "label": labels})
        )
        began = stopwatch()
        trainer.train()
        spent = began()
    asked, truth = read("test")
    return {"accuracy": float(np.mean(np.asarray(model.predict(asked)) == np.array(truth)))} | spent


def stopwatch() -> Callable[[], dict[str, float]]:
    """Return a function that says how many seconds have gone by since now, and how many of the CPU."""
    wall, cpu = time.monotonic(), time.process_time()
    return lambda: {"seconds": time.monotonic() - wall, "cpu_seconds": time.process_time() - cpu}


def main() -> None:
    """Run every way for every draw, each in a process of its own, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--one", nargs=3, metavar=("WAY", "SHOTS", "SEED"), help="only this one; prints its numbers")
    parser.add_argument("--shots", type=int, nargs="+", choices=SHOTS, default=list(SHOTS), help="only these rows")
    arguments = parser.parse_args()
    if one := arguments.one:
        print(json.dumps(answer(one[0], int(one[1]), int(one[2]))))
        return
    file = ROOT / "benchmarks" / "results" / "few_shot.json"
    found = json.loads(file.read_text("utf-8"))["shots"] if file.exists() else {}
    for shots in arguments.shots:
        seeds = SHOTS[shots]
        rows: dict[str, list[dict]] = {way: [] for way in WAYS}
        for seed in seeds:
            for way in WAYS:
                command = [sys.executable, __file__, "--one", way, str(shots), str(seed)]
                done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
                if done.returncode:
                    raise SystemExit(f"{way} failed:\n{done.stderr[-3000:]}")
                rows[way].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{shots} a class, seed {seed}, {way}: {rows[way][-1]}", flush=True)
        found[str(shots)] = {"seeds": list(seeds), "date": time.strftime("%Y-%m-%d"), "split": "test"} | {
            way: {key: _spread([row[key] for row in several]) for key in several[0]} for way, several in rows.items()
        }
    result = {"shots": found, "versions": runs.versions() | _versions(), "cores": os.cpu_count()}
    files.write_json(file, result)


def _spread(values: list[float]) -> dict:
    return {"mean": round(statistics.mean(values), 4), "std": round(statistics.stdev(values), 4),
            "seeds": [round(value, 4) for value in values]}  # fmt: skip


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("setfit", "sentence-transformers", "torch", "transformers")}


if __name__ == "__main__":
    main()
