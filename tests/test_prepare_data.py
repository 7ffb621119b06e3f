"""prepare_data: bytes arrive unchanged, results are whole or absent, and errors say what to do."""

import csv
import gzip
import importlib.util
import io
import itertools
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from common.freezing import layers_of
from common.images.sources import load_source

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "prepare_data.py"
specification = importlib.util.spec_from_file_location("prepare_data", SCRIPT)
prepare_data = importlib.util.module_from_spec(specification)
specification.loader.exec_module(prepare_data)

JPEGS = [b"\xff\xd8first", b"\xff\xd8\x00second\n", b"\xff\xd83"]
LABELS = [1, 0, 1]


def write_npz(path: Path, labels: list[int] = LABELS, shift: int = 0, **more) -> None:
    """Pack JPEGS as the shared data do; `shift` moves the last offset away from the end, `more` are further arrays."""
    offsets = np.cumsum([0, *map(len, JPEGS)])
    offsets[-1] += shift
    jpeg = np.frombuffer(b"".join(JPEGS), np.uint8)
    np.savez(path, jpeg=jpeg, offsets=offsets, labels=np.array(labels, np.int16), **more)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    """Write a tar whose member names are taken as they are, escaping ones too."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def idx(values: np.ndarray) -> bytes:
    """Encode bytes as a gzipped idx file."""
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    return gzip.compress(header + values.tobytes())


def pgm(pixels: np.ndarray) -> bytes:
    """Encode a grey picture as binary PGM."""
    height, width = pixels.shape
    return f"P5\n{width} {height}\n255\n".encode() + pixels.tobytes()


def grey(*shape: int) -> np.ndarray:
    """Random bytes, the same in every run."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A tiny raw folder of every data set."""
    root = tmp_path / "shared"
    for name in prepare_data.DATA:
        (root / name).mkdir(parents=True)
    for split in ("train", "test"):
        write_npz(root / "cifar10_subset" / f"{split}.npz")
    (root / "cifar10_subset" / "classes.txt").write_text("cat\ndog\n")
    for part in ("train/ants", "train/bees", "val/ants", "val/bees"):
        (root / "hymenoptera_data" / part).mkdir(parents=True)
        (root / "hymenoptera_data" / part / "1.jpg").write_bytes(part.encode())
    digits = root / "digits_da"
    (digits / "mnist_t10k-images-idx3-ubyte.gz").write_bytes(idx(grey(5, 28, 28)))
    (digits / "mnist_t10k-labels-idx1-ubyte.gz").write_bytes(idx(np.array([7, 2, 1, 0, 4], np.uint8)))
    with h5py.File(digits / "usps.h5", "w") as file:
        for split, labels in (("train", [3, 9]), ("test", [0])):
            file[f"{split}/data"] = grey(len(labels), 256).astype(np.float32) / 255
            file[f"{split}/target"] = np.array(labels, np.int32)
    faces = {"s01/1.pgm": pgm(grey(6, 5)), "s02/10.pgm": pgm(grey(6, 5))}
    write_tar(root / "orl_faces" / "orl_faces.tar", faces)
    clothes = root / "clothing10_96"
    (clothes / "images").mkdir()
    (clothes / "images.csv").write_text(
        "file,split,class,sender_id,kids\na.jpg,train,hat,7,False\nb.jpg,val,skirt,8,True\n"
    )
    pets = {"images/Bengal_1.jpg": b"one", "trimaps/Bengal_1.png": b"mask", "images/pug_2.jpg": b"two"}
    for name in ("a.jpg", "b.jpg"):
        (clothes / "images" / name).write_bytes(name.encode())
    write_tar(root / "pets_seg160" / "pets.tar", pets)
    (root / "pets_seg160" / "images.csv").write_text("id,split,breed\nBengal_1,train,Bengal\npug_2,test,pug\n")
    write_npz(root / "fashion_attributes" / "images.npz", ids=[10, 20, 30])
    (root / "fashion_attributes" / "labels.csv").write_text(
        "id,split,articleType\n10,train,Flip Flops\n20,val,Tops\n30,test,Tops\n"
    )
    for split in ("train", "val"):
        write_npz(root / "pretrain" / "pictures" / f"{split}.npz", labels=[1, 0, 2])
    (root / "pretrain" / "pictures" / "classes.txt").write_text("0\tpets/dog\n1\tgrocery/milk\n2\tclothing/hat\n")
    sentences = [{"text": "not bad", "source": "goemotions"}, {"text": "very good", "source": "wiki_split"}]
    (root / "pretrain" / "texts" / "train.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps(one) + "\n" for one in sentences).encode())
    )
    clips = [
        ("ljspeech/a", "LJ", "One."),
        ("speech_commands/yes_b", "sc1", "yes"),
        ("common_voice_other/c", "cv-pl", ""),
    ]
    clips += [(f"speechocean762/{number}", f"so{number}", f"words {number}") for number in range(80)]
    write_tar(root / "pretrain" / "speech" / "audio.tar", {f"{name}.ogg": name.encode() for name, *_ in clips})
    rows = [f"{name}.ogg,{name.partition('/')[0]},{speaker},1.0,{text}" for name, speaker, text in clips]
    (root / "pretrain" / "speech" / "clips.csv").write_text("\n".join(["file,source,speaker,seconds,text", *rows]))
    write_tar(root / "speech_commands_v2_subset" / "audio.tar", {"yes/1.flac": b"yes"})
    (root / "speech_commands_v2_subset" / "clips.csv").write_text("file,split,class\nyes/1.flac,train,yes\n")
    for file in ("resnet20-12fca82f.npz", "resnet56-4bfd9763.npz"):
        np.savez(root / "weights" / "resnet_cifar10" / file, **tiny_resnet())
    return root


