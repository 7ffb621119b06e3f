"""wav2vec 2.0 (https://arxiv.org/abs/2006.11477) in Keras: the network without a head.

    backbone = Wav2Vec2Backbone(Wav2Vec2Config.base())
    hidden = backbone({"samples": samples, "lengths": lengths})

`samples` is audio at 16 kHz, float32 [batch, time], as returned by `normalise`; `lengths` is the number of real samples
in each row, int32 [batch]. Padding has no influence: a clip gets the same output alone and in any batch.
common/speech/wav2vec2/weights.py loads pretrained weights.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
from keras import ops

from common.speech.wav2vec2.config import Wav2Vec2Config
from common.speech.wav2vec2.masking import draw_spans, real_places, standardised

_CONV_NORM_EPSILON = 1e-5  # of the norms between convolutions; layer_norm_eps does not apply to them
MASKED_SCORE = -1e9  # attention score of a masked frame


def _gelu(values: Any) -> Any:
    return ops.gelu(values, approximate=False)  # wav2vec 2.0 was trained with the exact GELU


@keras.saving.register_keras_serializable("recipes")
class MaskedGroupNorm(keras.layers.Layer):
    """Group norm with one group per channel, over the real frames of a clip, so that padding has no influence.

    Args:
        epsilon: added to the variance.
    """

    def __init__(self, epsilon: float = _CONV_NORM_EPSILON, **named):
        super().__init__(**named)
        self.epsilon = epsilon

    def build(self, hidden_shape, lengths_shape):
        """Create scale and offset of each channel."""
        self.gamma = self.add_weight(shape=hidden_shape[-1:], initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=hidden_shape[-1:], initializer="zeros", name="beta")

    def call(self, hidden, lengths):
        """Normalise float [batch, frames, channels], of which `lengths`, int32 [batch], are real."""
        real = real_places(lengths, ops.shape(hidden)[1])[..., None]
        normed = standardised(ops.cast(hidden, "float32"), real, self.epsilon, axis=1)
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

        There is always at least one frame: shorter rows are padded, and `frame_lengths` gives 0 for them.
        """
        time = ops.shape(samples)[1]
        hidden = ops.where(real_places(lengths, time), samples, 0.0)
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
    """Distinguishes the real frames of a batch from padding.

    Args:
        config: fields of Wav2Vec2Config, or itself.
    """

    def __init__(self, config: Wav2Vec2Config | dict, **named):
        super().__init__(**named)
        self.config = _as_config(config)

    def call(self, frames, lengths):
        """Return bool [batch, frames] for any [batch, frames, width] and real samples, int32 [batch]."""
        return real_places(self.config.frame_lengths(lengths), ops.shape(frames)[1])

    def get_config(self):
        return super().get_config() | {"config": dataclasses.asdict(self.config)}


@keras.saving.register_keras_serializable("recipes")
class ZeroPadding(keras.layers.Layer):
    """Sets padding frames to 0."""

    def call(self, hidden, real):
        """Return float [batch, frames, width], given also which are real, bool [batch, frames]."""
        return ops.where(real[..., None], hidden, 0.0)


@keras.saving.register_keras_serializable("recipes")
class SpecAugment(keras.layers.Layer):
    """Masks spans of frames with a learned vector, and spans of features with 0 (https://arxiv.org/abs/1904.08779).

    In training the spans are drawn per clip from its real frames; pretraining passes the frames to mask.

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
        """Create the vector that replaces masked frames."""
        self.mask_vector = self.add_weight(
            shape=hidden_shape[-1:], initializer=keras.initializers.RandomUniform(0.0, 1.0), name="mask_vector"
        )

    def call(self, hidden, real, masked=None, training=None):
        """Mask float [batch, frames, width].

        Args:
            hidden: float [batch, frames, width].
            real: which frames belong to a clip, bool [batch, frames].
            masked: frames to mask, bool [batch, frames]; with None they are drawn, in training only.
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


