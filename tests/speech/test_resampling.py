"""One resampler, in NumPy and in a graph: exact below the Nyquist frequency, nothing folded, nothing wrapped around."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from common.speech.audio.in_graph import resample_in_graph
from common.speech.audio.resampling import resample

RATES = (8000, 11_025, 16_000, 22_050, 22_257, 44_100, 48_000, 96_000, 192_000)
TO = 16_000
every_rate = pytest.mark.parametrize("rate", RATES)


@pytest.fixture(scope="module")
def in_graph():
    """The graph version, traced once for clips of any length and rate."""
    specs = [tf.TensorSpec([None], tf.float32), tf.TensorSpec([], tf.int32)]
    return tf.function(lambda samples, rate: resample_in_graph(samples, rate, TO), input_signature=specs)


def sine(hertz: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate).astype(np.float32)


@every_rate
def test_the_graph_gives_what_numpy_gives(in_graph, rate: int):
    rng = np.random.default_rng(rate)
    for count in (0, 1, 7, 997, rate // 3, rate + 1):
        samples = rng.standard_normal(count).astype(np.float32)
        wanted, found = resample(samples, rate, TO), in_graph(samples, rate).numpy()
        assert wanted.dtype == found.dtype == np.float32
        assert len(wanted) == len(found) == -(-count * TO // rate)
        assert not count or np.abs(wanted - found).max() < 1e-5


@every_rate
def test_a_tone_is_as_if_it_had_been_recorded_at_the_new_rate(rate: int):
    for share in (0.1, 0.5, 0.9):
        hertz = share * min(rate, TO) / 2
        found = resample(sine(hertz, rate), rate, TO)
        assert np.abs(found - sine(hertz, TO))[1500:-1500].max() < 1e-4


@pytest.mark.parametrize("rate", [22_050, 44_100, 48_000, 192_000])
def test_what_the_new_rate_cannot_hold_is_gone_and_not_folded(rate: int):
    for hertz in (8100, 9000, 10_900):
        assert np.abs(resample(sine(hertz, rate), rate, TO))[1500:-1500].max() < 1e-4


def test_nothing_is_made_up_where_the_old_rate_ended():
    """The image of a tone: 8 kHz hold 3 kHz, and zeros between the samples would add 5 kHz."""
    spectrum = np.abs(np.fft.rfft(resample(sine(3000, 8000), 8000, TO) * np.hanning(TO)))
    assert spectrum[3000] > 1000 and spectrum[4100:].max() < 1e-3 * spectrum[3000]


@every_rate
def test_a_click_at_one_end_is_not_heard_at_the_other(rate: int):
    first = np.zeros(rate, np.float32)
    first[0] = 1
    far = TO // 10
    assert np.abs(resample(first, rate, TO)[far:]).max() < 1e-6
    assert np.abs(resample(first[::-1].copy(), rate, TO)[:-far]).max() < 1e-6
    assert np.abs(resample(first, rate, TO)).max() > 0.05 * min(1, TO / rate)


def test_a_click_rings_briefly():
    click = np.zeros(44_100, np.float32)
    click[22_050] = 1
    found = np.abs(resample(click, 44_100, TO))
    assert found.argmax() == 8000
    assert found[:7840].max() < 1e-5 and found[8160:].max() < 1e-5  # 10 ms


def test_a_constant_stays_in_the_middle_and_loudness_stays():
    assert np.abs(resample(np.ones(48_000, np.float32), 48_000, TO)[2000:-2000] - 1).max() < 1e-4


def test_the_same_rate_changes_nothing(in_graph):
    samples = np.random.default_rng(0).standard_normal(1234).astype(np.float32)
    assert resample(samples, TO, TO) is samples
    assert np.array_equal(in_graph(samples, TO), samples)


@pytest.mark.parametrize("speed", [0.9, 0.9137, 1.0731, 1.1])
def test_rates_that_are_no_whole_numbers_are_met_to_a_sample(speed: float):
    """As changes of speed ask for: a tone of 1 s, and how far it is off in the end."""
    found = resample(sine(1000, TO), TO * speed, TO)
    assert len(found) == int(np.ceil(TO / speed - 1e-6))
    wanted = np.sin(2 * np.pi * 1000 * speed * np.arange(len(found)) / TO)
    # A whole sample off would be 0.38 of a tone of 1 kHz.
    assert np.abs(found - wanted)[1500:-1500].max() < 0.25