def tiny_resnet() -> dict[str, np.ndarray]:
    """The PyTorch state of a network of one block a stack."""
    arrays, rng = {"linear.weight": np.zeros((10, 64)), "linear.bias": np.zeros(10)}, np.random.default_rng(0)

    def add(kernel: str, norm: str, inputs: int, filters: int) -> None:
        arrays[f"{kernel}.weight"] = rng.normal(0, 0.1, (filters, inputs, 3, 3)).astype("float32")
        for leaf, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            arrays[f"{norm}.{leaf}"] = np.full(filters, value, "float32")
        arrays[f"{norm}.num_batches_tracked"] = np.array(1)

    add("conv1", "bn1", 3, 16)
    for stack, (inputs, filters) in enumerate(((16, 16), (16, 32), (32, 64)), start=1):
        add(f"layer{stack}.0.conv1", f"layer{stack}.0.bn1", inputs, filters)
        add(f"layer{stack}.0.conv2", f"layer{stack}.0.bn2", filters, filters)
    return arrays


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A result folder; MNIST is cut after 3 of the 5 synthetic images."""
    monkeypatch.setattr(prepare_data, "MNIST_TRAIN", 3)
    return tmp_path / "prepared"


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its content."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def refusal(*names: str, shared: Path, out: Path) -> str:
    """The text of the error that ends the run, which must have all four parts."""
    with pytest.raises(SystemExit) as caught:
        prepare_data.main(names, shared, out)
    text = str(caught.value)
    assert [line.split(":")[0].strip() for line in text.splitlines()] == [
        "error",
        "allowed",
        "received",
        "next",
    ]
    return text


def test_all_data_sets_say_one_line_each(shared: Path, out: Path, capsys: pytest.CaptureFixture) -> None:
    prepare_data.main(shared=shared, out=out)
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"[\d.]+ MB", "? MB", line.rpartition(";")[0]) for line in lines] == [
        "cifar10_subset: test 3, train 3; 2 classes",
        "hymenoptera_data: train 2, val 2; 2 classes",
        "mnist: test 2, train 3; 5 classes",
        "usps: test 1, train 2; 3 classes",
        "orl_faces: all 2; 2 classes",
        "clothing10_96: train 1, val 1; 2 classes",
        "pets_seg160: test 1, train 1; 2 classes",
        "fashion_attributes: test 1, train 1, val 1; 2 classes",
        "pretrain_pictures: test 2, train 2; 2 classes",
        "pretrain_pictures_strict: test 1, train 1; 1 classes",
        "pretrain_texts_strict: texts of ? MB",
        "pretrain_speech: sounds of ? MB",
        "speech_commands_v2_subset: sounds of ? MB",
        "resnet20_cifar10: SavedModel of ? MB",
        "resnet56_cifar10: SavedModel of ? MB",
    ]
    assert all(line.endswith(" s") for line in lines)
    assert not list(out.glob("*.partial"))


def test_jpegs_keep_their_bytes_and_index(shared: Path, out: Path) -> None:
    prepare_data.main(("cifar10_subset",), shared, out)
    expected = {f"{('cat', 'dog')[label]}/{index}.jpg": JPEGS[index] for index, label in enumerate(LABELS)}
    assert files(out / "cifar10_subset" / "train") == files(out / "cifar10_subset" / "test") == expected


def test_pretraining_leaves_sources_out(shared: Path, out: Path) -> None:
    prepare_data.main(("pretrain/pictures", "pretrain/texts"), shared, out)
    some = {f"{split}/grocery_milk/0.jpg": JPEGS[0] for split in ("train", "test")}
    assert files(out / "pretrain_pictures_strict") == some
    more = {f"{split}/pets_dog/1.jpg": JPEGS[1] for split in ("train", "test")}
    assert files(out / "pretrain_pictures") == some | more
    kept = gzip.decompress((out / "pretrain_texts_strict" / "train.jsonl.gz").read_bytes()).decode().splitlines()
    assert [json.loads(line)["text"] for line in kept] == ["very good"]


def test_the_words_of_a_demo_are_there_without_their_text(shared: Path, out: Path) -> None:
    prepare_data.main(("pretrain/speech",), shared, out)
    tables = {}
    for name in ("sounds", "transcripts"):
        with open(out / "pretrain_speech" / f"{name}.csv", newline="", encoding="utf-8") as file:
            tables[name] = list(csv.DictReader(file))
    sounds, transcripts = tables["sounds"], tables["transcripts"]
    assert len(sounds) == 83 and not any(row["text"] for row in sounds)
    assert len(transcripts) == 81 and all(row["text"] and "yes" not in row["path"] for row in transcripts)
    held_out = [{row["speaker"] for row in rows if row["split"] == "test"} for rows in (sounds, transcripts)]
    assert held_out[0] == held_out[1]  # the first stage of training has not heard them either
    for rows in (sounds, transcripts):
        speakers = {split: {row["speaker"] for row in rows if row["split"] == split} for split in ("train", "test")}
        assert len(speakers["test"]) == 2 and not speakers["test"] & speakers["train"] and "LJ" in speakers["train"]
        assert all((out / "pretrain_speech" / row["path"]).is_file() for row in rows)


def test_hymenoptera_is_a_copy_that_can_be_deleted(shared: Path, out: Path) -> None:
    (shared / "hymenoptera_data" / "train" / "ants").chmod(0o555)  # as the shared folder is
    prepare_data.main(("hymenoptera_data",), shared, out)
    assert files(out / "hymenoptera_data") == files(shared / "hymenoptera_data")
    assert (out / "hymenoptera_data" / "train" / "ants").stat().st_mode & 0o200


def test_digits_and_faces_keep_every_grey_value(shared: Path, out: Path) -> None:
    prepare_data.main(("digits_da", "orl_faces"), shared, out)
    names = ["train/7/0.png", "train/2/1.png", "train/1/2.png", "test/0/3.png", "test/4/4.png"]
    assert sorted(files(out / "mnist")) == sorted(names)
    for name, pixels in zip(names, grey(5, 28, 28), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(out / "mnist" / name)), pixels)
    for name, pixels in zip(("train/3/0.png", "train/9/1.png"), grey(2, 16, 16), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(out / "usps" / name)), pixels)
    assert sorted(files(out / "orl_faces")) == ["s01/1.png", "s02/10.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(out / "orl_faces" / "s01" / "1.png")), grey(6, 5))


def test_a_finished_one_is_left_alone_even_without_raw_data(
    shared: Path, out: Path, capsys: pytest.CaptureFixture
) -> None:
    prepare_data.main(("cifar10_subset",), shared, out)
    mine = out / "cifar10_subset" / "train" / "cat" / "mine.jpg"
    mine.write_bytes(b"mine")
    before = files(out)
    prepare_data.main(("cifar10_subset",), shared / "gone", out)
    assert files(out) == before
    expected = "cifar10_subset: test 3, train 4; 2 classes; already there, left alone"
    assert capsys.readouterr().out.splitlines()[-1] == expected


def test_what_a_killed_run_left_is_repaired(shared: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(raw: Path, target: Path) -> None:
        (target / "train" / "cat").mkdir(parents=True)
        (target / "train" / "cat" / "999.jpg").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(prepare_data.DATA, "cifar10_subset", {"cifar10_subset": killed})
        with pytest.raises(KeyboardInterrupt):
            prepare_data.main(("cifar10_subset",), shared, out)
    assert [path.name for path in out.iterdir()] == ["cifar10_subset.partial"]
    prepare_data.main(("cifar10_subset",), shared, out)
    assert [path.name for path in out.iterdir()] == ["cifar10_subset"]
    assert len(files(out)) == 6 and "cifar10_subset/train/cat/999.jpg" not in files(out)


def test_a_tar_path_that_escapes_is_refused(shared: Path, out: Path) -> None:
    write_tar(shared / "orl_faces" / "orl_faces.tar", {"../../escaped.jpg": b"evil"})
    text = refusal("orl_faces", shared=shared, out=out)
    assert "OutsideDestinationError" in text and "escaped.jpg" in text
    assert not list(out.parent.rglob("escaped.jpg")) and not (out / "orl_faces").exists()


def test_a_link_in_a_tar_is_refused(shared: Path, out: Path) -> None:
    with tarfile.open(shared / "orl_faces" / "orl_faces.tar", "w") as tar:
        link = tarfile.TarInfo("s01/1.pgm")
        link.type, link.linkname = tarfile.SYMTYPE, "2.pgm"
        tar.addfile(link)
    assert "'s01/1.pgm', which is neither a file nor a folder" in refusal("orl_faces", shared=shared, out=out)


@pytest.mark.parametrize("class_name", ["..", "../../cat", "", "a\\b"])
def test_a_class_name_that_escapes_is_refused(shared: Path, out: Path, class_name: str) -> None:
    (shared / "cifar10_subset" / "classes.txt").write_text(f"{class_name}\ndog\n")
    text = refusal("cifar10_subset", shared=shared, out=out)
    assert f"a class name must be a plain folder name, not {class_name!r}" in text
    assert not list(out.rglob("*.jpg"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 1, -1]}, "all in 0..1"),
        ({"labels": [0, 1, 2]}, "all in 0..1"),
        ({"labels": [0, 1]}, "into 2 pictures"),
        ({"shift": -1}, "do not cut"),
        ({"shift": 1}, "do not cut"),
    ],
)
def test_an_npz_that_does_not_fit_is_refused(shared: Path, out: Path, change: dict, message: str) -> None:
    write_npz(shared / "cifar10_subset" / "test.npz", **change)
    assert message in refusal("cifar10_subset", shared=shared, out=out)
    assert not (out / "cifar10_subset").exists()


def test_tables_decide_splits_and_classes(shared: Path, out: Path) -> None:
    prepare_data.main(("clothing10_96", "pets_seg160", "fashion_attributes"), shared, out)
    assert files(out / "clothing10_96") == {"train/hat/sender_7_a.jpg": b"a.jpg", "val/skirt/sender_8_b.jpg": b"b.jpg"}
    assert files(out / "pets_seg160") == {"train/Bengal/Bengal_1.jpg": b"one", "test/pug/pug_2.jpg": b"two"}
    assert files(out / "fashion_attributes") == {
        "train/Flip Flops/10.jpg": JPEGS[0], "val/Tops/20.jpg": JPEGS[1], "test/Tops/30.jpg": JPEGS[2],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "table", "said"),
    [
        ("fashion_attributes/labels.csv", "id,split,articleType\n10,train,Tops\n", "has 1 rows, not 3"),
        ("fashion_attributes/labels.csv", "id,split,articleType\n" + "10,train,Tops\n" * 3, "the picture is 20"),
        ("pets_seg160/images.csv", "id,split,breed\nBengal_1,dev,Bengal\n", "unknown split 'dev'"),
        ("pets_seg160/images.csv", "id,split,breed\nBengal_1,train,../Bengal\n", "not '../Bengal'"),
        ("pets_seg160/images.csv", "id,split,breed\nnowhere,train,Bengal\n", "nowhere.jpg"),
        ("clothing10_96/images.csv", "file,split,class,sender_id\n", "has 0 rows"),
    ],
)
def test_tables_that_do_not_fit_are_refused(shared: Path, out: Path, name: str, table: str, said: str) -> None:
    (shared / name).write_text(table)
    data = name.partition("/")[0]
    assert said in refusal(data, shared=shared, out=out) and not (out / data).exists()


def test_a_pickle_in_an_npz_is_not_run(shared: Path, out: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(out / "evil"),)

    np.savez(shared / "cifar10_subset" / "train.npz", jpeg=np.array([Evil()], object), offsets=0, labels=0)
    assert "allow_pickle=False" in refusal("cifar10_subset", shared=shared, out=out)
    assert not (out / "evil").exists()


def test_a_cut_off_file_and_an_empty_set_are_refused(shared: Path, out: Path) -> None:
    images = shared / "digits_da" / "mnist_t10k-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:-20])
    assert f"cannot make {out / 'mnist'}" in refusal("digits_da", shared=shared, out=out)
    write_tar(shared / "orl_faces" / "orl_faces.tar", {"s01/README": b"no picture"})
    assert "holds no pictures" in refusal("orl_faces", shared=shared, out=out)
    assert not (out / "mnist").exists() and not (out / "orl_faces").exists()


def test_a_missing_raw_folder_is_named(tmp_path: Path, out: Path) -> None:
    text = refusal("orl_faces", shared=tmp_path / "nowhere", out=out)
    assert f"no raw data: {tmp_path / 'nowhere' / 'orl_faces'} is no folder" in text
    assert f"received: --shared {tmp_path / 'nowhere'}" in text
    assert text.endswith("next: python benchmarks/prepare_data.py orl_faces --shared FOLDER")


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("cifar10", "cifar10_subset"), ("orl-faces", "orl_faces"), ("mnist", "digits_da"), ("", "")],
)
def test_an_unknown_name_suggests_the_nearest(shared: Path, out: Path, given: str, nearest: str) -> None:
    text = refusal("orl_faces", given, shared=shared, out=out)
    assert ", ".join(prepare_data.DATA) in text and f"received: {given}\n" in text
    assert f"next: python benchmarks/prepare_data.py {nearest}" in text
    assert not out.exists()  # the valid name beside it was not started


@pytest.mark.parametrize("inside", ["", "data", "tests/../deep/data"])
def test_an_out_inside_the_checkout_is_refused(shared: Path, inside: str) -> None:
    target = prepare_data.CHECKOUT / inside
    assert f"outside {prepare_data.CHECKOUT}" in refusal("orl_faces", shared=shared, out=target)
    assert not (target / "orl_faces").exists()


def test_the_command_line_shows_errors_without_traceback(shared: Path, out: Path) -> None:
    command = [sys.executable, str(SCRIPT), "orl_faces", "--out", str(out), "--shared"]
    done = subprocess.run([*command, str(shared)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("orl_faces: all 2; 2 classes; ")
    failed = subprocess.run([*command[:3], "nearly", *command[3:], "."], capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stdout == ""
    assert failed.stderr.startswith("error: no such data set") and "Traceback" not in failed.stderr


def test_tensorflow_is_not_imported() -> None:
    code = f"import runpy, sys; runpy.run_path({str(SCRIPT)!r}); sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_converted_resnet_is_a_source_with_blocks(shared: Path, out: Path) -> None:
    prepare_data.main(("weights/resnet_cifar10",), shared, out)
    source = load_source(f"hub:{out / 'resnet20_cifar10'}(size=32)")
    layer = source.backbone.get_layer("saved_model")
    assert source.feature_width == 64 and layer.knows_training
    names = [part.name for part in layers_of(source.backbone, "last_block")]
    assert names == [f"stack3_block1_{leaf}" for leaf in ("conv1", "bn1", "conv2", "bn2")]


def test_arrays_of_another_network_are_refused(shared: Path, out: Path) -> None:
    path = shared / "weights" / "resnet_cifar10" / "resnet20-12fca82f.npz"
    np.savez(path, **tiny_resnet(), **{"fc.weight": np.zeros(3)})
    assert "'fc.weight'" in refusal("weights/resnet_cifar10", shared=shared, out=out)


@pytest.mark.release
@pytest.mark.parametrize(("name", "at_least"), [("resnet20-12fca82f", 0.815), ("resnet56-4bfd9763", 0.825)])
def test_the_real_resnets_know_cifar_10(name: str, at_least: float, shared_data: Path, tmp_path: Path) -> None:
    weights = shared_data / "weights" / "resnet_cifar10" / f"{name}.npz"
    prepare_data.convert(weights, tmp_path / name)
    with np.load(shared_data / "cifar10_subset" / "test.npz") as arrays:
        jpeg, offsets, labels = (arrays[key] for key in ("jpeg", "offsets", "labels"))
    pixels = [Image.open(io.BytesIO(jpeg[a:b].tobytes())) for a, b in itertools.pairwise(offsets)]
    source = load_source(f"hub:{tmp_path / name}(size=32)")
    features = source.extractor.predict(np.stack(pixels).astype("float32"), batch_size=100, verbose=0)
    with np.load(weights) as arrays:
        logits = features @ arrays["linear.weight"].T + arrays["linear.bias"]
    assert np.mean(logits.argmax(1) == labels) >= at_least
