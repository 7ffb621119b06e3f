"""Boxes as users write them: every format to the same boxes, and what is refused, counted or searched elsewhere."""

from __future__ import annotations

import io
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.detection.demo_scenes import SCENES, SIDE, write_scenes
from common.detection.readers.coco import coco_rows
from common.detection.readers.rows import guess_kind
from common.detection.readers.table import csv_rows
from common.detection.readers.tfds import scene_rows, tfds_rows
from common.detection.readers.voc import voc_rows
from common.detection.readers.yolo import yolo_rows
from common.errors import UserError

WIDTH, HEIGHT = 40, 30
NAMES = ("cat", "dog")


def image(number: int, width: int = WIDTH, height: int = HEIGHT, form: str = "JPEG") -> bytes:
    """An image file of its own content for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def boxes_of(number: int) -> list[tuple[str, list[int]]]:
    """Class name and xmin, ymin, xmax, ymax of each object in an image; every fourth image has none."""
    boxes = [(NAMES[number % 2], [number, 2, number + 8, 14]), (NAMES[1], [5, 15, 5 + 10, 29])]
    return boxes[: (2, 1, 2, 0)[number % 4]]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def xml(filename: str, boxes, size: tuple[int, int] | None = (WIDTH, HEIGHT), more: str = "") -> str:
    """An annotation of Pascal VOC."""
    objects = "".join(
        f"<object><name>{name}</name>{more}<bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax>"
        "</bndbox></object>"
        for name, (a, b, c, d) in boxes
    )
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    return f"<annotation><filename>{filename}</filename>{stated}{objects}</annotation>"


def coco(numbers, file_name="{}.jpg", more=None) -> str:
    """A json of COCO; ids of categories are 7 and 3, and 9 is never used."""
    annotations = [
        {"id": 100 * n + place, "image_id": n, "category_id": {"cat": 7, "dog": 3}[name], "iscrowd": 0,
         "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
        for n in numbers for place, (name, box) in enumerate(boxes_of(n))
    ]  # fmt: skip
    return json.dumps(
        {
            "images": [{"id": n, "file_name": file_name.format(n), "width": WIDTH, "height": HEIGHT} for n in numbers],
            "annotations": annotations,
            "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 9, "name": "bird"}],
        }
        | (more or {})
    )


def yolo(boxes) -> str:
    """A label file of YOLO."""
    lines = [
        f"{NAMES.index(name)} {(a + c) / 2 / WIDTH} {(b + d) / 2 / HEIGHT} {(c - a) / WIDTH} {(d - b) / HEIGHT}"
        for name, (a, b, c, d) in boxes
    ]
    return "\n".join(lines) + "\n" * bool(lines)


SPLIT_OF = {**dict.fromkeys(range(8), "train"), **dict.fromkeys(range(8, 10), "val"), 10: "test", 11: "test"}


def write_voc2007(root: Path) -> str:
    for n in range(12):
        write(root / "JPEGImages" / f"{n}.jpg", image(n))
        write(root / "Annotations" / f"{n}.xml", xml(f"{n}.jpg", boxes_of(n)))
        write(root / "SegmentationClass" / f"{n}.png", image(n, form="PNG"))
    for split in ("train", "val", "test"):
        mine = [str(n) for n in range(12) if SPLIT_OF[n] == split]
        write(root / "ImageSets" / "Main" / f"{split}.txt", "\n".join(mine) + "\n")
        write(root / "ImageSets" / "Main" / f"cat_{split}.txt", "".join(f"{n} -1\n" for n in mine))
    write(root / "ImageSets" / "Main" / "trainval.txt", "".join(f"{n}\n" for n in range(10)))
    return f"voc:{root}"


def write_voc_beside(root: Path) -> str:
    for n in range(12):
        folder = root / {"val": "valid"}.get(SPLIT_OF[n], SPLIT_OF[n])
        write(folder / f"{n}.JPG", image(n))
        write(folder / f"{n}.xml", xml(f"C:\\photos\\{n}.jpg", boxes_of(n)))
    return f"voc:{root}"


def write_coco(root: Path) -> str:
    for split in ("train", "val", "test"):
        mine = [n for n in range(12) if SPLIT_OF[n] == split]
        write(root / "annotations" / f"instances_{split}2017.json", coco(mine))
        write(root / "annotations" / f"captions_{split}2017.json", "{}")
        for n in mine:
            write(root / f"{split}2017" / f"{n}.jpg", image(n))
    return f"coco:{root}"


def write_roboflow_coco(root: Path) -> str:
    for n in range(12):
        folder = root / {"val": "valid"}.get(SPLIT_OF[n], SPLIT_OF[n])
        write(folder / f"{n}.jpg", image(n))
        write(folder / "_annotations.coco.json", coco([m for m in range(12) if SPLIT_OF[m] == SPLIT_OF[n]]))
    return f"coco:{root}"


def write_csv(root: Path) -> str:
    lines = ["path,xmin,ymin,xmax,ymax,label,split"]
    for n in range(12):
        write(root / "images" / f"{n}.jpg", image(n))
        cells = [(*box, name) for name, box in boxes_of(n)] or [("",) * 5]
        lines += [",".join(map(str, (f"images/{n}.jpg", *cell, SPLIT_OF[n]))) for cell in cells]
    write(root / "table.csv", "\n".join(lines))
    return f"csv:{root / 'table.csv'}"


def write_tensorflow_csv(root: Path) -> str:
    lines = ["filename,width,height,class,xmin,ymin,xmax,ymax,split"]
    for n in range(12):
        write(root / f"{n}.jpg", image(n))
        cells = [(name, *box) for name, box in boxes_of(n)] or [("",) * 5]
        lines += [",".join(map(str, (f"{n}.jpg", WIDTH, HEIGHT, *cell, SPLIT_OF[n]))) for cell in cells]
    write(root / "table.csv", "\ufeff" + "\n".join(lines))
    return f"csv:{root / 'table.csv'}"


def write_yolo(root: Path) -> str:
    for n in range(12):
        write(root / "images" / SPLIT_OF[n] / f"{n}.jpg", image(n))
        write(root / "labels" / SPLIT_OF[n] / f"{n}.txt", yolo(boxes_of(n)))
    chosen = "".join(f"{split}: images/{split}\n" for split in ("train", "val", "test"))
    write(root / "data.yaml", f"path: ../datasets/mine\n{chosen}names:\n  0: cat\n  1: dog\n")
    return f"yolo:{root}"


def write_roboflow_yolo(root: Path) -> str:
    for n in range(12):
        folder = root / {"val": "valid"}.get(SPLIT_OF[n], SPLIT_OF[n])
        write(folder / "images" / f"{n}.jpg", image(n))
        write(folder / "labels" / f"{n}.txt", yolo(boxes_of(n)))
    chosen = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    write(root / "data.yaml", f"{chosen}nc: 2\nnames: ['cat', 'dog']\n")
    return f"yolo:{root}"


WRITERS = (write_voc2007, write_voc_beside, write_coco, write_roboflow_coco, write_csv, write_tensorflow_csv,
           write_yolo, write_roboflow_yolo)  # fmt: skip
READERS = {"voc": voc_rows, "coco": coco_rows, "csv": csv_rows, "yolo": yolo_rows}


def read(data: str):
    """Rows and what was noticed."""
    kind, _, path = data.partition(":")
    noticed = defaultdict(list)
    rows = READERS[kind](Path(path), noticed)
    return rows, {reason: places for reason, places in noticed.items() if places}


@pytest.mark.parametrize("write_set", WRITERS)
def test_every_format_gives_the_same_boxes(write_set, tmp_path):
    rows, noticed = read(write_set(tmp_path / "set"))
    assert sorted(int(Path(row.path).stem) for row in rows) == list(range(12))
    for row in rows:
        number = int(Path(row.path).stem)
        assert Path(row.path).read_bytes() == image(number)
        assert (row.split, row.problem) == (SPLIT_OF[number], "")
        pixels = row.boxes * ([WIDTH, HEIGHT] * 2 if row.relative else 1)
        assert row.boxes.dtype == np.float64 and row.boxes.shape == (len(boxes_of(number)), 4)
        np.testing.assert_allclose(pixels, np.reshape([box for _, box in boxes_of(number)], (-1, 4)), atol=1e-9)
        assert row.labels == tuple(name for name, _ in boxes_of(number))
        assert row.crowds == (False,) * len(row.labels)
        assert row.size in (None, (HEIGHT, WIDTH))
    assert set(noticed) <= {"categories without annotations, not used as classes"}


@pytest.mark.parametrize("write_set", WRITERS)
def test_the_kind_is_guessed(write_set, tmp_path):
    kind, _, path = write_set(tmp_path / "set").partition(":")
    assert guess_kind(Path(path)) == kind


# --- Pascal VOC -------------------------------------------------------------------------------------------


def test_voc_image_is_found_by_its_own_name_or_by_the_filename(tmp_path):
    write(tmp_path / "images" / "one.jpeg", image(1))
    write(tmp_path / "images" / "two.PNG", image(2))
    write(tmp_path / "xml" / "one.xml", xml("two.PNG", boxes_of(1)))  # renamed with its image: the inside is old
    write(tmp_path / "xml" / "0002.xml", xml("photos/two.jpg", boxes_of(2)))
    write(tmp_path / "xml" / "0003.xml", xml("three.jpg", boxes_of(0)))
    rows, noticed = read(f"voc:{tmp_path}")
    found = {Path(row.place).stem: Path(row.path).name for row in rows}
    assert found == {"one": "one.jpeg", "0002": "two.PNG", "0003": "0003.xml"}
    assert "has no image: none is named '0003' or 'three.jpg'" in [row.problem for row in rows]
    assert list(noticed.values()) == [["xml/one.xml"]]


def test_voc_takes_no_image_outside_the_folder(tmp_path):
    write(tmp_path / "secret.jpg", image(1))
    write(tmp_path / "set" / "a.xml", xml("../secret.jpg", boxes_of(1)))
    write(tmp_path / "set" / "b.xml", xml(str(tmp_path / "secret.jpg"), boxes_of(1)))
    rows, _ = read(f"voc:{tmp_path / 'set'}")
    assert all("has no image" in row.problem for row in rows)


def test_voc_images_of_one_name_in_two_splits_are_kept_apart(tmp_path):
    for split, n in (("train", 1), ("test", 2)):
        write(tmp_path / "images" / split / "a.jpg", image(n))
        write(tmp_path / "annotations" / split / "a.xml", xml("a.jpg", boxes_of(n)))
    rows, _ = read(f"voc:{tmp_path}")
    assert {row.split: Path(row.path).read_bytes() for row in rows} == {"train": image(1), "test": image(2)}
    write(tmp_path / "annotations" / "a.xml", xml("a.jpg", boxes_of(1)))
    rows, _ = read(f"voc:{tmp_path}")
    assert ["matches several images: 'images/test/a.jpg', 'images/train/a.jpg'"] == [
        row.problem for row in rows if row.problem
    ]


BOMB = (
    '<!DOCTYPE bomb [<!ENTITY a "haha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    "<annotation><filename>&b;</filename></annotation>"
)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (BOMB, "is refused: it declares entities"),
        ('<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>', "is refused"),
        ("<annotation><object>", "cannot be read as XML: no element found"),
        ("", "cannot be read as XML"),
        ('<?xml version="1.0" encoding="no-such"?><annotation/>', "cannot be read as XML"),
        ("<annotations><image/></annotations>", "is not a Pascal VOC annotation: it begins with <annotations>"),
        (" " * (20 * 2**20 + 1), "is larger than 20 MB"),
    ],
)  # fmt: skip
def test_voc_xml_that_cannot_be_read_is_reported(content, problem, tmp_path):
    write(tmp_path / "1.jpg", image(1))
    write(tmp_path / "1.xml", content)
    (row,), _ = read(f"voc:{tmp_path}")
    assert problem in row.problem and row.path.endswith("1.xml")


def test_voc_objects_with_odd_numbers_and_without_boxes(tmp_path):
    write(tmp_path / "1.jpg", image(1))
    boxes = [("cat", ("1.5", " 2 ", "1e1", "nan")), ("dog", ("a", "", "3", "4"))]
    inner = "<object><name>tree</name><polygon/><part><bndbox><xmin>1</xmin></bndbox></part></object></annotation>"
    write(tmp_path / "1.xml", xml("1.jpg", boxes, size=(0, 0)).replace("</annotation>", inner))
    (row,), _ = read(f"voc:{tmp_path}")
    expected = [[1.5, 2, 10, np.nan], [np.nan, np.nan, 3, 4], [np.nan] * 4]
    np.testing.assert_array_equal(row.boxes, expected)
    assert row.labels == ("cat", "dog", "tree") and row.size is None  # 0 x 0 is what some tools write for unknown


def test_voc_difficult_objects_are_set_aside(tmp_path):
    write(tmp_path / "1.jpg", image(1))
    write(tmp_path / "1.xml", xml("1.jpg", boxes_of(0), more="<difficult>1</difficult>"))
    (row,), noticed = read(f"voc:{tmp_path}")
    assert row.crowds == (True, True)
    assert noticed == {"objects marked difficult, ignored like crowds": ["1.xml, object 1", "1.xml, object 2"]}


def test_voc_images_without_xml_are_no_examples_and_xml_without_objects_are(tmp_path):
    write(tmp_path / "1.jpg", image(1))
    write(tmp_path / "2.jpg", image(2))
    write(tmp_path / "1.xml", xml("1.jpg", []))
    rows, _ = read(f"voc:{tmp_path}")
    assert {Path(row.path).name: row.problem[:18] for row in rows} == {"1.jpg": "", "2.jpg": "has no annotation:"}
    assert "give it an XML file without objects" in rows[1].problem


def test_voc_lists_right_in_the_folder_with_endings_and_gaps(tmp_path):
    for n in range(4):
        write(tmp_path / "images" / f"{n}.jpg", image(n))
        write(tmp_path / "annotations" / f"{n}.xml", xml(f"{n}.jpg", boxes_of(n)))
    write(tmp_path / "train.txt", "0.jpg\r\n1\r\n\r\n77\r\n")
    write(tmp_path / "val.txt", "images/2.jpg\n")
    rows, noticed = read(f"voc:{tmp_path}")
    assert {Path(row.path).stem: row.split for row in rows} == {"0": "train", "1": "train", "2": "val"}
    assert noticed == {
        "XML files in no list of a split, skipped": ["annotations/3.xml"],
        "names in the list of a split without an XML file, skipped": ["77"],
    }
    write(tmp_path / "val.txt", "1\n")
    with pytest.raises(UserError, match="'1' is in the lists of train and of val"):
        read(f"voc:{tmp_path}")


def test_voc_trainval_alone_is_for_training(tmp_path):
    data = write_voc2007(tmp_path / "set")
    for split in ("train", "val"):
        (tmp_path / "set" / "ImageSets" / "Main" / f"{split}.txt").unlink()
    rows, _ = read(data)
    assert {row.split for row in rows} == {"train", "test"} and sum(row.split == "train" for row in rows) == 10


def test_voc_folders_that_hold_none(tmp_path):
    with pytest.raises(UserError, match=r"holds no .xml file. Required: .*Try: --data coco:"):
        read(f"voc:{write_coco(tmp_path / 'set').partition(':')[2]}")
    with pytest.raises(UserError, match=r"voc: needs a folder. Received a file: .*Try: --data csv:"):
        read(f"voc:{write(tmp_path / 'table.csv', 'path')}")


# --- COCO -------------------------------------------------------------------------------------------------


def test_coco_file_beside_its_images_and_in_annotations(tmp_path):
    for n in range(4):
        write(tmp_path / "images" / f"{n}.jpg", image(n))
    for place in (tmp_path / "images" / "all.json", tmp_path / "annotations" / "all.json"):
        rows, noticed = read(f"coco:{write(place, coco(range(4)))}")
        assert [Path(row.path).read_bytes() for row in rows] == [image(n) for n in range(4)]
        assert {row.split for row in rows} == {None} and not rows[3].labels
        assert noticed == {"categories without annotations, not used as classes": ["all.json, 'bird'"]}


def test_coco_crowds_are_flagged(tmp_path):
    content = json.loads(coco([0]))
    content["annotations"][1]["iscrowd"] = 1
    (row,), _ = read(f"coco:{write(tmp_path / 'a.json', json.dumps(content))}")
    assert row.crowds == (False, True)


def test_coco_paths_stay_in_the_folder(tmp_path):
    write(tmp_path / "0.jpg", image(0))
    for name in ("../0.jpg", str(tmp_path / "0.jpg"), "C:\\\\photos\\\\0.jpg"):
        path = write(tmp_path / "set" / "a.json", coco([0], file_name=name))
        (row,), _ = read(f"coco:{path}")
        assert Path(row.path) == tmp_path / "set" / "0.jpg"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"].append(c["images"][0]), r"1 image id\(s\) are duplicate: 0"),
        (lambda c: c["annotations"].append(dict(c["annotations"][1])), r"1 annotation id\(s\) are duplicate: 1\."),
        (lambda c: c["categories"].append({"id": 7, "name": "cow"}), r"1 category id\(s\) are duplicate: 7"),
        (lambda c: c["images"][0].pop("id"), r"the image \{.*\} has no id"),
        (lambda c: c["images"][0].update(id=[1]), r"has no id"),
        (lambda c: c.pop("annotations"), r"not a COCO file of boxes. Required: .*Found: 'images', 'categories'"),
        (lambda c: c.update(images={}), r"not a COCO file of boxes"),
        (lambda c: c.update(images=[3]), r"not a COCO file of boxes"),
    ],
)
def test_coco_files_that_cannot_work(change, message, tmp_path):
    content = json.loads(coco([0, 1]))
    change(content)
    with pytest.raises(UserError, match=message):
        read(f"coco:{write(tmp_path / 'a.json', json.dumps(content))}")


@pytest.mark.parametrize("content", ["{", "[" * 100_000, b"\xff\xfe", "[]"])
def test_coco_files_that_are_no_json(content, tmp_path):
    with pytest.raises(UserError, match=r"cannot be read as JSON|not a COCO file of boxes. .*Found: list"):
        read(f"coco:{write(tmp_path / 'a.json', content)}")


def test_coco_annotations_that_belong_nowhere(tmp_path):
    content = json.loads(coco([0]))
    content["annotations"] += [
        {"image_id": 55, "category_id": 7, "bbox": [0, 0, 1, 1]},
        {"image_id": [0], "category_id": 7, "bbox": [0, 0, 1, 1]},
        {"image_id": 0, "category_id": 1234, "bbox": [0, 0, 1, 1]},
        {"image_id": 0, "category_id": {}, "bbox": "1 2 3 4"},
        {"image_id": 0, "category_id": 7, "bbox": [0, None, 10**400, "5"]},
    ]
    (row,), noticed = read(f"coco:{write(tmp_path / 'a.json', json.dumps(content))}")
    assert row.labels == ("cat", "dog", "", "", "cat")
    assert np.isnan(row.boxes[3]).all() and np.isnan(row.boxes[4][1:3]).all()
    assert noticed["annotations of unlisted images, skipped"] == [
        "a.json, image 55",
        "a.json, image [0]",
    ]


def test_coco_folder_with_several_files_for_a_split(tmp_path):
    write(tmp_path / "train_a.json", coco([0]))
    write(tmp_path / "train_b.json", coco([1]))
    with pytest.raises(UserError, match=r"one JSON file per split.*'train_a.json', 'train_b.json'.*coco:FILE.json"):
        read(f"coco:{tmp_path}")
    (tmp_path / "train_b.json").rename(tmp_path / "other.json")
    rows, noticed = read(f"coco:{tmp_path}")
    assert [row.split for row in rows] == ["train"]
    assert noticed["JSON files without a split in their names, beside others with one, skipped"] == ["other.json"]
    with pytest.raises(UserError, match=r"Found: none. .*Try: --data voc:"):
        read(f"coco:{write_voc_beside(tmp_path / 'voc').partition(':')[2]}")


# --- a table ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "lacks path, label, xmin, ymin, xmax, ymax. .*Found: an empty file"),
        (["path,x1,y1,xmax,ymax,label", "a.jpg,1,2,3,4,cat"], "lacks xmin, ymin. .*Found: path, x1, y1, xmax"),
        (["path;xmin;ymin"], "Found: path;xmin;ymin"),
        (["path,path,xmin,ymin,xmax,ymax,label"], "several columns 'path'"),
        (["path,xmin,ymin,xmax,ymax,label", "a, b.jpg,1,2,3,4,cat"], "line 2: 6 cells.*the last is 'cat'. Quote"),
        (["path,xmin,ymin,xmax,ymax,label,split", "a.jpg,1,2,3,4,cat,fold1"], "unknown split 'fold1' of 'a.jpg'"),
        (["path,xmin,ymin,xmax,ymax,label,split", "a.jpg,1,2,3,4,cat,train", "a.jpg,1,2,3,4,cat,test"],
         "lines of 'a.jpg' are in several splits: 'test', 'train'"),
        (["path,xmin,ymin,xmax,ymax,label,split", "a.jpg,1,2,3,4,cat,train", "b.jpg,1,2,3,4,cat,"],
         "some lines have a split and others none"),
    ],
)  # fmt: skip
def test_tables_that_cannot_work(lines, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read(f"csv:{write(tmp_path / 'table.csv', chr(10).join(lines))}")


def test_table_lines_that_are_odd(tmp_path):
    lines = ["Path, XMin,ymin,xmax,ymax,label,width,height", "a.jpg,1,2,x,,cat,40,30", "a.jpg,1,2,3,4,,40,30",
             "a.jpg,,,,,cat,40,30", "b.jpg,,,,,,40,30", ",1,2,3,4,cat,40,30", "c.jpg,1,2,3,4,cat,40,30",
             "c.jpg,1,2,3,4,cat,30,40", "d.jpg"]  # fmt: skip
    rows, _ = read(f"csv:{write(tmp_path / 'table.csv', chr(10).join(lines))}")
    a, b, nothing, c, d = rows
    np.testing.assert_array_equal(a.boxes, [[1, 2, np.nan, np.nan], [1, 2, 3, 4], [np.nan] * 4])
    assert a.labels == ("cat", "", "cat") and a.size == (30, 40) and a.place == "table.csv:2"
    assert (b.labels, b.problem, d.labels, d.problem) == ((), "", (), "")
    assert nothing.problem == "has no path" and "has lines with different sizes" in c.problem


# --- YOLO -------------------------------------------------------------------------------------------------


def yolo_set(root: Path, label: str, yaml: str = "names: [cat, dog]") -> str:
    write(root / "images" / "1.jpg", image(1))
    write(root / "labels" / "1.txt", label)
    write(root / "data.yaml", yaml)
    return f"yolo:{root}"


def test_yolo_polygons_become_boxes_and_are_counted(tmp_path):
    (row,), noticed = read(yolo_set(tmp_path, "1 0.2 0.3 0.4 0.1 0.6 0.5\n0 0.5 0.5 0.2 0.2\n"))
    np.testing.assert_allclose(row.boxes, [[0.2, 0.1, 0.6, 0.5], [0.4, 0.4, 0.6, 0.6]])
    assert row.labels == ("dog", "cat") and row.relative
    assert noticed == {"polygons, converted to their bounding boxes": ["labels/1.txt:1"]}


def test_yolo_keypoints_are_no_polygons(tmp_path):
    (row,), noticed = read(yolo_set(tmp_path, "0 0.5 0.5 0.2 0.2 0.1 0.1 0.9 0.9", "names: [cat]\nkpt_shape: [2, 2]"))
    np.testing.assert_allclose(row.boxes, [[0.4, 0.4, 0.6, 0.6]])
    assert not noticed


def test_yolo_lines_that_are_odd(tmp_path):
    (row,), _ = read(yolo_set(tmp_path, "5 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2\n0 a 0.5 0.2 0.2\ncat 0.5 0.5 0.2 0.2\n"
                                        "0 0.5 0.5 0.2 0.2 0.9\n\n0 0.1 nan 0.2 0.3 0.3 0.4\n"))  # fmt: skip
    assert row.labels == ("", "cat", "cat", "", "cat", "cat")
    assert np.isfinite(row.boxes).all(axis=1).tolist() == [True, False, False, True, False, False]


def test_yolo_images_without_label_file_and_label_files_without_image(tmp_path):
    data = yolo_set(tmp_path, "")
    write(tmp_path / "images" / "2.png", image(2))
    write(tmp_path / "labels" / "3.txt", yolo(boxes_of(3)))
    write(tmp_path / "README.txt", "no label file")
    (empty, lonely), noticed = read(data)
    assert (empty.labels, empty.problem) == ((), "")
    assert "has no annotation" in lonely.problem and "give it an empty text file" in lonely.problem
    assert noticed == {"label files without an image, skipped": ["labels/3.txt"]}


def test_yolo_lists_of_images_give_the_splits(tmp_path):
    data = write_yolo(tmp_path / "set")
    yaml = "names: [cat, dog]\ntrain: train.txt\nval: [val.txt]\ntest:\n"
    write(tmp_path / "set" / "data.yaml", yaml)
    write(tmp_path / "set" / "train.txt", "./images/train/0.jpg\n/content/set/images/train/1.jpg\n")
    write(tmp_path / "set" / "val.txt", "set/images/val/8.jpg\n")
    rows, noticed = read(data)
    assert {Path(row.path).stem: row.split for row in rows} == {"0": "train", "1": "train", "8": "val"}
    assert len(noticed["images in no split of data.yaml, skipped"]) == 9 and len(noticed) == 1
    write(tmp_path / "set" / "val.txt", "C:\\set\\images\\val\\8.jpg\n")  # written on Windows
    assert {Path(row.path).stem: row.split for row in read(data)[0]} == {"0": "train", "1": "train", "8": "val"}
    write(tmp_path / "set" / "val.txt", "images/val/eight.jpg\n")
    with pytest.raises(UserError, match=r"val.txt, the list of val in data.yaml, lists no image.*eight.jpg"):
        read(data)
    write(tmp_path / "set" / "val.txt", "images/train/0.jpg\n")
    with pytest.raises(UserError, match=r"puts images/train/0.jpg into train and into val"):
        read(data)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("nc: 2", "data.yaml has no names. .*Found: 'nc'"),
        ("- cat", "has no names.*Found: list"),
        ("names: {cat: 0}", "has no names"),
        ("names: [[cat]]", "has no names"),
        ("a: [", "data.yaml cannot be read"),
        ("!!python/object/apply:os.system ['true']", "data.yaml cannot be read"),
    ],
)
def test_yolo_settings_that_cannot_be_read(yaml, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read(yolo_set(tmp_path, "", yaml))


def test_yolo_without_settings(tmp_path):
    with pytest.raises(UserError, match=r"has no data.yaml .*names: \[cat, dog\]. Found: .*Try: --data voc:"):
        read(f"yolo:{write_voc_beside(tmp_path / 'set').partition(':')[2]}")


# --- TensorFlow Datasets ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tfds(tmp_path_factory):
    """TensorFlow Datasets with data sets of its own, prepared in a folder and without a network."""
    tensorflow_datasets = pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is not installed")
    core, kinds = tensorflow_datasets.core, tensorflow_datasets.features
    label = kinds.ClassLabel(names=list(NAMES))

    class WithBoxes(core.GeneratorBasedBuilder):
        VERSION, SPLITS = core.Version("1.0.0"), ("train", "test", "unlabelled", "validation")
        OBJECTS = kinds.Sequence({"bbox": kinds.BBoxFeature(), "label": label, "is_crowd": np.bool_})

        def _info(self):
            features = {"image": kinds.Image(encoding_format="jpeg"), "objects": self.OBJECTS}
            return core.DatasetInfo(builder=self, features=kinds.FeaturesDict(features))

        def _split_generators(self, _):
            return {split: self._generate_examples(4 * place) for place, split in enumerate(self.SPLITS)}

        def _generate_examples(self, first):
            for n in range(first, first + 4):
                objects = [
                    {
                        "bbox": kinds.BBox(b / HEIGHT, a / WIDTH, d / HEIGHT, c / WIDTH),
                        "label": name,
                        "is_crowd": n == 0,
                    }
                    for name, (a, b, c, d) in (boxes_of(n) if n < 12 else ())  # the last split keeps them to itself
                ]
                yield n, {"image": io.BytesIO(image(n)), "objects": objects}

    # The classes register themselves under these names.
    type("TinyBoxes", (WithBoxes,), {})
    type("OddBoxes", (WithBoxes,), {"SPLITS": ("part_a", "part_b")})
    words = {"bbox": kinds.BBoxFeature(), "label": kinds.Text(), "is_crowd": np.bool_}
    type("WordyBoxes", (WithBoxes,), {"OBJECTS": kinds.Sequence(words)})
    patch = pytest.MonkeyPatch()
    patch.setattr(core.constants, "DATA_DIR", str(tmp_path_factory.mktemp("tfds")))
    yield
    patch.undo()


def test_tfds(tfds, tmp_path):
    rows = tfds_rows("tiny_boxes", tmp_path, noticed := defaultdict(list))
    found = {Path(row.path).read_bytes(): row for row in rows}
    assert {row.split for row in rows} == {"train", "test"} and len(found) == 8
    for n in range(8):
        row = found[image(n)]  # the very bytes of the file
        assert row.labels == tuple(name for name, _ in boxes_of(n)) and row.split == ("train", "test")[n // 4]
        expected = np.reshape([box for _, box in boxes_of(n)], (-1, 4))
        np.testing.assert_allclose(row.boxes * ([WIDTH, HEIGHT] * 2), expected, atol=1e-4)
        assert row.crowds == (n == 0,) * len(expected) and row.relative and Path(row.path).is_relative_to(tmp_path)
    assert noticed == {"splits without any box, skipped": ["validation"]}


def test_tfds_sets_that_cannot_work(tfds, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no split named train, validation or test. Received: \['part_a'"):
        tfds_rows("odd_boxes", tmp_path, defaultdict(list))
    with pytest.raises(UserError, match="needs an image and a list of bbox"):
        tfds_rows("wordy_boxes", tmp_path, defaultdict(list))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match="pip install tensorflow-datasets"):
        tfds_rows("coco", tmp_path, defaultdict(list))


# --- the demo ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"))


def test_demo_scenes_are_what_they_promise(scenes):
    for split, count in SCENES.items():
        mine = [scene for scene in scenes if scene.split == split]
        assert len(mine) == count and sum(not scene.labels for scene in mine) == count / 10
    for scene in scenes:
        sides = scene.boxes[:, 2:] - scene.boxes[:, :2]
        assert len(scene.labels) == len(scene.boxes) <= 6 and (sides >= 5).all() and (sides <= 60).all()
        assert (scene.boxes >= 0).all() and (scene.boxes <= SIDE).all()
        for place, box in enumerate(scene.boxes):
            for other in scene.boxes[:place]:
                shared = (np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])).clip(0).prod()
                union = (box[2:] - box[:2]).prod() + (other[2:] - other[:2]).prod() - shared
                assert shared / union < 0.1
    with Image.open(scenes[0].path) as image:
        assert image.size == (SIDE, SIDE) and image.mode == "RGB"
    assert {label for scene in scenes for label in scene.labels} == set("0123456789")


def test_demo_is_the_same_every_time_and_repairs_itself(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr("common.detection.demo_scenes.SCENES", {"train": 12, "val": 3, "test": 2})
    rows = scene_rows(tmp_path)
    by_name = {(scene.split, Path(scene.path).name): scene for scene in scenes}
    for row in rows:
        scene = by_name[row.split, Path(row.path).name]
        assert Path(row.path).read_bytes() == Path(scene.path).read_bytes()
        np.testing.assert_array_equal(row.boxes, scene.boxes)
        assert row.labels == scene.labels
    Path(rows[0].path).unlink()
    Path(rows[0].path + ".partial").write_bytes(b"a run was killed here")
    assert [row.path for row in scene_rows(tmp_path)] == [row.path for row in rows]
    assert Path(rows[0].path).read_bytes() == Path(by_name["train", "0000.jpg"].path).read_bytes()


def test_demo_digits_are_used_in_one_split_only(tmp_path, monkeypatch):
    used = defaultdict(set)

    def remember(rng, glyphs):
        used[len(order)] |= {glyph.tobytes() for glyph in glyphs}
        order.append(1)
        return np.zeros((SIDE, SIDE, 3), np.uint8), np.zeros((0, 4)), []

    order: list[int] = []
    monkeypatch.setattr("common.detection.demo_scenes.draw_scene", remember)
    write_scenes(tmp_path)
    ends = np.cumsum(list(SCENES.values()))
    chosen = [
        set().union(*(used[i] for i in range(end - count, end)))
        for end, count in zip(ends, SCENES.values(), strict=True)
    ]
    assert all(len(split) > 50 for split in chosen)
    assert not chosen[0] & chosen[1] and not chosen[0] & chosen[2] and not chosen[1] & chosen[2]
