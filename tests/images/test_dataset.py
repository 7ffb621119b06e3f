"""Labelled images: what is read, what is skipped and why, how it is split, and which sets are refused."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import os
import re
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from common.data.splits import SPLITS
from common.errors import UserError
from common.images import pixels, readers
from common.images.batches import image_batches
from common.images.dataset import ImageSet, load_image_set


def encoded_image(number: int, form: str = "PNG", size: int = 6) -> bytes:
    """An image file of its own content for each number."""
    pixels, file = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def write(folder: Path, first: int, count: int, suffix: str = ".png") -> list[Path]:
    """Write images number first, first + 1, ... into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}{suffix}" for number in range(first, first + count)]
    for number, path in enumerate(paths, start=first):
        path.write_bytes(encoded_image(number))
    return paths


def write_table(path: Path, lines: list[str], encoding: str = "utf-8") -> str:
    """Write a table and return it as --data."""
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return f"csv:{path}"


SIZE = (6, 6)


def load(data, tmp_path: Path, **options) -> ImageSet:
    """Load; a path stands for a folder."""
    return load_image_set(f"folder:{data}" if isinstance(data, Path) else data, tmp_path / "out", SIZE, **options)


def content_hashes(examples) -> set[str]:
    """What is in the files of a split."""
    return {hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in examples.paths}


def reasons(data: ImageSet) -> dict[str, str]:
    """Why a file was left out, by its name."""
    return {Path(path).name: reason for path, reason in data.skipped}


