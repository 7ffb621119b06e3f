"""Write what transformers' wav2vec 2.0 says of a tiny network, for tests/speech/test_wav2vec2.py.

    pip install -r requirements-parity.txt       # PyTorch and transformers, the reference
    python benchmarks/refresh_wav2vec2_golden.py # seconds

tests/speech/data/wav2vec2_golden.npz holds two networks, `base` (norm of each channel, norms after) and `stable` (norms
of layers, norms before), each with weights, clips, what every layer makes of them, logits of all heads, losses and
gradients. Weights are drawn at random, larger than a new network has them, so that every part has a say.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "conv_dim": (16,) * 7, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "num_conv_pos_embedding_groups": 4, "vocab_size": 11, "classifier_proj_size": 12, "num_labels": 3,
    "num_codevectors_per_group": 6, "codevector_dim": 8, "proj_codevector_dim": 10, "num_negatives": 5,
    "hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "feat_proj_dropout": 0.0,
    "final_dropout": 0.0, "layerdrop": 0.0,
}  # fmt: skip
NETWORKS = {
    "base": {"num_conv_pos_embeddings": 8},
    "stable": {
        "num_conv_pos_embeddings": 7, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True,
        "layer_norm_eps": 1e-4,
    },
}  # fmt: skip
TIME, SHORT = 4100, 2500  # samples: 12 frames and 7

Arrays = dict[str, np.ndarray]


def draw_weights(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Set every weight to a number that float16 can hold, so that the file is small."""
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.ndim == 1 and name.endswith("norm.weight"):
            drawn = 1 + 0.2 * noise
        elif name.endswith("original0"):  # the length of a kernel
            drawn = 1 + noise.abs()
        elif weight.ndim < 2:
            drawn = 0.2 * noise
        else:
            drawn = noise * 1.3 / np.sqrt(weight[0].numel())
        weight.data = drawn.half().float()


def hidden_states(model: transformers.Wav2Vec2Model, **inputs: torch.Tensor) -> list[torch.Tensor]:
    """Return what goes into the first block, what comes out of each, and the output in place of the last."""
    layers, states = model.encoder.layers, []
    hooks = [layers[0].register_forward_pre_hook(lambda _, given: states.append(given[0]))]
    hooks += [layer.register_forward_hook(lambda _, __, output: states.append(output)) for layer in layers]
    last = model(**inputs).last_hidden_state
    for hook in hooks:
        hook.remove()
    return [*states[:-1], last]


def ctc_arrays(model: transformers.Wav2Vec2ForCTC, inputs: dict[str, torch.Tensor], frames: torch.Tensor) -> Arrays:
    """Return states, logits, and loss and gradients of a step with masked frames.

    Args:
        model: in inference mode.
        inputs: input_values and attention_mask.
        frames: real ones of each clip.
    """
    labels, label_lengths = torch.tensor([[3, 3, 7, 1], [5, 2, 0, 0]]), torch.tensor([4, 2])
    masked = torch.zeros((2, int(frames.max())), dtype=torch.bool)
    masked[0, 2:5] = masked[1, 4:6] = True
    with torch.no_grad():
        states = hidden_states(model.wav2vec2, **inputs)
        logits = model(**inputs).logits
    model.zero_grad()
    hidden = model.wav2vec2(**inputs, mask_time_indices=masked).last_hidden_state
    scores = torch.log_softmax(model.lm_head(hidden), dim=-1).transpose(0, 1)
    losses = torch.nn.functional.ctc_loss(scores, labels, frames, label_lengths, reduction="none")
    losses.sum().backward()
    gradients = {f"gradients/{name}": weight.grad.numpy().copy() for name, weight in model.named_parameters()}
    return gradients | {
        "states": torch.stack(states).numpy(), "logits": logits.numpy(), "labels": labels.int().numpy(),
        "label_lengths": label_lengths.int().numpy(), "masked": masked.numpy(), "losses": losses.detach().numpy(),
    }  # fmt: skip


