"""What the mixers of reference.py share: shapes and layers, each formula as on paper."""

import math

import torch
import torch.nn.functional as F

NORM_EPS = 1e-5  # of every layer norm and RMS norm
L2_EPS = 1e-12


def linear_shapes(name, out_features, in_features):
    return {f"{name}.weight": [out_features, in_features], f"{name}.bias": [out_features]}


def norm_shapes(name, d):
    return {f"{name}.weight": [d], f"{name}.bias": [d]}


class Scope:
    """The parameters under one prefix."""

    def __init__(self, parameters, prefix=""):
        self.parameters, self.prefix = parameters, prefix

    def __getitem__(self, name):
        return self.parameters[self.prefix + name]

    def under(self, name):
        return Scope(self.parameters, f"{self.prefix}{name}.")

    def linear(self, name, x):
        y = x @ self[f"{name}.weight"].T
        bias = self.parameters.get(f"{self.prefix}{name}.bias")
        return y if bias is None else y + bias

    def layer_norm(self, name, x):
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred * centred).mean(-1, keepdim=True)
        return centred / torch.sqrt(variance + NORM_EPS) * self[f"{name}.weight"] + self[f"{name}.bias"]

    def rms_norm(self, name, x):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + NORM_EPS) * self[f"{name}.weight"]


def l2_normalise(x):
    """x / max(|x|, 1e-12) over the last axis; rows shorter than that get no gradient."""
    square = (x * x).sum(-1, keepdim=True)
    long_enough = square >= L2_EPS * L2_EPS
    unit = x / torch.sqrt(torch.where(long_enough, square, torch.ones_like(square)))
    return torch.where(long_enough, unit, x.detach() / L2_EPS)


def causal_filter(x, taps):
    """y_t = sum_w taps[..., w] x_{t-w}, x before the first token being zero. x [b, L, c], taps [c, W]."""
    y = torch.zeros_like(x)
    for w in range(min(taps.shape[-1], x.shape[1])):
        y = y + taps[:, w] * F.pad(x, (0, 0, w, 0))[:, :x.shape[1]]
    return y


def rope_frequencies(config, r):
    """theta_i of the r/2 pairs, blended between unscaled and interpolated by YaRN where that is on."""
    i = torch.arange(r // 2, dtype=torch.float64)
    base = config["rope_base"]
    theta = base ** (-2 * i / r)
    scale = config["yarn_scale"]
    if scale == 1.0 or r == 0:
        return theta

    def pair_turning(turns):  # the pair that makes this many turns within the training length
        return r * math.log(config["max_seq_len"] / (2 * math.pi * turns)) / (2 * math.log(base))

    low, high = max(math.floor(pair_turning(32)), 0), min(math.ceil(pair_turning(1)), r - 1)
    if low == high:
        high += 0.001
    interpolated = ((i - low) / (high - low)).clamp(0, 1)
    return (1 - interpolated) * theta + interpolated * theta / scale


def rotate(config, x):
    """Rotary position embedding of the first r dimensions of each head, half-split. x [b, H, L, dh]."""
    r = 2 * math.floor(config["rope_fraction"] * x.shape[-1] / 2)
    angle = torch.arange(x.shape[2], dtype=torch.float64)[:, None] * rope_frequencies(config, r)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    low, high, rest = x[..., :r // 2], x[..., r // 2:r], x[..., r:]
    return torch.cat([low * cos - high * sin, high * cos + low * sin, rest], dim=-1)


def split_heads(config, x):
    b, length, d = x.shape
    return x.reshape(b, length, config["n_heads"], d // config["n_heads"]).transpose(1, 2)
