"""Speech data sets as published, splits that share no speaker, and input that must be refused."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from common.errors import UserError
from common.speech.dataset import SpeechSet, load_speech_set
from common.speech.readers import SpeechColumns
from common.speech.split_by_speaker import split_by_speaker

RATE = 16_000
SPLITS = ("train", "val", "test")


def write_tone(path: Path, number: int, seconds: float = 0.3, rate: int = RATE) -> Path:
    """Write a tone that is different for each number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.5 * np.sin(2 * np.pi * (300 + 7 * number) * np.arange(round(seconds * rate)) / rate)
    soundfile.write(path, samples, rate)
    return path


def lines_of(folder: Path, count: int = 20, speakers: int = 5) -> list[dict[str, str]]:
    """Write clips, and return a line of a table per clip."""
    lines = []
    for number in range(count):
        write_tone(folder / f"{number}.wav", number)
        lines.append({"path": f"{number}.wav", "text": f"text number {number}", "speaker": f"s{number % speakers}"})
    return lines


def write_table(path: Path, lines: list[dict[str, str]], mark: str = ",") -> str:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]), delimiter=mark)
        writer.writeheader()
        writer.writerows(lines)
    return f"{path.suffix[1:]}:{path}"


def write_manifest(path: Path, lines: list[dict]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return f"manifest:{path}"


def as_nemo(lines: list[dict[str, str]], seconds: float = 0.3) -> list[dict]:
    return [{"audio_filepath": path, "duration": seconds, **line} for line in lines if (path := line.pop("path"))]


def names(data: SpeechSet, split: str) -> set[str]:
    return {Path(path).name for path in getattr(data, split).paths}


def reasons(data: SpeechSet) -> dict[str, str]:
    return {Path(path).name: reason for path, reason in data.skipped}


def notes_of(data: SpeechSet) -> str:
    return " ".join(data.advice())


def assert_apart(data: SpeechSet, but_speakers: bool = False) -> None:
    """Assert that no file, and no speaker, is in two splits."""
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        one, other = getattr(data, one), getattr(data, other)
        assert not set(one.paths) & set(other.paths)
        assert but_speakers or not set(one.speakers) & set(other.speakers)


# --- where speech comes from ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "tsv", "semicolon", "manifest", "manifest.gz", "a manifest called csv"])
def test_the_same_clips_from_every_kind_of_table(tmp_path: Path, kind: str):
    lines = lines_of(tmp_path)
    if kind in ("csv", "tsv", "semicolon"):
        mark = {"csv": ",", "tsv": "\t", "semicolon": ";"}[kind]
        data = write_table(tmp_path / f"t.{'tsv' if kind == 'tsv' else 'csv'}", lines, mark)
    elif kind == "a manifest called csv":
        data = "manifest:" + write_table(tmp_path / "t.csv", lines).partition(":")[2]
    else:
        data = write_manifest(tmp_path / "t.json", as_nemo(lines))
        if kind.endswith("gz"):
            (tmp_path / "t.json.gz").write_bytes(gzip.compress((tmp_path / "t.json").read_bytes()))
            data += ".gz"
    found = load_speech_set(data)
    assert {name for split in SPLITS for name in names(found, split)} == {f"{number}.wav" for number in range(20)}
    assert not found.skipped and found.class_names == ()
    for split in SPLITS:
        examples = getattr(found, split)
        columns = (examples.paths, examples.texts, examples.speakers, examples.seconds)
        for path, text, speaker, seconds in zip(*columns, strict=True):
            number = int(Path(path).stem)
            assert (text, speaker) == (f"text number {number}", f"s{number % 5}") and seconds == pytest.approx(0.3)
    assert_apart(found)


def test_common_voice_as_it_is(tmp_path: Path):
    for split, take in (("train", range(12)), ("dev", range(12, 15)), ("test", range(15, 18))):
        lines = []
        for number in take:
            write_tone(tmp_path / "clips" / f"common_voice_{number}.mp3", number)
            lines.append({"client_id": f"c{number}", "path": f"common_voice_{number}.mp3",
                          "sentence": f'He said: "{number}', "up_votes": "2", "age": ""})  # fmt: skip
        table = "\n".join("\t".join(cells) for cells in [list(lines[0]), *(list(line.values()) for line in lines)])
        (tmp_path / f"{split}.tsv").write_text(table + "\n", "utf-8")
    (tmp_path / "validated.tsv").write_text("broken")
    for data in (f"tsv:{tmp_path}", f"folder:{tmp_path}"):
        found = load_speech_set(data)
        assert found.counts() == {"train": 12, "val": 3, "test": 3, "skipped": 0}
        assert found.val.texts.tolist() == [f'He said: "{number}' for number in (12, 13, 14)]
        assert found.test.speakers.tolist() == ["c15", "c16", "c17"]


def test_librispeech_as_it_is(tmp_path: Path):
    number = 0
    for subset, speakers in (("train-clean-100", "12"), ("dev-clean", "3"), ("test-clean", "4")):
        for speaker in speakers:
            folder, lines = tmp_path / "LibriSpeech" / subset / speaker / "77", []
            for _ in range(3):
                name = f"{speaker}-77-{number:04}"
                write_tone(folder / f"{name}.flac", number)
                lines.append(f"{name} TEXT NUMBER {number}")
                number += 1
            (folder / f"{speaker}-77.trans.txt").write_text("\n".join(lines) + "\n")
    found = load_speech_set(f"folder:{tmp_path}")
    assert found.counts() == {"train": 6, "val": 3, "test": 3, "skipped": 0}
    assert set(found.train.speakers) == {"1", "2"} and set(found.test.speakers) == {"4"}
    assert found.test.texts[0] == "TEXT NUMBER 9"


def test_ljspeech_as_it_is(tmp_path: Path):
    lines = []
    for number in range(9):
        write_tone(tmp_path / "wavs" / f"LJ001-{number:04}.wav", number)
        lines.append(f'LJ001-{number:04}|Dr. "No", {number}|Doctor "No", {number}' if number else "LJ001-0000|Plain|")
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    for data in (f"csv:{tmp_path / 'metadata.csv'}", f"folder:{tmp_path}", f"csv:{tmp_path}"):
        found = load_speech_set(data)
        texts = {text for split in SPLITS for text in getattr(found, split).texts}
        assert texts == {"Plain", *(f'Doctor "No", {number}' for number in range(1, 9))}
        assert "only 1 speaker" in notes_of(found)
    (tmp_path / "metadata.csv").write_text("a|b|c|d|e\n")
    with pytest.raises(UserError, match="but 5 cells"):
        load_speech_set(f"csv:{tmp_path}")


def test_speech_commands_as_it_is(tmp_path: Path):
    listed = {"validation_list.txt": [], "testing_list.txt": []}
    for number in range(20):
        word, speaker = ("yes", "no")[number % 2], f"{number:08x}"
        path = write_tone(tmp_path / word / f"{speaker}_nohash_0.wav", number)
        for file, first in (("validation_list.txt", 12), ("testing_list.txt", 16)):
            if first <= number < first + 4:
                listed[file].append(path.relative_to(tmp_path).as_posix())
    for file, lines in listed.items():
        (tmp_path / file).write_text("\n".join(lines) + "\n")
    write_tone(tmp_path / "_background_noise_" / "hum.wav", 99, seconds=2)
    found = load_speech_set(f"folder:{tmp_path}", task="commands")
    assert found.counts() == {"train": 12, "val": 4, "test": 4, "skipped": 0}
    assert found.class_names == ("no", "yes") and found.train.labels.tolist() == [0] * 6 + [1] * 6
    assert_apart(found)
    for file in listed:
        (tmp_path / file).unlink()
    carved = load_speech_set(f"folder:{tmp_path}", task="commands")
    assert carved.counts() == {"train": 14, "val": 3, "test": 3, "skipped": 0}
    assert_apart(carved)  # the speakers are in the names


def test_class_folders_with_and_without_parts(tmp_path: Path):
    for number in range(24):
        write_tone(tmp_path / "a" / ("go", "stop")[number % 2] / f"{number}.flac", number)
        split = ("training", "training", "test")[number % 3]
        write_tone(tmp_path / "b" / split / ("go", "stop")[number % 2] / f"{number}.wav", number)
    found = load_speech_set(f"folder:{tmp_path / 'a'}", task="commands")
    assert sum(found.counts().values()) == 24 and "The speakers are unknown" in notes_of(found)
    assert all(set(getattr(found, split).labels) == {0, 1} for split in SPLITS)
    assert set(found.train.texts) == {"go", "stop"}
    given = load_speech_set(f"folder:{tmp_path / 'b'}", task="commands")
    assert names(given, "test") == {f"{number}.wav" for number in range(24) if number % 3 == 2}
    (tmp_path / "b" / "go").mkdir()
    with pytest.raises(UserError, match="mixes splits and classes: 'go' next to"):
        load_speech_set(f"folder:{tmp_path / 'b'}", task="commands")
    with pytest.raises(UserError, match=r"has no transcripts.*python -m recipes run speech_commands"):
        load_speech_set(f"folder:{tmp_path / 'a'}")


def test_columns_may_have_other_names(tmp_path: Path):
    lines = [{"clip": line["path"], "said": line["text"], "who": line["speaker"], "word": f"w{n % 2}"}
             for n, line in enumerate(lines_of(tmp_path))]  # fmt: skip
    data = write_table(tmp_path / "t.csv", lines)
    with pytest.raises(
        UserError, match=r"no column 'path or .*Received: 'clip', 'said', 'who', 'word'.*--path-column NAME"
    ):
        load_speech_set(data)
    with pytest.raises(UserError, match=r"no column 'sayd'.*Did you mean 'said'.*--text-column NAME"):
        load_speech_set(data, columns=SpeechColumns(path="clip", text="sayd"))
    found = load_speech_set(data, columns=SpeechColumns(path="clip", text="said", speaker="who"))
    assert set(found.test.speakers) < {f"s{n}" for n in range(5)}
    words = load_speech_set(data, task="commands", columns=SpeechColumns(path="clip", label="word", speaker="who"))
    assert words.class_names == ("w0", "w1")
    assert_apart(words)


# --- splits -----------------------------------------------------------------------------------------------


def test_no_speaker_is_in_two_parts(tmp_path: Path):
    lines = lines_of(tmp_path, 40, speakers=8)
    found = load_speech_set(write_table(tmp_path / "t.csv", lines))
    assert_apart(found)
    assert [len(set(getattr(found, split).speakers)) for split in SPLITS] == [6, 1, 1] and not found.notes
    again = load_speech_set(write_table(tmp_path / "u.csv", lines[::-1]))  # whatever the order
    assert all(names(found, split) == names(again, split) for split in SPLITS)
    shared = load_speech_set(write_table(tmp_path / "t.csv", lines), share_speakers=True)
    assert set(shared.train.speakers) & set(shared.test.speakers) and "--share-speakers" in notes_of(shared)
    assert_apart(shared, but_speakers=True)


def test_one_speaker_who_speaks_most_stays_in_training():
    speakers = ["much"] * 800 + [f"s{number}" for number in range(200)]
    for trial in range(5):
        parts = split_by_speaker([f"{trial}{name}" for name in speakers], {"test": 0.05, "val": 0.05})
        assert set(parts[:800]) == {"train"}
        assert [int((parts == split).sum()) for split in ("test", "val")] == [50, 50]
    assert sorted(split_by_speaker(["a"] * 50 + ["b"] * 30 + ["c"], {"test": 0.15, "val": 0.15})) == (
        ["test"] + ["train"] * 50 + ["val"] * 30
    )


def test_with_two_speakers_the_split_is_by_content_and_says_so(tmp_path: Path):
    found = load_speech_set(write_table(tmp_path / "t.csv", lines_of(tmp_path, 20, speakers=2)))
    assert "only 2 speaker(s) ('s0', 's1')" in notes_of(found)
    assert_apart(found, but_speakers=True)


def test_given_parts_stay_and_shared_speakers_become_a_note(tmp_path: Path):
    lines = [dict(line, split=("train", "dev", "test")[n % 3]) for n, line in enumerate(lines_of(tmp_path, 18, 2))]
    found = load_speech_set(write_table(tmp_path / "t.csv", lines))
    assert names(found, "test") == {f"{number}.wav" for number in range(2, 18, 3)}
    assert "2 of 2 speakers of the test split are in training too ('s0', 's1')" in notes_of(found)
    # A given val and no test: the val becomes the test, and validation is carved as the test was.
    two = [dict(line, split="train" if n % 3 else "val") for n, line in enumerate(lines_of(tmp_path, 18, 2))]
    found = load_speech_set(write_table(tmp_path / "t.csv", two))
    assert names(found, "test") == {f"{number}.wav" for number in range(0, 18, 3)}
    assert "The given splits share speakers" in notes_of(found)
    # Speakers that were kept apart stay apart.
    apart = [dict(line, split="test" if n % 6 == 0 else "train") for n, line in enumerate(lines_of(tmp_path, 18, 6))]
    found = load_speech_set(write_table(tmp_path / "t.csv", apart))
    assert set(found.test.speakers) == {"s0"} and not found.notes
    assert_apart(found)


def test_copies_leave_training_whatever_their_names_and_formats(tmp_path: Path):
    lines = [dict(line, split="test" if n < 4 else "val" if n < 8 else "train")
             for n, line in enumerate(lines_of(tmp_path))]  # fmt: skip
    shutil.copy(tmp_path / "0.wav", tmp_path / "copy.wav")
    samples, rate = soundfile.read(tmp_path / "1.wav", dtype="int16")
    soundfile.write(tmp_path / "other.flac", samples, rate)
    shutil.copy(tmp_path / "9.wav", tmp_path / "twice.wav")
    shutil.copy(tmp_path / "10.wav", tmp_path / "same.wav")
    for name, of in (("copy.wav", 0), ("other.flac", 1), ("same.wav", 10)):
        lines.append(dict(lines[of], path=name, split="train"))
    lines.append(dict(lines[9], path="twice.wav", text="another text"))
    found = load_speech_set(write_table(tmp_path / "t.csv", lines))
    why = reasons(found)
    assert set(why) == {"copy.wav", "other.flac", "twice.wav", "9.wav"}
    assert why["copy.wav"] == why["other.flac"] == "exact copy of a clip in another split; removed from train"
    assert why["9.wav"] == "the same sound has the texts 'another text', 'text number 9'"
    assert {"10.wav", "same.wav"} <= names(found, "train")  # a copy in the same split does no harm
    assert found.counts() == {"train": 12, "val": 4, "test": 4, "skipped": 4}


def test_texts_that_sound_alike_are_no_contradiction(tmp_path: Path):
    lines = lines_of(tmp_path)
    shutil.copy(tmp_path / "9.wav", tmp_path / "twice.wav")
    lines.append(dict(lines[9], path="twice.wav", text=lines[9]["text"].upper() + "."))
    assert not load_speech_set(write_table(tmp_path / "t.csv", lines)).skipped


def test_a_clip_stands_in_one_table_of_a_part(tmp_path: Path):
    lines = lines_of(tmp_path)
    for name, some in (("train", lines[:12]), ("dev", lines[12:16]), ("test", lines[16:])):
        write_table(tmp_path / f"{name}.csv", some)
    found = load_speech_set(f"csv:{tmp_path}")
    assert len(found.test) == len(lines[16:])
    write_table(tmp_path / "test_old.csv", [dict(line, text="other") for line in lines[16:]])
    with pytest.raises(UserError, match=r"test\.csv and test_old\.csv are both read as test, and both contain"):
        load_speech_set(f"csv:{tmp_path}")


def test_classes_that_only_held_out_speakers_say_are_told(tmp_path: Path):
    lines = [dict(line, text="all") for line in lines_of(tmp_path, 40, 5)]
    for line in lines[::2]:
        line["text"] = f"own {line['speaker']}"
    table = write_table(tmp_path / "t.csv", [{**line, "label": line["text"]} for line in lines])
    with pytest.raises(
        UserError, match=r"has no training clips of 'own s\d'.*only speakers are 's\d'.*--share-speakers"
    ):
        load_speech_set(table, task="commands")
    assert len(load_speech_set(table, task="commands", share_speakers=True).class_names) == 6


def test_a_limit_reads_few_and_takes_speakers_in_turn(tmp_path: Path):
    lines = [dict(line, split="test" if n % 5 == 0 else "train") for n, line in enumerate(lines_of(tmp_path, 60, 5))]
    found = load_speech_set(write_table(tmp_path / "t.csv", lines), limit=2)
    assert found.counts() == {"train": 2, "val": 2, "test": 2, "skipped": 0}
    assert len(set(found.train.speakers)) == 2
    assert "--limit 2: 32 of 60 clips were read." in found.notes


def test_the_fingerprint_is_that_of_the_data(tmp_path: Path):
    lines = lines_of(tmp_path)
    one, again = (load_speech_set(write_table(tmp_path / "t.csv", lines)).fingerprint() for _ in range(2))
    other = load_speech_set(write_table(tmp_path / "t.csv", [dict(line, text="x" + line["text"]) for line in lines]))
    assert one == again != other.fingerprint()


def test_a_set_describes_itself(tmp_path: Path):
    lines = lines_of(tmp_path, 16, 4)
    for number in range(12):
        write_tone(tmp_path / f"short{number}.wav", number, 0.05)
        lines.append({"path": f"short{number}.wav", "text": "x", "speaker": "s0"})
    data = load_speech_set(write_table(tmp_path / "t.csv", lines), share_speakers=True)
    counts, *others = data.describe("mine").splitlines()
    assert counts == f"mine: {data.counts()}" and data.counts()["skipped"] == 12
    skipped, notes = others[:10], others[10:]  # the first ten files, then all notes
    assert skipped == [f"  {path}: {reason}" for path, reason in data.skipped[:10]] and "is too short" in skipped[9]
    assert notes == [f"  {sentence}" for sentence in data.advice()] and "--share-speakers" in notes[0]


# --- what is refused --------------------------------------------------------------------------------------


def test_every_clip_that_is_left_out_has_a_reason(tmp_path: Path):
    lines = lines_of(tmp_path)
    wrong = {
        "empty.wav": b"", "page.wav": b"<html>", "cut.wav": (tmp_path / "1.wav").read_bytes()[:2000],
        "none.wav": (tmp_path / "1.wav").read_bytes()[:40] + bytes(4),
    }  # fmt: skip
    for name, content in wrong.items():
        (tmp_path / name).write_bytes(content)
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(tmp_path / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    write_tone(tmp_path / "long.wav", 1, 31)
    write_tone(tmp_path / "short.wav", 1, 0.05)
    write_tone(tmp_path / "mute.wav", 50)
    texts = {name: "some words" for name in (*wrong, "silent.wav", "nan.wav", "long.wav", "short.wav", "gone.wav")}
    lines += [{"path": name, "text": text, "speaker": "s0"} for name, text in (texts | {"mute.wav": " "}).items()]
    lines.append({"path": "", "text": "nowhere", "speaker": "s0"})
    data = write_table(tmp_path / "t.csv", lines)
    why = reasons(load_speech_set(data))
    for name, reason in (("empty.wav", "is empty"), ("page.wav", "is a web page"), ("cut.wav", "is cut off"),
                         ("none.wav", "has no samples"), ("silent.wav", "is silent"), ("nan.wav", "not numbers"),
                         ("long.wav", "is too long: 31.0 s; at most 30 s"), ("short.wav", "is too short: 0.050 s"),
                         ("gone.wav", "does not exist"), ("mute.wav", "has no transcript"),
                         ("", "has no path")):  # fmt: skip
        assert reason in why.pop(name), name
    assert not why
    kept = load_speech_set(data, keep_silence=True, max_seconds=40.0, min_seconds=0.01)
    assert {"silent.wav", "long.wav", "short.wav"} <= {name for split in SPLITS for name in names(kept, split)}
    assert "1 of 23 clips are silent and kept" in notes_of(kept)
    with pytest.raises(UserError, match=r"--strict: 11 clip\(s\) cannot be used; the first is .*empty.wav: is empty"):
        load_speech_set(data, strict=True)


def test_commands_keep_silence(tmp_path: Path):
    for number in range(12):
        write_tone(tmp_path / "go" / f"{number}.wav", number)
        path = tmp_path / "_silence_" / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, np.zeros(4000 + number), RATE)
    found = load_speech_set(f"folder:{tmp_path}", task="commands")
    assert found.class_names == ("_silence_", "go") and not found.skipped


def test_what_recordings_are_like_is_said(tmp_path: Path):
    lines = lines_of(tmp_path, 10)
    tone = 0.4 * np.sin(np.arange(8000) / 9)
    soundfile.write(tmp_path / "a.wav", tone, 8000)
    soundfile.write(tmp_path / "b.wav", np.stack([tone, tone * 0.9], 1), RATE)
    soundfile.write(tmp_path / "c.wav", tone + 0.2, RATE)
    soundfile.write(tmp_path / "d.wav", np.clip(tone * 9, -1, 1), RATE)
    lines += [{"path": f"{name}.wav", "text": "words", "speaker": "s9"} for name in "abcd"]
    notes = notes_of(load_speech_set(write_table(tmp_path / "t.csv", lines)))
    assert "1 of 14 clips have fewer than 16,000 samples per second (the fewest: 8,000)" in notes
    for note in ("have several channels", "have a DC offset", "are clipped"):
        assert f"1 of 14 clips {note}" in notes


def test_paths_lead_nowhere_but_inside(tmp_path: Path):
    (tmp_path / "set").mkdir()
    lines = lines_of(tmp_path / "sounds")
    outside = [dict(line, path=f"../sounds/{line['path']}") for line in lines]
    with pytest.raises(UserError, match=r"line 2: the path leads out of the folder.*'\.\./sounds/0.wav'"):
        load_speech_set(write_table(tmp_path / "set" / "t.csv", outside))
    sly = [{"audio_filepath": f"x/../../sounds/{line['path']}", "text": line["text"]} for line in lines]
    with pytest.raises(UserError, match="leads out"):
        load_speech_set(write_manifest(tmp_path / "set" / "t.jsonl", sly))
    absolute = [dict(line, path=str(tmp_path / "sounds" / line["path"])) for line in lines]
    assert not load_speech_set(write_table(tmp_path / "set" / "t.csv", absolute)).skipped
    inside = [dict(line, path=f"sounds/x/../{line['path']}") for line in lines]
    (tmp_path / "sounds" / "x").mkdir()
    assert not load_speech_set(write_table(tmp_path / "t.csv", inside)).skipped


def test_a_manifest_that_points_nowhere(tmp_path: Path):
    lines = [{"audio_filepath": f"/nowhere/{n}.wav", "text": "x"} for n in range(3)]
    with pytest.raises(UserError, match=r"none of its 3 sound files exists; the first is '/nowhere/0.wav'"):
        load_speech_set(write_manifest(tmp_path / "t.json", lines))


def test_pieces_of_longer_recordings_are_told(tmp_path: Path):
    lines = as_nemo(lines_of(tmp_path))
    write_tone(tmp_path / "long.wav", 77, 6.0)
    lines += [{"audio_filepath": "long.wav", "text": "a", "duration": 2.0, "offset": begin} for begin in (0, 2.0)]
    why = [reason for _, reason in load_speech_set(write_manifest(tmp_path / "t.json", lines)).skipped]
    assert "piece of a longer recording (offset 2 s)" in why[1] and "but 2.0 s in its manifest" in why[0]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [("t.json", "", "has no sounds"), ("t.json", "[1, 2]\n", "is not an object. Allowed: an object per line"),
     ("t.json", '{"audio_filepath": "a.wav"}', "has no column 'text or"), ("t.json", "{oops", "line 1, is not JSON"),
     ("t.json", '{"audio_filepath": "a.wav", "text": "x", "duration": "long"}', "duration must be a number of seconds"),
     ("t.csv", "path,text\n", "has no sounds"), ("t.csv", "path,text\na.wav,one, two\n", "must have 2 cells"),
     ("t.csv", 'path,text\na.wav,"one\n', "is not a line of a table"), ("t.csv", "", "has no sounds"),
     ("t.csv", "path,text,split\na.wav,x,later\n", "unknown split 'later'"),
     ("t.csv", "path,text,split\na.wav,x,train\nb.wav,y,\n", "some have none"),
     ("t.csv", "text,label\nhello,x\n", "no column 'path or audio_filepath or audio_path'. Received: 'text', 'label'"),
     ("t.csv", "path,text\ncaf\xe9,x\n", "--encoding latin-1")],
)  # fmt: skip
def test_tables_that_cannot_be_read_say_why(tmp_path: Path, name: str, content: str, says: str):
    (tmp_path / name).write_text(content, "latin-1")
    with pytest.raises(UserError) as error:
        load_speech_set(f"{'manifest' if name.endswith('json') else 'csv'}:{tmp_path / name}")
    assert says in str(error.value)


