"""The report and the card of a detector: complete, safe to open, and never better than what was measured."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from common import reporting
from common.detection import findings, report, report_images, results
from common.detection.dataset import BoxExamples, BoxSet, Note
from common.detection.drawing import colour_of
from common.detection.matching import match
from common.detection.metrics import Detections, evaluate
from common.results import Outcome
from tests.elements import Elements

NAMES = ("cat", "dog", "never")
CAT, DOG = 0, 1
HERE, THERE, FAR = (5, 5, 45, 45), (60, 5, 110, 55), (70, 60, 115, 88)
PROOF = {
    "examples": 4, "agreement": 1.0, "max_abs_diff": 2.4e-5, "ops_outside_tf_serving": [], "tolerance": 1e-3,
    "passed": True,
}  # fmt: skip
CARD = {"spec": "bundled:resnet_mini", "licence": "Apache-2.0", "origin": "this project", "data": "x"}
TITLES = {"frozen": "Frozen backbone, trained head", "scratch": "From scratch"}
HISTORY = [
    {"stage": "head", "epoch": 1, "loss": 0.7, "val_loss": 0.6, "val_ap50": 0.4},
    {"stage": "finetune", "epoch": 1, "loss": 0.3, "val_loss": 0.4, "val_ap50": 0.6},
]


@dataclass(frozen=True)
class Config:
    out: str
    data: str = "voc:/photos"
    seed: int = 7


def images(elements: Elements) -> list[str]:
    """Return file name and side of each drawn image, in their order."""
    return [one["alt"] for one in elements.all("img") if one["alt"].endswith((" as labelled", " as detected"))]


def examples(folder: Path, images: dict[str, list[tuple]], crowds: tuple[str, ...] = ()) -> BoxExamples:
    """Grey images of 120 x 90 pixels with (box, label); those named in `crowds` have crowds only."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in images:
        Image.new("RGB", (120, 90), (128, 128, 128)).save(folder / name)
    there = list(images.values())
    return BoxExamples(
        np.array([str(folder / name) for name in images], dtype=object),
        tuple(np.array([box for box, _ in one], "float32").reshape(-1, 4) for one in there),
        tuple(np.array([label for _, label in one], "int64") for one in there),
        tuple(np.full(len(one), name in crowds) for name, one in images.items()),
        np.tile(np.array([[90, 120]]), (len(there), 1)),
        np.ones(len(there), "int64"),
    )


def finds(*images: list[tuple]) -> Detections:
    return Detections(
        tuple(np.array([one[0] for one in image], "float32").reshape(-1, 4) for image in images),
        tuple(np.array([one[2] for one in image], "float32") for image in images),
        tuple(np.array([one[1] for one in image], "int64") for image in images),
    )


IMAGES = {
    "all missed.png": [(HERE, CAT), (FAR, DOG)],
    "alarm.png": [(HERE, CAT)],
    "renamed.png": [(THERE, DOG), (HERE, CAT)],
    "good.png": [(HERE, CAT)],
    "empty.png": [],
}
FOUND = (
    [],
    [(HERE, CAT, 0.9), (FAR, DOG, 0.97)],
    [(THERE, CAT, 0.6), (HERE, CAT, 0.9)],
    [(HERE, CAT, 0.55)],
    [(FAR, CAT, 0.05)],
)


def data_of(tmp_path: Path, **changes) -> BoxSet:
    test = examples(tmp_path / "images", IMAGES)
    return BoxSet("voc:/photos", NAMES, **{"train": test, "val": test, "test": test} | changes)


def conclude(tmp_path: Path, *, source_card: dict = CARD, **changes) -> dict:
    data = changes.pop("data", None) or data_of(tmp_path)
    outcome = Outcome(
        HISTORY, {"total": 95.0, "head": 4.0, "finetune": 60.0}, {"total": 1234567}, source_card, PROOF,
        {"saved_model_mb": 3.0},
    )  # fmt: skip
    arguments = dict(
        detections=finds(*FOUND), val_detections=finds(*FOUND),
        baselines={"frozen": (finds(*FOUND[:4], []), 3.25), "scratch": (finds(*[[]] * 5), 60.0)}, titles=TITLES,
    )  # fmt: skip
    config = Config(str(tmp_path / "run"))
    return results.conclude("object_detection", config, data, outcome, **arguments | changes)


def read(tmp_path: Path) -> tuple[str, Elements]:
    html = (tmp_path / "run" / "report.html").read_text("utf-8")
    return html, Elements(html)


