"""Freeze and unfreeze layers: named policies, with BatchNorm frozen by default."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras

from common.errors import UserError
from common.flags import check_choice, parse_policy

# How keras.applications and KerasHub name the layers of one block; the last match in a backbone is its last block:
# conv5_block3_1_conv, stack2_block1_2_bn, block_16_project, block7a_dwconv, vit_encoder/transformer_block_12/mlp ...
_BLOCK_NAME = re.compile(
    r"stack\d+_block\d+|conv\d+_block\d+|stage_\d+_block_\d+|block_?\d+(_\d+)?[a-z]?(?=[_/]|$)|conv_[dp]w_\d+"
    r"|expanded_conv_\d+|stage_\d+/blocks_\d+|encoder/layers_\d+|hierarchical_encoder_\d+_\d+"
)
# Two families mark where a block ends rather than its layers: InceptionV3 (its layers have generated names) and
# DenseNet (its `conv5_block16` is one of the 16 small layers of the dense block that conv5 is).
_BLOCK_END = re.compile(r"mixed\d+|pool[2-4]_pool|transition\d+_pool")

# A layer, or a part of a SavedModel (`hub.SavedModelPart`). A `hub.SavedModelLayer` is recognised by its `parts`, since
# importing it would add the code that runs SavedModels to every recipe.
Freezable = Any

BATCH_NORM_MOMENTUM = 0.9  # moving statistics adapt within some ten steps, which every fine-tuning has


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
    """Set which layers of the backbone train; everything outside the backbone trains.

    Keras reads `trainable` when a model is compiled, so the model must be compiled after this call; an
    earlier compilation is discarded here, so that forgetting it is an error and not a silent no-op.

    Args:
        model: the whole model, backbone included.
        backbone: the pretrained part, whose layers the policy names.
        policy: `frozen`, `last:N` (the last N layers that have weights), `last_block` (with all that follows
            it), `all`, or `regex:PATTERN` (layers whose name matches anywhere; a layer inside another one is
            called `outer/inner`).
        batch_norm: `frozen` keeps BatchNorm layers in inference mode (they neither train nor update their
            moving statistics, https://keras.io/guides/transfer_learning/); `train` lets them follow the policy.
            A SavedModel has one switch for all its BatchNorm and dropout, so there `train` needs the policy `all`.

    Returns:
        The counts after the change.

    Raises:
        UserError: unknown policy, or one that selects no layer that can train.
    """
    check_choice("--batch-norm", batch_norm, ("frozen", "train"))
    chosen = layers_of(backbone, policy)
    can_train = [layer for layer in chosen if batch_norm != "frozen" or not _is_batch_norm(layer)]
    if chosen and not any(layer._trainable_variables for layer in can_train):
        raise UserError(
            f"--unfreeze {policy} selects only layers that do not train: {', '.join(la.name for la in chosen[-5:])}. "
            "BatchNorm layers stay frozen unless --batch-norm train. Try more layers: --unfreeze last_block"
        )
    trains = set(map(id, can_train))
    model.trainable = True  # also resets every layer inside, so that policies do not add up
    for saved_model in _saved_models(backbone):
        _set_training_mode(saved_model, policy, batch_norm)
    for layer in weight_layers(backbone):
        if not isinstance(layer, keras.layers.Layer):  # a part of a SavedModel
            layer.trainable = id(layer) in trains
        elif list(layer._layers):  # a layer made of layers: its setter would overrule those inside
            for weight in layer._trainable_variables:
                weight.trainable = id(layer) in trains
        else:
            layer.trainable = id(layer) in trains
            if isinstance(layer, keras.layers.BatchNormalization) and id(layer) in trains:
                # MobileNetV2's 0.999 needs thousands of steps until its statistics match the new images.
                layer.momentum = min(layer.momentum, BATCH_NORM_MOMENTUM)
    model.compiled = False
    return count_trainable(model)


def _is_batch_norm(layer: Freezable) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization) or getattr(layer, "is_batch_norm", False)


def _saved_models(backbone: keras.Model) -> list[keras.layers.Layer]:
    return [layer for layer in backbone._flatten_layers() if hasattr(layer, "parts")]


def _set_training_mode(layer: keras.layers.Layer, policy: str, batch_norm: str) -> None:
    has_batch_norm = any(part.is_batch_norm for part in layer.parts)
    if has_batch_norm and batch_norm == "train" and policy not in ("all", "frozen"):
        raise UserError(
            f"--batch-norm train with --unfreeze {policy}: a SavedModel has one training switch for all its BatchNorm "
            "layers, including the frozen ones. Try: --unfreeze all, or --batch-norm frozen"
        )
    layer.trainable = policy != "frozen"
    layer.follow_training = batch_norm == "train" or not has_batch_norm


def layers_of(backbone: keras.Model, policy: str) -> list[Freezable]:
    """Return the layers with weights of the backbone that a policy unfreezes.

    Args:
        backbone: a Functional backbone; nested models are searched.
        policy: as for `freeze`.

    Returns:
        The layers, in order; of a SavedModel its parts.

    Raises:
        UserError: unknown policy, or one that selects no layer.
    """
    parse_policy(policy)
    named = list(_named_layers(backbone))
    holders = [(name, layer) for name, layer in named if _has_weights(layer)]
    layers = [layer for _, layer in holders]
    if policy == "frozen":
        return []
    if policy == "all":
        return layers
    if policy.startswith("last:"):
        return layers[-int(policy.removeprefix("last:")) :]
    if policy == "last_block":
        chosen = _last_block(named)
        if not chosen:
            raise UserError("--unfreeze last_block: this backbone names no blocks. Try: --unfreeze last:20")
        return chosen
    pattern = re.compile(policy.removeprefix("regex:"))
    chosen = [layer for name, layer in holders if pattern.search(name)]
    if not chosen:
        names = ", ".join(name for name, _ in holders[-5:])
        raise UserError(f"--unfreeze {policy!r} matches no layer. The last layers are: {names}.")
    return chosen


def weight_layers(model: keras.Model) -> list[Freezable]:
    """Return the layers that hold weights of their own, in order; nested models and SavedModels are searched."""
    return [layer for _, layer in _named_layers(model) if _has_weights(layer)]


def count_trainable(model: keras.Model) -> TrainableCounts:
    """Count the layers and parameters of a model that train."""
    return TrainableCounts(
        layers=sum(any(w.trainable for w in layer._trainable_variables) for layer in weight_layers(model)),
        parameters=sum(math.prod(weight.shape) for weight in model.trainable_weights),
        total_parameters=model.count_params(),
    )


def _has_weights(layer: Freezable) -> bool:
    return bool(layer._trainable_variables or layer._non_trainable_variables)


def _named_layers(
    outer: keras.layers.Layer, prefix: str = "", seen: set[int] | None = None
) -> Iterator[tuple[str, Freezable]]:
    """Yield ("outer/inner", layer) for all layers inside, once each, in order (Keras' own walk reverses it)."""
    seen = set() if seen is None else seen
    for layer in outer._layers:
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        if hasattr(layer, "parts"):
            yield from ((f"{prefix}{layer.name}/{part.name}", part) for part in layer.parts)
        else:
            yield prefix + layer.name, layer
            yield from _named_layers(layer, f"{prefix}{layer.name}/", seen)


def _last_block(named: list[tuple[str, Freezable]]) -> list[Freezable]:
    """Return the layers with weights from the start of the last block on, or none where no block is named."""
    ends = [number for number, (name, _) in enumerate(named) if _BLOCK_END.fullmatch(name)]
    for end in reversed(ends):  # InceptionV3 ends in such a layer, so what follows may be empty
        if after := [layer for _, layer in named[end + 1 :] if _has_weights(layer)]:
            return after
    # A block of MobileNet is conv_dw_13 and conv_pw_13.
    blocks = [name[: match.end()].replace("conv_pw", "conv_dw") if (match := _BLOCK_NAME.search(name)) else None
              for name, _ in named]  # fmt: skip
    last = next((block for block in reversed(blocks) if block), None)
    return [layer for _, layer in named[blocks.index(last) :] if _has_weights(layer)] if last else []
