"""Clips to batches of samples: clips of similar length together, the size of a batch limited in seconds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft
import tensorflow as tf

from common.errors import UserError
from common.progress import ProgressLine
from common.speech.audio.decode import SAMPLE_RATE, UnreadableSound, read_sound
from common.speech.audio.resampling import resample
from common.training import pipeline_of

_MULTIPLE = 800  # samples; batches are padded to a multiple of it: few shapes, and little padding of short words
_SORTED_TOGETHER = 50  # batches; clips are sorted by length within so many, and shuffled across
_MEMORY_MB = 1024
INPUTS = {"audio": tf.TensorSpec((None, None), tf.float32), "samples": tf.TensorSpec((None,), tf.int32)}


class Clips:
    """The samples of clips: kept in memory as far as they fit, else decoded each time.

    Args:
        paths: of n files, all checked before.
        rate: to resample to, Hz.
        memory_mb: maximum memory to use, in megabytes; 0 keeps none.
        title: of the progress line while decoding; "" decodes nothing in advance.
    """

    def __init__(
        self, paths: Sequence[str], rate: int = SAMPLE_RATE, memory_mb: float = _MEMORY_MB, title: str = "decoding"
    ):
        self.paths, self.rate = paths, rate
        self._room = memory_mb * 2**20
        self._kept: dict[int, np.ndarray] = {}
        if title and len(paths):
            self._fill(title)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> np.ndarray:
        """Return the samples of one clip, float32 [samples].

        Raises:
            UserError: the file was removed or changed since the check.
        """
        return self._kept[place] if place in self._kept else self._decode(place)

    @property
    def kept(self) -> int:
        """Return the number of clips in memory."""
        return len(self._kept)

    def _decode(self, place: int) -> np.ndarray:
        try:
            return read_sound(self.paths[place], self.rate).samples
        except UnreadableSound as error:
            raise UserError(
                f"{self.paths[place]} {error}. It could be read when the data was checked: restore it, or start again."
            ) from error

    def _fill(self, title: str) -> None:
        progress = ProgressLine(title, len(self))
        for place in range(len(self)):
            samples = self._decode(place)
            if samples.nbytes > self._room:
                progress.close(f"; the other {len(self) - place:,} do not fit into memory and are decoded every epoch")
                return
            self._room -= samples.nbytes
            self._kept[place] = samples
            progress.update(place + 1)
        progress.close()


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training clip that keep its words; never for evaluation.

    Attributes:
        speed: lowest and highest factor; the pitch changes with it. (1, 1) keeps the speed.
        noise_db: lowest and highest signal-to-noise ratio of white noise, decibels; None adds none.
        noise_share: share of the clips with noise, 0 to 1.
        gain_db: lowest and highest, decibels.
        microphone: share of the clips changed as if recorded with another microphone in another room, 0 to 1.
    """

    speed: tuple[float, float] = (0.9, 1.1)
    noise_db: tuple[float, float] | None = (10.0, 40.0)
    noise_share: float = 0.5
    gain_db: tuple[float, float] = (-6.0, 6.0)
    microphone: float = 0.0

    def __post_init__(self):
        for name, low, high in (("speed", 0.5, 2.0), ("noise_db", -20.0, 100.0), ("gain_db", -60.0, 60.0)):
            given = getattr(self, name)
            if given is not None and not low <= given[0] <= given[1] <= high:
                raise UserError(
                    f"{name} must be a lowest and a highest value from {low:g} to {high:g}. Received: {given}."
                )
        for name in ("noise_share", "microphone"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must be from 0 to 1. Received: {getattr(self, name)}.")

    @classmethod
    def of(cls, names: Sequence[str]) -> Augmentation | None:
        """Return the augmentation named by some of speed, noise, gain, microphone; None for `none`."""
        if tuple(names) == ("none",):
            return None
        return cls(
            speed=cls.speed if "speed" in names else (1.0, 1.0),
            noise_db=cls.noise_db if "noise" in names else None,
            gain_db=cls.gain_db if "gain" in names else (0.0, 0.0),
            microphone=0.5 if "microphone" in names else 0.0,
        )

    def __call__(self, samples: np.ndarray, rng: np.random.Generator, least: int = 0) -> np.ndarray:
        """Return an augmented copy of a clip.

        Args:
            samples: float32 [samples].
            rng: of the draws, which are the same whatever is switched on.
            least: minimum length in samples, so that CTC can still emit the transcript.

        Returns:
            float32 [about samples / speed].
        """
        speed, share, ratio, gain, room = rng.uniform(size=5)
        fastest = max(1.0, len(samples) / max(least, 1))
        samples = change_speed(samples, min(_between(self.speed, speed), fastest))
        if room < self.microphone:
            samples = through_microphone(samples, rng)
        if self.noise_db and share < self.noise_share:
            samples = add_noise(samples, rng, _between(self.noise_db, ratio))
        return samples * np.float32(10 ** (_between(self.gain_db, gain) / 20))


def _between(ends: tuple[float, float], share: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * share


def change_speed(samples: np.ndarray, speed: float) -> np.ndarray:
    """Return a clip played faster or slower, like a tape, float32 [ceil(samples / speed)]."""
    return resample(samples, SAMPLE_RATE * speed, SAMPLE_RATE)


def add_noise(samples: np.ndarray, rng: np.random.Generator, ratio_db: float) -> np.ndarray:
    """Add white noise.

    Args:
        samples: float32 [samples].
        rng: of the noise.
        ratio_db: signal-to-noise ratio, decibels; silence gets no noise.

    Returns:
        float32 [samples].
    """
    power = float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0
    level = np.float32(np.sqrt(power / 10 ** (ratio_db / 10)))
    return samples + level * rng.standard_normal(len(samples), np.float32)


def through_microphone(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a clip as if recorded with another microphone in another room.

    Each microphone has a smooth frequency response of up to 8 dB either way, and every second one cuts off at a
    frequency from 3 kHz on, as telephones do; a room adds an echo that fades within 0.05 to 0.4 s.

    Args:
        samples: float32 [samples].
        rng: of microphone and room.

    Returns:
        float32 [samples].
    """
    # Padding for the echo of the end, which would wrap around to the beginning.
    length = scipy.fft.next_fast_len(len(samples) + SAMPLE_RATE // 2, real=True)
    frequencies = np.fft.rfftfreq(length, 1 / SAMPLE_RATE)
    knots = np.geomspace(100, SAMPLE_RATE / 2, 6)
    louder = np.interp(np.log(np.maximum(frequencies, 1.0)), np.log(knots), rng.uniform(-8.0, 8.0, len(knots)))
    response = 10 ** (louder / 20)
    highest = rng.uniform(3000.0, 8000.0) if rng.random() < 0.5 else SAMPLE_RATE / 2
    response /= np.sqrt(1 + (frequencies / highest) ** 24)
    fading, level = rng.uniform(0.05, 0.4), rng.uniform(0.0, 0.5)
    times = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
    echo = rng.standard_normal(len(times)) * 10 ** (-3 * times / fading)
    echo *= level / np.sqrt(np.sum(echo**2))
    echo[0] += 1.0
    changed = scipy.fft.rfft(samples, length) * (response * scipy.fft.rfft(echo, length)).astype(np.complex64)
    return scipy.fft.irfft(changed, length)[: len(samples)].astype(np.float32)


# --- batches ----------------------------------------------------------------------------------------------


def ordered_batches(seconds: np.ndarray, batch_seconds: float, batch_size: int | None = None) -> list[np.ndarray]:
    """Return batches of clips in the given order.

    Args:
        seconds: length of each clip.
        batch_seconds: maximum length of a batch, padding included; a longer clip is a batch of its own.
        batch_size: maximum number of clips per batch, or None.

    Returns:
        A list of index arrays.
    """
    return list(_cut(np.arange(len(seconds)), seconds, batch_seconds, batch_size))


def shuffled_batches(
    seconds: np.ndarray, batch_seconds: float, seed: tuple[int, int], batch_size: int | None = None
) -> list[np.ndarray]:
    """Return the batches of one epoch: clips of similar length together, in random order.

    Args:
        seconds, batch_seconds, batch_size: as for `ordered_batches`.
        seed: (seed, epoch); the same pair gives the same batches.

    Returns:
        A list of index arrays that cover all clips. The number of batches may differ slightly between epochs.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(seconds))
    pools = (np.cumsum(seconds[order]) // (_SORTED_TOGETHER * batch_seconds)).astype(np.int64)
    order = order[np.lexsort((seconds[order], pools))]
    batches = list(_cut(order, seconds, batch_seconds, batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


def steps_per_epoch(seconds: np.ndarray, batch_seconds: float, seed: int, batch_size: int | None = None) -> int:
    """Return the batches of the first epoch; the other epochs are cut or extended to the same number."""
    return len(shuffled_batches(seconds, batch_seconds, (seed, 0), batch_size))


def _cut(order: np.ndarray, seconds: np.ndarray, most: float, batch_size: int | None) -> Iterator[np.ndarray]:
    """Yield pieces of the order, each as large as allowed."""
    first, longest = 0, 0.0
    for place, clip in enumerate(order):
        longest = max(longest, seconds[clip])
        count = place - first + 1
        if count > 1 and (count * longest > most or (batch_size and count > batch_size)):
            yield order[first:place]
            first, longest = place, seconds[clip]
    if len(order):
        yield order[first:]


def training_batches(
    clips: Clips,
    seconds: np.ndarray,
    targets: Sequence[np.ndarray] | np.ndarray,
    batch_seconds: float,
    *,
    seed: int,
    first: tuple[int, int] = (0, 0),
    batch_size: int | None = None,
    augmentation: Augmentation | None = None,
    least_samples: Sequence[int] | None = None,
) -> tf.data.Dataset:
    """Stream batches endlessly, from (epoch, step) on.

    The augmentation of a clip depends on (seed, epoch, clip) only: a killed run resumes with the same batches.

    Args:
        clips: n clips.
        seconds: length of each, float64 [n].
        targets: the labels of each clip, n int32 [characters], or class numbers, int64 [n].
        batch_seconds: maximum length of a batch, padding included (before the speed changes).
        seed: of the order and the augmentation.
        first: the first batch.
        batch_size: maximum number of clips per batch, or None.
        augmentation: random changes, or None.
        least_samples: minimum length of each clip after a change of speed, or None.

    Returns:
        Dataset of ({"audio": float32 [batch, samples], "samples": int32 [batch]}, targets), with `steps_per_epoch`
        batches per epoch; targets are {"labels": int32 [batch, characters], "characters": int32 [batch]}, or int64
        [batch]. Padding is 0.

    Raises:
        UserError: there are no clips.
    """
    if not len(clips):
        raise UserError("There are no clips to train on: all were skipped. See the reasons in skipped.csv.")

    def clip_of(epoch: int, place: int) -> np.ndarray:
        if augmentation is None:
            return clips[place]
        least = 0 if least_samples is None else int(least_samples[place])
        return augmentation(clips[place], np.random.default_rng((seed, epoch, place)), least)

    steps = steps_per_epoch(seconds, batch_seconds, seed, batch_size)

    def generate():
        epoch, step = first
        while True:
            batches = itertools.cycle(shuffled_batches(seconds, batch_seconds, (seed, epoch), batch_size))
            for places in itertools.islice(batches, step, steps):
                yield padded([clip_of(epoch, int(place)) for place in places]), _targets_of(targets, places)
            epoch, step = epoch + 1, 0

    return _stream(generate, targets)


def evaluation_batches(
    clips: Clips,
    seconds: np.ndarray,
    targets: Sequence[np.ndarray] | np.ndarray,
    batch_seconds: float,
    *,
    batch_size: int | None = None,
) -> tf.data.Dataset:
    """Stream every clip once, in the given order, unchanged; arguments and result as for `training_batches`."""

    def generate():
        for places in ordered_batches(seconds, batch_seconds, batch_size):
            yield padded([clips[int(place)] for place in places]), _targets_of(targets, places)

    return _stream(generate, targets)


def _stream(generate, targets: Sequence[np.ndarray] | np.ndarray) -> tf.data.Dataset:
    labels = {"labels": tf.TensorSpec((None, None), tf.int32), "characters": tf.TensorSpec((None,), tf.int32)}
    classes = tf.TensorSpec((None,), tf.int64)
    signature = (INPUTS, classes if _are_classes(targets) else labels)
    return pipeline_of(generate, signature, ahead=4)


def _are_classes(targets: Sequence[np.ndarray] | np.ndarray) -> bool:
    return isinstance(targets, np.ndarray) and targets.dtype != object


def padded(clips: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return clips as one batch, padded with zeros.

    Args:
        clips: float32 [samples] each.

    Returns:
        {"audio": float32 [batch, samples], "samples" per clip: int32 [batch]}.
    """
    counts = np.array([len(samples) for samples in clips], np.int32)
    audio = np.zeros((len(clips), -(-int(counts.max()) // _MULTIPLE) * _MULTIPLE), np.float32)
    for row, samples in zip(audio, clips, strict=True):
        row[: len(samples)] = samples
    return {"audio": audio, "samples": counts}


def _targets_of(targets: Sequence[np.ndarray] | np.ndarray, places: np.ndarray):
    if _are_classes(targets):
        return targets[places]
    chosen = [targets[place] for place in places]
    counts = np.array([len(labels) for labels in chosen], np.int32)
    padded = np.zeros((len(chosen), max(1, counts.max())), np.int32)
    for row, labels in zip(padded, chosen, strict=True):
        row[: len(labels)] = labels
    return {"labels": padded, "characters": counts}
