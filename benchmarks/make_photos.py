"""Make photos as cameras and phones write them, from small shared ones: for timing, not for accuracy.

    python benchmarks/make_photos.py ../prepared_data/photos_12mp                            # 200 of 4,000 x 3,000
    python benchmarks/make_photos.py ../prepared_data/photos_500 --count 10000 --width 500   # of about 60 kB

Each is a random part of a photo of ants or bees, enlarged, with sensor-like noise: its variance grows with the
brightness, and it is smoothed a little as by a demosaicing filter. The class is that of the photo.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT.parent / "shared" / "data" / "hymenoptera_data"


def photo(source: Image.Image, width: int, rng: np.random.Generator) -> Image.Image:
    """Return a random part of a photo as a new one of this width, 4 to 3, with noise."""
    height, part = width * 3 // 4, rng.uniform(0.6, 1.0)
    wide = part * min(source.width, source.height * 4 / 3)
    left, top = rng.uniform(0, source.width - wide), rng.uniform(0, source.height - wide * 3 / 4)
    box = (left, top, left + wide, top + wide * 3 / 4)
    enlarged = np.asarray(source.resize((width, height), Image.Resampling.BICUBIC, box=box), "float32")
    noise = rng.standard_normal(enlarged.shape, dtype="float32") * np.sqrt(4 + 0.25 * enlarged)
    noisy = Image.fromarray(np.clip(enlarged + noise, 0, 255).astype("uint8"))
    return noisy.filter(ImageFilter.GaussianBlur(0.5))


def main() -> None:
    """Write FOLDER/CLASS/NUMBER.jpg; existing files are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=200, help="photos")
    parser.add_argument("--width", type=int, default=4000, help="pixels")
    parser.add_argument("--quality", type=int, default=95, help="of the JPEG")
    given = parser.parse_args()
    sources = sorted(PHOTOS.glob("*/*/*.jpg"))
    size = 0
    for number in range(given.count):
        rng = np.random.default_rng(number)
        source = sources[rng.integers(len(sources))]
        path = given.folder / source.parent.name / f"{number:05d}.jpg"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(source) as image:
                photo(image.convert("RGB"), given.width, rng).save(path, quality=given.quality)
        size += path.stat().st_size
    print(f"{given.count:,} photos in {given.folder}, {size / given.count / 1e3:,.0f} kB each in the mean")


if __name__ == "__main__":
    main()
