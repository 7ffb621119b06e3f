"""Plain texts to a small encoder: sentences and splits, masked tokens, a run, and a stopped run."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from common.errors import UserError
from common.texts import masked_lm
from common.texts.batches import TextReader, Tokens, shuffled_by_length
from common.texts.sentences import load_sentences
from common.texts.sources import load_text_source
from common.texts.tokenizers.wordpiece import WordPiece
from common.training import EpochLines
from recipes.__main__ import RECIPES, main

# The demo reviews, two epochs of seven steps: fast, without meaningful results.
QUICK = [
    "--limit", "120", "--epochs", "2", "--batch-size", "16", "--width", "48", "--layers", "1", "--vocabulary", "500",
]  # fmt: skip


def run(out: Path, *more: str) -> int:
    return main(["run", "pretraining_text", *QUICK, *more, "--out", str(out)])


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def weights(preset: Path) -> list[np.ndarray]:
    found = []
    with h5py.File(preset / "model.weights.h5") as file:
        file.visititems(lambda name, item: found.append(item[()]) if isinstance(item, h5py.Dataset) else None)
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a quick, uninterrupted run."""
    out = tmp_path_factory.mktemp("pretraining_text") / "run"
    assert run(out) == 0
    return out


# --- sentences ----------------------------------------------------------------------------------


def write_texts(path: Path, sentences: list[str]) -> str:
    path.write_text("\n".join(sentences) + "\n", "utf-8")
    return f"txt:{path}"


NUMBERED = [f"this is sentence number {number} of some." for number in range(200)]


def test_copies_are_left_out_and_counted(tmp_path: Path):
    texts = [*NUMBERED, "too short.", " ".join(["long"] * 61), NUMBERED[3], f"  {NUMBERED[5].upper()}  "]
    data = load_sentences(write_texts(tmp_path / "a.txt", texts))
    assert data.left_out == {
        "copies": 2, "shorter than 4 words": 1, "longer than 60 words": 1, "beyond --limit": 0,
    }  # fmt: skip
    assert sorted(data.all()) == sorted(NUMBERED)
    assert data.counts() == {"train": 180, "val": 10, "test": 10, "skipped": 4}


def test_rare_kinds_are_drawn_more_often(tmp_path: Path):
    """By the square root: a kind of a hundredth of the size is drawn a tenth as often."""
    lines = [json.dumps({"text": f"this is sentence number {n} of some.", "from": "rare" if n % 101 == 0 else "many"})
             for n in range(2020)]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    data = load_sentences(f"jsonl:{tmp_path / 'a.jsonl'}", kind_column="from")
    shares, rare = data.shares(), np.array(data.kinds) == "rare"
    counts = rare.sum(), (~rare).sum()
    np.testing.assert_allclose(shares.sum(), 1.0)
    np.testing.assert_allclose(shares[rare].sum() / shares[~rare].sum(), np.sqrt(counts[0] / counts[1]))
    assert (
        "2 kind(s), the largest: many 1," in data.describe()
        and load_sentences(f"jsonl:{tmp_path / 'a.jsonl'}").shares() is None
    )
    tokens = Tokens(tuple(np.arange(3) for _ in data.train), np.arange(len(rare)), np.full(len(rare), 3), 8, 0)
    times = np.bincount(np.concatenate(shuffled_by_length(tokens, 32, (0, 0), shares=shares)), minlength=len(rare))
    assert times.sum() == len(rare) and abs(times - len(rare) * shares).max() < 1  # no more chance than rounding needs
    with pytest.raises(UserError, match="--kind-column"):
        load_sentences(f"jsonl:{tmp_path / 'a.jsonl'}", kind_column="source")
    assert data.fingerprint() != load_sentences(f"jsonl:{tmp_path / 'a.jsonl'}").fingerprint()


