"""Turn raw shared image data into plain folders: python benchmarks/prepare_data.py [NAME ...]

Results, outside the checkout (INDEX is the position in the raw file, so a picture can be traced back to it):
    cifar10_subset/{train,test}/CLASS/INDEX.jpg                   hymenoptera_data/{train,val}/CLASS/*.jpg
    mnist/{train,test}/DIGIT/INDEX.png, usps/... (digits_da)      orl_faces/PERSON/N.png
    clothing10_96/{train,val}/CLASS/sender_N_ID.jpg, for --group 'sender_([0-9]+)_'
    pets_seg160/{train,val,test}/BREED/ID.jpg                     fashion_attributes/{train,val,test}/TYPE/ID.jpg
    pretrain_pictures/{train,test}/SOURCE_CLASS/INDEX.jpg, to train bundled:resnet_mini on: without the source that the
        demo is from. pretrain_pictures_strict: without the sources whose publishers gathered them from the web, too
    pretrain_texts_strict/train.jsonl.gz, to train bundled:bert_mini on: without comments of Reddit users
    pretrain_speech/SOURCE/*.ogg, to train bundled:wav2vec2_mini on: sounds.csv lists all clips, without text, and
        transcripts.csv those whose text may be trained on (not Speech Commands', the very words of a demo)
    resnet20_cifar10, resnet56_cifar10: SavedModels, sources for --source 'hub:FOLDER(size=32)'
"""

import csv
import difflib
import gzip
import json
import shutil
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import tyro
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the script's neighbour, also where a test imports it

from convert_resnet import convert

CHECKOUT = Path(__file__).resolve().parents[1]
MNIST_TRAIN = 7_000  # of the 10,000 images there (MNIST's own test part); the last 3,000 become our test


def stop(wrong: str, allowed: str, received: str, following: str) -> SystemExit:
    """Word an error in the four parts a user needs; a SystemExit shows it without a traceback."""
    return SystemExit(f"error: {wrong}\n  allowed: {allowed}\n  received: {received}\n  next: {following}")


def class_folders(split: Path, class_names: Sequence[str], labels: np.ndarray) -> list[Path]:
    """Make a folder per class, return the folder of each example; ValueError for bad labels or names."""
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(class_names):  # -1 would be the last name
        raise ValueError(f"{split.name}: there must be labels, all in 0..{len(class_names) - 1}")
    if unsafe := [name for name in class_names if name in ("", ".", "..") or "/" in name or "\\" in name]:
        raise ValueError(f"a class name must be a plain folder name, not {unsafe[0]!r}")
    for label in np.unique(labels):
        (split / class_names[label]).mkdir(parents=True)
    return [split / class_names[label] for label in labels]


def check_offsets(name: str, jpeg: np.ndarray, offsets: np.ndarray, count: int) -> None:
    """Raise ValueError unless the offsets cut all bytes into this many pictures."""
    if [len(offsets), offsets[0], offsets[-1]] != [count + 1, 0, len(jpeg)] or np.diff(offsets).min() < 1:
        raise ValueError(f"{name}: offsets do not cut the {len(jpeg)} bytes into {count} pictures")


def write_jpegs(npz: Path, split: Path, class_names: Sequence[str], left_out: Sequence[int] = ()) -> None:
    """Write the JPEGs of an npz (`jpeg`, `offsets`, `labels`) but for some classes, bytes unchanged; ValueError if cut
    wrongly."""
    with np.load(npz, allow_pickle=False) as arrays:
        jpeg, offsets, labels = (arrays[name] for name in ("jpeg", "offsets", "labels"))
    check_offsets(npz.name, jpeg, offsets, len(labels))
    chosen = np.flatnonzero(~np.isin(labels, left_out))
    for index, folder in zip(chosen, class_folders(split, class_names, labels[chosen]), strict=True):
        (folder / f"{index}.jpg").write_bytes(jpeg[offsets[index] : offsets[index + 1]].tobytes())


def write_digits(images: np.ndarray, labels: np.ndarray, split: Path, first_index: int = 0) -> None:
    """Write uint8 images [count, height, width] as PNG, one folder per digit."""
    folders = class_folders(split, "0123456789", labels)
    for index, (folder, pixels) in enumerate(zip(folders, images, strict=True), start=first_index):
        Image.fromarray(pixels).save(folder / f"{index}.png")


