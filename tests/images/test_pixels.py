"""Decoded images: kept in memory or in a file without a name, or decoded in each pass where there is no room."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from common.data.splits import SPLITS
from common.errors import UserError
from common.images import pixels
from common.images.batches import image_batches
from common.images.dataset import load_image_set
from common.images.decoding import decode_image
from common.images.pixels import Pixels, read_images
from common.images.scratch import at_size

SIZE = (6, 8)
BYTES = 6 * 8 * 3


def decoded(paths, size=SIZE, resize: str = "crop") -> np.ndarray:
    """What the decoder says."""
    return np.stack([decode_image(tf.io.read_file(str(path)), size, resize).numpy() for path in paths])


def streamed(some: Pixels) -> np.ndarray:
    return np.concatenate(list(image_batches(some, 4).as_numpy_iterator()))


@pytest.fixture
def no_room(monkeypatch) -> None:
    """Neither memory nor disk can keep images."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pixels, "IN_MEMORY", 0)
    monkeypatch.setattr(pixels.os, "posix_fallocate", full, raising=False)


# --- where they are kept ----------------------------------------------------------------------------------


def test_few_images_are_kept_in_memory_and_many_on_disk(paths, tmp_path, monkeypatch):
    folder, wanted = tmp_path / "run", decoded(paths)
    for most, on_disk in ((10 * BYTES, False), (10 * BYTES - 1, True)):
        monkeypatch.setattr(pixels, "IN_MEMORY", most)
        found = read_images(paths, SIZE, folder=folder)
        assert isinstance(found.kept, np.memmap) == on_disk and found.kept.dtype == np.uint8
        np.testing.assert_array_equal(found.kept, wanted)
        np.testing.assert_array_equal(streamed(found), wanted)
    assert not isinstance(read_images(paths, SIZE).kept, np.memmap)  # without a folder


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="open files are listed as Linux does")
def test_the_file_on_disk_has_no_name_and_goes_with_the_images(paths, tmp_path, monkeypatch):
    def mapped() -> list[str]:
        lines = Path("/proc/self/maps").read_text("utf-8", errors="replace").splitlines()
        return [line for line in lines if str(folder) in line]

    monkeypatch.setattr(pixels, "IN_MEMORY", 0)
    folder = tmp_path / "run"
    found = read_images(paths, SIZE, folder=folder)
    assert list(folder.iterdir()) == []
    assert len(mapped()) == 1 and mapped()[0].endswith("(deleted)")
    del found
    assert mapped() == []


def test_space_on_the_disk_is_reserved_before_the_first_image(paths, tmp_path, monkeypatch):
    # In a sparse file, a page without disk space ends the process with SIGBUS, without an error message.
    reserved = []
    monkeypatch.setattr(pixels, "IN_MEMORY", 0)
    monkeypatch.setattr(pixels.os, "posix_fallocate", lambda _, start, size: reserved.append((start, size)))
    monkeypatch.setattr(pixels, "read_bytes", lambda row: pytest.fail("read") if not reserved else (b"", "no"))
    with pytest.raises(UserError, match="no"):
        read_images(paths, SIZE, folder=tmp_path)
    assert reserved == [(0, 10 * BYTES)]


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_without_room_the_files_are_decoded_in_each_pass(resize, paths, tmp_path, no_room, capsys):
    found = read_images(paths, SIZE, resize, folder=tmp_path / "run")
    said = capsys.readouterr().out
    assert f"would take 0.0 GB in {tmp_path / 'run'} (No space left on device): each pass decodes the files" in said
    assert found.kept is None and list((tmp_path / "run").iterdir()) == []
    wanted = decoded(paths, resize=resize)
    np.testing.assert_array_equal(streamed(found), wanted)
    np.testing.assert_array_equal(streamed(found.take([7, 2, 2])), wanted[[7, 2, 2]])
    np.testing.assert_array_equal(streamed(found.take(slice(5, 9)) + found.take(slice(1))), wanted[[5, 6, 7, 8, 0]])
    assert np.unique(found.hashes).size == 10  # they are read and checked all the same


def test_a_disk_is_not_filled(paths, tmp_path, monkeypatch, capsys):
    """Features, checkpoints and the export need room as well."""
    monkeypatch.setattr(pixels, "IN_MEMORY", 0)
    for free, kept in ((2 * 10 * BYTES, True), (2 * 10 * BYTES - 1, False)):
        monkeypatch.setattr(pixels.shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert (read_images(paths, SIZE, folder=tmp_path).kept is not None) == kept
        assert ("(more than half of what is free): each pass" in capsys.readouterr().out) != kept


# --- what is kept -----------------------------------------------------------------------------------------


def test_some_of_the_images_and_several_together(paths):
    found, wanted = read_images(paths, SIZE), decoded(paths)
    assert len(found) == 10 and found.size == SIZE and found.paths.tolist() == paths
    some = found.take(np.array([8, 3, 5]))
    np.testing.assert_array_equal(streamed(some.take(np.array([2, 0]))), wanted[[5, 8]])
    both = some + found.take(slice(2))
    assert both.kept is found.kept and both.paths.tolist() == [paths[i] for i in (8, 3, 5, 0, 1)]
    assert both.hashes.tolist() == [found.hashes[i] for i in (8, 3, 5, 0, 1)]
    np.testing.assert_array_equal(streamed(both), wanted[[8, 3, 5, 0, 1]])
    with pytest.raises(ValueError, match="one data set"):
        found + read_images(paths, SIZE)


def test_a_file_that_cannot_be_read_is_named(paths):
    Path(paths[3]).write_bytes(b"no image")
    with pytest.raises(UserError, match=rf"^{paths[3]} cannot be decoded \(Unknown image file format"):
        read_images(paths, SIZE)
    Path(paths[3]).unlink()
    with pytest.raises(UserError, match=rf"^{paths[3]} cannot be read: No such file or directory\.$"):
        read_images(paths, SIZE)


@pytest.mark.parametrize("kept", [True, False])
def test_the_same_data_set_at_another_size(kept, two_classes, tmp_path, request):
    if not kept:
        request.getfixturevalue("no_room")
    data = load_image_set(f"folder:{two_classes}", tmp_path, SIZE, resize="squash")
    other = at_size(data, (10, 10), tmp_path)
    assert at_size(other, (10, 10)) is other and other.counts() == data.counts()
    for split in SPLITS:
        ours, theirs = getattr(other, split), getattr(data, split)
        assert ours.paths.tolist() == theirs.paths.tolist() and ours.pixels.size == (10, 10)
        assert (ours.pixels.kept is not None) == (theirs.pixels.kept is not None) == kept
        np.testing.assert_array_equal(streamed(ours.pixels), decoded(ours.paths, (10, 10), "squash"))
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert other.fingerprint() == data.fingerprint()
