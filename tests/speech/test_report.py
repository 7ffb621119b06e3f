"""The report and the model card of a speech recogniser: complete, safe to open, and with players."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from common import reporting
from common.classification import results as classification
from common.results import Outcome
from common.speech import report, results
from common.speech.audio import playback
from common.speech.dataset import SpeechExamples, SpeechSet
from common.speech.results import Baseline
from tests.elements import Elements

EVIL = "<script>alert(1)</script>"
PROOF = {
    "examples": 5, "agreement": 1.0, "max_abs_diff": 2.4e-6, "ops_outside_tf_serving": [], "tolerance": 1e-4,
    "passed": True,
}  # fmt: skip
CARD = {"spec": "bundled:wav2vec_mini", "licence": "Apache-2.0", "origin": "this project", "data": "x"}
TITLES = {"frozen": "Frozen source, trained head", "scratch": "From scratch"}
HISTORY = [
    {"stage": "head", "epoch": 1, "loss": 3.0, "val_loss": 2.5, "val_wer": 1.0},
    {"stage": "finetune", "epoch": 1, "loss": 0.9, "val_loss": 1.1, "val_wer": 0.4},
]
TEXTS = ["turn the light on", "قم بتشغيل الضوء", "play music", "what time is it", "stop"]
SAID = ["turn light an", "قم بتشغيل", "play music", "", "stop it now please"]
CONFIDENCES = np.array([0.7, 0.6, 0.99, 0.2, 0.9], np.float32)
SPEAKERS = ["ann", "ann", "bo", "", "bo"]
ENDED = "stopped at a plateau after 9 epochs"


@dataclass(frozen=True)
class Config:
    out: str
    data: str = "folder:/speech"
    seed: int = 7


def sounds(elements: Elements) -> dict[str, np.ndarray]:
    """Return the samples that each player holds, int16, by the name of its file."""
    return {one["title"]: samples_of(one["src"]) for one in elements.all("audio")}


def samples_of(uri: str) -> np.ndarray:
    assert re.match("data:audio/(flac|wav);base64,", uri)
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(uri.split(",")[1], validate=True)), dtype="int16")
    assert rate == 16_000
    return samples


def examples(folder: Path, names=("a.wav", "b.wav", "c.wav", "d.wav", "e.wav"), **changes) -> SpeechExamples:
    """Tones, each 0.1 s longer than the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    seconds = [0.3 + 0.1 * number for number in range(len(names))]
    for number, name in enumerate(names):
        tone = 0.3 * np.sin(np.arange(round(seconds[number] * 16_000)) * 0.02 * (number + 1))
        soundfile.write(folder / name, tone, 16_000, subtype="PCM_16")
    given = {"texts": TEXTS, "speakers": SPEAKERS, "labels": [0] * len(names)} | changes
    return SpeechExamples(
        np.array([str(folder / name) for name in names]), np.array(given["texts"], dtype=object),
        np.array(given["labels"], np.int64), np.array(given["speakers"], dtype=object), np.array(seconds),
    )  # fmt: skip


def data_of(test: SpeechExamples, **more) -> SpeechSet:
    return SpeechSet("folder:/speech", test, test, test, **more)


def conclude(tmp_path: Path, **changes) -> dict:
    data = changes.pop("data", None) or data_of(examples(tmp_path / "clips"))
    outcome = Outcome(
        HISTORY, {"total": 95.0, "head": 4.0, "finetune": 60.0}, {"total": 1234567}, changes.pop("source_card", CARD),
        changes.pop("proof", PROOF), {"saved_model_mb": 3.0},
    )  # fmt: skip
    arguments = dict(
        references=TEXTS, hypotheses=SAID, confidences=CONFIDENCES, decoders={"beam_lm": TEXTS},
        baselines={"frozen": Baseline(SAID, 3.25), "scratch": Baseline([""] * 5, 60.0, ENDED)}, titles=TITLES,
    )  # fmt: skip
    return results.conclude("speech_wav2vec", Config(str(tmp_path / "run")), data, outcome, **arguments | changes)


