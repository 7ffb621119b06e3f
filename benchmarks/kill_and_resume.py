"""Kill a run with SIGKILL at random moments, resume it, and compare with a run that nobody disturbed.

    python benchmarks/kill_and_resume.py                             # ten kills of the demo; ten minutes on 2 cores
    python benchmarks/kill_and_resume.py --kills 3 -- --epochs 2     # flags after -- go to image_classification

Writes benchmarks/results/kill_and_resume.json: for each kill the moment, what was being done, and whether test
metrics and weights are equal, bit by bit, to those of the undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common import files, runs  # noqa: E402 (the script's folder, not the checkout, is on sys.path)

FLAGS = ["--epochs", "8", "--save-every", "1"]
RUN = [sys.executable, "-m", "recipes", "run", "image_classification"]


def weights_of(run: Path) -> dict[str, np.ndarray]:
    """Return every array of OUT/model.keras by name."""
    found = {}
    with zipfile.ZipFile(run / "model.keras") as archive, archive.open("model.weights.h5") as file:
        with h5py.File(file) as weights:
            weights.visititems(lambda name, item: found.update({name: item[()]}) if hasattr(item, "shape") else None)
    return found


def same(a: Path, b: Path) -> dict[str, bool]:
    """Compare the results of two runs: their test metrics, baselines, and weights."""
    first, second = (json.loads((run / "metrics.json").read_text("utf-8")) for run in (a, b))
    for metrics in (first, second):
        for baseline in metrics["baselines"].values():
            baseline.pop("seconds")
    mine, other = weights_of(a), weights_of(b)
    return {
        "test_metrics": first["test"] == second["test"],
        "baselines": first["baselines"] == second["baselines"],
        "history": (a / "history.csv").read_bytes() == (b / "history.csv").read_bytes(),
        "weights": mine.keys() == other.keys() and all(np.array_equal(mine[name], other[name]) for name in mine),
    }


def run(arguments: list[str], log: Path, seconds: float | None = None) -> bool:
    """Run the recipe, kill it after so many seconds; return whether it was killed."""
    with open(log, "ab") as output:
        process = subprocess.Popen([*RUN, *arguments], cwd=ROOT, stdout=output, stderr=output)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
    if code:
        raise SystemExit(f"{' '.join([*RUN, *arguments])} failed:\n{log.read_text()[-3000:]}")
    return False


def main(kills: int, seed: int, flags: list[str]) -> None:
    """Run once undisturbed, then `kills` times with a kill and a resume, and write what came of it."""
    chosen = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole")
        began = time.monotonic()
        run([*flags, "--out", str(whole)], Path(folder, "whole.log"))
        length = time.monotonic() - began
        print(f"undisturbed: {length:.0f} s", flush=True)
        rows = []
        for number in range(kills):
            out, log = Path(folder, str(number)), Path(folder, f"{number}.log")
            # In the first seconds there is nothing to resume yet; the import of TensorFlow fills them.
            moment = chosen.uniform(0.15, 0.95) * length
            killed = run([*flags, "--out", str(out)], log, moment)
            left = sorted(path.name for kind in ("checkpoints", "features") for path in out.glob(f"{kind}/*.np[yz]"))
            export = (out / "serving").exists()
            if killed:
                run(["--resume", str(out)], log)
            row = {"killed_after_seconds": round(moment, 1), "killed": killed, "on_disk": left, "exporting": export}
            rows.append(row | {"equal": same(whole, out)})
            print(json.dumps(rows[-1]), flush=True)
    result = {
        "command": " ".join(["python", *RUN[1:], *flags, "--out OUT"]),
        "undisturbed_seconds": round(length, 1),
        "kills": rows,
        "equal_in_everything": sum(all(row["equal"].values()) for row in rows if row["killed"]),
        "killed": sum(row["killed"] for row in rows),
        "versions": runs.versions(),
        "date": time.strftime("%Y-%m-%d"),
    }
    files.write_json(ROOT / "benchmarks" / "results" / "kill_and_resume.json", result)
    print(f"{result['equal_in_everything']} of {result['killed']} killed runs ended equal to the undisturbed one")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("flags", nargs="*", default=FLAGS, help="flags of image_classification, after --")
    options = parser.parse_args()
    main(options.kills, options.seed, options.flags)
