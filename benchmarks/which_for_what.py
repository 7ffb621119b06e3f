"""Which bundled source for which images, at which size: frozen and fine-tuned, with the seconds of the whole command.

    python benchmarks/prepare_data.py cifar10_subset hymenoptera_data clothing10_96 digits_da
    python benchmarks/which_for_what.py            # hours; what is measured is kept, the same command continues

Only upstream's training images are read, since this table is to choose the defaults of the recipes: each run splits
them itself, and its test split is made of them. At most LIMIT images of a split. Writes
benchmarks/results/which_for_what.json.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from demos import lines_of_boxes, write_table  # noqa: E402 (beside this script)
from provenance import commit, machine  # noqa: E402

from common.detection.readers.voc import voc_rows  # noqa: E402
from common.files import write_json  # noqa: E402

OUT = ROOT / "benchmarks" / "results" / "which_for_what.json"
PREPARED, SHARED = "../prepared_data", "../shared/data"
SOURCES, SIZES = ("resnet_mini", "mobilenet_v2"), (64, 96, 128, 160)
LIMIT, LIMIT_BOXES = "700", "80"
CELLS = f"{PREPARED}/bccd_train"
SETS = {
    "hymenoptera": ("image_classification", "--data", f"folder:{PREPARED}/hymenoptera_data/train"),
    "ucmerced21_64": ("image_classification", "--data", f"folder:{SHARED}/ucmerced21_64/train", "--limit", LIMIT),
    "clothing10_96": (
        "image_classification", "--data", f"folder:{PREPARED}/clothing10_96/train", "--group", "sender_([0-9]+)_",
        "--limit", LIMIT,
    ),
    "cifar10_subset": ("image_classification", "--data", f"folder:{PREPARED}/cifar10_subset/train", "--limit", LIMIT),
    "digits": ("image_classification", "--data", f"folder:{PREPARED}/mnist/train", "--limit", LIMIT),
    "bccd": ("object_detection", "--data", f"csv:{CELLS}/boxes.csv", "--limit", LIMIT_BOXES, "--stride", "4"),
}  # fmt: skip
SCORE = {"image_classification": "accuracy", "object_detection": "ap"}


def prepare_cells() -> None:
    """Write upstream's training images of blood cells and one table of their boxes, without a split."""
    if (ROOT / CELLS / "boxes.csv").exists():
        return
    (ROOT / CELLS).mkdir(parents=True, exist_ok=True)
    table = []
    for row in voc_rows(ROOT / SHARED / "bccd", defaultdict(list)):
        if row.split != "test":
            shutil.copyfile(row.path, ROOT / CELLS / Path(row.path).name)
            table += lines_of_boxes(row, Path(row.path).name)
    write_table(ROOT / CELLS / "boxes.csv", table)


def measure(name: str, source: str, size: int) -> dict:
    """Run the recipe once; return its scores, frozen and fine-tuned, and its seconds."""
    recipe, *flags = SETS[name]
    with tempfile.TemporaryDirectory() as out:
        command = ["-m", "recipes", "run", recipe, *flags, "--source", source, "--image-size", str(size)]
        command += ["--baselines", "frozen"]
        subprocess.run([sys.executable, *command, "--out", out], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        metrics = json.loads(Path(out, "metrics.json").read_text("utf-8"))
    score, seconds = SCORE[recipe], metrics["seconds"]
    return {
        "data": name, "source": source, "image_size": size, "score": score,
        "frozen": metrics["baselines"]["frozen"][score],
        "fine_tuned": metrics["test"][score], "fine_tuned_ci95": metrics["test"].get(f"{score}_ci95"),
        "seconds": seconds["total"], "seconds_of_finetune": seconds["finetune"], "counts": metrics["counts"],
        "command": shlex.join(["python", *command, "--out", "OUT"]), "commit": commit(ROOT),
    }  # fmt: skip


def main() -> None:
    """Measure what is not yet there."""
    found = json.loads(OUT.read_text("utf-8"))["rows"] if OUT.exists() else []
    there = {(row["data"], row["source"], row["image_size"]) for row in found}
    prepare_cells()
    for name in SETS:
        for size in SIZES:
            for source in SOURCES:
                if (name, source, size) in there:
                    continue
                found.append(measure(name, source, size))
                row = found[-1]
                print(*(row[key] for key in ("data", "source", "image_size", "frozen", "fine_tuned", "seconds")))
                write_json(OUT, {"command": "python benchmarks/which_for_what.py", **machine(), "rows": found})


if __name__ == "__main__":
    main()
