"""One loaded version of a SavedModel, and its signatures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef, SignatureDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from common.serving.refusals import Refusal, from_tensorflow, invalid
from common.serving.warmup import read_warmup

DEFAULT_SIGNATURE = "serving_default"
# Signatures of the loader itself, hidden from clients.
_INTERNAL_SIGNATURES = ("__saved_model_init_op", "__saved_model_train_op")


@dataclass(frozen=True)
class Signature:
    """A signature of a model.

    Args:
        name: of the signature in requests.
        definition: with the names, types and shapes of inputs and outputs.
        function: computes the outputs.
    """

    name: str
    definition: SignatureDef
    function: tf.types.experimental.ConcreteFunction

    @property
    def dtypes(self) -> dict[str, tf.DType]:
        """Return the type of each input."""
        return {name: tf.as_dtype(info.dtype) for name, info in sorted(self.definition.inputs.items())}

    @property
    def has_batch_dimension(self) -> bool:
        """Return whether requests can be batched: all inputs and outputs have a free first dimension."""
        infos = [*self.definition.inputs.values(), *self.definition.outputs.values()]
        shapes = [tf.TensorShape(info.tensor_shape) for info in infos]
        return bool(shapes) and all(shape.rank and shape[0] is None for shape in shapes)

    def check(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Refuse inputs that do not match the signature."""
        wanted = self.definition.inputs
        if inputs.keys() != wanted.keys():
            extra, missing = sorted(inputs.keys() - wanted.keys()), sorted(wanted.keys() - inputs.keys())
            sent = ",".join(sorted(inputs))
            raise invalid(
                f"input size does not match signature: {len(inputs)}!={len(wanted)} len({{{sent}}}) != "
                f"len({{{','.join(sorted(wanted))}}}). Sent extra: {{{','.join(extra)}}}. Missing but required: "
                f"{{{','.join(missing)}}}."
            )
        for name, array in inputs.items():
            dtype, shape = tf.as_dtype(wanted[name].dtype), tf.TensorShape(wanted[name].tensor_shape)
            sent_dtype = tf.string if array.dtype.kind in "OSU" else tf.as_dtype(array.dtype)
            if sent_dtype != dtype:
                raise invalid(
                    f"Input {name!r} expects {dtype.name} but {sent_dtype.name} is provided. It takes {dtype.name} of "
                    f"shape {shape}."
                )
            if not shape.is_compatible_with(array.shape):
                raise invalid(f"Input {name!r} expects shape {shape} but {list(array.shape)} is provided.")

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs for checked inputs.

        Raises:
            Refusal: the graph itself rejects them, such as bytes that are not an image.
        """
        tensors = {name: tf.constant(array) for name, array in inputs.items()}
        try:
            return {name: _array(value) for name, value in self.function(**tensors).items()}
        except tf.errors.OpError as error:
            raise from_tensorflow(error) from None


class Servable:
    """A loaded version of a model.

    Args:
        name: of the model on the server.
        version: its number.
        folder: of the SavedModel.

    Raises:
        OSError, ValueError, tf.errors.OpError: it cannot be loaded.
    """

    def __init__(self, name: str, version: int, folder: Path):
        self.name, self.version, self.folder = name, version, folder
        meta_graph = _serving_graph(folder)
        # Kept: a signature alone references its variables only weakly.
        self._loaded = tf.saved_model.load(str(folder), tags=list(meta_graph.meta_info_def.tags))
        self.signatures = {
            key: Signature(key, definition, self._loaded.signatures[key])
            for key, definition in sorted(meta_graph.signature_def.items())
            if key not in _INTERNAL_SIGNATURES and key in self._loaded.signatures
        }
        if not self.signatures:
            raise ValueError("it has no signature; export it with tf.saved_model.save(..., signatures=...)")
        self.answer = {key: signature.__call__ for key, signature in self.signatures.items()}

    def signature(self, name: str = "", *, code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT) -> Signature:
        """Return a signature by its name, "" being `serving_default`.

        Args:
            name: of the signature.
            code: of the refusal: REST and gRPC differ in this.

        Raises:
            Refusal: there is none; it lists those that exist.
        """
        name = name or DEFAULT_SIGNATURE
        if name not in self.signatures:
            theirs = ", ".join(f'"{key}"' for key in self.signatures)
            said = (
                f'Serving signature key "{name}" not found.'
                if code == grpc.StatusCode.FAILED_PRECONDITION
                else f'Serving signature name: "{name}" not found in signature def.'
            )
            raise Refusal(code, f"{said} Model {self.name} version {self.version} has: {theirs}.")
        return self.signatures[name]

    def predict(self, signature: Signature, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Check inputs and return the outputs of a signature, alone or in one batch with other requests."""
        signature.check(inputs)
        return self.answer[signature.name](inputs)


def _array(tensor: tf.Tensor) -> np.ndarray:
    """Return a tensor as an array; text as Python's bytes, as numpy's own would drop trailing zeros."""
    return np.asarray(tensor.numpy(), dtype=object) if tensor.dtype == tf.string else np.asarray(tensor.numpy())


def _serving_graph(folder: Path) -> MetaGraphDef:
    """Return the serving graph of a SavedModel."""
    saved = SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    for meta_graph in saved.meta_graphs:
        if "serve" in meta_graph.meta_info_def.tags:
            return meta_graph
    raise ValueError('it holds no graph tagged "serve"')


def replay_warmup(servable: Servable) -> int:
    """Send the requests of the warm-up file to a model; return their number.

    Raises:
        ValueError: the file is damaged.
        Refusal: a request fails; as in the real server, the model is then not served.
    """
    requests = read_warmup(servable.folder)
    for request in requests:
        signature = servable.signature(request.model_spec.signature_name)
        inputs = {key: tf.make_ndarray(tensor) for key, tensor in request.inputs.items()}
        servable.predict(signature, inputs)
    return len(requests)
