"""Reduce the graph file of a SavedModel: short internal names, no debug attributes, no function to save it again.

Keras repeats the path of every layer in each node that reads its weights, and each signature lists all of them
again: the graph of a MobileNet is an eighth of the size of its weights. Names inside a function are local to
it, so shortening them changes no output; the proof runs on the result, and tests/test_exporting.py loads it the
way TensorFlow Serving does.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel


def slim_graph(version: Path) -> None:
    """Rewrite VERSION/saved_model.pb with short internal names.

    Args:
        version: folder of a SavedModel that is not served yet.
    """
    file = version / "saved_model.pb"
    saved = SavedModel.FromString(file.read_bytes())
    for meta_graph in saved.meta_graphs:
        _drop_saving(meta_graph)
        for function in meta_graph.graph_def.library.function:
            _slim_function(function)
        _slim_nodes(meta_graph.graph_def.node, keep=_referenced_names(meta_graph))
        for number, node in enumerate(n for n in meta_graph.graph_def.node if n.op == "VarHandleOp"):
            node.attr["shared_name"].s = f"v{number}".encode()  # only needs to be unique in the graph
            node.attr.pop("debug_name", None)
    file.write_bytes(saved.SerializeToString(deterministic=True))


def _drop_saving(meta_graph: MetaGraphDef) -> None:
    """Remove the function that would save the variables again: loading needs only the one that restores them."""
    saver = meta_graph.saver_def
    save_name = saver.save_tensor_name.split(":")[0]
    nodes, functions = meta_graph.graph_def.node, meta_graph.graph_def.library.function
    save_node = next(node for node in nodes if node.name == save_name)
    functions.remove(next(f for f in functions if f.signature.name == save_node.attr["f"].func.name))
    nodes.remove(save_node)
    saver.save_tensor_name = saver.filename_tensor_name


def _referenced_names(meta_graph: MetaGraphDef) -> set[str]:
    """Return the nodes of the outer graph that signatures, saver and object graph refer to by name."""
    tensors = [t for s in meta_graph.signature_def.values() for t in (*s.inputs.values(), *s.outputs.values())]
    saver = meta_graph.saver_def
    names = {tensor.name.split(":")[0] for tensor in tensors}
    names |= {saver.filename_tensor_name.split(":")[0], saver.restore_op_name}
    return names | {node.constant.operation for node in meta_graph.object_graph_def.nodes if node.HasField("constant")}


def _slim_function(function: FunctionDef) -> None:
    arguments = {}
    for number, argument in enumerate(function.signature.input_arg):
        arguments[argument.name] = f"a{number}"
        argument.name = arguments[argument.name]
        if argument.type == 20:  # DT_RESOURCE: a captured variable, whose name no caller uses
            function.arg_attr[number].attr.pop("_user_specified_name", None)
    names = _slim_nodes(function.node_def, keep=(), arguments=arguments)
    for mapping in (function.ret, function.control_ret):
        for key, value in list(mapping.items()):
            mapping[key] = _renamed(value, names)


def _slim_nodes(
    nodes: Iterable[NodeDef], keep: Iterable[str], arguments: dict[str, str] | None = None
) -> dict[str, str]:
    """Shorten the names of nodes and of their inputs; return the new name of each old one."""
    names = {node.name: node.name if node.name in keep else f"n{i}" for i, node in enumerate(nodes)} | (arguments or {})
    for node in nodes:
        node.name = names[node.name]
        node.input[:] = [_renamed(text, names) for text in node.input]
        node.attr.pop("_output_shapes", None)
        # Two attributes refer to other nodes by their old names: placement and custom gradients.
        node.attr.pop("_class", None)
        node.attr.pop("_gradient_op_type", None)
        node.ClearField("experimental_debug_info")
    return names


def _renamed(reference: str, names: dict[str, str]) -> str:
    """Rename the node in `name`, `^name` (control input), `name:0` or `name:output:0`."""
    control, bare = ("^", reference[1:]) if reference.startswith("^") else ("", reference)
    node, colon, rest = bare.partition(":")
    return f"{control}{names[node]}{colon}{rest}"
