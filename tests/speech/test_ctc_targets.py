"""Training clips: few-shot selections, and none that CTC cannot be trained on; and beam search."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import UserError
from common.speech.ctc.beam_search import beam_transcripts, read_language
from common.speech.ctc.characters import Characters
from common.speech.ctc_targets import draw_shots, writable_clips
from common.speech.dataset import SpeechExamples, SpeechSet

LETTERS = Characters(("", " ", *"abcdeno"))


def examples(texts: list[str], seconds: float = 1.0, labels=None) -> SpeechExamples:
    count = len(texts)
    labels = np.zeros(count, np.int64) if labels is None else np.array(labels, np.int64)
    paths = np.array([f"{text}_{place}.wav" for place, text in enumerate(texts)], dtype=str)
    return SpeechExamples(
        paths, np.array(texts, object), labels, np.array([""] * count, object), np.full(count, seconds)
    )


def a_set(train, val=("no",), test=("one",), **more) -> SpeechSet:
    return SpeechSet("demo", examples(list(train)), examples(list(val)), examples(list(test)), **more)


def frames_of(samples: int) -> int:
    return samples // 320


def test_shots_are_drawn_from_each_text_and_by_the_seed():
    data = a_set(["one"] * 5 + ["no"] * 2 + ["bad"] * 9)
    drawn = draw_shots(data, 3, seed=0)
    assert sorted(drawn.train.texts) == ["bad"] * 3 + ["no"] * 2 + ["one"] * 3
    assert list(drawn.train.paths) == list(draw_shots(data, 3, seed=0).train.paths)
    assert list(drawn.train.paths) != list(draw_shots(data, 3, seed=1).train.paths)
    assert len(drawn.test) == 1
    with pytest.raises(UserError, match="class 'no' has 2"):
        draw_shots(a_set(["one"] * 5 + ["no"] * 2, class_names=("no", "one")), 3, seed=0)


def test_clips_that_cannot_be_learned_are_named_and_test_stays_as_it_is():
    train = ["one", "a" * 60, "12", "bad 7"]  # too long for a second; no known character; an unknown one in it
    data, targets = writable_clips(a_set(train, test=("one 7", "...")), LETTERS, frames_of)
    assert list(data.train.texts) == ["one", "bad 7"] and [len(target) for target in targets] == [3, 3]
    reasons = dict(data.skipped)
    assert "60 characters need 119" in reasons[f"{'a' * 60}_1.wav"]
    assert "no character" in reasons["12_2.wav"] and "no words" in reasons["..._1.wav"]
    assert list(data.test.texts) == ["one 7"]
    assert any("'7'" in note and "each counts as an error" in note for note in data.notes)
    with pytest.raises(UserError, match="no train clip with a transcript"):
        writable_clips(a_set(["a" * 60]), LETTERS, frames_of)
    with pytest.raises(UserError, match="--outside skip"):
        writable_clips(a_set(train), LETTERS, frames_of, "error")
    with pytest.raises(UserError, match=r"--strict: 2 clip\(s\) cannot be used; the first is a+_1.wav"):
        writable_clips(a_set(train), LETTERS, frames_of, strict=True)


def said(text: str, unsure: str = "", chance: float = 0.4) -> np.ndarray:
    """Log-probabilities in which every character is clear, but for one that may be another."""
    rows = []
    for character in text:
        row = np.full(len(LETTERS), 1e-4)
        row[LETTERS.numbers[character]] = 1.0
        if unsure and character == unsure[0]:
            row[LETTERS.numbers[unsure[0]]], row[LETTERS.numbers[unsure[1]]] = chance, 1 - chance
        rows += [row, np.eye(len(LETTERS))[0] + 1e-4]
    return np.log(np.array(rows) / np.sum(rows, axis=1, keepdims=True)).astype(np.float32)


def test_a_language_model_decides_where_the_sound_does_not(tmp_path):
    text = tmp_path / "sentences.txt"
    text.write_text("no bad one\nNO, bad code!\n" * 5)
    clips = [said("no bad one", "bd"), said("no bad code", "cn")]
    found = beam_transcripts(
        clips, clips, ["no bad one", "no bad code"], LETTERS, width=8, ngrams=read_language(str(text), LETTERS)
    )  # fmt: skip
    assert found["beam"] == ["no dad one", "no bad node"]
    assert found["beam_lm"] == ["no bad one", "no bad code"]
    assert (
        beam_transcripts(clips, [], [], LETTERS, width=8, ngrams=read_language(str(text), LETTERS))["beam_lm"]
        == found["beam_lm"]
    )
    assert beam_transcripts(clips, clips, [], LETTERS, width=0) == {}
    assert set(beam_transcripts(clips, clips, [], LETTERS, width=4)) == {"beam"}


def test_beginnings_that_read_alike_count_together():
    """`ba` is more probable than `a` and than ` a`, and less than both."""
    frames = np.full((2, len(LETTERS)), 1e-9)
    blank, space, a, b = 0, LETTERS.numbers[" "], LETTERS.numbers["a"], LETTERS.numbers["b"]
    frames[0, [blank, space, b]], frames[1, [blank, a]] = (0.1, 0.42, 0.48), (0.4, 0.6)
    assert beam_transcripts([np.log(frames)], [], [], LETTERS, width=16) == {"beam": ["a"]}


def test_a_text_without_words_is_told(tmp_path):
    (tmp_path / "none.txt").write_text("... !!\n")
    with pytest.raises(UserError, match="no words"):
        read_language(str(tmp_path / "none.txt"), LETTERS)
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        read_language(str(tmp_path / "latin.txt"), LETTERS)
