"""wav2vec 2.0 (https://arxiv.org/abs/2006.11477) in Keras: the network and its heads for fine-tuning.

    backbone = Wav2Vec2Backbone(Wav2Vec2Config.base())
    hidden = backbone({"samples": samples, "lengths": lengths})

`samples` is audio at 16 kHz, float32 [batch, time], as `normalise` gives it; `lengths` says how many samples of each
row are real, int32 [batch]. What lies behind them changes nothing: a clip gets the same answer alone and in any batch.
common/wav2vec2_weights.py loads pretrained weights.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

_CONV_NORM_EPSILON = 1e-5  # of the norms between convolutions, whatever layer_norm_eps says
HIDDEN_SCORE = -1e9  # score of a frame that attention must not see


@dataclass(frozen=True)
class Wav2Vec2Config:
    """Sizes and rates of a wav2vec 2.0, named as in the config.json of Hugging Face, with the same defaults.

    Attributes:
        conv_dim: channels of each convolution of the feature extractor.
        conv_kernel: samples or frames that each one sees.
        conv_stride: steps between its frames.
        conv_bias: whether they have biases.
        feat_extract_norm: `group` (a norm of each channel after the first convolution) or `layer` (one of each frame
            after every convolution).
        hidden_size: width of the transformer.
        num_hidden_layers: its blocks.
        num_attention_heads: heads of each.
        intermediate_size: width inside the feed-forward part.
        num_conv_pos_embeddings: frames that the positional convolution sees.
        num_conv_pos_embedding_groups: its groups.
        do_stable_layer_norm: norms stand before attention and feed-forward part, not after.
        layer_norm_eps: epsilon of the transformer's norms.
        hidden_dropout: after attention, feed-forward part and positions.
        attention_dropout: of attention weights.
        activation_dropout: inside the feed-forward part.
        feat_proj_dropout: after the projection of features.
        feat_quantizer_dropout: of the features that are quantized.
        final_dropout: before the CTC head.
        layerdrop: chance that a step of training skips a block (https://arxiv.org/abs/1909.11556).
        apply_spec_augment: whether training masks spans (https://arxiv.org/abs/1904.08779).
        mask_time_prob: share of frames that spans would cover if none overlapped.
        mask_time_length: frames of a span.
        mask_time_min_masks: spans that a clip gets at least.
        mask_feature_prob: as mask_time_prob, of the hidden features.
        mask_feature_length: features of a span.
        mask_feature_min_masks: spans of features at least.
        num_codevector_groups: codebooks of the quantizer.
        num_codevectors_per_group: entries of each.
        codevector_dim: width of one entry from every codebook side by side.
        proj_codevector_dim: width in which prediction and target are compared.
        contrastive_logits_temperature: divides cosines.
        num_negatives: distractors for each masked frame.
        diversity_loss_weight: of the diversity loss, beside the contrastive loss.
    """

    conv_dim: tuple[int, ...] = (512, 512, 512, 512, 512, 512, 512)
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    feat_extract_norm: str = "group"
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    do_stable_layer_norm: bool = False
    layer_norm_eps: float = 1e-5
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    feat_proj_dropout: float = 0.0
    feat_quantizer_dropout: float = 0.0
    final_dropout: float = 0.1
    layerdrop: float = 0.1
    apply_spec_augment: bool = True
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0
    num_codevector_groups: int = 2
    num_codevectors_per_group: int = 320
    codevector_dim: int = 256
    proj_codevector_dim: int = 256
    contrastive_logits_temperature: float = 0.1
    num_negatives: int = 100
    diversity_loss_weight: float = 0.1

    def __post_init__(self):
        if not len(self.conv_dim) == len(self.conv_kernel) == len(self.conv_stride) > 0:
            raise ValueError(
                "conv_dim, conv_kernel and conv_stride need one number for each convolution. "
                f"Received: {self.conv_dim}, {self.conv_kernel}, {self.conv_stride}."
            )
        if self.feat_extract_norm not in ("group", "layer"):
            raise ValueError(f"feat_extract_norm is group or layer. Received: {self.feat_extract_norm!r}.")
        for width, parts in (
            ("hidden_size", "num_attention_heads"),
            ("hidden_size", "num_conv_pos_embedding_groups"),
            ("codevector_dim", "num_codevector_groups"),
        ):
            if getattr(self, width) % getattr(self, parts):
                raise ValueError(f"{parts} {getattr(self, parts)} does not divide {width} {getattr(self, width)}.")

    @classmethod
    def base(cls, **changes: Any) -> Wav2Vec2Config:
        """Return BASE of the paper: 12 blocks of width 768, which are the defaults, with some changed."""
        return cls(**changes)

    @classmethod
    def large(cls, **changes: Any) -> Wav2Vec2Config:
        """Return LARGE of the paper, 24 blocks of width 1024, as it was trained on Librispeech."""
        large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
        return cls(**large | {"codevector_dim": 768, "proj_codevector_dim": 768} | changes)

    @classmethod
    def xls_r_300m(cls, **changes: Any) -> Wav2Vec2Config:
        """Return the smallest XLS-R (https://arxiv.org/abs/2111.09296): LARGE with norms of layers, and before."""
        stable = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
        rates = {"activation_dropout": 0.0, "feat_proj_dropout": 0.1, "final_dropout": 0.0, "mask_time_prob": 0.075}
        return cls.large(**stable | rates | changes)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Wav2Vec2Config:
        """Return the config that a dict, such as the content of config.json, describes; unknown keys are left out."""
        known = {field.name for field in dataclasses.fields(cls)} & set(values)
        return cls(**{name: tuple(values[name]) if isinstance(values[name], list) else values[name] for name in known})

    def frame_lengths(self, samples: Any) -> Any:
        """Return how many frames come out of clips.

        Args:
            samples: of each clip; an int, a NumPy array or an int32 tensor.

        Returns:
            Frames, in the same form; 0 for a clip too short for one.
        """
        frames = samples
        for kernel, stride in zip(self.conv_kernel, self.conv_stride, strict=True):
            frames = (frames - kernel) // stride + 1
        of_numpy = isinstance(samples, int | np.integer | np.ndarray)
        return np.maximum(frames, 0) if of_numpy else ops.maximum(frames, 0)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees."""
        strides = np.cumprod((1, *self.conv_stride[:-1]))
        return 1 + int(sum((kernel - 1) * stride for kernel, stride in zip(self.conv_kernel, strides, strict=True)))


def normalise(samples: Any, lengths: Any, epsilon: float = 1e-7) -> Any:
    """Give each clip zero mean and unit variance, counting its real samples only.

    Args:
        samples: float32 [batch, time].
        lengths: real samples of each clip, int32 [batch].
        epsilon: added to the variance; Hugging Face's feature extractor has the same one.

    Returns:
        float32 [batch, time], 0 behind the end of a clip.
    """
    samples = ops.cast(samples, "float32")
    real = _before(lengths, ops.shape(samples)[1])
    return ops.where(real, _standardised(samples, real, epsilon, axis=1), 0.0)


def _standardised(values: Any, real: Any, epsilon: float, axis: int) -> Any:
    """Subtract the mean and divide by the standard deviation along an axis, of what is real."""
    count = ops.maximum(ops.sum(ops.cast(real, values.dtype), axis=axis, keepdims=True), 1.0)
    mean = ops.sum(ops.where(real, values, 0.0), axis=axis, keepdims=True) / count
    centred = ops.where(real, values - mean, 0.0)
    variance = ops.sum(ops.square(centred), axis=axis, keepdims=True) / count
    return centred * ops.rsqrt(variance + epsilon)


def _before(lengths: Any, size: Any) -> Any:
    """Return which of `size` places lie before each length: bool [batch, size]."""
    return ops.arange(size, dtype="int32")[None] < ops.cast(lengths, "int32")[:, None]


def _gelu(values: Any) -> Any:
    return ops.gelu(values, approximate=False)  # wav2vec 2.0 was trained with the exact one


# ---- The network ------------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("recipes")
class MaskedGroupNorm(keras.layers.Layer):
    """Group norm with a group for each channel, over the real frames of a clip.

    Were padding counted, a clip would get another answer in every batch.

    Args:
        epsilon: added to the variance.
    """

    def __init__(self, epsilon: float = _CONV_NORM_EPSILON, **named):
        super().__init__(**named)
        self.epsilon = epsilon

    def build(self, hidden_shape, lengths_shape):
        """Make scale and offset of each channel."""
        self.gamma = self.add_weight(shape=hidden_shape[-1:], initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=hidden_shape[-1:], initializer="zeros", name="beta")

    def call(self, hidden, lengths):
        """Normalise float [batch, frames, channels], of which `lengths`, int32 [batch], are real."""
        real = _before(lengths, ops.shape(hidden)[1])[..., None]
        normed = _standardised(ops.cast(hidden, "float32"), real, self.epsilon, axis=1)
        return ops.cast(normed, hidden.dtype) * self.gamma + self.beta

    def get_config(self):
        return super().get_config() | {"epsilon": self.epsilon}


@keras.saving.register_keras_serializable("recipes")
class FeatureExtractor(keras.layers.Layer):
    """Convolutions that turn samples into frames.

    Args:
        config: fields of Wav2Vec2Config, or itself.
    """

    def __init__(self, config: Wav2Vec2Config | dict, **named):
        super().__init__(**named)
        self.config = config = _as_config(config)
        self.convolutions = [
            keras.layers.Conv1D(
                width, kernel, strides=stride, use_bias=config.conv_bias, kernel_initializer="he_normal",
                dtype=self.dtype_policy, name=f"conv_{number}",
            )
            for number, (width, kernel, stride) in enumerate(
                zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
            )
        ]  # fmt: skip
        if config.feat_extract_norm == "group":
            self.norms = [MaskedGroupNorm(dtype=self.dtype_policy, name="norm_0")]
        else:
            self.norms = [
                keras.layers.LayerNormalization(
                    epsilon=_CONV_NORM_EPSILON, dtype=self.dtype_policy, name=f"norm_{number}"
                )
                for number in range(len(config.conv_dim))
            ]

    def build(self, samples_shape, lengths_shape):
        """Build the convolutions and norms."""
        width = 1
        for convolution in self.convolutions:
            convolution.build((None, None, width))
            width = convolution.filters
        for norm, convolution in zip(self.norms, self.convolutions, strict=False):
            shape = (None, None, convolution.filters)
            norm.build(shape, lengths_shape) if isinstance(norm, MaskedGroupNorm) else norm.build(shape)

    def call(self, samples, lengths):
        """Return float [batch, frames, channels] for float [batch, time] with int32 [batch] real samples.

        There is always a frame: rows shorter than it needs are filled up, and `frame_lengths` says 0 of them.
        """
        time = ops.shape(samples)[1]
        hidden = ops.where(_before(lengths, time), samples, 0.0)
        missing = ops.maximum(self.config.receptive_field - time, 0)
        hidden = ops.concatenate([hidden, ops.zeros((ops.shape(samples)[0], missing), hidden.dtype)], axis=1)
        hidden = hidden[..., None]
        for number, convolution in enumerate(self.convolutions):
            hidden = convolution(hidden)
            if number < len(self.norms):
                hidden = self._norm(number, hidden, lengths)
            hidden = _gelu(hidden)
        return hidden

    def _norm(self, number, hidden, lengths):
        norm = self.norms[number]
        if isinstance(norm, MaskedGroupNorm):  # after the first convolution only
            return norm(hidden, (lengths - self.config.conv_kernel[0]) // self.config.conv_stride[0] + 1)
        return norm(hidden)

    def get_config(self):
        return super().get_config() | {"config": dataclasses.asdict(self.config)}


@keras.saving.register_keras_serializable("recipes")
class RealFrames(keras.layers.Layer):
    """Says which frames of a batch belong to its clips, and which to padding.

    Args:
        config: fields of Wav2Vec2Config, or itself.
    """

    def __init__(self, config: Wav2Vec2Config | dict, **named):
        super().__init__(**named)
        self.config = _as_config(config)

    def call(self, frames, lengths):
        """Return bool [batch, frames] for any [batch, frames, width] and real samples, int32 [batch]."""
        return _before(self.config.frame_lengths(lengths), ops.shape(frames)[1])

    def get_config(self):
        return super().get_config() | {"config": dataclasses.asdict(self.config)}


@keras.saving.register_keras_serializable("recipes")
class ZeroPadding(keras.layers.Layer):
    """Sets frames that belong to no clip to 0."""

    def call(self, hidden, real):
        """Return float [batch, frames, width], given also which are real, bool [batch, frames]."""
        return ops.where(real[..., None], hidden, 0.0)


@keras.saving.register_keras_serializable("recipes")
class SpecAugment(keras.layers.Layer):
    """Masks spans of frames by a learned vector, and spans of features by 0 (https://arxiv.org/abs/1904.08779).

    In training the spans are drawn, for each clip among its real frames; pre-training says which frames.

    Args:
        config: fields of Wav2Vec2Config, or itself.
        seed: of the draws.
    """

    def __init__(self, config: Wav2Vec2Config | dict, seed: int | None = None, **named):
        super().__init__(**named)
        self.config = _as_config(config)
        self.seed = seed
        self.random = keras.random.SeedGenerator(seed)

    def build(self, hidden_shape, real_shape, masked_shape=None):
        """Make the vector that stands for masked frames."""
        self.mask_vector = self.add_weight(
            shape=hidden_shape[-1:], initializer=keras.initializers.RandomUniform(0.0, 1.0), name="mask_vector"
        )

    def call(self, hidden, real, masked=None, training=None):
        """Mask float [batch, frames, width].

        Args:
            hidden: float [batch, frames, width].
            real: which frames belong to a clip, bool [batch, frames].
            masked: frames to mask, bool [batch, frames]; None draws them, in training only.
            training: whether to draw.

        Returns:
            float [batch, frames, width].
        """
        config = self.config
        draws = training and config.apply_spec_augment
        if masked is None and draws and config.mask_time_prob > 0:
            masked = draw_spans(
                ops.sum(ops.cast(real, "int32"), axis=1), ops.shape(hidden)[1], config.mask_time_prob,
                config.mask_time_length, config.mask_time_min_masks, self.random,
            )  # fmt: skip
        if masked is not None:
            hidden = ops.where(masked[..., None], ops.cast(self.mask_vector, hidden.dtype), hidden)
        if draws and config.mask_feature_prob > 0:
            width = hidden.shape[-1]
            features = draw_spans(
                ops.full((ops.shape(hidden)[0],), width, "int32"), width, config.mask_feature_prob,
                config.mask_feature_length, config.mask_feature_min_masks, self.random,
            )  # fmt: skip
            hidden = ops.where(features[:, None], 0.0, hidden)
        return hidden

    def get_config(self):
        return super().get_config() | {"config": dataclasses.asdict(self.config), "seed": self.seed}


def draw_spans(lengths: Any, size: Any, probability: float, span: int, minimum: int, seed: Any) -> Any:
    """Draw spans to mask in each clip, as wav2vec 2.0 does: they begin anywhere and may overlap.

    Args:
        lengths: places of each clip, int32 [batch].
        size: places of the longest one; int or int32 tensor.
        probability: share of places that the spans would cover if none overlapped.
        span: places of a span.
        minimum: spans of a clip at least, as far as it has room for them side by side.
        seed: keras.random.SeedGenerator; an int would use one draw twice.

    Returns:
        Which places are masked, bool [batch, size]; every span lies within its clip.
    """
    lengths = ops.cast(lengths, "int32")
    # Rounded up or down by chance, so that the expected number is right.
    wanted = probability / span * ops.cast(lengths, "float32") + keras.random.uniform((), seed=seed)
    count = ops.minimum(ops.maximum(ops.cast(ops.floor(wanted), "int32"), minimum), lengths // span)
    scores = keras.random.uniform((ops.shape(lengths)[0], size), seed=seed)
    scores = ops.where(_before(lengths - span + 1, size), scores, -1.0)  # a later span would leave the clip
    rank = ops.argsort(ops.argsort(-scores, axis=1), axis=1)
    begun = ops.cumsum(ops.cast(rank < count[:, None], "int32"), axis=1)
    ended = ops.pad(begun, [[0, 0], [span, 0]])[:, :size]
    return begun > ended


@keras.saving.register_keras_serializable("recipes")
class PositionalEmbedding(keras.layers.Layer):
    """Adds what a wide grouped convolution with weight norm (https://arxiv.org/abs/1602.07868) sees around each frame.

    Args:
        kernel_size: frames that it sees.
        groups: parts of the width that do not see each other.
    """

    def __init__(self, kernel_size: int, groups: int, **named):
        super().__init__(**named)
        self.kernel_size = kernel_size
        self.groups = groups

    def build(self, hidden_shape, real_shape):
        """Make direction and length of the kernel, and the bias."""
        width = hidden_shape[-1]
        shape = (self.kernel_size, width // self.groups, width)
        deviation = 2 / math.sqrt(self.kernel_size * width)
        drawn = keras.initializers.RandomNormal(stddev=deviation)
        as_drawn = keras.initializers.Constant(deviation * math.sqrt(math.prod(shape[1:])))
        self.direction = self.add_weight(shape=shape, initializer=drawn, autocast=False, name="direction")
        self.length = self.add_weight(
            shape=(self.kernel_size, 1, 1), initializer=as_drawn, autocast=False, name="length"
        )
        self.bias = self.add_weight(shape=(width,), initializer="zeros", autocast=False, name="bias")

    def call(self, hidden, real):
        """Return float [batch, frames, width]; padding, where bool [batch, frames] `real` is False, is not seen."""
        hidden = ops.where(real[..., None], hidden, 0.0)
        norm = ops.sqrt(ops.sum(ops.square(self.direction), axis=(1, 2), keepdims=True))
        kernel = self.direction * (self.length / norm)
        # Not in half precision, in which oneDNN's convolution of 8 channels gives something else altogether.
        positions = _grouped_convolution(ops.cast(hidden, kernel.dtype), kernel, self.groups)
        return hidden + ops.cast(_gelu(positions + self.bias), hidden.dtype)

    def get_config(self):
        return super().get_config() | {"kernel_size": self.kernel_size, "groups": self.groups}


def _grouped_convolution(hidden: Any, kernel: Any, groups: int) -> Any:
    """Convolve each group of channels by itself, with as many frames before as after (of an even kernel one less).

    `ops.conv` with groups compiles by XLA on a CPU, anew for every length of a batch, and leaves it in a served graph.

    Args:
        hidden: float [batch, frames, width].
        kernel: float [frames, width / groups, width].
        groups: how many.

    Returns:
        float [batch, frames, width].
    """
    before, after = kernel.shape[0] // 2, (kernel.shape[0] - 1) // 2
    padded = ops.pad(hidden, [[0, 0], [before, after], [0, 0]])
    pairs = zip(ops.split(padded, groups, axis=-1), ops.split(kernel, groups, axis=-1), strict=True)
    return ops.concatenate([ops.conv(one, of_one, padding="valid") for one, of_one in pairs], axis=-1)


@keras.saving.register_keras_serializable("recipes")
class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention (https://arxiv.org/abs/1706.03762) among the real frames of a clip.

    Args:
        heads: how many.
        dropout: of attention weights.
    """

    def __init__(self, heads: int, dropout: float = 0.0, **named):
        super().__init__(**named)
        self.heads = heads
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def build(self, hidden_shape, real_shape):
        """Make the four projections."""
        for name in ("query", "key", "value", "output"):
            dense = _dense(hidden_shape[-1], self.dtype_policy, f"{name}_projection")
            dense.build(hidden_shape)
            setattr(self, f"{name}_projection", dense)

    def call(self, hidden, real, training=None):
        """Return float [batch, frames, width] for the same and bool [batch, frames]."""
        query, key, value = (
            self._split(projection(hidden))
            for projection in (self.query_projection, self.key_projection, self.value_projection)
        )
        query = query / math.sqrt(query.shape[-1])
        scores = ops.cast(ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))), "float32")
        weights = ops.softmax(ops.where(real[:, None, None], scores, HIDDEN_SCORE))
        weights = self.dropout(ops.cast(weights, value.dtype), training=training)
        seen = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))
        return self.output_projection(ops.reshape(seen, ops.shape(hidden)))

    def _split(self, hidden):
        """Return [batch, heads, frames, width / heads]."""
        batch, frames, width = ops.shape(hidden)
        return ops.transpose(ops.reshape(hidden, (batch, frames, self.heads, width // self.heads)), (0, 2, 1, 3))

    def get_config(self):
        return super().get_config() | {"heads": self.heads, "dropout": self.dropout.rate}


@keras.saving.register_keras_serializable("recipes")
class TransformerBlock(keras.layers.Layer):
    """Self-attention and a feed-forward part, each added to what came in.

    Args:
        config: fields of Wav2Vec2Config, or itself.
        seed: of the draw that skips the block.
    """

    def __init__(self, config: Wav2Vec2Config | dict, seed: int | None = None, **named):
        super().__init__(**named)
        self.config = config = _as_config(config)
        self.seed = seed
        self.random = keras.random.SeedGenerator(seed)
        policy = self.dtype_policy
        self.attention = SelfAttention(
            config.num_attention_heads, config.attention_dropout, dtype=policy, name="attention"
        )
        self.attention_norm = _layer_norm(config, policy, "attention_norm")
        self.inner = _dense(config.intermediate_size, policy, "inner")
        self.outer = _dense(config.hidden_size, policy, "outer")
        self.output_norm = _layer_norm(config, policy, "output_norm")
        self.inner_dropout = keras.layers.Dropout(config.activation_dropout, dtype=policy)
        self.dropout = keras.layers.Dropout(config.hidden_dropout, dtype=policy)

    def build(self, hidden_shape, real_shape):
        """Build the parts."""
        self.attention.build(hidden_shape, real_shape)
        for part in (self.attention_norm, self.inner, self.output_norm):
            part.build(hidden_shape)
        self.outer.build((*hidden_shape[:-1], self.config.intermediate_size))

    def call(self, hidden, real, training=None):
        """Return float [batch, frames, width] for the same and bool [batch, frames]."""
        if self.config.do_stable_layer_norm:
            after = hidden + self._attend(self.attention_norm(hidden), real, training)
            after = after + self._feed_forward(self.output_norm(after), training)
        else:
            after = self.attention_norm(hidden + self._attend(hidden, real, training))
            after = self.output_norm(after + self._feed_forward(after, training))
        if training and self.config.layerdrop > 0:
            skipped = keras.random.uniform((), seed=self.random) < self.config.layerdrop
            after = ops.where(skipped, hidden, after)
        return after

    def _attend(self, hidden, real, training):
        return self.dropout(self.attention(hidden, real, training=training), training=training)

    def _feed_forward(self, hidden, training):
        inner = self.inner_dropout(_gelu(self.inner(hidden)), training=training)
        return self.dropout(self.outer(inner), training=training)

    def get_config(self):
        return super().get_config() | {"config": dataclasses.asdict(self.config), "seed": self.seed}


def _as_config(config: Wav2Vec2Config | dict) -> Wav2Vec2Config:
    """Return the config; a saved layer holds its fields."""
    return config if isinstance(config, Wav2Vec2Config) else Wav2Vec2Config.from_dict(config)


def _dense(width: int, policy: Any, name: str) -> keras.layers.Dense:
    initial = keras.initializers.RandomNormal(stddev=0.02)
    return keras.layers.Dense(width, kernel_initializer=initial, dtype=policy, name=name)


def _layer_norm(config: Wav2Vec2Config, policy: Any, name: str) -> keras.layers.LayerNormalization:
    return keras.layers.LayerNormalization(epsilon=config.layer_norm_eps, dtype=policy, name=name)


@keras.saving.register_keras_serializable("recipes")
class Wav2Vec2Backbone(keras.Model):
    """wav2vec 2.0 without a head: {"samples": float32 [batch, time], "lengths": int32 [batch]} to hidden states.

    Any length works, within a batch and from batch to batch. Frames behind the end of a clip are 0, and what its row
    holds there has no influence.

    Args:
        config: fields of Wav2Vec2Config, or itself.
        dtype: a policy of Keras.

    Returns:
        When called: float [batch, frames, hidden_size]; `config.frame_lengths` says how many frames are real.
    """

    def __init__(self, config: Wav2Vec2Config | dict, dtype: Any = None, **named):
        config = _as_config(config)
        inputs = audio_inputs()
        states = connect(_make_layers(config, dtype), **inputs)
        super().__init__(inputs=inputs, outputs=states["hidden"], **named)
        self.config = config
        self.dtype_policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())

    def every_hidden_state(self) -> keras.Model:
        """Return a model with the same inputs that gives what goes into the first block, then what each gives.

        The last one is the output of the backbone. Of the others frames behind the end of a clip mean nothing.
        """
        blocks = [self.get_layer(f"block_{number}") for number in range(self.config.num_hidden_layers)]
        states = [block.input[0] for block in blocks]
        return keras.Model(self.input, [*states, self.output])

    def get_config(self):
        policy = keras.dtype_policies.serialize(self.dtype_policy)
        named = {"name": self.name, "trainable": self.trainable, "dtype": policy}
        return {"config": dataclasses.asdict(self.config), **named}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


def audio_inputs() -> dict[str, Any]:
    """Return the symbolic inputs of every model here."""
    return {
        "samples": keras.Input((None,), dtype="float32", name="samples"),
        "lengths": keras.Input((), dtype="int32", name="lengths"),
    }


def _make_layers(config: Wav2Vec2Config, dtype: Any) -> dict[str, keras.layers.Layer]:
    """Return the layers of a backbone by their names."""
    bound = math.sqrt(1 / config.conv_dim[-1])
    uniform = keras.initializers.RandomUniform(-bound, bound)
    layers = [
        FeatureExtractor(config, dtype=dtype, name="feature_extractor"),
        RealFrames(config, dtype=dtype, name="real_frames"),
        _layer_norm(config, dtype, "feature_norm"),
        keras.layers.Dense(
            config.hidden_size, kernel_initializer=uniform, bias_initializer=uniform, dtype=dtype,
            name="feature_projection",
        ),
        keras.layers.Dropout(config.feat_proj_dropout, dtype=dtype, name="feature_dropout"),
        SpecAugment(config, dtype=dtype, name="spec_augment"),
        PositionalEmbedding(
            config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups, dtype=dtype,
            name="positional_embedding",
        ),
        _layer_norm(config, dtype, "encoder_norm"),
        keras.layers.Dropout(config.hidden_dropout, dtype=dtype, name="encoder_dropout"),
        *(TransformerBlock(config, dtype=dtype, name=f"block_{number}") for number in range(config.num_hidden_layers)),
        ZeroPadding(dtype=dtype, name="zero_padding"),
    ]  # fmt: skip
    return {layer.name: layer for layer in layers}


def connect(layers: dict[str, Any], samples: Any, lengths: Any, masked: Any = None) -> dict[str, Any]:
    """Run the layers of a backbone.

    Args:
        layers: by name, as `_make_layers` gives them.
        samples: float32 [batch, time].
        lengths: real samples, int32 [batch].
        masked: frames to mask, bool [batch, frames]; None leaves it to SpecAugment.

    Returns:
        features (what the quantizer sees, never masked): float [batch, frames, channels]; real: bool [batch, frames];
        hidden: float [batch, frames, hidden_size].
    """
    config = layers["feature_extractor"].config
    features = layers["feature_extractor"](samples, lengths)
    real = layers["real_frames"](features, lengths)
    features = layers["feature_norm"](features)
    hidden = layers["feature_dropout"](layers["feature_projection"](features))
    hidden = layers["spec_augment"](hidden, real, masked)
    hidden = layers["positional_embedding"](hidden, real)
    if not config.do_stable_layer_norm:
        hidden = layers["encoder_norm"](hidden)
    hidden = layers["encoder_dropout"](hidden)
    for number in range(config.num_hidden_layers):
        hidden = layers[f"block_{number}"](hidden, real)
    if config.do_stable_layer_norm:
        hidden = layers["encoder_norm"](hidden)
    return {"features": features, "real": real, "hidden": layers["zero_padding"](hidden, real)}


# ---- Heads ------------------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("recipes")
class CTCHead(keras.layers.Layer):
    """Dropout, and a score of each token of the vocabulary in each frame; token 0 is the blank.

    Args:
        vocabulary_size: tokens, blank included.
        dropout: rate of it.
    """

    def __init__(self, vocabulary_size: int, dropout: float = 0.1, **named):
        super().__init__(**named)
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)
        self.dense = _dense(vocabulary_size, self.dtype_policy, "dense")

    def build(self, hidden_shape):
        """Build the projection."""
        self.dense.build(hidden_shape)

    def call(self, hidden, training=None):
        """Return logits, float32 [batch, frames, vocabulary], for float [batch, frames, width]."""
        return ops.cast(self.dense(self.dropout(hidden, training=training)), "float32")

    def get_config(self):
        return super().get_config() | {"vocabulary_size": self.dense.units, "dropout": self.dropout.rate}


@keras.saving.register_keras_serializable("recipes")
class UtteranceHead(keras.layers.Layer):
    """A class of the whole clip: the mean over its real frames of a projection, and a score of each class.

    Args:
        classes: how many.
        projection_size: width of the mean.
        dropout: of the mean.
    """

    def __init__(self, classes: int, projection_size: int = 256, dropout: float = 0.0, **named):
        super().__init__(**named)
        self.projection = _dense(projection_size, self.dtype_policy, "projection")
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)
        self.dense = _dense(classes, self.dtype_policy, "dense")

    def build(self, hidden_shape, real_shape):
        """Build both projections."""
        self.projection.build(hidden_shape)
        self.dense.build((hidden_shape[0], self.projection.units))

    def call(self, hidden, real, training=None):
        """Return logits, float32 [batch, classes], for float [batch, frames, width] and bool [batch, frames]."""
        projected = ops.where(real[..., None], self.projection(hidden), 0.0)
        count = ops.maximum(ops.sum(ops.cast(real, projected.dtype), axis=1, keepdims=True), 1.0)
        mean = ops.sum(projected, axis=1) / count
        return ops.cast(self.dense(self.dropout(mean, training=training)), "float32")

    def get_config(self):
        sizes = {"classes": self.dense.units, "projection_size": self.projection.units}
        return super().get_config() | sizes | {"dropout": self.dropout.rate}


