"""Images and models that several tests share: small, made on the spot, no network."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as `python -m recipes` has it
if "PYTEST_XDIST_WORKER" in os.environ:  # a worker per core: threads of one must not wait for those of the other
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import keras
import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it are skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data in {SHARED.parent.name}/{SHARED.name} beside the checkout")
    return SHARED


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state and Keras' default precision."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def two_classes(tmp_path: Path) -> Path:
    """Class folders `dark` and `hell` (bright; non-ASCII file names) with 20 noisy PNG images each."""
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("hell", 190)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            pixels = np.clip(rng.normal(level, 30, (24, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"bild ü {number}.png")
    return tmp_path / "photos"
