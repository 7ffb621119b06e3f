"""Speech with transcripts or labels: read, checked, and split so that no speaker is in two splits."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.data import splits
from common.data.folders import printable
from common.data.splits import SPLITS, some, split_labelled, untested_classes
from common.errors import UserError
from common.flags import parse_data
from common.speech.audio.decode import SAMPLE_RATE
from common.speech.checks import OFFSET_WORTH_A_NOTE, CheckedClip, Required, check_all
from common.speech.ctc.characters import Characters
from common.speech.readers import TASKS, SpeechColumns, SpeechRow, no_sounds_advice, speech_rows
from common.speech.split_by_speaker import assign_by_speaker, text_hash

DATA_KINDS = ("demo", "demo:synthetic", "folder", "csv", "tsv", "manifest")
SYNTHETIC = Path(__file__).parent / "demo_synthetic" / "manifest.tsv"  # benchmarks/speak.py wrote it
WORDS, VOICES = (SYNTHETIC.parents[1] / folder / "clips.csv" for folder in ("demo_words", "demo_voices"))  # demos.py
SYNTHETIC_DEMO = (
    "demo",
    3,
    "its --data demo was synthetic words, which are now --data demo:synthetic; --data demo is now recordings of people",
)  # what `redefined` of a recipe says
_READ_PER_LIMIT = 10  # times --limit: enough to split, and few enough for a quick look
_SCORED = Characters(("", " "))  # normalises transcripts as they are scored


@dataclass(frozen=True)
class SpeechExamples:
    """The clips of one split.

    Attributes:
        paths: file of each clip, str [n].
        texts: transcript or class name of each, str, object [n].
        labels: class number of each, int64 [n]; all 0 for transcripts.
        speakers: of each, str, object [n]; "" if unknown.
        seconds: length of each, float64 [n].
    """

    paths: np.ndarray
    texts: np.ndarray
    labels: np.ndarray
    speakers: np.ndarray
    seconds: np.ndarray

    @property
    def names(self) -> list[str]:
        """What identifies each clip: its path."""
        return [printable(path) for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, places: np.ndarray) -> SpeechExamples:
        """Return the clips at these positions."""
        return SpeechExamples(
            self.paths[places], self.texts[places], self.labels[places], self.speakers[places], self.seconds[places]
        )


@dataclass(frozen=True)
class SpeechSet:
    """A speech data set, split and checked.

    Attributes:
        name: the value of `--data`.
        train, val, test: for training, for every choice, and for the final measurement.
        skipped: (file, reason) of all skipped clips.
        notes: sentences on these clips that matter for the result.
        class_names: name of each class number, sorted; () for transcripts.
    """

    name: str
    train: SpeechExamples
    val: SpeechExamples
    test: SpeechExamples
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    counts = splits.count_examples

    def describe(self, name: str) -> str:
        """Return what `check` prints: counts, the first skipped files with reasons, the notes."""
        return "\n".join(
            [f"{name}: {self.counts()}", *(f"  {path}: {reason}" for path, reason in self.skipped[:10]),
             *(f"  {sentence}" for sentence in self.advice())]
        )  # fmt: skip

    def advice(self) -> tuple[str, ...]:
        """Return the notes, and the classes without test clips."""
        return (*self.notes, *untested_classes(self.class_names, self.test.labels, "clip"))

    def fingerprint(self) -> str:
        """Return a hash of paths, sizes, times and texts: equal for the same files."""
        digest = hashlib.sha256()
        for split in SPLITS:
            examples = getattr(self, split)
            for path, text in zip(examples.paths, examples.texts, strict=True):
                status = os.stat(path)
                line = f"{split}\0{path}\0{status.st_size}\0{status.st_mtime_ns}\0{text}\n"
                digest.update(line.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]


def refuse_early(settings) -> None:
    """Raise UserError for a table or folder that cannot work, before TensorFlow is imported, which takes seconds.

    Args:
        settings: of a recipe: `data`, `encoding`, and the columns that it has: with labels, clips are commands; those
            of a contrastive `objective` need no text.
    """
    needs_no_text = getattr(settings, "objective", "") == "contrastive"
    task = "commands" if hasattr(settings, "label_column") else "sounds" if needs_no_text else "transcripts"
    names = {name: getattr(settings, f"{name}_column", None) for name in ("path", "text", "label", "speaker", "split")}
    rows = _rows(settings.data, task, SpeechColumns(**names, encoding=settings.encoding))
    if task == "commands" and len(classes := {row.text for row in rows if row.text}) < 2:
        raise UserError(
            f"--data {settings.data!r} has {len(classes)} class(es); at least 2 are required. Received: "
            f"{some(sorted(classes))}."
        )


def _rows(data: str, task: str, columns: SpeechColumns) -> list[SpeechRow]:
    """Return the clips that are listed; a UserError says why there are none."""
    kind, value = parse_data(data, DATA_KINDS)
    rows = _demo_rows(value, task) if kind == "demo" else speech_rows(kind, Path(value).expanduser(), task, columns)
    if not rows:
        raise UserError(no_sounds_advice(data))
    _refuse_missing_files(data, rows)
    return rows


def load_speech_set(
    data: str,
    *,
    task: str = "transcripts",
    columns: SpeechColumns = SpeechColumns(),  # noqa: B008 - frozen
    rate: int = SAMPLE_RATE,
    limit: int | None = None,
    strict: bool = False,
    share_speakers: bool = False,
    keep_silence: bool | None = None,
    min_seconds: float = 0.1,
    max_seconds: float = 30.0,
    val_share: float = splits.VALIDATION_SHARE,
) -> SpeechSet:
    """Read a data set, decode every clip once to check it, and split it.

    Given splits are kept. Splits made here share no speaker where speakers are known. Copies of the same sound
    stay in one split only (test, else val), and a sound with two texts stays in a given val or test only.

    Args:
        data: `demo` (people), `demo:synthetic`, `folder:PATH` (for commands class folders, or train/val/test with
            class folders inside, or Speech Commands as it is; for transcripts LibriSpeech, LJSpeech or Common Voice as
            they are), `csv:PATH`, `tsv:PATH` or `manifest:PATH` (a file, or a folder with a file per split).
        task: `transcripts`, `commands`, or `sounds`, which need no text.
        columns: columns of a table.
        rate: sampling rate for lengths, Hz.
        limit: use at most this many clips per split, for a quick look; not many more are read.
        strict: raise an error for a clip that cannot be used instead of skipping it.
        share_speakers: split clip by clip, so that speakers may be in several splits.
        keep_silence: whether silent clips are kept; None means for commands only.
        min_seconds, max_seconds: shorter and longer clips are skipped.
        val_share: share of the training split that becomes validation if none is given.

    Returns:
        The SpeechSet.

    Raises:
        UserError: no usable clips, a split or a class without clips, or a broken table.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {TASKS}. Received: {task!r}.")
    rows, notes = _few(_rows(data, task, columns), limit)
    silence = task == "commands" if keep_silence is None else keep_silence
    needed = {"transcripts": "transcript", "commands": "label", "sounds": ""}[task]
    required = Required(needed, rate, silence, min_seconds, max_seconds)
    kept, skipped = _separate(check_all(rows, required), lambda clips: [clip.reason for clip in clips])
    kept, contradicting = _separate(kept, lambda clips: _contradictions(clips, task))
    skipped += contradicting
    if strict:
        refuse_skipped(skipped)
    left_out = f"{len(skipped)} clip(s) skipped{', the first is ' + ': '.join(skipped[0]) if skipped else ''}"
    if not kept:
        raise UserError(f"--data {data!r} has no clip that can be used: {left_out}.")

    split_of, more_notes = assign_by_speaker(data, task, kept, share_speakers, val_share)
    finish = _split_commands if task == "commands" else _split_transcripts
    class_names, labels, indices, reasons = finish(data, kept, split_of, limit, left_out)
    copies = [(printable(clip.row.path), reason) for clip, reason in zip(kept, reasons, strict=True) if reason]
    examples = {split: _examples([kept[i] for i in chosen], labels[chosen]) for split, chosen in indices.items()}
    chosen = [kept[i] for split in SPLITS for i in indices[split]]
    notes += more_notes + _notes_on_speakers(kept, examples) + _notes_on_sound(chosen, rate)
    return SpeechSet(data, **examples, skipped=(*skipped, *copies), notes=tuple(notes), class_names=class_names)