def test_a_run_ends_with_all_its_files(tmp_path, capsys):
    metrics = conclude(tmp_path)
    out = tmp_path / "run"
    assert json.loads((out / "metrics.json").read_text("utf-8")) == metrics
    assert {"recipe", "test", "baselines", "seconds", "counts", "parameters", "proof", "peak_memory_mb", "source",
            "data", "seed", "versions", "threshold", "boxes", "export"} <= set(metrics)  # fmt: skip
    assert metrics["counts"] == {"train": 5, "val": 5, "test": 5, "skipped": 0} and metrics["boxes"]["test"] == 6
    test = metrics["test"]
    assert test["ap50_ci95"][0] <= test["ap50"] <= test["ap50_ci95"][1]
    assert test["per_class"][2] == {"class": "never", "ap50": None, "ap": None, "boxes": 0, "train_boxes": 0}
    assert metrics["baselines"]["scratch"]["ap50"] == 0.0 and metrics["baselines"]["frozen"]["seconds"] == 3.25
    assert (out / "history.csv").read_text().startswith("stage,epoch,loss,val_loss,val_ap50")
    assert (out / "model_card.md").exists()
    assert sorted(path.name for path in out.iterdir()) == [
        "history.csv",
        "metrics.json",
        "model_card.md",
        "report.html",
    ]
    printed = capsys.readouterr().out
    for text in ("from scratch", "frozen backbone", "result", "AP75", "Proved: the SavedModel", "report.html"):
        assert text in printed


def test_the_threshold_is_chosen_on_validation_and_told_of_the_test_part(tmp_path):
    data = data_of(tmp_path, val=examples(tmp_path / "val", {"a.png": [(HERE, CAT)]}))
    metrics = conclude(tmp_path, data=data, val_detections=finds([(HERE, CAT, 0.85), (FAR, CAT, 0.7)]))
    assert metrics["threshold"] == 0.85
    at = metrics["test"]["at_threshold"]
    assert (at["threshold"], at["recall"], at["false_alarms"]) == (0.85, 2 / 6, 1 / 5)
    assert "0.85 recommended" in read(tmp_path)[1].text


def test_report_needs_nothing_outside_itself_and_shows_the_parts_in_order(tmp_path):
    data = data_of(tmp_path, skipped=(("broken.jpg", "cut off"),), notes=(Note("boxes are tiny", 3, "flea.jpg"),))
    conclude(tmp_path, data=data)
    html, elements = read(tmp_path)
    for tag, attributes in elements.found:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
        for name in ("src", "href", "srcset", "data", "action", "background", "poster"):
            assert str(attributes.get(name, "data:")).startswith("data:"), (tag, attributes)
    assert not re.search(r"url\(|@import|https?://", html) and "default-src 'none'" in html
    parts = ["Result on 5 test images with 6 objects", "Exported model", "Frozen backbone", "From scratch",
             "Findings", "boxes are tiny", "Proved", "Recommended threshold", "Learning curves", "Results per class",
             "Precision and recall", "Results per object size", "Confusion matrix", "Most missed objects",
             "Most confident false positives", "chosen at random", "broken.jpg", "Run details", "Settings",
             "Versions"]  # fmt: skip
    positions = [elements.text.index(part) for part in parts]
    assert positions == sorted(positions)
    assert elements.text.count("Learning curves") == 1
    assert "not measured: no test objects" in elements.text  # the class `never`
    assert "1 min 4 s" in elements.text and 'class="proof good"' in html


def test_it_has_the_look_of_the_other_reports(tmp_path):
    conclude(tmp_path)
    page = (reporting.TEMPLATES / "page.html").read_text("utf-8")
    look = re.search(r"<style>.*?</style>", page, re.S)[0]
    assert ":root" in look and look in read(tmp_path)[0]


def test_worst_misses_come_first_then_the_most_confident_false_positives_each_image_once(tmp_path):
    assert conclude(tmp_path)["threshold"] == 0.55
    _, elements = read(tmp_path)
    shown = [alt.removesuffix(" as labelled") for alt in images(elements)[::2]]
    assert shown[:3] == ["all missed.png", "renamed.png", "alarm.png"]
    assert sorted(shown[3:]) == ["empty.png", "good.png"]  # by chance
    for text in (
        "2 of 5 images miss at least one object; shown are the 2 with the most misses.",
        "Missed 2 of 2: 1 cat, 1 dog. No false positives.",
        "Missed 1 of 2: 1 dog. 1 false positive: cat 0.60. Wrong class: 1 dog as cat.",
        "Found the only object. 1 false positive: dog 0.97.",
        "Found the only object. No false positives.",
        "No objects. No false positives.",
        "Boxes in the right place with the wrong class: 1.",
    ):
        assert text in elements.text, text