def pretraining_arrays(
    model: transformers.Wav2Vec2ForPreTraining, inputs: dict[str, torch.Tensor], masked: np.ndarray
) -> Arrays:
    """Return losses of pre-training without and with Gumbel noise, and gradients with it.

    Args:
        model: the network and its quantizer.
        inputs: input_values and attention_mask.
        masked: bool [2, frames].
    """
    rng = np.random.default_rng(1)
    distractors = np.zeros((*masked.shape, model.config.num_negatives), np.int64)
    for clip, frame in np.argwhere(masked):
        others = np.flatnonzero(masked[clip] & (np.arange(masked.shape[1]) != frame))
        distractors[clip, frame] = rng.choice(others, model.config.num_negatives)
    offsets = np.arange(2)[:, None, None] * masked.shape[1]  # transformers numbers the frames of the batch
    given = {**inputs, "mask_time_indices": torch.tensor(masked)}
    given["sampled_negative_indices"] = torch.tensor(distractors + offsets)
    with torch.no_grad():
        said = model.eval()(**given)
    arrays = {
        "distractors": distractors.astype(np.int32), "predicted": said.projected_states.numpy(),
        "quantized": said.projected_quantized_states.numpy(), "perplexity": said.codevector_perplexity.numpy(),
        "contrastive": said.contrastive_loss.numpy(), "diversity": said.diversity_loss.numpy(),
    }  # fmt: skip
    config = model.config
    torch.manual_seed(3)  # gumbel_softmax of PyTorch draws this, and nothing else here is random
    rows = masked.size * config.num_codevector_groups
    exponential = torch.empty(rows, config.num_codevectors_per_group).exponential_()
    model.train().zero_grad()
    torch.manual_seed(3)
    said = model(**given)
    said.loss.backward()
    shape = (*masked.shape, config.num_codevector_groups, config.num_codevectors_per_group)
    names = ("quantizer.codevectors", "quantizer.weight_proj.weight", "project_q.weight", "project_hid.weight",
             "wav2vec2.masked_spec_embed", "wav2vec2.feature_extractor.conv_layers.0.conv.weight")  # fmt: skip
    weights = dict(model.named_parameters())
    arrays |= {f"noisy/gradients/{name}": weights[name].grad.numpy() for name in names}
    return arrays | {
        "noisy/uniform": torch.exp(-exponential).reshape(shape).numpy(), "noisy/loss": said.loss.detach().numpy(),
        "noisy/contrastive": said.contrastive_loss.detach().numpy(),
        "noisy/diversity": said.diversity_loss.detach().numpy(),
    }  # fmt: skip


def network_arrays(changes: dict, padded: bool) -> Arrays:
    """Run one network.

    Args:
        changes: of its config.
        padded: whether the second clip is shorter, with padding that attention does not see.
    """
    generator = torch.Generator().manual_seed(0)
    config = transformers.Wav2Vec2Config(**TINY | changes, attn_implementation="eager")
    model = transformers.Wav2Vec2ForCTC(config).eval()
    pretraining = transformers.Wav2Vec2ForPreTraining(config)
    classifier = transformers.Wav2Vec2ForSequenceClassification(config).eval()
    for one in (model, pretraining, classifier):
        draw_weights(one, generator)
    for one in (pretraining, classifier):
        one.wav2vec2.load_state_dict(model.wav2vec2.state_dict())

    lengths = torch.tensor([TIME, SHORT if padded else TIME])
    samples = torch.randn((2, TIME), generator=generator).half().float()
    attended = (torch.arange(TIME)[None] < lengths[:, None]).long()
    inputs = {"input_values": samples * attended, "attention_mask": attended}
    frames = model._get_feat_extract_output_lengths(lengths)
    ctc = ctc_arrays(model, inputs, frames)
    with torch.no_grad():
        classes = classifier(**inputs).logits.numpy()
    weights = pretraining.state_dict() | classifier.state_dict() | model.state_dict()
    arrays = {f"weights/{name}": weight.numpy().astype(np.float16) for name, weight in weights.items()}
    arrays |= {
        "config": np.array(json.dumps(config.to_diff_dict() | {"model_type": "wav2vec2"})),
        "samples": inputs["input_values"].numpy().astype(np.float16), "lengths": lengths.int().numpy(),
        "frames": frames.int().numpy(), "classes": classes,
    }  # fmt: skip
    pretrained = pretraining_arrays(pretraining, inputs, ctc["masked"])
    return arrays | ctc | {f"pretraining/{name}": array for name, array in pretrained.items()}


def normalised() -> Arrays:
    """Return two clips, and what the feature extractor of transformers makes of them."""
    rng = np.random.default_rng(0)
    clips = [(rng.normal(0.1, 0.3, size)).astype(np.float16).astype(np.float32) for size in (300, 170)]
    extract = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    said = extract(clips, sampling_rate=16000, padding=True, return_tensors="np")
    samples = np.stack([np.pad(clip, (0, 300 - len(clip))) for clip in clips])
    lengths = np.array([len(clip) for clip in clips], np.int32)
    return {"samples": samples, "lengths": lengths, "normalised": said["input_values"]}


def main() -> None:
    """Write the file."""
    arrays = {"reference": np.array(f"transformers {transformers.__version__}, torch {torch.__version__}")}
    arrays |= {f"audio/{name}": array for name, array in normalised().items()}
    for network, changes in NETWORKS.items():
        of_network = network_arrays(changes, padded=network == "stable")
        arrays |= {f"{network}/{name}": array for name, array in of_network.items()}
    path = ROOT / "tests/speech/data/wav2vec2_golden.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.relative_to(ROOT)}: {len(arrays)} arrays, {path.stat().st_size / 1e3:,.0f} kB")


if __name__ == "__main__":
    main()
