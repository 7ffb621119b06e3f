"""The ops of a SavedModel that the stock TF Serving server cannot run."""

import json
from pathlib import Path

# The ops with kernels in the stock server; written by benchmarks/refresh_served_ops.py. The process of a proof may
# have more ops: it has Python, and its TensorFlow may be newer than the server's.
SERVED_OPS = Path(__file__).with_name("served_ops.json")


def ops_outside_tf_serving(version: Path) -> list[str]:
    """Return the ops in the graph of a SavedModel that the stock TF Serving server lacks."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    saved = SavedModel.FromString((version / "saved_model.pb").read_bytes())
    ops = set()
    for meta_graph in saved.meta_graphs:
        ops |= {node.op for node in meta_graph.graph_def.node}
        ops |= {node.op for function in meta_graph.graph_def.library.function for node in function.node_def}
    functions = {f.signature.name for m in saved.meta_graphs for f in m.graph_def.library.function}
    served = json.loads(SERVED_OPS.read_text("utf-8"))
    return sorted(ops - functions - set(served["core"]) - set(served["text"]) - set(served["decision_forests"]))