def labels_of(data: ImageSet, part: str) -> Counter:
    """How many images of each class a split has."""
    return Counter(data.class_names[label] for label in getattr(data, part).labels)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two class folders, 20 images each: numbers 0 to 19 are cats, 20 to 39 dogs."""
    write(tmp_path / "photos" / "cat", 0, 20)
    write(tmp_path / "photos" / "dog", 20, 20)
    return tmp_path / "photos"


# --- folders ----------------------------------------------------------------------------------------------


def test_class_folders_are_split_by_content(photos, tmp_path):
    data = load(photos, tmp_path)
    assert data.class_names == ("cat", "dog") and data.mirrors and not data.skipped
    assert data.counts() == {"train": 28, "val": 6, "test": 6, "skipped": 0}
    for part in SPLITS:
        examples = getattr(data, part)
        assert set(labels_of(data, part)) == {"cat", "dog"}
        assert [Path(path).parent.name for path in examples.paths] == [data.class_names[i] for i in examples.labels]
        assert examples.labels.dtype == np.int64
    everything = [content_hashes(getattr(data, part)) for part in SPLITS]
    assert len(set.union(*everything)) == sum(map(len, everything)) == 40


def test_the_split_does_not_depend_on_names(photos, tmp_path):
    before = load(photos, tmp_path)
    before = {part: content_hashes(getattr(before, part)) for part in SPLITS}
    for path in list(photos.glob("*/*.png")):
        path.rename(path.with_name(hashlib.md5(path.name.encode()).hexdigest() + ".PNG"))
    after = load(photos, tmp_path)
    assert {part: content_hashes(getattr(after, part)) for part in SPLITS} == before


def test_val_share(photos, tmp_path):
    assert load(photos, tmp_path, val_share=0.5).counts() == {"train": 14, "val": 20, "test": 6, "skipped": 0}


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "validation", "Testing"),
                                   ("TRAIN", "valid", "test"), ("train", "dev", "test")])  # fmt: skip
def test_given_parts_are_kept(names, tmp_path):
    for first, name in enumerate(names):
        write(tmp_path / "set" / name / "cat", 100 * first, 4 - first)
        write(tmp_path / "set" / name / "dog", 100 * first + 50, 4 - first)
    data = load(tmp_path / "set", tmp_path)
    assert data.counts() == {"train": 8, "val": 6, "test": 4, "skipped": 0}
    for part, name in zip(SPLITS, names, strict=True):
        assert {Path(path).parts[-3] for path in getattr(data, part).paths} == {name}


def test_a_given_val_becomes_the_test_and_val_is_carved_out_of_train(tmp_path):
    for name, first in (("train", 0), ("val", 200)):
        write(tmp_path / "set" / name / "cat", first, 20)
        write(tmp_path / "set" / name / "dog", first + 50, 20)
    data = load(tmp_path / "set", tmp_path)
    assert data.counts() == {"train": 34, "val": 6, "test": 40, "skipped": 0}
    assert {Path(path).parts[-3] for path in data.test.paths} == {"val"}
    assert {Path(path).parts[-3] for path in (*data.train.paths, *data.val.paths)} == {"train"}
    assert not set(data.train.paths) & set(data.val.paths)


def test_train_and_test_only_carve_a_val(tmp_path):
    for name, first in (("train", 0), ("test", 200)):
        write(tmp_path / "set" / name / "cat", first, 20)
        write(tmp_path / "set" / name / "dog", first + 50, 20)
    data = load(tmp_path / "set", tmp_path)
    assert data.counts() == {"train": 34, "val": 6, "test": 40, "skipped": 0}
    assert {Path(path).parts[-3] for path in data.test.paths} == {"test"}


def test_train_only_carves_both(tmp_path):
    write(tmp_path / "set" / "train" / "cat", 0, 20)
    write(tmp_path / "set" / "train" / "dog", 50, 20)
    assert load(tmp_path / "set", tmp_path).counts() == {"train": 28, "val": 6, "test": 6, "skipped": 0}


def test_parts_without_train_are_refused(tmp_path):
    write(tmp_path / "set" / "val" / "cat", 0, 3)
    write(tmp_path / "set" / "test" / "dog", 50, 3)
    with pytest.raises(UserError, match=r"\['test', 'val'\] but no train split. Allowed: train, and val or test"):
        load(tmp_path / "set", tmp_path)


def test_parts_beside_classes_are_refused(photos, tmp_path):
    (photos / "train").mkdir()
    with pytest.raises(UserError, match=r"mixes splits and classes: 'cat', 'dog' next to.*Allowed.*csv:PATH"):
        load(photos, tmp_path)


def test_nested_hidden_and_foreign_files(photos, tmp_path):
    write(photos / "cat" / "deep" / "deeper", 100, 1)
    write(photos / "cat" / ".thumbnails", 200, 1)  # a hidden folder: smaller copies, drafts, checkpoints
    write(photos / ".git", 210, 1)
    (photos / "cat" / "._1.png").write_bytes(b"what a Mac writes beside a file")
    (photos / "dog" / "notes.txt").write_text("no image by name, so nobody asked for it")
    (photos / "README.md").write_text("neither is this")
    data = load(photos, tmp_path)
    assert data.counts() == {"train": 29, "val": 6, "test": 6, "skipped": 0}
    names = {Path(path).name for part in SPLITS for path in getattr(data, part).paths}
    assert "100.png" in names and not names & {"200.png", "210.png", "._1.png"}


def test_images_outside_class_folders_are_reported(photos, tmp_path):
    write(photos, 300, 1)
    data = load(photos, tmp_path)
    assert data.counts()["skipped"] == 1 and "is in no class folder" in reasons(data)["300.png"]


def test_names_with_spaces_and_letters_of_all_kinds(tmp_path):
    write(tmp_path / "mes photos" / "crème brûlée", 0, 10, " é ü.png")
    write(tmp_path / "mes photos" / "寿司", 50, 10, " 写真.jpeg")  # PNG bytes: the name does not decide
    data = load(tmp_path / "mes photos", tmp_path)
    assert data.class_names == ("crème brûlée", "寿司") and data.counts()["skipped"] == 0
    assert sum(len(batch) for batch in image_batches(data.train.pixels, 4)) == len(data.train)


@pytest.mark.skipif(os.name == "nt", reason="file names of Windows are Unicode")
def test_a_name_that_is_not_utf8_is_a_counted_skip(photos, tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(photos / "cat") + b"/caf\xe9.png")).write_bytes(encoded_image(1000))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    data = load(photos, tmp_path)
    ((path, reason),) = data.skipped
    assert "not UTF-8" in reason
    path.encode()  # or the report could not be written


def test_links_are_followed_but_not_in_circles(photos, tmp_path):
    write(tmp_path / "elsewhere" / "more", 400, 5)
    try:
        (photos / "bird").symlink_to(tmp_path / "elsewhere")
    except OSError:
        pytest.skip("this system makes no links")
    (photos / "cat" / "up").symlink_to(photos)  # would make dogs cats, and never end
    (photos / "cat" / "here").symlink_to(photos / "cat")
    (photos / "dog" / "self").symlink_to(photos / "dog" / "self")
    (photos / "dog" / "gone.png").symlink_to(photos / "nothing")
    data = load(photos, tmp_path)
    assert data.class_names == ("bird", "cat", "dog")
    assert sum((labels_of(data, part) for part in SPLITS), Counter()) == {"bird": 5, "cat": 20, "dog": 20}
    assert reasons(data) == {"gone.png": "cannot be read: No such file or directory"}


# --- files that cannot be used ----------------------------------------------------------------------------


def bad_files() -> dict[str, tuple[bytes, str]]:
    """File name -> (content, what the reason says)."""

    def converted(mode: str, form: str, **options) -> bytes:
        file = io.BytesIO()
        Image.open(io.BytesIO(encoded_image(1))).convert(mode).save(file, form, **options)
        return file.getvalue()

    jpeg = encoded_image(1, "JPEG", size=64)
    see_through = io.BytesIO()
    Image.new("RGBA", (6, 6), (200, 100, 50, 128)).save(see_through, "WEBP", lossless=True)
    return {
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "JPEG"),
        "header.jpg": (jpeg[:30], "JPEG"),
        "truncated.png": (encoded_image(1, size=64)[:5000], "PNG"),
        "truncated.gif": (converted("P", "GIF")[:50], "GIF"),
        "empty.jpg": (b"", "is empty (0 bytes)"),
        "text.jpg": (b"404 not found", "Unknown image file format"),
        "scan.tiff": (converted("RGB", "TIFF"), "Unknown image file format"),
        "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "is a HEIC photo"),
        "transparent.webp": (see_through.getvalue(), "channels"),
        "palette.bmp": (converted("P", "BMP"), "BMP with a palette"),
        "black_and_white.bmp": (converted("1", "BMP"), "cannot be decoded"),
        "short.bmp": (b"BM", "cannot be decoded"),
    }


@pytest.mark.parametrize("name", bad_files())
def test_bad_files_are_skipped_counted_and_explained(name, photos, tmp_path):
    content, expected = bad_files()[name]
    (photos / "cat" / name).write_bytes(content)
    data = load(photos, tmp_path)
    assert data.counts() == {"train": 28, "val": 6, "test": 6, "skipped": 1}
    assert data.skipped[0][0] == str(photos / "cat" / name)
    assert expected in data.skipped[0][1] and not re.search("node|Graph|File|Op:", data.skipped[0][1])
    if "cannot be decoded" in data.skipped[0][1]:
        assert (
            "Allowed: JPEG, PNG, GIF, BMP, and WebP without transparency; convert it to JPEG or PNG"
            in reasons(data)[name]
        )
    with pytest.raises(UserError, match=r"--strict: 1 file.*" + name):
        load(photos, tmp_path, strict=True)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_allowed_formats_are_read(form, photos, tmp_path):
    (photos / "cat" / f"more.{form.lower()}").write_bytes(encoded_image(500, form))
    assert sum(load(photos, tmp_path).counts().values()) == 41


def test_a_grey_bmp_is_no_bmp_with_a_coloured_palette(photos, tmp_path):
    Image.fromarray(np.arange(36, dtype=np.uint8).reshape(6, 6)).save(photos / "cat" / "grey.bmp")
    assert load(photos, tmp_path).counts()["skipped"] == 0


def test_checking_uses_several_threads(photos, tmp_path, monkeypatch):
    write(photos / "cat", 600, 40)  # more than one thread takes at once
    together, read_bytes, threads = threading.Barrier(2), pixels.read_bytes, set()

    def wait_for_another(row):
        if threading.get_ident() not in threads:
            threads.add(threading.get_ident())
            if len(threads) <= 2:
                together.wait(timeout=20)
        return read_bytes(row)

    monkeypatch.setattr(pixels, "read_bytes", wait_for_another)
    load(photos, tmp_path)
    assert len(threads) >= 2


def test_checking_lets_other_threads_run(tmp_path):
    # Threads are of use only if the decoder lets go of the GIL: this one must come to its turn meanwhile.
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8)
    Image.fromarray(np.tile(noise, (8, 8, 1))).save(tmp_path / "large.jpg")
    large, decode = tf.constant((tmp_path / "large.jpg").read_bytes()), pixels._decoder((2000, 2000), "crop")
    decode(tf.constant(encoded_image(0)))  # traced
    worker, turns = threading.Thread(target=decode, args=(large,)), 0
    worker.start()
    while worker.is_alive():
        time.sleep(0.001)
        turns += 1
    assert turns > 10


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_a_terminal_only(photos, tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    load(photos, tmp_path)
    assert "reading images: 1 of 40" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\033[K")  # and wiped away
    monkeypatch.setattr("sys.stderr", quiet := io.StringIO())
    load(photos, tmp_path)
    assert quiet.getvalue() == ""


# --- sets that cannot work --------------------------------------------------------------------------------


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=r"has no images. Allowed: JPEG, PNG.* one folder per class"):
        load(tmp_path / "nothing", tmp_path)


def test_images_without_class_folders_are_refused(tmp_path):
    write(tmp_path / "flat", 0, 5)
    with pytest.raises(UserError, match=r"has 0 class.*Received: none; 5 file.*is in no class folder"):
        load(tmp_path / "flat", tmp_path)


def test_one_class_is_refused(tmp_path):
    write(tmp_path / "set" / "cat", 0, 5)
    with pytest.raises(UserError, match=r"has 1 class.* at least 2 are required. Received: 'cat'"):
        load(tmp_path / "set", tmp_path)


@pytest.mark.parametrize("content", [None, b"broken"])
def test_a_class_without_readable_images_is_refused(content, photos, tmp_path):
    # Going on with the other classes would make a model that does not know this one, and say nothing.
    (photos / "bird").mkdir()
    if content:
        (photos / "bird" / "a.jpg").write_bytes(content)
    with pytest.raises(UserError, match=r"no readable image for 'bird'.*add images, or remove.*"):
        load(photos, tmp_path)


def test_a_class_missing_in_val_or_test_is_allowed_and_in_train_not(tmp_path):
    for first, part in enumerate(SPLITS):
        write(tmp_path / "set" / part / "cat", 100 * first, 3)
        if part == "train":
            write(tmp_path / "set" / part / "dog", 100 * first + 50, 3)
    assert set(labels_of(load(tmp_path / "set", tmp_path), "val")) == {"cat"}
    write(tmp_path / "set" / "val" / "bird", 800, 2)
    with pytest.raises(UserError, match=r"no training images for 'bird'.*val/bird 2"):
        load(tmp_path / "set", tmp_path)


def test_an_empty_part_is_refused(tmp_path):
    write(tmp_path / "set" / "cat", 0, 2)
    write(tmp_path / "set" / "dog", 50, 2)
    with pytest.raises(UserError, match=r"no images in the val split.*3 different.*train/cat 2, train/dog 2"):
        load(tmp_path / "set", tmp_path)


def test_limit_keeps_classes_balanced_and_says_when_it_is_too_small(photos, tmp_path):
    data = load(photos, tmp_path, limit=4)
    assert data.counts() == {"train": 4, "val": 4, "test": 4, "skipped": 0}
    assert all(labels_of(data, part) == {"cat": 2, "dog": 2} for part in SPLITS)
    assert set(data.train.paths) < set(load(photos, tmp_path, limit=6).train.paths)
    with pytest.raises(UserError, match=r"no training images for 'dog'.*--limit 1 may be too small for 2 classes"):
        load(photos, tmp_path, limit=1)


# --- copies -----------------------------------------------------------------------------------------------


def test_copies_across_given_parts_leave_the_lower_part(tmp_path):
    for first, part in enumerate(SPLITS):
        write(tmp_path / "set" / part / "cat", 100 * first, 4)
        write(tmp_path / "set" / part / "dog", 100 * first + 50, 4)
    in_val_and_test, in_train_and_val, twice_in_train = encoded_image(900), encoded_image(901), encoded_image(902)
    for part in ("train", "val", "test"):
        (tmp_path / "set" / part / "cat" / "in_test.png").write_bytes(in_val_and_test)
    for part in ("train", "val"):
        (tmp_path / "set" / part / "dog" / "in_val.png").write_bytes(in_train_and_val)
    for name in ("once.png", "twice.png"):
        (tmp_path / "set" / "train" / "dog" / name).write_bytes(twice_in_train)
    data = load(tmp_path / "set", tmp_path)
    assert data.counts() == {"train": 10, "val": 9, "test": 9, "skipped": 3}
    left = sorted((Path(path).parts[-3], Path(path).name, reason) for path, reason in data.skipped)
    assert left == [
        ("train", "in_test.png", "exact copy of an image in another split; removed from train"),
        ("train", "in_val.png", "exact copy of an image in another split; removed from train"),
        ("val", "in_test.png", "exact copy of an image in another split; removed from val"),
    ]
    parts = [content_hashes(getattr(data, part)) for part in SPLITS]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


def test_copies_within_one_class_stay_in_one_part(photos, tmp_path):
    for number in range(20):
        (photos / "cat" / f"copy of {number}.png").write_bytes(encoded_image(number))
    data = load(photos, tmp_path)
    assert data.counts()["skipped"] == 0 and sum(data.counts().values()) == 60
    parts = [content_hashes(getattr(data, part)) for part in SPLITS]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 40


def test_an_image_with_two_labels_leaves_every_split(photos, tmp_path):
    # Ten, so that with any split some would be in every split.
    for number in range(10):
        (photos / "dog" / f"is it {number}.png").write_bytes(encoded_image(number))
    data = load(photos, tmp_path)
    assert data.counts()["skipped"] == 20
    assert all("the same content is labelled 'cat', 'dog'; removed from " in reason for _, reason in data.skipped)
    contested = {hashlib.sha256(encoded_image(number)).hexdigest() for number in range(10)}
    assert not any(contested & content_hashes(getattr(data, part)) for part in SPLITS)


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_an_image_with_two_labels_stays_in_a_given_test_split(held_out, tmp_path):
    for first, part in enumerate(("train", held_out)):
        write(tmp_path / "set" / part / "cat", 100 * first, 10)
        write(tmp_path / "set" / part / "dog", 100 * first + 50, 10)
    for path in ("train/cat", f"{held_out}/dog", f"{held_out}/cat"):
        (tmp_path / "set" / path / "contested.png").write_bytes(encoded_image(900))
    data = load(tmp_path / "set", tmp_path)
    assert data.counts() == {"train": 16, "val": 4, "test": 22, "skipped": 1}
    assert str(tmp_path / "set" / "train" / "cat" / "contested.png") == data.skipped[0][0]
    assert "labelled 'cat', 'dog'" in data.skipped[0][1]


# --- tables -----------------------------------------------------------------------------------------------


def test_table_without_split(photos, tmp_path):
    lines = [f"photos/{path.parent.name}/{path.name},{path.parent.name}" for path in sorted(photos.glob("*/*"))]
    data = load(write_table(tmp_path / "table.csv", ["path,label", *lines]), tmp_path)
    from_folder = load(photos, tmp_path)
    assert data.counts() == from_folder.counts() and data.mirrors
    assert {os.path.realpath(path) for path in data.test.paths} == set(map(os.path.realpath, from_folder.test.paths))


@pytest.fixture
def table(photos, tmp_path) -> list[str]:
    """Lines with a split: 8 train, 2 validation and 2 test images, half of them cats; label before path."""
    lines = ["label,path,split,remark"]
    for number in range(6):
        split = ("train", "Train", "training", "train", "validation", "test")[number]
        lines += [f"cat,photos/cat/{number}.png,{split},", f"dog,photos/dog/{20 + number}.png,{split},fine"]
    return lines


def test_table_with_split(table, tmp_path):
    data = load(write_table(tmp_path / "table.csv", table), tmp_path)
    assert data.counts() == {"train": 8, "val": 2, "test": 2, "skipped": 0}
    assert [Path(path).name for path in data.test.paths] == ["5.png", "25.png"]
    assert labels_of(data, "val") == {"cat": 1, "dog": 1}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_table_as_excel_writes_it(encoding, photos, table, tmp_path):
    (photos / "cat" / 'big, "old" Müller.png').write_bytes(encoded_image(700))
    table += [
        '"cat, black",photos/cat/6.png,train,"two\nlines"',
        '"cat, black",photos/cat/7.png,train,',
        'cat, "photos/cat/big, ""old"" Müller.png", train, with spaces after commas',
        "",
    ]
    data = load(write_table(tmp_path / "table.csv", table, encoding), tmp_path)
    assert data.class_names == ("cat", "cat, black", "dog") and data.counts()["train"] == 11
    assert 'big, "old" Müller.png' in {Path(path).name for path in data.train.paths}


def test_table_paths_start_at_the_table(table, tmp_path, monkeypatch):
    (tmp_path / "tables" / "deep").mkdir(parents=True)
    up = [line.replace("photos/", "../../photos/") for line in table]
    up[1] = up[1].replace("../../photos", str(tmp_path / "photos"))  # an absolute path stays one
    monkeypatch.chdir("/")
    data = load(write_table(tmp_path / "tables" / "deep" / "table.csv", up), tmp_path)
    assert data.counts() == {"train": 8, "val": 2, "test": 2, "skipped": 0}


def test_table_with_files_that_are_missing_or_without_label(table, tmp_path):
    table += ["cat,photos/cat/nowhere.png,train,", "cat,photos,train,", " ,photos/cat/8.png,train,", "cat,,train,"]
    data = load(write_table(tmp_path / "table.csv", table), tmp_path)
    assert data.counts() == {"train": 8, "val": 2, "test": 2, "skipped": 4}
    assert reasons(data)["nowhere.png"] == "cannot be read: No such file or directory"
    assert reasons(data)["photos"] == "is a folder, not an image"
    assert "has no label" in reasons(data)["8.png"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no column 'path'. Found: none"),
        (["file,label", "a.png,cat"], "has no column 'path'. Found: 'file', 'label'.* --path-column NAME"),
        (["path;label", "a.png;cat"], "has no column 'path'. Found: 'path;label'"),
        (["path,label,split", "a.png,cat,train", "", "b.png,cat,holdout"],
         "line 4: unknown split 'holdout'. Allowed: train, val, test"),
        (["path,label,split", "a.png,cat,train", "b.png,cat,"], "some lines have a split and some have none"),
        (["path,label", "a.png,cat", "a, b.png,cat"], "line 3: 2 cells are required.*'cat'.*in quotes"),
        (["path,label"], "has no images"),
    ],
)  # fmt: skip
def test_broken_tables_are_refused(lines, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load(write_table(tmp_path / "table.csv", lines), tmp_path)


def test_a_table_that_is_not_utf8_or_a_folder_is_refused(photos, tmp_path):
    with pytest.raises(UserError, match="cannot be read as a comma-separated table in UTF-8"):
        load(write_table(tmp_path / "table.csv", ["path,label", "é.png,cat"], "latin-1"), tmp_path)
    with pytest.raises(UserError, match=r"cannot be read as a comma-separated table.*directory"):
        load(f"csv:{photos}", tmp_path)


def test_a_table_that_labels_one_file_twice(table, tmp_path):
    table += ["dog,photos/cat/0.png,train,", "dog,photos/dog/21.png,train,"]  # a contradiction, and a mere repetition
    data = load(write_table(tmp_path / "table.csv", table), tmp_path)
    assert data.counts() == {"train": 8, "val": 2, "test": 2, "skipped": 2}
    assert [Path(path).name for path, _ in data.skipped] == ["0.png", "0.png"]
    assert list(map(os.path.basename, data.train.paths)).count("21.png") == 2


# --- fingerprint ------------------------------------------------------------------------------------------


def test_fingerprint_follows_files_labels_and_parts(photos, tmp_path):
    data = load(photos, tmp_path)
    first = data.fingerprint()
    assert first == load(photos, tmp_path).fingerprint() and len(first) == 16
    swapped = dataclasses.replace(data, val=data.test, test=data.val)
    relabelled = dataclasses.replace(data, train=dataclasses.replace(data.train, labels=1 - data.train.labels))
    assert len({first, swapped.fingerprint(), relabelled.fingerprint()}) == 3
    path = Path(data.train.paths[0])
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    assert load(photos, tmp_path).fingerprint() == first  # the content counts, not its time
    path.write_bytes(encoded_image(999))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert data.fingerprint() == first and load(photos, tmp_path).fingerprint() != first


# --- demo and TensorFlow Datasets -------------------------------------------------------------------------


def test_demo(tmp_path):
    data = load("demo", tmp_path)
    assert data.mirrors and "t-shirt" in data.class_names and len(data.class_names) == 10
    assert labels_of(data, "test") == dict.fromkeys(data.class_names, 20)
    assert len(data.train) + len(data.val) == 600 and data.counts()["skipped"] == 0
    assert 80 <= len(data.val) <= 100 and set(labels_of(data, "val")) == set(data.class_names)  # about 15 %
    assert not (tmp_path / "out").exists()  # read in place
    with open(readers.DEMO, newline="", encoding="utf-8") as file:
        senders = {str(readers.DEMO.parent / line["file"]): line["sender_id"] for line in csv.DictReader(file)}
    train, val, test = ({senders[path] for path in getattr(data, split).paths} for split in SPLITS)
    assert len(train) > 20 and len(val) > 5 and not train & val and not train & test and not val & test
    assert data.fingerprint() == load("demo", tmp_path / "elsewhere").fingerprint()


def test_demo_digits(tmp_path):
    data = load("demo:digits", tmp_path)
    assert data.class_names == tuple("0123456789") and not data.mirrors
    assert labels_of(data, "train") == dict.fromkeys(data.class_names, 10)
    assert labels_of(data, "val") == dict.fromkeys(data.class_names, 5)
    assert data.counts() == {"train": 100, "val": 50, "test": 1647, "skipped": 0}
    parts = [content_hashes(getattr(data, part)) for part in SPLITS]
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert {Path(path).parents[3] for path in data.test.paths} == {tmp_path / "out"}  # nothing outside the run folder

    fingerprint = data.fingerprint()
    Path(data.train.paths[0]).unlink()
    Path(data.train.paths[0] + ".partial").write_bytes(b"a run was killed here")
    again, elsewhere = load("demo:digits", tmp_path), load("demo:digits", tmp_path / "elsewhere")
    assert again.fingerprint() == fingerprint != elsewhere.fingerprint()  # paths and contents
    for part in SPLITS:
        assert getattr(again, part).paths.tolist() == getattr(data, part).paths.tolist()
        assert content_hashes(getattr(elsewhere, part)) == content_hashes(getattr(data, part))


@pytest.fixture(scope="module")
def tfds(tmp_path_factory):
    """TensorFlow Datasets with data sets of its own, prepared in a folder and without a network."""
    tensorflow_datasets = pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is not installed")
    core, kinds = tensorflow_datasets.core, tensorflow_datasets.features

    class Tiny(core.GeneratorBasedBuilder):
        VERSION, SPLITS = core.Version("1.0.0"), ("train", "test", "unlabelled")
        LABEL = kinds.ClassLabel(names=["cat", "salt/pepper"])
        SHIFT = 0

        def _info(self):
            features = {"image": kinds.Image(shape=(None, None, 3), encoding_format="png"), "label": self.LABEL}
            return core.DatasetInfo(builder=self, features=kinds.FeaturesDict(features))

        def _split_generators(self, _):
            return {split: self._generate_examples(1000 * at + self.SHIFT) for at, split in enumerate(self.SPLITS)}

        def _generate_examples(self, first):
            for number in range(first, first + 20):
                yield number, {"image": np.asarray(Image.open(io.BytesIO(encoded_image(number)))), "label": number % 2}

    # The classes register themselves under these names.
    type("TinyImages", (Tiny,), {})
    type("OtherImages", (Tiny,), {"SHIFT": 500})
    type("OddImages", (Tiny,), {"SPLITS": ("part_a", "part_b")})
    type("NumberImages", (Tiny,), {"LABEL": kinds.Scalar(np.int64)})
    patch = pytest.MonkeyPatch()
    patch.setattr(core.constants, "DATA_DIR", str(tmp_path_factory.mktemp("tfds")))
    yield tensorflow_datasets
    patch.undo()


def test_tfds(tfds, tmp_path, capsys):
    data = load("tfds:tiny_images", tmp_path)
    assert "may download into" in capsys.readouterr().out
    assert data.class_names == ("cat", "salt/pepper") and data.mirrors
    assert data.counts() == {"train": 16, "val": 4, "test": 20, "skipped": 0}
    assert all(str(path).startswith(str(tmp_path / "out")) for part in SPLITS for path in getattr(data, part).paths)
    # Images and labels belong together.
    expected = {np.asarray(Image.open(io.BytesIO(encoded_image(n)))).tobytes(): n % 2 for n in range(1000, 1020)}
    found = {
        np.asarray(Image.open(path)).tobytes(): label
        for path, label in zip(data.test.paths, data.test.labels, strict=True)
    }
    assert found == expected
    assert load("tfds:tiny_images", tmp_path).fingerprint() == data.fingerprint()


def test_another_tfds_set_in_the_same_run_folder_is_not_mixed_up(tfds, tmp_path):
    parts = [content_hashes(load(f"tfds:{name}_images", tmp_path).test) for name in ("tiny", "other")]
    assert len(parts[0]) == len(parts[1]) == 20 and not parts[0] & parts[1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_images", "cannot be loaded: .*no_such_images.*catalog.*TFDS_DATA_DIR"),
        ("odd_images", r"no split named train, validation or test. Received: \['part_a', 'part_b'\]"),
        ("number_images", "has no image with a class label. Received: .*label"),
    ],
)
def test_tfds_sets_that_cannot_work(tfds, name, message, tmp_path):
    with pytest.raises(UserError, match=f"(?s){message}"):
        load(f"tfds:{name}", tmp_path)


def test_tfds_that_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match="pip install tensorflow-datasets"):
        load("tfds:mnist", tmp_path)