@keras.saving.register_keras_serializable("recipes")
class PositionalEmbedding(keras.layers.Layer):
    """Adds a wide grouped convolution with weight norm (https://arxiv.org/abs/1602.07868) to encode positions.

    Args:
        kernel_size: frames that it covers.
        groups: groups of channels, convolved independently.
    """

    def __init__(self, kernel_size: int, groups: int, **named):
        super().__init__(**named)
        self.kernel_size = kernel_size
        self.groups = groups

    def build(self, hidden_shape, real_shape):
        """Create direction and length of the kernel, and the bias."""
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
        """Return float [batch, frames, width]; padding, where bool [batch, frames] `real` is False, is ignored."""
        hidden = ops.where(real[..., None], hidden, 0.0)
        norm = ops.sqrt(ops.sum(ops.square(self.direction), axis=(1, 2), keepdims=True))
        kernel = self.direction * (self.length / norm)
        # Not in half precision, in which oneDNN's convolution of 8 channels gives wrong results.
        positions = _grouped_convolution(ops.cast(hidden, kernel.dtype), kernel, self.groups)
        return hidden + ops.cast(_gelu(positions + self.bias), hidden.dtype)

    def get_config(self):
        return super().get_config() | {"kernel_size": self.kernel_size, "groups": self.groups}


def _grouped_convolution(hidden: Any, kernel: Any, groups: int) -> Any:
    """Convolve each group of channels separately, padded equally at both ends (one less at the end for an even kernel).

    On a CPU, `ops.conv` with groups compiles with XLA, again for every batch length, and leaves XLA in a served graph.

    Args:
        hidden: float [batch, frames, width].
        kernel: float [frames, width / groups, width].
        groups: number of groups.

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
        heads: number of heads.
        dropout: of attention weights.
    """

    def __init__(self, heads: int, dropout: float = 0.0, **named):
        super().__init__(**named)
        self.heads = heads
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def build(self, hidden_shape, real_shape):
        """Create the four projections."""
        for name in ("query", "key", "value", "output"):
            dense = make_dense(hidden_shape[-1], self.dtype_policy, f"{name}_projection")
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
        weights = ops.softmax(ops.where(real[:, None, None], scores, MASKED_SCORE))
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
    """Self-attention and a feed-forward network, each with a residual connection.

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
        self.inner = make_dense(config.intermediate_size, policy, "inner")
        self.outer = make_dense(config.hidden_size, policy, "outer")
        self.output_norm = _layer_norm(config, policy, "output_norm")
        self.inner_dropout = keras.layers.Dropout(config.activation_dropout, dtype=policy)
        self.dropout = keras.layers.Dropout(config.hidden_dropout, dtype=policy)

    def build(self, hidden_shape, real_shape):
        """Build the sublayers."""
        self.attention.build(hidden_shape, real_shape)
        for layer in (self.attention_norm, self.inner, self.output_norm):
            layer.build(hidden_shape)
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
    """Return the config; a saved layer stores its fields."""
    return config if isinstance(config, Wav2Vec2Config) else Wav2Vec2Config.from_dict(config)


def make_dense(width: int, policy: Any, name: str) -> keras.layers.Dense:
    initial = keras.initializers.RandomNormal(stddev=0.02)
    return keras.layers.Dense(width, kernel_initializer=initial, dtype=policy, name=name)


def _layer_norm(config: Wav2Vec2Config, policy: Any, name: str) -> keras.layers.LayerNormalization:
    return keras.layers.LayerNormalization(epsilon=config.layer_norm_eps, dtype=policy, name=name)


@keras.saving.register_keras_serializable("recipes")
class Wav2Vec2Backbone(keras.Model):
    """wav2vec 2.0 without a head: {"samples": float32 [batch, time], "lengths": int32 [batch]} to hidden states.

    Clips of any length can be batched. Frames beyond the end of a clip are 0, and padding has no influence.

    Args:
        config: fields of Wav2Vec2Config, or itself.
        dtype: a Keras dtype policy.

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
        """Return a model with the same inputs that returns the input of the first block, then the output of each.

        The last one is the output of the backbone. In the others, frames beyond the end of a clip are meaningless.
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
    """Return the symbolic inputs of every wav2vec 2.0 model."""
    return {
        "samples": keras.Input((None,), dtype="float32", name="samples"),
        "lengths": keras.Input((), dtype="int32", name="lengths"),
    }


def _make_layers(config: Wav2Vec2Config, dtype: Any) -> dict[str, keras.layers.Layer]:
    """Return the layers of a backbone by name."""
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
        layers: by name, as returned by `_make_layers`.
        samples: float32 [batch, time].
        lengths: real samples, int32 [batch].
        masked: frames to mask, bool [batch, frames]; None leaves the choice to SpecAugment.

    Returns:
        features (input of the quantizer, never masked): float [batch, frames, channels]; real: bool [batch, frames];
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
