"""A page with players of training clips, written before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.reporting import render
from common.speech.audio.decode import SAMPLE_RATE
from common.speech.audio.playback import MAX_SECONDS, encode_sound
from common.speech.batches import Augmentation, Clips

TEMPLATES = Path(__file__).with_name("templates")
MAX_SAMPLES = 16


def write_samples(path: Path, clips: Clips, texts: Sequence[str], augmentation: Augmentation | None, seed: int) -> Path:
    """Write a page with players of the first clips, as they are trained on.

    Args:
        path: of the page.
        clips: n clips.
        texts: transcript or class of each, n.
        augmentation: random changes, or None.
        seed: of the augmentation.

    Returns:
        The path.
    """
    players = []
    for place in range(min(MAX_SAMPLES, len(clips))):
        clip = clips[place]
        if augmentation:
            clip = augmentation(clip, np.random.default_rng((seed, place)))
        players.append((encode_sound(clip[: MAX_SECONDS * SAMPLE_RATE]), texts[place]))
    return render(path, {"title": "Augmented training clips", "clips": players}, TEMPLATES, "samples.html")
