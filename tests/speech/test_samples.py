"""The page of training clips: as augmented, bounded, and safe to open."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import soundfile

from common.speech.audio.playback import MAX_SECONDS
from common.speech.batches import Augmentation, Clips
from common.speech.samples import MAX_SAMPLES, write_samples
from tests.elements import Elements

GAIN = Augmentation(speed=(1, 1), noise_db=None, gain_db=(-12, -6))


def clips(folder: Path, count: int, seconds: float = 0.2) -> Clips:
    for number in range(count):
        tone = 0.5 * np.sin(np.arange(round(seconds * 16_000)) * 0.02 * (number + 1))
        soundfile.write(folder / f"{number}.wav", tone, 16_000)
    return Clips([str(folder / f"{number}.wav") for number in range(count)], title="")


def played(page: Path) -> list[np.ndarray]:
    """Return the samples of each player of a page."""
    uris = [one["src"] for one in Elements(page.read_text("utf-8")).all("audio")]
    return [soundfile.read(io.BytesIO(base64.b64decode(uri.split(",")[1])), dtype="float32")[0] for uri in uris]


def test_the_first_clips_are_played_with_their_texts(tmp_path: Path):
    some, evil = clips(tmp_path, MAX_SAMPLES + 2), "<script>alert(1)</script>"
    texts = [evil, *(f"text {number}" for number in range(1, MAX_SAMPLES + 2))]
    page = write_samples(tmp_path / "samples.html", some, texts, None, seed=0)
    sounds, html = played(page), page.read_text("utf-8")
    assert page == tmp_path / "samples.html" and len(sounds) == MAX_SAMPLES
    for place, sound in enumerate(sounds):
        np.testing.assert_allclose(sound, some[place], atol=1e-4)
    assert f"text {MAX_SAMPLES - 1}" in html and f"text {MAX_SAMPLES}" not in html
    assert "<script" not in html and evil in Elements(html).text


def test_clips_are_augmented_by_the_seed(tmp_path: Path):
    some = clips(tmp_path, 2)
    one, again, other = (played(write_samples(tmp_path / "a.html", some, ["a", "b"], GAIN, seed)) for seed in (0, 0, 1))
    for place in range(2):
        assert np.array_equal(one[place], again[place]) and not np.array_equal(one[place], other[place])
        assert 10 ** (-12 / 20) < np.abs(one[place]).max() / np.abs(some[place]).max() < 10 ** (-6 / 20)


def test_long_clips_are_cut(tmp_path: Path):
    [sound] = played(write_samples(tmp_path / "a.html", clips(tmp_path, 1, MAX_SECONDS + 1), ["long"], None, 0))
    assert len(sound) == MAX_SECONDS * 16_000
