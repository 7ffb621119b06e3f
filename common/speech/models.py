"""Build, freeze, train and save a wav2vec 2.0 with a head that outputs characters or classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from common.speech.ctc.characters import Characters
from common.speech.inference import Recogniser
from common.speech.sources import SpeechSource
from common.speech.wav2vec2.config import Wav2Vec2Config
from common.speech.wav2vec2.heads import CTCHead, ctc_loss
from common.speech.wav2vec2.heads import build_recogniser as recogniser_of
from common.speech.wav2vec2.masking import normalise
from common.speech.wav2vec2.weights import save_wav2vec2

# For `freezing.freeze`: all but the convolutions on samples, whose features do not depend on the language (section 4 of
# the paper).
ENCODER = "regex:^(?!feature_extractor)"


def build_recogniser(source: SpeechSource, characters: Characters) -> keras.Model:
    """Return a network that outputs characters: the backbone of a source and a CTC head.

    The head keeps the weights of characters that the head of the source has; the others are initialised.

    Args:
        source: pretrained or not.
        characters: of the new head; the blank is 0.

    Returns:
        {"samples", "lengths"} -> logits, float32 [batch, frames, characters].
    """
    head = CTCHead(len(characters), source.backbone.config.final_dropout, name="head")
    model = recogniser_of(source.backbone, head)
    if source.head is not None and source.characters is not None:
        places = head_places(source.characters, characters)
        kernel, bias = (np.array(weight) for weight in head.dense.get_weights())
        known_kernel, known_bias = source.head.dense.get_weights()
        for place, known in places.items():
            kernel[:, place], bias[place] = known_kernel[:, known], known_bias[known]
        head.dense.set_weights([kernel, bias])
    return model


def as_recogniser(source: SpeechSource) -> Recogniser:
    """Return a source with a CTC head as a recogniser, unchanged."""
    model = recogniser_of(source.backbone, source.head)
    return Recogniser(model, source.backbone.config, source.characters, source.normalises)


def head_places(known: Characters, new: Characters) -> dict[int, int]:
    """Return for each output of a new head the output of a known head with the same character, whatever its case.

    Args:
        known: of the head of the source.
        new: of the new head.
    """
    of_known = {symbol.lower(): number for symbol, number in reversed(known.numbers.items())}
    found = {new.blank: known.blank}
    for symbol, number in new.numbers.items():
        if symbol.lower() in of_known:
            found[number] = of_known[symbol.lower()]
    return found


class Learner(keras.Model):
    """A network with the loss of its head.

    Args:
        network: of `build_recogniser` or `build_classifier`.
        config: of the backbone, for the number of frames of a clip.
    """

    def __init__(self, network: keras.Model, config: Wav2Vec2Config):
        super().__init__(name="learner")
        self.network, self._frames_of = network, config.frame_lengths
        self.built = True

    def call(self, inputs, training=None):
        return self.network(inputs, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Return the CTC loss per character of a batch of transcripts, or the cross-entropy of its classes."""
        if not isinstance(y, dict):
            return ops.mean(keras.losses.sparse_categorical_crossentropy(y, y_pred, from_logits=True))
        losses = ctc_loss(y["labels"], y_pred, y["characters"], self._frames_of(x["lengths"]))
        return ops.sum(losses) / ops.maximum(ops.cast(ops.sum(y["characters"]), "float32"), 1.0)


def as_inputs(normalises: bool) -> Callable:
    """Return a function for tf.data: batches of `common.speech.batches` -> inputs of the network."""

    def prepare(inputs: dict[str, tf.Tensor], *targets):
        audio = normalise(inputs["audio"], inputs["samples"]) if normalises else inputs["audio"]
        return {"samples": audio, "lengths": inputs["samples"]}, *targets

    return prepare


def save_source(folder: Path, model: keras.Model, source: SpeechSource, characters: Characters | None) -> Path:
    """Write the trained weights as a source for other runs: `--source preset:FOLDER`.

    Args:
        folder: to write to.
        model: contains the backbone of the source; its CTC head is written with it.
        source: that the model was built from.
        characters: of the CTC head; None for a classifier, of which only the backbone is written.
    """
    head = model.get_layer("head") if characters else None
    vocabulary = characters.to_json() if characters else None
    return save_wav2vec2(folder, source.backbone, head, vocabulary, normalises=source.normalises)
