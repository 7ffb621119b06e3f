"""Fetch a pretrained model ahead of time. Resumes an interrupted download."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.sources.catalogue import CATALOGUE, WORD_VECTORS
from common.sources.entries import fetch_entry
from common.sources.specs import parse_source
from recipes.commands._execution import importing_tensorflow

TAKES = "SOURCE"


def main(arguments: list[str], root: Path) -> int:
    """Fetch a source ahead of time, verify it, and print how to use it offline. Resumes an interrupted download."""
    parser = argparse.ArgumentParser(prog="python -m recipes fetch", description=main.__doc__)
    parser.add_argument("source", metavar="SOURCE", help="as for --source")
    source = parser.parse_args(arguments).source
    if source in WORD_VECTORS:
        fetch_entry(CATALOGUE[source])
        print(f"Fetched. Without network: --word-vectors {source}")
        return 0
    parse_source(source)  # errors are reported before importing TensorFlow, which takes seconds
    with importing_tensorflow():
        from common.images.fetch import fetch_source

    print(f"Fetched. Without network: --source '{fetch_source(source)}'")
    return 0
