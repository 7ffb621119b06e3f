"""Do the recipes answer as they did before a change of the code? Run their demos, write down what comes out, compare.

    python benchmarks/same_results.py record before.json     # in the old checkout
    python benchmarks/same_results.py record after.json      # in the new one, on the same machine
    python benchmarks/same_results.py compare before.json after.json

Scores and baselines of metrics.json, and what the served model answers, must be equal to the last digit. Both records
must come from one machine: the kernels of TensorFlow differ from processor to processor.

benchmarks/results/same_results_rooms.json is of one change of the code, long ago: runs of today differ from it, since
sources, baselines and defaults are others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# By name: the arguments of `run`; of alternatives the first whose recipe is there. Seed 0 is the default of all.
RUNS: dict[str, list[str]] = {
    "image_classification": [
        "image_classification --limit 100 --epochs 2 --image-size 64 --baselines scratch --scratch-epochs 2"
    ],
    "bert_sentiment": ["bert_sentiment --data demo:reviews --baselines frozen,words,scratch"],
    "bert_sentiment, lora": ["bert_sentiment --data demo:reviews --method lora --limit 40"],
    "bert_sentiment, fewshot, folds": ["bert_sentiment --data demo:reviews --method fewshot --folds 2 --limit 40"],
    "object_detection": ["object_detection --data demo:scenes"],
    "object_detection, retinanet": ["object_detection --data demo:scenes --detector retinanet --limit 20 --epochs 1"],
    "speech_wav2vec": ["speech_wav2vec"],
    "speech_wav2vec, baselines": ["speech_wav2vec --limit 20 --epochs 2 --baselines zero_shot,frozen,scratch"],
    "speech_commands": ["speech_commands", "speech_wav2vec --task commands"],
    "pretraining": ["pretraining --limit 40 --epochs 3"],
    "pretraining_text": ["pretraining_text --limit 200 --epochs 2"],
    "pretraining_speech": ["pretraining_speech --limit 40 --epochs 2"],
}
# Runs alone, so that only TensorFlow answers: a folder of exports, a folder of pictures or clips, a file of texts.
ASK = """
import hashlib, io, json, sys
from pathlib import Path
import numpy as np, tensorflow as tf
out, texts = Path(sys.argv[1]), Path(sys.argv[2])
[version] = out.glob("serving/*/1")
loaded = tf.saved_model.load(str(version))
serve = loaded.signatures["serving_default"]
[name] = serve.structured_input_signature[1]
if name == "text":
    inputs = [line.split("\\t")[0].encode() for line in texts.read_text("utf-8").splitlines()[:200]]
elif name == "image":
    files = sorted((out / "data" / "test").rglob("*.*"))  # none where the demo is not drawn, but in the checkout
    files = files or sorted((texts.parents[1] / "images" / "demo_clothing" / "test").rglob("*.jpg"))
    inputs = [path.read_bytes() for path in files[:200]]
else:
    import base64
    request = json.loads((out / "serving" / "request.json").read_text())
    inputs = [base64.b64decode(request["instances"][0]["audio"]["b64"])]
assert inputs, "nothing to ask"
answers = []
for first in range(0, len(inputs), 8):
    for key, value in sorted(serve(**{name: tf.constant(inputs[first:first + 8])}).items()):
        value = value.numpy()
        if key in ("label", "labels", "text"):
            answers.append(value.astype(str).ravel().tolist() if value.dtype == object else value.tolist())
        elif key != "class_names":
            answers.append(hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16])
print(json.dumps({"signatures": sorted(loaded.signatures), "asked": len(inputs), "answers": answers}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("file", type=Path)
    recording.add_argument("--only", help="names of runs that begin with this")
    comparing = commands.add_parser("compare")
    comparing.add_argument("files", type=Path, nargs=2)
    options = parser.parse_args()
    if options.command == "record":
        return record(options.file, options.only or "")
    return compare(*(json.loads(file.read_text("utf-8")) for file in options.files))


def record(file: Path, only: str) -> int:
    """Run what is not yet in the file, and add it."""
    found = json.loads(file.read_text("utf-8")) if file.exists() else {}
    [texts] = [path for path in (ROOT / "common").rglob("demo_reviews.tsv")]
    for name, alternatives in RUNS.items():
        if name in found or not name.startswith(only):
            continue
        arguments = next(one for one in alternatives if (ROOT / "recipes" / one.split()[0] / "recipe.py").exists())
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "run")
            command = [sys.executable, "-m", "recipes", "run", *arguments.split(), "--out", str(out)]
            finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if finished.returncode:
                print(finished.stdout[-2000:], finished.stderr[-3000:], file=sys.stderr)
                return 1
            metrics = json.loads((out / "metrics.json").read_text("utf-8"))
            baselines = {key: dict(value) for key, value in metrics["baselines"].items()}
            for baseline in baselines.values():
                baseline.pop("seconds", None)
            one = {"test": metrics["test"], "baselines": baselines, "counts": metrics["counts"],
                   "parameters": metrics["parameters"], "history": (out / "history.csv").read_text("utf-8"),
                   "proof": metrics["proof"].get("passed")}  # fmt: skip
            if (out / "serving").exists():
                asked = subprocess.run(
                    [sys.executable, "-I", "-c", ASK, str(out), str(texts)], capture_output=True, text=True, check=True
                )
                one["served"] = json.loads(asked.stdout.splitlines()[-1])
        found[name] = one
        file.write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(f"{name}: {metrics['seconds']['total']:.0f} s", flush=True)
    return 0


def compare(before: dict, after: dict) -> int:
    """Print what differs; 1 where something does."""
    different = 0
    for name in before | after:
        if name not in before or name not in after:
            lines = ["is in one record only"]
        else:
            lines = list(_differences("", before[name], after[name]))
        print(f"{name}: {'the same' if not lines else ''}", *lines[:20], sep="\n  " if lines else "")
        different += bool(lines)
    return 1 if different else 0


def _differences(path: str, before, after):
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before | after:
            yield from _differences(f"{path}.{key}", before.get(key), after.get(key))
    elif before != after:
        yield f"{path}: {str(before)[:200]} became {str(after)[:200]}"


if __name__ == "__main__":
    sys.exit(main())
