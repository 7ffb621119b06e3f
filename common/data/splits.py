"""Train, val and test splits: as given, else by content hash; never overlapping."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import UserError

VALIDATION_SHARE = 0.15
TEST_SHARE = 0.15
LARGE_GROUP = 0.1  # share of the examples above which a group stays in training


def split_by_hash(hashes: Sequence[str], labels: Sequence[int], shares: dict[str, float]) -> np.ndarray:
    """Assign each example to a split by the hash of its content, class by class.

    The same content is always in the same split, independent of file name and reading order; copies stay
    together.

    Args:
        hashes: hexadecimal content hashes, n of them.
        labels: class of each example, n of them.
        shares: of each split, for example {"test": 0.15, "val": 0.15, "train": 0.7}. A class with at least as many
            distinct contents as there are splits has at least one in each; the last split takes the rest.

    Returns:
        An array of split names, object [n].
    """
    assigned = np.empty(len(hashes), dtype=object)
    members: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, (content, label) in enumerate(zip(hashes, labels, strict=True)):
        members[int(label)][content].append(index)
    names = list(shares)
    for by_content in members.values():
        contents = sorted(by_content)
        counts = _split_sizes(len(contents), [shares[name] for name in names])
        at = 0
        for name, count in zip(names, counts, strict=True):
            for content in contents[at : at + count]:
                assigned[by_content[content]] = name
            at += count
    return assigned


def _split_sizes(count: int, shares: list[float]) -> list[int]:
    """Divide a count by shares; the last split takes the rest, and none is empty while there are enough."""
    sizes = [round(count * share) for share in shares[:-1]]
    if count >= len(shares):
        sizes = [max(1, size) for size in sizes]
    while sum(sizes) > max(0, count - 1):  # the last split, train, keeps at least one
        sizes[sizes.index(max(sizes))] -= 1
    return [*sizes, count - sum(sizes)]


def split_by_group(groups: Sequence[str], labels: Sequence[int], shares: dict[str, float]) -> np.ndarray:
    """Assign whole groups (all photos of a sender, all visits of a patient) to splits.

    Groups are considered in the order of the hash of their names, after those that a split needs to have every class.
    One enters a split if the counts per class are then closer to the shares. No group leaves training if it holds the
    last training examples of a class, nor one with more than a tenth of all examples while there are smaller ones.

    Args:
        groups: name of the group of each example, n of them.
        labels: class of each example, n of them.
        shares: as for `split_by_hash`; the last split takes the rest.

    Returns:
        An array of split names, object [n].

    Raises:
        UserError: fewer groups than splits, or a class in so few groups that a split must stay empty.
    """
    names, group_of = np.unique(np.asarray(groups, dtype=object), return_inverse=True)
    classes, class_of = np.unique(labels, return_inverse=True)
    if len(names) < len(shares):
        raise UserError(
            f"--group gives {len(names)} group(s): {some(names.tolist())}. At least {len(shares)} are required, one "
            f"per split ({', '.join(shares)}). Use a finer --group, or give the splits yourself."
        )
    by_hash = sorted(range(len(names)), key=lambda group: _text_hash(names[group]))
    place_of = np.argsort(by_hash)[group_of]
    counts = np.zeros((len(names), len(classes)))  # examples per class of each group, in the order of the hashes
    np.add.at(counts, (place_of, class_of), 1)
    large = counts.sum(axis=1) > LARGE_GROUP * len(groups)
    *held_out, rest = shares
    split_of = np.full(len(names), rest, dtype=object)
    for number, split in enumerate(held_out):
        target, left = shares[split] * counts.sum(axis=0), split_of == rest
        chosen = _choose_groups(counts, left, left & ~large, target, len(held_out) - number)
        if not chosen.any():
            raise UserError(
                f"--group leaves no group for the {split} split: each holds all examples of a class that are left for "
                "training. A class must be in several groups. Use another --group, or give the splits yourself."
            )
        split_of[chosen] = split
    return split_of[place_of]


def _choose_groups(counts: np.ndarray, left: np.ndarray, small: np.ndarray, target: np.ndarray, needed: int):
    """Return which groups are for one split, bool [groups].

    Args:
        counts: examples per class of each group, [groups, classes].
        left: which groups are in no split yet, bool [groups].
        small: those of them that may leave training, bool [groups]; if none can, the smallest of the others is chosen.
        target: examples per class that the split should have, [classes].
        needed: groups of each class that should be left for the splits after this one.
    """
    present, chosen, held = counts > 0, np.zeros(len(counts), bool), np.zeros(len(target))

    def spared(places: np.ndarray, needed: int) -> np.ndarray:
        """Return those of the groups after which this many of each of their classes are left."""
        return places[(~present[places] | (remaining > needed)).all(axis=1)]

    def distance(held: np.ndarray) -> np.ndarray:
        """Return how far the counts are from the target (chi-squared)."""
        return ((held - target) ** 2 / target).sum(axis=-1)

    remaining = present[left].sum(axis=0)  # groups that hold each class
    rarest_first = np.argsort(present[small].sum(axis=0), kind="stable")
    for least, number in [(least, number) for least in (needed, 1) for number in rarest_first]:
        holders = spared(np.flatnonzero(small & present[:, number]), least)
        if not held[number] and len(holders):
            place = holders[distance(held + counts[holders]).argmin()]
            chosen[place], held, remaining = True, held + counts[place], remaining - present[place]
    for _ in range(10):  # put groups in and take groups out where this brings the counts closer
        before = chosen.copy()
        for place in np.flatnonzero(small):
            step = -1 if chosen[place] else 1
            after = held + step * counts[place]
            allowed = (after[held > 0] > 0).all() if chosen[place] else len(spared(np.array([place]), needed))
            if allowed and distance(after) < distance(held):
                chosen[place], held, remaining = not chosen[place], after, remaining - step * present[place]
        if (chosen == before).all():
            break
    if not chosen.any() and len(others := spared(np.flatnonzero(left), 1)):
        chosen[others[counts[others].sum(axis=1).argmin()]] = True
    return chosen


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def drop_copies_across_splits(splits: np.ndarray, hashes: Sequence[str]) -> np.ndarray:
    """Mark the examples whose content is also in a split of higher priority (test over val over train).

    Args:
        splits: split of each example ("train", "val", "test"), [n].
        hashes: content hashes, n of them.

    Returns:
        bool [n], True where the example must be removed from its split.
    """
    rank = {"test": 0, "val": 1, "train": 2}
    highest: dict[str, int] = {}
    for split, content in zip(splits, hashes, strict=True):
        highest[content] = min(rank[split], highest.get(content, 2))
    return np.array([rank[split] > highest[content] for split, content in zip(splits, hashes, strict=True)], dtype=bool)


def limit_per_class(labels: np.ndarray, limit: int) -> np.ndarray:
    """Return the indices of at most `limit` examples, taken from the classes in turn, in their order."""
    seen: dict[int, int] = defaultdict(int)
    rank = np.empty(len(labels), dtype=np.int64)
    for index, label in enumerate(labels):
        rank[index] = seen[int(label)]
        seen[int(label)] += 1
    return np.sort(np.lexsort((labels, rank))[:limit])


SPLITS = ("train", "val", "test")


def count_examples(data) -> dict[str, int]:
    """Return the number of examples in each split of a data set, and of skipped ones; data sets have it as `counts`."""
    return {split: len(getattr(data, split)) for split in SPLITS} | {"skipped": len(data.skipped)}


SPLIT_OF_NAME = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
                  "dev": "val", "test": "test", "testing": "test"}  # fmt: skip


@dataclass(frozen=True)
class Split:
    """Which example is in which split.

    Attributes:
        class_names: name of each class number, sorted.
        labels: class number of each example, int64 [n].
        indices: the examples of each split, in their order.
        reasons: why an example is in no split, or "", n of them.
        notes: sentences on the groups that matter for the result.
        by_content: the splits that were made without groups.
        groups: number of the group of each example, int64 [n]; None without groups.
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    indices: dict[str, np.ndarray]
    reasons: list[str]
    notes: tuple[str, ...] = ()
    by_content: tuple[str, ...] = ()
    groups: np.ndarray | None = None


