"""Splits: by content and not by name, stable when a data set grows, never overlapping."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from common.data.splits import drop_copies_across_splits, limit_per_class, split_by_hash

SPLITS = {"test": 0.15, "val": 0.15, "train": 1.0}


def contents(count: int, first: int = 0) -> list[str]:
    """Content hashes as real files give them."""
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(first, first + count)]


@pytest.mark.parametrize("count", [3, 4, 5, 7, 10, 40, 1000])
def test_every_part_is_there_and_shares_are_about_right(count):
    hashes, labels = contents(2 * count), [0, 1] * count
    parts = split_by_hash(hashes, labels, SPLITS)
    for label in (0, 1):
        sizes = Counter(parts[label::2])
        assert sum(sizes.values()) == count
        assert sizes["train"] >= 1
        for part in ("test", "val"):
            assert abs(sizes[part] - 0.15 * count) <= 0.5 or sizes[part] == 1


@pytest.mark.parametrize("count", [1, 2])
def test_a_class_with_too_few_pictures_is_trained_on(count):
    assert split_by_hash(contents(count), [0] * count, SPLITS).tolist() == ["train"] * count


def test_two_parts_need_two_pictures():
    assert sorted(split_by_hash(contents(2), [0, 0], {"val": 0.15, "train": 1.0})) == ["train", "val"]


def test_greedy_shares_leave_something_to_train_on():
    assert Counter(split_by_hash(contents(10), [0] * 10, {"test": 0.15, "val": 0.99, "train": 1.0}))["train"] == 1


def test_nothing_to_split():
    assert len(split_by_hash([], [], SPLITS)) == 0


def test_order_and_names_do_not_matter():
    hashes, labels = contents(200), np.arange(200) % 3
    shuffled = np.random.default_rng(0).permutation(200)
    parts = split_by_hash(hashes, labels, SPLITS)
    np.testing.assert_array_equal(
        split_by_hash([hashes[i] for i in shuffled], labels[shuffled], SPLITS), parts[shuffled]
    )
    # Other numbers for the same classes, as when a class is added, change nothing either.
    np.testing.assert_array_equal(split_by_hash(hashes, labels + 1, SPLITS), parts)


def test_adding_pictures_moves_few_others():
    before = split_by_hash(contents(1000), [0] * 1000, SPLITS)
    after = split_by_hash(contents(1100), [0] * 1100, SPLITS)[:1000]
    assert (before != after).mean() < 0.05
    one_more = split_by_hash(contents(1001), [0] * 1001, SPLITS)[:1000]
    assert (before != one_more).sum() <= 2  # each of the two borders moves by one at most


def test_copies_stay_together_and_do_not_count_twice():
    hashes = contents(20) + contents(20)[:10] * 5
    parts = split_by_hash(hashes, [0] * len(hashes), SPLITS)
    by_content = dict(zip(hashes, parts, strict=True))
    assert all(by_content[content] == part for content, part in zip(hashes, parts, strict=True))
    np.testing.assert_array_equal(parts[:20], split_by_hash(contents(20), [0] * 20, SPLITS))


def test_many_copies_of_two_contents_are_two_contents():
    hashes = contents(2) * 50
    assert set(split_by_hash(hashes, [0] * 100, SPLITS)) == {"train"}


def test_copies_leave_the_part_with_the_lower_claim():
    a, b, c, d = contents(4)
    parts = np.array(["train", "val", "test", "train", "val", "train", "test", "train", "train"], dtype=object)
    hashes = [a, a, a, b, b, c, c, d, d]
    leave = drop_copies_across_splits(parts, hashes)
    assert leave.dtype == bool
    assert leave.tolist() == [True, True, False, True, False, True, False, False, False]
    remaining = {part: {h for p, h, out in zip(parts, hashes, leave, strict=True) if p == part and not out}
                 for part in ("train", "val", "test")}  # fmt: skip
    assert remaining == {"train": {d}, "val": {b}, "test": {a, c}}
    assert drop_copies_across_splits(np.array([], dtype=object), []).tolist() == []


def test_limit_takes_from_the_classes_in_turn():
    labels = np.array([0] * 50 + [1] * 50 + [2] * 2)
    chosen = limit_per_class(labels, 12)
    assert Counter(labels[chosen].tolist()) == {0: 5, 1: 5, 2: 2}
    assert chosen.tolist() == sorted(chosen.tolist())  # in their order
    assert set(chosen) < set(limit_per_class(labels, 13))  # a larger limit adds and changes nothing else
    np.testing.assert_array_equal(limit_per_class(labels, 1000), np.arange(102))
    assert Counter(labels[limit_per_class(labels, 4)].tolist()) == {0: 2, 1: 1, 2: 1}
