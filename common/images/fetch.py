"""Fetch a source ahead of time, an image source unless its short name is of another kind."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError
from common.hub import check_saved_model
from common.images.keras_applications import build_application, explained_download, own_size
from common.sources.entries import fetch_entry
from common.sources.handles import is_handle
from common.sources.hub_cache import resolve_handle
from common.sources.presets import fetch_preset
from common.sources.specs import parse_source


def fetch_source(text: str) -> str:
    """Fetch the files of a source ahead of time, and verify them where upstream publishes hashes.

    Args:
        text: as for `load_source`.

    Returns:
        The same source, in a form that needs no network.

    Raises:
        UserError: it cannot be fetched, or the files are not as expected.
    """
    spec = parse_source(text)
    if spec.random:
        raise UserError(f"Initial weights need no download. Received: {text!r}. Try it without '@random'.")
    if spec.entry and spec.entry.sha256:
        folder = fetch_entry(spec.entry)
        return f"preset:{folder}" if spec.kind == "preset" else text
    long = spec.entry.source if spec.entry else text
    if spec.kind == "hub" and is_handle(spec.name):
        folder = resolve_handle(spec.name, check_saved_model)
        return f"hub:{long.removeprefix('hub:').replace(spec.name, str(folder))}"
    if spec.kind == "hub":
        check_saved_model(Path(spec.name).expanduser())
    if spec.kind == "keras" and not spec.weights:
        with explained_download(spec) as fetched:
            build_application(spec, own_size(spec), "imagenet")
        return f"{long}@{fetched[0]}"
    if spec.kind == "preset" and not Path(spec.name).expanduser().is_dir():
        return f"preset:{fetch_preset(spec)}"
    return long
