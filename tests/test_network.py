"""The real servers, asked only by `pytest -m network`: that their addresses and formats are still what we think."""

from __future__ import annotations

import pytest

from common.images.fetch import fetch_source
from common.images.sources import load_source
from common.texts.sources import load_text_source

pytestmark = pytest.mark.network


@pytest.mark.parametrize(
    ("source", "width"),
    [
        ("mobilenet_v2_hub", 1280),
        ("kaggle:google/mobilenet-v2/tensorFlow2/035-96-feature-vector/2", 1280),
        ("keras:MobileNetV2(alpha=0.35,size=96)", 1280),
        ("preset:resnet_18_imagenet", 512),
    ],
)
def test_pictures(source, width, tmp_path, monkeypatch):
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))
    assert load_source(fetch_source(source)).feature_width == width


def test_text():
    source = load_text_source("preset:hf://google/bert_uncased_L-2_H-128_A-2")
    assert source.tokenize(["Wörld"]).to_list() == [[2088]]
