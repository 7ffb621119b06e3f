"""`make docs-check` finds a number that nothing measured, and none that was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import docs_check, tables
from recipes.__main__ import RECIPES

ROOT = RECIPES.parent
PAGE = Path("recipes") / "image_classification" / "README.md"
CONSTANTS = docs_check.constants_of(ROOT)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A copy of the page of image_classification, with the results beside it."""
    copy = tmp_path / PAGE
    copy.parent.mkdir(parents=True)
    for name in (PAGE.name, "results.json"):
        shutil.copy(ROOT / PAGE.with_name(name), copy.with_name(name))
    return copy


def unknown(page: Path, sentence: str) -> list[str]:
    """Return what is not found of a sentence at the end of a page."""
    text = page.read_text("utf-8")
    page.write_text(f"{text}\n{sentence}\n", "utf-8")
    found = docs_check.unknown_numbers(page, page.parents[2], CONSTANTS)
    page.write_text(text, "utf-8")
    assert all(number.line == text.count("\n") + 2 for number in found)
    return [" ".join(filter(None, (number.text, number.unit))) for number in found]


@pytest.mark.parametrize("page", tables.readmes(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_number_of_the_pages_is_found(page: Path):
    assert docs_check.unknown_numbers(page, ROOT, CONSTANTS) == []


def test_measured_numbers_are_found_and_invented_ones_are_not(page: Path):
    row = json.loads(page.with_name("results.json").read_text("utf-8"))["runs"][0]
    accuracy, seconds = row["metric"]["accuracy"]["mean"], row["command_seconds"]["mean"]
    assert unknown(page, f"It reaches {accuracy:.3f}, {accuracy * 100:.1f}%, after {seconds / 60:.2f} minutes.") == []
    assert unknown(page, f"It has {row['counts']['test']:,} test images.") == []
    assert unknown(page, "It reaches 0.98765 after 7777 s.") == ["0.98765", "7777 s"]
    assert unknown(page, "It is 31.7 times faster, on 81,234 images, in 87.31% of the runs.") == [
        "31.7 times", "81,234", "87.31 %",
    ]  # fmt: skip


def test_other_recipes_results_are_no_evidence(page: Path):
    text = [json.loads((RECIPES / name / "results.json").read_text("utf-8")) for name in ("speech_wav2vec",)]
    wer = text[0]["runs"][0]["metric"]["wer"]["mean"]
    assert unknown(page, f"It reaches {wer:.4f}.") == [f"{wer:.4f}"]


def test_results_of_a_script_count_where_the_page_names_it(page: Path):
    folder = page.parents[2] / "benchmarks" / "results"
    folder.mkdir(parents=True)
    (folder / "padding_2.json").write_text('{"bytes": 8880000, "milliseconds": 12.34}')
    assert unknown(page, "A file of 8.88 MB, 12.3 ms") == ["8.88 MB", "12.3 ms"]
    assert unknown(page, "A file of 8.88 MB, 12.3 ms ([padding_2.json](padding_2.json))") == []


def test_code_flags_links_names_and_constants_are_no_measurements(page: Path):
    for sentence in (
        "`--epochs 77777`, [a paper](https://arxiv.org/abs/2006.11477), wav2vec 2.0, MobileNetV2, CIFAR-10, step 2",
        "```\npython -m recipes --epochs 77777\n```",
        "<!-- results:toy -->\n| 0.98765 |\n<!-- end -->",
        "same labels, with probabilities within 1e-4, and 98 of 100 labels",
    ):
        assert unknown(page, sentence) == [], sentence
    assert unknown(page, "97.7 of 100 labels, within 1e-13") == ["97.7 of 100", "1e-13"]


def test_numbers_in_titles_of_rows_are_those_of_data_and_command():
    row = {"command": "python --image-size 96", "counts": {"train": 1062, "val": 188, "test": 250}}
    good = row | {"title": "Spoken digits at 8 kHz, 1,250 clips, at 96 pixels"}
    assert docs_check.unknown_in_title(good, CONSTANTS) == []
    [number] = docs_check.unknown_in_title(row | {"title": "Spoken digits, 1,251 clips"}, CONSTANTS)
    assert number.text == "1,251"


def test_a_table_edited_by_hand_is_named(tmp_path: Path):
    copy = tmp_path / "README.md"
    shutil.copy(ROOT / "recipes" / "speech_wav2vec" / "README.md", copy)
    assert docs_check.changed_tables(copy) == []
    text = copy.read_text("utf-8")
    assert "| george | 0.220 |" in text
    copy.write_text(text.replace("| george | 0.220 |", "| george | 0.120 |"), "utf-8")
    assert docs_check.changed_tables(copy) == ["new_voice"]
