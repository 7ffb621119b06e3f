"""The card of a pretrained model: the command that trained it, the data, the scores."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path

from common.files import write_json


def write_preset_card(preset: Path, recipe: str, config, data: str, metrics: Mapping, **more) -> Path:
    """Write card.json into a pretrained model: command, data and scores.

    Args:
        preset: folder of the model.
        recipe: that trained it.
        config: its settings, a dataclass with `licence`.
        data: description of the training data.
        metrics: contents of metrics.json.
        **more: further entries, after the data.

    Returns:
        The file.
    """
    card = {"licence": config.licence, "data": data, **more, "command": command(recipe, config)}
    return write_json(preset / "card.json", card | {name: metrics[name] for name in ("seconds", "test", "versions")})


def command(recipe: str, config) -> str:
    """Return the command line that repeats a run: the flags that differ from the recipe's defaults, and `--out OUT`."""
    parts = ["python -m recipes run", recipe]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default or field.name in ("out", "resume"):
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            parts.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            parts.append(" ".join([f"--{flag}", *(shlex.quote(str(item)) for item in values)]))
    return " ".join([*parts, "--out OUT"])
