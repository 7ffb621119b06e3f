"""Train, validation and test parts: by what was given, else by content hash; never overlapping."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import UserError

VALIDATION_SHARE = 0.15
TEST_SHARE = 0.15


def split_by_hash(hashes: Sequence[str], labels: Sequence[int], parts: dict[str, float]) -> np.ndarray:
    """Assign each example to a part by the hash of its content, class by class.

    The same content lands in the same part whatever the file's name or the order of reading; copies of one
    content stay together.

    Args:
        hashes: hexadecimal content hashes, n of them.
        labels: class of each example, n of them.
        parts: share of each named part, for example {"test": 0.15, "val": 0.15, "train": 0.7}. A class with
            at least as many distinct contents as there are parts has at least one in each; the last part
            takes what is left.

    Returns:
        An array of part names, object [n].
    """
    assigned = np.empty(len(hashes), dtype=object)
    members: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, (content, label) in enumerate(zip(hashes, labels, strict=True)):
        members[int(label)][content].append(index)
    names = list(parts)
    for by_content in members.values():
        contents = sorted(by_content)
        counts = _part_sizes(len(contents), [parts[name] for name in names])
        at = 0
        for name, count in zip(names, counts, strict=True):
            for content in contents[at : at + count]:
                assigned[by_content[content]] = name
            at += count
    return assigned


def _part_sizes(count: int, shares: list[float]) -> list[int]:
    """Split a count by shares; the last part takes what is left, and no part is empty while there are enough."""
    sizes = [round(count * share) for share in shares[:-1]]
    if count >= len(shares):
        sizes = [max(1, size) for size in sizes]
    while sum(sizes) > max(0, count - 1):  # the last part, training, keeps at least one
        sizes[sizes.index(max(sizes))] -= 1
    return [*sizes, count - sum(sizes)]


def drop_copies_across_parts(parts: np.ndarray, hashes: Sequence[str]) -> np.ndarray:
    """Mark the examples whose content also stands in a part of a higher claim (test over val over train).

    Args:
        parts: part name of each example ("train", "val", "test"), [n].
        hashes: content hashes, n of them.

    Returns:
        bool [n], True where the example must leave its part.
    """
    claim = {"test": 0, "val": 1, "train": 2}
    highest: dict[str, int] = {}
    for part, content in zip(parts, hashes, strict=True):
        highest[content] = min(claim[part], highest.get(content, 2))
    return np.array([claim[part] > highest[content] for part, content in zip(parts, hashes, strict=True)], dtype=bool)


def limit_per_class(labels: np.ndarray, limit: int) -> np.ndarray:
    """Return the indices of at most `limit` examples, taken from the classes in turn, in their order."""
    seen: dict[int, int] = defaultdict(int)
    rank = np.empty(len(labels), dtype=np.int64)
    for index, label in enumerate(labels):
        rank[index] = seen[int(label)]
        seen[int(label)] += 1
    return np.sort(np.lexsort((labels, rank))[:limit])


PARTS = ("train", "val", "test")

PART_OF_NAME = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
                 "dev": "val", "test": "test", "testing": "test"}  # fmt: skip


@dataclass(frozen=True)
class Split:
    """Which example is in which part.

    Attributes:
        class_names: name of each class number, sorted.
        labels: class number of each example, int64 [n].
        indices: the examples of each part, in their order.
        reasons: why an example is in no part, or "", n of them.
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    indices: dict[str, np.ndarray]
    reasons: list[str]


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
) -> Split:
    """Split examples that can be used, and refuse a set that cannot work.

    Exact content with two labels teaches and tells nothing: it leaves every part. Only a test part that was given
    stays as its author made it. Exact copies across parts leave the lower part.

    Args:
        data: what the user asked for, for messages.
        what: one example, for messages: `picture`, `text`.
        names: class name of each example, n of them.
        given: the part that each was given in, or None.
        hashes: content hash of each.
        limit: keep at most this many of each part.
        val_share: the share of the training part that becomes validation where none is given.
        left_out: a sentence on what could not be read, for messages.

    Returns:
        The Split.

    Raises:
        UserError: one class only, or a class or a part without examples.
    """
    class_names = tuple(sorted(set(names)))
    if len(class_names) < 2:
        raise UserError(
            f"--data {data!r} has {len(class_names)} class(es) with readable {what}s; at least 2 are needed. "
            f"Received: {some(class_names)}; {left_out}."
        )
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = np.array([numbers[name] for name in names], dtype=np.int64)
    parts = assign_parts(data, given, hashes, labels, val_share)
    reasons = _reasons_to_leave(what, names, given, hashes, parts)
    stays = np.array([not reason for reason in reasons])

    indices = {}
    for part in PARTS:
        chosen = np.nonzero((parts == part) & stays)[0]
        if not len(chosen):
            raise UserError(
                f"--data {data!r} leaves no {what}s in the {part} part. A class is in every part where it has 3 "
                f"different {what}s. Counts: {_count_text(names, parts, stays)}; {left_out}."
            )
        indices[part] = chosen[limit_per_class(labels[chosen], limit)] if limit else chosen
    trained = set(labels[indices["train"]].tolist())
    if missing := [name for number, name in enumerate(class_names) if number not in trained]:
        advice = f" --limit {limit} may be too small for {len(class_names)} classes." if limit else ""
        raise UserError(
            f"--data {data!r}: no training {what}s for {some(missing)}. Each class needs at least one.{advice} "
            f"Counts: {_count_text(names, parts, stays)}; {left_out}."
        )
    return Split(class_names, labels, indices, reasons)