def test_images_that_cannot_be_read_any_more_are_left_out(tmp_path):
    data = data_of(tmp_path)
    Path(data.test.paths[0]).write_bytes(b"not an image")
    Path(data.test.paths[1]).unlink()
    conclude(tmp_path, data=data)
    _, elements = read(tmp_path)
    assert {alt.split(" as ")[0] for alt in images(elements)} == {"renamed.png", "good.png", "empty.png"}
    assert "2 of 5 images miss at least one object; shown are the 1 with" in elements.text


def coloured(pixels: np.ndarray, x: float, y: float, colour: tuple[int, int, int]) -> bool:
    """Return whether the colour is at or beside a place."""
    area = pixels[max(0, int(y) - 2) : int(y) + 3, max(0, int(x) - 2) : int(x) + 3]
    return bool((abs(area - np.array(colour)).max(axis=-1) < 70).any())


def test_boxes_stand_where_they_belong_and_only_mistakes_have_names(tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "jpeg_of_image", lambda image: np.asarray(image).astype(int))
    there = examples(tmp_path, {"a.png": [(HERE, CAT), (FAR, DOG)]})
    found = finds([(HERE, CAT, 0.9), (THERE, DOG, 0.8)])
    [matching] = match(there, found, 0.5)
    image = report_images._draw_image(there, found, matching, 0, NAMES, 0.5)
    labelled, detected = image["labelled"], image["detected"]
    assert labelled.shape == detected.shape == (360, 480, 3)
    for pixels in (labelled, detected):  # found: a thin line in both
        assert coloured(pixels, 4 * 5, 4 * 25, colour_of(CAT))
    assert coloured(labelled, 4 * 70, 4 * 75, colour_of(DOG)) and not coloured(detected, 4 * 70, 4 * 75, colour_of(DOG))
    assert coloured(detected, 4 * 60, 4 * 30, colour_of(DOG)) and not coloured(labelled, 4 * 60, 4 * 30, colour_of(DOG))
    filled = [int((abs(pixels - np.array(colour_of(CAT))).max(axis=-1) < 60).sum()) for pixels in (labelled, detected)]
    assert max(filled) < 4 * 200  # outlines of 160 pixels a side, and no name on a filled ground


def test_photos_that_lie_on_their_side_are_drawn_as_they_are_stored(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 120), (128, 128, 128)).save(tmp_path / "a.jpg", exif=exif)
    shown = BoxExamples(
        np.array([str(tmp_path / "a.jpg")], dtype=object), (np.array([[0, 0, 40, 20]], "float32"),),
        (np.array([DOG]),), (np.array([False]),), np.array([[60, 120]]), np.array([6]),
    )  # fmt: skip
    found = []
    monkeypatch.setattr(reporting, "jpeg_of_image", lambda image: found.append(np.asarray(image).astype(int)))
    conclude(tmp_path, data=data_of(tmp_path, test=shown), detections=finds([]), baselines={})
    pixels = found[0]
    left, top, right, bottom = shown.as_stored().boxes[0][0] * 4
    assert pixels.shape == (480, 240, 3)
    assert coloured(pixels, (left + right) / 2, bottom - 1, colour_of(DOG))
    assert coloured(pixels, left, (top + bottom) / 2, colour_of(DOG))


def test_crowds_are_grey_and_no_objects(tmp_path):
    test = examples(tmp_path / "images", {"crowd.png": [(HERE, CAT)], "a.png": [(HERE, CAT)]}, crowds=("crowd.png",))
    found = finds([(HERE, CAT, 0.9)], [(HERE, CAT, 0.9)])
    conclude(tmp_path, data=data_of(tmp_path, test=test), detections=found, baselines={})
    _, elements = read(tmp_path)
    assert "2 test images with 1 objects" in elements.text and "Grey ones are not judged" in elements.text
    assert "No objects. No false positives." in elements.text and "Baselines: not measured" in elements.text


