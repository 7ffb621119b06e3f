"""A recogniser of four voices learns a fifth from three clips of each digit: every speaker of FSDD in turn.

    python benchmarks/prepare_speech.py --out ../prepared_data/fsdd      # once
    python benchmarks/new_voice.py                                       # an hour on 2 cores

For each speaker two commands that a user would type: one without that voice, whose OUT/preset is the --source of the
other. Beside it stands what the first one writes of the new voice as it is (zero_shot), and what the few clips alone
teach (scratch). Writes benchmarks/results/new_voice.json.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common import files, runs  # noqa: E402 (the script's folder, not the checkout, is on sys.path)

SPEAKERS = ("george", "jackson", "nicolas", "theo", "yweweler")
TABLES = "../prepared_data/fsdd"
SHOTS = 3


def run(*flags: str, out: Path) -> dict:
    """Run the recipe and return its metrics, with the seconds of the whole command."""
    began = time.monotonic()
    command = [sys.executable, "-m", "recipes", "run", "speech_wav2vec", *flags, "--beams", "0", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return json.loads((out / "metrics.json").read_text("utf-8")) | {"command_seconds": time.monotonic() - began}


def main() -> None:
    """Adapt to every speaker, and write the word error rates."""
    found: dict[str, dict] = {}
    for speaker in SPEAKERS:
        with tempfile.TemporaryDirectory() as folder:
            many, one = Path(folder) / "many", Path(folder) / "one"
            before = run("--data", f"tsv:{TABLES}/others_{speaker}.tsv", "--baselines", "none", out=many)
            after = run(
                "--data", f"tsv:{TABLES}/only_{speaker}.tsv", "--source", f"preset:{many / 'preset'}",
                "--shots", str(SHOTS), "--baselines", "zero_shot,scratch", out=one,
            )  # fmt: skip
        wer = {name: round(row["wer"], 4) for name, row in after["baselines"].items()}
        found[speaker] = {
            **wer,
            "adapted": round(after["test"]["wer"], 4),
            "of_the_others": round(before["test"]["wer"], 4),
            "seconds": {name: round(row["command_seconds"]) for name, row in (("others", before), ("new", after))},
            "proved": before["proof"]["passed"] and after["proof"]["passed"],
        }
        print(speaker, found[speaker], flush=True)
    means = {name: round(statistics.mean(row[name] for row in found.values()), 4)
             for name in ("zero_shot", "scratch", "adapted")}  # fmt: skip
    result = {"wer": found, "mean": means, "clips_of_each_digit": SHOTS, "versions": runs.versions(),
              "date": time.strftime("%Y-%m-%d")}  # fmt: skip
    files.write_json(ROOT / "benchmarks" / "results" / "new_voice.json", result)


if __name__ == "__main__":
    main()