def read(tmp_path: Path) -> tuple[str, Elements]:
    html = (tmp_path / "run" / "report.html").read_text("utf-8")
    return html, Elements(html)


def test_a_run_ends_with_all_its_files(tmp_path, capsys):
    metrics = conclude(tmp_path)
    out = tmp_path / "run"
    assert json.loads((out / "metrics.json").read_text("utf-8")) == metrics
    assert {"recipe", "test", "decoders", "baselines", "seconds", "counts", "parameters", "proof", "export",
            "peak_memory_mb", "source", "data", "seed", "versions", "by_confidence"} <= set(metrics)  # fmt: skip
    test = metrics["test"]
    # Left out: the, Arabic for light, four words; taken: on; added: it now please.
    assert (test["deletions"], test["substitutions"], test["insertions"], test["words"]) == (6, 1, 3, 14)
    assert test["wer"] == 10 / 14 and test["wer_ci95"][0] <= test["wer"] <= test["wer_ci95"][1]
    assert [row["speaker"] for row in test["per_speaker"]] == ["bo", "ann"]
    assert metrics["decoders"]["beam_lm"]["wer"] == 0.0 and {"wer", "cer"} <= set(metrics["decoders"]["beam_lm"])
    assert {"wer", "wer_ci95", "cer", "seconds"} <= set(metrics["baselines"]["scratch"])
    assert metrics["baselines"]["scratch"]["ending"] == ENDED and "ending" not in metrics["baselines"]["frozen"]
    assert ENDED in (out / "report.html").read_text("utf-8")
    assert "The intervals resample the clips of the test split." in (out / "report.html").read_text("utf-8")
    assert "other speakers, other kinds of data" in (out / "model_card.md").read_text("utf-8")
    assert test["ci95_over"] == metrics["baselines"]["scratch"]["ci95_over"] == "clips"  # one speaker is unknown
    assert metrics["baselines"]["scratch"]["wer"] == 1.0 and metrics["baselines"]["frozen"]["seconds"] == 3.25
    assert metrics["counts"] == {"train": 5, "val": 5, "test": 5, "skipped": 0}
    assert (out / "history.csv").read_text().startswith("stage,epoch,loss,val_loss,val_wer")
    assert sorted(path.name for path in out.iterdir()) == [
        "history.csv",
        "metrics.json",
        "model_card.md",
        "predictions.csv",
        "report.html",
    ]
    printed = capsys.readouterr().out
    for text in (
        "from scratch",
        "frozen source",
        "result",
        "beam search with",
        "Proved: the SavedModel",
        "report.html",
    ):
        assert text in printed
    assert f"{'result':36}0.714 (" in printed and "Fine-tuning" not in printed


def test_report_needs_nothing_outside_itself_and_shows_the_parts_in_order(tmp_path):
    test = examples(tmp_path / "clips")
    conclude(tmp_path, data=data_of(test, skipped=(("broken.wav", "is cut off"),), notes=("Record more.",)))
    html, elements = read(tmp_path)
    for tag, attributes in elements.found:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
        for name in ("src", "href", "srcset", "data", "action", "background", "poster"):
            assert str(attributes.get(name, "data:")).startswith("data:"), (tag, attributes)
    assert not re.search(r"url\(|@import|https?://", html)
    assert "default-src 'none'" in html and "media-src data:" in html  # else browsers refuse to play
    parts = ["Result on 5 test clips (0.0 minutes)", "Exported model", "beam search with a language model",
             "Frozen source, trained head", "From scratch", "Findings", "Record more.", "Proved:", "Learning curves",
             "Clips with the highest error rates", "4 of 5 test clips have at least one error",
             "Some clips without errors", "Most frequent errors", "Error rates per speaker",
             "2 speakers, the hardest first", "Choosing a confidence threshold",
             "Skipped files", "is cut off", "Run details", "Settings"]  # fmt: skip
    places = [elements.text.index(part) for part in parts]
    assert places == sorted(places)
    for text in ("71.4 %", "100.0 %", "14 words of the transcripts", "1 min 4 s", "the same model", "1,234,567"):
        assert text in elements.text, text