def test_names_of_users_are_escaped_and_may_be_in_any_script(tmp_path):
    evil, foreign = "<script>alert(1)</script>", "蚂蚁 ñandú نمل"
    test = examples(tmp_path / "images", {"<img src=x onerror=alert(2)>.png": [(HERE, CAT), (FAR, DOG)], "é.png": []})
    skipped, notes = (("caf\udce9", '"><script>'),), (Note(f"{evil} is noted", 1, evil),)
    data = BoxSet("voc:x", (evil, foreign), test, test, test, skipped=skipped, notes=notes)
    nothing = finds([], [])
    conclude(tmp_path, data=data, detections=nothing, val_detections=nothing, baselines={})
    html, elements = read(tmp_path)
    assert r"caf\udce9" in elements.text
    assert "<script" not in html and f"{evil} is noted" in elements.text and foreign in elements.text
    assert "onerror" not in {name for _, attributes in elements.found for name in attributes}
    assert "<script" not in (tmp_path / "run" / "model_card.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"agreement": 0.99996}, "> 99.9 %"),
        ({"max_abs_diff": 0.02}, "0.02"),
        ({"max_abs_diff": None}, "not measured"),
        ({"ops_outside_tf_serving": ["TFText>X"]}, "TFText>X"),
        ({"examples": 0}, "SavedModel by a fresh process: 0"),
        ({"passed": False}, "marked its proof as failed"),
        ({"passed": False, "agreement": 0.0, "max_abs_diff": None, "error": "Killed <x>"}, "Killed <x>"),
    ],
)
def test_a_proof_with_a_hole_is_red(tmp_path, change, text):
    proof = PROOF | change
    verdict = report._judge_proof(proof)
    assert not verdict["passed"] and any(text in one for one in verdict["failed"])
    assert report._judge_proof(PROOF)["passed"]


@pytest.mark.parametrize("how", ["absent", "null"])
def test_missing_measurements_are_said_and_never_crash(tmp_path, how, monkeypatch):
    # Only the text is tested here, so the figures need not be drawn.
    monkeypatch.setattr(reporting, "png_of_figure", lambda figure: "data:image/png;base64,")
    monkeypatch.setattr(report, "draw_images", lambda *_: {})
    metrics = conclude(tmp_path)
    data, found = data_of(tmp_path), finds(*FOUND)
    matchings = match(data.test, found, 0.5)
    for gone in [*metrics, "everything", *(f"test.{key}" for key in metrics["test"])]:
        less = copy.deepcopy(metrics)
        owner = less["test"] if gone.startswith("test.") else less
        for key in [*metrics] if gone == "everything" else [gone.removeprefix("test.")]:
            del owner[key]
            if how == "null":
                owner[key] = None
        shared = dict(title="x", metrics=less, config={}, class_names=NAMES, sentences=["x"], titles=TITLES)
        report.write_report(
            tmp_path / "run", history=[], examples=data.test, detections=found, matchings=matchings, threshold=0.5,
            thresholds=[], skipped=[("a", "b")], **shared,
        )  # fmt: skip
        card = report.write_model_card(tmp_path / "run", source_card={}, **shared).read_text("utf-8")
        html, elements = read(tmp_path)
        assert "not measured" in elements.text and "None" not in card and "None" not in elements.text, gone
        if gone in ("proof", "everything"):
            assert 'class="proof bad"' in html and "Not proved" in card
        if gone in ("baselines", "everything"):
            assert "Baselines: not measured" in elements.text and "Baselines: not measured" in card


def test_a_single_test_image_has_no_interval_and_says_so(tmp_path, capsys):
    one = examples(tmp_path / "images", {"a.png": [(HERE, CAT)]})
    conclude(tmp_path, data=data_of(tmp_path, test=one), detections=finds([(HERE, CAT, 0.9)]),
             baselines={"scratch": (finds([]), 1.0)})  # fmt: skip
    assert "interval not measured" in read(tmp_path)[1].text
    assert "a single test image allows no comparison" in capsys.readouterr().out
    assert "| 100.0 % | not measured |" in (tmp_path / "run" / "model_card.md").read_text("utf-8")


def test_a_detector_that_finds_nothing_at_all(tmp_path, capsys):
    nothing = finds(*[[]] * 5)
    metrics = conclude(tmp_path, detections=nothing, val_detections=nothing, baselines={})
    assert metrics["threshold"] == 0.5 and metrics["test"]["ap50"] == 0.0
    _, elements = read(tmp_path)
    assert "no boxes" in elements.text and "precision not measured" in elements.text


