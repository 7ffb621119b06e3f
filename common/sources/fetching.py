"""Fetch pretrained files once: with progress, resumed after interruptions, verified, unpacked safely."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import shutil
import tarfile
import tempfile
import time
import zlib
from pathlib import Path

import requests
from filelock import FileLock

from common.errors import UserError, first_line
from common.files import room_for, write_json
from common.progress import ProgressLine

_TRIES = 4
_SECONDS_TO_ANSWER = 30
_CHUNK = 2**16  # bytes; a partial chunk is lost when a connection breaks
# Formats that run code when they are read; no SavedModel holds such a file.
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".dill")


# --- one file -------------------------------------------------------------------------------------------


def fetch_file(url: str, path: Path, digest: str | None = None, *, what: str | None = None) -> Path:
    """Fetch one file over HTTP, resuming an interrupted download; only a complete file gets its name.

    Args:
        url: of the file; redirects are followed.
        path: of the destination; `path` + `.partial` holds the bytes received so far.
        digest: expected SHA-256 (64 hex digits) or MD5 (32); None where none is published.
        what: name for progress lines; the name of the file where None.

    Returns:
        The path.

    Raises:
        UserError: no network, no such file, repeated connection failures, a full disk, or a wrong
            hash. Received bytes are kept, except after a wrong hash.
    """
    if path.is_file() and (digest is None or file_digest(path, digest) == digest):
        return path
    make_folder(path.parent)
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
                if attempt == _TRIES - 1 or not answered:  # nothing was received: there is no network
                    raise UserError(_no_connection(url, path, partial, error)) from error
                time.sleep(2**attempt / 2)
        received = file_digest(partial, digest) if digest else None
        if received != digest:
            partial.unlink()
            raise UserError(
                f"The file from {url} has a wrong hash and was removed. Expected hash: {digest}. "
                f"Received: {received}. Either it changed on the server, or it was modified in transit."
            )
        os.replace(partial, path)
        partial.with_name(partial.name + ".json").unlink(missing_ok=True)
    return path


def file_digest(path: Path, like: str = "0" * 64) -> str:
    """Return the SHA-256 of a file in hex, or its MD5 where the digest to compare with has that length."""
    hasher = hashlib.md5(usedforsecurity=False) if len(like) == 32 else hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            hasher.update(block)
    return hasher.hexdigest()


def _fetch_rest(url: str, partial: Path, what: str) -> None:
    """Append the missing bytes to the partial file; start over where the file on the server has changed."""
    about = partial.with_name(partial.name + ".json")
    known = read_object(about) if partial.is_file() else {}
    have = _size(partial) if known.get("url") == url and known.get("version") else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": known["version"]}
    with requests.get(url, headers=headers, stream=True, timeout=_SECONDS_TO_ANSWER) as response:
        if response.status_code == 416 and have == known["bytes"]:  # it was complete when the process was killed
            return
        if response.status_code == 416:  # the partial file is not a beginning of the file
            partial.unlink()
            raise requests.ConnectionError(f"the server has no data after byte {have:,}")
        if response.status_code not in (200, 206):
            raise UserError(_refused(url, response))
        have = have if response.status_code == 206 else 0
        packed = response.headers.get("Content-Encoding", "identity") != "identity"  # although identity was requested
        length = None if packed else response.headers.get("Content-Length")
        total = have + int(length) if length else None
        # A weak ETag must not be used to resume (RFC 9110, 13.1.5); without any mark the next attempt starts over.
        tag = response.headers.get("ETag", "")
        version = response.headers.get("Last-Modified") if tag.startswith("W/") or not tag else tag
        version = None if packed else version
        write_json(about, {"url": url, "version": version, "bytes": total})

        megabytes = f"{total / 1e6:,.1f} MB" if total else "size unknown"
        print(f"Fetching {what}, {megabytes}, from {url}{f', resuming at {have / 1e6:,.1f} MB' if have else ''}")
        progress = ProgressLine("kB", -(-total // 1000) if total else 0)
        with partial.open("ab" if have else "wb") as file:
            for block in response.iter_content(_CHUNK):
                file.write(block)
                have += len(block)
                progress.update(have // 1000)
        progress.close()
    if total and have != total:  # older versions of urllib3 treat a connection that closes early as the end
        raise requests.ConnectionError(f"{have:,} of {total:,} bytes received")


def read_object(path: Path) -> dict:
    """Read a JSON object; empty where the file holds anything else, as a killed process may leave it."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be created: {error.strerror}. The environment variables TFHUB_CACHE_DIR, "
            "KERAS_HOME and XDG_CACHE_HOME set where models are kept."
        ) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _no_connection(url: str, path: Path, partial: Path, error: Exception) -> str:
    kept = f" {_size(partial):,} bytes are kept, and the next attempt resumes from there." if _size(partial) else ""
    return (
        f"{url} cannot be fetched (no network?).{kept} Fetch it on a machine with network and place it at {path}. "
        f"Error: {first_line(error)}"
    )


def _refused(url: str, response: requests.Response) -> str:
    reasons = {
        401: "it requires a login",
        403: "it requires a login, or accepting its licence on its page first",
        404: "there is no such file or model",
        429: "too many requests; try again in a few minutes",
    }
    reason = reasons.get(response.status_code, response.reason)
    return f"{url} cannot be fetched: {reason} (HTTP {response.status_code})."


# --- an archive -----------------------------------------------------------------------------------------


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a tar file of plain files and folders.

    Args:
        archive: .tar or .tar.gz.
        folder: new; appears only when everything is unpacked.

    Returns:
        The folder.

    Raises:
        UserError: not an archive, a damaged one, a path that leaves the folder, a link, or a pickle.
    """
    make_folder(folder.parent)
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
            while tar.fileobj.read(2**20):  # to the end, to verify the checksum
                pass
        os.replace(aside, folder)
    except tarfile.FilterError as error:
        raise UserError(f"{archive} holds a path that leaves its folder; it is not unpacked: {error}") from error
    except UserError:
        raise
    except (tarfile.TarError, EOFError, OSError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{archive} is not a complete tar archive: {error}. Remove it and fetch it again.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


# --- TF Hub and Kaggle handles ---------------------------------------------------------------------------


# --- entries of the catalogue -----------------------------------------------------------------------------