def test_sounds_are_those_of_the_files_worst_first(tmp_path):
    test = examples(tmp_path / "clips")
    conclude(tmp_path, data=data_of(test))
    played = sounds(read(tmp_path)[1])
    # 3 errors on 1 word, 4 on 4, 2 on 4, 1 on 3; then the one without an error.
    assert list(played) == ["e.wav", "d.wav", "a.wav", "b.wav", "c.wav"]
    for path in test.paths:
        stored, _ = soundfile.read(path, dtype="int16")
        heard = played[Path(path).name]
        assert len(heard) == len(stored) and np.abs(heard.astype(int) - stored).max() <= 1 + abs(stored.mean())


def test_words_that_differ_are_marked_and_their_order_is_kept(tmp_path):
    conclude(tmp_path)
    html, _ = read(tmp_path)
    assert '<dd dir="auto">turn <del>the</del> light <mark>on</mark>' in html
    assert '<dd dir="auto">turn light <mark>an</mark>' in html
    assert '<dd dir="auto">stop <ins>it</ins> <ins>now</ins> <ins>please</ins>' in html
    assert '<dd dir="auto">قم بتشغيل <del>الضوء</del>' in html  # dir="auto" reads it from the right
    assert "(nothing)" in html and html.count('<dd dir="auto">play music') == 1  # right: shown once


def test_texts_without_spaces_are_marked_by_character(tmp_path):
    texts = ["你好世界", "早上好", "再见", "谢谢你", "好"]
    said = ["你好事界", "早上好", "再见", "谢谢", "好"]
    conclude(tmp_path, references=texts, hypotheses=said, decoders={}, baselines={})
    html, elements = read(tmp_path)
    assert '<dd dir="auto">你好<mark>世</mark>界' in html and '<dd dir="auto">谢谢<del>你</del>' in html
    assert "Baselines: not measured" in elements.text


def test_names_and_texts_of_users_are_escaped(tmp_path):
    names = ("<img src=x onerror=alert(2)>.wav", '"><script>x.wav', "é.wav", "d.wav", "e.wav")
    texts, said = [EVIL + " a", *TEXTS[1:]], [f"{EVIL} 'b\"", EVIL, *SAID[2:]]
    test = examples(tmp_path / "clips", names, texts=texts, speakers=[EVIL, "caf\udce9", "", "", ""])
    data = data_of(test, skipped=(("caf\udce9", '"><script>'),), notes=(EVIL,))
    conclude(tmp_path, data=data, references=texts, hypotheses=said, decoders={EVIL: said},
             baselines={EVIL: Baseline(said, 1.0)}, titles={})  # fmt: skip
    html, elements = read(tmp_path)
    assert "<script" not in html and EVIL in elements.text and "onerror=alert(2)" in elements.text
    assert "onerror" not in {name for _, attributes in elements.found for name in attributes}
    assert len(sounds(elements)) == 5
    card = (tmp_path / "run" / "model_card.md").read_text("utf-8")
    assert "<script" not in card and "&lt;script&gt;" in card


def test_sounds_that_are_gone_are_said_and_the_texts_stay(tmp_path):
    test = examples(tmp_path / "clips")
    Path(test.paths[0]).unlink()
    Path(test.paths[4]).write_bytes(b"not a sound")
    conclude(tmp_path, data=data_of(test))
    html, elements = read(tmp_path)
    assert list(sounds(elements)) == ["d.wav", "b.wav", "c.wav"]
    assert "The file does not exist." in elements.text and "cannot be decoded" in elements.text
    assert "turn <del>the</del>" in html


