"""`--unfreeze auto` beside the three fixed policies, on six data sets of two sizes; every policy has the same features.

    python benchmarks/prepare_data.py --out ../prepared_data
    python benchmarks/unfreeze_policies.py            # continues where it was stopped
    python benchmarks/unfreeze_policies.py --verify   # one draw again: equal under today's code?

The rule of `auto` (common/classification/choice.py) was developed on parts of the training splits. The test splits are
read here, once, by the finished rule. Writes benchmarks/results/unfreeze_policies.json; the correctness of each
prediction is kept, so that policies are compared in pairs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from provenance import commit, machine, row_hash  # noqa: E402 (beside this script)

from common.files import write_json  # noqa: E402
from common.images.sources import load_source  # noqa: E402
from common.runs import Run  # noqa: E402
from recipes.image_classification import recipe  # noqa: E402

PREPARED, OUT = ROOT.parent / "prepared_data", ROOT / "benchmarks" / "results" / "unfreeze_policies.json"
SETS = {
    "ants and bees": f"folder:{PREPARED}/hymenoptera_data",
    "cifar10_subset": f"folder:{PREPARED}/cifar10_subset",
    "clothing10_96": f"folder:{PREPARED}/clothing10_96",
    "ucmerced21_64": f"folder:{ROOT.parent}/shared/data/ucmerced21_64",
    "pets_seg160, breed": f"folder:{PREPARED}/pets_seg160",
    "fashion_attributes, type": f"folder:{PREPARED}/fashion_attributes",
}
GROUPS = {"clothing10_96": "sender_([0-9]+)_"}
SIZES = {"10 per class": {"shots": 10}, "all": {"limit": 1500}}
SEEDS = (0, 1, 2)
POLICIES = ("frozen", "last_block", "all", "auto")
IMAGE_SIZE = 96


def measure(name: str, size: str, seed: int) -> dict:
    """Train every policy on one draw of one data set; return correctness, accuracy and seconds of each."""
    found = {}
    with tempfile.TemporaryDirectory() as out:
        config = recipe.Config(
            data=SETS[name], group=GROUPS.get(name), image_size=IMAGE_SIZE, seed=seed, out=out, **SIZES[size]
        )
        run = Run(config)
        data = recipe.load_data(config)[0]
        began = time.monotonic()
        of, _ = recipe.extract_features(load_source(config.source, config.image_size), data, config)
        features, shared = time.monotonic() - began, set((run.out / "features").iterdir())
        for policy in POLICIES:
            run.config = dataclasses.replace(config, unfreeze=policy)
            (run.out / "checkpoints" / "finetune.npz").unlink(missing_ok=True)
            for file in set((run.out / "features").iterdir()) - shared:  # of a policy before: each pays for its own
                file.unlink()
            began, cpu = time.monotonic(), time.process_time()
            trained = recipe.train(run, data, of, seed)
            correct = trained.probabilities.argmax(axis=1) == data.test.labels
            found[policy] = {
                "accuracy": round(float(correct.mean()), 4),
                "seconds": round(time.monotonic() - began + features, 1),
                "cpu_seconds": round(time.process_time() - cpu, 1),
                "choice": trained.choice,
                "correct": "".join(str(int(one)) for one in correct),
            }
            del trained
            keras.utils.clear_session()  # or the graphs of all models would stay
            print(f"{name}, {size}, seed {seed}, {policy}: {found[policy]['accuracy']:.4f}", flush=True)
    return {"counts": data.counts(), **machine(), "policies": found}


def summary(rows: dict[str, dict]) -> dict:
    """Return the mean accuracy of each policy on each set and size, and how `auto` compares with the frozen source."""
    table = {}
    for name in SETS:
        for size in SIZES:
            measured = [rows[key] for seed in SEEDS if (key := f"{name} | {size} | {seed}") in rows]
            if len(measured) < len(SEEDS):
                continue
            cell = {
                policy: {
                    "accuracy": round(statistics.mean(row["policies"][policy]["accuracy"] for row in measured), 4),
                    "seconds": round(statistics.median(row["policies"][policy]["seconds"] for row in measured), 1),
                }
                for policy in POLICIES
            }
            gains = np.mean([correct(row, "auto") - correct(row, "frozen") for row in measured], axis=0)
            cell["auto_over_frozen"] = {
                "points": round(100 * float(gains.mean()), 2),
                "standard_error": round(100 * float(gains.std(ddof=1) / len(gains) ** 0.5), 2),
            }
            table[f"{name}, {size}"] = cell
    accuracies = {policy: [cell[policy]["accuracy"] for cell in table.values()] for policy in POLICIES}
    return {"table": table, "mean": {name: round(statistics.mean(of), 4) for name, of in accuracies.items() if of}}


def correct(row: dict, policy: str) -> np.ndarray:
    """Return 1 for each test image that a policy classifies correctly, else 0."""
    return np.array([int(one) for one in row["policies"][policy]["correct"]])


def main() -> None:
    """Measure what is missing, and write all of it after each draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verify", action="store_true", help="measure one draw again, and keep all if it is equal")
    verify = parser.parse_args().verify
    code = row_hash(ROOT, "image_classification", "python -m recipes run image_classification")
    about = {"command": "python benchmarks/unfreeze_policies.py", "image_size": IMAGE_SIZE, "code": code}
    kept = json.loads(OUT.read_text("utf-8")) if OUT.exists() else {}
    rows = kept.get("rows", {}) if verify or kept.get("code") == code else {}
    if verify and rows:
        first = next(iter(rows))
        name, size, seed = first.split(" | ")
        again = measure(name, size, int(seed))["policies"]
        if any(again[policy]["correct"] != rows[first]["policies"][policy]["correct"] for policy in POLICIES):
            raise SystemExit(f"{first} differs from what is committed. Measure all of it again: remove {OUT}")
        write_json(OUT, {**about, "commit": commit(ROOT), **summary(rows), "rows": rows})
    for seed in SEEDS:
        for size in SIZES:
            for name in SETS:
                if (key := f"{name} | {size} | {seed}") not in rows:
                    rows[key] = measure(name, size, seed)
                    write_json(OUT, {**about, "commit": commit(ROOT), **summary(rows), "rows": rows})


if __name__ == "__main__":
    main()
