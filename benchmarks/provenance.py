"""Where a measured number comes from: the commit, the processor, and a hash of the code and data that can change it.

    from provenance import stale_rows
    stale_rows(root, "image_classification", rows)   # the names of those that other code has measured

What is outside the checkout (prepared data, downloaded weights, packages) is not hashed; a row records the versions.
"""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from common.sources.catalogue import CatalogueEntry, read_catalogue
from recipes.commands._closure import closure

# Modules of a recipe's import closure that cannot change a score, by prefix. A module that is not named here counts.
LEFT_OUT = (
    # What is printed and written about scores, and the predictions shown to explain them
    "common.results", "common.reporting", "common.progress", "common.tracking",
    "common.classification.report", "common.detection.report", "common.detection.report_images",
    "common.detection.findings", "common.speech.report",
    "common.images.explain", "common.images.gradcam", "common.images.data_quality", "common.texts.explain",
    # Previews of samples, and `check`
    "common.images.preview", "common.texts.preview", "common.detection.drawing", "common.speech.samples",
    "common.speech.audio.playback", "common.classification.check",
    # Everything after the evaluation: export, proof, conversion, serving, `predict`. A wrong export fails its proof.
    "common.exporting", "common.slim_graph", "common.classification.export", "common.images.export",
    "common.texts.export", "common.speech.export", "common.speech.audio.in_graph", "common.proof", "common.converting",
    "common.images.convert", "common.detection.convert", "common.serving", "common.classification.answers",
    "common.detection.answers", "common.speech.answers", "common.speech.long_recordings",
    # Refusals of wrong flags, and their messages
    "common.flags", "common.errors",
)  # fmt: skip

# Files of the demos, by the package of common that reads them and the value of --data. The others are drawn by code.
DEMOS = {
    ("images", "demo"): ("demo_clothing",), ("texts", "demo"): ("demo_products",),
    ("texts", "demo:reviews"): ("demo_reviews.tsv",), ("detection", "demo"): ("demo_cells",),
    ("speech", "demo"): ("demo_words", "demo_voices"), ("speech", "demo:synthetic"): ("demo_synthetic",),
}  # fmt: skip

NAMING = ("source", "teacher", "word_vectors")  # flags that may name an entry of the catalogue


def row_hash(root: Path, recipe: str, command: str) -> str:
    """Return the hash of all that can change the scores of a command: code, bundled weights and demo data.

    Args:
        root: of the checkout.
        recipe: its name.
        command: as it is typed; `--data` and `--source` say which data files count.

    Returns:
        16 hexadecimal digits. Comments, docstrings and formatting do not change them.
    """
    return _combined(root, _code_digests(root, recipe), recipe, command)


def stale_rows(root: Path, recipe: str, rows: Iterable[dict]) -> set[str]:
    """Return the names of the rows of results.json whose hash is not that of the checkout, or that have none."""
    code = _code_digests(root, recipe)
    return {row["name"] for row in rows if row.get("code") != _combined(root, code, recipe, row["command"])}


def code_files(root: Path, recipe: str) -> list[Path]:
    """Return the Python files that can change a recipe's scores: those that it imports, apart from LEFT_OUT."""
    reached = closure(root, [root / "recipes" / recipe / "recipe.py"], on_demand=True)
    names = {file: ".".join(file.relative_to(root).with_suffix("").parts) for file in reached}
    return [file for file, name in names.items() if not _is_left_out(name)]


def code_digest(file: Path) -> str:
    """Return the hash of a Python file without its comments, docstrings and formatting."""
    return hashlib.sha256(" ".join(_tokens(ast.parse(file.read_bytes()))).encode()).hexdigest()