def refuse_skipped(skipped: Sequence[tuple[str, str]]) -> None:
    """Refuse a data set with skipped clips, for --strict."""
    if skipped:
        raise UserError(f"--strict: {len(skipped)} clip(s) cannot be used; the first is {': '.join(skipped[0])}")


def _demo_rows(name: str, task: str) -> list[SpeechRow]:
    """Return the demo: people who say ten words or read sentences, or twenty synthetic words and phrases of them.

    Of the phrases, commands have none.
    """
    if name != "synthetic":
        return speech_rows("csv", WORDS if task == "commands" else VOICES, task, SpeechColumns(label="text"))
    rows = speech_rows("tsv", SYNTHETIC, task, SpeechColumns(label="text"))
    return [row for row in rows if task != "commands" or " " not in row.text]


def _refuse_missing_files(data: str, rows: Sequence[SpeechRow]) -> None:
    if any(os.path.lexists(row.path) for row in rows):
        return
    raise UserError(
        f"--data {data!r}: none of its {len(rows):,} sound files exists; the first is {printable(rows[0].path)!r}. "
        "Allowed: absolute paths, and paths relative to the folder of the table, or to clips/ or wavs/ in it. Put the "
        "table next to the sounds, or correct its column of paths (--path-column NAME)."
    )


