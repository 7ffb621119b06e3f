"""The number format of fine-tuning: as asked, or the faster one for what takes long."""

import pytest

from common.texts import precision
from common.texts.precision import LONG, choose_precision


@pytest.mark.parametrize(
    ("asked", "steps", "times", "expected"),
    [
        ("float32", 10_000, 9.0, "float32"), ("bfloat16", 1, 0.1, "mixed_bfloat16"),
        ("auto", LONG, 1.3, "mixed_bfloat16"), ("auto", LONG, 1.29, "float32"), ("auto", LONG - 1, 9.0, "float32"),
    ],
)  # fmt: skip
def test_choice(tmp_path, monkeypatch, capsys, asked, steps, times, expected):
    monkeypatch.setattr(precision, "speedup_of_bfloat16", lambda: times)
    kept = tmp_path / "checkpoints" / "precision.json"
    assert choose_precision(asked, steps, kept) == expected and kept.exists() == (asked == "auto")
    assert bool(capsys.readouterr().out) == (asked == "auto" and expected != "float32")  # what is chosen is said


def test_further_seeds_and_a_resumed_run_train_as_the_first(tmp_path, monkeypatch):
    times = iter([2.0])
    monkeypatch.setattr(precision, "speedup_of_bfloat16", lambda: next(times))
    found = [choose_precision("auto", steps, tmp_path / "precision.json") for steps in (LONG, LONG, 1)]
    assert found == 3 * ["mixed_bfloat16"]


def test_without_a_file_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(precision, "speedup_of_bfloat16", lambda: 2.0)
    assert choose_precision("auto", LONG) == "mixed_bfloat16" and list(tmp_path.iterdir()) == []
