"""What breaks in the hands of users: odd images, folders and tables, full disks, files that go away during a run.

Each is a clear error, or a skip that is counted and explained. More: tests/images/test_dataset.py and test_batches.py
(formats), test_sources.py (weights, no network), test_checkpoints.py (checkpoints), test_specs.py and test_cli.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from common import exporting, runs
from common.classification import check
from common.classification.results import conclude
from common.data.splits import SPLITS
from common.errors import UserError
from common.images import export, features
from common.images.batches import training_batches
from common.images.dataset import ImageSet, load_image_set
from common.images.decoding import RESIZE_MODES, decode_image
from common.images.pixels import read_images
from common.images.preview import thumbnails
from common.images.sources import Source, load_source
from common.results import Outcome
from recipes.__main__ import main
from recipes.commands._execution import failures_as_user_errors

SIZE = (16, 16)
ORIENTATION = 0x0112


def noise(*shape: int, seed: int = 0) -> Image.Image:
    """A picture of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    """The bytes of a picture file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def write_photos(root: Path, **counts: int) -> Path:
    """Class folders with so many pictures each, every picture of its own content."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            noise(6, 6, 3, seed=1000 * number + i).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", cat=10, dog=10)


def load(data: Path | str, **options) -> ImageSet:
    """Load; a path stands for a folder."""
    return load_image_set(f"folder:{data}" if isinstance(data, Path) else data, Path("unused"), SIZE, **options)


def reasons(data: ImageSet) -> dict[str, str]:
    """Why a file was left out, by its name."""
    return {Path(path).name: reason for path, reason in data.skipped}


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """A classifier whose weights fill some hundred kilobytes."""
    keras.utils.set_random_seed(0)
    pixels = keras.Input((*SIZE, 3))
    x = keras.layers.Dense(32, activation="relu")(keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(pixels)))
    return keras.Model(pixels, keras.layers.Dense(2, activation="softmax", name="head")(x))


@pytest.fixture(scope="module")
def run(model: keras.Model, tmp_path_factory) -> Path:
    """The folder of a run that has exported the classifier."""
    out = tmp_path_factory.mktemp("run")
    export.export_image_classifier(model, out / "serving" / "image_classification", ("cat", "dog"))
    return out


@pytest.fixture(scope="module")
def serve(run: Path):
    """File bytes -> probabilities, as the export answers."""
    loaded = tf.saved_model.load(str(run / "serving" / "image_classification" / "1"))

    def answer(*contents: bytes) -> np.ndarray:
        return loaded.signatures["serving_default"](image=tf.constant(contents))["probabilities"].numpy()

    return answer


# --- pictures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first_bytes", "reason"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is a HEIC photo, as taken by phones.*convert it to JPEG"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "is a HEIC photo, as taken by phones.*convert it to JPEG"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "is an AVIF image.*convert it to JPEG"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp41", "cannot be decoded.*convert it to JPEG or PNG"),  # a film
    ],
)
def test_photos_of_phones_are_skipped_with_advice(first_bytes, reason, photos):
    (photos / "cat" / "IMG_0001.JPG").write_bytes(first_bytes + bytes(1000))  # renaming does not convert
    data = load(photos)
    assert data.counts()["skipped"] == 1
    assert re.search(reason, reasons(data)["IMG_0001.JPG"])


