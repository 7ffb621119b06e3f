"""A new recipe is a folder: a toy one in a temporary folder works with every command, and nothing else is edited."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from common.serving.configs import configs_of_folder
from common.serving.server import Address, Server
from recipes.__main__ import COMMANDS, main

TOY = '''"""Count words: a toy that labels a text long or short by the mean number of words.

    python -m recipes run word_counter --data tsv:FILE
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from common import exporting, results
from common.exporting import Answers, Predictor
from common.flags import check_range
from common.proof.prove import prove
from common.results import Outcome
from common.runs import Run
from common.serving.kit.write import write_serving_files

BASELINES = {"coin": "Toss of a coin"}
SCORES = ("hits", "misses")
SOURCES = ("minilm",)
GALLERY = {"in": "lines of text", "out": "long or short", "row": ""}
QUICK = "--limit 4"
INPUT = "text"


def read_text(text: str, *_) -> bytes:
    return text.encode()


def parse(outputs, row: int) -> dict:
    return {"length": outputs["label"][row].decode(), "words": int(outputs["words"][row])}


def show(answer: dict, name: str, _place: Path) -> str:
    return f"{name} is {answer['length']}: {answer['words']} words"


PREDICTOR = Predictor(INPUT, read_text, Answers(("label", "words"), parse, show))


@dataclass(frozen=True)
class Config:
    """Settings of word_counter."""

    data: str = "demo"  # Lines of text
    out: str = "runs/word_counter"  # Folder for everything this run writes
    resume: str | None = None  # Continue the run that was stopped in this folder
    save_every: float = 30.0  # Seconds between checkpoints
    limit: int | None = None  # Use at most this many texts
    seed: int = 0  # Seed

    def __post_init__(self) -> None:
        check_range(self, 1, 100, "limit")


def load_data(config: Config) -> list[str]:
    texts = ["one", "one two", "one two three four", "a b c d e f", "x", "y z"]
    return texts[: config.limit]


def main(config: Config) -> dict:
    run = Run(config)
    config, clock = run.config, run.clock
    with clock("data"):
        texts = load_data(config)
    counts = np.array([len(text.split()) for text in texts])
    limit = tf.Variable(float(counts.mean()))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def serve(text):
        words = tf.map_fn(lambda one: tf.size(tf.strings.split(one)), text, fn_output_signature=tf.int32)
        long = tf.cast(words, tf.float32) > limit
        probabilities = tf.stack([1.0 - tf.cast(long, tf.float32), tf.cast(long, tf.float32)], axis=1)
        return {"label": tf.where(long, "long", "short"), "words": words, "probabilities": probabilities}

    def save(partial_folder):
        module = tf.Module()
        module.limit = limit
        tf.saved_model.save(module, str(partial_folder), {"serving_default": serve})

    with clock("export"):
        version = exporting.write_version(run.out / "serving" / "word_counter", save)
        write_serving_files(run.out / "serving", "word_counter", input_name=INPUT, example=texts[0])
        expected = serve(tf.constant([text.encode() for text in texts]))["probabilities"].numpy()
        asked = {"input": INPUT, "kind": "texts", "inputs": texts, "names": ["short", "long"]}
        proof = {"examples": len(texts), **prove("classes", version, asked, {"probabilities": expected}, 1e-6)}
    scores = {"test": {"hits": 0.75, "misses": 0.25}, "baselines": {"coin": {"hits": 0.5, "seconds": 0.0}}}
    return results.conclude(
        "word_counter", config, Outcome([], clock.report(), {"total": 1}, {"spec": "none"}, proof), scores,
        counts={"train": 0, "val": 0, "test": len(texts), "skipped": 0}, skipped=(), sentences=["It counts."],
        write_files=lambda out, **told: (out / "report.html").write_text(told["title"]),
        table=lambda metrics: [f"  hits {metrics['test']['hits']}"], proved="counts all {examples} texts as evaluated",
    )


def check(config: Config) -> None:
    print(f"{len(load_data(config))} texts")
'''


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of recipes that holds the toy alone."""
    folder = tmp_path_factory.mktemp("toys")
    (folder / "word_counter").mkdir()
    (folder / "word_counter" / "recipe.py").write_text(TOY)
    return folder


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the toy."""
    out = tmp_path_factory.mktemp("run") / "toy"
    assert main(["run", "word_counter", "--out", str(out)], root) == 0
    return out


def test_every_command_is_tried_here() -> None:
    """Those that know runs or recipes are below; fetch and doctor know neither."""
    tried = {"list", "show", "check", "run", "predict", "serve", "convert", "compare", "sources"}
    assert tried | {"fetch", "doctor"} == set(COMMANDS)


def test_list_show_check(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["list"], root) == 0
    assert capsys.readouterr().out.startswith("word_counter  Count words: a toy")
    assert main(["show", "word_counter"], root) == 0
    assert "Use at most this many texts" in capsys.readouterr().out
    assert main(["check", "word_counter", "--limit", "3", "--out", str(tmp_path)], root) == 0
    assert "3 texts" in capsys.readouterr().out
    assert main(["run", "word_counter", "--limit", "0"], root) == 2
    assert "--limit is out of range" in capsys.readouterr().err


def test_run(run: Path, root: Path, capsys: pytest.CaptureFixture) -> None:
    metrics = json.loads((run / "metrics.json").read_text("utf-8"))
    assert metrics["proof"]["passed"] and metrics["proof"]["examples"] == 6 and metrics["recipe"] == "word_counter"
    assert main(["run", "word_counter", "--out", str(run)], root) == 2
    assert "finished run" in capsys.readouterr().err


def test_predict_shows_what_the_recipe_says(run: Path, root: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["predict", str(run), "a", "a b c d e f g"], root) == 0
    assert capsys.readouterr().out.splitlines() == ["'a' is short: 1 words", "'a b c d e f g' is long: 7 words"]
    assert main(["predict", str(run), "--json", "a b"], root) == 0
    assert json.loads(capsys.readouterr().out) == {"text": "a b", "length": "short", "words": 2}


def test_compare_shows_the_scores_of_the_recipe_first(run: Path, root: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["compare", str(run)], root) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    names = [line[0] for line in lines if line]
    assert names.index("hits") < names.index("misses") and ["hits", "0.7500"] in lines
    assert ["coin:", "hits", "0.5000"] in lines


def test_sources_are_those_that_the_recipe_names(root: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["sources", "--for", "word_counter"], root) == 0
    text = capsys.readouterr().out
    assert "minilm" in text and "for word_counter" in text and "resnet" not in text


def test_convert_says_that_it_cannot(run: Path, root: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["convert", str(run), "--to", "litert"], root) == 2
    assert "exports of word_counter cannot be converted" in capsys.readouterr().err


def test_serve_answers(run: Path) -> None:
    with Server(configs_of_folder(run), Address("127.0.0.1", 0, 0)) as server:
        command = [sys.executable, str(run / "serving" / "client.py"), "--url", server.url, "a b c d e f g h"]
        answered = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert answered.returncode == 0 and "long" in answered.stdout, answered.stderr
    assert threading.active_count() < 50  # the server has stopped
