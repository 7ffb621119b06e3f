# ruff: noqa: RUF001 - letters of other scripts are what is tested
"""From transcripts of any script to numbers and back, and clips that CTC cannot be trained on."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from common.speech.ctc.characters import (
    Characters,
    build_characters,
    characters_of,
    encode_texts,
    frames_needed,
    samples_needed,
    why_impossible,
    with_more,
)

WAV2VEC2 = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4,
            **{letter: number for number, letter in enumerate("ETAONIHSRDLUMWCFGYPBVK'XJQZ", start=5)}}  # fmt: skip


def frames_of(samples: int) -> int:
    """The frames of wav2vec 2.0: one for about 20 ms."""
    for kernel, stride in ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)):
        samples = (samples - kernel) // stride + 1
    return max(0, samples)


def test_the_vocabulary_is_what_the_training_texts_are_written_with():
    characters = build_characters(["Don't PANIC, it’s 42!"])
    assert characters.symbols == ("", " ", "'", *"24", *"acdinopst")
    assert characters.blank == 0
    assert build_characters(["b a"]) == build_characters(["a", "B", "a b"])


@pytest.mark.parametrize(
    ("text", "normal"),
    [("  Well-known:  “Quotes”… \n", "well known quotes"), ("don’t don`t DON'T", "don't don't don't"),
     ("'tis the boys' '", "'tis the boys'"), ("ﬁne Ｆｕｌｌ", "fine full"), ("e\u0301té", "été"),
     ("co\u00adop", "coop"),
     ("می\u200cخواهم", "میخواهم"), ("नमस्ते दुनिया!", "नमस्ते दुनिया"), ("今日は、世界。", "今日は 世界"), ("¿Qué?", "qué"),
     ("50 % & $3", "50 % & $3"), ("", ""), ("?!", ""), ("♪ la ♪", "la"), ("I ❤️ it 👍🏽 1️⃣", "i it 1"),
     ("2+2=4, 20 °C", "2+2=4 20 °c")],
)  # fmt: skip
def test_one_spelling_of_every_text(text: str, normal: str):
    characters = build_characters(["a", text or "a", "'"])
    assert characters.normalise(text) == normal
    assert characters.normalise(normal) == normal


@pytest.mark.parametrize("text", ["straße", "don't", "привет мир", "안녕 하세요", "नमस्ते", "١٢٣ ابجد", "it is 4 pm"])
@pytest.mark.parametrize("case", ["lower", "upper", "keep"])
def test_what_is_encoded_can_be_read_again(text: str, case: str):
    characters = build_characters([text], case)
    numbers = characters.encode(characters.normalise(text))
    assert numbers.dtype == np.int32 and characters.blank not in numbers
    assert characters.decode(numbers) == characters.normalise(text)
    assert characters.decode([*numbers, 0, 0, -1]) == characters.normalise(text)  # padding says nothing


def test_frames_collapse_as_ctc_does():
    characters = Characters(("", " ", *"elho"))
    best = [0, 4, 4, 0, 2, 2, 3, 3, 0, 3, 5, 5, 1, 1, 1, 4, 0, 0]
    assert characters.collapse(np.array(best)) == "hello h"
    assert characters.collapse(np.array([], int)) == "" == characters.collapse(np.zeros(9, int))
    last = Characters((*"ab", ""), blank=2)
    assert last.collapse(np.array([0, 2, 0, 1, 2])) == "aab"


def test_a_vocabulary_of_hugging_face_is_read():
    characters = characters_of(sorted(WAV2VEC2, key=WAV2VEC2.get))
    assert (len(characters), characters.blank, characters.case) == (32, 0, "upper")
    assert characters.encode(characters.normalise("Go, on")).tolist() == [21, 8, 4, 8, 9]
    assert characters.decode([21, 8, 4, 1, 2, 3, 0]) == "GO"
    last = characters_of(["a", "b", "-", "|", "[UNK]", "[PAD]"], blank=5)
    assert (last.blank, last.case) == (5, "lower")
    assert last.normalise("A-b. B") == "a-b b"  # the hyphen is one of its characters
    for written in (characters, build_characters(["Grüße, it's 5!"], "upper")):
        numbers = json.loads(written.to_json())
        assert characters_of(sorted(numbers, key=numbers.get)) == written


def test_characters_that_the_vocabulary_lacks():
    characters = build_characters(["abc"])
    texts = ["a b", "Café 7", "77", "c"]
    dropped = encode_texts(characters, texts, "drop")
    assert dropped.texts == ("a b", "ca", "", "c")
    assert [bool(reason) for reason in dropped.reasons] == [False, False, True, False]
    assert dropped.unknown == {"7": 3, "f": 1, "é": 1}
    assert "lacks 3 character(s) of the transcripts: '7' 3, 'f' 1, 'é' 1." in dropped.note()
    skipped = encode_texts(characters, texts, "skip")
    assert [bool(reason) for reason in skipped.reasons] == [False, True, True, False]
    assert "'7', 'f', 'é'" in skipped.reasons[1]
    with pytest.raises(UserError, match="'7' 3"):
        encode_texts(characters, texts, "error")
    assert encode_texts(characters, ["a"], "error").note() == ""
    with pytest.raises(UserError, match="Did you mean 'drop'"):
        encode_texts(characters, texts, "drpo")


def test_punctuation_is_no_stranger_and_signs_that_are_spoken_are():
    assert encode_texts(build_characters(["ab"]), ["a, b! (a) — “b”"], "error").texts == ("a b a b",)
    assert encode_texts(build_characters(["ab"]), ["a & b"]).unknown == {"&": 1}


def test_nothing_to_write():
    with pytest.raises(UserError, match="no letters and no digits"):
        build_characters(["...", "", "' '"])


def test_clips_that_ctc_cannot_learn():
    hello = np.array([4, 2, 3, 3, 5])
    assert frames_needed(hello) == 6 and frames_needed(hello[:0]) == 0
    least = samples_needed(hello, frames_of)
    assert frames_of(least) == 6 and frames_of(least - 1) == 5
    reasons = why_impossible([hello, hello, hello[:4]], [least, least - 1, least - 1], frames_of)
    assert reasons == ["", "is too short for its transcript: 5 frames, and 5 characters need 6", ""]


@pytest.mark.parametrize("labels", [[1], [1, 1], [1, 2, 1], [1, 1, 2], [2, 2, 2]])
def test_the_frames_needed_are_the_fewest_of_all_that_collapse_to_the_labels(labels: list[int]):
    characters = Characters(("", *"ab"))
    wanted, needed = characters.decode(labels), frames_needed(np.array(labels))
    for frames in (needed - 1, needed):
        written = {characters.collapse(np.array(path, int)) for path in product(range(3), repeat=frames)}
        assert (wanted in written) == (frames == needed)


def test_real_transcripts(shared_data: Path):
    lines = (shared_data / "librispeech_84_121123" / "84-121123.trans.txt").read_text().splitlines()
    texts = [line.partition(" ")[2] for line in lines]
    characters = build_characters(texts, "upper")
    assert encode_texts(characters, texts, "error").texts == tuple(texts)  # LibriSpeech is normalised already


def test_what_is_dropped_leaves_no_second_space():
    characters = Characters(("", " ", *"50f"))
    assert characters.decode(characters.encode("50 % off")) == "50 ff"
    assert list(characters.encode("50 % ff")) == [2, 3, 1, 4, 4]
    assert list(characters.encode("% 5")) == [2]


def test_a_vocabulary_grows_by_what_another_one_holds():
    grown = with_more(Characters(("", " ", *"ab")), Characters(("", " ", *"BXé'"), case="upper"))
    assert grown.symbols == ("", " ", "'", "a", "b", "x", "é") and grown.case == "lower"
    with pytest.raises(UserError, match=r"several characters.*Received: 'aɪ'"):
        characters_of(["<pad>", "|", "a", "aɪ"])
    assert characters_of(["<pad>", "|", "A", "", "</s>"]).symbols == ("", " ", "A", "", "")
