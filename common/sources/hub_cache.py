"""Models of TF Hub and Kaggle: resolved in the cache, verified, fetched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from common.errors import UserError
from common.files import write_json
from common.sources.fetching import fetch_file, file_digest, make_folder, read_object, unpack
from common.sources.handles import Handle, parse_handle


def resolve_handle(text: str, check: Callable[[Path], None] = lambda folder: None) -> Path:
    """Return the folder of a TF Hub or Kaggle model; fetch it first where it is missing or incomplete.

    Args:
        text: as for `parse_handle`.
        check: raises UserError for an unusable folder.

    Returns:
        A folder with every fetched file, byte for byte.

    Raises:
        UserError: it is missing or incomplete, and cannot be fetched.
    """
    handle = parse_handle(text)
    if what_is_wrong(handle, check) is None:  # without the lock: a cache may be read-only
        return handle.folder
    make_folder(handle.folder.parent)
    with FileLock(handle.folder.with_name(handle.folder.name + ".resolving.lock")):
        problem = what_is_wrong(handle, check)
        if problem is None:
            return handle.folder
        if handle.folder.exists():
            print(f"The copy of {handle.url} in {handle.folder} is incomplete: {problem} It is fetched again.")
        try:
            _fetch_model(handle, check)
        except UserError as error:
            raise UserError(
                f"{handle.url} cannot be used: {problem} Expected in: {handle.folder}. Without network, unpack "
                f"the model there, so that {handle.folder / 'saved_model.pb'} exists, or use --source hub:FOLDER. "
                f"{error}"
            ) from error
    return handle.folder


def what_is_wrong(handle: Handle, check: Callable[[Path], None] = lambda folder: None) -> str | None:
    """Compare the cached files of a handle with the hashes of the fetched ones.

    Args:
        handle: parsed.
        check: raises UserError for an unusable folder.

    Returns:
        A sentence, or None where nothing is wrong.
    """
    if not handle.folder.is_dir():
        return "It was not fetched yet."
    try:
        check(handle.folder)
    except UserError as error:
        return str(error)
    listed = read_object(handle.manifest).get("files") if handle.manifest.is_file() else {}
    if not isinstance(listed, dict):
        return f"{handle.manifest} cannot be read."
    for name, digest in listed.items():  # empty for a folder that the user or tensorflow_hub placed there
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
    shutil.rmtree(handle.folder, ignore_errors=True)  # only now: the user may want to inspect the earlier files
    os.replace(fresh, handle.folder)
    files = {path.relative_to(handle.folder).as_posix(): file_digest(path)
             for path in sorted(handle.folder.rglob("*")) if path.is_file()}  # fmt: skip
    write_json(handle.manifest, {"handle": handle.url, "archive_sha256": file_digest(archive), "files": files})
    archive.unlink()