def _few(rows: list[SpeechRow], limit: int | None) -> tuple[list[SpeechRow], list[str]]:
    """Return enough rows for a quick look, from all classes or speakers in turn, in their order."""
    if not limit:
        return rows, []
    by_split: dict[str | None, list[int]] = defaultdict(list)
    for place in sorted(range(len(rows)), key=lambda i: text_hash(rows[i].path)):
        by_split[rows[place].split].append(place)
    chosen = []
    for places in by_split.values():
        groups = np.unique([rows[i].speaker or rows[i].text for i in places], return_inverse=True)[1]
        chosen += [places[i] for i in splits.limit_per_class(groups, _READ_PER_LIMIT * limit)]
    if len(chosen) == len(rows):
        return rows, []
    note = f"--limit {limit}: {len(chosen):,} of {len(rows):,} clips were read."
    return [rows[i] for i in sorted(chosen)], [note]


def _separate(
    clips: list[CheckedClip], why: Callable[[list[CheckedClip]], list[str]]
) -> tuple[list[CheckedClip], list[tuple[str, str]]]:
    """Return the clips to keep, and (file, reason) of the others."""
    reasons = why(clips)
    kept = [clip for clip, reason in zip(clips, reasons, strict=True) if not reason]
    return kept, [(printable(clip.row.path), reason) for clip, reason in zip(clips, reasons, strict=True) if reason]


def _contradictions(clips: list[CheckedClip], task: str) -> list[str]:
    """Return why a clip is of no use: the same sound with another text. A given val or test split stays as it is."""
    texts: dict[str, set[str]] = defaultdict(set)
    for clip in clips:  # transcripts are compared without punctuation
        label = " ".join(clip.row.text.casefold().split())
        texts[clip.content].add(_SCORED.normalise(clip.row.text) if task == "transcripts" else label)
    return [
        f"the same sound has the texts {some(sorted(texts[clip.content]))}"
        if len(texts[clip.content]) > 1 and clip.row.split in (None, "train")
        else ""
        for clip in clips
    ]