def test_webp_is_read_where_it_is_plain(photos):
    frames = [noise(8, 8, 3, seed=seed) for seed in (1, 2, 3)]
    (photos / "cat" / "plain.webp").write_bytes(encoded(frames[0], "WEBP"))
    (photos / "cat" / "alpha.webp").write_bytes(encoded(noise(8, 8, 4), "WEBP"))
    (photos / "cat" / "moving.webp").write_bytes(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    data = load(photos)
    assert sum(data.counts().values()) == 23 and set(reasons(data)) == {"alpha.webp", "moving.webp"}
    assert "WebP Animation" in reasons(data)["moving.webp"]
    assert all("WebP without transparency; convert it to JPEG or PNG" in reason for reason in reasons(data).values())


@pytest.mark.parametrize("resize", RESIZE_MODES)
def test_one_pixel_and_ten_thousand_are_trained_on(resize, photos):
    for name, image in {"dot": noise(1, 1, 3), "row": noise(3, 10_000, 3), "column": noise(10_000, 2, 3)}.items():
        for kind, quality in (("cat", 70), ("dog", 90)):
            (photos / kind / f"{name}.jpg").write_bytes(encoded(image, "JPEG", quality=quality))
    data = load(photos, resize=resize)
    whole = data.train.pixels + data.val.pixels + data.test.pixels
    odd = whole.take([place for place, path in enumerate(whole.paths) if path.endswith(".jpg")])
    assert not data.skipped and len(odd) == 6 and odd.resize == resize
    batches = training_batches(odd, lambda i: i, 6, seed=0, augment=("flip", "crop", "color"))
    (images, _), *_ = batches.take(1).as_numpy_iterator()
    assert images.shape == (6, *SIZE, 3) and np.isfinite(images).all() and 0 <= images.min() <= images.max() <= 255


def test_one_pixel_and_ten_thousand_are_served(serve):
    contents = [encoded(noise(*shape, 3), "JPEG") for shape in ((1, 1), (3, 10_000), (10_000, 2))]
    np.testing.assert_allclose(serve(*contents).sum(axis=1), 1, atol=1e-5)


# --- the camera's note ------------------------------------------------------------------------------------------


def turned(image: Image.Image, form: str, orientation: int | None, endian: str = "<") -> bytes:
    """A picture file with what a camera notes."""
    exif = Image.Exif()
    exif.endian = endian
    exif[0x010F] = "a maker"
    if orientation is not None:
        exif[ORIENTATION] = orientation
    return encoded(image, form, exif=exif)


def test_pictures_that_the_camera_asks_to_turn_are_counted(photos):
    upright = [turned(noise(9, 9, 3, seed=i), "JPEG", value) for i, value in enumerate((None, 0, 1, 9))]
    asked = [
        turned(noise(9, 9, 3, seed=10 * value + len(form)), form, value, endian)
        for form, value, endian in (("JPEG", 6, "<"), ("JPEG", 8, ">"), ("PNG", 3, "<"), ("WEBP", 2, ">"))
    ]
    assert all(Image.open(io.BytesIO(content)).getexif()[ORIENTATION] > 1 for content in asked)
    damaged = turned(noise(9, 9, 3, seed=99), "JPEG", 6)
    damaged = damaged.replace(damaged[damaged.index(b"Exif") + 6 :][:8], b"II*\0\xff\xff\xff\x7f", 1)
    for number, content in enumerate([*upright, *asked, damaged]):
        (photos / "cat" / f"phone {number}.jpg").write_bytes(content)
    data = load(photos)
    assert not data.skipped and data.turned == len(asked)
    (sentence,) = data.advice()
    assert sentence.startswith("4 of 29 images have an EXIF orientation, which training and")
    assert sentence.endswith("mogrify -auto-orient FILES")
    assert sentence in check.describe_counts(data)
    few = load(photos, limit=6)  # of those that are used
    used = {Path(path).name for part in SPLITS for path in getattr(few, part).paths}
    assert few.turned == len(used & {f"phone {number}.jpg" for number in (4, 5, 6, 7)}) < 4


def test_without_a_note_nothing_is_said(photos):
    assert load(photos).turned == 0 and load(photos).advice() == ()


def test_the_note_is_ignored_in_training_and_in_serving(serve):
    plain, noted = encoded(noise(20, 30, 3), "JPEG"), turned(noise(20, 30, 3), "JPEG", 6)
    assert Image.open(io.BytesIO(noted)).getexif()[ORIENTATION] == 6
    np.testing.assert_array_equal(*(decode_image(tf.constant(content), SIZE).numpy() for content in (plain, noted)))
    answers = serve(plain, noted)
    np.testing.assert_array_equal(answers[0], answers[1])


def test_the_advice_stands_in_the_report(photos, tmp_path, capsys):
    (photos / "cat" / "phone.jpg").write_bytes(turned(noise(9, 9, 3), "JPEG", 6))
    data = load(photos)
    probabilities = np.eye(2, dtype="float32")[data.test.labels]
    config = types.SimpleNamespace(out=str(tmp_path / "run"), data="folder:photos", seed=0)
    card = {"spec": "toy", "origin": "", "licence": "", "data": ""}
    conclude(
        "toy", config, data, Outcome([], {"total": 1.0}, {}, card, {"passed": False}), exported=0,
        probabilities={0: probabilities}, baselines={}, titles={}, what="images", preview=thumbnails(data.test.paths),
    )  # fmt: skip
    said = "1 of 21 images have an EXIF orientation"
    assert said in capsys.readouterr().out and said in (tmp_path / "run" / "report.html").read_text("utf-8")


# --- folders ----------------------------------------------------------------------------------------------------


def test_a_class_with_one_picture_is_trained_on_and_said_to_be_untested(tmp_path):
    data = load(write_photos(tmp_path / "set", cat=1, dog=10))
    assert [Path(path).parent.name for path in data.train.paths].count("cat") == 1
    (sentence,) = data.advice()
    assert "The test split has no image with class 'cat'" in sentence and "3 different images" in sentence


def test_a_folder_with_the_name_of_a_picture_is_a_folder(photos):
    (photos / "cat" / "holiday.jpg").mkdir()
    (photos / "cat" / "holiday.jpg" / "in it.png").write_bytes(encoded(noise(6, 6, 3, seed=77)))
    data = load(photos)
    assert not data.skipped and sum(data.counts().values()) == 21


def test_a_device_with_the_name_of_a_picture_is_not_read(photos):
    (photos / "cat" / "endless.jpg").symlink_to(os.devnull)  # /dev/zero would be the same, without an end
    assert reasons(load(photos)) == {"endless.jpg": "is not a file but a device, pipe or socket"}


@contextlib.contextmanager
def as_somebody_without_rights() -> Iterator[None]:
    """Root may read everything; for a while, be nobody."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(65534)
    except OSError:
        pytest.skip("this process cannot become another user")
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_photos() -> Iterator[Path]:
    """Pictures where every user may look; pytest's own folders are closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield write_photos(Path(folder, "my photos"), cat=10, dog=10)


@pytest.mark.parametrize("closed", [".", "dog", "dog/more"])
def test_a_folder_without_read_permission_is_refused(closed, open_photos):
    (open_photos / "dog" / "more").mkdir()
    (open_photos / closed).chmod(0)
    try:
        with as_somebody_without_rights(), pytest.raises(UserError) as caught:
            load(open_photos)
    finally:
        (open_photos / closed).chmod(0o755)
    said = str(caught.value)
    assert f"a folder that cannot be read: {open_photos / closed} (Permission denied)" in said
    assert f"chmod -R u+rX '{open_photos}'" in said


def test_a_picture_without_read_permission_is_a_counted_skip(open_photos):
    (open_photos / "dog" / "3.png").chmod(0)
    with as_somebody_without_rights():
        data = load(open_photos)
    assert reasons(data) == {"3.png": "cannot be read: Permission denied"}


# --- tables -----------------------------------------------------------------------------------------------------


def test_a_table_that_is_not_utf8_says_how_to_write_one(photos, tmp_path):
    for encoding in ("utf-16", "latin-1"):
        (tmp_path / "table.csv").write_text("path,label\nphotos/cat/0.png,Kätzchen\n", encoding=encoding)
        with pytest.raises(UserError, match=r"in UTF-8: .*'Save as', 'CSV UTF-8'"):
            load(f"csv:{tmp_path / 'table.csv'}")


def test_a_table_with_two_columns_of_one_name_is_refused(photos, tmp_path):
    (tmp_path / "table.csv").write_text("path,label,label\nphotos/cat/0.png,cat,animal\n")
    with pytest.raises(UserError, match=r"more than one column 'label'. Rename or remove"):
        load(f"csv:{tmp_path / 'table.csv'}")


def test_a_table_with_one_picture_in_two_splits_leaves_the_lower(photos, tmp_path):
    splits = ("train", "train", "val", "test")
    lines = [f"photos/{kind}/{i}.png,{kind},{split}" for kind in ("cat", "dog") for i, split in enumerate(splits)]
    lines += ["photos/cat/3.png,cat,train", "photos/cat/9.png,cat,train"]
    (tmp_path / "table.csv").write_text("\n".join(["path,label,split", *lines]))
    data = load(f"csv:{tmp_path / 'table.csv'}")
    assert data.counts() == {"train": 5, "val": 2, "test": 2, "skipped": 1}
    assert reasons(data) == {"3.png": "exact copy of an image in another split; removed from train"}


# --- full disks -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def full_disk(most_bytes: int) -> Iterator[None]:
    """The kernel refuses files that grow beyond this, as a full disk does. Print nothing inside."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


RECIPE = '''"""A toy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """Settings."""

    out: str = "runs/toy"
    """Folder."""
    data: str = "folder:photos"
    """Pictures."""
    resume: str | None = None
    """Go on."""


def main(config: Config) -> dict:
    from pathlib import Path

    import common.runs

    config = common.runs.start(config)
{body}
'''


def toy(root: Path, body: str) -> Path:
    """A root with one recipe; its main does what the body says."""
    (root / "toy").mkdir(parents=True)
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    (root / "toy" / "recipe.py").write_text(RECIPE.replace("{body}", lines))
    return root


EXPORT = """
import resource
import keras
from common.images.export import export_image_classifier
pixels = keras.Input((16, 16, 3))
x = keras.layers.Dense(128)(keras.layers.Flatten()(pixels))
model = keras.Model(pixels, keras.layers.Dense(2, activation="softmax", name="head")(x))
servable = Path(config.out) / "serving" / "toy"
export_image_classifier(model, servable, ("a", "b"))
Path(config.out, "checkpoints", "head.npz").write_bytes(b"what was learned")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with common.runs.Stopwatch(Path(config.out) / "checkpoints" / "seconds.json")("export"):
    export_image_classifier(model, servable, ("a", "b"))
"""


def test_a_full_disk_while_exporting_leaves_the_served_version_alone(tmp_path):
    root, out = toy(tmp_path / "recipes", EXPORT), tmp_path / "run"
    program = "import sys; from pathlib import Path; from recipes.__main__ import main\n"
    program += f"sys.exit(main(['run', 'toy', '--out', {str(out)!r}], Path({str(root)!r})))"
    repository = Path(__file__).resolve().parents[2]
    finished = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True)
    assert finished.returncode == 2, finished.stderr
    assert "Traceback" not in finished.stderr
    (said,) = [line for line in finished.stderr.splitlines() if line.startswith("error:")]
    assert f"Not enough disk space for the SavedModel in {out}/serving/toy: about 0.9 MB are needed, " in said
    assert "System error: File too large. Free some disk space there." in said
    assert said.endswith(f"Continue it: python -m recipes run toy --resume {out}")
    assert [path.name for path in (out / "serving" / "toy").iterdir()] == ["1"]
    served = tf.saved_model.load(str(out / "serving" / "toy" / "1")).signatures["serving_default"]
    assert served(image=tf.constant([encoded(noise(4, 4, 3))]))["label"].numpy()[0] in (b"a", b"b")


def test_a_full_disk_while_saving_the_keras_model_keeps_the_one_before(model, tmp_path):
    (tmp_path / "model.keras").write_bytes(b"the one before")
    with pytest.raises(UserError, match=r"space for the Keras model in .* about 0\.6 MB are needed"), full_disk(9000):
        exporting.save_keras_model(model, tmp_path / "model.keras")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"model.keras": b"the one before"}


@pytest.fixture
def source() -> Source:
    pixels = keras.Input((*SIZE, 3))
    extractor = keras.Model(pixels, keras.layers.Flatten()(pixels))
    return Source("toy", extractor, extractor, SIZE, {})


def test_a_full_disk_while_writing_features_is_told_before_the_first_picture(source, photos, tmp_path, capsys):
    pixels = read_images([str(path) for path in sorted(photos.rglob("*.png"))], SIZE)
    wanted = r"disk space for the features in .*features: about 0\.1 MB are needed, .* free"  # 20 * 768 * 4 bytes
    with pytest.raises(UserError, match=wanted), full_disk(20_000):
        features.extract_features(source, pixels, tmp_path / "features")
    assert not list((tmp_path / "features").iterdir()) and not capsys.readouterr().out


def test_features_have_their_room_on_the_disk_before_they_are_written(tmp_path):
    # In a sparse file, a page without disk space ends the process with SIGBUS, without an error message.
    features._reserve(tmp_path / "features.npy", (2, 50, 1000))
    status = (tmp_path / "features.npy").stat()
    assert status.st_blocks * 512 >= status.st_size > 4 * 2 * 50 * 1000


def test_a_full_disk_anywhere_else_is_told_without_a_traceback(tmp_path, capsys):
    root = toy(tmp_path / "recipes", "raise OSError(28, 'No space left on device')")
    assert main(["run", "toy", "--out", str(tmp_path / "run")], root) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: Not enough disk space for the files of this run in {tmp_path / 'run'}: ")
    assert "MB are free. System error: No space left on device" in said
    assert "--resume" not in said  # there is nothing to continue


def test_the_seconds_of_a_run_do_not_hide_what_the_disk_said(tmp_path):
    with (
        pytest.raises(ValueError, match="what went wrong"),
        full_disk(0),
        runs.Stopwatch(tmp_path / "s.json")("export"),
    ):
        raise ValueError("what went wrong")


# --- files that go away during a run ----------------------------------------------------------------------------

SPOIL = """
from dataclasses import replace
from common.images.dataset import load_image_set
from common.images.batches import image_batches
data = load_image_set(config.data, Path(config.out), (8, 8))
Path(config.out, "features").mkdir()
Path(config.out, "features", "what was learned.npy").touch()
victim = Path(data.test.paths[0])
{spoil}
list(image_batches(replace(data.test.pixels, kept=None), 4))  # as where there is no room for decoded images
"""


def test_what_we_say_within_a_stream_reaches_the_user_as_we_say_it(tmp_path):
    def clips():
        yield 1.0
        raise UserError("a.wav is gone. Put it back.")

    with pytest.raises(UserError) as told, failures_as_user_errors(None, types.SimpleNamespace(out=str(tmp_path))):
        list(tf.data.Dataset.from_generator(clips, output_signature=tf.TensorSpec((), tf.float32)))
    assert str(told.value) == "a.wav is gone. Put it back."


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ("victim.unlink()", "{victim}; No such file or directory"),
        ("victim.write_bytes(victim.read_bytes()[:40])", "Invalid PNG"),
        (r"victim.write_bytes(b'\xff\xd8\xff' + bytes(40))", "Invalid JPEG"),
        ("victim.unlink(); victim.read_bytes()", "{victim} (No such file or directory)"),
    ],
)
def test_a_picture_that_goes_away_during_a_run_is_named(spoil, reason, photos, tmp_path, capsys):
    root, out = toy(tmp_path / "recipes", SPOIL.replace("{spoil}", spoil)), tmp_path / "run"
    victim = load(photos).test.paths[0]
    assert main(["run", "toy", "--data", f"folder:{photos}", "--out", str(out)], root) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "error: A file was moved, changed or deleted after it had been checked: " in said
    assert reason.replace("{victim}", victim) in said
    assert f"python -m recipes check toy --data folder:{photos}." in said
    assert said.endswith(f"Continue it: python -m recipes run toy --resume {out}")


def test_a_file_of_our_own_that_is_missing_keeps_its_traceback(tmp_path):
    root = toy(tmp_path / "recipes", "open('template.html')")
    with pytest.raises(FileNotFoundError):
        main(["run", "toy", "--out", str(tmp_path / "run")], root)


# --- models and run folders -------------------------------------------------------------------------------------


def test_a_file_in_the_place_of_the_run_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()

    @dataclasses.dataclass(frozen=True)
    class Config:
        out: str
        resume: str | None = None

    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"cannot be written: .* Name another folder"):
            runs.start(Config(str(out)))


def test_a_damaged_card_of_a_preset_is_named(tmp_path):
    bundled = Path(__file__).resolve().parents[2] / "common" / "bundled" / "resnet_mini"
    for file in bundled.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "card.json").unlink()
    (tmp_path / "card.json").write_text(json.dumps({"licence": "mine"})[:-3])
    with pytest.raises(UserError, match=r"card\.json cannot be read: .* Correct or remove it"):
        load_source(f"preset:{tmp_path}")


def test_predict_refuses_what_training_refuses(run, tmp_path, capsys):
    files = {"good.png": encoded(noise(6, 6, 3)), "heic.jpg": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "empty.jpg": b""}
    files["palette.bmp"] = encoded(noise(6, 6, 3).convert("P"), "BMP")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert main(["predict", str(run), *(str(tmp_path / name) for name in files)]) == 1
    told = capsys.readouterr()
    assert [line.split()[0] for line in told.out.splitlines()] == [str(tmp_path / "good.png")]
    heic, empty, palette = told.err.splitlines()
    assert "heic.jpg: is a HEIC photo" in heic and "convert it to JPEG" in heic
    assert "empty.jpg: is empty (0 bytes)" in empty and "is a BMP with a palette" in palette
