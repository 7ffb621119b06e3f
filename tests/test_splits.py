"""Splits: by content and not by name, stable when a data set grows, never overlapping."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from common.data.shots import draw_shots
from common.data.splits import drop_copies_across_splits, limit_per_class, split_by_group, split_by_hash
from common.errors import UserError

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


# --- whole groups -----------------------------------------------------------------------------------------


def patients(count: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Groups of 1 to 9 examples each with a class of its own most of the time, of three classes."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 10, count)
    groups = [f"patient {number}" for number, size in enumerate(sizes) for _ in range(size)]
    usual = np.repeat(rng.integers(0, 3, count), sizes)
    return groups, np.where(rng.random(len(groups)) < 0.8, usual, rng.integers(0, 3, len(groups)))


@pytest.mark.parametrize("count", [20, 60, 300])
def test_groups_stay_whole_and_shares_are_about_right(count):
    groups, labels = patients(count)
    splits = split_by_group(groups, labels, SPLITS)
    assert len(set(zip(groups, splits, strict=True))) == count  # each in one split
    for split in ("test", "val"):
        assert abs((splits == split).mean() - 0.15) < 0.04
        for label in range(3):
            mine = labels == label
            assert abs((splits[mine] == split).mean() - 0.15) < 0.1 and label in labels[splits == split]


def test_groups_depend_on_their_names_and_not_on_the_order():
    groups, labels = patients(60)
    splits, shuffled = split_by_group(groups, labels, SPLITS), np.random.default_rng(1).permutation(len(groups))
    again = split_by_group([groups[i] for i in shuffled], labels[shuffled], SPLITS)
    np.testing.assert_array_equal(again, splits[shuffled])
    renamed = split_by_group([f"{group}." for group in groups], labels, SPLITS)
    assert (renamed != splits).any()


def test_a_large_group_stays_in_training():
    groups, labels = patients(60)
    groups += ["all day"] * 60
    labels = np.append(labels, np.arange(60) % 3)
    for number in range(20):  # whatever the hash of its name
        named = [f"{group} {number}" for group in groups]
        assert set(split_by_group(named, labels, SPLITS)[-60:]) == {"train"}


def test_where_all_groups_are_large_the_smallest_leave_training():
    groups, labels = ["a"] * 8 + ["b"] * 5 + ["c"] * 6, [0, 1] * 9 + [0]
    splits = split_by_group(groups, labels, SPLITS)
    assert dict(zip(groups, splits, strict=True)) == {"a": "train", "b": "test", "c": "val"}


def test_a_class_in_one_group_stays_in_training():
    groups, labels = patients(60)
    labels[[group == "patient 7" for group in groups]] = 3
    splits = split_by_group(groups, labels, SPLITS)
    assert set(splits[labels == 3]) == {"train"}


def test_groups_that_cannot_be_split_are_refused():
    with pytest.raises(UserError, match=r"--group gives 1 group\(s\): 'a'. At least 2 are required"):
        split_by_group(["a"] * 9, [0, 1, 2] * 3, {"val": 0.15, "train": 1.0})
    with pytest.raises(UserError, match=r"leaves no group for the test split.*A class must be in several groups"):
        split_by_group(["cat"] * 9 + ["dog"] * 9 + ["eel"] * 9, [0] * 9 + [1] * 9 + [2] * 9, SPLITS)


# --- shots ------------------------------------------------------------------------------------------------


def test_shots_limit_validation_too():
    train, val = np.arange(90) % 3, np.array([0] * 10 + [1] * 10 + [2] * 2)
    drawn = draw_shots(train, val, "abc", 5, 0, "image")
    assert np.bincount(train[drawn[0]]).tolist() == [5, 5, 5]
    assert np.bincount(val[drawn[1]]).tolist() == [5, 5, 2]  # at most: there are only two
    assert all((np.diff(places) > 0).all() for places in drawn)
    for one, other in zip(drawn, draw_shots(train, val, "abc", 5, 1, "image"), strict=True):
        assert one.tolist() != other.tolist()
    with pytest.raises(UserError, match=r"--shots 31: the class 'a' has 30 training images.*Try: --shots 30"):
        draw_shots(train, val, "abc", 31, 0, "image")