@pytest.mark.slow
def test_size_stays_bounded_for_many_long_clips(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.3, 20 * 16_000)
    soundfile.write(tmp_path / "noise.flac", noise, 16_000)
    count = 400
    texts = [f"word {number} " + "and so on " * 300 for number in range(count)]
    said = [f"ward {number}" for number in range(count)]
    many = SpeechExamples(
        np.array([str(tmp_path / "noise.flac")] * count), np.array(texts, dtype=object), np.zeros(count, np.int64),
        np.array([f"speaker {number}" for number in range(count)], dtype=object), np.full(count, 20.0),
    )  # fmt: skip
    skipped = tuple((f"/clips/{number}.wav", "is cut off " * 99) for number in range(10_000))
    metrics = {
        "test": {"per_speaker": [{"speaker": f"s{n}", "clips": 1, "words": 9, "wer": 1.0} for n in range(count)]}
    }
    path = report.write_report(
        tmp_path / "run", title="x", metrics=metrics, config={}, history=[], examples=many, references=texts,
        hypotheses=said, confidences=np.linspace(0, 1, count), skipped=skipped, sentences=[],
        titles={},
    )  # fmt: skip
    assert path.stat().st_size < playback.MAX_CHARACTERS + 500_000
    _, elements = read(tmp_path)
    found = [one["src"] for one in elements.all("audio")]
    assert 3 <= len(found) <= report.MAX_WORST
    assert all(len(samples_of(uri)) == playback.MAX_SECONDS * 16_000 for uri in found)
    for text in (
        "Only the first 15 s can be played.",
        "would be too large",
        "and 350 more, in metrics.json",
        "and 9,950 more",
    ):
        assert text in elements.text


def test_a_failed_proof_is_red(tmp_path, capsys):
    conclude(tmp_path, proof=PROOF | {"agreement": 0.8, "passed": False})
    html, elements = read(tmp_path)
    assert 'class="proof bad"' in html and "Texts identical to the evaluation: 80.0 %" in elements.text
    assert "THE PROOF FAILED" in capsys.readouterr().out
    assert "Not proved" in (tmp_path / "run" / "model_card.md").read_text("utf-8")


@pytest.mark.parametrize("how", ["absent", "null"])
def test_missing_measurements_are_said_and_never_crash(tmp_path, how, monkeypatch):
    monkeypatch.setattr(reporting, "png_of_figure", lambda figure: "data:image/png;base64,")
    metrics = conclude(tmp_path)
    test = examples(tmp_path / "clips")
    for gone in [*metrics, "everything", *(f"test.{key}" for key in metrics["test"])]:
        less = copy.deepcopy(metrics)
        owner = less["test"] if gone.startswith("test.") else less
        for key in [*metrics] if gone == "everything" else [gone.removeprefix("test.")]:
            del owner[key]
            if how == "null":
                owner[key] = None
        told = dict(title="x", metrics=less, config={}, sentences=["x"], titles=TITLES)
        report.write_report(
            tmp_path / "run", history=[], examples=test, references=TEXTS, hypotheses=SAID,
            confidences=CONFIDENCES, skipped=[("a", "b")], **told,
        )  # fmt: skip
        card = report.write_model_card(tmp_path / "run", source_card={}, **told).read_text("utf-8")
        html, elements = read(tmp_path)
        assert "not measured" in elements.text.lower() and "None" not in card, gone
        assert "None" not in elements.text.replace("None.", ""), gone
        if gone in ("proof", "everything"):
            assert 'class="proof bad"' in html and "Not proved" in card
        if gone in ("baselines", "everything"):
            assert "Baselines: not measured" in elements.text and "Baselines: not measured" in card


def test_all_right_all_wrong_and_confidences_that_say_nothing(tmp_path):
    metrics = conclude(tmp_path, hypotheses=TEXTS, confidences=np.full(5, np.nan, np.float32))
    html, elements = read(tmp_path)
    assert "0 of 5 test clips have at least one error" in elements.text and "No word errors." in elements.text
    assert len(metrics["by_confidence"]) == 1 and "WER of the most confident" not in html  # one point is no curve
    assert len(sounds(elements)) == report.MAX_RIGHT and "confidence not measured" in elements.text
    conclude(tmp_path, hypotheses=[""] * 5)
    assert "The output is empty for 5 of 5 test clips." in read(tmp_path)[1].text


