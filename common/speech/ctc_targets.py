"""What of a set of speech is learned from: a few clips of each text, and only clips that CTC can learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.data.folders import printable
from common.data.splits import PARTS
from common.errors import UserError
from common.speech.audio.decode import SAMPLE_RATE
from common.speech.batches import Clips
from common.speech.ctc.characters import Characters, encode_texts, why_impossible
from common.speech.ctc.word_ngrams import WordNgrams
from common.speech.dataset import SpeechSet, refuse_skipped


@dataclass(frozen=True)
class Lesson:
    """What a recogniser is trained on, and measured by.

    Attributes:
        data: without the clips that CTC cannot learn from.
        clips: of each split, decoded.
        targets: character numbers of each training transcript, n int32 [characters].
        characters: that can be written.
        references: transcripts of each split, spelled as they are scored.
        ngrams: of a language model, or None.
    """

    data: SpeechSet
    clips: dict[str, Clips]
    targets: list[np.ndarray]
    characters: Characters
    references: dict[str, list[str]]
    ngrams: WordNgrams | None


def draw_shots(data: SpeechSet, shots: int, seed: int) -> SpeechSet:
    """Return the set with this many training clips of each class or transcript, drawn by the seed.

    The other parts stay. A transcript that was spoken less often keeps all its clips.

    Raises:
        UserError: a class has fewer.
    """
    rng, chosen = np.random.default_rng(seed), []
    for text in sorted(set(data.train.texts)):
        places = np.flatnonzero(data.train.texts == text)
        if data.class_names and len(places) < shots:
            raise UserError(
                f"--shots {shots}: the class {text!r} has {len(places)} training clips. Allowed: as many as the "
                f"smallest class has, or no --shots at all."
            )
        chosen.append(rng.permutation(places)[:shots])
    return replace(data, train=data.train.take(np.sort(np.concatenate(chosen))))


def writable_clips(
    data: SpeechSet,
    characters: Characters,
    frames_of: Callable[[int], int],
    outside: str = "drop",
    *,
    strict: bool = False,
) -> tuple[SpeechSet, list[np.ndarray]]:
    """Leave out what CTC cannot learn, and what has no transcript to be judged by.

    Args:
        data: with transcripts.
        characters: that can be written.
        frames_of: the frames that the model makes of so many samples.
        outside: what becomes of characters that cannot be written, as `characters.encode_texts` has it. In validation
            and test they stay, and each is a mistake: leaving them out would make the result look better.
        strict: make a clip that is left out an error.

    Returns:
        (the set; the numbers of each training transcript, int32 [characters]).

    Raises:
        UserError: a part has no clip left, `outside` is `error` and there are such characters, or a clip is left out
            though `strict`.
    """
    parts, skipped, notes, targets = {}, list(data.skipped), list(data.notes), []
    for name in PARTS:
        part = getattr(data, name)
        if name == "train":
            encoded = encode_texts(characters, part.texts, outside)
            samples = np.round(part.seconds * SAMPLE_RATE).astype(np.int64)
            impossible = why_impossible(encoded.labels, samples, frames_of)
            reasons = [first or second for first, second in zip(encoded.reasons, impossible, strict=True)]
            targets = [label for label, reason in zip(encoded.labels, reasons, strict=True) if not reason]
            notes += [encoded.note()] if encoded.strangers else []
        else:
            reasons = ["" if characters.normalise(text) else "its transcript has no words" for text in part.texts]
            strangers = encode_texts(characters, part.texts).strangers
            if strangers:
                notes.append(
                    f"The {name} transcripts hold {sum(strangers.values()):,} character(s) that cannot be written, "
                    f"as no training transcript spells them ({', '.join(map(repr, list(strangers)[:10]))}): each is "
                    "a mistake."
                )
        kept = np.array([not reason for reason in reasons], bool)
        left_out = [(printable(path), reason) for path, reason in zip(part.paths, reasons, strict=True) if reason]
        if strict:
            refuse_skipped(left_out)
        skipped += left_out
        parts[name] = part.take(np.flatnonzero(kept))
        if not len(parts[name]):
            raise UserError(
                f"--data {data.name!r} has no {name} clip whose transcript can be written: of the first, "
                f"{_first(reasons)}."
            )
    return replace(data, **parts, skipped=tuple(skipped), notes=tuple(notes)), targets


def _first(reasons: Sequence[str]) -> str:
    return next(reason for reason in reasons if reason)