def test_sets_that_cannot_work_stop(tmp_path: Path):
    lines = lines_of(tmp_path, 2)
    with pytest.raises(UserError, match=r"leaves no clips in the .* split"):
        load_speech_set(write_table(tmp_path / "t.csv", lines))
    with pytest.raises(UserError, match=r"no clip that can be used: 2 clip\(s\) .*has no transcript"):
        load_speech_set(write_table(tmp_path / "t.csv", [dict(line, text="") for line in lines]))
    write_tone(tmp_path / "one" / "go" / "1.wav", 1)
    with pytest.raises(UserError, match=r"has 1 class\(es\) with readable clips"):
        load_speech_set(f"folder:{tmp_path / 'one'}", task="commands")
    with pytest.raises(UserError, match="has no label"):
        load_speech_set(f"folder:{tmp_path / 'one' / 'go'}", task="commands")
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="has no sounds"):
        load_speech_set(f"folder:{tmp_path / 'bare'}", task="commands")
    with pytest.raises(UserError, match="without tables of splits"):
        load_speech_set(f"manifest:{tmp_path}")
    with pytest.raises(ValueError, match="task must be one of"):
        load_speech_set(f"csv:{tmp_path / 't.csv'}", task="command")


# --- real data --------------------------------------------------------------------------------------------


