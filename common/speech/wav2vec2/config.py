"""Sizes and settings of a wav2vec 2.0, as in Hugging Face's config.json."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops


@dataclass(frozen=True)
class Wav2Vec2Config:
    """Sizes and rates of a wav2vec 2.0, named as in the config.json of Hugging Face, with the same defaults.

    Attributes:
        conv_dim: channels of each convolution of the feature extractor.
        conv_kernel: kernel size of each, in samples or frames.
        conv_stride: stride of each.
        conv_bias: whether the convolutions have biases.
        feat_extract_norm: `group` (a norm per channel after the first convolution) or `layer` (a norm per frame after
            every convolution).
        hidden_size: width of the transformer.
        num_hidden_layers: transformer blocks.
        num_attention_heads: heads per block.
        intermediate_size: width inside the feed-forward network.
        num_conv_pos_embeddings: kernel size of the positional convolution, in frames.
        num_conv_pos_embedding_groups: its groups.
        do_stable_layer_norm: pre-norm: norms before attention and feed-forward network, not after.
        layer_norm_eps: epsilon of the transformer's norms.
        hidden_dropout: after attention, feed-forward network and positions.
        attention_dropout: of attention weights.
        activation_dropout: inside the feed-forward network.
        feat_proj_dropout: after the feature projection.
        feat_quantizer_dropout: of the features that are quantized.
        final_dropout: before the CTC head.
        layerdrop: probability that a training step skips a block (https://arxiv.org/abs/1909.11556).
        apply_spec_augment: whether training masks spans (https://arxiv.org/abs/1904.08779).
        mask_time_prob: share of frames that spans would cover if none overlapped.
        mask_time_length: frames of a span.
        mask_time_min_masks: minimum number of spans per clip.
        mask_feature_prob: as mask_time_prob, of the hidden features.
        mask_feature_length: features of a span.
        mask_feature_min_masks: minimum number of spans of features.
        num_codevector_groups: codebooks of the quantizer.
        num_codevectors_per_group: entries per codebook.
        codevector_dim: width of the concatenated entries of all codebooks.
        proj_codevector_dim: width in which prediction and target are compared.
        contrastive_logits_temperature: divides cosines.
        num_negatives: distractors per masked frame.
        diversity_loss_weight: weight of the diversity loss relative to the contrastive loss.
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
                "conv_dim, conv_kernel and conv_stride must have one number per convolution. "
                f"Received: {self.conv_dim}, {self.conv_kernel}, {self.conv_stride}."
            )
        if self.feat_extract_norm not in ("group", "layer"):
            raise ValueError(f"feat_extract_norm must be group or layer. Received: {self.feat_extract_norm!r}.")
        for size, unit in (
            ("hidden_size", "num_attention_heads"),
            ("hidden_size", "num_conv_pos_embedding_groups"),
            ("codevector_dim", "num_codevector_groups"),
        ):
            if getattr(self, size) % getattr(self, unit):
                raise ValueError(f"{size} {getattr(self, size)} must be a multiple of {unit} {getattr(self, unit)}.")

    @classmethod
    def base(cls, **changes: Any) -> Wav2Vec2Config:
        """Return BASE of the paper: 12 blocks of width 768, which are the defaults, with some changes."""
        return cls(**changes)

    @classmethod
    def large(cls, **changes: Any) -> Wav2Vec2Config:
        """Return LARGE of the paper, 24 blocks of width 1024, as trained on LibriSpeech."""
        large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
        return cls(**large | {"codevector_dim": 768, "proj_codevector_dim": 768} | changes)

    @classmethod
    def xls_r_300m(cls, **changes: Any) -> Wav2Vec2Config:
        """Return the smallest XLS-R (https://arxiv.org/abs/2111.09296): LARGE with layer norms, and pre-norm."""
        stable = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
        rates = {"activation_dropout": 0.0, "feat_proj_dropout": 0.1, "final_dropout": 0.0, "mask_time_prob": 0.075}
        return cls.large(**stable | rates | changes)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Wav2Vec2Config:
        """Return the config for a dict such as the content of config.json; unknown keys are ignored."""
        known = {field.name for field in dataclasses.fields(cls)} & set(values)
        return cls(**{name: tuple(values[name]) if isinstance(values[name], list) else values[name] for name in known})

    def frame_lengths(self, samples: Any) -> Any:
        """Return the number of frames of each clip.

        Args:
            samples: number per clip; an int, a NumPy array or an int32 tensor.

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
        """Number of samples that one frame covers."""
        strides = np.cumprod((1, *self.conv_stride[:-1]))
        return 1 + int(sum((kernel - 1) * stride for kernel, stride in zip(self.conv_kernel, strides, strict=True)))
