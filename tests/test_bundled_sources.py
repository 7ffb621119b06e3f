"""The commands that train the bundled sources: what a user would type, continued where a run was stopped."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest

from benchmarks import bundled_sources
from recipes.__main__ import RECIPES
from recipes.commands._discovery import config_class

NAMES = list(bundled_sources.COMMANDS)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_commands_have_flags_that_the_recipe_has(name: str, strict: bool, tmp_path: Path):
    _, _, _, recipe, *flags = bundled_sources.command_of(name, strict, tmp_path)
    known = {field.name for field in dataclasses.fields(config_class(RECIPES / recipe / "recipe.py"))}
    given = [flag.removeprefix("--").replace("-", "_") for flag in flags if flag.startswith("--")]
    assert set(given) <= known and flags[-2:] == ["--out", str(tmp_path)]
    assert ("_strict" in shlex.join(flags[:4])) == strict


def test_a_stopped_run_is_continued(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    command = bundled_sources.command_of("resnet_mini", False, tmp_path)
    assert command == ["-m", "recipes", "run", "pretraining", "--resume", str(tmp_path)]


def test_only_a_finished_run_is_installed(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "common" / "bundled" / "bert_mini").mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"bundled_sources\.py bert_mini --strict"):
        bundled_sources.install("bert_mini", True, tmp_path / "run")
    (tmp_path / "run" / "preset").mkdir(parents=True)
    (tmp_path / "run" / "preset" / "card.json").write_text("{}")
    (tmp_path / "run" / "metrics.json").write_text("{}")
    bundled_sources.install("bert_mini", True, tmp_path / "run")
    assert (tmp_path / "common" / "bundled" / "bert_mini" / "card.json").exists()
