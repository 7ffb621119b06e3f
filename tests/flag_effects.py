"""Every flag of a recipe has a test of its effect: the check that the tests of several recipes share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

TESTS = Path(__file__).parent


def check_effects(effects: Mapping[str, str], config: type, own: Path) -> None:
    """Assert that each field of a Config is mapped to a test that there is.

    Args:
        effects: field -> `TEST` of the file `own`, or `FOLDER/FILE.py::TEST` below tests.
        config: the recipe's Config.
        own: the file that holds the table.
    """
    assert set(effects) == {field.name for field in dataclasses.fields(config)}
    for flag, name in effects.items():
        file, _, test = name.rpartition("::")
        path = TESTS / file if file else own
        assert f"def {test}(" in path.read_text("utf-8"), f"--{flag}: there is no test {name}"
