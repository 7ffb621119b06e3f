"""What `convert` makes of real runs: LiteRT, LiteRT in 8 bits and ONNX beside the SavedModel.

    python benchmarks/prepare_data.py                        # once: the data, outside the checkout
    pip install -r requirements-convert.txt
    python benchmarks/conversions.py                         # ten minutes on 2 cores

Each run is trained, exported and converted by the command line, as a user does. Ants or bees: MobileNetV2 with ImageNet
weights. Digits: the bundled ResNet, fine-tuned. CIFAR-10: MobileNetV2, fine-tuned on a thousand pictures. Land use: a
head on a small ResNet that is a SavedModel itself. An 8-bit model that may not be used is a result like any other.
Writes benchmarks/results/conversions.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common import files  # noqa: E402 (the script's folder, not the checkout, is on sys.path)

MOBILENET = "keras:MobileNetV2@../shared/data/weights/mobilenet_imagenet_keras/mobilenet_v2_1.0_224_notop.weights.h5"
RUNS = {
    "hymenoptera, MobileNetV2": (
        *("--data", "folder:../prepared_data/hymenoptera_data", "--source", MOBILENET),
        *("--epochs", "3", "--unfreeze", "last_block"),
    ),
    "digits, resnet_mini": ("--data", "demo:digits"),
    "cifar10, MobileNetV2 at 96 pixels": (
        *("--data", "folder:../prepared_data/cifar10_subset", "--source", MOBILENET),
        *("--image-size", "96", "--limit", "1000", "--epochs", "3"),
    ),
    "land use, resnet20_cifar10 at 32 pixels": (
        *("--data", "folder:../shared/data/ucmerced21_64", "--source", "hub:../prepared_data/resnet20_cifar10"),
        *("--image-size", "32", "--unfreeze", "frozen"),
    ),
}
FORMS = (("--to", "litert"), ("--to", "litert", "--int8"), ("--to", "onnx"))


def recipes(*arguments: str) -> int:
    """Run one command of the recipes.

    Returns:
        0, or 1 where a proof failed.
    """
    command = [sys.executable, "-m", "recipes", *arguments]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if finished.returncode not in (0, 1) or "Traceback" in finished.stderr:
        raise SystemExit(finished.stdout[-2000:] + finished.stderr[-2000:])
    return finished.returncode


def measure(flags: tuple[str, ...], out: Path) -> dict[str, dict]:
    """Train with these flags, and convert in each form.

    Returns:
        For each form what `conversion.json` says and the exit code of `convert`; and the `versions` of all.
    """
    if recipes("run", "image_classification", "--no-explain", *flags, "--out", str(out)):
        raise SystemExit(f"the proof of the run failed: {flags}")
    found, versions = {}, {}
    for form in FORMS:
        code = recipes("convert", str(out), *form)
        kind = "litert_int8" if "--int8" in form else form[1]
        one = json.loads((out / "converted" / kind / "conversion.json").read_text("utf-8"))
        versions |= one.pop("versions")
        found[kind] = one | {"exit_code": code}
        if "float_bytes" in one:
            found[kind]["times_smaller_than_float"] = round(one["float_bytes"] / one["bytes"], 3)
    return found | {"versions": versions}


def main() -> None:
    """Measure all runs and write what came of it."""
    found, versions = {}, {}
    for name, flags in RUNS.items():
        with tempfile.TemporaryDirectory() as top:
            found[name] = measure(flags, Path(top, "run"))
        versions |= found[name].pop("versions")
        for kind, one in found[name].items():
            told = (
                "agreement",
                "max_abs_diff",
                "accuracy",
                "bytes",
                "times_smaller_than_float",
                "milliseconds",
                "passed",
            )
            print(f"{name}, {kind}: {json.dumps({key: one[key] for key in told if key in one})}", flush=True)
    content = {
        "command": "python benchmarks/conversions.py",
        "flags": {name: " ".join(flags) for name, flags in RUNS.items()},
        "runs": found,
        "versions": versions,
        "machine": f"{os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
    }
    files.write_json(ROOT / "benchmarks" / "results" / "conversions.json", content)


if __name__ == "__main__":
    main()
