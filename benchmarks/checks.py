"""Three promises, measured: flat memory, extraction at the speed of the network, and planted faults that are found.

    python benchmarks/checks.py                  # all; ten minutes on 2 cores
    python benchmarks/checks.py memory           # 40,000 generated pictures need hardly more memory than 4,000
    python benchmarks/checks.py extraction       # features from files beside `predict` on tensors in memory
    python benchmarks/checks.py planted          # flipped labels and changed copies in hymenoptera_data

Each writes benchmarks/results/NAME.json.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common import files, runs  # noqa: E402 (the script's folder, not the checkout, is on sys.path)

PREPARED, SHARED = ROOT / ".." / "prepared_data", ROOT / ".." / "shared" / "data"
MOBILENET = "keras:MobileNetV2@../shared/data/weights/mobilenet_imagenet_keras/mobilenet_v2_1.0_224_notop.weights.h5"


def run_recipe(*flags: str, out: Path) -> dict:
    """Run image_classification as a user would and return its metrics."""
    command = [sys.executable, "-m", "recipes", "run", "image_classification", *flags, "--out", str(out)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(finished.stdout[-2000:] + finished.stderr[-2000:])
    return json.loads((out / "metrics.json").read_text("utf-8"))


def memory() -> dict:
    """Run the whole recipe, fine-tuning and all, on generated pictures: ten times as many must not need more memory."""
    import numpy as np
    from PIL import Image

    flags = ("--epochs", "1", "--views", "1", "--baselines", "none")
    rows = {}
    for count in (4_000, 40_000):
        with tempfile.TemporaryDirectory() as folder:
            rng = np.random.default_rng(0)
            for number in range(count):
                path = Path(folder, "pictures", f"class_{number % 4}", f"{number}.jpg")
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 160, (64, 64, 3)) + 30 * (number % 4)
                Image.fromarray(pixels.astype("uint8")).save(path, quality=80)
            metrics = run_recipe("--data", f"folder:{folder}/pictures", *flags, out=Path(folder, "run"))
            keys = ("peak_memory_mb", "counts", "seconds")
            rows[str(count)] = {key: metrics[key] for key in keys}
            print(f"memory: {count:,} pictures: {metrics['peak_memory_mb']:,.0f} MB", flush=True)
    more = rows["40000"]["peak_memory_mb"] - rows["4000"]["peak_memory_mb"]
    return {"flags": flags, "pictures": rows, "difference_mb": round(more, 1)}


def extraction(repeats: int = 3) -> dict:
    """Compare the rate of `extract_features` on files with the bare `predict` on tensors in memory, alternating."""
    import numpy as np

    from common.images.batches import image_batches
    from common.images.features import extract_features
    from common.images.pixels import read_images
    from common.images.sources import load_source

    rows = {}
    for name, folder, side in (
        ("hymenoptera_data, photos", PREPARED / "hymenoptera_data", 224),
        ("ucmerced21_64", SHARED / "ucmerced21_64", 160),
    ):
        paths = sorted(str(path) for path in folder.rglob("*.jpg"))[:384]
        source = load_source(MOBILENET, side)
        pixels = np.concatenate(list(image_batches(read_images(paths, source.image_size), 64).as_numpy_iterator()))
        source.extractor.predict(pixels[:64], batch_size=64, verbose=0)
        rates: dict[str, list[float]] = {"predict": [], "extract_features": []}
        with tempfile.TemporaryDirectory() as cache:
            extract_features(source, read_images(paths[:64], source.image_size), Path(cache))  # both are traced now
            for repeat in range(repeats):
                began = time.monotonic()
                source.extractor.predict(pixels, batch_size=64, verbose=0)
                rates["predict"].append(len(paths) / (time.monotonic() - began))
                began = time.monotonic()
                extract_features(source, read_images(paths, source.image_size), Path(cache, str(repeat)))
                rates["extract_features"].append(len(paths) / (time.monotonic() - began))
        medians = {way: statistics.median(found) for way, found in rates.items()}
        rows[name] = {
            "images_per_second": {way: [round(rate, 1) for rate in found] for way, found in rates.items()},
            "ratio": round(medians["extract_features"] / medians["predict"], 3),
        }
        print(f"extraction: {name}: {rows[name]}", flush=True)
    return rows


def planted(seeds: tuple[int, ...] = (0, 1, 2)) -> dict:
    """Flip 5 % of the training labels of hymenoptera_data, put 10 training images into its test split, and look.

    Five of the ten copies are the same bytes, which the recipe takes out by itself; five were saved smaller and
    darker, which its report must name.
    """
    import numpy as np
    from PIL import Image, ImageEnhance

    rows = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder, "data")
            shutil.copytree(PREPARED / "hymenoptera_data", data)
            train = sorted(path for path in (data / "train").rglob("*") if path.is_file())
            chosen = rng.permutation(len(train))
            flips, copies = chosen[: round(0.05 * len(train))], chosen[-10:]
            exact, changed, flipped = [], [], set()
            for number, index in enumerate(copies):
                picture = train[index]
                target = data / "val" / picture.parent.name / f"copy_{number}.jpg"
                if number < 5:
                    shutil.copy(picture, target)
                    exact.append(picture.name)
                else:
                    image = Image.open(picture).convert("RGB")
                    image = image.resize((image.width * 2 // 3, image.height * 2 // 3))
                    ImageEnhance.Brightness(image).enhance(0.85).save(target, quality=70)
                    changed.append(target.name)
            for index in flips:
                picture = train[index]
                other = {"ants": "bees", "bees": "ants"}[picture.parent.name]
                shutil.move(picture, data / "train" / other / picture.name)
                flipped.add(picture.name)
            out = Path(folder, "run")
            flags = ("--data", f"folder:{data}", "--source", MOBILENET, "--unfreeze", "frozen", "--seed", str(seed))
            metrics = run_recipe(*flags, out=out)
            with open(out / "suspected_labels.csv", encoding="utf-8") as file:
                suspects = [Path(row["path"]).name for row in csv.DictReader(file) if row["split"] != "test"]
            with open(out / "near_duplicates.csv", encoding="utf-8") as file:
                near = {Path(row["path"]).name for row in csv.DictReader(file)}
            top = suspects[: round(0.1 * len(train))]
            row = {
                "seed": seed,
                "flipped": len(flipped),
                "flips_among_top_10_percent": round(len(flipped & set(top)) / len(flipped), 3),
                "suspects": len(suspects),
                "exact_copies_that_left_training": metrics["counts"]["skipped"],
                "changed_copies_named": sum(name in near for name in changed),
                "named_in_all": len(near),
            }
            rows.append(row)
            print(f"planted: {row}", flush=True)
    return {"seeds": rows}


CHECKS = {"memory": memory, "extraction": extraction, "planted": planted}

if __name__ == "__main__":
    unknown = set(sys.argv[1:]) - set(CHECKS)
    if unknown:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}. Allowed: {', '.join(CHECKS)}")
    for check in sys.argv[1:] or CHECKS:
        found = CHECKS[check]()
        facts = {"versions": runs.versions(), "machine": f"{os.cpu_count()} cores", "date": time.strftime("%Y-%m-%d")}
        files.write_json(
            ROOT / "benchmarks" / "results" / f"{check}.json",
            {"command": f"python benchmarks/checks.py {check}", **found, **facts},
        )
