"""Speech with transcripts or labels: read, checked, and split so that no voice is in two parts."""

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
from common.data.splits import PARTS, some, split_labelled, untested_classes
from common.errors import UserError
from common.flags import check_choice, parse_data
from common.speech.audio.decode import SAMPLE_RATE
from common.speech.checks import OFFSET_WORTH_A_NOTE, CheckedClip, Wanted, check_all
from common.speech.ctc.characters import Characters
from common.speech.readers import TASKS, SpeechColumns, SpeechRow, no_sounds_advice, speech_rows
from common.speech.split_by_speaker import assign_by_speaker, text_hash

DATA_KINDS = ("demo", "folder", "csv", "tsv", "manifest")
DEMO = Path(__file__).parent / "demo" / "manifest.tsv"  # benchmarks/speak.py wrote it
_LOOKED_AT_FOR_LIMIT = 10  # times --limit: enough to split, and few enough for a quick look
_HEARD = Characters(("", " "))  # spells a transcript as it is scored


@dataclass(frozen=True)
class SpeechExamples:
    """The clips of one part.

    Attributes:
        paths: file of each clip, str [n].
        texts: transcript of each, or the name of its class, str, object [n].
        labels: class number of each, int64 [n]; all 0 where there are transcripts.
        speakers: of each, str, object [n]; "" where nobody says.
        seconds: length of each, float64 [n].
    """

    paths: np.ndarray
    texts: np.ndarray
    labels: np.ndarray
    speakers: np.ndarray
    seconds: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, places: np.ndarray) -> SpeechExamples:
        """Return some of the clips."""
        return SpeechExamples(
            self.paths[places], self.texts[places], self.labels[places], self.speakers[places], self.seconds[places]
        )


