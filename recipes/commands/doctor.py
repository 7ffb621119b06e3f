"""What is wrong with this installation (versions, disk, GPUs, caches, network), and how to fix it."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from common.sources.catalogue import CATALOGUE

ROOT = Path(__file__).resolve().parents[2]
DISK_NEEDED, MEMORY_NEEDED = 5e9, 3e9  # bytes: TensorFlow and a run; a run with a large backbone
_OURS = ("tensorflow", "keras", "keras-hub", "keras-nlp", "keras-cv", "tensorflow-hub", "tf-keras", "tensorflow-text")
_SERVERS = {
    "https://tfhub.dev": "hub:https://tfhub.dev/...",
    "https://www.kaggle.com": "kaggle:... and preset:NAME",
    "https://huggingface.co": "preset:hf://... and minilm",
    "https://storage.googleapis.com": "keras:NAME",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: `ok`; `note`, which only some need to know; or `wrong`, which breaks something.
        text: what was found.
        mend: the command, or the act, that mends it.
    """

    level: str
    text: str
    mend: str = ""


def main(arguments: list[str], root: Path) -> int:
    """Print every finding; 1 where something is wrong."""
    argparse.ArgumentParser(prog="python -m recipes doctor", description=main.__doc__).parse_args(arguments)
    wrong = 0
    for title, look in _CHAPTERS.items():
        print(f"{title}", flush=True)
        for finding in look():
            mark = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}[finding.level]
            print(f"  {mark} {finding.text}" + (f"\n        mend: {finding.mend}" if finding.mend else ""), flush=True)
            wrong += finding.level == "wrong"
    print("nothing is wrong" if not wrong else f"{wrong} to mend")
    return 1 if wrong else 0


def look_at_versions(requirements: Path = ROOT / "requirements.txt") -> Iterator[Finding]:
    """Compare what is installed with what is tested, and with what the packages want of each other."""
    suits = (3, 11) <= sys.version_info < (3, 14)  # of a newer one there is no TensorFlow that was tested
    yield Finding("ok" if suits else "wrong", f"Python {sys.version.split()[0]}; tested with 3.11 to 3.13",
                  "" if suits else "PYTHON=python3.11 make demo")  # fmt: skip
    mend = "pip install -r requirements.txt"
    for line in requirements.read_text("utf-8").splitlines():
        text = line.split("#")[0].strip()
        if not text:
            continue
        wanted, found = Requirement(text), _version(Requirement(text).name)
        if found is None:
            yield Finding("wrong", f"{wanted.name} is not installed; tested with {wanted.specifier}", mend)
        elif wanted.name == "setuptools" and not wanted.specifier.contains(found):
            yield Finding("note", f"setuptools {found} has no pkg_resources; for tensorflow-hub a stand-in is used")
        elif not wanted.specifier.contains(found, prereleases=True):
            yield Finding("wrong", f"{wanted.name} {found}; tested with {wanted.specifier}", mend)
        elif wanted.name in _OURS:
            yield Finding("ok", f"{wanted.name} {found}")
    yield from _look_at_pairs()


def _look_at_pairs() -> Iterator[Finding]:
    """Known to break each other: what must be of TensorFlow's own minor version, and what each declares it needs."""
    tensorflow = _version("tensorflow")
    for name in ("tf-keras", "tensorflow-text"):
        found = _version(name)
        if tensorflow and found and Version(found).release[:2] != Version(tensorflow).release[:2]:
            wanted = ".".join(map(str, Version(tensorflow).release[:2]))
            yield Finding("wrong", f"{name} {found} with TensorFlow {tensorflow}", f"pip install '{name}=={wanted}.*'")
    for name in (*_OURS, "protobuf"):
        for text in importlib.metadata.requires(name) or () if _version(name) else ():
            wanted = Requirement(text)
            found = _version(wanted.name)
            applies = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
            if applies and found and not wanted.specifier.contains(found, prereleases=True):
                text = f"{name} {_version(name)} wants {wanted.name}{wanted.specifier}, and {found} is installed"
                yield Finding("wrong", text, f"pip install '{wanted.name}{wanted.specifier}'")


