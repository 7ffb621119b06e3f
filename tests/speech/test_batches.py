"""Clips of similar length together, the same batches after a kill, and augmentation that keeps the words."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile

from common.errors import UserError
from common.speech.batches import (
    Augmentation,
    Clips,
    add_noise,
    change_speed,
    evaluation_batches,
    ordered_batches,
    shuffled_batches,
    through_microphone,
    training_batches,
)

RATE = 16_000


def sine(seconds: float, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.fixture
def spoken(tmp_path: Path) -> tuple[list[str], np.ndarray, list[np.ndarray]]:
    """Twelve tones of 0.2 to 1.3 s with labels: paths, seconds, labels."""
    seconds = np.random.default_rng(0).permutation(np.arange(2, 14) / 10)
    paths = []
    for number, length in enumerate(seconds):
        paths.append(str(tmp_path / f"{number}.wav"))
        soundfile.write(paths[-1], sine(length, 200 + 50 * number), RATE)
    return paths, seconds, [np.arange(1, 2 + number % 4, dtype=np.int32) for number in range(12)]


def taken(dataset, count: int) -> list:
    return [(x["audio"].numpy(), x["samples"].numpy(), y) for x, y in islice(iter(dataset), count)]


def same(one: list, other: list) -> bool:
    return all(
        np.array_equal(a[0], b[0]) and np.array_equal(a[2]["labels"], b[2]["labels"])
        for a, b in zip(one, other, strict=True)
    )


def test_a_batch_holds_clips_of_one_length_and_no_more_seconds_than_allowed():
    seconds = np.random.default_rng(0).uniform(0.5, 20, 2000)
    batches = shuffled_batches(seconds, 60.0, (0, 0))
    assert sorted(np.concatenate(batches)) == list(range(2000))
    held = np.array([len(batch) * seconds[batch].max() for batch in batches])
    assert held.max() <= 60
    padding = 1 - seconds.sum() / held.sum()
    assert padding < 0.04
    unsorted = ordered_batches(seconds, 60.0)
    assert 1 - seconds.sum() / sum(len(batch) * seconds[batch].max() for batch in unsorted) > 4 * padding
    order = [seconds[batch].mean() for batch in batches]
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.2  # short and long ones come in turn


def test_a_clip_longer_than_a_batch_is_one_of_its_own_and_sizes_are_kept():
    seconds = np.array([1.0, 99.0, 1.0, 1.0, 1.0, 1.0])
    assert [batch.tolist() for batch in ordered_batches(seconds, 2.0)] == [[0], [1], [2, 3], [4, 5]]
    assert [len(batch) for batch in ordered_batches(np.ones(7), 100.0, batch_size=3)] == [3, 3, 1]
    assert ordered_batches(np.zeros(0), 10.0) == []


def test_epochs_differ_and_seeds_decide():
    seconds = np.random.default_rng(0).uniform(0.5, 5, 100)
    first, again, later, other = (shuffled_batches(seconds, 20.0, seed) for seed in ((0, 0), (0, 0), (0, 1), (1, 0)))
    assert [b.tolist() for b in first] == [b.tolist() for b in again]
    assert [b.tolist() for b in first] != [b.tolist() for b in later]
    assert [b.tolist() for b in first] != [b.tolist() for b in other]


@pytest.mark.parametrize("augmentation", [None, Augmentation()])
def test_a_run_that_was_killed_goes_on_with_the_same_batches(spoken, augmentation: Augmentation | None):
    paths, seconds, labels = spoken
    settings = dict(seed=3, augmentation=augmentation)
    whole = taken(training_batches(Clips(paths, title=""), seconds, labels, 3.0, **settings), 9)
    steps = len(shuffled_batches(seconds, 3.0, (3, 0)))
    assert 2 < steps < 8
    resumed = training_batches(Clips(paths), seconds, labels, 3.0, first=(0, 2), **settings)
    assert same(whole[2:], taken(resumed, 7))
    second_epoch = training_batches(Clips(paths), seconds, labels, 3.0, first=(1, 0), **settings)
    assert same(whole[steps:], taken(second_epoch, 9 - steps))


def test_batches_hold_the_clips_their_lengths_and_their_labels(spoken):
    paths, seconds, labels = spoken
    seen = []
    for inputs, targets in evaluation_batches(Clips(paths), seconds, labels, 4.0):
        audio, counts = inputs["audio"].numpy(), inputs["samples"].numpy()
        assert audio.dtype == np.float32 and audio.shape[1] % 800 == 0
        for row, count, label, length in zip(audio, counts, targets["labels"], targets["characters"], strict=True):
            number = len(seen)
            assert count == round(seconds[number] * RATE) and not row[count:].any()
            assert np.abs(row[:count] - sine(seconds[number], 200 + 50 * number)).max() < 2e-3
            assert (
                label[: int(length)].numpy().tolist() == labels[number].tolist()
                and not label[int(length) :].numpy().any()
            )
            seen.append(number)
    assert len(seen) == 12  # in the order given


def test_classes_are_numbers(spoken):
    paths, seconds, _ = spoken
    numbers = np.arange(12) % 5
    found = [targets.numpy() for _, targets in evaluation_batches(Clips(paths), seconds, numbers, 4.0)]
    assert np.concatenate(found).tolist() == numbers.tolist() and found[0].dtype == np.int64


def test_clips_are_kept_as_far_as_they_fit(spoken, capsys):
    paths, seconds, _ = spoken
    room = 4 * RATE * seconds[:5].sum() / 2**20
    some, every, none = Clips(paths, memory_mb=room + 0.001), Clips(paths), Clips(paths, memory_mb=0)
    assert (some.kept, every.kept, none.kept) == (5, 12, 0)
    assert "the other 7 do not fit into memory" in capsys.readouterr().out
    for place in range(12):
        assert np.array_equal(some[place], every[place]) and np.array_equal(none[place], every[place])
    Path(paths[7]).unlink()
    with pytest.raises(UserError, match=r"does not exist\..* could be read when the data was checked"):
        some[7]
    assert len(every[7]) == round(seconds[7] * RATE)  # in memory


def test_speed_changes_length_and_pitch_together():
    samples = sine(2.0)
    for speed in (0.9, 1.1):
        changed = change_speed(samples, speed)
        assert len(changed) == pytest.approx(len(samples) / speed, abs=1)
        peak = np.abs(np.fft.rfft(changed * np.hanning(len(changed)))).argmax() * RATE / len(changed)
        assert peak == pytest.approx(440 * speed, abs=1)
    assert np.array_equal(change_speed(samples, 1.0), samples)


@pytest.mark.parametrize("ratio", [0.0, 20.0])
def test_noise_has_the_power_that_was_asked_for(ratio: float):
    samples = sine(4.0)
    noise = add_noise(samples, np.random.default_rng(0), ratio) - samples
    measured = 10 * np.log10(np.mean(samples**2) / np.mean(noise**2))
    assert measured == pytest.approx(ratio, abs=0.1)
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.02  # white
    assert not add_noise(np.zeros(100, np.float32), np.random.default_rng(0), ratio).any()


def test_gain_is_in_decibels_and_what_is_off_stays_off():
    off = Augmentation(speed=(1, 1), noise_db=None, gain_db=(0, 0))
    assert np.array_equal(off(sine(1.0), np.random.default_rng(0)), sine(1.0))
    louder = Augmentation(speed=(1, 1), noise_db=None, gain_db=(6.0206, 6.0206))(sine(1.0), np.random.default_rng(0))
    assert np.allclose(louder, 2 * sine(1.0), rtol=1e-4) and louder.dtype == np.float32


def test_noise_for_a_share_of_the_clips():
    noisy = Augmentation(speed=(1, 1), noise_db=(5, 10), noise_share=0.3, gain_db=(0, 0))
    changed = [np.any(noisy(sine(0.1), np.random.default_rng(seed)) != sine(0.1)) for seed in range(300)]
    assert 0.2 < np.mean(changed) < 0.4


def test_a_clip_is_never_too_short_for_its_transcript():
    fast = Augmentation(speed=(1.5, 2.0), noise_db=None)
    for seed in range(20):
        assert len(fast(sine(1.0), np.random.default_rng(seed), least=15_000)) >= 15_000
        assert len(fast(sine(1.0), np.random.default_rng(seed), least=20_000)) == 16_000
        assert len(fast(sine(1.0), np.random.default_rng(seed))) < 11_000


@pytest.mark.parametrize(
    "settings", [{"speed": (1.1, 0.9)}, {"speed": (0.1, 1)}, {"noise_share": 2}, {"gain_db": (0, float("nan"))}]
)
def test_augmentation_that_cannot_be_is_refused(settings: dict):
    with pytest.raises(UserError, match=next(iter(settings))):
        Augmentation(**settings)


def test_names_choose_the_augmentation():
    assert Augmentation.of(["none"]) is None
    everything = Augmentation.of(["speed", "noise", "gain", "microphone"])
    assert everything == Augmentation(microphone=0.5)
    off = {"speed": (1.0, 1.0), "noise_db": None, "gain_db": (0.0, 0.0), "microphone": 0.0}
    for name, setting in (("speed", "speed"), ("noise", "noise_db"), ("gain", "gain_db"), ("microphone", "microphone")):
        found = vars(Augmentation.of([name]))
        assert {key for key, value in off.items() if found[key] != value} == {setting}
        assert found[setting] == getattr(everything, setting)


def test_no_clips_are_no_training():
    with pytest.raises(UserError, match="no clips"):
        training_batches(Clips([]), np.zeros(0), [], 10.0, seed=0)


def test_another_microphone_colours_cuts_and_echoes_but_moves_nothing():
    click = np.zeros(8000, np.float32)
    click[1000] = 1.0
    tone = sine(0.5, 6000.0)
    gone = 0
    for seed in range(20):
        heard = through_microphone(click, np.random.default_rng(seed))
        assert heard.shape == click.shape and heard.dtype == np.float32 and np.isfinite(heard).all()
        assert abs(int(np.abs(heard).argmax()) - 1000) <= 8
        assert np.abs(heard[:900]).max() < 0.05 * np.abs(heard).max()  # nothing comes before its cause
        gone += np.abs(through_microphone(tone, np.random.default_rng(seed))).max() < 0.05
    assert 2 <= gone <= 12  # 6 kHz is cut off by some of those that hear nothing above 3 to 8 kHz
    batch = Augmentation(speed=(1, 1), noise_db=None, gain_db=(0, 0), microphone=0.5)
    changed = [not np.array_equal(batch(tone, np.random.default_rng(seed)), tone) for seed in range(40)]
    assert 10 <= sum(changed) <= 30
