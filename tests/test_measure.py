"""Rows of results.json: seeds that are kept, rows that are verified, and the tables made of them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import measure, provenance, tables
from recipes.__main__ import RECIPES

ROOT = RECIPES.parent
TINY = measure.Measurement("tiny", "A few digits", ("--limit", "30", "--epochs", "1", "--no-explain"), seeds=(0, 1))
ORIGIN = {"commit": "abc1234", "processor": "A", "cores": 2, "date": "2026-01-01"}


def seed_of(accuracy: float, wall: float = 10.0) -> dict:
    """What `run_seed` returns, for a seed of this accuracy."""
    scores = {"accuracy": accuracy, "macro_f1": accuracy, "ece": 0.1}
    metrics = {
        "test": scores | {"per_class": [{"class": "0", "accuracy": 1.0}, {"class": "1"}]},
        "baselines": {"frozen": scores | {"accuracy": 0.5}},
        "counts": {"train": 30}, "seconds": {"total": 9.0}, "peak_memory_mb": 100.0, "versions": {},
        "proof": {"examples": 30, "agreement": 1.0, "max_abs_diff": 0.0}, "export": {"ratio": 1.0},
    }  # fmt: skip
    times = {"wall_seconds": wall, "cpu_seconds": 2 * wall, "load_average": 0.123, "epochs": {"finetune": 1}}
    return ORIGIN | times | {"metrics": metrics, "command": "", "code": "0123", "versions": {"python": "3"}}


def test_a_row_holds_where_it_comes_from():
    row = measure.row_of(TINY, [seed_of(0.5), seed_of(0.75, wall=20.0)])
    assert row["command"].endswith("--no-explain --seed SEED --out OUT") and row["seeds"] == [0, 1]
    assert row["metric"]["accuracy"] == {"mean": 0.625, "std": 0.1768, "seeds": [0.5, 0.75]}
    assert row["baselines"] == {"frozen": {"accuracy": {"mean": 0.5, "std": 0.0, "seeds": [0.5, 0.5]}}}
    assert list(row["per_class"]) == ["0"]
    assert row["command_seconds"]["seeds"] == [10.0, 20.0] and row["cpu_seconds"]["seeds"] == [20.0, 40.0]
    assert row["load_average"] == [0.12, 0.12] and row["epochs"] == {"finetune": 1}
    assert {key: row[key] for key in ("code", *ORIGIN)} == {"code": "0123"} | ORIGIN
    assert row["seconds_from"] == ORIGIN


def test_differences_of_the_first_seed_are_named():
    row = measure.row_of(TINY, [seed_of(0.5), seed_of(0.75)])
    assert measure.differences(row, measure.row_of(TINY, [seed_of(0.5)])) == []
    assert measure.differences(row, measure.row_of(TINY, [seed_of(0.5 + 4e-7)])) == []  # results.json rounds
    assert measure.differences(row, measure.row_of(TINY, [seed_of(0.51)])) == [
        "accuracy was 0.5, is 0.51", "macro_f1 was 0.5, is 0.51",
    ]  # fmt: skip
    without = row | {"baselines": {}}
    assert measure.differences(row, without) == ["accuracy of frozen was 0.5, is None"]


def test_epochs_are_those_of_history_csv(tmp_path: Path):
    history = tmp_path / "history.csv"
    history.write_text("stage,epoch,penalty,loss\nhead,1,10.0,2\nhead,2,1.0,1\nfinetune,1,,1\nfinetune,2,,1\n")
    assert measure._epochs(history) == {"finetune": 2}
    history.write_text("stage,epoch,loss\nhead,1,2\nfinetune,1,1\n")
    assert measure._epochs(history) == {"head": 1, "finetune": 1}


def test_cpu_seconds_are_those_of_children():
    before, here = measure._cpu_seconds(), os.times().user
    while os.times().user - here < 0.05:
        pass
    assert measure._cpu_seconds() == before  # this process does not count
    assert os.waitstatus_to_exitcode(os.system(f"{os.sys.executable} -c 'sum(range(3_000_000))'")) == 0
    assert measure._cpu_seconds() > before


def kept(work: Path, seed: int, **changes) -> Path:
    """Write what a finished seed of TINY leaves in the work folder."""
    work.mkdir(exist_ok=True)
    origin = measure._origin(TINY)
    file = work / f"image_classification-tiny-{seed}-{origin['code']}.json"
    file.write_text(json.dumps(seed_of(0.5) | origin | changes))
    return file


def test_a_finished_seed_is_not_run_again(tmp_path: Path, capsys):
    for seed in TINY.seeds:
        kept(tmp_path, seed)
    row = measure.measure(TINY, tmp_path)
    assert capsys.readouterr().out.count("measured before") == 2
    assert row["metric"]["accuracy"]["seeds"] == [0.5, 0.5]
    assert row["code"] == provenance.row_hash(ROOT, "image_classification", row["command"])
    assert provenance.stale_rows(ROOT, "image_classification", [row]) == set()


@pytest.mark.parametrize("change", [{"code": "0"}, {"processor": "another"}])
def test_a_seed_of_other_code_or_machine_is_run_again(tmp_path: Path, change: dict):
    wrong = replace(TINY, flags=("--no-such-flag",))  # the command itself fails, in seconds
    file = kept(tmp_path, 0, **measure._origin(wrong) | change)
    with pytest.raises(SystemExit, match="no-such-flag"):
        measure.run_seed(wrong, 0, tmp_path)
    assert file.exists()


def test_verifying_stamps_a_row_and_keeps_its_seconds(tmp_path: Path, capsys):
    old = measure.row_of(TINY, [seed_of(0.5), seed_of(0.75, wall=20.0)])
    kept(tmp_path, 0)
    row = measure.verify(TINY, old, tmp_path)
    assert "verified with seed 0" in capsys.readouterr().out
    today = measure._origin(TINY)
    assert {key: row[key] for key in ("code", "commit", "processor", "versions")} == {
        key: today[key] for key in ("code", "commit", "processor", "versions")
    }
    assert row["verified"] == today["date"] and row["date"] == ORIGIN["date"]
    for same in ("metric", "baselines", "command_seconds", "cpu_seconds", "seconds_from", "epochs"):
        assert row[same] == old[same]


def test_a_row_with_other_scores_is_measured_again(tmp_path: Path, capsys):
    old = measure.row_of(TINY, [seed_of(0.75), seed_of(0.75)])
    for seed in TINY.seeds:
        kept(tmp_path, seed)
    row = measure.verify(TINY, old, tmp_path)
    assert "all seeds are measured again, since accuracy was 0.75, is 0.5" in capsys.readouterr().out
    assert row["metric"]["accuracy"]["seeds"] == [0.5, 0.5] and "verified" not in row
    row = measure.verify(TINY, old | {"command": "python -m recipes run another"}, tmp_path)
    assert "since its command or its seeds have changed" in capsys.readouterr().out
    assert row["metric"]["accuracy"]["seeds"] == [0.5, 0.5]


def test_measurements_have_names_of_their_own():
    names = [measurement.name for measurement in measure.MEASUREMENTS]
    assert len(set(names)) == len(names)
    with pytest.raises(SystemExit, match="unknown: dmeo"):
        measure.main(["dmeo"])


@pytest.mark.slow
def test_a_measured_row_is_verified_by_the_same_run(tmp_path: Path, capsys):
    row = measure.measure(replace(TINY, seeds=(0,)), tmp_path / "first")
    assert row["epochs"] == {"finetune": 1}
    assert row["cpu_seconds"]["mean"] > 1 and row["command_seconds"]["mean"] > 1 and row["load_average"][0] >= 0
    row.pop("code")
    again = measure.verify(replace(TINY, seeds=(0,)), row, tmp_path / "second")
    assert "verified" in again, capsys.readouterr().out
    assert again["command_seconds"] == row["command_seconds"]


def test_seconds_are_those_of_the_processor_that_measured_most():
    def rows(*processors: str) -> dict[str, dict]:
        origins = [ORIGIN | {"processor": name, "date": f"2026-01-0{day}"} for day, name in enumerate(processors, 1)]
        return {str(number): {"seconds_from": origin} for number, origin in enumerate(origins)}

    assert tables.on_one_processor(rows("A", "A")) == {"0", "1"}
    assert tables.on_one_processor(rows("A", "A", "B")) == {"0", "1"}
    assert tables.on_one_processor(rows("B", "A")) == {"1"}  # the last one, where both measured as many
    assert tables.on_one_processor({}) == set()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch) -> Path:
    """A checkout with one recipe and its page, and the code of this one; TINY is all that is measured in it."""
    root = tmp_path / "checkout"
    recipe = root / "recipes" / "image_classification"
    recipe.mkdir(parents=True)
    (root / "common").symlink_to(ROOT / "common")
    (recipe / "recipe.py").symlink_to(RECIPES / "image_classification" / "recipe.py")
    (recipe / "README.md").write_text("<!-- results:image_classification -->\n<!-- end -->\n")
    (root / "README.md").write_text("# Recipes\n")
    monkeypatch.setattr(tables, "ROOT", root)
    monkeypatch.setattr(measure, "ROOT", root)
    monkeypatch.setattr(measure, "MEASUREMENTS", (TINY,))
    return root


def test_measure_writes_rows_and_tables_and_verifies_what_is_stale(checkout: Path, tmp_path: Path, capsys):
    recipe, work = checkout / "recipes" / "image_classification", tmp_path / "work"
    for seed in TINY.seeds:
        kept(work, seed)
    page, results = recipe / "README.md", recipe / "results.json"
    results.write_text(json.dumps({"runs": [{"name": "nobody_reads_it"}]}))
    measure.main(["tiny", "--work", str(work)])
    [row] = json.loads(results.read_text())["runs"]
    assert row["name"] == "tiny" and "| A few digits |" in page.read_text() and "stale" not in page.read_text()
    capsys.readouterr()
    measure.main(["--verify", "--work", str(work)])
    assert capsys.readouterr().out == ""  # nothing is stale

    results.write_text(json.dumps({"runs": [row | {"code": "0"}]}))
    tables.write_tables()
    assert "| A few digits *(stale)* |" in page.read_text()
    assert measure.stale("image_classification") == {"tiny"}
    measure.main(["--verify", "--work", str(work)])
    [verified] = json.loads(results.read_text())["runs"]
    assert verified == row | {"verified": verified["verified"]}
    assert "stale" not in page.read_text() and measure.stale("image_classification") == set()


def test_a_row_of_another_command_or_without_results_is_stale(checkout: Path):
    assert measure.stale("image_classification") == {"tiny"}
    row = measure.row_of(replace(TINY, flags=("--epochs", "2")), [seed_of(0.5), seed_of(0.5)])
    row["code"] = provenance.row_hash(ROOT, "image_classification", row["command"])
    results = checkout / "recipes" / "image_classification" / "results.json"
    results.write_text(json.dumps({"runs": [row]}))
    assert provenance.stale_rows(checkout, "image_classification", [row]) == set()
    assert measure.stale("image_classification") == {"tiny"}


def test_tables_mark_stale_rows_and_odd_seconds(checkout: Path):
    fresh = measure.row_of(TINY, [seed_of(0.5), seed_of(0.75, wall=20.0)])
    fresh["code"] = provenance.row_hash(ROOT, "image_classification", fresh["command"])
    odd = fresh | {"name": "odd", "title": "Odd", "seconds_from": ORIGIN | {"processor": "B", "date": "2025-12-31"}}
    old = fresh | {"name": "old", "title": "Old", "code": "0"}
    results = checkout / "recipes" / "image_classification" / "results.json"
    results.write_text(json.dumps({"runs": [fresh, odd, old]}))
    lines = tables.results_of("image_classification")
    assert lines[2].startswith("| A few digits |") and "| 1 | 15 s (10-20) |" in lines[2]
    assert lines[3].startswith("| Odd |") and "| 1 |  |" in lines[3]
    assert lines[4].startswith("| Old *(stale)* |") and "| 1 | 15 s (10-20) |" in lines[4]
    assert "processor, A; rows that another processor measured have none" in lines[6]
    assert lines[8] == tables.STALE_LEGEND
    text = "\n".join([*lines, "<!-- end -->"])
    assert "stale" in text and "stale" not in tables.without_marks(text)
