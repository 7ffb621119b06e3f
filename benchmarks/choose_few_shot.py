"""Choose the temperature and the number of steps of `--method fewshot`, on data that no reported number comes from.

    python benchmarks/choose_few_shot.py                    # minutes
    python benchmarks/choose_few_shot.py --source minilm    # after: python -m recipes fetch minilm

Texts are drawn from training splits of ../shared/data and answered by validation splits; SST-2 is answered by sentences
held out from its training split, since its other splits are reported. Accuracies are averaged within a task, then over
tasks. Of the values within HALF_A_POINT of the best, the first listed one is chosen: the temperature of the paper, the
smallest number of steps. Writes benchmarks/results/few_shot_choice.json; a test compares the code with it.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import keras  # noqa: E402 (the script's folder, not the checkout, is on sys.path)
import numpy as np  # noqa: E402

from common import files, runs  # noqa: E402
from common.linear_head import fit_linear_head, predict_head  # noqa: E402
from common.texts.batches import TextReader, run_on_tokens  # noqa: E402
from common.texts.contrastive import tune_on_pairs  # noqa: E402
from common.texts.models import build_classifier, build_encoder, unfreeze  # noqa: E402
from common.texts.sources import load_text_source  # noqa: E402

DATA = ROOT.parent / "shared" / "data"
TEMPERATURES = (0.1, 0.3, 0.6)  # the paper's first
STEPS = ((10, 0.25), (20, 0.5), (40, 1.0))  # at least, and per training text
START = 0.3, (20, 0.5)  # the temperature is chosen with these steps, then the steps with that temperature
HALF_A_POINT = 0.005
HELD_OUT = 300  # training sentences of SST-2 that answer


@dataclass(frozen=True)
class Task:
    """A data set, its columns, what is in the names of its classes, and the draws from it."""

    data: str
    text: str
    label: str
    classes: str
    shots: int
    seeds: tuple[int, ...]


TASKS = (
    Task("trec6", "text", "coarse", "", 8, (0, 1)),
    Task("product_sentences", "text", "label", "", 8, (0, 1)),
    Task("banking77", "text", "category", "pending", 8, (0,)),
    Task("sst2", "", "", "", 8, (0, 1)),
)


def read(task: Task) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return (text, label) of the rows to draw from and of those that answer."""
    if task.data == "sst2":
        lines = (DATA / "sst2" / "train.tsv").read_text("utf-8").splitlines()
        rows = [tuple(line.rsplit("\t", 1)) for line in lines]
        return rows[:-HELD_OUT], rows[-HELD_OUT:]
    found = []
    for split in ("train", "val"):
        with open(DATA / task.data / f"{split}.csv", encoding="utf-8", newline="") as file:
            found.append([(row[task.text], row[task.label]) for row in csv.DictReader(file)])
    return tuple([row for row in rows if task.classes in row[1]] for rows in found)


def draw(rows: list[tuple[str, str]], names: list[str], shots: int, seed: int) -> list[tuple[str, str]]:
    """Return so many rows of each class."""
    rng = np.random.default_rng(seed)
    of_class = [[row for row in rows if row[1] == name] for name in names]
    return [some[place] for some in of_class for place in rng.permutation(len(some))[:shots]]


class Trial:
    """The few-shot method on one source, again and again from the same weights."""

    def __init__(self, source: str):
        self.source = load_text_source(source)
        self.encoder = build_encoder(self.source)
        self.reader, self.weights = TextReader(self.source.tokenize, 128), self.encoder.get_weights()

    def accuracy(self, task: Task, seed: int, temperature: float, steps: tuple[int, float]) -> float:
        """Return the accuracy on the rows that answer."""
        rows, asked = read(task)
        names = sorted({label for _, label in rows})
        train = draw(rows, names, task.shots, seed)
        labels, truth = (np.array([names.index(label) for _, label in some]) for some in (train, asked))
        keras.utils.set_random_seed(seed)
        self.encoder.set_weights(self.weights)
        model = build_classifier(self.encoder, len(names), 0.1)
        unfreeze(model, self.source.backbone, tables=False)
        tokens = self.reader.read([text for text, _ in train])
        tune_on_pairs(
            self.encoder, tokens, labels, steps=max(steps[0], int(len(train) * steps[1])), learning_rate=1e-4,
            temperature=temperature, seed=seed,
        )  # fmt: skip
        head, embeddings = model.get_layer("head"), run_on_tokens(self.encoder, tokens)
        fit_linear_head(
            head, embeddings[None], labels, embeddings, labels, penalties=(1.0,)
        )  # as benchmarks/few_shot.py
        answers = run_on_tokens(self.encoder, self.reader.read([text for text, _ in asked]))
        return float(np.mean(predict_head(head, answers).argmax(axis=1) == truth))


def measured(trial: Trial, temperature: float, steps: tuple[int, float]) -> dict:
    """Return the accuracies of one choice: of each draw, and their mean over tasks."""
    tasks = {
        f"{task.data} {task.shots} per class": [
            round(trial.accuracy(task, seed, temperature, steps), 4) for seed in task.seeds
        ]
        for task in TASKS
    }
    row = {
        "temperature": temperature, "at_least": steps[0], "per_text": steps[1],
        "accuracy": round(statistics.mean(statistics.mean(found) for found in tasks.values()), 4), "draws": tasks,
    }  # fmt: skip
    print(row, flush=True)
    return row


def first_of_the_best(rows: list[dict]) -> dict:
    """Return the first row within HALF_A_POINT of the best one."""
    best = max(row["accuracy"] for row in rows)
    return next(row for row in rows if row["accuracy"] >= best - HALF_A_POINT)


def main() -> None:
    """Measure, choose and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", default="bundled:bert_mini", help="the text source that is tuned")
    source = parser.parse_args().source
    began, trial = time.process_time(), Trial(source)
    temperatures = [measured(trial, temperature, START[1]) for temperature in TEMPERATURES]
    temperature = first_of_the_best(temperatures)["temperature"]
    steps = [
        next((row for row in temperatures if row["temperature"] == temperature), None) if rule == START[1]
        else measured(trial, temperature, rule) for rule in STEPS
    ]  # fmt: skip
    chosen = {key: first_of_the_best(steps)[key] for key in ("temperature", "at_least", "per_text")}
    files.write_json(
        ROOT / "benchmarks" / "results" / "few_shot_choice.json",
        {
            "chosen": chosen, "temperatures": temperatures, "steps": steps, "source": source,
            "cpu_seconds": round(time.process_time() - began), "cores": os.cpu_count(),
            "date": time.strftime("%Y-%m-%d"), "versions": runs.versions(),
        },
    )  # fmt: skip
    print(f"chosen: {chosen}")


if __name__ == "__main__":
    main()
