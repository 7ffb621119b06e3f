"""Images that belong together, tables with columns of any name, and a few images per class: flags and their effect."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.splits import SPLITS
from common.errors import UserError
from common.images import readers
from common.images.data_quality import group_advice
from common.images.dataset import ImageSet
from common.images.listing import list_images
from common.images.readers import ImageColumns
from recipes.__main__ import main
from recipes.image_classification.recipe import Config, load_data

TINY = "keras:MobileNet(alpha=0.25,size=32)@random"  # the images are what counts here


@pytest.fixture
def bursts(tmp_path: Path) -> Path:
    """Class folders `cat` and `dog` of 20 bursts each: three photos of one scene, which differ by a little noise."""
    rng = np.random.default_rng(0)
    for number in range(40):
        folder = tmp_path / "photos" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        scene = np.asarray(Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((32, 32)))
        for shot in range(3):
            pixels = np.clip(scene + rng.normal(0, 3, scene.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"burst_{number:02d}_{shot}.png")
    return tmp_path / "photos"


@pytest.fixture
def table(bursts: Path) -> Path:
    """The same photos in a table whose columns are called otherwise; each burst is by one photographer."""
    path = bursts.parent / "images.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "species", "fold", "photographer"])
        for photo in sorted(bursts.glob("*/*.png")):
            number = int(photo.name.split("_")[1])
            fold = "test" if number >= 32 else "train"
            writer.writerow([photo.relative_to(bursts.parent), photo.parent.name, fold, f"person {number}"])
    return path


def told(data) -> list[str]:
    """Return the sentences on the data, but the one that every set of groups has: images of a group are alike."""
    alike = [sentence for sentence in data.advice() if "take them as independent" in sentence]
    assert len(alike) <= 1 and all(sentence.startswith("The test images come from ") for sentence in alike)
    return [sentence for sentence in data.advice() if sentence not in alike]


def load(data: str, tmp_path: Path, **flags) -> ImageSet:
    """Load as the recipe does."""
    return load_data(Config(data=data, out=str(tmp_path / "out"), source=TINY, **flags))[0]


def bursts_in(data: ImageSet) -> list[set[str]]:
    """The bursts in each split."""
    return [{Path(path).name.rpartition("_")[0] for path in getattr(data, split).paths} for split in SPLITS]


def shared(data: ImageSet) -> int:
    """How many bursts are in more than one split."""
    return sum(count > 1 for count in Counter(burst for split in bursts_in(data) for burst in split).values())


# --- --group ----------------------------------------------------------------------------------------------


def test_a_pattern_on_the_path_keeps_bursts_together(bursts: Path, tmp_path: Path):
    assert shared(load(f"folder:{bursts}", tmp_path)) > 5
    data = load(f"folder:{bursts}", tmp_path, group=r"burst_(\d+)_")
    assert shared(data) == 0 and not told(data) and data.advice()  # images of a group are alike
    assert data.counts() == {"train": 84, "val": 18, "test": 18, "skipped": 0}
    for split in SPLITS:
        examples = getattr(data, split)
        assert set(examples.labels.tolist()) == {0, 1}
        pairs = {(Path(path).name[:8], group) for path, group in zip(examples.paths, examples.groups, strict=True)}
        assert len(pairs) == len({name for name, _ in pairs}) == len({group for _, group in pairs})  # one number each
        np.testing.assert_array_equal(examples.take(np.array([3, 0])).groups, examples.groups[[3, 0]])
    assert load(f"folder:{bursts}", tmp_path).val.groups is None


def test_images_listed_as_test_do_not_say_how_large_images_are(table: Path, bursts: Path, tmp_path: Path):
    columns = ImageColumns("file", "species", "fold")
    for photo in bursts.glob("*/burst_3[2-9]_*.png"):
        Image.open(photo).resize((320, 320)).save(photo)
    assert list_images(f"csv:{table}", tmp_path, columns=columns).shorter_side == 32
    for photo in bursts.glob("*/*.png"):
        Image.open(photo).resize((64, 48)).save(photo)
    assert list_images(f"csv:{table}", tmp_path, columns=columns).shorter_side == 48


def test_a_column_of_a_table_keeps_what_belongs_together(table: Path, tmp_path: Path):
    columns = dict(path_column="file", label_column="species")
    assert shared(load(f"csv:{table}", tmp_path, **columns)) > 5
    data = load(f"csv:{table}", tmp_path, group="photographer", **columns)
    assert shared(data) == 0 and sum(data.counts().values()) == 120


def test_validation_is_carved_by_group_where_test_is_given(table: Path, tmp_path: Path):
    data = load(
        f"csv:{table}", tmp_path, path_column="file", label_column="species", split_column="fold", group="photographer"
    )
    assert shared(data) == 0 and len(data.test) == 24 and 9 <= len(data.val) <= 18 and not told(data)


def test_a_group_in_two_given_splits_stays_and_is_told(bursts: Path, tmp_path: Path):
    for split, shot in (("train", "[01]"), ("test", "2")):
        for photo in list(bursts.glob(f"*/*_{shot}.png")):
            target = bursts / split / photo.parent.name / photo.name
            target.parent.mkdir(parents=True, exist_ok=True)
            photo.rename(target)
    for empty in ("cat", "dog"):
        (bursts / empty).rmdir()
    data = load(f"folder:{bursts}", tmp_path, group=r"burst_(\d+)_")
    assert len(data.test) == 40
    [sentence] = told(data)
    assert "40 of 40 groups (--group) are in more than one of the given splits, with " in sentence
    train, val, _ = bursts_in(data)
    assert not train & val


def test_images_without_a_group_count_as_groups_of_one(bursts: Path, tmp_path: Path):
    Image.new("RGB", (32, 32), "red").save(bursts / "cat" / "alone.png")
    data = load(f"folder:{bursts}", tmp_path, group=r"burst_(\d+)_")
    assert shared(data) == 0
    assert told(data) == ["1 of 121 images have no group (--group); each counts as one of its own."]


def test_a_class_without_validation_is_told(bursts: Path, tmp_path: Path):
    for photo in list(bursts.glob("*/burst_07_*.png")):
        (bursts / "eel").mkdir(exist_ok=True)
        photo.rename(bursts / "eel" / photo.name)
    data = load(f"folder:{bursts}", tmp_path, group=r"burst_(\d+)_")
    assert "Validation has no image with class 'eel': its groups (--group) are too few or large." in data.advice()
    assert set(data.train.labels.tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("kind", "group", "said"),
    [
        ("csv", "artist", r"no column 'artist'. Found: 'file', 'species', 'fold', 'photographer'.*--group NAME"),
        ("folder", r"series_(\d+)", r"matches none of the 120 paths.*the first path: 'cat/burst_00_0.png'"),
        ("folder", r"burst_\d+", "one pair of parentheses.*Received: .*Try: --group 'burst_"),
        ("folder", r"(burst)_(\d+)", "one pair of parentheses"),
        ("folder", r"burst_(\d+", "invalid regular expression"),
        ("folder", "(burst)", r"gives 1 group\(s\): 'burst'. At least 3 are required"),
        ("folder", "(cat|dog)/", r"gives 2 group\(s\): 'cat', 'dog'. At least 3 are required"),
        ("folder", "", "cannot be used"),
        ("demo", "kids", "cannot be used with --data demo. Allowed: the name of a column, with --data csv; a regular"),
    ],
)
def test_groups_that_are_refused(kind: str, group: str, said: str, table: Path, bursts: Path, tmp_path: Path):
    data = {"csv": f"csv:{table}", "folder": f"folder:{bursts}", "demo": "demo"}[kind]
    with pytest.raises(UserError, match=said):
        load(data, tmp_path, group=group, path_column="file", label_column="species")


def test_near_duplicates_suggest_a_group_that_works(bursts: Path, table: Path, tmp_path: Path):
    [sentence] = group_advice(load(f"folder:{bursts}", tmp_path))
    assert re.search(r"\d+ images of test and val are almost the same as one in another split, such as", sentence)
    [flag] = re.findall(r"--group '(.*)'$", sentence)
    grouped = load(f"folder:{bursts}", tmp_path, group=flag)
    assert shared(grouped) == 0 and not group_advice(grouped)
    by_column = load(f"csv:{table}", tmp_path, path_column="file", label_column="species")
    assert group_advice(by_column)[0].endswith("--group COLUMN")


def test_unrelated_images_suggest_no_group(tmp_path: Path):
    rng = np.random.default_rng(0)
    for number in range(60):
        folder = tmp_path / "photos" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    assert not group_advice(load(f"folder:{tmp_path / 'photos'}", tmp_path))


# --- columns ----------------------------------------------------------------------------------------------


def test_columns_have_any_name(table: Path, tmp_path: Path):
    data = load(f"csv:{table}", tmp_path, path_column="file", label_column="species", split_column="fold")
    assert data.class_names == ("cat", "dog") and len(data.test) == 24
    assert bursts_in(data)[2] == {f"burst_{number}" for number in range(32, 40)}
    by_photographer = load(f"csv:{table}", tmp_path, path_column="file", label_column="fold")
    assert by_photographer.class_names == ("test", "train")


def test_columns_by_number_without_a_header(table: Path, tmp_path: Path):
    table.write_text("".join(table.read_text("utf-8").splitlines(keepends=True)[1:]), "utf-8")
    data = load(f"csv:{table}", tmp_path, path_column="1", label_column="2", split_column="3", group="4")
    assert len(data.test) == 24 and sum(data.counts().values()) == 120 and shared(data) == 0


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (dict(label_column="species"), "no column 'path'. Found: 'file', 'species'.*--path-column NAME"),
        (dict(path_column="file"), "no column 'label'. Found: .*--label-column NAME"),
        (dict(path_column="fil", label_column="species"), "Did you mean 'file'"),
        (dict(path_column="file", label_column="species", split_column="split_2"), "'split_2'.*--split-column NAME"),
    ],
)
def test_columns_that_are_missing(columns: dict, said: str, table: Path, tmp_path: Path):
    with pytest.raises(UserError, match=said):
        load(f"csv:{table}", tmp_path, **columns)


def test_the_demo_as_a_table_of_the_user(tmp_path: Path):
    columns = dict(path_column="file", label_column="class", group="sender_id")
    data, demo = load(f"csv:{readers.DEMO}", tmp_path, **columns), load("demo", tmp_path)
    assert data.counts() == demo.counts() and data.fingerprint() == demo.fingerprint()


# --- --shots ----------------------------------------------------------------------------------------------


def test_shots_draw_by_the_seed_and_leave_test_alone(bursts: Path, tmp_path: Path):
    everything = load(f"folder:{bursts}", tmp_path)
    few, again, other = (load(f"folder:{bursts}", tmp_path, shots=4, seed=seed) for seed in (0, 0, 1))
    assert few.counts() == {"train": 8, "val": 8, "test": len(everything.test), "skipped": 0}
    assert few.test.paths.tolist() == everything.test.paths.tolist()
    for split in ("train", "val"):
        assert Counter(getattr(few, split).labels.tolist()) == {0: 4, 1: 4}
        assert set(getattr(few, split).paths) < set(getattr(everything, split).paths)
        assert getattr(few, split).paths.tolist() == getattr(again, split).paths.tolist()
        assert getattr(few, split).paths.tolist() != getattr(other, split).paths.tolist()
    assert few.train.thumbnails.shape == (8, few.test.thumbnails.shape[1])
    with pytest.raises(UserError, match=r"--shots 60: the class 'cat' has \d\d training images"):
        load(f"folder:{bursts}", tmp_path, shots=60)


# --- as a command -----------------------------------------------------------------------------------------


@pytest.mark.slow  # the advice itself is tested above
def test_check_advises_a_group_and_is_content_with_it(bursts: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    tiny = ("--source", TINY, "--out", str(tmp_path / "look"))
    check = ["check", "image_classification", "--data", f"folder:{bursts}", *tiny]
    assert main(check) == 0
    [flag] = re.findall(r"keep them in one split: --group '(.*)'$", capsys.readouterr().out, re.MULTILINE)
    assert main([*check, "--group", flag]) == 0
    assert "--group" not in capsys.readouterr().out
