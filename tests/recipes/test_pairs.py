"""predictions.csv of a run, and two runs compared in pairs."""

import csv
import json

import numpy as np
import pytest

from common.results import write_predictions
from recipes.__main__ import main
from recipes.commands._pairs import describe_difference, paired_difference


def write_run(folder, wrong: set[int], count: int = 200, label: str = "ant", **more):
    """Write the predictions of a run that is wrong in these places."""
    folder.mkdir()
    errors = [int(place in wrong) for place in range(count)]
    answers = ["bee" if error else label for error in errors]
    examples = [f"photos/{place}.jpg" for place in range(count)]
    write_predictions(
        folder, example=examples, label=[label] * count, predicted=answers, errors=errors, confidence=[0.75] * count,
        **more,
    )  # fmt: skip
    return folder


def test_two_runs_are_compared_in_pairs(tmp_path):
    first, second = write_run(tmp_path / "a", set(range(60))), write_run(tmp_path / "b", set(range(30)))
    sentence = describe_difference(first, second)
    assert f"{second} against {first}, on the same 200 test examples: accuracy +15.0 points" in sentence
    low, high = (float(bound) for bound in sentence.split("interval ")[1].split(",")[0].split(" to "))
    # In pairs, since both are wrong in 30 places; two independent samples would show +-8.6 points.
    assert 8 < low < 12 and 18 < high < 22
    assert "accuracy -15.0 points" in describe_difference(second, first)


def test_few_differing_examples_prove_nothing(tmp_path):
    first, second = write_run(tmp_path / "a", {0, 1, 2}), write_run(tmp_path / "b", set())
    assert "accuracy +1.5 points (95 % interval +0.0 to" in describe_difference(first, second)  # p = 0.25
    assert "accuracy +0.0 points (95 % interval +0.0 to +0.0" in describe_difference(first, first)


def test_of_transcripts_words_are_counted_and_speakers_resampled(tmp_path):
    speakers, words = ["ann", "bob", "cem", "dan"] * 50, [4] * 200
    first = write_run(tmp_path / "a", set(range(0, 200, 4)), words=words, speaker=speakers)  # all of ann's
    second = write_run(tmp_path / "b", set(), words=words, speaker=speakers)
    sentence = describe_difference(first, second)
    assert "word error rate -6.2 points" in sentence and "over speakers" in sentence
    low, high = (float(bound) for bound in sentence.split("interval ")[1].split(",")[0].split(" to "))
    assert low < -20 and high > 10  # Student's: of four speakers, one alone makes the difference
    sure = paired_difference(np.array([-1.0, 0, 0, 0] * 50), np.full(200, 4.0))
    assert sure[2] < -0.03  # as if each clip were of another speaker
    assert paired_difference(np.array([-1.0]), np.array([4.0]))[1:] == (-1.0, 1.0)  # a single clip


def test_files_that_two_runs_wrote_are_the_same_examples(tmp_path):
    """Of demo:digits and tfds each run has its own images, in its own folder."""
    folders = tmp_path / "a", tmp_path / "b"
    for out in folders:
        out.mkdir()
        given = {"example": [str(out / "data" / "3" / "0.png")], "label": ["3"], "predicted": ["5"]}
        write_predictions(out, **given, errors=[1], confidence=[0.5])
    rows = [next(csv.DictReader((out / "predictions.csv").open())) for out in folders]
    assert [row["example"] for row in rows] == ["data/3/0.png"] * 2
    assert "on the same 1 test examples" in describe_difference(*folders)
    write_predictions(folders[1], **given | {"example": [f"{folders[1]}x/0.png"]}, errors=[1], confidence=[0.5])
    assert "tested on other examples" in describe_difference(*folders)  # beside the folder is not in it


def test_other_examples_are_not_compared(tmp_path):
    first, second = write_run(tmp_path / "a", {1}), write_run(tmp_path / "b", {1}, label="wasp")
    assert "tested on other examples" in describe_difference(first, second)
    (tmp_path / "before").mkdir()
    assert describe_difference(first, tmp_path / "before") == ""


@pytest.mark.parametrize("text", ["two\nlines", 'a "quoted" word', "x" * 200_000, "lone \ud800 surrogate", "=1+1"])
def test_any_text_is_kept(tmp_path, text):
    write_predictions(tmp_path, example=[text], label=["a"], predicted=["b"], errors=[True], confidence=[0.5])
    assert describe_difference(tmp_path, tmp_path).endswith("in pairs, over examples).")
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["errors"] == "1" and row["confidence"] == "0.500000"
    if "\ud800" not in text:
        assert row["example"] == text


def test_each_run_that_was_tested_on_other_data_is_told(tmp_path, capsys):
    for name, data, count in (("a", "demo", 200), ("before", "csv:other.csv", 90), ("c", "demo", 200)):
        run = tmp_path / name
        run.mkdir() if name == "before" else write_run(run, {1})
        metrics = {"recipe": "none", "data": data, "counts": {"test": count}, "test": {"accuracy": 0.5}}
        (run / "metrics.json").write_text(json.dumps(metrics))
        (run / "config.json").write_text(json.dumps({"data": data}))
    assert main(["compare", *(str(tmp_path / name) for name in ("a", "before", "c"))]) == 0
    said = capsys.readouterr().out
    assert "The runs were tested on different data" in said and f"{tmp_path / 'c'} against {tmp_path / 'a'}" in said
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "c")]) == 0
    assert "different data" not in capsys.readouterr().out
