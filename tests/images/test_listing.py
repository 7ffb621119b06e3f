"""Images as they are listed: how large they are, how many --limit needs, and all of it without TensorFlow."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.splits import SPLITS
from common.errors import UserError
from common.images import pixels
from common.images.dataset import load_image_set
from common.images.listing import ImageList, list_images, read_bytes

SIZE = (6, 6)


def write(folder: Path, names: list[str], seed: int = 0) -> None:
    """Images of their own content under these names."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(folder / name)


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The files that were read."""
    found = []

    def remember(row):
        found.append(row.path)
        return read_bytes(row)

    monkeypatch.setattr(pixels, "read_bytes", remember)
    return found


# --- --limit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "of_each", "reads"),
    [
        ((), {"": 120}, 100),  # all three splits are made of these
        (("train", "val", "test"), {"train": 120, "val": 40, "test": 40}, 60),
        (("train", "test"), {"train": 120, "test": 40}, 120),  # val is made of train
        (("train", "val"), {"train": 120, "val": 40}, 120),  # likewise: the given val becomes test
    ],
)
def test_limit_reads_only_what_is_needed_and_fills_each_split(given, of_each, reads, tmp_path, read):
    for number, (split, count) in enumerate(of_each.items()):
        for place, name in enumerate(("ant", "bee")):
            write(tmp_path / "set" / split / name, [f"{i}.png" for i in range(count)], seed=2 * number + place)
    data = load_image_set(f"folder:{tmp_path / 'set'}", tmp_path, SIZE, limit=10)
    assert data.counts() == {"train": 10, "val": 10, "test": 10, "skipped": 0}
    assert all(Counter(getattr(data, split).labels.tolist()) == {0: 5, 1: 5} for split in SPLITS)
    assert len(read) == len(set(read)) == reads and Counter(Path(path).parent.name for path in read) == {
        "ant": reads // 2, "bee": reads // 2,
    }  # fmt: skip
    read.clear()
    assert sum(load_image_set(f"folder:{tmp_path / 'set'}", tmp_path, SIZE).counts().values()) == len(read)
    assert len(read) == 2 * sum(of_each.values())


def test_limit_takes_images_of_many_groups(tmp_path, read):
    """The first in the order of names would all be of the first three groups, of which one is too many for a split."""
    for name in ("ant", "bee"):
        names = [f"scene{scene:02d}_{i:02d}.png" for scene in range(20) for i in range(40)]
        write(tmp_path / "set" / name, names, seed=len(read) + ord(name[0]))
    data = load_image_set(f"folder:{tmp_path / 'set'}", tmp_path, SIZE, limit=10, group=r"(scene\d+)_")
    assert data.counts() == {"train": 10, "val": 10, "test": 10, "skipped": 0} and len(read) == 100
    groups = [{Path(path).name.split("_")[0] for path in getattr(data, split).paths} for split in SPLITS]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert len({Path(path).name.split("_")[0] for path in read}) == 20


def test_limit_makes_up_for_a_few_files_that_cannot_be_read(tmp_path):
    for split in SPLITS:
        for name in ("ant", "bee"):
            write(
                tmp_path / "set" / split / name, [f"{i:02d}.png" for i in range(30)], seed=sum(map(ord, split + name))
            )
            for i in range(3):
                (tmp_path / "set" / split / name / f"{i:02d}.png").write_bytes(b"broken")
    data = load_image_set(f"folder:{tmp_path / 'set'}", tmp_path, SIZE, limit=10)
    assert data.counts() == {"train": 10, "val": 10, "test": 10, "skipped": 18}


def test_a_limit_below_the_number_of_classes_is_told_as_such(tmp_path):
    for number in range(8):
        write(tmp_path / "set" / f"class {number}", [f"{i}.png" for i in range(20)], seed=number)
    with pytest.raises(UserError, match=r"no training images for .*--limit 2 may be too small for 8 classes"):
        load_image_set(f"folder:{tmp_path / 'set'}", tmp_path, SIZE, limit=2)


# --- how large images are ---------------------------------------------------------------------------------


def with_sides(folder: Path, *sides: tuple[int, int]) -> ImageList:
    """Listed images of these sizes, (width, height), beside files that cannot be measured."""
    (folder / "set" / "ant").mkdir(parents=True)
    (folder / "set" / "bee").mkdir()
    for number, side in enumerate(sides):
        Image.new("RGB", side).save(folder / "set" / ("ant", "bee")[number % 2] / f"{number}.jpg")
    for name, content in (("empty.jpg", b""), ("text.png", b"404 not found"), ("phone.heic", b"\0\0\0\x18ftypheic")):
        (folder / "set" / "ant" / name).write_bytes(content)
    (folder / "set" / "ant" / "gone.png").symlink_to(folder / "nothing")
    return list_images(f"folder:{folder / 'set'}", folder)


def test_the_median_of_the_shorter_sides(tmp_path):
    assert with_sides(tmp_path, (300, 20), (40, 70), (60, 50)).shorter_side == 40


def test_images_that_cannot_be_measured_have_no_side(tmp_path):
    assert with_sides(tmp_path).shorter_side is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_in_a_table_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("RGB", (9, 7)).save(tmp_path / "image.png")
    (tmp_path / "table.csv").write_text("path,label\npipe.png,ant\nimage.png,bee\n/dev/zero,bee\n")
    assert list_images(f"csv:{tmp_path / 'table.csv'}", tmp_path).shorter_side == 7


def test_images_are_listed_without_tensorflow(tmp_path):
    with_sides(tmp_path, (8, 8), (9, 9))
    program = "import sys; from pathlib import Path; from common.images.listing import list_images; "
    program += "print(list_images(sys.argv[1], Path('unused')).shorter_side, 'tensorflow' in sys.modules)"
    command = [sys.executable, "-c", program, f"folder:{tmp_path / 'set'}"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.stdout.split() == ["8", "False"], done.stderr
