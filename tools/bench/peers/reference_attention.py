"""Softmax attention, linear attention and their convolution-augmented forms for reference.py, in quadratic form."""

import math

import torch
import torch.nn.functional as F

from reference_layers import causal_filter, l2_normalise, linear_shapes, rotate, split_heads


def attention_shapes(config):
    d = config["d_model"]
    shapes = {}
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= linear_shapes(name, d, d)
    return shapes


def cat_shapes(config):
    d, heads, cat = config["d_model"], config["n_heads"], config["cat"]
    filter_shape = {"shared": [], "per_head": [heads], "depthwise": [d]}[cat["conv_sharing"]] + [cat["conv_width"]]
    shapes = attention_shapes(config)
    for letter in cat["conv_on"]:
        shapes[f"conv_{letter}.weight"] = filter_shape
        if cat["conv_bias"]:
            shapes[f"conv_{letter}.bias"] = [d]
    if cat["qk_norm"] == "l2_head":
        shapes["beta"] = [heads]
    return shapes


def based_shapes(config):
    d, features = config["d_model"], config["n_heads"] * config["based"]["feature_dim"]
    return {"q_proj.weight": [features, d], "k_proj.weight": [features, d], "v_proj.weight": [d, d],
            "out_proj.weight": [d, d]}


def causal_attention(config, q, k, v, scale, window=0):
    """softmax(scale q k^T) v over the keys 0..t, or t-window..t. All [b, H, L, dh] -> [b, L, d]."""
    if config["yarn_scale"] != 1.0:
        scale = scale * (0.1 * math.log(config["yarn_scale"]) + 1) ** 2
    length = q.shape[2]
    distance = torch.arange(length)[:, None] - torch.arange(length)
    hidden = distance < 0
    if window > 0:
        hidden = hidden | (distance > window)
    scores = (scale * (q @ k.transpose(-1, -2))).masked_fill(hidden, -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(q.shape[0], length, -1)


def attention(config, p, x):
    q, k, v = (split_heads(config, p.linear(f"{letter}_proj", x)) for letter in "qkv")
    if config["position"] == "rope":
        q, k = rotate(config, q), rotate(config, k)
    o = causal_attention(config, q, k, v, q.shape[-1] ** -0.5, config["attention"]["window"])
    return p.linear("out_proj", o)


def taps_by_channel(config, p, letter):
    """A filter in any sharing as [d, W]."""
    d, taps = config["d_model"], p[f"conv_{letter}.weight"]
    if config["cat"]["conv_sharing"] == "shared":
        return taps.expand(d, -1)
    if config["cat"]["conv_sharing"] == "per_head":
        return taps.repeat_interleave(d // config["n_heads"], dim=0)
    return taps


def filtered_then_projected(config, p, letter, x):
    """Site "input": each head's rows of the projection see that head's own filtered copy of x."""
    cat, d, heads = config["cat"], config["d_model"], config["n_heads"]
    weight, bias = p[f"{letter}_proj.weight"], p[f"{letter}_proj.bias"]
    outputs = []
    for head in range(heads):
        rows = slice(head * d // heads, (head + 1) * d // heads)
        u = x
        if letter in cat["conv_on"]:
            if cat["conv_sharing"] == "per_head":
                taps = p[f"conv_{letter}.weight"][head].expand(d, -1)
            else:
                taps = taps_by_channel(config, p, letter)
            u = causal_filter(x, taps)
            if cat["conv_bias"]:
                u = u + p[f"conv_{letter}.bias"]
        if cat["qk_norm"] == "l2_input" and letter != "v":
            u = l2_normalise(u)
        outputs.append(u @ weight[rows].T + bias[rows])
    return torch.cat(outputs, dim=-1)


def projected_then_filtered(config, p, letter, x):
    """Site "post": the filter runs over the projection, its bias included."""
    cat = config["cat"]
    if cat["qk_norm"] == "l2_input" and letter != "v":
        x = l2_normalise(x)
    s = p.linear(f"{letter}_proj", x)
    if letter in cat["conv_on"]:
        s = causal_filter(s, taps_by_channel(config, p, letter))
        if cat["conv_bias"]:
            s = s + p[f"conv_{letter}.bias"]
    return s


def cat_queries_keys_values(config, p, x):
    """What CAT's attention sees, [b, H, L, dh] each, and the scale of its scores."""
    front = filtered_then_projected if config["cat"]["conv_site"] == "input" else projected_then_filtered
    q, k, v = (split_heads(config, front(config, p, letter, x)) for letter in "qkv")
    scale = q.shape[-1] ** -0.5
    if config["cat"]["qk_norm"] == "l2_head":
        q, k = l2_normalise(q), l2_normalise(k)
        scale = p["beta"].reshape(-1, 1, 1)
    if config["position"] == "rope":
        q, k = rotate(config, q), rotate(config, k)
    return q, k, v, scale


def cat_mixer(config, p, x):
    return p.linear("out_proj", causal_attention(config, *cat_queries_keys_values(config, p, x)))


def weighted_average(weights, v, eps=None):
    """sum_{s<=t} w_ts v_s, divided by (sum_{s<=t} w_ts) + eps unless that is None. -> [b, L, H dv]."""
    weights = weights.tril()
    o = weights @ v
    if eps is not None:
        o = o / (weights.sum(-1, keepdim=True) + eps)
    return o.transpose(1, 2).reshape(v.shape[0], v.shape[2], -1)


def linear_attention(config, q, k, v):
    """The quadratic form of linear attention with the feature map of [model.lincat]. All [b, H, L, dh]."""
    feature_map = config["lincat"]["feature_map"]
    if feature_map == "taylor2":
        s = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        return weighted_average(1 + s + s * s / 2, v, 1e-6)
    if feature_map == "identity":
        return weighted_average(q @ k.transpose(-1, -2), v)
    phi = {"elu1": lambda x: F.elu(x) + 1, "softmax": lambda x: x.softmax(-1)}[feature_map]
    return weighted_average(phi(q) @ phi(k).transpose(-1, -2), v, 1e-6)


def linear_attention_mixer(config, p, x):
    q, k, v = (split_heads(config, p.linear(f"{letter}_proj", x)) for letter in "qkv")
    if config["position"] == "rope":
        q, k = rotate(config, q), rotate(config, k)
    return p.linear("out_proj", linear_attention(config, q, k, v))


def lincat_mixer(config, p, x):
    front = filtered_then_projected if config["cat"]["conv_site"] == "input" else projected_then_filtered
    q, k, v = (split_heads(config, front(config, p, letter, x)) for letter in "qkv")
    if config["cat"]["qk_norm"] == "l2_head":
        q, k = p["beta"].reshape(-1, 1, 1) * l2_normalise(q), l2_normalise(k)
    if config["position"] == "rope":
        q, k = rotate(config, q), rotate(config, k)
    return p.linear("out_proj", linear_attention(config, q, k, v))


def based_mixer(config, p, x):
    q, k, v = (split_heads(config, x @ p[f"{letter}_proj.weight"].T) for letter in "qkv")
    s = q @ k.transpose(-1, -2) / math.sqrt(config["based"]["feature_dim"])
    return weighted_average(1 + s + s * s / 2, v, 1e-12) @ p["out_proj.weight"].T


MIXERS = {
    "attention": (attention_shapes, attention),
    "cat": (cat_shapes, cat_mixer),
    "linear_attention": (attention_shapes, linear_attention_mixer),
    "lincat": (cat_shapes, lincat_mixer),
    "based": (based_shapes, based_mixer),
}