@dataclass(frozen=True)
class SpeechSet:
    """A set of speech, split and checked.

    Attributes:
        name: what the user asked for.
        train: what is trained on.
        val: what every choice is made on.
        test: what is read once, at the end.
        skipped: (file, reason) of everything left out.
        notes: what somebody who reads the result should know of these clips, in sentences.
        class_names: name of each class number, sorted; () where there are transcripts.
    """

    name: str
    train: SpeechExamples
    val: SpeechExamples
    test: SpeechExamples
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        """Return the number of clips in each part and of what was left out."""
        return {part: len(getattr(self, part)) for part in PARTS} | {"skipped": len(self.skipped)}

    def describe(self, name: str) -> str:
        """Return what `check` prints: counts, the first files left out and why, the notes."""
        return "\n".join(
            [f"{name}: {self.counts()}", *(f"  {path}: {reason}" for path, reason in self.skipped[:10]),
             *(f"  {sentence}" for sentence in self.advice())]
        )  # fmt: skip

    def advice(self) -> tuple[str, ...]:
        """Return the notes, and which classes the test part does not show."""
        return (*self.notes, *untested_classes(self.class_names, self.test.labels, "clip"))

    def fingerprint(self) -> str:
        """Return a hash of paths, sizes, times and texts: the same set of files gives the same text."""
        digest = hashlib.sha256()
        for part in PARTS:
            examples = getattr(self, part)
            for path, text in zip(examples.paths, examples.texts, strict=True):
                status = os.stat(path)
                line = f"{part}\0{path}\0{status.st_size}\0{status.st_mtime_ns}\0{text}\n"
                digest.update(line.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]


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

    Parts that were given stay. What is carved shares no speaker with the rest where speakers are known. Clips are
    compared by what is heard: copies across parts leave the lower part, and a clip with two texts leaves every part
    but a given val or test.

    Args:
        data: `demo`, `folder:PATH` (for commands class folders, or train/val/test with class folders inside, or Speech
            Commands as it is; for transcripts LibriSpeech, LJSpeech or Common Voice as they are), `csv:PATH`,
            `tsv:PATH` or `manifest:PATH` (a file, or a folder with a file for each part).
        task: `transcripts`, `commands`, or `sounds`, which need no text.
        columns: which columns of a table hold what.
        rate: of the samples that lengths are counted in, Hz.
        limit: keep at most this many clips of each part, for a quick look; not many more are read.
        strict: make a clip that cannot be used an error and not a counted skip.
        share_speakers: split clip by clip, so that voices of training are in the test as well.
        keep_silence: whether clips in which nothing is heard stay; None is yes for commands only.
        min_seconds: a shorter clip is left out.
        max_seconds: a longer clip is left out.
        val_share: the share of the training part that becomes validation where none is given.

    Returns:
        The SpeechSet.

    Raises:
        UserError: nothing usable, a part or a class without clips, or a broken table.
    """
    check_choice("--task", task, TASKS)
    kind, value = parse_data(data, DATA_KINDS)
    rows = _demo_rows(task) if kind == "demo" else speech_rows(kind, Path(value).expanduser(), task, columns)
    if not rows:
        raise UserError(no_sounds_advice(data))
    _refuse_files_nowhere(data, rows)
    rows, notes = _few(rows, limit)
    silence = task == "commands" if keep_silence is None else keep_silence
    needed = {"transcripts": "transcript", "commands": "label", "sounds": ""}[task]
    wanted = Wanted(needed, rate, silence, min_seconds, max_seconds)
    kept, skipped = _left_out(check_all(rows, wanted), lambda clips: [clip.reason for clip in clips])
    kept, contradicting = _left_out(kept, lambda clips: _contradictions(clips, task))
    skipped += contradicting
    if strict:
        refuse_skipped(skipped)
    left_out = f"{len(skipped)} clip(s) left out{', the first is ' + ': '.join(skipped[0]) if skipped else ''}"
    if not kept:
        raise UserError(f"--data {data!r} holds no clip that can be used: {left_out}.")

    parts, more_notes = assign_by_speaker(data, task, kept, share_speakers, val_share)
    split = _split_commands if task == "commands" else _split_transcripts
    class_names, labels, indices, reasons = split(data, kept, parts, limit, left_out)
    copies = [(printable(clip.row.path), reason) for clip, reason in zip(kept, reasons, strict=True) if reason]
    examples = {part: _examples([kept[i] for i in chosen], labels[chosen]) for part, chosen in indices.items()}
    chosen = [kept[i] for part in PARTS for i in indices[part]]
    notes += more_notes + _notes_on_speakers(kept, examples) + _notes_on_sound(chosen, rate)
    return SpeechSet(data, **examples, skipped=(*skipped, *copies), notes=tuple(notes), class_names=class_names)


def refuse_skipped(skipped: Sequence[tuple[str, str]]) -> None:
    """Refuse a set of which a clip would be left out: what --strict asks for."""
    if skipped:
        raise UserError(f"--strict: {len(skipped)} clip(s) cannot be used; the first is {': '.join(skipped[0])}")


def _demo_rows(task: str) -> list[SpeechRow]:
    """Return the demo: twenty words alone and in phrases; for commands the words alone."""
    rows = speech_rows("tsv", DEMO, task, SpeechColumns(label="text"))
    return [row for row in rows if task != "commands" or " " not in row.text]


def _refuse_files_nowhere(data: str, rows: Sequence[SpeechRow]) -> None:
    if any(os.path.lexists(row.path) for row in rows):
        return
    raise UserError(
        f"--data {data!r}: none of the {len(rows):,} sounds that it names is there; the first is "
        f"{printable(rows[0].path)!r}. Allowed: absolute paths, and paths from the folder of the table, or from clips/ "
        "or wavs/ in it. Put the table beside the sounds, or correct its column of paths (--path-column NAME)."
    )


def _few(rows: list[SpeechRow], limit: int | None) -> tuple[list[SpeechRow], list[str]]:
    """Return rows enough for a quick look, of all classes or speakers in turn, in their order."""
    if not limit:
        return rows, []
    by_part: dict[str | None, list[int]] = defaultdict(list)
    for place in sorted(range(len(rows)), key=lambda i: text_hash(rows[i].path)):
        by_part[rows[place].part].append(place)
    chosen = []
    for places in by_part.values():
        groups = np.unique([rows[i].speaker or rows[i].text for i in places], return_inverse=True)[1]
        chosen += [places[i] for i in splits.limit_per_class(groups, _LOOKED_AT_FOR_LIMIT * limit)]
    if len(chosen) == len(rows):
        return rows, []
    note = f"--limit {limit}: {len(chosen):,} of {len(rows):,} clips were looked at."
    return [rows[i] for i in sorted(chosen)], [note]


# --- reading ----------------------------------------------------------------------------------------------


def _left_out(
    clips: list[CheckedClip], why: Callable[[list[CheckedClip]], list[str]]
) -> tuple[list[CheckedClip], list[tuple[str, str]]]:
    """Return the clips that stay, and (file, reason) of the others."""
    reasons = why(clips)
    kept = [clip for clip, reason in zip(clips, reasons, strict=True) if not reason]
    return kept, [(printable(clip.row.path), reason) for clip, reason in zip(clips, reasons, strict=True) if reason]


def _contradictions(clips: list[CheckedClip], task: str) -> list[str]:
    """Return why a clip teaches nothing: the same sound with another text. A given val or test stays as it is."""
    texts: dict[str, set[str]] = defaultdict(set)
    for clip in clips:  # of transcripts, what is heard: punctuation is not
        label = " ".join(clip.row.text.casefold().split())
        texts[clip.content].add(_HEARD.normalise(clip.row.text) if task == "transcripts" else label)
    return [
        f"the same sound has the texts {some(sorted(texts[clip.content]))}"
        if len(texts[clip.content]) > 1 and clip.row.part in (None, "train")
        else ""
        for clip in clips
    ]


# --- splitting --------------------------------------------------------------------------------------------


def _split_commands(data: str, clips, parts: np.ndarray, limit: int | None, left_out: str):
    """Return (class names, class numbers [n], clips of each part, why a clip leaves its part)."""
    split = split_labelled(
        data, "clip", [clip.row.text for clip in clips], list(parts), [clip.content for clip in clips],
        limit=limit, left_out=left_out,
    )  # fmt: skip
    return split.class_names, split.labels, split.indices, split.reasons


def _split_transcripts(data: str, clips, parts: np.ndarray, limit: int | None, left_out: str):
    """Return what `_split_commands` returns, without classes; a limit takes speakers in turn."""
    copied = splits.drop_copies_across_parts(parts, [clip.content for clip in clips])
    speakers = np.unique([clip.row.speaker for clip in clips], return_inverse=True)[1]
    indices = {}
    for part in PARTS:
        chosen = np.flatnonzero((parts == part) & ~copied)
        if not len(chosen):
            counts = ", ".join(f"{one} {int(((parts == one) & ~copied).sum())}" for one in PARTS)
            raise UserError(
                f"--data {data!r} leaves no clips in the {part} part. At least 3 different clips are needed, 1 in each "
                f"part. Counts: {counts}; {left_out}."
            )
        indices[part] = chosen[splits.limit_per_class(speakers[chosen], limit)] if limit else chosen
    reasons = [
        f"exact copy of a clip in another part; left {part}" if gone else ""
        for part, gone in zip(parts, copied, strict=True)
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
    """Say where the given parts share voices."""
    given, notes = {clip.row.part for clip in clips} & {"val", "test"}, []
    for part in ("val", "test")[2 - len(given) :]:  # of one that was given, the test was made
        speakers = set(examples[part].speakers) - {""}
        if shared := sorted(speakers & set(examples["train"].speakers)):
            notes.append(
                f"{len(shared)} of {len(speakers)} speakers of the {part} part are in training too ({some(shared)}): "
                "the result is for voices that were heard before."
            )
    return notes


def _notes_on_sound(clips: Sequence[CheckedClip], rate: int) -> list[str]:
    """Say how many clips came out of the recording other than they should."""
    noted = (
        ([clip.file_rate < rate for clip in clips], f"have fewer than {rate:,} samples a second (the fewest: "
         f"{min(clip.file_rate for clip in clips):,}): resampled, their highest tones were never recorded"),
        ([clip.channels > 1 for clip in clips], "have several channels, which were mixed to one"),
        ([abs(clip.offset) > OFFSET_WORTH_A_NOTE for clip in clips], "stood off zero (DC offset), which was taken "
         "away before resampling"),
        ([clip.clipped for clip in clips], "are clipped: recorded too loud, the waves are cut off"),
        ([clip.silent for clip in clips], "are silent and stay"),
    )  # fmt: skip
    return [f"{sum(found):,} of {len(clips):,} clips {what}." for found, what in noted if any(found)]
