"""Contrastive pretraining of wav2vec 2.0 as a Keras model (arXiv:2006.11477)."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from common.speech.batches import Clips, evaluation_batches
from common.speech.models import as_inputs
from common.speech.wav2vec2.masking import draw_spans
from common.speech.wav2vec2.pretraining import Wav2Vec2Pretraining, draw_distractors, perplexity, pretraining_loss

# Of the contrastive objective, as in the paper: about half of the frames are masked, in spans of 0.2 s.
MASKED_SHARE, MASKED_FRAMES = 0.65, 10


class ContrastiveLearner(keras.Model):
    """A wav2vec 2.0 that is trained on sound alone: spans are masked and have to be identified.

    Args:
        network: with quantizer and projections.
        seed: of the masks and the distractors.
    """

    def __init__(self, network: Wav2Vec2Pretraining, seed: int):
        super().__init__(name="learner")
        self.network, self.config = network, network.backbone.config
        self.random = keras.random.SeedGenerator(seed)
        self.built = True

    def call(self, inputs, training=None):
        frames = self.config.frame_lengths(inputs["lengths"])
        size = self.config.frame_lengths(ops.shape(inputs["samples"])[1])
        masked = draw_spans(frames, size, MASKED_SHARE, MASKED_FRAMES, 1, self.random)
        return self.network({**inputs, "masked": masked}, training=training) | {"masked": masked}

    def losses_of(self, outputs) -> dict:
        """Return contrastive and diversity loss, and their weighted sum, float32 scalars."""
        distractors = draw_distractors(outputs["masked"], self.config.num_negatives, self.random)
        return pretraining_loss(outputs, outputs["masked"], distractors, self.config)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Return the objective of the paper; transcripts are ignored."""
        return self.losses_of(y_pred)["loss"]

    def cool(self, share: float) -> None:
        """Set the temperature of the quantizer after a share of the training: it falls from 2 to 0.5."""
        self.network.quantizer.temperature.assign(2.0 * 0.25**share)


def contrastive_scores(learner: ContrastiveLearner, clips: Clips, seconds: np.ndarray, batch_seconds: float) -> dict:
    """Return {"contrastive_loss", "codes_used"} of clips, with the same masks in every call.

    Args:
        learner: with its current weights.
        clips: n clips.
        seconds: length of each, float64 [n].
        batch_seconds: maximum length of a batch.
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
