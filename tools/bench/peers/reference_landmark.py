"""Landmark CAT for reference.py, in quadratic form: every score and every weight is there, most of them masked."""

import math

import torch

from reference_attention import cat_queries_keys_values, cat_shapes
from reference_layers import split_heads

DEFAULTS = {"lcat": {"block_size": 16, "top_k": 1, "landmark_sharing": "shared", "landmark_query": False,
                     "landmark_key": False, "gate": "grouped"}}


def lcat_shapes(config):
    d, heads, lcat = config["d_model"], config["n_heads"], config["lcat"]
    shapes = cat_shapes(config) | {"landmark_scale": [heads], "landmark_bias": [heads]}
    shapes["landmark_conv.weight"] = ([heads] if lcat["landmark_sharing"] == "per_head" else []) + [lcat["block_size"]]
    for side in ("query", "key"):
        if lcat[f"landmark_{side}"]:
            shapes[f"landmark_{side[0]}.weight"] = [d, d]
    return shapes


def projected(config, p, name, x):
    """All heads of x [b, H, L, dh] through one matrix, or x itself where there is none."""
    if not config["lcat"]["landmark_query" if name == "landmark_q" else "landmark_key"]:
        return x
    joined = x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)
    return split_heads(config, joined @ p[f"{name}.weight"].T)


def landmarks_of(config, p, k):
    """What the long filter, whose index 0 weighs the last token of a block, makes of complete blocks. [b, H, M, dh]."""
    size = config["lcat"]["block_size"]
    count = k.shape[2] // size
    blocks = k[:, :, :count * size].reshape(*k.shape[:2], count, size, k.shape[3])
    taps = p["landmark_conv.weight"].flip(-1).reshape(-1, 1, size, 1)
    return (taps * blocks).sum(-2)


def largest(logits, allowed, count):
    """Which `count` of the allowed logits are the largest, of equals the first ones; all of them for count 0."""
    if count == 0 or logits.shape[-1] == 0:
        return allowed
    order = logits.detach().masked_fill(~allowed, -math.inf).sort(dim=-1, descending=True, stable=True).indices
    chosen = torch.zeros_like(allowed).scatter(-1, order[..., :count], True)
    return chosen & allowed


def landmark_attention(config, p, q, k, v, scale):
    lcat, length = config["lcat"], q.shape[2]
    size = lcat["block_size"]
    count = length // size
    token = torch.arange(length)
    local = (token[:, None] >= token) & (token[:, None] // size == token // size)
    scores = scale * (q @ k.transpose(-1, -2))
    own = scores.masked_fill(~local, -math.inf)

    landmarks = landmarks_of(config, p, projected(config, p, "landmark_k", k))
    scaling = p["landmark_scale"].reshape(-1, 1, 1) / math.sqrt(q.shape[-1])
    logits = scaling * (projected(config, p, "landmark_q", q) @ landmarks.transpose(-1, -2))
    logits = logits + p["landmark_bias"].reshape(-1, 1, 1)
    before = (torch.arange(count) < token[:, None] // size).expand(logits.shape)
    chosen = largest(logits, before, lcat["top_k"])

    inside = scores[..., :count * size].reshape(*logits.shape, size)
    if lcat["gate"] == "grouped":
        outer = torch.cat([own, logits.masked_fill(~chosen, -math.inf)], dim=-1).softmax(-1)
        weights = outer[..., length:, None] * inside.softmax(-1)
    else:
        raised = inside + logits[..., None] if lcat["gate"] == "additive" else inside
        raised = raised.masked_fill(~chosen[..., None], -math.inf).flatten(-2)
        outer = torch.cat([own, raised], dim=-1).softmax(-1)
        weights = outer[..., length:]
    weights = weights.reshape(*logits.shape[:3], count * size)
    return outer[..., :length] @ v + weights @ v[:, :, :count * size]


def lcat_mixer(config, p, x):
    q, k, v, scale = cat_queries_keys_values(config, p, x)
    if config["yarn_scale"] != 1.0:
        scale = scale * (0.1 * math.log(config["yarn_scale"]) + 1) ** 2
    o = landmark_attention(config, p, q, k, v, scale)
    return p.linear("out_proj", o.transpose(1, 2).reshape(x.shape))


MIXERS = {"lcat": (lcat_shapes, lcat_mixer)}
