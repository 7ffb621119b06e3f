"""The card of a source: where it comes from, its licence, and what it has learned from."""

from __future__ import annotations

import json
from pathlib import Path

from common.errors import UserError, first_line


def card_entries(folder: Path) -> dict[str, str]:
    """Return origin, licence and data as card.json of a folder states them."""
    path = folder / "card.json"
    try:
        card = dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}
        return {key: card[key] for key in ("origin", "licence", "data") if key in card}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read: {first_line(error)}. Correct or remove it; the model does not need it."
        ) from error
