"""The mixers of long convolutions and diagonal state-space models for reference.py, in the same spirit.

Convolutions are sums over a Toeplitz matrix, kernels of state-space models are powers of complex numbers. `p` gives the
mixer's parameters by name, `config["layer"]` is the absolute number of its layer.
"""

import math

import torch

from reference_layers import linear_shapes

DEFAULTS = {
    "s4d": {"d_state": 64, "init": "lin", "discretization": "zoh"},
    "hyena": {"filter_width": 64, "filter_embed": 3},
    "h3": {"d_state": 64, "head_dim": 2},
    "base_conv": {"kernel_size": [3, -1]},
}

BASE_CONV_FEATURES, BASE_CONV_HIDDEN = 3, 16
SHORT_WIDTH = 3


def convolve(x, taps):
    """y[b, t, c] = sum over w <= t of taps[c, w] x[b, t - w, c]; taps beyond the last are zero."""
    length = x.shape[1]
    taps = torch.nn.functional.pad(taps[:, :length], (0, max(0, length - taps.shape[1])))
    delay = torch.arange(length)[:, None] - torch.arange(length)
    matrix = torch.where(delay >= 0, taps[:, delay.clamp(min=0)], torch.zeros((), dtype=taps.dtype))  # [c, t, s]
    return torch.einsum("cts,bsc->btc", matrix, x)


def position_features(length, embed):
    """[length, embed]: t scaled to 0..1, then cosines and negative sines of the bands."""
    bands = (embed - 1) // 2
    t = torch.linspace(0, 1, length, dtype=torch.float64)
    f = torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64)
    wave = torch.exp(-1j * f * (2 * math.pi * torch.arange(length, dtype=torch.float64)[:, None] / length))
    return torch.cat([t[:, None], wave.real, wave.imag], dim=-1)


# ---- base_conv -----------------------------------------------------------------------------------------------------


def kernel_size(config):
    sizes = config["base_conv"]["kernel_size"]
    return sizes[config["layer"] % len(sizes)]


def base_conv_shapes(config):
    d, width = config["d_model"], kernel_size(config)
    if width > 0:
        return linear_shapes("proj", d, d) | {"conv.weight": [d, width], "conv.bias": [d]}
    return (linear_shapes("proj", d, d) | linear_shapes("filter.fc1", BASE_CONV_HIDDEN, BASE_CONV_FEATURES)
            | linear_shapes("filter.fc2", d, BASE_CONV_HIDDEN))


def base_conv(config, p, x):
    if kernel_size(config) > 0:
        mixed = convolve(x, p["conv.weight"]) + p["conv.bias"]
    else:
        z = position_features(config["max_seq_len"], BASE_CONV_FEATURES).to(x.dtype)
        mixed = convolve(x, p.linear("filter.fc2", torch.relu(p.linear("filter.fc1", z))).T) + x
    return mixed * p.linear("proj", x) + x


# ---- hyena ---------------------------------------------------------------------------------------------------------


def hyena_shapes(config):
    d, width, embed = config["d_model"], config["hyena"]["filter_width"], config["hyena"]["filter_embed"]
    shapes = linear_shapes("in_proj", 3 * d, d) | linear_shapes("out_proj", d, d)
    shapes |= {"short_conv.weight": [3 * d, SHORT_WIDTH], "short_conv.bias": [3 * d], "D": [d]}
    shapes |= linear_shapes("filter.fc1", width, embed) | linear_shapes("filter.fc2", width, width)
    shapes |= linear_shapes("filter.fc3", width, width) | {"filter.fc4.weight": [d, width]}
    return shapes | {"filter.freq": [width]}


def hyena(config, p, x):
    d, longest = config["d_model"], config["max_seq_len"]
    h = position_features(longest, config["hyena"]["filter_embed"]).to(x.dtype)
    for layer in ("fc1", "fc2", "fc3"):
        h = torch.sin(p["filter.freq"] * p.linear(f"filter.{layer}", h))
    rates = torch.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, d, dtype=torch.float64).abs()
    time = torch.linspace(0, 1, longest, dtype=torch.float64)
    taps = (h @ p["filter.fc4.weight"].T) * torch.exp(-time[:, None] * rates)
    packed = convolve(p.linear("in_proj", x), p["short_conv.weight"]) + p["short_conv.bias"]
    x1, x2, v = packed.split(d, dim=-1)
    v = v * x1
    v = convolve(v, taps.T) + p["D"] * v
    return p.linear("out_proj", v * x2)


# ---- s4d and h3 ----------------------------------------------------------------------------------------------------


def ssm_shapes(prefix, models, states):
    pairs = states // 2
    return {f"{prefix}log_dt": [models], f"{prefix}C": [models, pairs, 2], f"{prefix}log_A_real": [models, pairs],
            f"{prefix}A_imag": [models, pairs], f"{prefix}D": [models]}


def ssm_kernel(p, prefix, length, discretization):
    """[models, length]: 2 Re sum over pairs of C_bar A_bar^l."""
    A = torch.complex(-p[f"{prefix}log_A_real"].exp(), p[f"{prefix}A_imag"])
    C = torch.view_as_complex(p[f"{prefix}C"])
    dt = p[f"{prefix}log_dt"].exp()[:, None]
    if discretization == "zoh":
        A_bar = torch.exp(dt * A)
        C_bar = C * (A_bar - 1) / A
    else:
        A_bar = (1 + dt * A / 2) / (1 - dt * A / 2)
        C_bar = C * dt / (1 - dt * A / 2)
    terms, power = [], torch.ones_like(A_bar)
    for _ in range(length):
        terms.append(2 * (C_bar * power).real.sum(-1))
        power = power * A_bar
    return torch.stack(terms, dim=-1)


def s4d_shapes(config):
    d = config["d_model"]
    return ssm_shapes("", d, config["s4d"]["d_state"]) | linear_shapes("out_proj", 2 * d, d)


def s4d(config, p, x):
    y = convolve(x, ssm_kernel(p, "", x.shape[1], config["s4d"]["discretization"])) + p["D"] * x
    y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
    value, gate = p.linear("out_proj", y).chunk(2, dim=-1)
    return value * torch.sigmoid(gate)


def h3_shapes(config):
    d, states = config["d_model"], config["h3"]["d_state"]
    shapes = {}
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= linear_shapes(name, d, d)
    shapes |= {"shift.C": [d, states], "shift.D": [d]}
    return shapes | ssm_shapes("diag.", d // config["h3"]["head_dim"], states)


def h3(config, p, x):
    b, length, d = x.shape
    e = config["h3"]["head_dim"]
    heads = d // e
    q, k, v = (p.linear(f"{letter}_proj", x) for letter in "qkv")
    k = convolve(k, p["shift.C"]) + p["shift.D"] * k
    q, k, v = (u.reshape(b, length, heads, e) for u in (q, k, v))
    kv = torch.einsum("blhi,blhj->bijlh", k, v).reshape(b * e * e, length, heads)
    y = convolve(kv, ssm_kernel(p, "diag.", length, "bilinear")) + p["diag.D"] * kv
    y = torch.einsum("blhi,bijlh->blhj", q, y.reshape(b, e, e, length, heads))
    return p.linear("out_proj", y.reshape(b, length, d))


MIXERS = {"base_conv": (base_conv_shapes, base_conv), "hyena": (hyena_shapes, hyena), "s4d": (s4d_shapes, s4d),
          "h3": (h3_shapes, h3)}
