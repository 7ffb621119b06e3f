"""WAV files to samples inside a TensorFlow graph, equal to those of `decode.decode_sound`.

`tf.audio.decode_wav` reads 16 bits only. This module uses core ops only, which the stock TF Serving server has; it has
no decoder for flac, ogg and mp3.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from common.speech.audio.decode import ABSURD_PEAK, CANCELLED, HIGHEST_RATE, LOWEST_RATE, SAMPLE_RATE, STREAMED
from common.speech.audio.resampling import FAST_LENGTHS, PASSED, SILENCE

ALLOWED = (
    "Allowed: WAV files (RIFF) of 8, 16, 24 or 32 bits, or of floats, with any rate and channels. "
    f"Convert it: ffmpeg -i FILE -ar {SAMPLE_RATE} -ac 1 FILE.wav"
)
# (code of the format, bytes per sample), in the order of the functions in `_levels`: integers are 1, floats 3.
_KINDS = ((1, 1), (1, 2), (1, 3), (1, 4), (3, 4), (3, 8))
_EXTENSIBLE = 0xFFFE  # the code is stored further on
_MOST_CHUNKS = 1000  # before the samples; only malicious files have more


def prepare_wav_in_graph(encoded: tf.Tensor, rate: int = SAMPLE_RATE) -> tf.Tensor:
    """Decode a WAV file, mix its channels, remove its mean and resample it, as `decode.decode_sound` does.

    Args:
        encoded: scalar string, the bytes of the file.
        rate: to resample to, Hz.

    Returns:
        float32 [samples], around 0; empty if the file has no samples.

    Raises:
        tf.errors.InvalidArgumentError: it is not a WAV file, or refused by `decode_sound` (except for no samples).
    """
    frames, file_rate = decode_wav_in_graph(encoded)
    inside = tf.logical_and(file_rate >= LOWEST_RATE, file_rate <= HIGHEST_RATE)
    frames = checked(frames, inside, "The sound states an impossible sampling rate, Hz:", file_rate)
    return resample_in_graph(around_zero(_mixed_in_graph(check_levels(frames))), file_rate, rate)


def around_zero(samples: tf.Tensor) -> tf.Tensor:
    """Return a clip, float32 [samples], without its mean (DC offset)."""
    total = tf.reduce_sum(tf.cast(samples, tf.float64))
    mean = total / tf.cast(tf.maximum(tf.size(samples), 1), tf.float64)
    return samples - tf.cast(mean, tf.float32)


def check_levels(levels: tf.Tensor) -> tf.Tensor:
    """Return samples of any shape; fail if they are not numbers or far beyond full scale."""
    numbers = tf.reduce_all(tf.math.is_finite(levels))
    levels = checked(levels, numbers, "The sound has samples that are not numbers (NaN or infinite).")
    peak = tf.reduce_max(tf.abs(levels))  # minus infinity if empty
    return checked(levels, peak <= ABSURD_PEAK, "The samples must be from -1 to 1, which is full scale. Peak:", peak)


def checked(value: tf.Tensor, condition: tf.Tensor, message: str, *received: tf.Tensor) -> tf.Tensor:
    """Return the value; fail with a message if the condition does not hold, before the value is used.

    Args:
        value: any tensor.
        condition: bool scalar.
        message: what is wrong and what is allowed.
        *received: shown after the message.
    """
    with tf.control_dependencies([tf.debugging.Assert(condition, [message, *received])]):
        return tf.identity(value)


def decode_wav_in_graph(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Decode a WAV file.

    Chunks other than the format and the samples are skipped. A program that wrote to a pipe did not know the length and
    states 0, or the maximum: then everything up to the end of the file is samples.

    Args:
        encoded: scalar string, the bytes of the file: 8 (unsigned), 16, 24 or 32 bits, or floats of 32 or 64.

    Returns:
        (samples float32 [frames, channels], full scale is -1 to 1; samples per second, int32 scalar).

    Raises:
        tf.errors.InvalidArgumentError: it is not such a file, or its end is missing.
    """
    length = tf.cast(tf.strings.length(encoded), tf.int64)
    is_wav = tf.logical_and(_piece(encoded, 0, 4) == b"RIFF", _piece(encoded, 8, 4) == b"WAVE")
    # Without its first bytes: an error message that is not UTF-8 would not reach the client.
    encoded = checked(encoded, is_wav, f"The sound is not a WAV file. {ALLOWED}. Bytes received:", length)

    form, data, stated = _find_chunks(encoded, length)
    complete = tf.logical_and(form > 0, data > 0)
    encoded = checked(encoded, complete, f"The WAV file is cut off or damaged: no format or no samples. {ALLOWED}")
    code, channels, rate, size = _read_format(encoded, form)
    kinds = tf.constant(_KINDS, tf.int64)
    matches = tf.reduce_all(kinds == tf.stack([code, size]), axis=1)
    usable = tf.logical_and(tf.reduce_any(matches), channels > 0)
    encoded = checked(encoded, usable, f"The WAV file has another encoding. {ALLOWED}. Code and bytes:", code, size)

    there = length - data
    # A stated 0 may also mean no samples before another chunk: then the length of the whole file is known.
    whole = _number(encoded, tf.constant(4, tf.int64), 4)
    unknown = tf.logical_and(stated == 0, tf.logical_or(whole + 8 <= data, whole >= STREAMED))
    streamed = tf.logical_or(unknown, stated >= STREAMED)
    missing = tf.where(streamed, tf.constant(0, tf.int64), stated - there)
    encoded = checked(encoded, missing <= 0, "The WAV file is cut off. Missing bytes of samples:", missing)
    frames = tf.where(streamed, there, stated) // tf.maximum(size * channels, 1)
    raw = _piece(encoded, data, frames * size * channels)
    levels = _levels(raw, tf.argmax(matches, output_type=tf.int32))
    return tf.reshape(levels, tf.stack([frames, channels])), tf.cast(rate, tf.int32)


