"""Error rates of transcripts: against counting by hand, and against the plainest edit distance there is."""

from __future__ import annotations

import numpy as np
import pytest

from common.speech.metrics import (
    UNITS,
    _interval,
    align,
    confidence_table,
    confusions,
    count_errors,
    error_rates,
    findings,
    paired_gain,
    transcription_metrics,
)

REFERENCES = ["the cat sat", "a dog", "good morning to you"]
HYPOTHESES = ["the bat sat down", "", "good morning to you"]
# By hand: cat/bat and "down" added; both words left out; nothing.
WORD_ERRORS, WORDS = [2, 2, 0], [3, 2, 4]
CHARACTER_ERRORS, CHARACTERS = [1 + 5, 5, 0], [11, 5, 19]


def distance(one, other) -> int:
    """Edit distance by its definition (Wagner and Fischer), of strings or lists."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def random_texts(number: int, seed: int, fewest: int = 1) -> list[str]:
    rng = np.random.default_rng(seed)
    words = ["a", "ab", "ba", "é", "نمل", "abba", "b"]
    return [" ".join(rng.choice(words, rng.integers(fewest, 9))) for _ in range(number)]


def test_rates_equal_those_counted_by_hand():
    metrics = transcription_metrics(REFERENCES, HYPOTHESES, ["x", "", "x"])
    assert metrics["wer"] == sum(WORD_ERRORS) / sum(WORDS) and metrics["words"] == 9
    assert metrics["cer"] == sum(CHARACTER_ERRORS) / sum(CHARACTERS) and metrics["characters"] == 35
    assert metrics["sentence_accuracy"] == 1 / 3
    assert (metrics["substitutions"], metrics["deletions"], metrics["insertions"]) == (1, 2, 1)
    assert metrics["per_speaker"] == [{"speaker": "x", "clips": 2, "words": 7, "wer": 2 / 7, "cer": 6 / 30}]
    assert transcription_metrics(REFERENCES, HYPOTHESES)["per_speaker"] == []


def test_error_rates_are_those_of_the_metrics():
    found, metrics = error_rates(REFERENCES, HYPOTHESES), transcription_metrics(REFERENCES, HYPOTHESES)
    assert found == {"wer": sum(WORD_ERRORS) / sum(WORDS), "cer": sum(CHARACTER_ERRORS) / sum(CHARACTERS)}
    assert found == {name: metrics[name] for name in found}
    assert error_rates(REFERENCES, REFERENCES) == {"wer": 0, "cer": 0}


@pytest.mark.parametrize("unit", UNITS)
def test_errors_equal_the_edit_distance_and_steps_lead_from_one_text_to_the_other(unit):
    references, hypotheses = random_texts(300, 0), random_texts(300, 1, fewest=0)
    gap, split = (" ", str.split) if unit == "word" else ("", list)
    errors, totals = count_errors(references, hypotheses, unit)
    assert errors.dtype == totals.dtype == np.int64
    for i, edits in enumerate(align(references, hypotheses, unit)):
        reference, hypothesis = references[i], hypotheses[i]
        assert errors[i] == distance(split(reference), split(hypothesis)) and totals[i] == len(split(reference))
        assert gap.join(edit.reference for edit in edits if edit.kind != "insertion") == reference
        assert gap.join(edit.hypothesis for edit in edits if edit.kind != "deletion") == hypothesis
        assert all((edit.kind == "equal") == (edit.reference == edit.hypothesis) for edit in edits)


def test_intervals_hold_the_rate_and_depend_on_the_seed_alone():
    references = random_texts(200, 0)
    hypotheses = [text if i % 3 else "b" for i, text in enumerate(references)]
    first = transcription_metrics(references, hypotheses)
    assert first == transcription_metrics(references, hypotheses, seed=0)
    assert first["wer_ci95"] != transcription_metrics(references, hypotheses, seed=1)["wer_ci95"]
    for name in ("wer", "cer"):
        low, high = first[f"{name}_ci95"]
        assert low < first[name] < high
    # Of clips of one word each, the rate is a share: its standard error is that of a coin.
    words, said = ["a"] * 400, ["a"] * 320 + ["b"] * 80
    low, high = transcription_metrics(words, said)["wer_ci95"]
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(0.2 * 0.8 / 400), rel=0.15)


def test_intervals_are_over_speakers_where_they_are_known():
    """All clips of a speaker are alike, so a hundred of them are one observation."""
    rng = np.random.default_rng(0)
    speakers = [f"speaker {number // 50}" for number in range(1000)]
    good = dict(zip(sorted(set(speakers)), rng.random(20) < 0.5, strict=True))
    said = ["a" if good[speaker] else "b" for speaker in speakers]
    by_speaker = transcription_metrics(["a"] * 1000, said, speakers)
    by_clip = transcription_metrics(["a"] * 1000, said)
    assert (by_speaker["ci95_over"], by_clip["ci95_over"]) == ("speakers", "clips")
    widths = [np.diff(one["wer_ci95"])[0] for one in (by_speaker, by_clip)]
    rate = by_clip["wer"]
    for width, units in zip(widths, (20, 1000), strict=True):  # the standard error of a coin, of so many throws
        assert width / 2 == pytest.approx(1.96 * np.sqrt(rate * (1 - rate) / units), rel=0.2)
    # Paired: the same speakers for both, so a gain that all of them share is certain, one of some speakers is not.
    worse = ["b" if number % 5 == 0 else text for number, text in enumerate(said)]
    assert paired_gain(["a"] * 1000, said, worse, speakers)[1] > 0
    perfect = paired_gain(["a"] * 1000, ["a"] * 1000, said, speakers)
    assert perfect[2] - perfect[1] == pytest.approx(widths[0])
    assert transcription_metrics(["a"] * 3, ["a"] * 3, ["x", "", "y"])["ci95_over"] == "clips"


@pytest.mark.parametrize("count", [3, 5, 9])
def test_few_speakers_declare_no_winner_by_chance(count):
    """Without a true difference, at most about 5 % of intervals may leave out zero; a bootstrap had 26 % with three."""
    rng, speakers = np.random.default_rng(0), [str(number // 10) for number in range(10 * count)]
    words, wrong = np.full(10 * count, 8), 0
    for _ in range(400):
        gain = np.repeat(rng.normal(0, 2, count), 10) + rng.normal(0, 1, 10 * count)  # speakers differ, and their clips
        low, high = _interval(gain, words, speakers, 0)
        wrong += low > 0 or high < 0
    assert wrong / 400 < 0.08


@pytest.mark.parametrize(
    ("speakers", "told"),
    [
        (
            [f"speaker {number % 12}" for number in range(40)],
            "resample the 12 speakers of the test split with all their",
        ),
        (["one"] * 40, "hold for this speaker only"),
        (["one"] * 39 + [""], "speakers of the test clips are unknown: the intervals resample clips"),
        ([], "speakers of the test clips are unknown: the intervals resample clips"),
    ],
)
def test_what_the_intervals_cover_is_told(speakers, told):
    texts = ["one two"] * 40
    said = findings(texts, texts, {}, {}, transcription_metrics(texts, texts, speakers), speakers)
    assert told in said[-1] and ("few" in said[-1]) == (len(set(speakers)) == 2 and "" not in speakers)


def test_the_best_network_from_scratch_is_compared_with():
    references, good = wrong_in(0.1, 1)
    _, middle = wrong_in(0.3, 2)
    _, bad = wrong_in(0.6, 3)
    test, ended = transcription_metrics(references, good), {"spectrogram": "stopped at a plateau after 80 epochs"}
    told = findings(references, good, {"scratch": bad, "spectrogram": middle}, {}, test, (), ended)
    assert told[0].startswith("The pretrained source gains") and "points of WER for this seed" in told[0]
    assert told[0].endswith("over the small log-mel network trained from scratch.")
    assert told[1].startswith("Trained from scratch, the small log-mel network has a WER of")
    assert "% and stopped at a plateau after 80 epochs; the same network has a WER of" in told[1]
    assert told[1].endswith(" %. The comparison is with the better one.")
    assert sum("gains" in sentence for sentence in told) == 1
    worse = findings(
        references, bad, {"scratch": good, "spectrogram": middle}, {}, transcription_metrics(references, bad)
    )
    assert worse[0].startswith("Negative transfer: the same network trained from scratch is better by")


def test_long_clips_count_more():
    metrics = transcription_metrics(["a " * 98 + "a", "b"], ["a " * 98 + "a", "c"])
    assert metrics["wer"] == 1 / 100 and metrics["sentence_accuracy"] == 0.5


def test_more_is_written_than_was_said():
    assert transcription_metrics(["a", "a"], ["b c d", "b c d"])["wer"] == 3


def test_a_single_clip_has_no_interval_and_allows_no_comparison():
    metrics = transcription_metrics(["a b"], ["a c"])
    assert metrics["wer"] == 0.5 and metrics["wer_ci95"] is None and metrics["cer_ci95"] is None
    assert paired_gain(["a b"], ["a c"], ["a b"]) is None
    test = transcription_metrics(["a b"], ["a c"])
    said = " ".join(findings(["a b"], ["a c"], {"frozen": ["a b"]}, {"beam": ["a b"]}, test))
    assert said.count("A single test clip allows no comparison") == 2 and "only 1 clip(s)" in said


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [
        (["a", " ", ""], ["a", "a", "a"], "2 of 3 transcripts are empty, the first is number 1"),
        (["a", "b"], ["a"], r"2 transcript\(s\) and 1 output"),
        ([], [], r"0 transcript\(s\)"),
    ],
)
def test_what_cannot_be_counted_is_refused(references, hypotheses, message):
    for measure in (transcription_metrics, confusions, count_errors):
        with pytest.raises(ValueError, match=message):
            measure(references, hypotheses)
    with pytest.raises(ValueError, match=message):
        paired_gain(references, hypotheses, hypotheses)


def test_arguments_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="each of the 3 clips needs a speaker, or none does; received 1"):
        transcription_metrics(REFERENCES, HYPOTHESES, ["x"])
    with pytest.raises(ValueError, match="each of the 3 clips needs a confidence; received 2"):
        confidence_table(REFERENCES, HYPOTHESES, np.ones(2))
    with pytest.raises(ValueError, match="word, character; received 'phone'"):
        confusions(REFERENCES, HYPOTHESES, unit="phone")


def test_speakers_are_told_the_worst_first_and_can_be_printed():
    metrics = transcription_metrics(["a", "b", "c"], ["a", "x", "c"], ["one", "caf\udce9", ""])
    assert [row["speaker"] for row in metrics["per_speaker"]] == ["caf\ufffd", "one"]
    assert [row["wer"] for row in metrics["per_speaker"]] == [1.0, 0.0]


def test_confusions_are_counted_one_word_or_character_at_a_time():
    references, hypotheses = ["two words here", "two words", "so"], ["to birds here", "to words now", "so"]
    assert confusions(references, hypotheses) == [
        {"kind": "substitution", "reference": "two", "hypothesis": "to", "count": 2},
        {"kind": "insertion", "reference": "", "hypothesis": "now", "count": 1},
        {"kind": "substitution", "reference": "words", "hypothesis": "birds", "count": 1},
    ]
    assert len(confusions(references, hypotheses, most=1)) == 1
    assert confusions(["a cab"], ["a ab"], unit="character") == [
        {"kind": "deletion", "reference": "c", "hypothesis": "", "count": 1}
    ]
    assert confusions(["a b"], ["ab"], unit="character")[0]["reference"] == " "


def test_a_gain_is_paired_clip_by_clip():
    references = random_texts(200, 0)
    ours = ["zz" if i % 4 == 0 else text for i, text in enumerate(references)]
    theirs = ["zz" if i % 4 == 0 or i % 9 == 0 else text for i, text in enumerate(references)]
    gain, low, high = paired_gain(references, ours, theirs)
    rates = [transcription_metrics(references, one)["wer"] for one in (ours, theirs)]
    assert gain == pytest.approx(rates[1] - rates[0]) and 0 < low < gain < high
    assert paired_gain(references, theirs, ours)[0] == pytest.approx(-gain)
    # Both stumble over the same clips, so the difference is surer than either rate.
    alone = transcription_metrics(references, ours)["wer_ci95"]
    assert high - low < alone[1] - alone[0]
    assert paired_gain(references, ours, ours) == (0.0, 0.0, 0.0)


def test_confidence_table_says_what_remains():
    references = ["a b"] * 10
    hypotheses = ["a b"] * 5 + ["a c"] * 5
    confidences = np.array([0.9, 0.9, 0.9, 0.9, 0.8, 0.5, 0.5, 0.5, np.nan, 0.1234567], np.float32)
    rows = confidence_table(references, hypotheses, confidences)
    assert rows[0] == {"threshold": 0.0, "clips": 10, "share": 1.0, "wer": 0.25, "sentence_accuracy": 0.5}
    by_clips = {row["clips"]: row for row in rows}
    assert sorted(by_clips, reverse=True) == [row["clips"] for row in rows] == [10, 9, 8, 5, 4]  # equal ones together
    assert by_clips[5]["wer"] == 0.0 and by_clips[8]["wer"] == 3 / 16
    for row in rows:  # the threshold that is told keeps what is told
        assert (np.nan_to_num(confidences) >= row["threshold"]).sum() == row["clips"]


# --- sentences --------------------------------------------------------------------------------------------


def wrong_in(share: float, seed: int, instead: str = "zz") -> tuple[list[str], list[str]]:
    references = random_texts(200, 0, fewest=3)
    wrong = np.random.default_rng(seed).random(200) < share
    return references, [instead if one else text for one, text in zip(wrong, references, strict=True)]


def first(name: str, references, ours, theirs) -> str:
    return findings(references, ours, {name: theirs}, {}, transcription_metrics(references, ours))[0]


def test_baselines_are_judged_by_their_intervals():
    references, good = wrong_in(0.1, 1)
    _, bad = wrong_in(0.5, 2)
    _, near = wrong_in(0.1, 3)
    assert first("scratch", references, bad, good).startswith("Negative transfer: the same network trained from")
    assert first("scratch", references, good, bad).startswith("The pretrained source gains")
    assert first("frozen", references, good, bad).startswith("Fine-tuning gains")
    assert first("frozen", references, bad, good).startswith("Fine-tuning hurts: the frozen source")
    assert first("zero_shot", references, good, bad).startswith("Adaptation gains")
    assert first("zero_shot", references, bad, good).startswith(
        "Adaptation hurts: the source without adaptation is better"
    )
    assert first("other", references, bad, good).startswith("The baseline other is better by")
    assert "too close to call" in first("frozen", references, good, near)
    assert first("frozen", references, good, good).endswith("give exactly the same texts.")
    slightly = [*good[:-1], "zz"] if good[-1] != "zz" else [*good[:-1], references[-1]]
    better, worse = sorted([good, slightly], key=lambda one: transcription_metrics(references, one)["wer"])
    assert first("scratch", references, worse, better).startswith("The pretrained source does not help here")


def test_decoders_are_judged_too():
    references, good = wrong_in(0.1, 1)
    _, bad = wrong_in(0.5, 2)
    test = transcription_metrics(references, bad)
    said = findings(references, bad, {}, {"beam": bad, "beam_lm": good}, test)
    assert said[0].startswith("Decoding with beam search gives exactly the same texts")
    assert said[1].startswith("Decoding with beam search with a language model is better than the exported model")
    worse = findings(references, good, {}, {"mine": bad}, transcription_metrics(references, good))[0]
    assert worse.startswith("Decoding with mine is worse than the exported model")


@pytest.mark.parametrize(
    ("instead", "told"),
    [
        ("", "Most are deletions"),
        ("one two three x x", "Most are insertions"),
        ("zz zz zz", "Most are substitutions"),
    ],
)
def test_the_kind_of_mistakes_is_told(instead, told):
    references = ["one two three"] * 40
    said = [instead] * 10 + references[10:]
    sentences = findings(references, said, {}, {}, transcription_metrics(references, said))
    assert told in sentences[0]
    assert ("The output is empty for 10 of 40 test clips." in sentences) == (instead == "")
    assert not any("only" in sentence for sentence in sentences)


def test_no_mistakes_and_voices():
    references = ["one two three four"] * 40
    speakers = ["low"] * 20 + ["high"] * 20
    perfect = transcription_metrics(references, references, speakers)
    assert findings(references, references, {}, {}, perfect, speakers) == [
        "Every word of the test split is correct.",
        "The test split has 2 speakers, which are few: intervals are Student's, over the speakers.",
    ]
    said = ["one two three"] * 20 + references[20:]
    sentences = findings(references, said, {}, {}, transcription_metrics(references, said, speakers))
    assert "The hardest speaker is low: WER 25.0 % on 80 words; the easiest is high with 0.0 %." in sentences
    few = ["once"] * 1 + ["low"] * 39  # the error rate over four words is too uncertain
    assert "hardest speaker" not in " ".join(
        findings(references, said, {}, {}, transcription_metrics(references, said, few))
    )
