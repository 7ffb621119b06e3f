"""The CIFAR-10 ResNets of https://github.com/akamaster/pytorch_resnet_cifar10 as reusable SavedModels (hub: folders).

The architecture is that of arXiv:1512.03385, section 4.2, with shortcuts without parameters (option A).
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def convert(weights: Path, folder: Path) -> None:
    """Write one network as a SavedModel that trains: pictures in [0, 1] to the 64 features before its classifier.

    Args:
        weights: npz of the PyTorch state: names as there, kernels [out, in, height, width].
        folder: to write.

    Raises:
        ValueError: arrays that this architecture does not have.
    """
    import tf_keras  # its SavedModels have variables, a switch for training, and names; those of Keras 3 do not

    build(weights, tf_keras).save(folder, save_format="tf")


def build(weights: Path, library: ModuleType):
    """Build one network, with its weights.

    Args:
        weights: as for `convert`.
        library: keras or tf_keras.

    Returns:
        A model of that library: float32 [batch, height, width, 3] in [0, 1] to [batch, 64].

    Raises:
        ValueError: arrays that this architecture does not have.
    """
    layers = library.layers
    with np.load(weights, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files if not name.endswith("num_batches_tracked")}
    wanted = {}

    def convolution(inputs, name: str, torch_name: str, filters: int, stride: int):
        padded = layers.ZeroPadding2D(1)(inputs)  # "same" would pad a strided convolution on one side only
        wanted[name] = [np.transpose(arrays.pop(f"{torch_name}.weight"), (2, 3, 1, 0))]
        return layers.Conv2D(filters, 3, strides=stride, use_bias=False, name=name)(padded)

    def normalisation(inputs, name: str, torch_name: str):
        leaves = ("weight", "bias", "running_mean", "running_var")
        wanted[name] = [arrays.pop(f"{torch_name}.{leaf}") for leaf in leaves]
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(inputs)

    def shortcut(inputs, filters: int, stride: int):
        half = (filters - inputs.shape[-1]) // 2
        if stride == 1 and not half:
            return inputs
        # Every other pixel; then zeros for the new channels, written with layers that both libraries can save.
        x = layers.AveragePooling2D(1, strides=stride)(inputs)
        zeros = layers.Rescaling(0.0)(x[..., :half])
        return layers.Concatenate()([zeros, x, zeros])

    def block(inputs, name: str, torch_name: str, filters: int, stride: int):
        x = convolution(inputs, f"{name}_conv1", f"{torch_name}.conv1", filters, stride)
        x = layers.ReLU()(normalisation(x, f"{name}_bn1", f"{torch_name}.bn1"))
        x = convolution(x, f"{name}_conv2", f"{torch_name}.conv2", filters, 1)
        x = normalisation(x, f"{name}_bn2", f"{torch_name}.bn2")
        return layers.ReLU()(layers.Add()([x, shortcut(inputs, filters, stride)]))

    pixels = library.Input((None, None, 3))
    x = layers.Normalization(mean=MEAN, variance=np.square(STD).tolist())(pixels)
    x = layers.ReLU()(normalisation(convolution(x, "stem_conv", "conv1", 16, 1), "stem_bn", "bn1"))
    for stack, filters in enumerate((16, 32, 64), start=1):
        blocks = len({name.split(".")[1] for name in arrays if name.startswith(f"layer{stack}.")})
        for number in range(blocks):
            stride = 2 if stack > 1 and number == 0 else 1
            x = block(x, f"stack{stack}_block{number + 1}", f"layer{stack}.{number}", filters, stride)
    network = library.Model(pixels, layers.GlobalAveragePooling2D()(x))
    if left := sorted(set(arrays) - {"linear.weight", "linear.bias"}):
        raise ValueError(f"{weights.name} holds {left[0]!r}, which this network has not")
    for name, values in wanted.items():
        network.get_layer(name).set_weights(values)
    return network
