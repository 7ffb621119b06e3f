"""What trains and what does not: named freezing policies, with BatchNorm safe by default."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import keras

from common.errors import UserError
from common.specs import parse_policy

# How keras.applications and KerasHub name the layers of one block; the last match in a backbone is
# its last block: conv5_block3_out, stack2_block1_add, block_16_project, block7a_expand_conv, mixed10 ...
_BLOCK_NAME = re.compile(
    r"(stack\d+_block\d+|conv\d+_block\d+|stage_\d+_block_\d+|block_?\d+[a-z]?(?=_|$)|conv_(?:dw|pw)_\d+"
    r"|expanded_conv_\d+)"
)


@dataclass(frozen=True)
class TrainableCounts:
    """How many layers and parameters of a model train."""

    layers: int
    parameters: int
    total_parameters: int

    def __str__(self) -> str:
        share = self.parameters / max(self.total_parameters, 1)
        return f"{self.layers} layers, {self.parameters:,} of {self.total_parameters:,} parameters train ({share:.1%})"


def freeze(model: keras.Model, backbone: keras.Model, policy: str, batch_norm: str = "frozen") -> TrainableCounts:
    """Set what trains in the backbone of a model; everything outside the backbone trains.

    Keras reads `trainable` when a model is compiled, so the model must be compiled after this call; a
    compilation that stands is dropped here, so that forgetting it is an error and not a silent no-op.

    Args:
        model: the whole model, backbone included.
        backbone: the pretrained part whose layers the policy speaks of.
        policy: `frozen`, `last:N` (the last N layers that have weights), `last_block`, `all`, or
            `regex:PATTERN` (layers whose name matches anywhere).
        batch_norm: `frozen` keeps BatchNorm layers in inference mode (they neither train nor update their
            moving statistics, https://keras.io/guides/transfer_learning/); `train` lets them follow the policy.

    Returns:
        The counts after the change, ready to print.

    Raises:
        UserError: unknown policy, or one that selects no layer.
    """
    chosen = set(map(id, layers_of(backbone, policy)))
    model.trainable = True  # also resets every layer inside, so that policies do not add up
    for layer in weight_layers(backbone):
        trains = id(layer) in chosen
        if isinstance(layer, keras.layers.BatchNormalization) and batch_norm == "frozen":
            trains = False
        if list(layer._layers):  # a layer made of layers: its setter would overrule those inside
            for weight in layer._trainable_variables:
                weight.trainable = trains
        else:
            layer.trainable = trains
    model.compiled = False
    return count_trainable(model)


def layers_of(backbone: keras.Model, policy: str) -> list[keras.layers.Layer]:
    """Return the layers with weights of the backbone that a policy unfreezes.

    Args:
        backbone: a Functional backbone; nested models are looked through.
        policy: as for `freeze`.

    Returns:
        The layers, in order.

    Raises:
        UserError: unknown policy, or one that selects no layer.
    """
    parse_policy(policy)
    layers = weight_layers(backbone)
    if policy == "frozen":
        return []
    if policy == "all":
        return layers
    if policy.startswith("last:"):
        return layers[-int(policy.removeprefix("last:")) :]
    if policy == "last_block":
        start = _last_block_start(layers)
        if start is None:
            raise UserError("--unfreeze last_block: this backbone names no blocks. Try: --unfreeze last:20")
        return layers[start:]
    pattern = re.compile(policy.removeprefix("regex:"))
    chosen = [layer for layer in layers if pattern.search(layer.name)]
    if not chosen:
        names = ", ".join(layer.name for layer in layers[-5:])
        raise UserError(f"--unfreeze {policy!r} matches no layer. The last layers are: {names}.")
    return chosen


def weight_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Return the layers that hold weights of their own, in order; nested models are looked through."""
    return [
        layer
        for layer in model._flatten_layers(include_self=False)
        if layer._trainable_variables or layer._non_trainable_variables
    ]


def count_trainable(model: keras.Model) -> TrainableCounts:
    """Count the layers and parameters of a model that train."""
    return TrainableCounts(
        layers=sum(any(w.trainable for w in layer._trainable_variables) for layer in weight_layers(model)),
        parameters=sum(math.prod(weight.shape) for weight in model.trainable_weights),
        total_parameters=model.count_params(),
    )


def _last_block_start(layers: list[keras.layers.Layer]) -> int | None:
    blocks = [match[0] if (match := _BLOCK_NAME.search(layer.name)) else None for layer in layers]
    named = [block for block in blocks if block]
    return blocks.index(named[-1]) if named else None
