"""Fetch a pretrained model ahead of time."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.sources.specs import parse_source
from recipes.commands._execution import quiet_tensorflow

TAKES = "SOURCE"


def main(arguments: list[str], root: Path) -> int:
    """Fetch a source ahead of time, go on with a fetch that broke off, verify it, and print how to use it offline."""
    parser = argparse.ArgumentParser(prog="python -m recipes fetch", description=main.__doc__)
    parser.add_argument("source", metavar="SOURCE", help="what would stand after --source")
    source = parser.parse_args(arguments).source
    parse_source(source)  # a mistake is told before the seconds of importing TensorFlow
    with quiet_tensorflow():
        from common.images.fetch import fetch_source

    print(f"It is here. Without network: --source '{fetch_source(source)}'")
    return 0
