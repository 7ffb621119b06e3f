"""The proof: run as a script in a fresh process, it imports tensorflow and nothing of this project.

python -I common/proof.py SAVED_MODEL INPUTS.json EXPECTED.npz RESULT.json
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

# What the stock server links and has kernels for; benchmarks/refresh_served_ops.py writes it. This process may
# know more ops: it has Python, and its TensorFlow may be newer than the server's.
SERVED_OPS = Path(__file__).parent / "serving" / "served_ops.json"


def ops_outside_tf_serving(version: Path) -> list[str]:
    """Return the ops in the graph that the stock TF Serving server cannot run."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    saved = SavedModel.FromString((version / "saved_model.pb").read_bytes())
    ops = set()
    for meta_graph in saved.meta_graphs:
        ops |= {node.op for node in meta_graph.graph_def.node}
        ops |= {node.op for function in meta_graph.graph_def.library.function for node in function.node_def}
    functions = {f.signature.name for m in saved.meta_graphs for f in m.graph_def.library.function}
    served = json.loads(SERVED_OPS.read_text("utf-8"))
    return sorted(ops - functions - set(served["core"]) - set(served["text"]) - set(served["decision_forests"]))


def write_result(result_file: Path, version: Path, **found) -> None:
    """Write down what was found, with the ops that the server lacks, unless this process was not alone."""
    # TensorFlow itself imports Keras; nothing that trained or exported the model may be here.
    foreign = sorted(name for name in ("keras_hub", "common", "recipes") if name in sys.modules)
    if foreign:
        raise SystemExit(f"the proof must import only tensorflow, and found {foreign}")
    found["ops_outside_tf_serving"] = ops_outside_tf_serving(version)
    if np.isnan(found["max_abs_diff"]):
        found["max_abs_diff"] = None  # JSON has no NaN
    result_file.write_text(json.dumps(found), encoding="utf-8")


def main(version: Path, inputs_file: Path, expected_file: Path, result_file: Path) -> None:
    """Send the raw files or texts to `serving_default` and compare with what evaluation saw."""
    asked = json.loads(inputs_file.read_text(encoding="utf-8"))
    inputs, names = asked["inputs"], asked["names"]
    batch_size = 4 if asked["input"] == "audio" else 32  # sounds are long
    probabilities = np.load(expected_file, allow_pickle=False)["probabilities"]
    loaded = tf.saved_model.load(str(version))  # held in a name: a signature alone loses its variables
    serve = loaded.signatures["serving_default"]
    same, largest = 0, 0.0
    for start in range(0, len(inputs), batch_size):
        some = inputs[start : start + batch_size]
        raw = [Path(one).read_bytes() if asked["kind"] == "paths" else one.encode("utf-8", "replace") for one in some]
        answer = serve(**{asked["input"]: tf.constant(raw)})
        wanted = probabilities[start : start + batch_size]
        labels = [label.decode("utf-8") for label in answer["label"].numpy()]
        same += sum(label == names[best] for label, best in zip(labels, wanted.argmax(axis=1), strict=True))
        # Not Python's max, which passes over NaN.
        largest = float(np.maximum(largest, np.abs(answer["probabilities"].numpy() - wanted).max()))
    write_result(result_file, version, agreement=same / len(inputs), max_abs_diff=largest)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:5]))