# --- splitting --------------------------------------------------------------------------------------------


def _split_commands(data: str, clips, split_of: np.ndarray, limit: int | None, left_out: str):
    """Return (class names, class numbers [n], clips per split, why a clip is removed from its split)."""
    split = split_labelled(
        data, "clip", [clip.row.text for clip in clips], list(split_of), [clip.content for clip in clips],
        limit=limit, left_out=left_out,
    )  # fmt: skip
    return split.class_names, split.labels, split.indices, split.reasons


def _split_transcripts(data: str, clips, split_of: np.ndarray, limit: int | None, left_out: str):
    """Return what `_split_commands` returns, without classes; a limit takes speakers in turn."""
    copied = splits.drop_copies_across_splits(split_of, [clip.content for clip in clips])
    speakers = np.unique([clip.row.speaker for clip in clips], return_inverse=True)[1]
    indices = {}
    for split in SPLITS:
        chosen = np.flatnonzero((split_of == split) & ~copied)
        if not len(chosen):
            counts = ", ".join(f"{one} {int(((split_of == one) & ~copied).sum())}" for one in SPLITS)
            raise UserError(
                f"--data {data!r} leaves no clips in the {split} split. At least 3 different clips are required, 1 per "
                f"split. Counts: {counts}; {left_out}."
            )
        indices[split] = chosen[splits.limit_per_class(speakers[chosen], limit)] if limit else chosen
    reasons = [
        f"exact copy of a clip in another split; removed from {split}" if gone else ""
        for split, gone in zip(split_of, copied, strict=True)
    ]
    return (), np.zeros(len(clips), np.int64), indices, reasons


def _examples(clips: Sequence[CheckedClip], labels: np.ndarray) -> SpeechExamples:
    return SpeechExamples(
        np.array([clip.row.path for clip in clips], dtype=str),
        np.array([clip.row.text for clip in clips], dtype=object),
        labels,
        np.array([clip.row.speaker for clip in clips], dtype=object),
        np.array([clip.seconds for clip in clips], dtype=np.float64),
    )


# --- notes ------------------------------------------------------------------------------------------------


def _notes_on_speakers(clips: Sequence[CheckedClip], examples: dict[str, SpeechExamples]) -> list[str]:
    """Return notes on speakers that the given splits share."""
    given, notes = {clip.row.split for clip in clips} & {"val", "test"}, []
    for split in ("val", "test")[2 - len(given) :]:  # a single given one became the test split
        speakers = set(examples[split].speakers) - {""}
        if shared := sorted(speakers & set(examples["train"].speakers)):
            notes.append(
                f"{len(shared)} of {len(speakers)} speakers of the {split} split are in training too ({some(shared)}): "
                "the result holds for known speakers only."
            )
    return notes


def _notes_on_sound(clips: Sequence[CheckedClip], rate: int) -> list[str]:
    """Return notes on the number of clips with flaws of the recording."""
    noted = (
        ([clip.file_rate < rate for clip in clips], f"have fewer than {rate:,} samples per second (the fewest: "
         f"{min(clip.file_rate for clip in clips):,}): resampled, without the highest frequencies"),
        ([clip.channels > 1 for clip in clips], "have several channels, which were mixed to one"),
        ([abs(clip.offset) > OFFSET_WORTH_A_NOTE for clip in clips], "have a DC offset, which was removed before "
         "resampling"),
        ([clip.clipped for clip in clips], "are clipped: recorded too loud, the peaks are cut off"),
        ([clip.silent for clip in clips], "are silent and kept"),
    )  # fmt: skip
    return [f"{sum(found):,} of {len(clips):,} clips {what}." for found, what in noted if any(found)]
