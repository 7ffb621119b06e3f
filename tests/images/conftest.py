"""Images that several files of tests read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Ten images of their own content, wider than high."""
    rng, files = np.random.default_rng(0), [tmp_path / f"{number}.png" for number in range(10)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(file)
    return [str(file) for file in files]
