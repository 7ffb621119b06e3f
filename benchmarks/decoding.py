"""Seconds to read photos as a run does it, against decoding each file once, whole, with two threads.

    python benchmarks/make_photos.py ../prepared_data/photos_12mp    # once
    python benchmarks/decoding.py                                    # two minutes

A run decodes large JPEGs at a reduced scale, hashes each file, resizes the image and makes its thumbnail. Both use
TensorFlow's decoder, as the export does, and take turns. Writes benchmarks/results/decoding.json.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import tensorflow as tf  # noqa: E402 (the checkout is not on sys.path)

from benchmarks.provenance import commit, machine  # noqa: E402
from common.files import write_json  # noqa: E402
from common.images.pixels import read_images  # noqa: E402

OUT = ROOT / "benchmarks" / "results" / "decoding.json"
PHOTOS = ROOT.parent / "prepared_data" / "photos_12mp"
SIDE, THREADS, REPEATS = 160, 2, 3


def decode_each_once(paths: list[str]) -> None:
    """Decode every file at its full size, and keep nothing."""
    with ThreadPool(THREADS) as pool:
        pool.map(lambda path: tf.io.decode_jpeg(tf.io.read_file(path), channels=3).shape, paths)


def main() -> None:
    """Time both in turn, and write the medians."""
    paths = [str(path) for path in sorted(PHOTOS.rglob("*.jpg"))]
    ways = {
        "as in a run": lambda: read_images(paths, (SIDE, SIDE)),
        "each once, whole": lambda: decode_each_once(paths),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    load = os.getloadavg()[0]
    read_images(paths[:1], (SIDE, SIDE))  # builds the graph
    decode_each_once(paths)  # the files are in the page cache for both
    for _ in range(REPEATS):
        for name, read in ways.items():
            began = time.monotonic()
            read()
            seconds[name].append(round(time.monotonic() - began, 2))
    medians = [statistics.median(values) for values in seconds.values()]
    found = {"photos": len(paths), "seconds": seconds, "ratio": round(medians[0] / medians[1], 3)}
    print(found)
    about = {"command": "python benchmarks/decoding.py", "commit": commit(ROOT), **machine()}
    write_json(OUT, {**about, "load_average": round(load, 2), **found})


if __name__ == "__main__":
    main()
