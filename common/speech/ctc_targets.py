"""The clips to train on: few-shot selections, and only clips that CTC can be trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.data.folders import printable
from common.data.splits import SPLITS
from common.errors import UserError
from common.speech.audio.decode import SAMPLE_RATE
from common.speech.batches import Clips
from common.speech.ctc.characters import Characters, encode_texts, why_impossible
from common.speech.ctc.word_ngrams import WordNgrams
from common.speech.dataset import SpeechSet, refuse_skipped


@dataclass(frozen=True)
class Corpus:
    """A speech data set prepared for a recogniser.

    Attributes:
        data: without the clips that CTC cannot be trained on.
        clips: of each split, decoded.
        targets: character numbers of each training transcript, n int32 [characters].
        characters: the vocabulary.
        references: transcripts of each split, normalised as they are scored.
        ngrams: of a language model, or None.
    """

    data: SpeechSet
    clips: dict[str, Clips]
    targets: list[np.ndarray]
    characters: Characters
    references: dict[str, list[str]]
    ngrams: WordNgrams | None


def draw_shots(data: SpeechSet, shots: int, seed: int) -> SpeechSet:
    """Return the data set with this many training clips per class or transcript, drawn by the seed.

    The other splits stay. A transcript with fewer clips keeps all of them.

    Raises:
        UserError: a class has fewer.
    """
    rng, chosen = np.random.default_rng(seed), []
    for text in sorted(set(data.train.texts)):
        places = np.flatnonzero(data.train.texts == text)
        if data.class_names and len(places) < shots:
            raise UserError(
                f"--shots {shots}: the class {text!r} has {len(places)} training clips. Allowed: at most the size of "
                "the smallest class, or no --shots."
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
    """Skip training clips that CTC cannot be trained on, and other clips without a transcript to score.

    Args:
        data: with transcripts.
        characters: the vocabulary.
        frames_of: returns the number of frames for a number of samples.
        outside: treatment of characters outside the vocabulary, as for `characters.encode_texts`. In validation and
            test they stay, and each is an error: removing them would improve the result unfairly.
        strict: raise an error instead of skipping a clip.

    Returns:
        (the data set; the numbers of each training transcript, int32 [characters]).

    Raises:
        UserError: a split has no clip left, `outside` is `error` and there are such characters, or `strict` and a skip.
    """
    splits, skipped, notes, targets = {}, list(data.skipped), list(data.notes), []
    for name in SPLITS:
        split = getattr(data, name)
        if name == "train":
            encoded = encode_texts(characters, split.texts, outside)
            samples = np.round(split.seconds * SAMPLE_RATE).astype(np.int64)
            impossible = why_impossible(encoded.labels, samples, frames_of)
            reasons = [first or second for first, second in zip(encoded.reasons, impossible, strict=True)]
            targets = [label for label, reason in zip(encoded.labels, reasons, strict=True) if not reason]
            notes += [encoded.note()] if encoded.unknown else []
        else:
            reasons = ["" if characters.normalise(text) else "its transcript has no words" for text in split.texts]
            unknown = encode_texts(characters, split.texts).unknown
            if unknown:
                notes.append(
                    f"The {name} transcripts have {sum(unknown.values()):,} character(s) outside the vocabulary, which "
                    f"no training transcript has ({', '.join(map(repr, list(unknown)[:10]))}): each counts as an "
                    "error."
                )
        kept = np.array([not reason for reason in reasons], bool)
        left_out = [(printable(path), reason) for path, reason in zip(split.paths, reasons, strict=True) if reason]
        if strict:
            refuse_skipped(left_out)
        skipped += left_out
        splits[name] = split.take(np.flatnonzero(kept))
        if not len(splits[name]):
            raise UserError(
                f"--data {data.name!r} has no {name} clip with a transcript that can be used. The first one: "
                f"{_first(reasons)}."
            )
    return replace(data, **splits, skipped=tuple(skipped), notes=tuple(notes)), targets


def _first(reasons: Sequence[str]) -> str:
    return next(reason for reason in reasons if reason)
