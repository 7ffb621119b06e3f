"""The proof once more, in the TensorFlow that the pinned release of TensorFlow Serving is built on.

    python benchmarks/older_tensorflow.py                    # fetches TensorFlow 2.20, 620 MB, for the time
    python benchmarks/older_tensorflow.py --python PYTHON    # of an environment that has it already

An export made by today's TensorFlow is served by an older one: the demo's run is repeated, and its SavedModel asked
about every test picture in a process of the older TensorFlow. Writes benchmarks/results/older_tensorflow.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402 (the script's folder, not the checkout, is on sys.path)
import tensorflow as tf  # noqa: E402

from common import files  # noqa: E402
from common.images.export import prove_image_classifier  # noqa: E402
from common.proof.prove import FreshProcess  # noqa: E402
from common.serving.kit.deployment import SERVING_IMAGE  # noqa: E402

RELEASE = SERVING_IMAGE.rpartition(":")[2].rsplit(".", 1)[0]  # of TensorFlow, as of TensorFlow Serving


def environment_with(folder: Path) -> Path:
    """Make an environment with nothing but the older TensorFlow; return its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    print(f"fetching tensorflow=={RELEASE}.* from the package index, about 620 MB", flush=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"tensorflow=={RELEASE}.*"], check=True)
    return python


def prove_with(python: Path, run: Path) -> dict:
    """Ask the SavedModel of a run in another Python about its test pictures, and compare with this one."""
    version = run / "serving" / "image_classification" / "1"
    paths = sorted(str(path) for path in (run / "data" / "test").rglob("*.png"))
    loaded = tf.saved_model.load(str(version))
    encoded = [Path(path).read_bytes() for path in paths]
    batches = [tf.constant(encoded[start : start + 64]) for start in range(0, len(encoded), 64)]
    answers = [loaded.signatures["serving_default"](image=batch) for batch in batches]
    probabilities = np.concatenate([answer["probabilities"] for answer in answers])
    names = [name.decode() for name in answers[0]["class_names"].numpy()[0]]
    return prove_image_classifier(version, paths, probabilities, names, FreshProcess(str(python)))


def main() -> None:
    """Repeat the proof and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, help="of an environment that has the older TensorFlow")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as top:
        python = options.python or environment_with(Path(top, "environment"))
        run = Path(top, "run")
        flags = ["--data", "demo:digits", "--out", str(run), "--no-explain", "--epochs", "2"]
        subprocess.run([sys.executable, "-m", "recipes", "run", "image_classification", *flags], cwd=ROOT, check=True)
        asked = subprocess.run(
            [python, "-c", "import tensorflow; print(tensorflow.__version__)"],
            capture_output=True,
            text=True,
            check=True,
        )
        found = prove_with(python, run)
    content = {
        "command": "python benchmarks/older_tensorflow.py",
        "exported_by": tf.__version__,
        "asked_in": asked.stdout.strip(),
        "proof": found,
        "machine": f"{os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(content, indent=2))
    files.write_json(ROOT / "benchmarks" / "results" / "older_tensorflow.json", content)


if __name__ == "__main__":
    main()
