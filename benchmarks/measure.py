"""Measure the recipes on real data and write recipes/*/results.json and the tables of README.md from it.

    python benchmarks/prepare_data.py                        # once: the data, outside the checkout
    python benchmarks/measure.py                             # everything; a night on 2 cores
    python benchmarks/measure.py hymenoptera demo            # only these; the others keep their last numbers
    python benchmarks/measure.py --verify                    # one seed of each stale row; all seeds where it differs
    python benchmarks/tables.py                              # only write the tables of README.md again

Each measurement is the command that a user would type, run once for each seed in a process of its own. A finished seed
is kept in `--work`: a measurement that was stopped continues with the next seed, if command, code, versions and
processor are the same. Remove that folder to measure everything anew.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import provenance  # noqa: E402 (the script's folder, not the checkout, is on sys.path)
from benchmarks.tables import rows_of, write_tables  # noqa: E402
from common import files, runs  # noqa: E402
from recipes.commands._discovery import find_recipe  # noqa: E402

# A verified score may differ by this much, whichever score it is: results.json rounds to 6 digits, and runs of one
# command on one machine are otherwise equal to the last bit. One test example changes a score by more than 1e-4.
TOLERANCE = 1e-6
PREPARED, WEIGHTS = "../prepared_data", "../shared/data/weights/mobilenet_imagenet_keras"
WORK = ROOT / PREPARED / "measured"
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

    def typed(self) -> str:
        """Return the command as results.json has it, with SEED and OUT."""
        return shlex.join(["python", *self.command("SEED", "OUT")])


CIFAR, HYMENOPTERA = f"folder:{PREPARED}/cifar10_subset", f"folder:{PREPARED}/hymenoptera_data"
FSDD = ("--data", f"tsv:{PREPARED}/fsdd/all.tsv")
BCCD, RACCOON = "voc:../shared/data/bccd", "voc:../shared/data/raccoon"
SST2 = ("--data", "tsv:../shared/data/sst2", "--text-column", "1", "--label-column", "2", "--source", "minilm")
MEASUREMENTS = (
    Measurement("demo", "Demo: photos of clothes, 10 classes, bundled MobileNetV2", ()),
    Measurement(
        "demo_scratch",
        "The same, with networks from scratch beside it",
        ("--baselines", "scratch"),  # the others run too
        seeds=(0,),  # half an hour a seed
    ),
    Measurement("demo_resnet_mini", "The same, bundled ResNet", ("--source", "resnet_mini")),
    Measurement("digits", "Handwritten digits, 10 per class, bundled MobileNetV2", ("--data", "demo:digits")),
    Measurement("hymenoptera", "Ants or bees, 207 photos, bundled MobileNetV2", ("--data", HYMENOPTERA)),
    Measurement(
        "cifar10",
        "CIFAR-10 subset, 5,950 images, bundled MobileNetV2 at 96 pixels",
        ("--data", CIFAR, "--image-size", "96"),  # two networks from scratch would take hours: demo_scratch has them
        seeds=(0,),  # minutes a seed
    ),
    Measurement(
        "products",
        "Demo: customers' sentences, test on other products, bundled BERT",
        ("--baselines", "frozen,words,vectors,scratch"),
        recipe="bert_sentiment",
    ),
    Measurement(
        "reviews",
        "Demo reviews, 8 per class, bundled BERT",
        ("--data", "demo:reviews", "--shots", "8", "--baselines", "frozen,words,scratch"),
        seeds=(0, 1, 2, 3, 4),
        recipe="bert_sentiment",
    ),
    Measurement(
        "sst2",
        "SST-2, 6,917 sentences, MiniLM",
        (*SST2, "--baselines", "frozen,words,vectors"),
        recipe="bert_sentiment",
    ),
    Measurement(
        "sst2_scratch",
        "The same, with the network from scratch beside it",
        (*SST2, "--baselines", "frozen,words,vectors,scratch"),
        recipe="bert_sentiment",
    ),
    Measurement(
        "sst2_lora",
        "The same, adapters of rank 4 (lora)",
        (*SST2, "--method", "lora", "--baselines", "none", "--no-explain"),
        recipe="bert_sentiment",
    ),
    Measurement(
        "cells",
        "Demo: blood cells, 80 images, 3 classes",
        ("--baselines", "frozen,scratch"),
        recipe="object_detection",
    ),
    Measurement(
        "scenes", "Demo scenes, 10 digits", ("--data", "demo:scenes", "--baselines", "none"), recipe="object_detection"
    ),
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
        "voices",
        "Demo: sentences read by people, test on other people, bundled wav2vec 2.0",
        ("--baselines", "zero_shot,frozen,spectrogram,scratch"),
        recipe="speech_wav2vec",
    ),
    Measurement(
        "spoken",
        "Twenty synthetic words, test in other voices and accents, bundled wav2vec 2.0",
        ("--data", "demo:synthetic", "--baselines", "zero_shot,frozen,spectrogram,scratch"),
        recipe="speech_wav2vec",
    ),
    Measurement(
        "words",
        "Demo: ten words said by people, test on other people, bundled wav2vec 2.0",
        ("--baselines", "frozen,spectrogram,scratch"),
        recipe="speech_commands",
    ),
    Measurement(
        "spoken_commands",
        "Twenty synthetic words as classes, test in other voices and accents, bundled wav2vec 2.0",
        ("--data", "demo:synthetic", "--baselines", "frozen,spectrogram,scratch"),
        recipe="speech_commands",
    ),
    Measurement(
        "fsdd",
        "Spoken digits at 8 kHz (FSDD), 1,250 clips, speakers shared with training",
        (*FSDD, "--baselines", "zero_shot,spectrogram"),
        recipe="speech_wav2vec",
    ),
    Measurement(
        "fsdd_10",
        "The same, 10 clips per digit",
        (*FSDD, "--shots", "10", "--baselines", "zero_shot,spectrogram,scratch"),
        recipe="speech_wav2vec",
        seeds=(0, 1, 2, 3, 4),
    ),
)


def run_seed(measurement: Measurement, seed: int, work: Path) -> dict:
    """Run the command of a measurement with one seed, or return what an earlier run of it left in the work folder.

    Args:
        measurement: what to run.
        seed: with this seed.
        work: folder outside the checkout for the results of finished seeds.

    Returns:
        `metrics` (metrics.json of the run), `epochs` (of each stage), `wall_seconds` and `cpu_seconds` (of the process
        and its children), `load_average` (of the last minute before the start), and the origin: `code`, `versions`,
        `processor`, `cores`, `commit`, `date`.

    Raises:
        SystemExit: the run failed, its proof included, or the code was edited meanwhile.
    """
    origin = _origin(measurement)
    kept = work / f"{measurement.recipe}-{measurement.name}-{seed}-{origin['code']}.json"
    if kept.exists():
        found = json.loads(kept.read_text("utf-8"))
        if all(found[key] == origin[key] for key in ("command", "code", "versions", "processor", "cores")):
            print(f"{measurement.name} seed {seed}: measured before, see {kept}", flush=True)
            return found
    with tempfile.TemporaryDirectory() as folder:
        out, load, before, began = Path(folder) / "run", os.getloadavg()[0], _cpu_seconds(), time.monotonic()
        command = [sys.executable, *measurement.command(seed, str(out))]
        finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        wall, cpu = time.monotonic() - began, _cpu_seconds() - before
        if finished.returncode:
            raise SystemExit(f"{shlex.join(command)}\n{finished.stdout[-3000:]}\n{finished.stderr[-3000:]}")
        metrics, epochs = json.loads((out / "metrics.json").read_text("utf-8")), _epochs(out / "history.csv")
    if _origin(measurement)["code"] != origin["code"]:
        raise SystemExit(f"{measurement.name}: the code was edited during the run. Measure in a checkout of its own.")
    found = origin | {"wall_seconds": wall, "cpu_seconds": cpu, "load_average": load, "epochs": epochs}
    work.mkdir(parents=True, exist_ok=True)
    files.write_json(kept, found | {"metrics": metrics})
    score = find_recipe(ROOT / "recipes", measurement.recipe).literal("SCORES")[0]
    print(f"{measurement.name} seed {seed}: {score} {metrics['test'][score]:.4f}, {wall:.0f} s", flush=True)
    return found | {"metrics": metrics}


def measure(measurement: Measurement, work: Path) -> dict:
    """Run one measurement for all its seeds and return its row for results.json; see `run_seed`."""
    return row_of(measurement, [run_seed(measurement, seed, work) for seed in measurement.seeds])


def row_of(measurement: Measurement, found: list[dict]) -> dict:
    """Return the row for results.json.

    Args:
        measurement: what was run.
        found: what `run_seed` returned for each of its seeds.

    Returns:
        Command, title, scores as mean, standard deviation and every seed, seconds of every seed, and their origin.
    """
    scores = find_recipe(ROOT / "recipes", measurement.recipe).literal("SCORES")
    every = [one["metrics"] for one in found]

    def spread(values: list[float]) -> dict:
        values = [round(float(value), 6) for value in values]
        std = statistics.stdev(values) if len(values) > 1 else 0.0
        return {"mean": round(statistics.mean(values), 4), "std": round(std, 4), "seeds": values}

    return {
        "name": measurement.name,
        "title": measurement.title,
        "command": measurement.typed(),
        "seeds": list(measurement.seeds),
        "metric": {score: spread([m["test"][score] for m in every]) for score in scores},
        "baselines": {
            name: {scores[0]: spread([m["baselines"][name][scores[0]] for m in every])}
            for name in every[0]["baselines"]
        },
        "per_class": {
            one["class"]: {scores[0]: spread([m["test"]["per_class"][place][scores[0]] for m in every])}
            for place, one in enumerate(every[0]["test"].get("per_class", []))
            if scores[0] in one
        },
        "counts": every[0]["counts"],
        "epochs": found[0]["epochs"],
        "command_seconds": spread([one["wall_seconds"] for one in found]),
        "cpu_seconds": spread([one["cpu_seconds"] for one in found]),
        "load_average": [round(one["load_average"], 2) for one in found],
        "seconds": {name: spread([m["seconds"][name] for m in every])["mean"] for name in every[0]["seconds"]},
        "peak_memory_mb": spread([m["peak_memory_mb"] for m in every]),
        "proof": {
            "examples": sum(m["proof"]["examples"] for m in every),
            "agreement": min(m["proof"]["agreement"] for m in every),
            "max_abs_diff": max(m["proof"]["max_abs_diff"] for m in every),
        },
        "saved_model_over_weights": max(m["export"]["ratio"] for m in every),
        **{key: found[0][key] for key in ("code", "commit", "versions", "processor", "cores", "date")},
        "seconds_from": {key: found[0][key] for key in ("commit", "processor", "cores", "date")},
    }


def verify(measurement: Measurement, row: dict, work: Path) -> dict:
    """Run the first seed of a row again, and all seeds where a score of it or of a baseline differs.

    Args:
        measurement: of that row.
        row: of results.json.
        work: see `run_seed`.

    Returns:
        The row with the code, commit, versions and processor of today, `verified` (the date), and the seconds that it
        had, which stay those of `seconds_from`; or the row as `measure` returns it.
    """
    if (row["command"], row["seeds"]) != (measurement.typed(), list(measurement.seeds)):
        print(f"{row['name']}: all seeds are measured again, since its command or its seeds have changed", flush=True)
        return measure(measurement, work)
    found = run_seed(measurement, row["seeds"][0], work)
    if differing := differences(row, row_of(measurement, [found])):
        print(f"{row['name']}: all seeds are measured again, since {'; '.join(differing)}", flush=True)
        return measure(measurement, work)
    print(f"{row['name']}: verified with seed {row['seeds'][0]}", flush=True)
    stamp = {key: found[key] for key in ("code", "commit", "versions", "processor", "cores")}
    return row | stamp | {"title": measurement.title, "verified": found["date"]}


def differences(row: dict, again: dict, tolerance: float = TOLERANCE) -> list[str]:
    """Return what differs between the first seed of two rows by more than the tolerance: "wer was 0.5, is 0.6"."""
    was, now = _scores_of_first_seed(row), _scores_of_first_seed(again)
    return [
        f"{name} was {was.get(name)}, is {now.get(name)}"
        for name in was | now
        if name not in was or name not in now or abs(was[name] - now[name]) > tolerance
    ]


def _scores_of_first_seed(row: dict) -> dict[str, float]:
    groups = {"": row["metric"]} | {
        f" of {name}": scores for name, scores in (row["baselines"] | row["per_class"]).items()
    }
    return {f"{score}{of}": found["seeds"][0] for of, scores in groups.items() for score, found in scores.items()}


def _origin(measurement: Measurement) -> dict:
    return {
        "command": measurement.typed(),
        "code": provenance.row_hash(ROOT, measurement.recipe, measurement.typed()),
        "commit": provenance.commit(ROOT),
        "versions": runs.versions(),
        **provenance.machine(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _cpu_seconds() -> float:
    """Return the seconds of all finished child processes and their children, in user and system mode."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _epochs(history: Path) -> dict[str, int]:
    """Return the epochs of each stage that history.csv lists; a linear head is fitted for penalties, not for epochs."""
    with history.open(encoding="utf-8", newline="") as file:
        return dict(Counter(row["stage"] for row in csv.DictReader(file) if not row.get("penalty")))


