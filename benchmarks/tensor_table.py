"""Write common/images/efficientnet_lite0.json: where each weight of a PyTorch file lies, for Keras' variables.

    python benchmarks/tensor_table.py FILE.pth

The file is of PyTorch's format before 1.6: three pickles, the keys of the storages, then the storages themselves. Its
index is read here with an unpickler that builds nothing but tuples; with the table, a user's machine reads no pickle.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import sys
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.sources.catalogue import CATALOGUE  # noqa: E402 (the script's folder, not the checkout, is on sys.path)
from common.sources.fetching import file_digest  # noqa: E402

TABLE = ROOT / "common" / "images" / "efficientnet_lite0.json"
FLOAT, HEADERS = 4, 3  # bytes; the pickles before that of the weights
_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_BEFORE = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}  # and the BatchNorm after it


class Stored(NamedTuple):
    """A tensor as the index names it; `place` and `strides` count numbers, not bytes."""

    storage: tuple
    place: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class IndexReader(pickle.Unpickler):
    """Read an index as plain values; whatever would run code is refused."""

    def find_class(self, module: str, name: str):
        """Return a stand-in for the few names that an index holds; UnpicklingError for any other."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, place, shape, strides, *_: Stored(storage, place, shape, strides)
        if module == "torch" and re.fullmatch(r"\w+Storage", name):
            return name
        raise pickle.UnpicklingError(f"the index names {module}.{name}")

    def persistent_load(self, key: tuple) -> tuple:
        """Return what names a storage, as it is: ("storage", type, key, device, numbers, view)."""
        return key


def read_index(file: Path) -> tuple[dict[str, Stored], dict[str, int]]:
    """Return the tensors of a file, and the offset of each storage in bytes."""
    with open(file, "rb") as stream:
        for _ in range(HEADERS):
            IndexReader(stream).load()
        tensors, keys = IndexReader(stream).load(), IndexReader(stream).load()
        first = stream.tell()
    sizes = {}
    for tensor in tensors.values():
        _, kind, key, _, numbers, _ = tensor.storage
        sizes[key] = numbers * (FLOAT if kind == "FloatStorage" else 2 * FLOAT)
    offsets = {}
    for key in keys:  # each storage follows its number of elements, in eight bytes
        offsets[key] = first + 8
        first += 8 + sizes[key]
    if first != file.stat().st_size:
        raise SystemExit(f"{file} has {file.stat().st_size:,} bytes, its index says {first:,}")
    return tensors, offsets


def keras_name(name: str) -> str | None:
    """Return the path of Keras' variable for a tensor; None for one that the backbone does not have.

    The names are those of this project's network: block7_expand, block7_expand_bn, block7_depthwise ...
    """
    *layers, kind = name.split(".")
    if kind == "num_batches_tracked" or layers == ["_fc"]:
        return None
    if layers[0] != "_blocks":
        layer = {"_conv_stem": "stem", "_bn0": "stem_bn", "_conv_head": "top", "_bn1": "top_bn"}[layers[0]]
    else:
        inside = {conv: conv.split("_")[1] for conv in _BEFORE}
        inside |= {norm: f"{conv.split('_')[1]}_bn" for conv, norm in _BEFORE.items()}
        layer = f"block{layers[1]}_{inside[layers[2]]}"
    return f"{layer}/{_NORM[kind] if layer.endswith('_bn') else 'kernel'}"


def table_of(file: Path) -> dict[str, list]:
    """Return [offset in bytes, shape, strides in bytes] of each variable, in the order of Keras' axes."""
    tensors, offsets = read_index(file)
    table = {}
    for name, tensor in tensors.items():
        if variable := keras_name(name):
            # PyTorch: out, in, height, width. Keras: height, width, in, out; of a depthwise kernel, in before one.
            axes = range(len(tensor.shape))
            if len(tensor.shape) == 4:
                axes = (2, 3, 0, 1) if "_depthwise_conv" in name else (2, 3, 1, 0)
            table[variable] = [
                offsets[tensor.storage[2]] + FLOAT * tensor.place,
                [tensor.shape[axis] for axis in axes],
                [FLOAT * tensor.strides[axis] for axis in axes],
            ]
    return table


def main() -> None:
    """Read the file's index and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE.pth")
    file = parser.parse_args().file
    [expected] = CATALOGUE[TABLE.stem].sha256.values()
    if (found := file_digest(file)) != expected:
        raise SystemExit(f"{file} is not the file of the catalogue: its SHA-256 is {found}, not {expected}")
    table = table_of(file)
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(place)}" for name, place in table.items())
    TABLE.write_text(f"{{\n{rows}\n}}\n", "utf-8")
    print(f"{TABLE.relative_to(ROOT)}: {len(table)} variables")


if __name__ == "__main__":
    main()
