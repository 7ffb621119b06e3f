"""A TF Hub model, or any other TF2 SavedModel, as a Keras 3 layer that trains, freezes, saves and exports."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import packaging.version
import tensorflow as tf
from keras.src.saving.serialization_lib import in_safe_mode
from tensorflow.core.protobuf import saved_model_pb2

from common.errors import UserError, did_you_mean, first_line
from common.sources.handles import is_handle
from common.sources.hub_cache import resolve_handle

_MOVING_STATISTICS = ("moving_mean", "moving_variance")


@keras.saving.register_keras_serializable("recipes")
class SavedModelLayer(keras.layers.Layer):
    """A TF2 SavedModel as a layer whose weights are real Keras weights.

    They train, freeze and unfreeze, carry optimizer slots, are saved, loaded, cloned and exported (string and
    complex variables are exported only). It calls `__call__` of a reusable SavedModel
    (https://www.tensorflow.org/hub/reusable_saved_models), else `serve` of a Keras 3 export, else the signature
    `serving_default`.

    A SavedModel is code: load only models you trust. A `.keras` file holds the handle and the weights, not the graph;
    `model.export` writes all of it.

    Args:
        handle: folder of the SavedModel, or a TF Hub or Kaggle handle as for `common.sources.handles.resolve_handle`.
        trainable: whether its weights train.
        follow_training: whether the module is in training mode when the Keras model is (and `trainable` is set), so
            that dropout is active and BatchNorm uses batch statistics; else it stays in inference mode.
        signature: method or signature to call instead.
        output_key: which output to return, where the module returns a dictionary or a list of them.
        **arguments: as for keras.layers.Layer; dtype is float32 by default, for the graph has fixed types.

    Raises:
        UserError: no SavedModel there, or one that is damaged, in the TF1 Hub format, or without such a signature.
    """

    def __init__(
        self,
        handle: str,
        trainable: bool = False,
        follow_training: bool = True,
        signature: str | None = None,
        output_key: str | int | None = None,
        **arguments,
    ):
        super().__init__(**{"dtype": "float32", "trainable": trainable, **arguments})
        local = not is_handle(str(handle))
        self.handle = os.path.abspath(os.path.expanduser(handle)) if local else handle
        self.follow_training = follow_training
        self.signature, self.output_key = signature, output_key
        self.saved_model = load_saved_model(self.handle)  # held as an attribute, its lookup tables are exported too
        self._function = _function_to_call(self.saved_model, signature, self.handle)
        self._training_modes = _training_modes(self._function)
        if self._training_modes and False not in self._training_modes:
            raise UserError(
                "The SavedModel was saved in training mode only: dropout would be active in evaluation and serving, "
                f"and BatchNorm would use batch statistics. Received: {handle}. Allowed: one that was traced with "
                f"training=False too, or another signature of it: {', '.join(self.saved_model.signatures) or 'none'}."
            )
        positional = _concrete_functions(self._function)[0].structured_input_signature[0]
        self._takes_a_list = bool(positional) and isinstance(positional[0], list | tuple)
        self._regularizers = list(getattr(self.saved_model, "regularization_losses", None) or ())

        found, trainable_ids = _variables(self.saved_model, self._function)
        self.module_variables = [_adopt(variable, variable.ref() in trainable_ids) for variable in found]
        self.parts = _parts(found, self.module_variables)
        if not trainable:  # the setter of the layer does nothing where the value is unchanged
            for variable in self.module_variables:
                variable.trainable = False
        self.built = True

    @property
    def knows_training(self) -> bool:
        """Whether the module was saved with a training mode; if not, dropout and batch statistics are never active."""
        return True in self._training_modes

    @property
    def input_specs(self) -> dict[str | int, tf.TensorSpec]:
        """The inputs of the module: by name where it takes keywords, else by position (0 is the first)."""
        specs = [_input_specs(concrete) for concrete in _concrete_functions(self._function)]
        return max(specs, key=_unknown_dimensions)  # some are also saved for the batch size they were traced with

    def call(self, inputs, training=False):
        trains = bool(training) and self.trainable
        if self._takes_a_list and not isinstance(inputs, list | tuple):
            inputs = [inputs]
        if isinstance(self._function, tf.types.experimental.ConcreteFunction):  # a signature takes keywords only
            names = list(self._function.structured_input_signature[1])
            outputs = self._function(**(inputs if isinstance(inputs, dict) else {names[0]: inputs}))
        elif self._training_modes:
            mode = trains and self.follow_training and self.knows_training
            outputs = self._function(inputs, training=self._training_modes[mode])
        else:
            outputs = self._function(inputs)
        if trains and not self.losses:  # a layer that is used twice adds them once, like a regularised Dense
            for regularizer in self._regularizers:
                self.add_loss(regularizer())
        return self._choose(outputs)

    def _choose(self, outputs):
        if self.output_key is None:
            return next(iter(outputs.values())) if isinstance(outputs, dict) and len(outputs) == 1 else outputs
        if isinstance(outputs, dict):
            keys = sorted(outputs, key=str)  # a loaded dictionary has them in any order
        else:
            keys = list(range(len(outputs))) if isinstance(outputs, list | tuple) else []
        if self.output_key not in keys:
            allowed = ", ".join(map(str, keys)) or "none: it returns one tensor"
            raise UserError(
                f"The SavedModel has no such output. Allowed: {allowed}. "
                f"Received: output_key={self.output_key!r} for {self.handle}."
            )
        return outputs[self.output_key]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "handle": self.handle,
            "follow_training": self.follow_training,
            "signature": self.signature,
            "output_key": self.output_key,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SavedModelLayer:
        """Build the layer of a `.keras` file, unless Keras loads in safe mode, which forbids code."""
        if in_safe_mode():
            raise UserError(
                f"The model holds a SavedModel, which is code, and names {config.get('handle')!r} to load it from. "
                "If you trust both: keras.models.load_model(PATH, safe_mode=False)"
            )
        return cls(**config)


class SavedModelPart:
    """The variables of one scope of a SavedModel (`block_16_project`), for freezing policies to select.

    Attributes:
        name: the scope.
        variables: Keras variables.
        is_batch_norm: whether they belong to a BatchNorm.
    """

    def __init__(self, name: str, variables: list[keras.Variable], is_batch_norm: bool):
        self.name, self.variables, self.is_batch_norm = name, variables, is_batch_norm
        # Named as in Keras layers: variables that train unless frozen, and those that never train.
        self._trainable_variables = [variable for variable in variables if variable.trainable]
        self._non_trainable_variables = [variable for variable in variables if not variable.trainable]

    @property
    def trainable(self) -> bool:
        """Whether any of it trains."""
        return any(variable.trainable for variable in self._trainable_variables)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        for variable in self._trainable_variables:
            variable.trainable = value


def load_saved_model(handle: str):
    """Load a SavedModel with tensorflow_hub, with a clear error for one that cannot be used.

    Args:
        handle: a folder, or a TF Hub or Kaggle handle.

    Returns:
        What `tf.saved_model.load` returns.

    Raises:
        UserError: no SavedModel there, or one that is damaged or in the TF1 Hub format; no network for a handle.
    """
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"A SavedModel runs on the TensorFlow backend of Keras only. Received: {keras.backend.backend()!r}. "
            "Set KERAS_BACKEND=tensorflow."
        )
    if is_handle(handle):
        folder = resolve_handle(handle, check_saved_model)
    else:
        folder = Path(os.path.expanduser(handle))
        check_saved_model(folder)
    try:
        return _tensorflow_hub().load(str(folder))
    except Exception as error:  # the loader raises many types: tf.errors, struct, KeyError, FileNotFoundError
        raise UserError(
            f"The SavedModel cannot be loaded. Received: {handle}. It needs complete files, as written by "
            f"tf.saved_model.save or model.export. TensorFlow error: {first_line(error)}"
        ) from error


def reinitialise(layer: SavedModelLayer) -> None:
    """Initialise every weight of the module anew: the from-scratch baseline of a SavedModel.

    Kernels and embeddings get He initialisation (arXiv:1502.01852), normalisations and biases their neutral values.
    A SavedModel does not record its initialisers, so names and shapes decide.

    Args:
        layer: its weights are set.

    Raises:
        UserError: a vector of unknown role.
    """
    for variable in layer.module_variables:
        leaf = variable.name.rpartition(".")[2]
        if len(variable.shape) >= 2:
            # A filter of a depthwise kernel [height, width, channels, 1] reads one channel, not all of them.
            reads = variable.shape[:-2] if "depthwise" in variable.name else variable.shape[:-1]
            variable.assign(keras.random.normal(variable.shape, stddev=math.sqrt(2 / math.prod(reads))))
        elif re.fullmatch(r"(gamma|scale|moving_variance|running_var)(_\d+)?", leaf):
            variable.assign(keras.ops.ones(variable.shape))
        elif re.fullmatch(r"(beta|bias|biases|offset|moving_mean|running_mean)(_\d+)?", leaf):
            variable.assign(keras.ops.zeros(variable.shape))
        elif len(variable.shape) == 1:
            raise UserError(
                f"The role of the SavedModel's weight {variable.name!r} is unknown, so it cannot be initialised "
                f"anew. Received: {layer.handle}@random. Leave 'scratch' out of --baselines."
            )


def check_saved_model(folder: Path) -> None:
    """Check that a folder holds a complete TF2 SavedModel, without running any of it.

    Args:
        folder: to check.

    Raises:
        UserError: what is missing or damaged, or that it is of the TF1 Hub format.
    """
    if not (folder / "saved_model.pb").is_file():
        versions = sorted(folder.glob("*/saved_model.pb"))
        hint = f" Try the folder in it: {versions[-1].parent}" if versions else ""
        what = "is no folder" if not folder.is_dir() else "holds no saved_model.pb"
        raise UserError(f"SavedModel not found: {folder} {what}.{hint}")
    if (folder / "tfhub_module.pb").exists():
        raise UserError(
            f"{folder} is of the TF1 Hub format, whose training graph and regularisation cannot be loaded in TF2. "
            "Use the TF2 SavedModel of the same model: on tfhub.dev and kaggle.com it has a higher version number "
            "or the framework TensorFlow 2."
        )
    described = saved_model_pb2.SavedModel()
    try:
        described.ParseFromString((folder / "saved_model.pb").read_bytes())
        graph = described.meta_graphs[0]
    except Exception as error:  # protobuf's own DecodeError, or no graph at all
        raise UserError(f"{folder / 'saved_model.pb'} is damaged, probably incomplete. Fetch it again.") from error
    for asset in graph.asset_file_def:
        if Path(asset.filename).is_absolute() or ".." in Path(asset.filename).parts:
            raise UserError(f"{folder} names an asset outside its folder ({asset.filename!r}); it is not loaded.")
    kinds = {node.WhichOneof("kind") for node in graph.object_graph_def.nodes}
    if "variable" in kinds or graph.saver_def.restore_op_name:
        _check_variables(folder)


def _check_variables(folder: Path) -> None:
    index, shards = folder / "variables" / "variables.index", list((folder / "variables").glob("variables.data-*"))
    said = [int(path.name.rpartition("-of-")[2]) for path in shards if path.name.rpartition("-of-")[2].isdigit()]
    if index.is_file() and said and len(shards) == said[0]:
        return
    there = ", ".join(sorted(path.name for path in (folder / "variables").glob("*"))) or "nothing"
    raise UserError(
        f"The weights of the SavedModel are incomplete. Required: {folder / 'variables'} with variables.index and "
        f"every variables.data-*. Received: {there}. Copy or fetch it again."
    )


@contextlib.contextmanager
def _pkg_resources_stands_in() -> Iterator[None]:
    """Provide the one function of pkg_resources that tensorflow_hub 0.16.1 uses; setuptools 82 removed it."""
    try:
        importlib.import_module("pkg_resources")
        missing = False
    except ModuleNotFoundError:
        missing, stand_in = True, types.ModuleType("pkg_resources")
        stand_in.parse_version = packaging.version.parse
        sys.modules["pkg_resources"] = stand_in
    try:
        yield
    finally:
        if missing:
            del sys.modules["pkg_resources"]


def _tensorflow_hub():
    with _pkg_resources_stands_in():
        import tensorflow_hub  # here: it imports tf_keras, which takes seconds and only hub: sources need
    return tensorflow_hub


def _function_to_call(saved_model, signature: str | None, handle: str) -> Callable:
    signatures = dict(getattr(saved_model, "signatures", {}))
    if signature:
        method = getattr(saved_model, signature, None)
        if hasattr(method, "concrete_functions"):
            return method
        if signature in signatures:
            return signatures[signature]
    elif callable(saved_model):
        return saved_model.__call__
    elif hasattr(saved_model, "serve"):
        return saved_model.serve
    elif "serving_default" in signatures:
        return signatures["serving_default"]
    name = repr(signature) if signature else "__call__, serve or serving_default"
    raise UserError(
        f"The SavedModel has no {name} to call. Allowed: its signatures, "
        f"{', '.join(signatures) or 'of which it has none'}. Received: {handle}."
        f"{did_you_mean(signature or '', signatures)}"
    )


def _concrete_functions(function: Callable) -> list:
    return list(getattr(function, "concrete_functions", ())) or [function]


def _input_specs(concrete) -> dict[str | int, tf.TensorSpec]:
    positional, named = concrete.structured_input_signature
    if positional and isinstance(positional[0], dict):
        return dict(positional[0])
    if positional and isinstance(positional[0], list | tuple):  # keras.Model([input], ...).export
        positional = positional[0]
    specs = {i: spec for i, spec in enumerate(positional) if isinstance(spec, tf.TypeSpec)}
    return specs or {name: spec for name, spec in named.items() if isinstance(spec, tf.TypeSpec)}


def _unknown_dimensions(specs: dict[str | int, tf.TensorSpec]) -> int:
    shapes = [spec.shape for spec in specs.values() if isinstance(spec, tf.TensorSpec)]
    return sum(100 if shape.rank is None else shape.as_list().count(None) for shape in shapes)


def _training_modes(function: Callable) -> dict[bool, Any]:
    """Return what to pass as `training` for inference (False) and training (True), as far as each was saved."""
    names = list(getattr(getattr(function, "function_spec", None), "arg_names", None) or ())
    position = names.index("training") if "training" in names else None
    modes: dict[bool, Any] = {}
    for concrete in _concrete_functions(function):
        positional, named = concrete.structured_input_signature
        if "training" in named:
            value = named["training"]
        elif position is not None and position < len(positional):
            value = positional[position]
        else:
            continue
        if isinstance(value, tf.TypeSpec):
            modes |= {False: False, True: True}
        elif value is not None or False not in modes:  # None, the default of many, means inference
            modes[bool(value)] = value
    return modes


def _variables(saved_model, function: Callable) -> tuple[list[tf.Variable], set]:
    """Return the variables in the order in which the network uses them, and the references of those that train."""
    captured = [variable for concrete in _concrete_functions(function) for variable in concrete.variables]
    listed = list(getattr(saved_model, "variables", None) or ())
    # tf.saved_model.save does not keep the properties of a plain tf.Module: what the function captured is left.
    trains = getattr(saved_model, "trainable_variables", None) if listed else None
    trains = [variable for variable in captured if variable.trainable] if trains is None else list(trains)
    unique = {variable.ref(): variable for variable in [*captured, *listed, *trains]}
    numeric = [v for v in unique.values() if v.dtype.is_floating or v.dtype.is_integer or v.dtype.is_bool]
    return numeric, {variable.ref() for variable in trains if variable.dtype.is_floating}


def _adopt(variable: tf.Variable, trainable: bool) -> keras.Variable:
    """Wrap a variable of the module: the same memory, as a Keras variable."""
    name = variable.name.split(":")[0].replace("/", ".")
    adopted = keras.Variable(variable, dtype=variable.dtype.name, trainable=trainable, autocast=False, name=name)
    if adopted.value is not variable:  # undocumented behaviour of 3.15; a copy would be trained but never used
        raise RuntimeError(
            f"Keras {keras.version()} copies a tf.Variable that it is given. SavedModelLayer needs Keras 3.15, "
            "which shares its memory: pip install 'keras>=3.15.1,<3.16'"
        )
    return adopted


def _parts(found: list[tf.Variable], adopted: list[keras.Variable]) -> list[SavedModelPart]:
    """Group variables by their scope; where none has one (a Keras 3 export), each is a part of its own."""
    names = [variable.name.split(":")[0] for variable in found]
    flat = not any("/" in name for name in names)
    scopes: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        scopes.setdefault(f"{name}_{number}" if flat else name.rpartition("/")[0], []).append(number)
    has_statistics = any(name.rpartition("/")[2] in _MOVING_STATISTICS for name in names)
    parts = []
    for scope, numbers in scopes.items():
        leaves = {names[number].rpartition("/")[2] for number in numbers}
        normalises = leaves <= {"gamma", "beta", *_MOVING_STATISTICS} if flat else leaves & {*_MOVING_STATISTICS}
        parts.append(
            SavedModelPart(scope, [adopted[number] for number in numbers], bool(has_statistics and normalises))
        )
    return parts
