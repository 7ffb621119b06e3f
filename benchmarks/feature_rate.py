"""Features of photos as a run extracts them, against the engine alone on batches that are in memory already.

    pip install -r requirements-fast.txt                                                        # OpenVINO; optional
    python benchmarks/make_photos.py ../prepared_data/photos_500 --count 10000 --width 500      # once
    python benchmarks/feature_rate.py                                                           # minutes

A run makes batches of the decoded pixels, calls the engine and writes the features to disk; decoding comes before, and
is not counted. Both take turns, a few seconds each, since the speed of a machine changes within a minute. Writes
benchmarks/results/feature_rate.json.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.provenance import commit, machine  # noqa: E402 (the checkout is not on sys.path)
from common.files import write_json  # noqa: E402
from common.images.batches import image_batches  # noqa: E402
from common.images.engine import choose_engine  # noqa: E402
from common.images.features import extract_features  # noqa: E402
from common.images.pixels import read_images  # noqa: E402
from common.images.sources import load_fitting  # noqa: E402

OUT = ROOT / "benchmarks" / "results" / "feature_rate.json"
PHOTOS = ROOT.parent / "prepared_data" / "photos_500"
CHUNK, CHUNKS, BATCH = 512, 20, 64  # images


def main() -> None:
    """Time both in turn, and write the rates of each chunk and their ratio."""
    paths = [str(path) for path in sorted(PHOTOS.rglob("*.jpg"))[: CHUNK * CHUNKS]]
    source, load = load_fitting("bundled:mobilenet_v2", None, 500), os.getloadavg()[0]
    pixels = read_images(paths, source.image_size)
    rates: dict[str, list[float]] = {"as in a run": [], "engine alone": []}
    with tempfile.TemporaryDirectory() as folder:
        engine = choose_engine(source, pixels, 10 * len(paths), Path(folder) / "engine.json")
        for number in range(len(paths) // CHUNK):
            some = pixels.take(slice(number * CHUNK, (number + 1) * CHUNK))
            ready = list(image_batches(some, BATCH))
            ways = {
                "as in a run": lambda some=some: extract_features(
                    source, some, Path(folder), batch_size=BATCH, forward=engine.forward, engine=engine.name
                ),
                "engine alone": lambda ready=ready: [engine.forward(batch) for batch in ready],
            }
            for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
                began = time.monotonic()
                ways[name]()
                rates[name].append(round(CHUNK / (time.monotonic() - began), 1))
    ratios = [run / alone for run, alone in zip(*rates.values(), strict=True)]
    found = {
        "photos": len(paths), "side": source.image_size[0], "engine": engine.report(), "images_per_second": rates,
        "ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios],
    }  # fmt: skip
    print(found)
    about = {"command": "python benchmarks/feature_rate.py", "commit": commit(ROOT), **machine()}
    write_json(OUT, {**about, "load_average": round(load, 2), **found})


if __name__ == "__main__":
    main()
