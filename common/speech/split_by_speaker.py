"""Splits in which no speaker is in two parts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from common.data import splits
from common.data.splits import assign_parts, some
from common.errors import UserError
from common.speech.checks import CheckedClip


def split_by_speaker(speakers: Sequence[str], shares: dict[str, float]) -> np.ndarray:
    """Assign each speaker with all clips to one part, by the hash of the name.

    A speaker with more than twice the clips that a part should have is not taken for it while there are others: one
    who speaks half of all clips stays in training.

    Args:
        speakers: of each clip, n names; at least as many different ones as there are parts.
        shares: the share of all clips of each held-out part, for example {"test": 0.15, "val": 0.15}.

    Returns:
        An array of part names, object [n]; `train` for those that are in none of `shares`.
    """
    clips, part_of = Counter(speakers), {}
    for number, (part, share) in enumerate(shares.items()):
        wanted, held = share * len(speakers), 0
        free = sorted((name for name in clips if name not in part_of), key=text_hash)
        most = len(free) - (len(shares) - number)  # the parts to come and training need one each
        fitting = [name for name in free if clips[name] <= 2 * wanted] or [min(free, key=lambda name: clips[name])]
        for taken, name in enumerate(fitting[:most]):
            if taken and abs(held + clips[name] - wanted) >= abs(held - wanted):
                break
            part_of[name] = part
            held += clips[name]
    return np.array([part_of.get(name, "train") for name in speakers], dtype=object)


def assign_by_speaker(
    data: str, task: str, clips: Sequence[CheckedClip], share_speakers: bool, val_share: float
) -> tuple[np.ndarray, list[str]]:
    """Keep the parts that were given; carve the others out of training, by speaker if that can be, else by content.

    Returns:
        (part of each clip, object [n]; notes).
    """
    given = [clip.row.part for clip in clips]
    hashes = [clip.content for clip in clips]
    classes = np.unique([clip.row.text for clip in clips], return_inverse=True)[1]
    if task != "commands":  # they hardly repeat: nothing to take from each in turn
        classes = np.zeros(len(clips), np.int64)
    parts = assign_parts(data, given, hashes, classes, val_share)
    pool = np.array([i for i, part in enumerate(given) if part in (None, "train")])
    shares = {"test": splits.TEST_SHARE, "val": val_share}
    shares = {part: share for part, share in shares.items() if part in parts[pool]}
    if not shares:
        return parts, []
    # A clip of nobody known counts as a speaker of its own.
    speakers = [clips[i].row.speaker or f"?{clips[i].content}" for i in pool]
    if note := _why_by_content([clips[i] for i in pool], clips, set(speakers), len(shares), share_speakers):
        return parts, [note]
    parts[pool] = split_by_speaker(speakers, shares)
    if task == "commands":
        _refuse_classes_held_out(data, [clips[i] for i in pool], parts[pool])
    unknown = sum(not clips[i].row.speaker for i in pool)
    return parts, [f"{unknown:,} clips have no speaker: who speaks there may be in two parts."] if unknown else []


def _refuse_classes_held_out(data: str, pool: Sequence[CheckedClip], parts: np.ndarray) -> None:
    """Refuse a split by speaker that leaves a class untaught, because only held-out speakers say it."""
    taught = {clip.row.text for clip, part in zip(pool, parts, strict=True) if part == "train"}
    if untaught := sorted({clip.row.text for clip in pool} - taught):
        who = sorted({clip.row.speaker for clip in pool if clip.row.text in untaught} - {""})
        raise UserError(
            f"--data {data!r}: nobody in training says {some(untaught)}: only {some(who)}, whom the split by speaker "
            "holds out for validation and test. Record them from more speakers, leave these classes out, say who is in "
            "which part (a column split), or let voices of the test be in training: --share-speakers"
        )


def _why_by_content(
    pool: Sequence[CheckedClip], clips: Sequence[CheckedClip], speakers: set[str], carved: int, share_speakers: bool
) -> str:
    """Return a note on why parts are carved clip by clip and not speaker by speaker, or ""."""
    known = {clip.row.speaker for clip in pool} - {""}
    if not known:
        return (
            "Nobody says who speaks: parts were split by content, and voices of the test may be in training. A table "
            "with the speakers settles it: --speaker-column NAME"
        )
    if share_speakers:
        return "--share-speakers: parts were split by content; voices of the test are in training."
    held_out = {clip.row.speaker for clip in clips if clip.row.part in ("val", "test")} - {""}
    if known & held_out:  # validation should ask what the test asks
        return "The given parts share speakers, so validation was carved out of training by content, voices shared too."
    if len(speakers) <= carved:
        return (
            f"There are only {len(known)} speaker(s) ({some(sorted(known))}) to split: parts were split by content, "
            "and the result says nothing about other voices."
        )
    return ""


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