def data_files(root: Path, recipe: str, command: str) -> list[Path]:
    """Return the files of the checkout that a command reads: the weights of a bundled source, and the demo data.

    Args:
        root: of the checkout.
        recipe: its name.
        command: as it is typed. Flags that it does not name have the default of the recipe's Config.

    Returns:
        The files, sorted. The cards of bundled sources are not among them: they describe the weights.
    """
    given = _flags(command)
    recipe_file = root / "recipes" / recipe / "recipe.py"
    files: set[Path] = set()
    source = given.get("--source") or _default(recipe_file, "source") or ""
    if bundled := re.match(r"(?:bundled:)?(\w+)(?:@random)?$", source):  # short names are those of the folders
        files.update(_files_under(root / "common" / "bundled" / bundled[1]))
    if (places := root / "common" / "images" / f"{source.partition('@')[0]}.json").is_file():
        files.add(places)  # where the weights lie in the file that is fetched
    if "scratch" in given.get("--baselines", ""):  # its small network has the architecture of another source
        files.update((root / "common" / "bundled").glob("*/config.json"))
    data = given.get("--data") or _default(recipe_file, "data")
    packages = set(re.findall(r"common\.(\w+)\.(?:dataset|sentences)", recipe_file.read_text("utf-8")))
    for path in (root / "common" / package / demo for package in packages for demo in DEMOS.get((package, data), ())):
        files.update(_files_under(path) if path.is_dir() else [path])
    return sorted(file for file in files if file.suffix != ".py" and file.name != "card.json")


def commit(root: Path) -> str:
    """Return the commit of the checkout, short, with "+changes" where its code has uncommitted ones."""
    head = _git(root, "rev-parse", "--short", "HEAD")
    if not head:
        return "unknown"
    code = ("common", "recipes", ":!*.md", ":!recipes/*/results.json")
    return f"{head}+changes" if _git(root, "status", "--porcelain", "--", *code) else head


def machine() -> dict[str, str | int]:
    """Return the processor, with its family and model where the name alone is vague, and the number of cores."""
    info = Path("/proc/cpuinfo")
    known = dict(re.findall(r"^(\S[^\t:]*)\s*: (.*)$", info.read_text(), re.MULTILINE)) if info.exists() else {}
    name = known.get("model name") or platform.processor() or platform.machine()
    model = [f"{key.removeprefix('cpu ')} {known[key]}" for key in ("cpu family", "model") if key in known]
    return {"processor": f"{name} ({', '.join(model)})" if model else name, "cores": os.cpu_count() or 1}


def _code_digests(root: Path, recipe: str) -> dict[Path, str]:
    return {file: code_digest(file) for file in code_files(root, recipe)}


def _combined(root: Path, code: dict[Path, str], recipe: str, command: str) -> str:
    data = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in data_files(root, recipe, command)}
    lines = [f"{file.relative_to(root).as_posix()} {digest}" for file, digest in (code | data).items()]
    lines += [
        f"{name} {entry.source} {sorted(entry.sha256.items())}" for name, entry in _entries(root, recipe, command)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _entries(root: Path, recipe: str, command: str) -> list[tuple[str, CatalogueEntry]]:
    """Return the entries of the catalogue that a command names, or that are defaults: what they lead to counts."""
    recipe_file, given = root / "recipes" / recipe / "recipe.py", _flags(command)
    named = {given.get(f"--{flag.replace('_', '-')}") or _default(recipe_file, flag) for flag in NAMING}
    catalogue = read_catalogue(root / "common" / "sources" / "catalogue.toml")
    return [(name, entry) for name, entry in catalogue.items() if name in named]


def _flags(command: str) -> dict[str, str]:
    return {flag: value for flag, value in pairwise(shlex.split(command)) if flag.startswith("--")}


def _is_left_out(name: str) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in LEFT_OUT)


def _tokens(node: object) -> Iterator[str]:
    """Yield a syntax tree as words; empty fields are skipped, since they differ among versions of Python."""
    if isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for name, value in ast.iter_fields(node):
            if value is not None and value != []:
                yield name
                yield from _tokens(value)
        yield ")"
    elif isinstance(node, list):
        for inner in node:
            if not _is_text_alone(inner):
                yield from _tokens(inner)
    else:
        yield repr(node)


def _is_text_alone(node: object) -> bool:
    """Return whether a node is a string that is a statement: a docstring, or a comment written as one."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _default(recipe_file: Path, field: str) -> str | None:
    for node in ast.parse(recipe_file.read_bytes()).body:
        if isinstance(node, ast.ClassDef) and node.name == "Config":
            for entry in node.body:
                if isinstance(entry, ast.AnnAssign) and entry.value and getattr(entry.target, "id", "") == field:
                    return ast.literal_eval(entry.value)
    return None


def _files_under(folder: Path) -> Iterable[Path]:
    return (file for file in folder.rglob("*") if file.is_file())


def _git(root: Path, *arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:  # no git here
        return ""