def split_labelled(
    data: str,
    what: str,
    names: Sequence[str],
    given: Sequence[str | None],
    hashes: Sequence[str],
    *,
    limit: int | None = None,
    val_share: float = VALIDATION_SHARE,
    left_out: str = "",
    groups: Sequence[str] | None = None,
) -> Split:
    """Split the usable examples, and reject data sets that cannot be trained on.

    The same content with two labels is useless: it is removed from every split, except from a given test split,
    which stays as it is. Exact copies across splits are removed from the split of lower priority.

    Args:
        data: value of `--data`, for messages.
        what: one example, for messages: `image`, `text`.
        names: class name of each example, n of them.
        given: the given split of each, or None.
        hashes: content hash of each.
        limit: keep at most this many of each split.
        val_share: the share of the train split that becomes validation where none is given.
        left_out: a sentence on unreadable files, for messages.
        groups: what each example belongs to, n names; splits that are not given are then made of whole groups. An
            example without one ("") is a group of its own, with its copies.

    Returns:
        The Split.

    Raises:
        UserError: one class only, or a class or a split without examples.
    """
    class_names = tuple(sorted(set(names)))
    if len(class_names) < 2:
        raise UserError(
            f"--data {data!r} has {len(class_names)} class(es) with readable {what}s; at least 2 are required. "
            f"Received: {some(class_names)}; {left_out}."
        )
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = np.array([numbers[name] for name in names], dtype=np.int64)
    known, groups = groups, groups and [group or f"?{content}" for group, content in zip(groups, hashes, strict=True)]
    splits = assign_splits(data, given, hashes, labels, val_share, groups)
    reasons = _reasons_to_leave(what, names, given, hashes, splits)
    stays = np.array([not reason for reason in reasons])

    indices = {}
    for split in SPLITS:
        chosen = np.nonzero((splits == split) & stays)[0]
        if not len(chosen):
            raise UserError(
                f"--data {data!r} leaves no {what}s in the {split} split. A class needs at least 3 different "
                f"{what}s to be in every split. Counts: {_count_text(names, splits, stays)}; {left_out}."
            )
        indices[split] = chosen[limit_per_class(labels[chosen], limit)] if limit else chosen
    trained = set(labels[indices["train"]].tolist())
    if missing := [name for number, name in enumerate(class_names) if number not in trained]:
        advice = f" --limit {limit} may be too small for {len(class_names)} classes." if limit else ""
        raise UserError(
            f"--data {data!r}: no training {what}s for {some(missing)}. Each class needs at least one.{advice} "
            f"Counts: {_count_text(names, splits, stays)}; {left_out}."
        )
    if groups:
        notes = _group_notes(what, known, groups, splits)
        if missing := [name for name in class_names if numbers[name] not in labels[indices["val"]]]:
            notes += (
                f"Validation has no {what} with class {some(missing)}: its groups (--group) are too few or large.",
            )
        group_numbers = np.unique(np.asarray(groups, dtype=object), return_inverse=True)[1]
        return Split(class_names, labels, indices, reasons, notes=notes, groups=group_numbers)
    made = {split for was, split in zip(given, splits, strict=True) if was in (None, "train")} - {"train"}
    return Split(class_names, labels, indices, reasons, by_content=tuple(sorted(made)))