def test_a_single_clip_has_no_interval_and_says_so(tmp_path, capsys):
    one = examples(tmp_path / "clips", ("a.wav",), texts=["stop"], speakers=[""])
    conclude(tmp_path, data=data_of(one), references=["stop"], hypotheses=["stop"], decoders={},
             confidences=np.ones(1, np.float32), baselines={"frozen": Baseline(["go"], 1.0)})  # fmt: skip
    elements = read(tmp_path)[1]
    assert "interval not measured" in elements.text and "the speakers are unknown" in elements.text
    assert "(not measured)" in capsys.readouterr().out
    assert "| 0.0 % | not measured |" in (tmp_path / "run" / "model_card.md").read_text("utf-8")


@pytest.mark.parametrize("what", ["references", "hypotheses", "confidences"])
def test_inputs_that_do_not_belong_together_are_refused(tmp_path, what):
    given = {"references": TEXTS, "hypotheses": SAID, "confidences": CONFIDENCES}
    with pytest.raises(ValueError, match=f"each of the 5 test clips .* 4 {what.replace('references', 'transcripts')}"
                       if what != "hypotheses" else "4 outputs"):  # fmt: skip
        conclude(tmp_path, **{what: given[what][:4]})
    assert not (tmp_path / "run").exists()


def test_rounding_makes_no_flawless_model(tmp_path):
    assert reporting._percent(0.0002) == "< 0.1 %" and reporting._percent(0) == "0.0 %"


def test_card_has_front_matter_results_and_the_folder_that_is_there(tmp_path):
    (tmp_path / "run" / "serving" / "my voice" / "10").mkdir(parents=True)
    conclude(tmp_path, source_card=CARD | {"licence": 'mine" \n---\nevil: "yes'})
    card = (tmp_path / "run" / "model_card.md").read_text("utf-8")
    front = yaml.safe_load(card.split("\n---\n")[0])
    assert front["license"] == 'mine" \n---\nevil: "yes'
    assert front["pipeline_tag"] == "automatic-speech-recognition" and front["metrics"] == ["wer", "cer"]
    assert (
        "serving/my voice/10" in card and "| Exported model | 71.4 % |" in card and "| From scratch | 100.0 %" in card
    )


# --- commands: clips with labels --------------------------------------------------------------------------


def test_commands_end_as_classification_and_the_surest_mistakes_can_be_played(tmp_path):
    labels, names = [0, 1, 0, 1, 0], ("no", EVIL)
    test = examples(tmp_path / "clips", ("<b>.wav", "b.wav", "c.wav", "d.wav", "e.wav"), labels=labels)
    Path(test.paths[3]).unlink()
    data = data_of(test, class_names=names)
    wrong = np.array([0.7, 0.2, 0.9, 0.95, 0.1])  # probability of the other class
    probabilities = np.where(np.eye(2)[labels] == 1, 1 - wrong[:, None], wrong[:, None]).astype("float32")
    metrics = classification.conclude(
        "speech_commands", Config(str(tmp_path / "run")), data, Outcome([], {"total": 1.0}, {}, CARD, PROOF),
        exported=0, probabilities={0: probabilities}, baselines={"frozen": ({0: probabilities}, 1.0)}, titles=TITLES,
        what="clips", preview=playback.players(test.paths),
    )  # fmt: skip
    assert metrics["test"]["accuracy"] == 0.4
    html, elements = read(tmp_path)
    assert list(sounds(elements)) == ["c.wav", "<b>.wav"] and "media-src data:" in html
    assert len(sounds(elements)["c.wav"]) == 8_000
    assert (
        "3 of 5 test clips have a wrong prediction" in elements.text
        and "d.wav · The file does not exist." in elements.text
    )
    assert "<script" not in html and EVIL in elements.text