def untested_classes(class_names: Sequence[str], test_labels: np.ndarray, what: str) -> tuple[str, ...]:
    """Return a sentence on the classes that the test part does not show, if there are any."""
    tested = set(test_labels.tolist())
    untested = [name for number, name in enumerate(class_names) if number not in tested]
    if not untested:
        return ()
    return (
        f"No test {what} shows {some(untested)}: the result says nothing about it. A class is in every part where it "
        f"has 3 different {what}s.",
    )


def some(names: Sequence[str]) -> str:
    """Return the first ten names, and how many more there are."""
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "none"


def _reasons_to_leave(what: str, names, given, hashes, parts: np.ndarray) -> list[str]:
    labels_of: dict[str, set[str]] = defaultdict(set)
    for name, content in zip(names, hashes, strict=True):
        labels_of[content].add(name)
    reasons = []
    copies = drop_copies_across_parts(parts, hashes)
    for was, content, part, copied in zip(given, hashes, parts, copies, strict=True):
        given_test = part == "test" and was not in (None, "train")
        if len(labels_of[content]) > 1 and not given_test:
            reasons.append(f"the same content is labelled {some(sorted(labels_of[content]))}; left {part}")
        else:
            reasons.append(f"exact copy of a {what} in another part; left {part}" if copied else "")
    return reasons


def _count_text(names: Sequence[str], parts: np.ndarray, stays: np.ndarray) -> str:
    per_part = Counter((part, name) for name, part, stay in zip(names, parts, stays, strict=True) if stay)
    return ", ".join(f"{part}/{label} {count}" for (part, label), count in sorted(per_part.items())[:20]) or "none"


def assign_parts(data: str, was: Sequence[str | None], hashes, labels: np.ndarray, val_share: float) -> np.ndarray:
    """Keep the parts that were given; carve the others out of the training part by content hash."""
    parts = np.array(was, dtype=object)
    given = {part for part in parts if part}
    if not given:
        shares = {"test": TEST_SHARE, "val": val_share, "train": 1.0}
        return split_by_hash(hashes, labels, shares)
    if "train" not in given:
        raise UserError(f"--data {data!r} gives {sorted(given)} but no train part. Allowed: train, and val or test.")
    if "test" not in given and "val" in given:
        # A given val was held out by its author; choices are then made on a part of train instead.
        parts[parts == "val"] = "test"
        given = {"train", "test"}
    carve = {part: share for part, share in (("test", TEST_SHARE), ("val", val_share))
             if part not in given}  # fmt: skip
    if carve:
        train = np.nonzero(parts == "train")[0]
        parts[train] = split_by_hash([hashes[i] for i in train], labels[train], {**carve, "train": 1.0})
    return parts
