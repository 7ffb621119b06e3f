"""Train, validation and test parts: by what was given, else by content hash; never overlapping."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

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