def look_at_room() -> Iterator[Finding]:
    """Free disk where runs and caches are written, and free memory."""
    for what, folder in (("here", "."), ("in your home folder", "~")):
        try:
            free = shutil.disk_usage(os.path.expanduser(folder)).free
        except OSError as error:
            yield Finding("wrong", f"the disk {what} cannot be looked at: {error}", "change to a folder that exists")
            continue
        yield _enough(free, DISK_NEEDED, f"of disk free {what}", "make room, or choose another --out")
    table = Path("/proc/meminfo")  # not on macOS
    lines = table.read_text("utf-8").splitlines() if table.exists() else []
    for free in (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")):
        yield _enough(free, MEMORY_NEEDED, "of memory free", "close what else runs, or --batch-size 8")


def _enough(found: float, needed: float, what: str, mend: str) -> Finding:
    text = f"{found / 1e9:,.1f} GB {what}"
    return Finding("ok", text) if found >= needed else Finding("note", f"{text}; {needed / 1e9:g} GB is safer", mend)


def look_at_gpus() -> Iterator[Finding]:
    """What the driver sees, and what TensorFlow sees of it."""
    listed = ""
    if shutil.which("nvidia-smi"):
        with contextlib.suppress(subprocess.TimeoutExpired):
            said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
            listed = said.stdout if said.returncode == 0 else ""
    driver = [line.split(" (")[0] for line in listed.splitlines() if line.startswith("GPU")]
    program = "import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))"
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=quiet)
    if said.returncode:
        line = (said.stderr.strip().splitlines() or ["no message"])[-1]
        yield Finding("wrong", f"TensorFlow cannot be imported: {line}", "pip install -r requirements.txt")
        return
    seen = int(said.stdout.strip().splitlines()[-1])
    if driver and not seen:
        text = f"the driver has {', '.join(driver)}, but TensorFlow sees none"
        yield Finding("wrong", text, f"pip install 'tensorflow[and-cuda]=={_version('tensorflow')}'")
    elif seen:
        yield Finding("ok", f"TensorFlow sees {seen} GPU(s)")
    else:
        yield Finding("ok", "no GPU: training runs on the CPU")


def look_at_caches() -> Iterator[Finding]:
    """Whether what was fetched before is whole."""
    from common.sources.entries import missing_files
    from common.sources.handles import Handle, hub_cache
    from common.sources.hub_cache import what_is_wrong

    cache = hub_cache()
    folders = sorted(path for path in cache.glob("*") if path.is_dir() and re.fullmatch("[0-9a-f]{40}", path.name))
    bad = 0
    for folder in folders:
        manifest = folder.with_name(folder.name + ".manifest.json")
        try:
            url = json.loads(manifest.read_text("utf-8"))["handle"]
        except (OSError, ValueError, KeyError, TypeError):
            url = None
        problem = what_is_wrong(Handle(url or "", folder))
        if problem is None and not (folder / "saved_model.pb").is_file():
            problem = "saved_model.pb is missing."
        if problem:
            bad += 1
            mend = f"python -m recipes fetch 'hub:{url}'" if url else f"rm -r {folder}, and fetch its handle again"
            yield Finding("wrong", f"{url or 'a model'} in {folder}: {problem}", mend)
    yield Finding("ok", f"TF Hub models in {cache}: {len(folders) - bad} whole")
    for entry in CATALOGUE.values():
        if entry.sha256 and entry.folder.is_dir():
            missing = missing_files(entry)
            text = f"{entry.name} in {entry.folder}" + (f": not whole: {', '.join(missing)}" if missing else "")
            yield Finding(
                "wrong" if missing else "ok", text, f"python -m recipes fetch {entry.name}" if missing else ""
            )
    for partial in sorted(cache.glob("*.partial")):
        yield Finding("note", f"{partial} is a fetch that broke off", "fetch it again: it goes on from there")


def look_at_network(seconds: float = 4.0) -> Iterator[Finding]:
    """Which of the servers that hold pretrained models can be reached from here."""
    import requests

    def reach(url: str) -> str:
        try:
            requests.head(url, timeout=seconds)
        except requests.RequestException as error:
            return type(error).__name__
        return ""

    with ThreadPoolExecutor() as pool:
        for (url, needs), problem in zip(_SERVERS.items(), pool.map(reach, _SERVERS), strict=True):
            if problem:
                mend = "on a machine that reaches it: python -m recipes fetch SOURCE, and copy the folder"
                yield Finding("note", f"{url} cannot be reached ({problem}); needed for {needs}", mend)
            else:
                yield Finding("ok", f"{url} answers")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


_CHAPTERS = {
    "versions": look_at_versions,
    "room": look_at_room,
    "GPUs": look_at_gpus,
    "caches": look_at_caches,
    "network": look_at_network,
}
