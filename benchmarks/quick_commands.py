"""Seconds of the commands that must not keep anyone waiting: listing, help, a wrong flag, data that cannot work.

    python benchmarks/quick_commands.py       # a minute

Each is a process of its own; the commands take turns. Writes benchmarks/results/quick_commands.json.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.provenance import commit, machine  # noqa: E402 (the checkout is not on sys.path)
from common.files import write_json  # noqa: E402

OUT = ROOT / "benchmarks" / "results" / "quick_commands.json"
REPEATS = 5
PHOTOS = ROOT / "common" / "images" / "demo_clothing"
SOUNDS = ROOT / "common" / "speech" / "demo_synthetic"
RECIPES = ("image_classification", "bert_sentiment", "object_detection", "speech_wav2vec", "speech_commands")


def commands(folder: Path) -> dict[str, list[str]]:
    """Return the commands by name, with files in `folder` that cannot be trained on."""
    table = folder / "table.csv"
    table.write_text("one,two\nhello,world\n", encoding="utf-8")
    photo, sound = next(PHOTOS.rglob("*.jpg")), next(SOUNDS.rglob("*.flac"))
    (folder / "classes" / "only").mkdir(parents=True)
    for number in range(20):
        (folder / "classes" / "only" / f"{number}.jpg").write_bytes(photo.read_bytes())
        (folder / "classes" / "only" / f"{number}.flac").write_bytes(sound.read_bytes())
        (folder / "classes" / "only" / f"{number}.txt").write_text(f"sentence {number}")
    found = {"list": ["list"]}
    for recipe in RECIPES:
        found |= {
            f"show {recipe}": ["show", recipe],
            f"run {recipe} --help": ["run", recipe, "--help"],
            f"a wrong flag of {recipe}": ["run", recipe, "--epoks", "3"],
            f"a table with wrong columns for {recipe}": ["run", recipe, "--data", f"csv:{table}"],
        }
    for recipe in ("image_classification", "bert_sentiment", "speech_commands"):
        found[f"a folder with one class for {recipe}"] = ["run", recipe, "--data", f"folder:{folder / 'classes'}"]
    return found


def main() -> None:
    """Time the commands in turn, and write the median of each."""
    seconds: dict[str, list[float]] = {}
    codes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as place:
        asked = commands(Path(place))
        load = os.getloadavg()[0]
        for _ in range(REPEATS):
            for name, arguments in asked.items():
                out = ["--out", f"{place}/run"] if arguments[0] == "run" and "--help" not in arguments else []
                began = time.monotonic()
                ended = subprocess.run(
                    [sys.executable, "-m", "recipes", *arguments, *out], cwd=ROOT, capture_output=True, text=True
                )
                seconds.setdefault(name, []).append(round(time.monotonic() - began, 2))
                codes[name] = ended.returncode
                wanted = 2 if " wrong " in name or "one class" in name else 0
                if ended.returncode != wanted:
                    raise SystemExit(
                        f"{name} ended with {ended.returncode}: {ended.stdout[-500:]}{ended.stderr[-1500:]}"
                    )
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{median:5.2f} s  {name}")
    about = {"command": "python benchmarks/quick_commands.py", "commit": commit(ROOT), **machine()}
    write_json(OUT, {**about, "load_average": round(load, 2), "repeats": REPEATS, "seconds": medians})


if __name__ == "__main__":
    main()