def test_held_out_sentences_are_never_trained_on(tmp_path: Path):
    """Copies all over the texts, some in capitals: none is in two splits."""
    data = load_sentences(write_texts(tmp_path / "a.txt", [*NUMBERED, *reversed(NUMBERED), *map(str.upper, NUMBERED)]))
    splits = [{sentence.lower() for sentence in split} for split in (data.train, data.val, data.test)]
    assert sum(len(split) for split in splits) == len(set.union(*splits)) == len(NUMBERED)


def test_splits_depend_on_the_sentences_alone(tmp_path: Path):
    data = load_sentences(write_texts(tmp_path / "a.txt", NUMBERED))
    other = load_sentences(write_texts(tmp_path / "b.txt", [" ".join(NUMBERED[100:]), *NUMBERED[:100]]))
    assert data == other and data.fingerprint() == other.fingerprint()
    fewer = load_sentences(write_texts(tmp_path / "a.txt", NUMBERED), limit=100)
    assert len(fewer.all()) == 100 and fewer.left_out["beyond --limit"] == 100


def test_tables_and_folders_are_read(tmp_path: Path):
    lines = [json.dumps({"review": sentence, "split": "unsup"}) for sentence in NUMBERED]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[:150]).encode()))
    (tmp_path / "b.jsonl").write_text("\n".join(lines[150:]))
    data = load_sentences(f"jsonl:{tmp_path}", column="review")
    assert sorted(data.all()) == sorted(NUMBERED)
    (tmp_path / "c.csv").write_text("review\n" + "\n".join(NUMBERED))
    assert load_sentences(f"csv:{tmp_path / 'c.csv'}", column="review") == data


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.txt", b"", "0 different"),
        ("same.txt", b"the very same sentence here.\n" * 50, "1 different .* 49 copies"),
        ("short.txt", b"\n".join(b"number %d" % n for n in range(50)), "50 shorter than 4 words"),
        ("latin.txt", "Un café très bon, vraiment.\n".encode("latin-1") * 50, "line 1 .* --encoding latin-1"),
        ("cut.txt.gz", gzip.compress(b"some words that are cut off" * 50, mtime=0)[:40], "cannot be read"),
        ("a.jsonl", b'{"review": "a", "stars": 5}', "no column 'text'. Found: 'review', 'stars'.*--text-column"),
        ("a.csv", b"review,stars\na,5", "no column 'text'. Found: 'review', 'stars'"),
        ("broken.jsonl", b"{", "line 1"),
    ],
)
def test_unusable_texts_are_reported(tmp_path: Path, name: str, content: bytes, expected: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=expected) as raised:
        load_sentences(f"{name.removesuffix('.gz').rpartition('.')[2]}:{tmp_path / name}")
    assert "--label-column" not in str(raised.value)