def _find_chunks(encoded: tf.Tensor, length: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return the offsets of format and samples, 0 if missing, and the stated bytes of the samples."""

    def next_chunk(place, form, data, stated):
        name, size, inside = (
            tf.strings.substr(encoded, place, tf.constant(4, tf.int64)),
            _number(encoded, place + 4, 4),
            place + 8,
        )
        is_data = name == b"data"
        form = tf.where(name == b"fmt ", inside, form)
        # A chunk of an odd size is followed by a byte of padding.
        return inside + size + size % 2, form, tf.where(is_data, inside, data), tf.where(is_data, size, stated)

    def not_there_yet(place, form, data, stated):
        return tf.logical_and(data == 0, place + 8 <= length)

    start = tuple(tf.constant(number, tf.int64) for number in (12, 0, 0, 0))
    _, form, data, stated = tf.while_loop(not_there_yet, next_chunk, start, maximum_iterations=_MOST_CHUNKS)
    return form, data, stated


def _read_format(encoded: tf.Tensor, form: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return code, channels, samples per second and bytes per sample. The chunk of samples comes later, so that at
    least 16 bytes follow."""
    code = _number(encoded, form, 2)
    further = tf.where(code == _EXTENSIBLE, form + 24, form)
    return (
        _number(encoded, further, 2),
        _number(encoded, form + 2, 2),
        _number(encoded, form + 4, 4),
        (_number(encoded, form + 14, 2) + 7) // 8,
    )


def _piece(encoded: tf.Tensor, place: tf.Tensor | int, size: tf.Tensor | int) -> tf.Tensor:
    """Return some bytes of the file, fewer at its end."""
    place, size = tf.cast(place, tf.int64), tf.cast(size, tf.int64)
    return tf.strings.substr(encoded, tf.minimum(place, tf.cast(tf.strings.length(encoded), tf.int64)), size)


def _number(encoded: tf.Tensor, place: tf.Tensor, size: int) -> tf.Tensor:
    """Return a number in the file, int64; bytes beyond its end count as zeros."""
    padded = tf.strings.join([_piece(encoded, place, size), b"\0" * size])
    levels = tf.cast(tf.io.decode_raw(padded, tf.uint8)[:size], tf.int64)  # little-endian
    return tf.reduce_sum(levels * tf.constant([256**power for power in range(size)], tf.int64))


def _levels(raw: tf.Tensor, kind: tf.Tensor) -> tf.Tensor:
    """Return the samples of a string of bytes, float32 [n], scaled as libsndfile does."""

    def of_three_bytes():
        low, middle, high = tf.unstack(tf.cast(tf.reshape(tf.io.decode_raw(raw, tf.uint8), [-1, 3]), tf.int32), axis=1)
        signed = tf.where(high >= 128, high - 256, high)
        return tf.cast(low + 256 * middle + 65_536 * signed, tf.float32) / 2.0**23

    def decoded(dtype):
        return tf.cast(tf.io.decode_raw(raw, dtype), tf.float32)

    return tf.switch_case(
        kind,
        [
            lambda: (decoded(tf.uint8) - 128.0) / 128.0,
            lambda: decoded(tf.int16) / 2.0**15,
            of_three_bytes,
            lambda: decoded(tf.int32) / 2.0**31,
            lambda: decoded(tf.float32),
            lambda: decoded(tf.float64),
        ],
    )


def _mixed_in_graph(frames: tf.Tensor) -> tf.Tensor:
    """Return the mean of the channels, float32 [n], or the loudest one if they cancel out, as `decode.mixed` does."""
    mono, power = tf.reduce_mean(frames, axis=1), tf.math.reduce_std(frames, axis=0)
    limit = CANCELLED * tf.reduce_max(power) / tf.cast(tf.shape(frames)[1], tf.float32)
    loudest = tf.gather(frames, tf.argmax(power), axis=1)
    return tf.where(tf.math.reduce_std(mono) < limit, loudest, mono)


def resample_in_graph(samples: tf.Tensor, rate: tf.Tensor, to_rate: int) -> tf.Tensor:
    """Change the rate of a clip as `resample` does, in core ops of TensorFlow.

    Args:
        samples: float32 [n].
        rate: of the samples, an integer tensor in Hz: the same graph takes any rate.
        to_rate: new rate, Hz.

    Returns:
        float32 [ceil(n * to_rate / rate)], equal to `resample` except for rounding.
    """

    def changed() -> tf.Tensor:
        before, after, kept = _lengths_in_graph(tf.size(samples, tf.int64), tf.cast(rate, tf.int64), to_rate)
        spectrum = tf.signal.rfft(samples, tf.cast(before, tf.int32)[None])
        lower = tf.minimum(before, after)
        held = lower // 2 + 1
        share = tf.cast(tf.range(held), tf.float64) / (tf.cast(lower, tf.float64) / 2)
        spectrum = spectrum[:held] * tf.cast(_fade_in_graph(share), tf.complex64)
        scale = tf.cast(after / before, tf.float32)  # int64 by int64 is float64
        return tf.signal.irfft(spectrum, tf.cast(after, tf.int32)[None])[:kept] * scale

    unchanged = tf.logical_or(tf.equal(rate, to_rate), tf.equal(tf.size(samples), 0))
    return tf.ensure_shape(tf.cond(unchanged, lambda: samples, changed), [None])


def _lengths_in_graph(count: tf.Tensor, rate: tf.Tensor, to_rate: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return the same as `_lengths` for integer rates, int64."""
    to_rate = tf.constant(to_rate, tf.int64)
    silence = -(-SILENCE * rate // tf.minimum(rate, to_rate))
    divisor, _ = tf.while_loop(lambda a, b: b > 0, lambda a, b: (b, a % b), (rate, to_rate))  # Euclid
    block, becomes = rate // divisor, to_rate // divisor
    least = -(-(count + silence) // block)
    blocks = tf.gather(FAST_LENGTHS, tf.searchsorted(FAST_LENGTHS, least[None])[0])
    return blocks * block, blocks * becomes, -(-count * becomes // block)


def _fade_in_graph(share: tf.Tensor) -> tf.Tensor:
    faded = tf.clip_by_value((share - PASSED) / (1 - PASSED), 0.0, 1.0)
    return tf.cast(0.5 + 0.5 * tf.cos(np.pi * faded), tf.float32)
