"""Where the seconds of a run go, in two checkouts: stage by stage, wall and CPU.

    git worktree add --detach ../before COMMIT
    python benchmarks/make_photos.py ../prepared_data/photos_12mp
    python benchmarks/make_photos.py ../prepared_data/photos_500 --count 10000 --width 500
    python benchmarks/stages.py --before ../before                   # all tasks, an hour or more
    python benchmarks/stages.py --before ../before photos_12mp       # only this one; the others keep their numbers

The checkouts take turns, so that what else the machine does hits both. Each run is a process of its own, and each
repeat has another seed. Without --before only this checkout is measured. Writes benchmarks/results/stages.json: medians
of the seconds, and every value of the whole command and of the scores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "stages.json"
PREPARED, SHARED = ROOT.parent / "prepared_data", ROOT.parent / "shared" / "data"
SST2 = ["--data", f"tsv:{SHARED}/sst2", "--text-column", "1", "--label-column", "2", "--source", "minilm"]
FROZEN = ["--unfreeze", "frozen", "--views", "1"]
TASKS = {
    "demo, image_classification": ["image_classification"],
    "demo, image_classification, resnet_mini": ["image_classification", "--source", "bundled:resnet_mini"],
    "demo, bert_sentiment": ["bert_sentiment"],
    "demo, object_detection": ["object_detection"],
    "demo, speech_wav2vec": ["speech_wav2vec"],
    "demo, speech_commands": ["speech_commands"],
    "ants_and_bees": ["image_classification", "--data", f"folder:{PREPARED}/hymenoptera_data"],
    "photos_12mp": ["image_classification", "--data", f"folder:{PREPARED}/photos_12mp"],
    "photos_500": ["image_classification", "--data", f"folder:{PREPARED}/photos_500", *FROZEN],
    "sst2": ["bert_sentiment", *SST2],
    "sst2_64_shots": ["bert_sentiment", *SST2, "--method", "fewshot", "--shots", "64"],
    "fsdd": ["speech_wav2vec", "--data", f"tsv:{PREPARED}/fsdd/all.tsv"],
}


def run_one(arguments: list[str]) -> None:
    """Run a recipe in this process, in the checkout that is the current directory, and print its stages as JSON.

    The clock of the run is replaced by one that counts the CPU seconds of this process too; those of the process that
    proves the export are an entry of their own.
    """
    began = time.monotonic()
    sys.path.insert(0, os.getcwd())  # nothing of this checkout has been imported
    from common import runs
    from recipes import __main__ as recipes
    from recipes.commands import run

    assert Path(runs.__file__).is_relative_to(Path.cwd()), runs.__file__
    cpu, spent = {}, {}

    def cpu_seconds() -> float:
        times = os.times()
        return sum(times[:2])

    class Stopwatch(runs.Stopwatch):
        """Counts the CPU seconds of each stage as well."""

        def __call__(self, *names: str):
            return _Both(super().__call__(*names), names)

    class _Both:
        def __init__(self, inner, names: tuple[str, ...]):
            self.inner, self.names = inner, names

        def __enter__(self):
            self.began = cpu_seconds()
            return self.inner.__enter__()

        def __exit__(self, *error):
            for name in self.names:
                cpu[name] = cpu.get(name, 0.0) + cpu_seconds() - self.began
            return self.inner.__exit__(*error)

    load = run.load_recipe

    def timed_load(recipe):
        before, used = time.monotonic(), cpu_seconds()
        module = load(recipe)
        spent["import"], cpu["import"] = time.monotonic() - before, cpu_seconds() - used
        return module

    runs.Stopwatch, run.load_recipe = Stopwatch, timed_load
    spent["start"] = time.monotonic() - began
    code = recipes.main(["run", *arguments])
    whole = time.monotonic() - began
    metrics = json.loads((Path(arguments[arguments.index("--out") + 1]) / "metrics.json").read_text("utf-8"))
    # Stages within another one, such as one of the baselines, are part of it.
    stages = {name: value for name, value in metrics["seconds"].items() if name != "total" and "baseline_" not in name}
    seconds = spent | stages
    seconds["report and the rest"] = whole - sum(seconds.values())
    cpu = {name: value for name, value in cpu.items() if "baseline_" not in name}
    cpu["proof's process"] = sum(os.times()[2:4])
    scores = {name: value for name, value in metrics["test"].items() if isinstance(value, float)}
    found = {"code": code, "wall": seconds, "cpu": cpu, "test": scores, "proof": metrics["proof"]}
    engine, counts = metrics.get("engine", {}), metrics["counts"]
    if (rates := engine.get("images_per_second")) and "--views" in arguments:  # 1
        # What the engine alone would take, by the rate that it was chosen for, of what was taken.
        alone = (counts["train"] + counts["val"]) / rates[engine["name"]] + counts["test"] / rates["tensorflow"]
        found["engine"] = engine | {"seconds_alone": alone, "share_of_features": alone / seconds["features"]}
    print(json.dumps(found))


def measure(checkout: Path, task: str, seed: int) -> dict:
    """Run a task in a checkout, in a process of its own."""
    with tempfile.TemporaryDirectory() as out:
        arguments = [*TASKS[task], "--seed", str(seed), "--out", f"{out}/run"]
        command = [sys.executable, str(Path(__file__)), "--one", *arguments]
        load, used, began = os.getloadavg()[0], os.times(), time.monotonic()
        finished = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
        wall, after = time.monotonic() - began, os.times()
        if finished.returncode:
            raise SystemExit(f"{task} in {checkout}: {finished.stdout[-2000:]}{finished.stderr[-2000:]}")
        found = json.loads(finished.stdout.splitlines()[-1])
    if found.pop("code"):
        raise SystemExit(f"{task} in {checkout} failed")
    cpu = after.children_user + after.children_system - used.children_user - used.children_system
    found["wall"]["start"] += wall - sum(found["wall"].values())  # of Python itself
    found["wall"]["command"] = wall
    found["cpu"]["command"] = cpu
    return found | {"load_average": round(load, 2)}


def row_of(runs: list[dict]) -> dict:
    """Return the median of each stage, and every value of the whole command."""
    row = {}
    for kind in ("wall", "cpu"):
        names = dict.fromkeys(name for run in runs for name in run[kind])
        row[kind] = {name: round(statistics.median(run[kind].get(name, 0.0) for run in runs), 2) for name in names}
    row["commands"] = [round(run["wall"]["command"], 1) for run in runs]
    row["load_average"] = [run["load_average"] for run in runs]
    row["test"] = {name: [run["test"][name] for run in runs] for name in runs[0]["test"]}
    row["proved"] = all(run["proof"]["passed"] for run in runs)
    return row | ({"engines": [run["engine"] for run in runs]} if "engine" in runs[0] else {})


def main() -> None:
    """Measure the tasks in both checkouts in turn, and write all of it after each task."""
    if sys.argv[1:2] == ["--one"]:
        run_one(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", help=f"by default all of: {', '.join(TASKS)}")
    parser.add_argument("--before", type=Path, help="another checkout, to compare with")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each task in each checkout")
    given = parser.parse_args()
    if unknown := set(given.tasks) - set(TASKS):
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}. Allowed: {', '.join(TASKS)}")
    sys.path.insert(0, str(ROOT))
    from benchmarks.provenance import commit, machine
    from common.files import write_json

    checkouts = {"before": given.before, "after": ROOT} if given.before else {"after": ROOT}
    kept = json.loads(OUT.read_text("utf-8"))["tasks"] if OUT.exists() else {}
    for task in given.tasks or TASKS:
        runs = {name: [] for name in checkouts}
        for repeat in range(given.repeats):
            for name in list(checkouts)[:: 1 if repeat % 2 == 0 else -1]:
                runs[name].append(measure(checkouts[name].resolve(), task, seed=repeat))
                print(f"{task}, {name}: {runs[name][-1]['wall']['command']:.1f} s", flush=True)
        kept[task] = {name: {"commit": commit(checkouts[name].resolve()), **row_of(of)} for name, of in runs.items()}
        kept[task] |= machine()
        about = {"command": "python benchmarks/stages.py --before CHECKOUT"}
        write_json(OUT, {**about, "tasks": {one: kept[one] for one in TASKS if one in kept}})


if __name__ == "__main__":
    main()
