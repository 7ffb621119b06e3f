"""A small network on a log-mel spectrogram: what a few minutes of speech give without a pretrained source.

    source = spectrogram_source(recurrent=True)                   # stands in for a pretrained source
    model = models.build_recogniser(source, characters)           # or commands.build_classifier(source, classes)

Depthwise-separable convolutions read the spectrogram (as in https://arxiv.org/abs/1711.07128 for commands); for
transcripts a bidirectional GRU follows. Training masks bands and spans (SpecAugment, https://arxiv.org/abs/1904.08779).
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from common.speech.audio.decode import SAMPLE_RATE
from common.speech.sources import SpeechSource
from common.speech.wav2vec2.config import Wav2Vec2Config
from common.speech.wav2vec2.masking import draw_spans, real_places, standardised
from common.speech.wav2vec2.network import RealFrames, audio_inputs

BANDS, WINDOW, HOP = 40, 400, 160  # mel bands; samples, 25 and 10 ms
_FFT = 512
_LOWEST_HZ, _HIGHEST_HZ = 60.0, 7600.0
_FLOOR = 1e-5  # of the energy of a band, of samples with unit variance: silence has no level
_CHANNELS, _KERNEL, _BLOCKS = 128, 7, 3
_RECURRENT = 96  # width of the GRU, in each direction
_BAND_SPAN, _TIME_SPAN, _MASKED = 5, 10, 0.15  # bands and windows of a mask; share that the masks would cover


@keras.saving.register_keras_serializable("recipes")
class LogMel(keras.layers.Layer):
    """Log-mel spectrogram of the real samples, each band standardised over the clip; training masks bands and spans."""

    def __init__(self, **named):
        super().__init__(**named)
        self.masking = keras.random.SeedGenerator()

    def call(self, samples: Any, lengths: Any, training: bool | None = None) -> Any:
        """Return float32 [batch, windows, bands] for float32 [batch, time] of which `lengths`, int32 [batch], are real.

        The windows beyond the end of a clip are 0. There is always at least one.
        """
        samples = ops.where(real_places(lengths, ops.shape(samples)[1]), samples, 0.0)
        samples = ops.pad(samples, [[0, 0], [0, ops.maximum(WINDOW - ops.shape(samples)[1], 0)]])
        spectrum = tf.signal.stft(samples, WINDOW, HOP, _FFT)
        to_mel = tf.signal.linear_to_mel_weight_matrix(
            BANDS, _FFT // 2 + 1, SAMPLE_RATE, _LOWEST_HZ, _HIGHEST_HZ
        )  # fmt: skip
        bands = ops.log(ops.square(ops.abs(spectrum)) @ to_mel + _FLOOR)
        windows = (lengths - WINDOW) // HOP + 1
        real = real_places(windows, ops.shape(bands)[1])
        bands = standardised(bands, real[..., None], 1e-3, axis=1)
        return self._masked(bands, windows) if training else bands

    def _masked(self, bands: Any, windows: Any) -> Any:
        clips = ops.shape(bands)[0]
        spans = draw_spans(windows, ops.shape(bands)[1], _MASKED, _TIME_SPAN, 0, self.masking)
        rows = draw_spans(ops.full((clips,), BANDS), BANDS, _MASKED, _BAND_SPAN, 0, self.masking)
        return ops.where(ops.logical_or(spans[..., None], rows[:, None]), 0.0, bands)


def build_spectrogram_network(*, recurrent: bool) -> keras.Model:
    """Return {"samples": float32 [batch, time], "lengths": int32 [batch]} to hidden states, [batch, frames, width].

    Padding has no influence: frames beyond the end of a clip are 0, and batch norms count the real ones only.

    Args:
        recurrent: whether a bidirectional GRU follows the convolutions, for transcripts.
    """
    # Two strides: a frame per 20 ms, as in wav2vec 2.0. The config says how many frames a clip has.
    config = Wav2Vec2Config(conv_dim=(BANDS, _CHANNELS), conv_kernel=(WINDOW, 3), conv_stride=(HOP, 2))
    inputs = audio_inputs()
    bands = LogMel(name="log_mel")(**inputs)
    bands = keras.layers.ZeroPadding1D((0, 2))(bands)  # at least one frame
    hidden = keras.layers.Conv1D(_CHANNELS, 3, strides=2, use_bias=False)(bands)
    real = RealFrames(config, name="real_frames")(hidden, inputs["lengths"])

    def finished(hidden):
        hidden = keras.layers.ReLU()(keras.layers.BatchNormalization()(hidden, mask=real))
        return hidden * ops.cast(real, "float32")[..., None]

    hidden = finished(hidden)
    for _ in range(_BLOCKS):
        convolved = keras.layers.SeparableConv1D(_CHANNELS, _KERNEL, padding="same", use_bias=False)(hidden)
        hidden = hidden + keras.layers.Dropout(0.1)(finished(convolved))
    if recurrent:
        hidden = keras.layers.Bidirectional(keras.layers.GRU(_RECURRENT, return_sequences=True))(hidden, mask=real)
        hidden = hidden * ops.cast(real, "float32")[..., None]
    network = keras.Model(inputs, hidden, name="spectrogram")
    network.config = config
    return network


def spectrogram_source(*, recurrent: bool) -> SpeechSource:
    """Return the network, with initial weights, as a source; arguments as for `build_spectrogram_network`."""
    card = {"origin": "log-mel network, initial weights", "licence": "Apache-2.0", "data": "none"}
    return SpeechSource("spectrogram", build_spectrogram_network(recurrent=recurrent), None, None, True, card)
