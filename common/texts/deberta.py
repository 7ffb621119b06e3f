"""DeBERTa v3 from a Hugging Face folder: KerasHub has the network, but no conversion."""

from __future__ import annotations

import keras
import keras_nlp  # today another name of keras_hub

# What KerasHub's network computes regardless of config.json; a missing key means the first value.
COMPUTED = {
    "relative_attention": (True,),
    "position_biased_input": (False,),
    "norm_rel_ebd": ("layer_norm",),
    "share_att_key": (True,),
    "pos_att_type": (["p2c", "c2p"], ["c2p", "p2c"], "p2c|c2p", "c2p|p2c"),
    "max_relative_positions": (-1,),
    "type_vocab_size": (0,),
    "conv_kernel_size": (0,),  # the largest networks of version 2 have one
    "hidden_act": ("gelu",),
    "layer_norm_eps": (1e-7,),
}


def build_deberta(config: dict, dtype) -> keras.Model:
    """Return the network with initial weights.

    Args:
        config: content of config.json.
        dtype: a Keras dtype policy.
    """
    return keras_nlp.models.DebertaV3Backbone(
        vocabulary_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        hidden_dim=config["hidden_size"],
        intermediate_dim=config["intermediate_size"],
        dropout=config.get("hidden_dropout_prob", 0.1),
        max_sequence_length=config["max_position_embeddings"],
        bucket_size=config["position_buckets"],
        dtype=dtype,
    )


def convert_deberta(backbone: keras.Model, weights, config: dict) -> None:
    """Set the weights.

    Args:
        backbone: as returned by `build_deberta`.
        weights: with `get_tensor`, which returns an array by its name in the folder.
        config: content of config.json.
    """

    def dense(layer, name):
        kernel = weights.get_tensor(f"deberta.encoder.{name}.weight").T
        layer.kernel.assign(kernel.reshape(layer.kernel.shape))
        layer.bias.assign(weights.get_tensor(f"deberta.encoder.{name}.bias").reshape(layer.bias.shape))

    def norm(layer, name):
        layer.gamma.assign(weights.get_tensor(f"deberta.{name}.weight"))
        layer.beta.assign(weights.get_tensor(f"deberta.{name}.bias"))

    backbone.token_embedding.embeddings.assign(weights.get_tensor("deberta.embeddings.word_embeddings.weight"))
    norm(backbone.embeddings_layer_norm, "embeddings.LayerNorm")
    relative = backbone.relative_embeddings
    relative.rel_embeddings.assign(weights.get_tensor("deberta.encoder.rel_embeddings.weight"))
    norm(relative.layer_norm, "encoder.LayerNorm")
    for number, layer in enumerate(backbone.transformer_layers):
        attention, place = layer._self_attention_layer, f"layer.{number}"
        dense(attention._query_dense, f"{place}.attention.self.query_proj")
        dense(attention._key_dense, f"{place}.attention.self.key_proj")
        dense(attention._value_dense, f"{place}.attention.self.value_proj")
        dense(attention._output_dense, f"{place}.attention.output.dense")
        norm(layer._self_attention_layer_norm, f"encoder.{place}.attention.output.LayerNorm")
        dense(layer._feedforward_intermediate_dense, f"{place}.intermediate.dense")
        dense(layer._feedforward_output_dense, f"{place}.output.dense")
        norm(layer._feedforward_layer_norm, f"encoder.{place}.output.LayerNorm")
