"""Write common/bundled/mobilenet_v2, the default source of image_classification, from Google's ImageNet weights.

    python benchmarks/bundle_mobilenet_v2.py

Kernels become float16, which halves the file; what that changes is in tests/images/test_sources.py. Vectors (biases,
normalisation) stay float32, since some variances are too small for float16, and so do the depthwise kernels, which
are small and whose rounding changes features most.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import keras  # noqa: E402
import numpy as np  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

from common.files import write_json  # noqa: E402

WEIGHTS = ROOT.parent / "shared/data/weights/mobilenet_imagenet_keras/mobilenet_v2_1.0_224_notop.weights.h5"
FOLDER = ROOT / "common" / "bundled" / "mobilenet_v2"
# It was trained with 224. 160 is faster, and loses a point on images of 64 pixels: benchmarks/choose_image_size.py.
IMAGE_SIZES = (160, 224)
CARD = {
    "licence": "Apache-2.0",
    "data": "ImageNet-1k",
    "origin": "MobileNetV2 1.0 224 of Google (arXiv:1801.04381), dequantised from the published TensorFlow Lite model",
    "command": "python benchmarks/bundle_mobilenet_v2.py",
}


def main() -> None:
    """Write the weights, the configuration and the card."""
    side = min(IMAGE_SIZES)  # the weights are the same at any size
    model = keras.applications.MobileNetV2(include_top=False, weights=WEIGHTS, input_shape=(side, side, 3))
    tensors = {}
    for variable in model.weights:
        value = variable.numpy()
        half = value.ndim > 1 and "depthwise" not in variable.path
        tensors[variable.path] = value.astype("float16" if half else "float32")
        if not np.isfinite(tensors[variable.path]).all():
            raise SystemExit(f"{variable.path} does not fit into float16")
    FOLDER.mkdir(exist_ok=True)
    save_file(tensors, FOLDER / "model.safetensors")
    write_json(FOLDER / "config.json", {"application": "MobileNetV2", "image_sizes": IMAGE_SIZES})
    write_json(FOLDER / "card.json", CARD | {"bytes": (FOLDER / "model.safetensors").stat().st_size})
    print(json.dumps(CARD, indent=2))


if __name__ == "__main__":
    main()
