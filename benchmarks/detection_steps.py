"""Seconds of a training step: the recipe's loop against the libraries' own `compile` and `fit`, same network and batch.

    python benchmarks/detection_steps.py          # ten minutes on 2 cores

The libraries get their documented start: `compile` with their losses and Adam, `fit` on batches that are ready. Ours is
what the recipe does: its optimizer, checkpoints, and batches that are decoded, augmented and turned into targets in
tf.data while the network learns. The two alternate. Writes benchmarks/results/detection_steps.json.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common import files, runs  # noqa: E402 (the script's folder, not the checkout, is on sys.path)

DETECTORS = ("retinanet", "yolov8")
STEPS, WARM = 12, 2
ROUNDS = 2


def seconds_of_steps(name: str, way: str) -> list[float]:
    """Train a few steps on the demo scenes at 256 pixels; return the seconds of each after the first ones."""
    import keras

    from common import training
    from common.checkpoints import fit_with_checkpoints
    from recipes.object_detection.recipe import Config, build_model, compile_detector, load_data, training_stream

    stamps: list[float] = []
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: stamps.append(time.monotonic()))
    with tempfile.TemporaryDirectory() as out:
        config = Config(data="demo:scenes", detector=name, source="keras:MobileNetV2@random", image_size=256, out=out)
        data = load_data(config)
        keras.utils.set_random_seed(0)
        source, detector = build_model(data, config)
        stream = training_stream(data, source.image_size, config).map(detector.targets, 2)
        if way == "library":
            losses = {} if name == "retinanet" else {"box_loss": "ciou", "classification_loss": "binary_crossentropy"}
            detector.model.compile(optimizer=keras.optimizers.Adam(1e-4), **losses)
            ready = stream.take(1).cache().repeat()
            detector.model.fit(ready, steps_per_epoch=STEPS, verbose=0, shuffle=False, callbacks=[watch])
        else:
            compile_detector(detector, source, config, steps=STEPS, scratch=False)
            fit_with_checkpoints(
                detector.model, lambda epoch, step: stream, epochs=1, lines=training.EpochLines("steps", 1, STEPS),
                callbacks=[watch], checkpoint=Path(out) / "steps.npz", save_every=3600.0,
            )  # fmt: skip
    return [later - sooner for sooner, later in zip(stamps[WARM:], stamps[WARM + 1 :], strict=False)]


def main(arguments: list[str]) -> None:
    """Run each detector both ways, each in a process of its own, and write the result."""
    if arguments:
        print(json.dumps(seconds_of_steps(*arguments)))
        return
    found: dict[str, dict] = {}
    for name in DETECTORS:
        seconds: dict[str, list[float]] = {"library": [], "ours": []}
        for _ in range(ROUNDS):
            for way, several in seconds.items():
                done = subprocess.run(
                    [sys.executable, __file__, name, way], cwd=ROOT, check=True, capture_output=True, text=True
                )
                several += json.loads(done.stdout.splitlines()[-1])
        medians = {way: round(statistics.median(several), 3) for way, several in seconds.items()}
        found[name] = medians | {"ours_over_library": round(medians["ours"] / medians["library"], 3)}
        print(name, found[name], flush=True)
    result = {"seconds_of_a_step": found, "batch": 8, "pixels": 256, "versions": runs.versions(),
              "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d")}  # fmt: skip
    files.write_json(ROOT / "benchmarks" / "results" / "detection_steps.json", result)


if __name__ == "__main__":
    main(sys.argv[1:])
