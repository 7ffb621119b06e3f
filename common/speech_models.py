"""Build, freeze and train what hears: a wav2vec 2.0 with a head that writes characters, or names the whole clip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from common.characters import Characters
from common.data.speech_batches import Clips, evaluation_batches
from common.models.wav2vec2 import (
    CTCHead,
    UtteranceHead,
    Wav2Vec2Config,
    ctc_loss,
    draw_spans,
    normalise,
)
from common.models.wav2vec2 import build_classifier as classifier_of
from common.models.wav2vec2 import build_recogniser as recogniser_of
from common.models.wav2vec2_pretraining import (
    Wav2Vec2Pretraining,
    draw_distractors,
    perplexity,
    pretraining_loss,
)
from common.recognising import Recogniser
from common.speech_sources import SpeechSource
from common.wav2vec2_weights import save_wav2vec2

# For `freezing.freeze`: all but the convolutions that read samples, which fine-tuning leaves alone (section 4 of the
# paper): what they hear does not depend on the language.
ENCODER = "regex:^(?!feature_extractor)"
# Of the contrastive objective, as in the paper: about half of the frames are hidden, in spans of a fifth of a second.
HIDDEN_SHARE, HIDDEN_FRAMES = 0.65, 10


def build_recogniser(source: SpeechSource, characters: Characters) -> keras.Model:
    """Return a network that writes characters: the backbone of a source and a CTC head.

    What the head of the source knew about a character, its own head knows as well; the others begin anew.

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
    """Return a source that can write, as it is."""
    model = recogniser_of(source.backbone, source.head)
    return Recogniser(model, source.backbone.config, source.characters, source.normalises)


def head_places(known: Characters, wanted: Characters) -> dict[int, int]:
    """Return which output of a known head writes what each wanted one is to write; case does not matter.

    Args:
        known: of the head of the source.
        wanted: of the new head.
    """
    of_known = {symbol.lower(): number for symbol, number in reversed(known.numbers.items())}
    found = {wanted.blank: known.blank}
    for symbol, number in wanted.numbers.items():
        if symbol.lower() in of_known:
            found[number] = of_known[symbol.lower()]
    return found


def build_classifier(source: SpeechSource, classes: int) -> keras.Model:
    """Return a network that names the whole clip: {"samples", "lengths"} -> logits, float32 [batch, classes]."""
    return classifier_of(source.backbone, UtteranceHead(classes, dropout=0.1, name="head"))


class Learner(keras.Model):
    """A network with the loss that its head needs; what learns is the network.

    Args:
        network: of `build_recogniser` or `build_classifier`.
        config: of the backbone, which says how many frames a clip has.
    """

    def __init__(self, network: keras.Model, config: Wav2Vec2Config):
        super().__init__(name="learner")
        self.network, self._frames_of = network, config.frame_lengths
        self.built = True

    def call(self, inputs, training=None):
        return self.network(inputs, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Return CTC per character of a batch of transcripts, or the cross-entropy of its classes."""
        if not isinstance(y, dict):
            return ops.mean(keras.losses.sparse_categorical_crossentropy(y, y_pred, from_logits=True))
        losses = ctc_loss(y["labels"], y_pred, y["characters"], self._frames_of(x["lengths"]))
        return ops.sum(losses) / ops.maximum(ops.cast(ops.sum(y["characters"]), "float32"), 1.0)


class ContrastiveLearner(keras.Model):
    """A wav2vec 2.0 that learns from sound alone: spans are hidden, and it has to tell what was there.

    Args:
        network: with quantizer and projections.
        seed: of what is hidden and of the distractors.
    """

    def __init__(self, network: Wav2Vec2Pretraining, seed: int):
        super().__init__(name="learner")
        self.network, self.config = network, network.backbone.config
        self.random = keras.random.SeedGenerator(seed)
        self.built = True

    def call(self, inputs, training=None):
        frames = self.config.frame_lengths(inputs["lengths"])
        size = self.config.frame_lengths(ops.shape(inputs["samples"])[1])
        masked = draw_spans(frames, size, HIDDEN_SHARE, HIDDEN_FRAMES, 1, self.random)
        return self.network({**inputs, "masked": masked}, training=training) | {"masked": masked}

    def losses_of(self, outputs) -> dict:
        """Return contrastive and diversity loss, and their weighted sum, float32 scalars."""
        distractors = draw_distractors(outputs["masked"], self.config.num_negatives, self.random)
        return pretraining_loss(outputs, outputs["masked"], distractors, self.config)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Return the objective of the paper; transcripts are not looked at."""
        return self.losses_of(y_pred)["loss"]

    def cool(self, share: float) -> None:
        """Set the temperature of the quantizer for a share of the training that is over: it falls from 2 to 0.5."""
        self.network.quantizer.temperature.assign(2.0 * 0.25**share)


def contrastive_scores(learner: ContrastiveLearner, clips: Clips, seconds: np.ndarray, batch_seconds: float) -> dict:
    """Return {"contrastive_loss", "codes_used"} of clips, the same ones hidden whenever it is asked.

    Args:
        learner: as it is.
        clips: n clips.
        seconds: length of each, float64 [n].
        batch_seconds: the most that a batch may hold.
    """
    before = learner.random.state.numpy()
    learner.random.state.assign(np.zeros_like(before))
    losses, codes = [], []
    batches = evaluation_batches(clips, seconds, np.zeros(len(clips), np.int64), batch_seconds)
    for inputs, _ in batches.map(as_inputs(normalises=True)):
        outputs = learner(inputs, training=False)
        losses.append(float(learner.losses_of(outputs)["contrastive"]))
        codes.append(float(perplexity(outputs["probabilities"], outputs["masked"])))
    learner.random.state.assign(before)
    return {"contrastive_loss": float(np.mean(losses)), "codes_used": float(np.mean(codes))}


def as_inputs(normalises: bool) -> Callable:
    """Return a function for tf.data: batches of `speech_batches` -> what the network takes."""

    def prepare(inputs: dict[str, tf.Tensor], *targets):
        audio = normalise(inputs["audio"], inputs["samples"]) if normalises else inputs["audio"]
        return {"samples": audio, "lengths": inputs["samples"]}, *targets

    return prepare


def save_source(folder: Path, model: keras.Model, source: SpeechSource, characters: Characters | None) -> Path:
    """Write what was learned as a source for other runs: `--source preset:FOLDER`.

    Args:
        folder: to write to.
        model: with the backbone of the source inside; its CTC head is written with it.
        source: what it was made from.
        characters: of the CTC head; None where classes are named: only the backbone is written then.
    """
    head = model.get_layer("head") if characters else None
    vocabulary = characters.to_json() if characters else None
    return save_wav2vec2(folder, source.backbone, head, vocabulary, normalises=source.normalises)
