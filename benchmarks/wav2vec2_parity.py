"""Our wav2vec 2.0 against that of transformers at full size: the same answers, and the speed of a step of training.

    pip install -r requirements-parity.txt # PyTorch and transformers, the reference
    python benchmarks/wav2vec2_parity.py   # --size stable: norms before each part, as in XLS-R; tiny for a quick look

The reference is drawn at random and written by save_pretrained; we load that folder. Compared are hidden states of
every layer and logits. A step is forward, CTC loss, backward and AdamW with clipped gradients, on the same clips, each
library in a process of its own, with the dropouts of the configuration; without masks and skipped blocks, of which
chance would give each another amount of work. Writes benchmarks/results/wav2vec2_parity.json.
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

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from common import files  # noqa: E402 (the script's folder, not the checkout, is on sys.path)

SIZES = {
    "base": {},
    "stable": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    "tiny": {
        "conv_dim": [32] * 7, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 128,
    },
}  # fmt: skip
CLIPS, SAMPLING_RATE, LABELS = 4, 16000, 40
STEPS, THREADS = 5, 2
LEARNING_RATE, WEIGHT_DECAY, GRADIENT_NORM = 3e-5, 0.01, 1.0


def write_reference(size: str, folder: Path) -> None:
    """Write a random network with a CTC head, and what it says of clips."""
    import torch
    import transformers
    from refresh_wav2vec2_golden import hidden_states

    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(**SIZES[size], attn_implementation="eager", layerdrop=0.0, mask_time_prob=0.0)
    model = transformers.Wav2Vec2ForCTC(config).eval()
    model.save_pretrained(folder)
    samples = batch(2.0)["samples"]
    with torch.no_grad():
        states = hidden_states(model.wav2vec2, input_values=torch.tensor(samples))
        logits = model(torch.tensor(samples)).logits
    np.savez(folder / "said.npz", logits=logits, **{f"state_{number}": state for number, state in enumerate(states)})


def batch(seconds: float) -> dict[str, np.ndarray]:
    """Return clips of noise with random transcripts: samples, lengths, labels, label_lengths."""
    rng = np.random.default_rng(0)
    time_steps = int(seconds * SAMPLING_RATE)
    return {
        "samples": rng.normal(size=(CLIPS, time_steps)).astype(np.float32),
        "lengths": np.full(CLIPS, time_steps, np.int32),
        "labels": rng.integers(1, 32, (CLIPS, LABELS)).astype(np.int32),
        "label_lengths": np.full(CLIPS, LABELS, np.int32),
    }


def compare(folder: Path) -> dict[str, float]:
    """Return the largest differences between what the reference said and what we say."""
    from common.speech.wav2vec2.heads import build_recogniser
    from common.speech.wav2vec2.weights import load_wav2vec2

    loaded = load_wav2vec2(folder)
    inputs = {name: array for name, array in batch(2.0).items() if name in ("samples", "lengths")}
    states = loaded.backbone.every_hidden_state()(inputs, training=False)
    logits = build_recogniser(loaded.backbone, loaded.head)(inputs, training=False)
    with np.load(folder / "said.npz") as said:
        theirs = [said[f"state_{number}"] for number in range(len(said.files) - 1)]
        pairs = [*zip(states, theirs, strict=True), (logits, said["logits"])]
        differences = [float(np.abs(np.asarray(ours) - other).max()) for ours, other in pairs]
        largest = float(max(np.abs(other).max() for _, other in pairs))
    return {
        "parameters": loaded.backbone.count_params(),
        "max_abs_diff_states": max(differences[:-1]),
        "max_abs_diff_logits": differences[-1],
        "largest_number_compared": largest,
    }


def time_ours(folder: Path, seconds: float, steps: int) -> dict[str, object]:
    """Return seconds of each step of Keras on TensorFlow."""
    import tensorflow as tf

    from common.speech.wav2vec2.heads import build_recogniser, ctc_loss
    from common.speech.wav2vec2.weights import load_wav2vec2
    from common.training import DiscriminativeAdamW

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    loaded = load_wav2vec2(folder)
    model = build_recogniser(loaded.backbone, loaded.head)
    optimizer = DiscriminativeAdamW(
        learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, global_clipnorm=GRADIENT_NORM
    )  # of the recipe
    optimizer.build(model.trainable_weights)
    values = [weight.value for weight in model.trainable_weights]

    @tf.function
    def step(samples, lengths, labels, label_lengths):
        with tf.GradientTape() as tape:
            logits = model({"samples": samples, "lengths": lengths}, training=True)
            losses = ctc_loss(labels, logits, label_lengths, loaded.backbone.config.frame_lengths(lengths))
            loss = tf.reduce_mean(losses)
        optimizer.apply(tape.gradient(loss, values), model.trainable_weights)
        return loss

    clips = {name: tf.constant(array) for name, array in batch(seconds).items()}
    return timed(lambda: float(step(**clips)), steps) | {"library": f"tensorflow {tf.__version__}"}


def time_theirs(folder: Path, seconds: float, steps: int) -> dict[str, object]:
    """Return seconds of each step of PyTorch, with its faster attention."""
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    model = transformers.Wav2Vec2ForCTC.from_pretrained(folder, attn_implementation="sdpa").train()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    clips = {name: torch.tensor(array) for name, array in batch(seconds).items()}
    frames = model._get_feat_extract_output_lengths(clips["lengths"])

    def step() -> float:
        optimizer.zero_grad()
        scores = torch.log_softmax(model(clips["samples"]).logits, dim=-1).transpose(0, 1)
        loss = torch.nn.functional.ctc_loss(
            scores, clips["labels"].long(), frames, clips["label_lengths"].long(), reduction="none"
        ).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        return loss.item()

    return timed(step, steps) | {"library": f"torch {torch.__version__}, transformers {transformers.__version__}"}


def timed(step, steps: int) -> dict[str, object]:
    """Run a step to warm up, then some with a clock."""
    losses, seconds = [step()], []
    for _ in range(steps):
        began = time.perf_counter()
        losses.append(step())
        seconds.append(round(time.perf_counter() - began, 4))
    return {"seconds_a_step": seconds, "losses": [round(loss, 3) for loss in losses]}


PARTS = {"compare": compare, "ours": time_ours, "theirs": time_theirs}


def in_process(part: str, folder: Path, *arguments: object) -> dict:
    """Run one part in a process of its own, with the threads that both libraries get.

    Raises:
        SystemExit: it failed.
    """
    threads = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")}
    command = [sys.executable, __file__, "--part", part, str(folder), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | threads)
    if done.returncode:
        raise SystemExit(f"{part} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(size: str, seconds: float, steps: int, rounds: int) -> dict:
    """Compare the two libraries on one size; they take turns, so that a busy machine is busy for both."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_reference(size, folder)
        found: dict = {"parity": in_process("compare", folder)}
        for _ in range(rounds):
            for part in ("theirs", "ours"):
                result = in_process(part, folder, seconds, steps)
                found.setdefault(part, {"seconds_a_step": []} | result | {"seconds_a_step": []})
                found[part]["seconds_a_step"] += result["seconds_a_step"]
    for part in ("theirs", "ours"):
        median = statistics.median(found[part]["seconds_a_step"])
        found[part] |= {"median_seconds_a_step": median, "clips_a_second": round(CLIPS / median, 3)}
    found["ours_to_theirs"] = round(found["ours"]["clips_a_second"] / found["theirs"]["clips_a_second"], 3)
    return found


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each of the 4 clips of a step")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rounds", type=int, default=2, help="processes of each library, taking turns")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/wav2vec2_parity.json")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        part, folder, *numbers = given.part
        print(json.dumps(PARTS[part](Path(folder), *(float(n) if "." in n else int(n) for n in numbers))))
        return
    sizes = json.loads(given.out.read_text("utf-8"))["sizes"] if given.out.exists() else {}
    sizes[given.size] = {
        "clips": CLIPS, "seconds": given.seconds, "threads": THREADS,
        **measure(given.size, given.seconds, given.steps, given.rounds), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    found = {"made_by": "benchmarks/wav2vec2_parity.py", "machine": f"{os.cpu_count()} cores", "sizes": sizes}
    files.write_atomically(given.out, lambda partial: partial.write_text(json.dumps(found, indent=2) + "\n"))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
