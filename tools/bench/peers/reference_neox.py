"""Backbone "gpt_neox" for reference.py: attention and MLP side by side, and one matrix for queries, keys and values."""

import math

import torch

from reference_attention import MIXERS
from reference_layers import Scope, linear_shapes, norm_shapes


def mixer_of(config, layer):
    mixers = config["mixer"]
    return mixers if isinstance(mixers, str) else mixers[layer % len(mixers)]


def parameter_shapes(config):
    d, vocab = config["d_model"], config["vocab_size"]
    hidden = int(config["mlp_ratio"] * d)
    shapes = {"gpt_neox.embed_in.weight": [vocab, d], "embed_out.weight": [vocab, d]}
    if config["position"] == "learned":
        shapes["pos_embed.weight"] = [config["max_seq_len"], d]
    for layer in range(config["n_layers"]):
        block = f"gpt_neox.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes |= norm_shapes(f"{block}.{norm}", d)
        shapes |= linear_shapes(f"{block}.attention.query_key_value", 3 * d, d)
        shapes |= linear_shapes(f"{block}.attention.dense", d, d)
        of_mixer, _ = MIXERS[mixer_of(config, layer)]
        shapes |= {f"{block}.attention.{name}": shape for name, shape in of_mixer(config).items()
                   if "proj" not in name}
        shapes |= linear_shapes(f"{block}.mlp.dense_h_to_4h", hidden, d)
        shapes |= linear_shapes(f"{block}.mlp.dense_4h_to_h", d, hidden)
    return shapes | norm_shapes("gpt_neox.final_layer_norm", d)


def attention_parameters(config, p):
    """The parameters of one layer's attention under the names that its mixer knows.

    The rows of the fused matrix are ordered (head, letter, channel of the head).
    """
    heads = config["n_heads"]
    own = {name[len(p.prefix):]: value for name, value in p.parameters.items() if name.startswith(p.prefix)}
    for kind in ("weight", "bias"):
        fused = own.pop(f"query_key_value.{kind}")
        by_head = fused.reshape(heads, 3, -1, *fused.shape[1:])
        for index, letter in enumerate("qkv"):
            own[f"{letter}_proj.{kind}"] = by_head[:, index].reshape(-1, *fused.shape[1:])
        own[f"out_proj.{kind}"] = own.pop(f"dense.{kind}")
    return Scope(own)


def forward(config, parameters, ids):
    p = Scope(parameters)
    h = p["gpt_neox.embed_in.weight"][ids]
    if config["position"] == "learned":
        h = h + p["pos_embed.weight"][:ids.shape[1]]
    for layer in range(config["n_layers"]):
        block = p.under(f"gpt_neox.layers.{layer}")
        _, mixer = MIXERS[mixer_of(config, layer)]
        attention = attention_parameters(config, block.under("attention"))
        mixed = mixer(config, attention, block.layer_norm("input_layernorm", h))
        hidden = block.linear("mlp.dense_h_to_4h", block.layer_norm("post_attention_layernorm", h))
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        h = h + mixed + block.linear("mlp.dense_4h_to_h", hidden)
    return p.layer_norm("gpt_neox.final_layer_norm", h) @ p["embed_out.weight"].T
