"""Pretraining of wav2vec 2.0 (https://arxiv.org/abs/2006.11477) on sound alone: spans are masked, and the network
has to identify each masked frame among distractors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
from keras import ops

from common.speech.wav2vec2.config import Wav2Vec2Config
from common.speech.wav2vec2.network import MASKED_SCORE, Wav2Vec2Backbone, audio_inputs, connect
from common.speech.wav2vec2.weights import Target, assign_backbone, assign_tensors, dense_targets, read_tensors


@keras.saving.register_keras_serializable("recipes")
class GumbelQuantizer(keras.layers.Layer):
    """Product quantizer: one entry of each codebook per frame (section 2 of the paper).

    In training the entry is drawn by Gumbel softmax (https://arxiv.org/abs/1611.01144): one-hot in the forward pass,
    with the gradient of the softmax in the backward pass. `temperature` is a non-trainable variable; the paper lowers
    it from 2.

    Args:
        groups: codebooks.
        entries: per codebook.
        width: of the concatenated entries.
        temperature: initial temperature.
        seed: of the draws.
    """

    def __init__(
        self, groups: int, entries: int, width: int, temperature: float = 2.0, seed: int | None = None, **named
    ):
        super().__init__(**named)
        self.groups, self.entries, self.width = groups, entries, width
        self.initial_temperature = temperature
        self.seed = seed
        self.random = keras.random.SeedGenerator(seed)
        initial = keras.initializers.RandomNormal(stddev=1.0)
        self.scores = keras.layers.Dense(
            groups * entries, kernel_initializer=initial, dtype=self.dtype_policy, name="scores"
        )

    def build(self, features_shape):
        """Create the codebooks."""
        self.scores.build(features_shape)
        self.codebooks = self.add_weight(
            shape=(self.groups, self.entries, self.width // self.groups),
            initializer=keras.initializers.RandomUniform(0.0, 1.0),
            name="codebooks",
        )
        initial = keras.initializers.Constant(self.initial_temperature)
        self.temperature = self.add_weight(shape=(), initializer=initial, trainable=False, name="temperature")

    def call(self, features, training=None):
        """Quantize float [batch, frames, channels].

        Returns:
            vectors: float [batch, frames, width]; codes (entry of each codebook): int32 [batch, frames, groups];
            probabilities (of each entry in training; otherwise one-hot): float32 [batch, frames, groups,
            entries].
        """
        batch, frames = ops.shape(features)[:2]
        scores = ops.cast(self.scores(features), "float32")
        scores = ops.reshape(scores, (batch, frames, self.groups, self.entries))
        if training:
            uniform = keras.random.uniform(ops.shape(scores), seed=self.random)
            chosen = gumbel_one_hot(scores, -ops.log(-ops.log(uniform)), ops.cast(self.temperature, "float32"))
            probabilities = ops.softmax(scores)
        else:
            chosen = probabilities = ops.one_hot(ops.argmax(scores, axis=-1), self.entries)
        vectors = ops.einsum("bfge,ged->bfgd", ops.cast(chosen, self.compute_dtype), self.codebooks)
        vectors = ops.reshape(vectors, (batch, frames, self.width))
        return vectors, ops.cast(ops.argmax(chosen, axis=-1), "int32"), probabilities

    def get_config(self):
        sizes = {"groups": self.groups, "entries": self.entries, "width": self.width}
        return super().get_config() | sizes | {"temperature": self.initial_temperature, "seed": self.seed}


def gumbel_one_hot(scores: Any, noise: Any, temperature: Any) -> Any:
    """Return one-hot vectors of the largest sum of score and noise on the last axis, with the gradient of the softmax.

    Args:
        scores: logits, float32 [..., entries].
        noise: of the Gumbel distribution, in the same shape.
        temperature: divides the sums before the softmax; float32 scalar.
    """
    soft = ops.softmax((scores + noise) / temperature)
    hard = ops.one_hot(ops.argmax(soft, axis=-1), scores.shape[-1])
    return hard + soft - ops.stop_gradient(soft)


def draw_distractors(masked: Any, count: int, seed: Any) -> Any:
    """Draw for each masked frame other masked frames of the same clip, all equally likely.

    Args:
        masked: bool [batch, frames].
        count: distractors per frame; a frame may be drawn more than once.
        seed: int or keras.random.SeedGenerator.

    Returns:
        Their positions, int32 [batch, frames, count]; meaningless for unmasked frames. The only masked frame of a clip
        gets itself, which `pretraining_loss` does not count.
    """
    batch, frames = ops.shape(masked)
    of_masked = ops.cast(masked, "int32")
    # Masked positions first, in order: the r-th one is at r.
    places = ops.argsort(ops.arange(frames, dtype="int32")[None] + frames * (1 - of_masked), axis=1)
    total = ops.sum(of_masked, axis=1)[:, None, None]
    uniform = keras.random.uniform((batch, frames, count), seed=seed)
    drawn = ops.cast(ops.floor(uniform * ops.cast(total - 1, "float32")), "int32")
    own = (ops.cumsum(of_masked, axis=1) - 1)[..., None]
    drawn = ops.clip(drawn + ops.cast(drawn >= own, "int32"), 0, ops.maximum(total - 1, 0))  # all but itself
    found = ops.take_along_axis(places, ops.reshape(drawn, (batch, frames * count)), axis=1)
    return ops.cast(ops.reshape(found, (batch, frames, count)), "int32")


@keras.saving.register_keras_serializable("recipes")
class Wav2Vec2Pretraining(keras.Model):
    """A backbone that is trained to identify masked frames: predictions and quantized targets of every frame.

    Inputs are those of the backbone and `masked`, bool [batch, frames], as returned by `draw_spans`. Training updates
    the backbone itself. `pretraining_loss` computes the loss from the outputs.

    Args:
        backbone: its layers are shared.

    Returns:
        When called: predicted, quantized: float [batch, frames, proj_codevector_dim]; codes, probabilities: as
        returned by GumbelQuantizer.
    """

    def __init__(self, backbone: Wav2Vec2Backbone, **named):
        config, policy = backbone.config, backbone.dtype_policy
        inputs = audio_inputs() | {"masked": keras.Input((None,), dtype="bool", name="masked")}
        states = connect({layer.name: layer for layer in backbone.layers}, **inputs)
        dropout = keras.layers.Dropout(config.feat_quantizer_dropout, dtype=policy, name="quantizer_dropout")
        quantizer = GumbelQuantizer(
            config.num_codevector_groups, config.num_codevectors_per_group, config.codevector_dim, dtype=policy,
            name="quantizer",
        )  # fmt: skip
        predict = keras.layers.Dense(config.proj_codevector_dim, dtype=policy, name="predicted")
        project = keras.layers.Dense(config.proj_codevector_dim, dtype=policy, name="quantized")
        vectors, codes, probabilities = quantizer(dropout(states["features"]))
        outputs = {
            "predicted": predict(states["hidden"]), "quantized": project(vectors), "codes": codes,
            "probabilities": probabilities,
        }  # fmt: skip
        super().__init__(inputs=inputs, outputs=outputs, **named)
        self.backbone = backbone
        self.quantizer = quantizer

    def get_config(self):
        backbone = keras.saving.serialize_keras_object(self.backbone)
        return {"backbone": backbone, "name": self.name, "trainable": self.trainable}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        backbone = keras.saving.deserialize_keras_object(config["backbone"], custom_objects)
        return cls(**config | {"backbone": backbone})


def pretraining_loss(outputs: dict[str, Any], masked: Any, distractors: Any, config: Wav2Vec2Config) -> dict[str, Any]:
    """Return the objective of the paper (section 3.2) per masked frame.

    The contrastive loss identifies the true quantized frame among its distractors; distractors with the codes of the
    true frame do not count. The diversity loss encourages equal use of all codebook entries.

    Args:
        outputs: of Wav2Vec2Pretraining.
        masked: real frames that were masked, bool [batch, frames].
        distractors: their positions, int32 [batch, frames, count], as returned by `draw_distractors`.
        config: temperature and weight.

    Returns:
        float32 scalars: contrastive; diversity (0 where all entries are used equally, 1 where only one is used); loss,
        which is contrastive + diversity_loss_weight * diversity.
    """
    weights = ops.cast(masked, "float32")
    count = ops.maximum(ops.sum(weights), 1.0)
    predicted, quantized = (
        ops.normalize(ops.cast(outputs[name], "float32"), axis=-1) for name in ("predicted", "quantized")
    )
    # For all pairs of frames, which is cheaper than gathering a vector for each distractor.
    cosines = ops.einsum("bfw,bdw->bfd", predicted, quantized) / config.contrastive_logits_temperature
    codes = outputs["codes"]
    same = ops.all(codes[:, :, None] == codes[:, None], axis=-1)
    others = ops.take_along_axis(ops.where(same, MASKED_SCORE, cosines), distractors, axis=2)
    own = ops.einsum("bfw,bfw->bf", predicted, quantized) / config.contrastive_logits_temperature
    of_frames = ops.logsumexp(ops.concatenate([own[..., None], others], axis=-1), axis=-1) - own
    contrastive = ops.sum(weights * of_frames) / count
    diversity = 1.0 - perplexity(outputs["probabilities"], masked) / math.prod(outputs["probabilities"].shape[-2:])
    return {
        "loss": contrastive + config.diversity_loss_weight * diversity,
        "contrastive": contrastive,
        "diversity": diversity,
    }


def perplexity(probabilities: Any, masked: Any) -> Any:
    """Return the effective number of codebook entries in use over the masked frames: float32 scalar.

    Args:
        probabilities: of each entry, float32 [batch, frames, groups, entries].
        masked: bool [batch, frames].
    """
    weights = ops.cast(masked, "float32")
    mean = ops.einsum("bf,bfge->ge", weights, probabilities) / ops.maximum(ops.sum(weights), 1.0)
    entropy = -ops.sum(mean * ops.log(ops.maximum(mean, 1e-30)), axis=-1)
    return ops.sum(ops.exp(entropy))


def load_pretraining(model: Wav2Vec2Pretraining, folder: Path | str) -> None:
    """Set the weights of the backbone, the quantizer and the projections, to continue pretraining.

    Args:
        model: with the configuration of the folder.
        folder: of a Wav2Vec2ForPreTraining, such as facebook/wav2vec2-base.

    Raises:
        UserError: weights are missing or have another shape.
    """
    folder = Path(folder).expanduser()
    tensors = read_tensors(folder)
    assign_backbone(model.backbone, tensors, folder)
    assign_tensors(_pretraining_targets(model), tensors, folder)


def _pretraining_targets(model: Wav2Vec2Pretraining) -> Iterator[Target]:
    quantizer = model.quantizer
    yield "quantizer.codevectors", quantizer.codebooks, lambda array: array.reshape(quantizer.codebooks.shape)
    yield from dense_targets("quantizer.weight_proj", quantizer.scores)
    yield from dense_targets("project_hid", model.get_layer("predicted"))
    yield from dense_targets("project_q", model.get_layer("quantized"))
