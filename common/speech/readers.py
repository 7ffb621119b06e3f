"""The user's data as rows of (sound file, text, speaker, split): tables, manifests, LibriSpeech, LJSpeech, folders."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from common.data.folders import files_under, split_of_words
from common.data.splits import SPLIT_OF_NAME
from common.data.tables import read_text_file
from common.errors import UserError, did_you_mean
from common.speech.audio.decode import READABLE, SOUND_SUFFIXES

TASKS = ("transcripts", "commands", "sounds")
# Usual names of the columns in published data sets, in order of precedence.
_PATH_NAMES = ("path", "audio_filepath", "audio_path", "file_name", "filename", "file", "audio", "wav")
_TEXT_NAMES = ("text", "sentence", "transcript", "transcription", "normalized_text")
_LABEL_NAMES = ("label", "class", "command", "keyword", *_TEXT_NAMES)
_SPEAKER_NAMES = ("speaker", "client_id", "speaker_id", "spk_id")
_ENDINGS = {"csv": (".csv",), "tsv": (".tsv", ".tab"), "manifest": (".json", ".jsonl", ".ndjson")}
_DELIMITERS = {"csv": ",;|\t", "tsv": "\t"}
# Folders of sounds next to their table: Common Voice, LJSpeech.
_BESIDE = ("", "clips", "wavs", "wav", "audio", "recordings")
_NOISE = "_background_noise_"  # of Speech Commands: minutes of noise, not a class
_ONE_VOICE = "the one voice"  # the LJSpeech layout has no column of speakers


@dataclass(frozen=True)
class SpeechRow:
    """One sound of the user's data.

    Attributes:
        path: of the file.
        text: transcript or class name, or "".
        speaker: "" if unknown.
        split: None if not given.
        seconds: the length stated in a manifest, or None.
        begin: offset of the clip in the file, seconds; above 0 it is a piece of a longer recording.
    """

    path: str
    text: str
    speaker: str = ""
    split: str | None = None
    seconds: float | None = None
    begin: float = 0.0


@dataclass(frozen=True)
class SpeechColumns:
    """Names of the columns of a table, or None for the usual ones (path, text or sentence, client_id ...)."""

    path: str | None = None
    text: str | None = None
    label: str | None = None
    speaker: str | None = None
    split: str | None = None
    encoding: str = "utf-8"


def speech_rows(kind: str, path: Path, task: str, columns: SpeechColumns) -> list[SpeechRow]:
    """Read the data of `--data KIND:PATH`.

    Args:
        kind: folder, csv, tsv or manifest.
        path: of the file or folder.
        task: one of TASKS; the text of a row is a transcript, the name of its class, or for sounds any text.
        columns: of tables.

    Raises:
        UserError: the data is of another kind, lacks a column, or a path leads out of its folder.
    """
    if kind == "folder":
        return folder_rows(path, task, columns)
    return table_rows(kind, path, task, columns)


# --- folders ----------------------------------------------------------------------------------------------


def folder_rows(root: Path, task: str, columns: SpeechColumns) -> list[SpeechRow]:
    """Read class folders for commands; LibriSpeech, LJSpeech or Common Voice as unpacked for transcripts; all files in
    the folder for sounds.

    Raises:
        UserError: there are no transcripts, or folders of splits and of classes are mixed.
    """
    if task == "commands":
        return _class_folder_rows(root)
    if task == "sounds":
        return [
            SpeechRow(str(file), "", split=_split_of_folders(file.relative_to(root)))
            for file in sorted(files_under(root))
            if _is_sound(file)
        ]
    if transcripts := [file for file in sorted(files_under(root)) if file.name.endswith(".trans.txt")]:
        return [row for file in transcripts for row in _librispeech_rows(root, file, columns.encoding)]
    if (root / "metadata.csv").is_file():
        return table_rows("csv", root / "metadata.csv", task, columns)
    if any(_split_of_file("tsv", file) for file in root.iterdir()):
        return table_rows("tsv", root, task, columns)
    found = ", ".join(repr(path.name) for path in sorted(root.iterdir())[:5]) or "nothing"
    raise UserError(
        f"--data folder:{root} has no transcripts. Allowed: LibriSpeech (*.trans.txt next to the sounds), LJSpeech "
        f"(metadata.csv), Common Voice (train.tsv, clips/). Received: {found}. For a table with the columns path and "
        "text: --data csv:FILE. For class folders: python -m recipes run speech_commands"
    )


def _librispeech_rows(root: Path, transcripts: Path, encoding: str) -> Iterator[SpeechRow]:
    """Yield a row per line of `*.trans.txt`, and one without text per sound that has no line."""
    sounds = {path.stem: path for path in sorted(transcripts.parent.iterdir()) if _is_sound(path)}
    split = _split_of_folders(transcripts.relative_to(root))
    for line in read_text_file("folder", transcripts, encoding).splitlines():
        name, _, text = line.strip().partition(" ")
        if name:
            path = sounds.pop(name, transcripts.with_name(f"{name}.flac"))
            yield SpeechRow(str(path), text.strip(), name.partition("-")[0], split)
    for path in sounds.values():
        yield SpeechRow(str(path), "", path.stem.partition("-")[0], split)


def _split_of_folders(file: Path) -> str | None:
    """Return the split named by a folder above the file, such as dev-clean."""
    splits = (split_of_words(name) for name in file.parent.parts)
    return next(filter(None, splits), None)


def _class_folder_rows(root: Path) -> list[SpeechRow]:
    folders = _subfolders(root)
    named = [folder for folder in folders if folder.name.lower() in SPLIT_OF_NAME]
    if named and len(named) < len(folders):
        others = [folder.name for folder in folders if folder not in named]
        raise UserError(
            f"--data folder:{root} mixes splits and classes: {', '.join(map(repr, others[:5]))} next to "
            "train/val/test. Allowed: either class folders, or train, val and test with class folders inside. "
            "A class with the name of a split needs a table: --data csv:PATH"
        )
    if named:
        return [row for folder in named for row in _class_rows(folder, SPLIT_OF_NAME[folder.name.lower()], {})]
    lists = {"val": root / "validation_list.txt", "test": root / "testing_list.txt"}  # of Speech Commands
    listed = {
        line.strip(): split
        for split, file in lists.items()
        if file.is_file()
        for line in read_text_file("folder", file, "utf-8").splitlines()
    }
    return _class_rows(root, "train" if listed else None, listed)


def _class_rows(root: Path, split: str | None, listed: dict[str, str]) -> list[SpeechRow]:
    """Return a row per sound, without a label outside the class folders; an empty class has a row with its folder."""
    rows = [SpeechRow(str(path), "", split=split) for path in sorted(root.iterdir()) if _is_sound(path)]
    for folder in _subfolders(root):
        if folder.name == _NOISE:
            continue
        for path in [path for path in sorted(files_under(folder)) if _is_sound(path)] or [folder]:
            name = path.relative_to(root).as_posix()
            rows.append(SpeechRow(str(path), folder.name, _speaker_of_name(path.name), listed.get(name, split)))
    return rows


def _speaker_of_name(name: str) -> str:
    """Return the speaker in file names of Speech Commands such as 0a7c2a8d_nohash_0.wav."""
    found = re.match(r"([0-9a-f]{6,})_nohash_\d+\.", name)
    return found[1] if found else ""


def _subfolders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _is_sound(path: Path) -> bool:
    return path.suffix.lower() in SOUND_SUFFIXES


# --- tables and manifests ---------------------------------------------------------------------------------


def table_rows(kind: str, path: Path, task: str, columns: SpeechColumns) -> list[SpeechRow]:
    """Read a table or a manifest (a JSON object per line), or a folder with one per split.

    Args:
        kind: csv (comma, semicolon or LJSpeech's bar), tsv, or manifest; each may be compressed (`.gz`). A manifest
            with the suffix .csv or .tsv is read as such a table.
        path: of the file or folder; paths of sounds are relative to its folder.
        task: one of TASKS.
        columns: of the table.

    Raises:
        UserError: it is not such a table, lacks a column, or has a path that leads out of its folder.
    """
    if not path.is_dir():
        rows = list(_file_rows(kind, path, task, columns, None))
    elif kind == "csv" and (path / "metadata.csv").is_file():
        rows = list(_file_rows(kind, path / "metadata.csv", task, columns, None))
    else:
        rows = list(_rows_of_splits(kind, path, task, columns))
    if len({row.split is None for row in rows}) > 1:
        raise UserError(
            f"--data {kind}:{path}: some lines have a split and some have none. Fill in all or remove the column."
        )
    return rows


def _rows_of_splits(kind: str, folder: Path, task: str, columns: SpeechColumns) -> Iterator[SpeechRow]:
    """Yield the rows of the tables of all splits; no clip may be in two tables of the same split."""
    named_by: dict[tuple, Path] = {}
    for file, split in _tables_of_splits(kind, folder).items():
        for row in _file_rows(kind, file, task, columns, split):
            other = named_by.setdefault((row.split, row.path, row.begin), file)
            if other != file:
                raise UserError(
                    f"--data {kind}:{folder}: {other.name} and {file.name} are both read as {row.split}, and both "
                    f"contain {row.path!r}. Keep one of them in the folder, or read only one: --data {kind}:{other}"
                )
            yield row


def _tables_of_splits(kind: str, folder: Path) -> dict[Path, str]:
    files = {file: _split_of_file(kind, file) for file in sorted(folder.iterdir())}
    tables = {file: split for file, split in files.items() if split}
    if not tables:
        found = ", ".join(file.name for file in list(files)[:10] if file.is_file()) or "no file"
        raise UserError(
            f"--data {kind}:{folder} is a folder without tables of splits. Allowed: train{_ENDINGS[kind][0]}, and val "
            f"(or dev) or test. Received: {found}."
        )
    return tables


def _split_of_file(kind: str, file: Path) -> str | None:
    name = file.name.lower().removesuffix(".gz")
    ending = next((ending for ending in _ENDINGS[kind] if name.endswith(ending)), None)
    return split_of_words(name.removesuffix(ending)) if ending and file.is_file() else None


def _file_rows(kind: str, file: Path, task: str, columns: SpeechColumns, split: str | None) -> Iterator[SpeechRow]:
    content = read_text_file(kind, file, columns.encoding)
    suffix = Path(file.name.lower().removesuffix(".gz")).suffix
    if kind == "manifest":
        kind = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv"}.get(suffix, kind)
    lines = _json_lines(file, content) if kind == "manifest" else _table_lines(kind, file, content, columns)
    lines = list(lines)
    if not lines:
        return
    # A manifest may omit a field in some lines: the fields of all lines are columns.
    names = _columns_of(kind, file, {name: None for _, cells in lines for name in cells}, task, columns)
    finder = _Finder(file, kind == "manifest")
    for number, cells in lines:
        yield _row(f"--data {kind}:{file}, line {number}", cells, names, split, finder)


def _row(where: str, cells: dict[str, Any], names: dict[str, str], of_file: str | None, finder: _Finder) -> SpeechRow:
    text, speaker, split = (_words(cells.get(names.get(what))) for what in ("text", "speaker", "split"))
    if split and split.lower() not in SPLIT_OF_NAME:
        raise UserError(f"{where}: unknown split {split!r}. Allowed: train, val, test.")
    path = finder.find(where, str(cells.get(names["path"]) or "").strip())
    # NeMo's fields; in a table these names may have another meaning.
    seconds, begin = (
        _number(where, name, cells.get(name)) if finder.manifest else None for name in ("duration", "offset")
    )
    return SpeechRow(path, text, speaker, of_file or SPLIT_OF_NAME.get(split.lower()), seconds, begin or 0.0)


def _words(cell: Any) -> str:
    return "" if cell is None else " ".join(str(cell).split())


def _number(where: str, name: str, cell: Any) -> float | None:
    if cell in (None, ""):
        return None
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise UserError(f"{where}: {name} must be a number of seconds. Received: {cell!r}.") from None


def _columns_of(kind: str, file: Path, cells: dict, task: str, columns: SpeechColumns) -> dict[str, str]:
    """Return the columns of path, text, speaker and split that exist."""
    commands = task == "commands"
    text_flag, text_column = ("--label-column", columns.label) if commands else ("--text-column", columns.text)
    known = (
        ("path", "--path-column", columns.path, _PATH_NAMES, True),
        ("text", text_flag, text_column, _LABEL_NAMES if commands else _TEXT_NAMES, task != "sounds"),
        ("speaker", "--speaker-column", columns.speaker, _SPEAKER_NAMES, False),
        ("split", "--split-column", columns.split, ("split",), False),
    )
    names = {}
    for what, flag, given, usual, required in known:
        found = [name for name in ((given,) if given else usual) if name in cells]
        if found:
            names[what] = found[0]
        elif given or required:
            raise UserError(
                f"--data {kind}:{file} has no column {given or ' or '.join(usual[:3])!r}. Received: "
                f"{', '.join(repr(str(name)[:40]) for name in list(cells)[:12]) or 'none'}."
                f"{did_you_mean(given or what, map(str, cells))} Choose a column: {flag} NAME"
            )
    return names


class _Finder:
    """Finds the sounds of a table: relative to its folder, or in one of the usual folders next to it.

    Args:
        table: the file.
        manifest: whether it is a manifest.
    """

    def __init__(self, table: Path, manifest: bool):
        self.folder, self.manifest = table.parent, manifest
        self.beside = [self.folder / name for name in _BESIDE if (self.folder / name).is_dir()]
        self._stems: dict[str, Path] | None = None

    def find(self, where: str, name: str) -> str:
        """Return the path of a sound; if it does not exist, relative to the folder of the table.

        Raises:
            UserError: the path leads out of that folder by `..`.
        """
        if not name:
            return ""
        if os.path.normpath(name.replace("\\", "/")).split("/")[0] == "..":
            raise UserError(
                f"{where}: the path leads out of the folder of the table. Allowed: paths inside {self.folder}, and "
                f"absolute paths. Received: {name!r}. Put the table into a folder above all sounds."
            )
        for folder in self.beside:
            if os.path.lexists(folder / name):  # an absolute name is kept as it is
                return str(folder / name)
        return str(self._without_suffix().get(name, self.folder / name))

    def _without_suffix(self) -> dict[str, Path]:
        """Return the sounds by file name without suffix, as used by LJSpeech."""
        if self._stems is None:
            sounds = [path for folder in self.beside for path in sorted(folder.iterdir()) if _is_sound(path)]
            self._stems = {path.stem: path for path in reversed(sounds)}
        return self._stems


def _json_lines(file: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(content.split("\n"), start=1):  # not splitlines: texts may have other separators
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(
                f"--data manifest:{file}, line {number}, is not JSON: {error}. A manifest has an object per line: "
                '{"audio_filepath": "a.wav", "text": "..."}'
            ) from error
        if not isinstance(cells, dict):
            raise UserError(
                f"--data manifest:{file}, line {number}, is not an object. Allowed: an object per line, "
                f'{{"audio_filepath": "a.wav", "text": "..."}}. Received: {line.strip()[:60]!r}.'
            )
        yield number, cells


def _table_lines(kind: str, file: Path, content: str, columns: SpeechColumns) -> Iterator[tuple[int, dict[str, str]]]:
    csv.field_size_limit(sys.maxsize)  # a text may be long
    first = content.partition("\n")[0]
    delimiter = _delimiter(kind, first, columns)
    # Tables with tabs or bars have no quoting: a quotation mark in them is literal.
    quoting = csv.QUOTE_NONE if delimiter in "\t|" else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(content, newline=""), strict=True, delimiter=delimiter, quoting=quoting)
    try:
        filled = (cells for cells in reader if cells)
        names = [name.strip() for name in next(filled, [])]
        if _is_ljspeech(delimiter, names, columns):
            yield from ((reader.line_num, _ljspeech_cells(file, cells)) for cells in chain([names], filled))
            return
        for cells in filled:
            _check_width(kind, file, reader.line_num, names, cells)
            yield reader.line_num, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"--data {kind}:{file}, line {reader.line_num}, is not a line of a table: {error}.") from error


def _delimiter(kind: str, first: str, columns: SpeechColumns) -> str:
    """Return the separator of the cells: the one that splits the header into known names."""
    known = {columns.path, *_PATH_NAMES}
    for mark in _DELIMITERS[kind]:
        if known & {cell.strip().strip('"') for cell in first.split(mark)}:
            return mark
    return "|" if kind == "csv" and "|" in first else _DELIMITERS[kind][0]


def _is_ljspeech(delimiter: str, names: Sequence[str], columns: SpeechColumns) -> bool:
    """Return whether a table with bars has no header, as in LJSpeech."""
    return delimiter == "|" and not {columns.path, *_PATH_NAMES} & set(names)


def _ljspeech_cells(file: Path, cells: Sequence[str]) -> dict[str, str]:
    """Return the cells of `id|text as printed|text as spoken`; the last is the transcript ("Doctor" for "Dr.")."""
    if not 2 <= len(cells) <= 3:
        raise UserError(
            f"--data csv:{file} has bars and no header, as LJSpeech, but {len(cells)} cells. Allowed: id|text, "
            f"id|text|normalised text, or a header with column names. Received: {'|'.join(cells)[:60]!r}."
        )
    return {"path": cells[0], "text": cells[-1].strip() or cells[1], "speaker": _ONE_VOICE}


def _check_width(kind: str, file: Path, number: int, names: Sequence[str], cells: Sequence[str]) -> None:
    if len(cells) != len(names):
        raise UserError(
            f"--data {kind}:{file}, line {number}, must have {len(names)} cells, one per column. Received: "
            f"{len(cells)}.{' Put a text that contains a comma in quotes.' if kind == 'csv' else ''}"
        )


def no_sounds_advice(root: str) -> str:
    """Return the error message for data without sounds."""
    return f"--data {root!r} has no sounds. Allowed: {READABLE}; in a folder for commands, one folder per class."
