"""The report and the model card: complete, safe to open, and never better than what was measured."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from common import reporting
from common.classification import report
from common.images.preview import thumbnails
from tests.elements import Elements

METRICS = {
    "recipe": "image_classification",
    "test": {
        "accuracy": 0.95, "accuracy_ci95": [0.91, 0.98], "macro_f1": 0.949, "macro_f1_ci95": [0.9, 0.98],
    },
    "baselines": {
        "frozen": {"accuracy": 0.9, "accuracy_ci95": [0.85, 0.94], "macro_f1": 0.89, "seconds": 3.25},
        "scratch": {"accuracy": 0.66, "accuracy_ci95": [0.6, 0.72], "macro_f1": 0.64},
    },
    "seconds": {"total": 95.0, "features": 4.0, "head": 6.5, "finetune": 60.0},
    "counts": {"train": 244, "val": 40, "test": 4, "skipped": 1},
    "parameters": {"total": 1234567, "trainable_head": 1026, "trainable_finetune": 400000},
    "proof": {
        "examples": 4, "agreement": 1.0, "max_abs_diff": 2.4e-7, "ops_outside_tf_serving": [],
        "tolerance": 1e-4, "passed": True,
    },
    "peak_memory_mb": 1500.0, "source": "bundled:resnet_mini", "data": "folder:/photos", "seed": 7,
    "versions": {"tensorflow": "2.x", "keras": "3.x"},
}  # fmt: skip
TITLES = {"frozen": "Frozen source, linear head", "scratch": "From scratch"}
HISTORY = [
    {"stage": "head", "epoch": 1, "loss": 0.7, "val_loss": 0.6, "val_accuracy": 0.7},
    {"stage": "head", "epoch": 2, "loss": 0.5, "val_loss": 0.5, "val_accuracy": 0.8},
    {"stage": "finetune", "epoch": 1, "loss": 0.3, "val_loss": float("nan"), "val_accuracy": 0.9},
    {"stage": "scratch", "epoch": 1, "loss": 1.1, "val_loss": 1.0},
]


def _photos(folder: Path, names: list[str]) -> list[str]:
    for number, name in enumerate(names):
        Image.new("RGB", (300, 200), (40 * number % 256, 90, 120)).save(folder / name)
    return [str(folder / name) for name in names]


def _report(out: Path, image_paths: Sequence[str] = ("gone.jpg",) * 4, **changes) -> tuple[str, Elements]:
    names = changes.get("class_names", ["ants", "bees"])
    labels = np.array([0, 0, 1, 1])
    inputs = {
        "title": "Ants and bees",
        "metrics": copy.deepcopy(METRICS),
        "config": {"seed": 7, "data": Path("/photos"), "augment": ("flip", "crop")},
        "history": HISTORY,
        "class_names": names,
        "labels": labels,
        "probabilities": np.eye(len(names), dtype=np.float32)[labels],
        "per_class": [{"class": name, "precision": 1.0, "recall": 0.5, "f1": 0.6, "support": 2} for name in names],
        "skipped": [],
        "sentences": ["Fine-tuning gained 5 points over the frozen probe."],
        "titles": TITLES,
        "what": "images",
        "preview": thumbnails(image_paths),
    }
    path = report.write_report(out, **(inputs | changes))
    html = path.read_text(encoding="utf-8")
    return html, Elements(html)


def _card(out: Path, **changes) -> str:
    inputs = {
        "title": "Ants and bees",
        "metrics": copy.deepcopy(METRICS),
        "config": {"seed": 7},
        "class_names": ["ants", "bees"],
        "sentences": ["Fine-tuning gained 5 points."],
        "titles": TITLES,
        "source_card": {
            "spec": "bundled:resnet_mini",
            "licence": "Apache-2.0",
            "origin": "this project",
            "data": "x",
        },
    }
    return report.write_model_card(out, **(inputs | changes)).read_text(encoding="utf-8")


def test_report_needs_nothing_outside_itself(tmp_path):
    photos = _photos(tmp_path, ["a.jpg", "b.png", "c.jpg", "d.jpg"])
    html, elements = _report(tmp_path, image_paths=photos, probabilities=np.eye(2)[[1, 0, 0, 1]])
    for tag, attributes in elements.found:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
        for name in ("src", "href", "srcset", "data", "action", "background", "poster"):
            assert str(attributes.get(name, "data:")).startswith("data:"), (tag, attributes)
    assert not re.search(r"url\(|@import|https?://", html)
    assert "default-src 'none'" in html
    assert len(elements.all("img")) == 4  # two curves, two mistakes


def test_report_shows_the_parts_in_order(tmp_path):
    html, elements = _report(tmp_path, skipped=[("broken.jpg", "cannot be decoded")])
    parts = ["Ants and bees", "Result on", "Fine-tuning gained 5", "Proved", "Learning curves"]
    parts += ["Confusion matrix", "Per class", "Most confident", "broken.jpg", "Run details", "Versions"]
    body = html[html.index("<h1>") :]
    positions = [body.index(part) for part in parts]
    assert positions == sorted(positions)
    for text in ("95.0 %", "91.0 to 98.0 %", "66.0 %", "1 min 10 s", "3.2 s", "1,234,567", "1,500 MB"):
        assert text in elements.text
    assert 'class="proof good"' in html


def test_names_of_users_are_escaped_and_may_be_in_any_script(tmp_path):
    evil, foreign = "<script>alert(1)</script>", "蚂蚁 ñandú نمل"
    photos = _photos(tmp_path, ["<img src=x onerror=alert(2)>.jpg", "été.jpg", "c.jpg", "d.jpg"])
    html, elements = _report(
        tmp_path, title=evil, class_names=[evil, foreign], image_paths=photos, config={evil: evil},
        probabilities=np.eye(2)[[1, 0, 0, 1]], skipped=[(evil, '"><script>')], sentences=[evil],
    )  # fmt: skip
    assert "<script" not in html
    assert "onerror" not in {name for _, attributes in elements.found for name in attributes}
    assert evil in elements.text and foreign in elements.text


def test_file_names_that_are_not_utf8_can_be_listed(tmp_path):
    _, elements = _report(tmp_path, skipped=[("caf\udce9.jpg", "unreadable")], class_names=["a\udcff", "b"])
    assert r"caf\udce9.jpg" in elements.text


def test_mistakes_are_the_most_confident_ones_that_can_be_read(tmp_path):
    photos = _photos(tmp_path, [f"{number}.jpg" for number in range(20)])
    Path(photos[19]).write_bytes(b"not an image")
    Path(photos[18]).unlink()
    wrong = np.linspace(0.51, 0.99, 20)
    wrong[17] = 0.1  # right after all
    _, elements = _report(
        tmp_path, labels=np.zeros(20, int), image_paths=photos, probabilities=np.stack([1 - wrong, wrong], 1)
    )
    shown = [attributes for attributes in elements.all("img") if attributes["alt"].endswith(".jpg")]
    assert [attributes["alt"] for attributes in shown] == [f"{number}.jpg" for number in range(16, 4, -1)]
    assert all(attributes["src"].startswith("data:image/jpeg;base64,") for attributes in shown)
    assert "19 of 20 test images have a wrong prediction" in elements.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"agreement": 0.99996}, "> 99.9 %"),
        ({"max_abs_diff": 0.02}, "0.02"),
        ({"max_abs_diff": float("nan")}, "not measured"),
        ({"ops_outside_tf_serving": ["TFText>X"]}, "TFText>X"),
        ({"ops_outside_tf_serving": None}, "not measured"),
        ({"examples": 0}, "by a fresh process: 0"),
        ({"passed": False}, "marked its proof as failed"),
        ({"passed": False, "agreement": 0.0, "max_abs_diff": None, "error": "Killed <x>"}, "Killed <x>"),
    ],
)
def test_a_proof_with_a_hole_is_red_even_where_it_says_passed(tmp_path, change, said):
    metrics = copy.deepcopy(METRICS)
    metrics["proof"] |= change
    html, elements = _report(tmp_path, metrics=metrics)
    assert 'class="proof bad"' in html and 'class="proof good"' not in html
    assert said in elements.text
    card = _card(tmp_path, metrics=metrics)
    assert "Not proved" in card and "**Proved**" not in card


@pytest.mark.parametrize("gone", [*METRICS, "everything"])
@pytest.mark.parametrize("how", ["absent", "null"])
def test_missing_measurements_are_said_and_never_crash(tmp_path, gone, how):
    metrics = copy.deepcopy(METRICS)
    for key in METRICS if gone == "everything" else [gone]:
        del metrics[key]
        if how == "null":
            metrics[key] = None
    html, elements = _report(tmp_path, metrics=metrics, history=[], per_class=[], sentences=[])
    card = _card(tmp_path, metrics=metrics, source_card={}, config={}, sentences=[])
    assert "not measured" in elements.text and "None" not in card
    if gone in ("proof", "everything"):
        assert 'class="proof bad"' in html and "Not proved" in card
    if gone in ("baselines", "everything"):
        assert "Baselines: not measured" in elements.text and "Baselines: not measured" in card


def test_no_test_images_and_no_mistakes(tmp_path):
    empty = {"labels": np.zeros(0, int), "probabilities": np.zeros((0, 2)), "image_paths": []}
    assert "0 of 0 test images" in _report(tmp_path, **empty)[1].text
    assert "0 of 4 test images" in _report(tmp_path)[1].text


def test_inputs_that_do_not_belong_together_are_refused(tmp_path):
    with pytest.raises(ValueError, match="received 3 labels"):
        _report(tmp_path, labels=np.array([0, 0, 1]))
    with pytest.raises(ValueError, match="3 class names"):
        _report(tmp_path, probabilities=np.ones((4, 2)), class_names=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"0\.\.1"):
        _report(tmp_path, labels=np.array([0, 1, 2, 0]), probabilities=np.ones((4, 2)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("classes", [2, 30, 31, 200, 1000])
def test_size_stays_bounded_for_ten_thousand_images(tmp_path, classes):
    random = np.random.default_rng(0)
    photo = tmp_path / "photo.jpg"
    Image.fromarray(random.integers(0, 255, (400, 600, 3), dtype=np.uint8)).save(photo)
    names = [f"class number {number}" for number in range(classes)]
    labels = random.integers(0, classes, 10_000)
    probabilities = random.random((10_000, classes), dtype=np.float32)
    probabilities[np.arange(0, 10_000, 2), labels[::2]] = 2
    skipped = [(f"/photos/a folder/{number}.jpg", "cannot be decoded " * 40) for number in range(10_000)]
    html, elements = _report(
        tmp_path, class_names=names, labels=labels, probabilities=probabilities, skipped=skipped,
        image_paths=[str(photo)] * 10_000,
    )  # fmt: skip
    assert len(html.encode()) < 2_000_000
    assert ("Most confused pairs" in html) == (classes > reporting.MAX_CLASSES_IN_MATRIX)
    assert "and 9,950 more" in elements.text
    assert len(_card(tmp_path, class_names=names)) < 20_000


def test_confused_pairs_are_the_largest_first():
    confusion = np.array([[9, 1, 0], [5, 9, 0], [0, 3, 1]])
    pairs = reporting.confused_pairs(confusion, confusion / confusion.sum(1, keepdims=True))
    assert [pair[:3] for pair in pairs] == [(1, 0, 5), (2, 1, 3), (0, 1, 1)]
    assert pairs[1][3] == pytest.approx(0.75)


def test_card_says_how_to_serve_the_folder_that_is_there(tmp_path):
    for number in ("2", "10"):
        (tmp_path / "serving" / "my bees" / number).mkdir(parents=True)
    (tmp_path / "serving" / "request.json").write_text("{}")
    card = _card(tmp_path)
    assert "serving/my bees/10" in card
    assert "docker compose --file serving/docker-compose.yml up" in card
    assert "python serving/client.py" in card and "python -m recipes serve" in card


def test_card_has_front_matter_and_results(tmp_path):
    card = _card(tmp_path, title="été: 1 | `x` <b>", class_names=["蚂蚁", "_a_ | b", "<script>"])
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0" and "transfer-learning" in front["tags"] and "accuracy" in front["metrics"]
    assert "| Exported model | 95.0 % | 91.0 to 98.0 % | 94.9 % | 90.0 to 98.0 % |" in card
    assert "**Proved**" in card and "蚂蚁" in card and "Fine-tuning gained 5 points." in card
    assert "<script>" not in card and r"\_a\_ \| b" in card and r"été: 1 \| \`x\` &lt;b&gt;" in card


def test_licence_cannot_break_out_of_the_front_matter(tmp_path):
    card = _card(tmp_path, source_card={"licence": 'mine" \n---\nevil: "yes'})
    assert yaml.safe_load(card.split("\n---\n")[0])["license"] == 'mine" \n---\nevil: "yes'


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    _report(tmp_path)
    before = (tmp_path / "report.html").read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="disk full"):
        _report(tmp_path, title="another")
    assert (tmp_path / "report.html").read_bytes() == before


def test_reporting_imports_no_tensorflow():
    check = "import sys, common.classification.report; sys.exit(any(m in sys.modules for m in sys.argv[1:]))"
    command = [sys.executable, "-c", check, "tensorflow", "keras", "matplotlib.pyplot"]
    assert subprocess.run(command, cwd=Path(reporting.__file__).parents[1]).returncode == 0