def stale(recipe: str) -> set[str]:
    """Return the names of a recipe's measurements that have to be made again: stale, missing, or of another command."""
    rows = rows_of(recipe)
    today = {(one.name, one.typed(), one.seeds) for one in MEASUREMENTS if one.recipe == recipe}
    there = {(row["name"], row["command"], tuple(row["seeds"])) for row in rows}
    return provenance.stale_rows(ROOT, recipe, rows) | {name for name, *_ in today - there}


def main(arguments: list[str]) -> None:
    """Measure or verify what was named, or everything, and write results and tables."""
    by_name = {measurement.name: measurement for measurement in MEASUREMENTS}
    parser = argparse.ArgumentParser(description="Measure the recipes.")
    parser.add_argument("names", nargs="*", help="rows; by default all, with --verify all that are stale")
    parser.add_argument("--verify", action="store_true", help="run one seed again; all seeds where its scores differ")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for finished seeds, outside the checkout")
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(by_name):
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}. Allowed: {', '.join(by_name)}")
    outdated = set() if given.names else set().union(*(stale(recipe) for recipe in {m.recipe for m in MEASUREMENTS}))
    for name in given.names or [name for name in by_name if not given.verify or name in outdated]:
        measurement = by_name[name]
        known = {row["name"]: row for row in rows_of(measurement.recipe)}
        again = given.verify and name in known
        row = verify(measurement, known[name], given.work) if again else measure(measurement, given.work)
        known = {old["name"]: old for old in rows_of(measurement.recipe)} | {name: row}
        file = ROOT / "recipes" / measurement.recipe / "results.json"
        files.write_json(file, {"runs": [known[one] for one in by_name if one in known]})
    write_tables()


if __name__ == "__main__":
    main(sys.argv[1:])