def untested_classes(class_names: Sequence[str], test_labels: np.ndarray, what: str) -> tuple[str, ...]:
    """Return a sentence on the classes without test examples, if there are any."""
    tested = set(test_labels.tolist())
    untested = [name for number, name in enumerate(class_names) if number not in tested]
    if not untested:
        return ()
    return (
        f"The test split has no {what} with class {some(untested)}: the scores do not cover it. A class needs at least "
        f"3 different {what}s to be in every split.",
    )


def some(names: Sequence[str]) -> str:
    """Return the first ten names, and how many more there are."""
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "none"


def _group_notes(what: str, known: Sequence[str], groups: Sequence[str], splits: np.ndarray) -> tuple[str, ...]:
    notes, splits_of = [], defaultdict(set)
    tested = {group for group, split in zip(groups, splits, strict=True) if split == "test"}
    if len(tested) < np.sum(splits == "test"):
        notes.append(
            f"The test {what}s come from {len(tested):,} groups, but the intervals take them as independent: "
            "they are somewhat too narrow."
        )
    for group, split in zip(groups, splits, strict=True):
        splits_of[group].add(split)
    shared = {group for group, found in splits_of.items() if len(found) > 1}
    if shared:
        held = sum(group in shared and split != "train" for group, split in zip(groups, splits, strict=True))
        notes.append(
            f"{len(shared):,} of {len(splits_of):,} groups (--group) are in more than one of the given splits, with "
            f"{held:,} {what}s of validation and test: the scores do not hold for new groups."
        )
    if alone := sum(not group for group in known):
        notes.append(f"{alone:,} of {len(known):,} {what}s have no group (--group); each counts as one of its own.")
    return tuple(notes)


def _reasons_to_leave(what: str, names, given, hashes, splits: np.ndarray) -> list[str]:
    labels_of: dict[str, set[str]] = defaultdict(set)
    for name, content in zip(names, hashes, strict=True):
        labels_of[content].add(name)
    reasons = []
    copies = drop_copies_across_splits(splits, hashes)
    for was, content, split, copied in zip(given, hashes, splits, copies, strict=True):
        given_test = split == "test" and was not in (None, "train")
        if len(labels_of[content]) > 1 and not given_test:
            reasons.append(f"the same content is labelled {some(sorted(labels_of[content]))}; removed from {split}")
        else:
            article = "an" if what[0] in "aeiou" else "a"
            reasons.append(f"exact copy of {article} {what} in another split; removed from {split}" if copied else "")
    return reasons


def _count_text(names: Sequence[str], splits: np.ndarray, stays: np.ndarray) -> str:
    per_split = Counter((split, name) for name, split, stay in zip(names, splits, stays, strict=True) if stay)
    return ", ".join(f"{split}/{label} {count}" for (split, label), count in sorted(per_split.items())[:20]) or "none"


def assign_splits(
    data: str, was: Sequence[str | None], hashes, labels: np.ndarray, val_share: float, groups=None
) -> np.ndarray:
    """Keep the given splits; take the others from the train split by content hash, or in whole groups."""
    splits = np.array(was, dtype=object)
    given = {split for split in splits if split}
    if given and "train" not in given:
        raise UserError(f"--data {data!r} gives {sorted(given)} but no train split. Allowed: train, and val or test.")
    if "test" not in given and "val" in given:
        # A given val was held out by its author: it becomes test, and a share of train becomes val.
        splits[splits == "val"] = "test"
        given = {"train", "test"}
    carve = {split: share for split, share in (("test", TEST_SHARE), ("val", val_share))
             if split not in given}  # fmt: skip
    if carve:
        pool = np.nonzero(splits == "train")[0] if given else np.arange(len(splits))
        split, names = (split_by_group, groups) if groups else (split_by_hash, hashes)
        splits[pool] = split([names[i] for i in pool], labels[pool], {**carve, "train": 1.0})
    return splits