def extract_tar(archive: Path, target: Path) -> None:
    """Extract plain files and folders; ValueError for a link, tarfile.FilterError for a path that leaves."""
    with tarfile.open(archive) as tar:
        # Chains of links got past filter="data" (CVE-2025-4517), and pictures need none.
        if special := [member.name for member in tar if not (member.isfile() or member.isdir())]:
            raise ValueError(f"{archive.name} holds {special[0]!r}, which is neither a file nor a folder")
        tar.extractall(target, filter="data")


def prepare_cifar10(raw: Path, target: Path) -> None:
    """Line i of classes.txt names class i."""
    class_names = (raw / "classes.txt").read_text("utf-8").splitlines()
    for split in ("train", "test"):
        write_jpegs(raw / f"{split}.npz", target / split, class_names)


def prepare_hymenoptera(raw: Path, target: Path) -> None:
    """Copy contents only: the raw folders may be read-only, and a copy of that could not be deleted."""
    for source in [*(raw / "train").glob("*/*"), *(raw / "val").glob("*/*")]:
        copy = target / source.relative_to(raw)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)


def prepare_mnist(raw: Path, target: Path) -> None:
    """An idx file is a header (16 bytes for images, 8 for labels), then one byte per value."""
    images = gzip.decompress((raw / "mnist_t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((raw / "mnist_t10k-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    digits = np.frombuffer(labels, np.uint8, offset=8)
    write_digits(pixels[:MNIST_TRAIN], digits[:MNIST_TRAIN], target / "train")
    write_digits(pixels[MNIST_TRAIN:], digits[MNIST_TRAIN:], target / "test", first_index=MNIST_TRAIN)


def prepare_usps(raw: Path, target: Path) -> None:
    """Each image is 256 floats in 0..1."""
    with h5py.File(raw / "usps.h5") as file:
        for split in ("train", "test"):
            data, labels = file[split]["data"][:], file[split]["target"][:]
            write_digits((data.reshape(-1, 16, 16) * 255).round().astype(np.uint8), labels, target / split)


def prepare_orl_faces(raw: Path, target: Path) -> None:
    """PNG keeps every grey value and, unlike PGM, TensorFlow reads it."""
    extract_tar(raw / "orl_faces.tar", target)
    for picture in list(target.rglob("*.pgm")):
        Image.open(picture, formats=["PPM"]).save(picture.with_suffix(".png"))
        picture.unlink()


def read_rows(table: Path, expected: int | None = None) -> list[dict[str, str]]:
    """Read a table of images; ValueError if it has no rows, another number of rows, or a split of another name."""
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or len(rows) != (expected or len(rows)):
        raise ValueError(f"{table.name} has {len(rows)} rows, not {expected or 'one per picture'}")
    if unknown := {row["split"] for row in rows} - {"train", "val", "test"}:
        raise ValueError(f"{table.name}: unknown split {unknown.pop()!r}")
    return rows


def write_class(target: Path, row: dict[str, str], label: str, name: str, content: bytes) -> None:
    """Write the bytes of a picture into its split and class; ValueError for a name that is not a plain one."""
    if unsafe := [part for part in (row[label], name) if part in ("", ".", "..") or "/" in part or "\\" in part]:
        raise ValueError(f"a class or file must have a plain name, not {unsafe[0]!r}")
    path = target / row["split"] / row[label] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def prepare_clothing(raw: Path, target: Path) -> None:
    """Class folders, since images.csv names its files without their folder; the sender is in the name of the file."""
    for row in read_rows(raw / "images.csv"):
        name = f"sender_{row['sender_id']}_{row['file']}"
        write_class(target, row, "class", name, (raw / "images" / row["file"]).read_bytes())


def prepare_pets(raw: Path, target: Path) -> None:
    """The class is the breed; the masks stay in the archive."""
    with tarfile.open(raw / "pets.tar") as tar:
        for row in read_rows(raw / "images.csv"):
            content = tar.extractfile(f"images/{row['id']}.jpg").read()
            write_class(target, row, "breed", f"{row['id']}.jpg", content)


def prepare_fashion(raw: Path, target: Path) -> None:
    """The class is the type of the article; rows and pictures have the same order, which their ids confirm."""
    with np.load(raw / "images.npz", allow_pickle=False) as arrays:
        jpeg, offsets, ids = (arrays[name] for name in ("jpeg", "offsets", "ids"))
    check_offsets("images.npz", jpeg, offsets, len(ids))
    for index, row in enumerate(read_rows(raw / "labels.csv", expected=len(ids))):
        if row["id"] != str(ids[index]):
            raise ValueError(f"labels.csv, row {index + 1}: id {row['id']}, but the picture is {ids[index]}")
        content = jpeg[offsets[index] : offsets[index + 1]].tobytes()
        write_class(target, row, "articleType", f"{row['id']}.jpg", content)


def write_pretraining_pictures(raw: Path, target: Path, without: Sequence[str]) -> None:
    """Write the JPEGs of all sources but some; val, a twentieth of each class, becomes the test split."""
    class_names = [line.split("\t")[1] for line in (raw / "classes.txt").read_text("utf-8").splitlines()]
    left_out = [place for place, name in enumerate(class_names) if name.partition("/")[0] in without]
    flat = [name.replace("/", "_") for name in class_names]
    for part, split in (("train", "train"), ("val", "test")):
        write_jpegs(raw / f"{part}.npz", target / split, flat, left_out)


def prepare_pretraining_pictures(raw: Path, target: Path) -> None:
    """A demo must not be what its source has learned."""
    write_pretraining_pictures(raw, target, without=("clothing",))


def prepare_strict_pictures(raw: Path, target: Path) -> None:
    """Photographs by their publishers or under a licence of each photographer."""
    write_pretraining_pictures(raw, target, without=("clothing", "caltech101", "pets"))


def prepare_strict_texts(raw: Path, target: Path) -> None:
    """All sentences but those of Reddit users, who were not asked."""
    target.mkdir(parents=True)
    with gzip.open(raw / "train.jsonl.gz", "rb") as lines, gzip.open(target / "train.jsonl.gz", "wb") as kept:
        kept.writelines(line for line in lines if json.loads(line)["source"] != "goemotions")


def prepare_speech(raw: Path, target: Path) -> None:
    """A fortieth of the speakers is the test split of both tables; LJ Speech, which has one, is in train."""
    with open(raw / "clips.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    extract_tar(raw / "audio.tar", target)
    with_text = {row["speaker"] for row in rows if has_text(row)} - {"LJ"}
    held_out = set(np.random.default_rng(0).permutation(sorted(with_text))[: len(with_text) // 40])
    for name, wanted in (("sounds", rows), ("transcripts", [row for row in rows if has_text(row)])):
        with open(target / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["path", "text", "speaker", "split"])
            for row in wanted:
                split = "test" if row["speaker"] in held_out else "train"
                table.writerow([row["file"], row["text"] * (name == "transcripts"), row["speaker"], split])


def prepare_words(raw: Path, target: Path) -> None:
    """The clips and their table as they are."""
    extract_tar(raw / "audio.tar", target)
    shutil.copyfile(raw / "clips.csv", target / "clips.csv")


def has_text(row: dict[str, str]) -> bool:
    """Return whether a clip has a text that may be trained on."""
    return bool(row["text"].strip()) and row["source"] != "speech_commands"


def prepare_resnet20(raw: Path, target: Path) -> None:
    """Three blocks a stack."""
    convert(raw / "resnet20-12fca82f.npz", target)


def prepare_resnet56(raw: Path, target: Path) -> None:
    """Nine blocks a stack."""
    convert(raw / "resnet56-4bfd9763.npz", target)


DATA: dict[str, dict[str, Callable[[Path, Path], None]]] = {  # raw folder -> result folder -> what makes it
    "cifar10_subset": {"cifar10_subset": prepare_cifar10},
    "hymenoptera_data": {"hymenoptera_data": prepare_hymenoptera},
    "digits_da": {"mnist": prepare_mnist, "usps": prepare_usps},
    "orl_faces": {"orl_faces": prepare_orl_faces},
    "clothing10_96": {"clothing10_96": prepare_clothing},
    "pets_seg160": {"pets_seg160": prepare_pets},
    "fashion_attributes": {"fashion_attributes": prepare_fashion},
    "pretrain/pictures": {
        "pretrain_pictures": prepare_pretraining_pictures,
        "pretrain_pictures_strict": prepare_strict_pictures,
    },
    "pretrain/texts": {"pretrain_texts_strict": prepare_strict_texts},
    "pretrain/speech": {"pretrain_speech": prepare_speech},
    "speech_commands_v2_subset": {"speech_commands_v2_subset": prepare_words},
    "weights/resnet_cifar10": {"resnet20_cifar10": prepare_resnet20, "resnet56_cifar10": prepare_resnet56},
}


def describe(folder: Path) -> str:
    """Count what lies in a result folder: pictures per split (`all` where there is none) and classes, or megabytes."""
    for file, what in (("saved_model.pb", "SavedModel"), ("train.jsonl.gz", "texts"), ("sounds.csv", "sounds"),
                       ("clips.csv", "sounds")):  # fmt: skip
        if (folder / file).exists():
            return f"{what} of {sum(path.stat().st_size for path in folder.rglob('*')) / 1e6:.1f} MB"
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix in (".jpg", ".png")]
    pairs = [(path.parts[0] if len(path.parts) == 3 else "all", path.parent.name) for path in paths]
    if not pairs:
        raise ValueError(f"{folder.name} holds no pictures")
    counts = [f"{split} {count}" for split, count in sorted(Counter(pair[0] for pair in pairs).items())]
    return f"{', '.join(counts)}; {len({label for _, label in pairs})} classes"


def write_aside(make: Callable[[Path, Path], None], raw: Path, target: Path) -> None:
    """Make a result folder aside and rename it into place, so that it is whole or absent."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed or failed run left
    make(raw, partial)
    describe(partial)  # refuses an empty one
    partial.rename(target)


def main(
    names: tyro.conf.Positional[tuple[str, ...]] = (),
    shared: Path = Path("../shared/data"),
    out: Path = Path("../prepared_data"),
) -> None:
    """Turn the raw shared image data into plain folders; what is there already is left alone.

    Args:
        names: data sets to prepare; none means all.
        shared: folder that holds one folder of raw data per data set.
        out: folder the results go to, outside the checkout.
    Raises:
        SystemExit: an unknown name, an `out` inside the checkout, or raw data missing or unusable.
    """
    command, target = "python benchmarks/prepare_data.py", out
    if unknown := [name for name in names if name not in DATA]:
        known = {result: name for name, results in DATA.items() for result in (name, *results)}
        nearest = known[difflib.get_close_matches(unknown[0], known, n=1, cutoff=0)[0]]
        raise stop("no such data set", ", ".join(DATA), unknown[0], f"{command} {nearest}")
    if out.resolve().is_relative_to(CHECKOUT):
        raise stop("--out is in git", f"outside {CHECKOUT}", f"--out {out}", f"--out {CHECKOUT.parent}/data")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, result in [(each, result) for each in names or DATA for result in DATA[each]]:
            start, raw, target = time.monotonic(), shared / name, out / result
            there = target.exists()
            if not there and not raw.is_dir():
                allowed, following = f"a folder that holds {name}/", f"{command} {name} --shared FOLDER"
                raise stop(f"no raw data: {raw} is no folder", allowed, f"--shared {shared}", following)
            if not there:
                write_aside(DATA[name][result], raw, target)
            ending = "already there, left alone" if there else f"{time.monotonic() - start:.1f} s"
            print(f"{result}: {describe(target)}; {ending}", flush=True)
    except Exception as error:  # the raw files come from elsewhere, and each decoder refuses in its own way
        allowed, received = "whole raw files, a writable --out with room", f"{type(error).__name__}: {error}"
        following = f"(cd {shared} && sha256sum -c MANIFEST.sha256), mend what it names, run this again"
        raise stop(f"cannot make {target}", allowed, received, following) from error


if __name__ == "__main__":
    tyro.cli(main)
