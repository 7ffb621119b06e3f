"""Measure the recipes on real data and write recipes/*/results.json and the tables of README.md from it.

    python benchmarks/prepare_data.py                        # once: the data, outside the checkout
    python benchmarks/measure.py                             # everything; a night on 2 cores
    python benchmarks/measure.py hymenoptera demo            # only these; the others keep their last numbers
    python benchmarks/tables.py                              # only write the tables of README.md again

Each measurement is the command that a user would type, run once for each seed in a process of its own.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tables import rows_of, write_tables  # noqa: E402 (beside this script)

from common import files  # noqa: E402 (the script's folder, not the checkout, is on sys.path)
from recipes.commands._discovery import find_recipe  # noqa: E402

PREPARED, WEIGHTS = "../prepared_data", "../shared/data/weights/mobilenet_imagenet_keras"
MOBILENET = f"keras:MobileNetV2@{WEIGHTS}/mobilenet_v2_1.0_224_notop.weights.h5"


@dataclass(frozen=True)
class Measurement:
    """One row: a name, what it shows, the flags, and the seeds to repeat it with."""

    name: str
    title: str
    flags: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    recipe: str = field(default="image_classification")

    def command(self, seed: int | str, out: str) -> list[str]:
        """Return the arguments of `python` for one seed."""
        return ["-m", "recipes", "run", self.recipe, *self.flags, "--seed", str(seed), "--out", out]


def probe(name: str, title: str, data: str, source: str, *more: str) -> Measurement:
    """Return a linear probe: the frozen source, one look at each picture, a linear head."""
    return Measurement(name, title, ("--data", data, "--source", source, "--unfreeze", "frozen", *more))


def compared(name: str, source: str, size: str) -> Measurement:
    """Return how a source does on handwritten digits, fine-tuned; its row goes into the table of sources."""
    flags = ("--data", "demo:digits", "--source", source, "--image-size", size, "--no-explain")
    return Measurement(f"digits_{name}", f"Handwritten digits, 10 per class: {name} at {size} pixels", flags)


CIFAR, HYMENOPTERA = f"folder:{PREPARED}/cifar10_subset", f"folder:{PREPARED}/hymenoptera_data"
FSDD = ("--data", f"tsv:{PREPARED}/fsdd/all.tsv")
BCCD, RACCOON = "voc:../shared/data/bccd", "voc:../shared/data/raccoon"
SST2 = ("--data", "tsv:../shared/data/sst2", "--text-column", "1", "--label-column", "2", "--source", "minilm")
GLOVE = "../shared/data/weights/glove_6b_50d_top2446/glove.6B.50d.top.txt"
MEASUREMENTS = (
    Measurement(
        "demo",
        "Handwritten digits, 10 per class, bundled ResNet",
        ("--data", "demo:digits", "--baselines", "frozen,scratch"),
        seeds=(0, 1, 2, 3, 4),
    ),
    Measurement(
        "hymenoptera",
        "Ants or bees, 207 photos, ImageNet MobileNetV2",
        ("--data", HYMENOPTERA, "--source", MOBILENET, "--epochs", "3", "--unfreeze", "last_block"),
    ),
    Measurement(
        "cifar10",
        "CIFAR-10 subset, 5,950 images, ImageNet MobileNetV2 at 96 pixels",
        (
            *("--data", CIFAR, "--source", MOBILENET, "--image-size", "96"),
            *("--epochs", "4", "--baselines", "frozen,scratch"),
        ),
        seeds=(0,),  # minutes a seed
    ),
    probe("probe_cifar10", "Linear probe of bundled:resnet_mini, CIFAR-10 subset", CIFAR, "bundled:resnet_mini"),
    probe("probe_cifar10_random", "The same network, random weights", CIFAR, "bundled:resnet_mini@random"),
    probe("probe_hymenoptera", "Linear probe of bundled:resnet_mini, ants or bees", HYMENOPTERA, "bundled:resnet_mini"),
    probe("probe_hymenoptera_random", "The same network, random weights", HYMENOPTERA, "bundled:resnet_mini@random"),
    Measurement(
        "reviews",
        "Demo reviews, 8 per class, bundled BERT",
        ("--shots", "8", "--baselines", "frozen,words,scratch"),
        seeds=(0, 1, 2, 3, 4),
        recipe="bert_sentiment",
    ),
    Measurement(
        "sst2",
        "SST-2, 6,917 sentences, MiniLM",
        (*SST2, "--baselines", "frozen,words,vectors", "--word-vectors", GLOVE),
        recipe="bert_sentiment",
    ),
    Measurement(
        "sst2_scratch",
        "The same, with the network from scratch beside it",
        (*SST2, "--baselines", "frozen,words,vectors,scratch", "--word-vectors", GLOVE),
        recipe="bert_sentiment",
    ),
    Measurement(
        "sst2_lora",
        "The same, adapters of rank 4 (lora)",
        (*SST2, "--method", "lora", "--baselines", "none", "--no-explain"),
        recipe="bert_sentiment",
    ),
    Measurement("scenes", "Demo scenes, 10 digits, bundled ResNet", ("--baselines", "none"), recipe="object_detection"),
    Measurement(
        "bccd",
        "Blood cells, 3 classes, 292 images, ImageNet MobileNetV2",
        ("--data", BCCD, "--source", MOBILENET),
        recipe="object_detection",
    ),
    Measurement(
        "bccd_scratch",
        "The same, with a backbone from random weights beside it",
        ("--data", BCCD, "--source", MOBILENET, "--baselines", "scratch"),
        recipe="object_detection",
        seeds=(0,),  # three trainings
    ),
    Measurement(
        "raccoon",
        "Raccoons, 160 images, ImageNet MobileNetV2",
        ("--data", RACCOON, "--source", MOBILENET),
        recipe="object_detection",
    ),
    Measurement(
        "raccoon_scratch",
        "The same, with a backbone from random weights beside it",
        ("--data", RACCOON, "--source", MOBILENET, "--baselines", "scratch"),
        recipe="object_detection",
        seeds=(0,),  # three trainings
    ),
    Measurement(
        "bccd_yolov8",
        "Blood cells, the same with keras-cv's YOLOv8",
        ("--data", BCCD, "--source", MOBILENET, "--detector", "yolov8"),
        recipe="object_detection",
    ),
    Measurement(
        "raccoon_yolov8",
        "Raccoons, the same with keras-cv's YOLOv8",
        ("--data", RACCOON, "--source", MOBILENET, "--detector", "yolov8"),
        recipe="object_detection",
        seeds=(0,),  # minutes a seed
    ),
    Measurement(
        "bccd_retinanet",
        "Blood cells, the same with KerasHub's RetinaNet",
        ("--data", BCCD, "--source", MOBILENET, "--detector", "retinanet"),
        recipe="object_detection",
        seeds=(0,),  # minutes a seed
    ),
    Measurement(
        "spoken",
        "Demo: twenty words, test in other voices and accents, bundled wav2vec 2.0",
        ("--baselines", "zero_shot,frozen,scratch"),
        recipe="speech_wav2vec",
    ),
    Measurement(
        "spoken_commands",
        "Demo: twenty words as classes, test in other voices and accents, bundled wav2vec 2.0",
        ("--baselines", "frozen,scratch"),
        recipe="speech_commands",
    ),
    Measurement(
        "fsdd",
        "Spoken digits at 8 kHz (FSDD), 1,250 clips, speakers shared with training",
        (*FSDD, "--baselines", "zero_shot"),
        recipe="speech_wav2vec",
    ),
    Measurement(
        "fsdd_10",
        "The same, 10 clips per digit",
        (*FSDD, "--shots", "10", "--baselines", "zero_shot,scratch"),
        recipe="speech_wav2vec",
        seeds=(0, 1, 2, 3, 4),
    ),
    compared("resnet_mini", "bundled:resnet_mini", "64"),
    compared("resnet20_cifar10", f"hub:{PREPARED}/resnet20_cifar10", "32"),
    compared("resnet56_cifar10", f"hub:{PREPARED}/resnet56_cifar10", "32"),
    compared("mobilenet_v2", MOBILENET, "96"),
)


def measure(measurement: Measurement) -> dict:
    """Run one measurement for all its seeds.

    Args:
        measurement: what to run.

    Returns:
        The row for results.json: command, title, scores as mean, standard deviation and every seed.

    Raises:
        SystemExit: a run failed, its proof included; what it printed is shown.
    """
    found, scores = [], find_recipe(ROOT / "recipes", measurement.recipe).literal("SCORES")
    for seed in measurement.seeds:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            began = time.monotonic()
            command = [sys.executable, *measurement.command(seed, str(out))]
            finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            seconds = time.monotonic() - began
            if finished.returncode:
                raise SystemExit(f"{shlex.join(command)}\n{finished.stdout[-3000:]}\n{finished.stderr[-3000:]}")
            found.append(json.loads((out / "metrics.json").read_text("utf-8")) | {"command_seconds": seconds})
        score = found[-1]["test"][scores[0]]
        print(f"{measurement.name} seed {seed}: {scores[0]} {score:.4f}, {seconds:.0f} s", flush=True)

    def spread(*path: str | int) -> dict:
        values = []
        for metrics in found:
            for key in path:
                metrics = metrics[key]
            values.append(round(float(metrics), 6))
        std = statistics.stdev(values) if len(values) > 1 else 0.0
        return {"mean": round(statistics.mean(values), 4), "std": round(std, 4), "seeds": values}

    return {
        "name": measurement.name,
        "title": measurement.title,
        "command": shlex.join(["python", *measurement.command("SEED", "OUT")]),
        "metric": {score: spread("test", score) for score in scores},
        "baselines": {name: {scores[0]: spread("baselines", name, scores[0])} for name in found[0]["baselines"]},
        "per_class": {
            one["class"]: {scores[0]: spread("test", "per_class", place, scores[0])}
            for place, one in enumerate(found[0]["test"].get("per_class", []))
            if scores[0] in one
        },
        "counts": found[0]["counts"],
        "command_seconds": spread("command_seconds"),
        "seconds": {name: spread("seconds", name)["mean"] for name in found[0]["seconds"]},
        "peak_memory_mb": spread("peak_memory_mb"),
        "proof": {
            "examples": sum(m["proof"]["examples"] for m in found),
            "agreement": min(m["proof"]["agreement"] for m in found),
            "max_abs_diff": max(m["proof"]["max_abs_diff"] for m in found),
        },
        "saved_model_over_weights": max(m["export"]["ratio"] for m in found),
        "versions": found[0]["versions"],
        "machine": f"{os.cpu_count()} cores, {_processor()}",
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def main(arguments: list[str]) -> None:
    """Measure what was named, or everything, and write results and tables."""
    by_name = {measurement.name: measurement for measurement in MEASUREMENTS}
    if unknown := set(arguments) - set(by_name):
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}. Allowed: {', '.join(by_name)}")
    for name in arguments or by_name:
        measurement = by_name[name]
        row = measure(measurement)
        rows = {old["name"]: old for old in rows_of(measurement.recipe)} | {name: row}
        file = ROOT / "recipes" / measurement.recipe / "results.json"
        files.write_json(file, {"runs": [rows[known] for known in by_name if known in rows]})
    write_tables()


if __name__ == "__main__":
    main(sys.argv[1:])
