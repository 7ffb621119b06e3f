"""Splits that share no speaker."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from common.data import splits
from common.data.splits import assign_splits, some
from common.errors import UserError
from common.speech.checks import CheckedClip


def split_by_speaker(speakers: Sequence[str], shares: dict[str, float]) -> np.ndarray:
    """Assign each speaker with all clips to one split, by the hash of the name.

    A speaker with more than twice the clips that a split should have is used for it only if there are no others: a
    speaker of half of all clips stays in training.

    Args:
        speakers: of each clip, n names; at least as many different ones as there are splits.
        shares: share of all clips per held-out split, for example {"test": 0.15, "val": 0.15}.

    Returns:
        The split of each clip, object [n]; `train` for those in none of `shares`.
    """
    clips, split_of = Counter(speakers), {}
    for number, (split, share) in enumerate(shares.items()):
        target, held = share * len(speakers), 0
        free = sorted((name for name in clips if name not in split_of), key=text_hash)
        most = len(free) - (len(shares) - number)  # the remaining splits and training need one each
        fitting = [name for name in free if clips[name] <= 2 * target] or [min(free, key=lambda name: clips[name])]
        for taken, name in enumerate(fitting[:most]):
            if taken and abs(held + clips[name] - target) >= abs(held - target):
                break
            split_of[name] = split
            held += clips[name]
    return np.array([split_of.get(name, "train") for name in speakers], dtype=object)


def assign_by_speaker(
    data: str, task: str, clips: Sequence[CheckedClip], share_speakers: bool, val_share: float
) -> tuple[np.ndarray, list[str]]:
    """Keep given splits; take the others from training, by speaker if possible, else by content.

    Returns:
        (split of each clip, object [n]; notes).
    """
    given = [clip.row.split for clip in clips]
    hashes = [clip.content for clip in clips]
    classes = np.unique([clip.row.text for clip in clips], return_inverse=True)[1]
    if task != "commands":  # transcripts hardly repeat: there are no classes to balance
        classes = np.zeros(len(clips), np.int64)
    split_of = assign_splits(data, given, hashes, classes, val_share)
    pool = np.array([i for i, split in enumerate(given) if split in (None, "train")])
    shares = {"test": splits.TEST_SHARE, "val": val_share}
    shares = {split: share for split, share in shares.items() if split in split_of[pool]}
    if not shares:
        return split_of, []
    # A clip of an unknown speaker counts as a speaker of its own.
    speakers = [clips[i].row.speaker or f"?{clips[i].content}" for i in pool]
    if note := _why_by_content([clips[i] for i in pool], clips, set(speakers), len(shares), share_speakers):
        return split_of, [note]
    split_of[pool] = split_by_speaker(speakers, shares)
    if task == "commands":
        _refuse_classes_held_out(data, [clips[i] for i in pool], split_of[pool])
    unknown = sum(not clips[i].row.speaker for i in pool)
    return split_of, [f"{unknown:,} clips have no speaker: their speakers may be in two splits."] if unknown else []


def _refuse_classes_held_out(data: str, pool: Sequence[CheckedClip], split_of: np.ndarray) -> None:
    """Refuse a split by speaker that leaves a class without training clips, as only held-out speakers recorded it."""
    trained = {clip.row.text for clip, split in zip(pool, split_of, strict=True) if split == "train"}
    if missing := sorted({clip.row.text for clip in pool} - trained):
        speakers = sorted({clip.row.speaker for clip in pool if clip.row.text in missing} - {""})
        raise UserError(
            f"--data {data!r} has no training clips of {some(missing)}: the only speakers are {some(speakers)}, whom "
            "the split by speaker holds out for validation and test. Record more speakers, remove these classes, set "
            "the splits yourself (a column split), or allow test speakers in training: --share-speakers"
        )


def _why_by_content(
    pool: Sequence[CheckedClip], clips: Sequence[CheckedClip], speakers: set[str], carved: int, share_speakers: bool
) -> str:
    """Return a note on why the data is split clip by clip and not speaker by speaker, or ""."""
    known = {clip.row.speaker for clip in pool} - {""}
    if not known:
        return (
            "The speakers are unknown: the data was split by content, and test speakers may be in training. A table "
            "with the speakers prevents this: --speaker-column NAME"
        )
    if share_speakers:
        return "--share-speakers: the data was split by content; test speakers are in training."
    held_out = {clip.row.speaker for clip in clips if clip.row.split in ("val", "test")} - {""}
    if known & held_out:  # validation should resemble the test
        return "The given splits share speakers, so validation was taken from training by content and shares them too."
    if len(speakers) <= carved:
        return (
            f"There are only {len(known)} speaker(s) ({some(sorted(known))}): the data was split by content, and the "
            "result does not hold for other speakers."
        )
    return ""


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
