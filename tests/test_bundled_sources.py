"""The commands that train the bundled sources: what a user would type, continued where a run was stopped."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

import pytest

from benchmarks import bundled_sources, speak
from recipes.__main__ import RECIPES
from recipes.commands._discovery import config_class

NAMES, STRICT = list(bundled_sources.COMMANDS), bundled_sources.STRICT_DATA


@pytest.mark.parametrize(
    ("name", "strict"), [(name, strict) for name in NAMES for strict in (False, True) if not strict or name in STRICT]
)
def test_commands_have_flags_that_the_recipe_has(name: str, strict: bool, tmp_path: Path):
    _, _, _, recipe, *flags = bundled_sources.command_of(name, strict, tmp_path)
    known = {field.name for field in dataclasses.fields(config_class(RECIPES / recipe / "recipe.py"))}
    given = [flag.removeprefix("--").replace("-", "_") for flag in flags if flag.startswith("--")]
    assert set(given) <= known and flags[-2:] == ["--out", str(tmp_path)]
    assert ("_strict" in shlex.join(flags[:4])) == strict


def test_a_stopped_run_is_continued(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    command = bundled_sources.command_of("resnet_mini", False, tmp_path)
    assert command == ["-m", "recipes", "run", "pretraining", "--resume", str(tmp_path)]


def test_only_a_finished_run_is_installed(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "common" / "bundled" / "bert_mini").mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"bundled_sources\.py bert_mini --strict"):
        bundled_sources.install("bert_mini", True, tmp_path / "run")
    (tmp_path / "run" / "preset").mkdir(parents=True)
    (tmp_path / "run" / "preset" / "card.json").write_text("{}")
    (tmp_path / "run" / "metrics.json").write_text("{}")
    bundled_sources.install("bert_mini", True, tmp_path / "run")
    card = json.loads((tmp_path / "common" / "bundled" / "bert_mini" / "card.json").read_text("utf-8"))
    assert "Schema-Guided Dialogue" in " ".join(card["credits"]) and "MS MARCO" in card["credits"][-1]


@pytest.mark.parametrize("name", sorted(bundled_sources.CREDITS))
def test_a_bundled_source_names_what_it_was_made_of(name: str):
    """The card of the source and NOTICE hold the credits, or say that the source is for research only."""
    card = json.loads((RECIPES.parent / "common" / "bundled" / name / "card.json").read_text("utf-8"))
    notice = " ".join((RECIPES.parent / "NOTICE").read_text("utf-8").split())
    if "research only" in card["licence"]:  # of before
        assert f"Treat {name} as research-only" in notice or f"treat {name} as research-only" in notice
    else:
        assert tuple(card["credits"]) == bundled_sources.CREDITS[name]
        assert all(credit in notice for credit in card["credits"])


def test_what_cannot_be_is_told(tmp_path: Path):
    with pytest.raises(SystemExit, match="--strict is for resnet_mini, bert_mini"):
        bundled_sources.command_of("wav2vec2_mini", True, tmp_path)
    with pytest.raises(SystemExit, match="not bundled itself"):
        bundled_sources.install("wav2vec2_mini_sounds", False, tmp_path)


def spoken_data(folder: Path) -> Path:
    """The files of ../shared/data that the corpus is made of, with a sentence that is tested and one that is not."""
    for name in ("pretrain/speakable", "common_voice_en", "librispeech_84_121123", "ljspeech_8"):
        (folder / name).mkdir(parents=True)
    lines = ["A new sentence, here.", "It is tested!", "It is Read.", "And this?", "x" * 5 + " 7 numbers", "w " * 11]
    (folder / "pretrain/speakable/sentences.txt").write_text("\n".join(lines), "utf-8")
    (folder / "common_voice_en/clips.csv").write_text('file,sentence\na.flac,"It is tested."\n', "utf-8")
    (folder / "librispeech_84_121123/84-121123.trans.txt").write_text("84-121123-0000 IT IS READ\n", "utf-8")
    (folder / "ljspeech_8/metadata.csv").write_text("LJ001-0001|And this|And this\n", "utf-8")
    return folder


def test_no_sentence_of_the_corpus_is_tested(tmp_path: Path):
    assert speak.sentences_of(spoken_data(tmp_path)) == ["a new sentence here"]


def test_real_recordings_are_listed_several_times_in_training(tmp_path: Path):
    texts, recordings, corpus = spoken_data(tmp_path / "texts"), tmp_path / "recordings", tmp_path / "corpus"
    recordings.mkdir()
    corpus.mkdir()
    rows = ["a/1.ogg,they were merry,s1,train", "a/2.ogg,it is read,s1,train", "a/3.ogg,and they sang,s2,test"]
    (recordings / "transcripts.csv").write_text("\n".join(["path,text,speaker,split", *rows]), "utf-8")
    (corpus / "manifest.tsv").write_text("path\ttext\tspeaker\tsplit\n", "utf-8")
    speak.add_real(corpus, recordings, texts)
    found = [line.split("\t") for line in (corpus / "manifest.tsv").read_text("utf-8").splitlines()[1:]]
    assert [row[1] for row in found] == ["they were merry"] * speak.REAL_TIMES + ["and they sang"]
    assert found[0][0] == str((recordings / "a/1.ogg").resolve())


def test_the_other_clips_of_a_corpus_are_in_the_splits_of_their_speakers(tmp_path: Path):
    for part, tables in {
        "train": {"text": "1\tTHEY SAT\n2\tWE SAT\n", "utt2spk": "1 7\n2 8\n", "wav.scp": "1\tW/1.WAV\n2\tW/2.WAV\n"},
        "test": {"text": "3\tI SAT\n", "utt2spk": "3 9\n", "wav.scp": "3\tW/3.WAV\n"},
    }.items():
        (tmp_path / part).mkdir()
        for name, lines in tables.items():
            (tmp_path / part / name).write_text(lines, "utf-8")
    rows = [{"path": Path("x/1.ogg"), "speaker": "so7", "split": "train"}]
    rows += [{"path": Path("x/4.ogg"), "speaker": "so8", "split": "test"}]
    found = speak.more_of_speechocean(tmp_path, rows)
    assert [(row["text"], row["split"]) for row in found] == [("we sat", "test"), ("i sat", "train")]
    assert found[0]["path"] == (tmp_path / "W/2.WAV").resolve()