def test_real_librispeech_and_ljspeech(shared_data: Path):
    libri = load_speech_set(f"folder:{shared_data / 'librispeech_84_121123'}")
    assert sum(libri.counts()[split] for split in SPLITS) == 6
    assert set(reasons(libri).values()) == {
        "does not exist"
    }  # the transcript of a chapter of which six clips were kept
    assert sum(getattr(libri, split).seconds.sum() for split in SPLITS) == pytest.approx(47, abs=1)
    assert "only 1 speaker(s) ('84')" in notes_of(libri)
    lj = load_speech_set(f"csv:{shared_data / 'ljspeech_8' / 'metadata.csv'}")
    assert sum(lj.counts()[split] for split in SPLITS) == 8 and not lj.skipped


def test_real_spoken_digits(shared_data: Path, tmp_path: Path):
    with tarfile.open(shared_data / "fsdd" / "recordings.tar") as archive:
        chosen = [member for member in archive.getmembers() if member.name.endswith(("_0.wav", "_7.wav"))]
        archive.extractall(tmp_path, chosen, filter="data")
    with open(shared_data / "fsdd" / "split.csv") as file:
        lines = [line for line in csv.DictReader(file) if line["index"] in ("0", "7")]
    data = write_table(tmp_path / "split.csv", lines)
    given = load_speech_set(data, task="commands", columns=SpeechColumns(label="digit"))
    assert given.class_names == tuple("0123456789") and len(given.test) == 50
    assert "5 of 5 speakers of the test split are in training too" in notes_of(given)
    open_split = write_table(tmp_path / "t.csv", [{k: v for k, v in line.items() if k != "split"} for line in lines])
    carved = load_speech_set(open_split, task="commands", columns=SpeechColumns(label="digit"))
    assert carved.counts() == {"train": 60, "val": 20, "test": 20, "skipped": 0}
    assert_apart(carved)