def build_recogniser(backbone: Wav2Vec2Backbone, head: CTCHead) -> keras.Model:
    """Return a model of the backbone's inputs that gives logits of tokens, float32 [batch, frames, vocabulary]."""
    inputs = audio_inputs()
    return keras.Model(inputs, head(backbone(inputs)))


def build_classifier(backbone: Wav2Vec2Backbone, head: UtteranceHead) -> keras.Model:
    """Return a model of the backbone's inputs that gives logits of classes, float32 [batch, classes]."""
    inputs = audio_inputs()
    hidden = backbone(inputs)
    return keras.Model(inputs, head(hidden, RealFrames(backbone.config)(hidden, inputs["lengths"])))


def ctc_loss(labels: Any, logits: Any, label_lengths: Any, frame_lengths: Any) -> Any:
    """Return minus the logarithm of the probability of each transcript (CTC, Graves et al. 2006), token 0 the blank.

    keras.losses.CTC would take every frame as real, those of padding too.

    Args:
        labels: tokens, int32 [batch, length], anything behind the end of a transcript.
        logits: float [batch, frames, vocabulary].
        label_lengths: tokens of each transcript, int32 [batch].
        frame_lengths: real frames of each clip, int32 [batch], as `Wav2Vec2Config.frame_lengths` counts them.

    Returns:
        float32 [batch]; 0, with no gradient, for a clip with too few frames for its transcript: no path leads to it.
    """
    labels, label_lengths = ops.cast(labels, "int32"), ops.cast(label_lengths, "int32")
    frame_lengths = ops.cast(frame_lengths, "int32")
    inside = _before(label_lengths, ops.shape(labels)[1])
    labels = ops.where(inside, labels, 0)
    # The same token twice needs a blank between.
    twice = ops.logical_and(labels[:, 1:] == labels[:, :-1], inside[:, 1:])
    possible = label_lengths + ops.sum(ops.cast(twice, "int32"), axis=1) <= frame_lengths
    # An empty transcript of one frame stands in for an impossible clip, so that no infinity reaches a gradient.
    loss = ops.ctc_loss(
        labels,
        ops.cast(logits, "float32"),
        ops.where(possible, label_lengths, 0),
        ops.where(possible, frame_lengths, 1),
        mask_index=0,
    )
    return ops.where(possible, loss, 0.0)
