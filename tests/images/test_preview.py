"""Images to look at: small in a report, without what their files tell beside, and as a sheet of samples."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
from PIL import Image

from common.images.preview import THUMBNAIL_PIXELS, thumbnail, thumbnails, write_sample_grid


def test_thumbnails_are_small_and_carry_no_metadata(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "where I live"
    Image.new("RGB", (4000, 3000)).save(tmp_path / "big.jpg", exif=exif)
    Image.new("RGBA", (30, 900)).save(tmp_path / "tall.png")
    for name in ("big.jpg", "tall.png"):
        uri = thumbnail(str(tmp_path / name))
        kind, content = uri.split(",")
        assert kind == "data:image/jpeg;base64"
        path = tmp_path / "thumbnail.jpg"
        path.write_bytes(base64.b64decode(content))
        with Image.open(path) as image:
            assert max(image.size) <= THUMBNAIL_PIXELS and not image.getexif()


def test_lost_images_are_left_out_and_the_others_are_named(tmp_path: Path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 10)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no image")
    shown = thumbnails([str(tmp_path / name) for name in ("a.png", "gone.png", "broken.png", "b.png")])([3, 1, 2, 0])
    assert [one and one["name"] for one in shown] == ["b.png", None, None, "a.png"]
    assert shown[0]["image"] == thumbnail(str(tmp_path / "b.png"))


def test_a_sheet_has_a_row_for_each_six_images(tmp_path: Path):
    images, heights = np.zeros((7, 8, 8, 3), "float32"), []
    for count in (6, 7):
        path = write_sample_grid(tmp_path / "new" / f"{count}.png", images[:count], ["a $title of an image"] * count)
        with Image.open(path) as sheet:
            heights.append(sheet.height)
    assert heights[1] == 2 * heights[0]