def test_latin_1_is_read_when_asked(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("\n".join(f"café numéro {n} à Paris." for n in range(40)).encode("latin-1"))
    assert "café" in load_sentences(f"txt:{tmp_path / 'a.txt'}", encoding="latin-1").train[0]


# --- masked tokens ------------------------------------------------------------------------------


def test_tokens_are_masked_and_special_tokens_are_not():
    rng = np.random.default_rng(0)
    ids = np.concatenate([np.full((50, 1), 2), rng.integers(5, 90, (50, 37)), np.full((50, 2), 3)], axis=1)
    ids[:, -1] = 0  # padding
    ids[7, 1:-2] = 1  # a sentence of unknown words: nothing can be masked
    ids[8, 2:-2] = 1  # one token that can be masked
    inputs, words, used = masked_lm.mask_tokens({"token_ids": ids.astype(np.int32)}, np.random.default_rng(1))
    assert used[7].sum() == 0 and used[8].sum() == 1 and (np.delete(used.sum(axis=1), (7, 8)) == 6).all()
    masked = inputs["token_ids"] == masked_lm.MASK
    np.testing.assert_array_equal(masked.sum(axis=1), used.sum(axis=1))
    np.testing.assert_array_equal(inputs["token_ids"][~masked], ids[~masked])
    assert (words[used > 0] >= len(masked_lm.SPECIAL)).all()
    np.testing.assert_array_equal(np.take_along_axis(ids, inputs["masked"], axis=1), words)


def test_the_stream_resumes_where_it_stopped():
    tokens = TextReader(WordPiece([*masked_lm.SPECIAL, *"abcdefghij"]), 16).read(["a b c d e", "f g h i j"] * 20)
    whole = masked_lm.masked_batches(tokens, None, 8, seed=3).take(8).as_numpy_iterator()
    rest = masked_lm.masked_batches(tokens, None, 8, seed=3, first=(1, 2)).take(1).as_numpy_iterator()
    expected, found = list(whole)[7], next(rest)
    for ours, theirs in zip(expected, found, strict=True):
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_the_constant_baseline_is_right_where_the_most_frequent_token_is_masked():
    tokens = TextReader(WordPiece([*masked_lm.SPECIAL, "a", "b"]), 16).read(["a a a a a a", "a a b a a a"])
    embeddings = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    predict = masked_lm.most_frequent_predictor(tokens, embeddings)
    scores = masked_lm.score(predict, tokens.of_texts([0, 0]), embeddings)
    assert scores["accuracy"] == 1.0 and scores["cosine_to_teacher"] == pytest.approx(0.5**0.5)


# --- the recipe ---------------------------------------------------------------------------------


def test_run_folder(finished: Path):
    for file in ("config.json", "history.csv", "report.html", "preset/card.json", "preset/vocab.txt"):
        assert (finished / file).stat().st_size > 0, file
    assert not (finished / "checkpoints").exists() and not (finished / "features").exists()
    metrics = read(finished / "metrics.json")
    assert {"recipe", "test", "baselines", "seconds", "counts", "parameters", "proof", "peak_memory_mb", "source",
            "data", "seed", "versions"} <= set(metrics)  # fmt: skip
    assert metrics["counts"]["train"] == 108
    for score in (metrics["test"], *metrics["baselines"].values()):
        for name in ("accuracy", "cosine_to_teacher"):
            low, high = score[f"{name}_ci95"]
            assert low - 1e-9 <= score[name] <= high + 1e-9
    random = metrics["baselines"]["random_weights"]
    assert metrics["test"]["cosine_to_teacher"] > random["cosine_to_teacher"] + 0.1
    card = read(finished / "preset" / "card.json")
    assert card["command"].startswith("python -m recipes run pretraining_text --limit 120")
    report = (finished / "report.html").read_text("utf-8")
    assert "random weights" in report and report.count("data:image/png") == 2 and 'class="wrong"' in report


def test_the_preset_is_a_text_source(finished: Path):
    source = load_text_source(f"preset:{finished / 'preset'}")
    assert source.tokenize.size == len((finished / "preset" / "vocab.txt").read_text("utf-8").splitlines())
    assert source.card["data"] == "demo:reviews: 108 sentences"


@pytest.mark.slow
def test_a_stopped_run_ends_as_if_it_had_not_been(finished: Path, tmp_path: Path, monkeypatch, capsys):
    """Ctrl-C in the middle of the second epoch, one step after the last checkpoint."""
    seen = []

    def stop_at_the_tenth_step(lines, batch, logs=None):
        seen.append(batch)
        if len(seen) == 10:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(EpochLines, "on_train_batch_end", stop_at_the_tenth_step)
        assert run(out, "--save-every", "0") == 130
    assert (out / "checkpoints" / "pretraining_text.npz").exists() and not (out / "metrics.json").exists()
    assert run(out) == 2  # not overwritten
    assert "--resume" in capsys.readouterr().err
    assert main(["run", "pretraining_text", "--resume", str(out)]) == 0
    assert "teacher: 120 in 0 s" in capsys.readouterr().out  # its embeddings were kept
    assert (out / "history.csv").read_bytes() == (finished / "history.csv").read_bytes()
    assert read(out / "metrics.json")["test"] == read(finished / "metrics.json")["test"]
    for one, other in zip(weights(finished / "preset"), weights(out / "preset"), strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_a_teacher(tmp_path: Path):
    assert run(tmp_path / "run", "--teacher", "none", "--epochs", "1") == 0
    metrics = read(tmp_path / "run" / "metrics.json")
    assert "accuracy" in metrics["test"] and "cosine_to_teacher" not in metrics["test"]
    assert "cosine_to_teacher" not in metrics["baselines"]["most_frequent"]
    assert (tmp_path / "run" / "history.csv").read_text("utf-8").startswith("stage,epoch,loss,train_accuracy,val_acc")


def test_check_trains_nothing_and_shows_masked_samples(tmp_path: Path, capsys):
    assert main(["check", "pretraining_text", *QUICK, "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "108 training sentences, 6 validation, 6 test" in text and "estimate:" in text and "[" in text
    assert (tmp_path / "samples.txt").exists() and not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data", "txt:nowhere.txt"], "does not exist"),
        (["--teacher", "keras:ResNet50"], "--teacher is not a text model"),
        (["--teacher", "bundled:resnet_mini"], "--teacher is not a text model"),
        (["--teacher", "bert_minny"], "Did you mean 'bert_mini'"),
        (["--teacher", "none", "--tokenizer", "mobilenet_v2"], "--tokenizer is not a text model"),
        (["--width", "100"], "multiple of 48"),
        (["--vocabulary", "10"], "--vocabulary"),
        (["--limit", "5"], "--limit"),
    ],
)
def test_wrong_settings_are_refused(arguments: list[str], expected: str, tmp_path: Path, capsys):
    assert main(["run", "pretraining_text", *arguments, "--out", str(tmp_path / "run")]) == 2
    assert expected in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_an_image_teacher_and_a_foreign_language_are_refused(tmp_path: Path, capsys):
    teacher = f"preset:{RECIPES.parent / 'common' / 'bundled' / 'resnet_mini'}"
    assert run(tmp_path / "a", "--teacher", teacher) == 2
    assert "--teacher: The preset" in capsys.readouterr().err
    texts = write_texts(tmp_path / "a.txt", [f"αυτή είναι μια πρόταση με αριθμό {n}." for n in range(40)])
    assert run(tmp_path / "b", "--data", texts) == 2
    assert "are unknown to the tokenizer" in capsys.readouterr().err


@pytest.mark.slow  # the stopped run above ends in the same result
def test_a_killed_run_ends_as_if_it_had_not_been(finished: Path, tmp_path: Path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "recipes", "run", "pretraining_text", *QUICK, "--save-every", "0"]
    process = subprocess.Popen([*command, "--out", str(out)], cwd=RECIPES.parent)
    deadline = time.monotonic() + 300
    while not any((out / "checkpoints").glob("*.npz")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert main(["run", "pretraining_text", "--resume", str(out)]) == 0
    for one, other in zip(weights(finished / "preset"), weights(out / "preset"), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_training_works_and_the_preset_is_a_source(shared_data: Path, tmp_path: Path):
    """3000 real sentences: closer to the teacher than its mean, and bert_sentiment takes the preset.

    Masked tokens need more than these 220 steps.
    """
    texts, out = shared_data / "pretrain" / "texts" / "train.jsonl.gz", tmp_path / "run"
    arguments = ["--data", f"jsonl:{texts}", "--limit", "3000", "--width", "96", "--layers", "2", "--epochs", "10"]
    assert main(["run", "pretraining_text", *arguments, "--out", str(out)]) == 0
    metrics = read(out / "metrics.json")
    test, reference = metrics["test"], metrics["baselines"]["most_frequent"]
    assert test["cosine_to_teacher_ci95"][0] > reference["cosine_to_teacher"] + 0.05
    use = ["--source", f"preset:{out / 'preset'}", "--shots", "8", "--epochs", "1", "--no-explain"]
    assert main(["run", "bert_sentiment", *use, "--out", str(tmp_path / "use")]) == 0