def test_inputs_that_do_not_belong_together_are_refused(tmp_path):
    data = data_of(tmp_path)
    with pytest.raises(ValueError, match="5 images, detections of 1"):
        report.write_report(
            tmp_path / "run", title="x", metrics={}, config={}, history=[], class_names=NAMES, examples=data.test,
            detections=finds([]), matchings=[], threshold=0.5, thresholds=[], skipped=[], sentences=[], titles={},
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_size_stays_bounded_for_many_images_and_classes(tmp_path):
    random = np.random.default_rng(0)
    photo = tmp_path / "photo.png"
    Image.fromarray(random.integers(0, 255, (300, 400, 3), dtype=np.uint8)).save(photo)
    n, names = 300, tuple(f"class number {number}" for number in range(60))
    boxes = [np.concatenate([(c := random.uniform(0, 200, (8, 2))), c + 60], 1).astype("float32") for _ in range(n)]
    labels = tuple(random.integers(0, 60, 8) for _ in range(n))
    many = BoxExamples(
        np.array([str(photo)] * n, dtype=object), tuple(boxes), labels, tuple(np.zeros(8, bool) for _ in range(n)),
        np.tile(np.array([[300, 400]]), (n, 1)), np.ones(n, "int64"),
    )  # fmt: skip
    wrong = tuple(np.where(random.random(8) < 0.3, random.integers(0, 60, 8), one) for one in labels)
    found = Detections(tuple(boxes), tuple(random.random(8).astype("float32") for _ in range(n)), wrong)
    metrics = {"test": evaluate(many, found, names)}
    path = report.write_report(
        tmp_path / "run", title="x", metrics=metrics, config={}, history=HISTORY, class_names=names, examples=many,
        detections=found, matchings=match(many, found, 0.1), threshold=0.1, thresholds=[], sentences=[], titles={},
        skipped=[(f"/photos/{number}.jpg", "cut off " * 99) for number in range(10_000)],
    )  # fmt: skip
    assert path.stat().st_size < 5_000_000
    _, elements = read(tmp_path)
    assert len(images(elements)) == 2 * 3 * report_images.MAX_IMAGES
    assert (
        "The 8 classes with the lowest AP50 are drawn" in elements.text and "Share of the true class" in elements.text
    )


def test_findings_are_judged_by_their_intervals():
    rng = np.random.default_rng(0)
    many = [[(HERE, CAT)]] * 60
    there = BoxExamples(
        np.array(["x"] * 60, dtype=object), *(tuple(np.array([v], kind) for _ in many) for v, kind in
                                              ((HERE, "float32"), (CAT, "int64"), (False, bool))),
        np.tile(np.array([[90, 120]]), (60, 1)), np.ones(60, "int64"),
    )  # fmt: skip
    right, half = finds(*[[(HERE, CAT, 0.9)]] * 60), finds(*[[(HERE, CAT, 0.9)]] * 30, *[[]] * 30)
    other = finds(*[[(HERE, CAT, 0.9)] if rng.random() < 0.5 else [] for _ in many])

    def sentence(ours, name, theirs):
        return findings.findings(there, ours, {name: theirs}, 1, TITLES)[0]

    assert sentence(half, "scratch", right).startswith("Negative transfer")
    assert sentence(right, "scratch", half).startswith("The pretrained source gains")
    assert "Fine-tuning gains" in sentence(right, "frozen", half) and "hurts" in sentence(half, "frozen", right)
    assert "too close to call" in sentence(half, "frozen", other)
    assert "nothing was fine-tuned" in sentence(right, "frozen", right)


def test_card_has_front_matter_results_and_the_folder_that_is_there(tmp_path):
    (tmp_path / "run" / "serving" / "my cats" / "10").mkdir(parents=True)
    (tmp_path / "run" / "serving" / "my cats" / "2").mkdir()
    conclude(tmp_path, source_card=CARD | {"licence": 'mine" \n---\nevil: "yes'})
    card = (tmp_path / "run" / "model_card.md").read_text("utf-8")
    front = yaml.safe_load(card.split("\n---\n")[0])
    assert front["license"] == 'mine" \n---\nevil: "yes' and "object-detection" in front["tags"]
    assert "serving/my cats/10" in card and "| Frozen backbone, trained head |" in card
    assert "| never | not measured | not measured | 0 |" in card and "Keep boxes with a score of at least" in card
