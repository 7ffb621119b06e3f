"""Images with boxes: what is kept, skipped, clipped or rotated, how it is reported, and how the splits are made."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.splits import SPLITS
from common.detection.checks import turn_boxes
from common.detection.dataset import BoxExamples, BoxSet, load_box_set
from common.errors import UserError
from recipes.object_detection.recipe import Config, build_model

WIDTH, HEIGHT = 40, 30
GOOD = "5,6,15,20"


def image(number: int, form: str = "JPEG", orientation: int = 1, size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    """An image file of its own content for each number, optionally with an EXIF orientation."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, form, **({"exif": exif} if orientation != 1 else {}))
    return file.getvalue()


def table(folder: Path, lines: list[str], columns: str = "path,xmin,ymin,xmax,ymax,label") -> str:
    """Write a table, and return it as --data."""
    folder.mkdir(exist_ok=True)
    (folder / "table.csv").write_text("\n".join([columns, *lines]) + "\n")
    return f"csv:{folder / 'table.csv'}"


def plain(folder: Path, count: int = 20, boxes: str = GOOD, label: str = "cat") -> list[str]:
    """Write images 0, 1, ... with one box each, and return their lines."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(image(number))
    return [f"{number}.jpg,{boxes},{label}" for number in range(count)]


def load(data: str, tmp_path: Path, **options) -> BoxSet:
    return load_box_set(data, tmp_path / "out", **options)


def all_of(data: BoxSet) -> dict[str, tuple[np.ndarray, list[str], list[bool]]]:
    """Boxes, class names and crowds of each image, by file name."""
    return {
        Path(path).name: (boxes, [data.class_names[label] for label in labels], crowds.tolist())
        for split in SPLITS
        for path, boxes, labels, crowds in zip(
            *(getattr(getattr(data, split), name) for name in ("paths", "boxes", "labels", "crowds")), strict=True
        )
    }


def noted(data: BoxSet) -> dict[str, int]:
    """The count of each note, by the first words of its reason."""
    return {" ".join(note.reason.split()[:3]): note.count for note in data.notes}


# --- the set itself ---------------------------------------------------------------------------------------


def test_types_shapes_and_counts(tmp_path):
    lines = [*plain(tmp_path / "set"), "0.jpg,1,2,3,4.5,dog", "1.jpg,1,2,3,4.5,dog", "2.jpg,1,2,3,4,dog"]
    lines[3] = "3.jpg,,,,,"
    data = load(table(tmp_path / "set", lines), tmp_path)
    assert data.class_names == ("cat", "dog") and data.mirrors and not data.notes and not data.skipped
    assert sum(data.counts().values()) == 20 and data.counts()["skipped"] == 0
    counts = data.box_counts()
    assert sum(map(Counter, counts.values()), Counter()) == {"cat": 19, "dog": 3}
    assert all(counts[split]["dog"] == 1 for split in SPLITS)  # a rare class comes into every split
    for split in SPLITS:
        examples = getattr(data, split)
        assert examples.paths.dtype == object and examples.sizes.dtype == examples.orientations.dtype == np.int64
        assert (examples.sizes == (HEIGHT, WIDTH)).all() and (examples.orientations == 1).all()
        for boxes, labels, crowds in zip(examples.boxes, examples.labels, examples.crowds, strict=True):
            assert (boxes.dtype, labels.dtype, crowds.dtype) == (np.float32, np.int64, bool)
            assert boxes.shape == (len(labels), 4) and crowds.shape == labels.shape
    found = all_of(data)
    np.testing.assert_array_equal(found["0.jpg"][0], np.float32([[5, 6, 15, 20], [1, 2, 3, 4.5]]))
    assert found["0.jpg"][1] == ["cat", "dog"] and found["3.jpg"][0].shape == (0, 4)
    few = data.train.take(np.array([2, 0]))
    assert len(few) == 2 and few.paths.tolist() == [data.train.paths[2], data.train.paths[0]]
    assert few.boxes[1] is data.train.boxes[0]


def test_fingerprint_follows_files_boxes_and_splits(tmp_path):
    data = load(table(tmp_path / "set", plain(tmp_path / "set")), tmp_path)
    first = data.fingerprint()
    assert first == load(data.name, tmp_path).fingerprint() and len(first) == 16
    swapped = dataclasses.replace(data, val=data.test, test=data.val)
    moved = dataclasses.replace(data.train, boxes=tuple(boxes + 1 for boxes in data.train.boxes))
    crowded = dataclasses.replace(data.train, crowds=tuple(~crowds for crowds in data.train.crowds))
    others = [swapped, dataclasses.replace(data, train=moved), dataclasses.replace(data, train=crowded)]
    path = Path(data.train.paths[0])
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))
    assert len({first, data.fingerprint(), *(other.fingerprint() for other in others)}) == 5


# --- boxes that cannot be used ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason", "kept"),
    [
        ("0.jpg,-5,6,15,20,cat", "boxes partly outside", [0, 6, 15, 20]),
        ("0.jpg,5,6,45,33,cat", "boxes partly outside", [5, 6, 40, 30]),
        ("0.jpg,5,6,40.4,30.3,cat", None, [5, 6, 40, 30]),  # rounding, not worth a word
        ("0.jpg,5,6,5,20,cat", "boxes without area,", None),
        ("0.jpg,5,6,5,6,cat", "boxes without area,", None),
        ("0.jpg,15,6,5,20,cat", "boxes whose min", None),
        ("0.jpg,5,20,15,6,cat", "boxes whose min", None),
        ("0.jpg,nan,6,15,20,cat", "boxes with a", None),
        ("0.jpg,5,6,inf,20,cat", "boxes with a", None),
        ("0.jpg,5,6,fifteen,20,cat", "boxes with a", None),
        ("0.jpg,5,6,,20,cat", "boxes with a", None),
        ("0.jpg,1e300,6,1e301,20,cat", "boxes entirely outside", None),
        ("0.jpg,50,6,60,20,cat", "boxes entirely outside", None),
        ("0.jpg,40,6,60,20,cat", "boxes entirely outside", None),
        ("0.jpg,-9,-9,-2,-2,cat", "boxes entirely outside", None),
        ("0.jpg,5,6,15,20,", "boxes without a", None),
        ("0.jpg,1,1,9,9,cat", "duplicate boxes, skipped", None),  # it is there already
        ("0.jpg,1,1,9,9,dog", None, [1, 1, 9, 9]),  # of another class
    ],
)
def test_bad_boxes_are_left_out_or_cut_counted_and_told(line, reason, kept, tmp_path):
    lines = plain(tmp_path / "set", label="dog")
    lines[0] = "0.jpg,1,1,9,9,cat"
    lines += [line, "1.jpg,1,1,9,9,cat", "2.jpg,1,1,9,9,cat", "3.jpg,1,1,9,9,cat", "4.jpg,1,1,9,9,cat"]
    data = load(table(tmp_path / "set", lines), tmp_path)
    boxes, _, _ = all_of(data)["0.jpg"]
    np.testing.assert_array_equal(boxes, np.float32([[1, 1, 9, 9]] + ([kept] if kept else [])))
    assert noted(data) == ({reason: 1} if reason else {}) and not data.skipped
    if reason:
        assert data.notes[0].first.startswith("table.csv:2, box 2 (") and data.notes[0].reason in data.advice()[-1]
    if reason and not kept:
        with pytest.raises(UserError, match=f"--strict: 1 {reason}.*table.csv:2, box 2"):
            load(data.name, tmp_path, strict=True)
    else:
        load(data.name, tmp_path, strict=True)


def test_many_boxes_over_the_edge_raise_a_question(tmp_path):
    lines = plain(tmp_path / "set", boxes="20,15,45,35")
    (sentence,) = [
        one
        for one in load(table(tmp_path / "set", lines), tmp_path).advice()
        if "Check the order of the numbers" in one
    ]
    assert "20 boxes extend beyond their images, and 20 are used" in sentence


def test_boxes_in_the_wrong_unit_are_refused(tmp_path):
    lines = plain(tmp_path / "set", boxes="0.1,0.2,0.5,1.0")
    with pytest.raises(UserError, match=r"needs boxes in pixels. Received: all 20 between 0 and 1.*Multiply x by"):
        load(table(tmp_path / "set", lines), tmp_path)
    (tmp_path / "set" / "data.yaml").write_text("names: [cat]")
    for number in range(20):
        (tmp_path / "set" / f"{number}.txt").write_text("0 20 15 10 8\n")
    with pytest.raises(UserError, match=r"needs boxes as fractions.*all 20 beyond 2.*Divide x by"):
        load(f"yolo:{tmp_path / 'set'}", tmp_path)


def test_a_wrong_unit_is_told_though_some_boxes_are_wrong_as_well(tmp_path):
    lines = [*plain(tmp_path / "set", boxes="0.1,0.2,0.5,1.0"), "3.jpg,0.1,0.2,0.5,1.2,cat"]
    with pytest.raises(UserError, match=r"needs boxes in pixels\. Received: 20 of 21 between 0 and 1"):
        load(table(tmp_path / "set", lines), tmp_path)
    lines = plain(tmp_path / "percent", boxes="10,20,60,95.5")
    for number in range(20):
        (tmp_path / "percent" / f"{number}.jpg").write_bytes(image(number, size=(400, 300)))
    (sentence,) = [one for one in load(table(tmp_path / "percent", lines), tmp_path).advice() if "percent" in one]
    assert "No box extends beyond 95.5" in sentence


def test_shares_become_pixels_of_each_image(tmp_path):
    plain(tmp_path / "set", 8)
    (tmp_path / "set" / "0.jpg").write_bytes(image(100, size=(200, 10)))
    (tmp_path / "set" / "data.yaml").write_text("names: [cat]")
    for number in range(8):
        (tmp_path / "set" / f"{number}.txt").write_text("0 0.5 0.5 0.5 1.0\n")
    found = all_of(load(f"yolo:{tmp_path / 'set'}", tmp_path))
    np.testing.assert_allclose(found["0.jpg"][0], [[50, 0, 150, 10]])
    np.testing.assert_allclose(found["1.jpg"][0], [[10, 0, 30, 30]])


def test_only_bad_boxes_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no usable box. 0 image.*20 boxes without area.*table.csv:2"):
        load(table(tmp_path / "set", plain(tmp_path / "set", boxes="5,5,5,5")), tmp_path)


# --- classes ----------------------------------------------------------------------------------------------


def test_labels_that_differ_in_case_or_spaces_are_one_class(tmp_path):
    lines = plain(tmp_path / "set", label="Red cell")
    lines[3:6] = [f"3.jpg,{GOOD}, red  cell ", f"4.jpg,{GOOD},RED CELL", f"5.jpg,{GOOD},Red  cell"]
    data = load(table(tmp_path / "set", lines), tmp_path)
    assert data.class_names == ("Red cell",)
    assert [(note.count, note.first) for note in data.notes] == [(1, "table.csv:5"), (1, "table.csv:6")]
    assert "labels 'RED CELL', which differ only in case and count as 'Red cell'" in data.notes[1].reason


def test_class_names_choose_and_are_checked(tmp_path):
    lines = plain(tmp_path / "set") + [f"{number}.jpg,1,1,4,4,dog" for number in range(5)]
    data = load(table(tmp_path / "set", lines), tmp_path, class_names=["CAT"])
    assert data.class_names == ("cat",) and noted(data) == {"boxes of classes": 5}
    assert "table.csv:2 (dog)" in data.advice()[0]
    assert sum(sum(found.values()) for found in data.box_counts().values()) == 20
    load(data.name, tmp_path, class_names=["cat"], strict=True)  # a choice is no fault
    with pytest.raises(
        UserError, match=r"must be classes of .*Allowed: 'cat', 'dog'. Received: 'catt'. Did you mean 'cat'"
    ):
        load(data.name, tmp_path, class_names=["catt"])


def test_a_class_without_training_boxes_is_refused_with_what_to_type(tmp_path):
    lines = [f"{line},{'train' if n < 12 else 'test'}" for n, line in enumerate(plain(tmp_path / "set"))]
    lines.append("15.jpg,1,1,4,4,dog,test")
    data = table(tmp_path / "set", lines, "path,xmin,ymin,xmax,ymax,label,split")
    with pytest.raises(UserError, match=r"no training box for 'dog'.*--class-names cat\."):
        load(data, tmp_path)
    assert load(data, tmp_path, class_names=["cat"]).class_names == ("cat",)
    lines += ["0.jpg,1,1,4,4,red cell,train", "16.jpg,1,1,4,4,red cell,test"]
    with pytest.raises(UserError, match=r"no training box for 'dog'.*--class-names cat 'red cell'\."):
        load(table(tmp_path / "set", lines, "path,xmin,ymin,xmax,ymax,label,split"), tmp_path)


def test_a_class_missing_in_the_test_split_is_reported(tmp_path):
    lines = [f"{line},{'train' if n < 12 else 'test'}" for n, line in enumerate(plain(tmp_path / "set"))]
    lines += [f"{n}.jpg,1,1,4,4,dog,train" for n in range(6)]
    data = load(table(tmp_path / "set", lines, "path,xmin,ymin,xmax,ymax,label,split"), tmp_path)
    assert data.advice()[0].startswith("The test split has no image with class 'dog'")


def test_crowds_are_kept_and_do_not_count(tmp_path):
    plain(tmp_path / "set", 12)
    annotations = [
        {"image_id": n, "category_id": 1, "bbox": [5 + c, 6, 10, 14], "iscrowd": c} for n in range(12) for c in (0, 1)
    ]
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": WIDTH, "height": HEIGHT} for n in range(12)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "set" / "a.json").write_text(json.dumps(content))
    data = load(f"coco:{tmp_path / 'set'}", tmp_path)
    assert sum(found["cat"] for found in data.box_counts().values()) == 12
    assert all(crowds == [False, True] for _, _, crowds in all_of(data).values())
    content["annotations"] = annotations[1::2]
    (tmp_path / "set" / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"has no boxes in the train split.*crowds and difficult objects do not"):
        load(f"coco:{tmp_path / 'set'}", tmp_path)


# --- images ---------------------------------------------------------------------------------------------


def converted(mode: str, form: str, **options) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(image(1))).convert(mode).save(file, form, **options)
    return file.getvalue()


def flipped(content: bytes, place: int) -> bytes:
    """One byte is wrong, and the file has its end."""
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


BAD = {
    "empty.jpg": (b"", "is empty (0 bytes)"),
    "truncated.jpg": (image(1)[:-200], "cannot be read as an image"),
    "truncated.png": (image(1, "PNG")[:-200], "cannot be read as an image"),
    "flipped.png": (flipped(image(1, "PNG"), 100), "cannot be read as an image"),
    "flipped.jpg": (flipped(image(1), 180), "cannot be read as an image"),
    "header.jpg": (image(1)[:20], "cannot be read as an image"),
    "text.jpg": (b"404 not found", "cannot be read as an image"),
    "scan.tiff": (converted("RGB", "TIFF"), "convert it to JPEG or PNG"),
    "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "is a HEIC photo"),
    "nowhere.jpg": (None, "cannot be read: No such file or directory"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_skipped_counted_and_explained(name, tmp_path):
    content, reason = BAD[name]
    lines = [*plain(tmp_path / "set"), f"{name},{GOOD},cat"]
    if content is not None:
        (tmp_path / "set" / name).write_bytes(content)
    data = load(table(tmp_path / "set", lines), tmp_path)
    assert data.counts()["skipped"] == 1 and sum(data.counts().values()) == 21
    ((path, why),) = data.skipped
    assert path == str(tmp_path / "set" / name) and reason in why and "function_node" not in why
    with pytest.raises(UserError, match=rf"--strict: 1 image.*{name}"):
        load(data.name, tmp_path, strict=True)


@pytest.mark.parametrize(
    ("form", "mode"), [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "RGBA"), ("GIF", "P"), ("BMP", "RGB")]
)
def test_images_that_the_decoder_takes_are_taken(form, mode, tmp_path):
    lines = [*plain(tmp_path / "set"), f"more.{form},{GOOD},cat"]
    (tmp_path / "set" / f"more.{form}").write_bytes(converted(mode, form) + b"trailing bytes" * (form == "JPEG"))
    data = load(table(tmp_path / "set", lines), tmp_path)
    assert not data.skipped and len(all_of(data)) == 21


def test_images_of_another_size_than_stated_are_skipped(tmp_path):
    lines = [f"{line},{WIDTH},{HEIGHT}" for line in plain(tmp_path / "set")]
    lines[4] = f"4.jpg,{GOOD},cat,80,60"
    lines[5] = f"5.jpg,{GOOD},cat,0,0"  # what some tools write for unknown
    columns = "path,xmin,ymin,xmax,ymax,label,width,height"
    data = load(table(tmp_path / "set", lines, columns), tmp_path)
    ((path, why),) = data.skipped
    assert path.endswith("4.jpg") and "differs from its annotation: table.csv:6 has 80x60, the file is 40x30" in why
    with pytest.raises(UserError, match=r"no usable image. 20 image.*80x60"):
        load(table(tmp_path / "set", [f"{n}.jpg,{GOOD},cat,80,60" for n in range(20)], columns), tmp_path)


def test_a_stated_size_the_wrong_way_round(tmp_path):
    columns = "path,xmin,ymin,xmax,ymax,label,width,height"
    lines = [f"{line},{HEIGHT},{WIDTH}" for line in plain(tmp_path / "set", boxes="5,6,39,20")]
    data = load(table(tmp_path / "set", lines, columns), tmp_path)
    assert noted(data) == {"annotations with width": 20} and not data.skipped
    np.testing.assert_array_equal(all_of(data)["0.jpg"][0], [[5, 6, 39, 20]])
    # A box that fits the stated size only: the images were turned after they had been labelled.
    lines[10:] = [f"{n}.jpg,5,6,25,38,cat,{HEIGHT},{WIDTH}" for n in range(10, 15)] + [
        f"{n}.jpg,5,6,25,28,cat,{WIDTH},{HEIGHT}" for n in range(15, 20)
    ]
    data = load(table(tmp_path / "set", lines, columns), tmp_path)
    assert (
        data.counts()["skipped"] == 15 and "is rotated: table.csv:2 has 30x40, the file is 40x30" in data.skipped[0][1]
    )


def test_an_image_with_two_annotations_uses_the_first(tmp_path):
    lines = [*plain(tmp_path / "set"), "./0.jpg,1,1,3,3,cat"]
    data = load(table(tmp_path / "set", lines), tmp_path)
    assert data.skipped[0][1] == "has two annotations; that of table.csv:2 was used, not that of table.csv:22"
    np.testing.assert_array_equal(all_of(data)["0.jpg"][0], [[5, 6, 15, 20]])


def test_progress_says_how_many_were_checked(tmp_path, capsys):
    load(table(tmp_path / "set", plain(tmp_path / "set")), tmp_path)
    assert "checking images: 20 in" in capsys.readouterr().out


# --- EXIF orientation -------------------------------------------------------------------------------------


def red_corner(orientation: int) -> tuple[bytes, np.ndarray]:
    """A PNG file with a red patch in it, and the box of the patch as a person sees it."""
    stored = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    stored[3:9, 2:20] = (255, 0, 0)
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(file, "PNG", exif=exif)
    from PIL import ImageOps

    shown = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    rows, columns = (np.flatnonzero(shown[..., 0].any(axis=axis)) for axis in (1, 0))
    return file.getvalue(), np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_the_image(orientation):
    content, seen = red_corner(orientation)
    stored = np.array([[2, 3, 20, 9]], np.float32)
    np.testing.assert_array_equal(turn_boxes(stored, (HEIGHT, WIDTH), orientation), seen[None])
    size = Image.open(io.BytesIO(content)).size[::-1]
    shown = size[::-1] if orientation >= 5 else size
    examples = BoxExamples(
        np.array(["a.png"], object), (np.float32(seen[None]),), (np.array([0]),), (np.array([False]),),
        np.array([shown]), np.array([orientation]),
    )  # fmt: skip
    back = examples.as_stored()
    np.testing.assert_array_equal(back.boxes[0], stored)
    assert back.sizes.tolist() == [[HEIGHT, WIDTH]] and back.orientations.tolist() == [1]


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("labelled", ["shown", "stored", "unknown"])
def test_boxes_of_turned_photos_stay_on_their_objects(orientation, labelled, tmp_path):
    lines = [f"{line},," for line in plain(tmp_path / "set")]
    content, seen = red_corner(orientation)
    (tmp_path / "set" / "turned.png").write_bytes(content)
    written = (2, 3, 20, 9) if labelled == "stored" and orientation >= 5 else seen.astype(int)
    shown = (HEIGHT, WIDTH) if orientation >= 5 else (WIDTH, HEIGHT)
    stated = {"shown": shown, "stored": (WIDTH, HEIGHT), "unknown": ("", "")}[labelled]
    lines.append(",".join(map(str, ("turned.png", *written, "cat", *stated))))
    data = load(table(tmp_path / "set", lines, "path,xmin,ymin,xmax,ymax,label,width,height"), tmp_path)
    assert not data.skipped
    np.testing.assert_array_equal(all_of(data)["turned.png"][0], np.float32(seen[None]))
    for split in SPLITS:
        examples = getattr(data, split)
        for place in np.flatnonzero(examples.orientations != 1):
            assert examples.orientations[place] == orientation and examples.sizes[place].tolist() == [*shown[::-1]]
            np.testing.assert_array_equal(examples.as_stored().boxes[place], [[2, 3, 20, 9]])
    ((reason, count),) = [(note.reason, note.count) for note in data.notes]
    expected = {"shown": "labelled as displayed", "stored": "labelled as stored", "unknown": "without a"}
    # Upside down, both sizes are the same, and nothing tells.
    assert expected[labelled if orientation >= 5 else "unknown"] in reason and count == 1


# --- splits -----------------------------------------------------------------------------------------------


def test_the_input_has_the_shape_that_the_decoder_sees(tmp_path):
    """Portraits of a phone are stored lying on their side, and their boxes say nothing of it."""
    lines = plain(tmp_path / "set")
    for number in range(20):
        (tmp_path / "set" / f"{number}.jpg").write_bytes(image(number, orientation=6, size=(400, 300)))
    data = load(table(tmp_path / "set", lines), tmp_path)
    assert data.train.sizes[0].tolist() == [400, 300]
    source, _ = build_model(data, Config(image_size=320))
    assert source.image_size == (256, 320)


def contents(examples) -> set[bytes]:
    return {Path(path).read_bytes() for path in examples.paths}


def test_splits_are_disjoint_and_do_not_depend_on_names(tmp_path):
    lines = plain(tmp_path / "set", 40)
    for number in range(5):  # copies stay together
        (tmp_path / "set" / f"copy{number}.jpg").write_bytes(image(number))
    lines += [f"copy{number}.jpg,{GOOD},cat" for number in range(5)]
    data = load(table(tmp_path / "set", lines), tmp_path)
    found = [contents(getattr(data, split)) for split in SPLITS]
    assert [len(split) for split in found] == [28, 6, 6] and len(set.union(*found)) == 40 and not data.skipped
    other = load(table(tmp_path / "set", lines[::-1]), tmp_path)
    assert [contents(getattr(other, split)) for split in SPLITS] == found
    assert load(data.name, tmp_path, val_share=0.5).counts()["val"] >= 18


def with_splits(folder: Path, sizes: dict[str, int]) -> str:
    found = [split for split, size in sizes.items() for _ in range(size)]
    lines = [f"{line},{split}" for line, split in zip(plain(folder, len(found)), found, strict=True)]
    return table(folder, lines, "path,xmin,ymin,xmax,ymax,label,split")


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        ({"train": 10, "val": 3, "test": 4}, (10, 3, 4)),
        ({"train": 20, "test": 4}, (17, 3, 4)),
        ({"train": 20, "val": 5}, (17, 3, 5)),
        ({"train": 20}, (14, 3, 3)),
    ],
)
def test_given_splits_are_kept_and_missing_ones_made_of_train(given, counts, tmp_path):
    data = load(with_splits(tmp_path / "set", given), tmp_path)
    assert tuple(len(getattr(data, split)) for split in SPLITS) == counts
    found = [set(getattr(data, split).paths) for split in SPLITS]
    assert len(set.union(*found)) == sum(counts)


def test_splits_that_cannot_work(tmp_path):
    with pytest.raises(UserError, match="but no train split"):
        load(with_splits(tmp_path / "a", {"val": 4, "test": 4}), tmp_path)
    lines = [f"{line},train" for line in plain(tmp_path / "set")]
    lines[15:] = [f"{n}.jpg,,,,,,test" for n in range(15, 20)]
    with pytest.raises(UserError, match=r"has no boxes in the test split \(5 image\(s\)\)"):
        load(table(tmp_path / "set", lines, "path,xmin,ymin,xmax,ymax,label,split"), tmp_path)


def test_copies_across_given_splits_leave_the_lower_split(tmp_path):
    data = with_splits(tmp_path / "set", {"train": 10, "val": 3, "test": 4})
    for number in (0, 10):  # of train and of val
        (tmp_path / "set" / f"{number}.jpg").write_bytes(image(16))
    loaded = load(data, tmp_path)
    assert loaded.counts() == {"train": 9, "val": 2, "test": 4, "skipped": 2}
    assert [why for _, why in loaded.skipped] == [
        f"exact copy of an image in another split; removed from {split}" for split in ("train", "val")
    ]


def test_images_in_no_split_are_reported(tmp_path):
    for n in range(12):
        folder = tmp_path / "set" / ("train" if n < 8 else "test" if n < 11 else ".")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{n}.jpg").write_bytes(image(n))
        (folder / f"{n}.xml").write_text(
            "<annotation><object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
            "</bndbox></object></annotation>"
        )
    data = load(f"voc:{tmp_path / 'set'}", tmp_path)
    assert data.counts()["skipped"] == 1 and "is in no split" in data.skipped[0][1]


def test_limit_shares_out_the_classes(tmp_path):
    lines = plain(tmp_path / "set", 40) + [f"{n}.jpg,1,1,4,4,dog" for n in range(10)]
    data = load(table(tmp_path / "set", lines), tmp_path, limit=4)
    assert all(data.counts()[split] <= 4 and min(data.box_counts()[split].values()) >= 1 for split in SPLITS)
    with pytest.raises(UserError, match=r"--limit 1 may be too small for 2 classes|no boxes"):
        lines = plain(tmp_path / "set", 40)[:20] + [f"{n}.jpg,1,1,4,4,dog" for n in range(20, 40)]
        load(table(tmp_path / "set", lines), tmp_path, limit=1)


# --- what the user asked for ------------------------------------------------------------------------------


def test_a_path_without_its_kind_gets_a_guess(tmp_path):
    data = table(tmp_path / "set", plain(tmp_path / "set"))
    with pytest.raises(
        UserError, match=r"must name the format of the boxes. Allowed: voc:PATH, coco:PATH.*Try: --data csv:/"
    ):
        load(data.removeprefix("csv:"), tmp_path)
    with pytest.raises(UserError, match=r"Received: 'folder:.*Try: --data voc:/"):
        load(f"folder:{tmp_path / 'set'}", tmp_path)
    with pytest.raises(
        UserError, match="Allowed: demo, demo:scenes, voc:PATH, coco:PATH, csv:PATH, yolo:PATH, tfds:NAME"
    ):
        load("cocoa:x", tmp_path)
    with pytest.raises(UserError, match="does not exist: 'nowhere'"):
        load("coco:nowhere", tmp_path)


def test_a_table_without_lines(tmp_path):
    with pytest.raises(UserError, match="lists no images"):
        load(table(tmp_path / "set", []), tmp_path)


def test_demo(tmp_path):
    data = load("demo", tmp_path, strict=True)
    assert data.class_names == ("Platelets", "RBC", "WBC") and data.mirrors and not data.notes
    assert data.counts() == {"train": 80, "val": 20, "test": 60, "skipped": 0}
    assert {tuple(size) for size in data.train.sizes} == {(192, 256)}
    assert not (tmp_path / "out").exists()


def test_demo_scenes(tmp_path, monkeypatch):
    monkeypatch.setattr("common.detection.demo_scenes.SCENES", {"train": 60, "val": 10, "test": 10})
    data = load("demo:scenes", tmp_path, strict=True)
    assert data.class_names == tuple("0123456789") and not data.mirrors and not data.notes
    assert data.counts() == {"train": 60, "val": 10, "test": 10, "skipped": 0}
    assert all(Path(path).is_relative_to(tmp_path / "out" / "data") for path in data.test.paths)
    assert load("demo:scenes", tmp_path).fingerprint() == data.fingerprint()


# --- real data --------------------------------------------------------------------------------------------


def test_real_bccd(shared_data, tmp_path):
    data = load(f"voc:{shared_data / 'bccd'}", tmp_path)
    assert data.class_names == ("Platelets", "RBC", "WBC")
    assert data.counts() == {"train": 249, "val": 43, "test": 72, "skipped": 0}
    total = sum(map(Counter, data.box_counts().values()), Counter())
    assert total == {"RBC": 4153, "WBC": 372, "Platelets": 361}
    (note,) = data.notes
    assert note.count == 2 and "without area" in note.reason and "BloodImage_00338.xml" in note.first
    assert len(data.test) == len((shared_data / "bccd" / "test.txt").read_text().split())


def test_real_raccoon(shared_data, tmp_path):
    data = load(f"voc:{shared_data / 'raccoon'}", tmp_path)
    assert data.class_names == ("raccoon",) and not data.notes
    assert data.counts() == {"train": 135, "val": 24, "test": 40, "skipped": 1}
    assert data.skipped[0][1] == "exact copy of an image in another split; removed from train"
    for boxes, (height, width) in zip(data.train.boxes, data.train.sizes, strict=True):
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [width, height]).all()
