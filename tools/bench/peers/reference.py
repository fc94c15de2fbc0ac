"""An independent float64 implementation of Margay's models, on PyTorch: the yardstick of check_reference.py.

It shares no code with Margay and is written for reading, not for speed: each formula stands as on paper, and gradients
come from PyTorch. Supported: backbone "zoology", its mixers with every option, all MLPs. Attention and CAT are here, others in files
beside.
A model is its configuration (table [model] of config.toml) and a dict of parameters by name.
"""

import json
import math
import struct
import tomllib
from pathlib import Path

import torch
import torch.nn.functional as F

import reference_long_conv

IGNORE = -100
NORM_EPS = 1e-5  # of every layer norm
L2_EPS = 1e-12

DEFAULTS = {
    "backbone": "zoology", "mixer": "cat", "d_model": 64, "n_layers": 1, "n_heads": 1, "vocab_size": 8192,
    "max_seq_len": 64, "position": "none", "rope_fraction": 1.0, "rope_base": 10000.0, "yarn_scale": 1.0,
    "mlp": "none", "mlp_ratio": 4.0, "tie_embeddings": True,
    "cat": {"conv_width": 3, "conv_site": "post", "conv_sharing": "depthwise", "conv_on": "qkv", "conv_bias": False,
            "qk_norm": "none"},
    "attention": {"window": 0},
} | reference_long_conv.DEFAULTS

# ---- Files --------------------------------------------------------------------------------------------------------

DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32}


def load_safetensors(path):
    data = Path(path).read_bytes()
    (header_size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + header_size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + header_size + offset for offset in entry["data_offsets"])
        raw = bytearray(data[begin:end])
        dtype = DTYPES[entry["dtype"]]
        flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def save_safetensors(path, tensors):
    """Stores as F32, in the order given."""
    header, blobs, offset = {}, [], 0
    for name, tensor in tensors.items():
        blob = tensor.detach().to(torch.float32).contiguous().numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + len(blob)]}
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def load_config(checkpoint):
    """Table [model] of a checkpoint folder, with the defaults for what it leaves out."""
    table = tomllib.loads((Path(checkpoint) / "config.toml").read_text(encoding="utf-8"))["model"]
    config = DEFAULTS | table
    for name, default in DEFAULTS.items():
        if isinstance(default, dict):
            config[name] = default | table.get(name, {})
    return config


def mixer_of(config, layer):
    mixers = config["mixer"]
    return mixers if isinstance(mixers, str) else mixers[layer % len(mixers)]


# ---- Parameters: what a checkpoint must hold -----------------------------------------------------------------------


def linear_shapes(name, out_features, in_features):
    return {f"{name}.weight": [out_features, in_features], f"{name}.bias": [out_features]}


def norm_shapes(name, d):
    return {f"{name}.weight": [d], f"{name}.bias": [d]}


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


def mlp_width(config):
    return int(config["mlp_ratio"] * config["d_model"])


def parameter_shapes(config):
    """Name -> shape of every parameter of the model."""
    d, vocab = config["d_model"], config["vocab_size"]
    shapes = {"embed.weight": [vocab, d]}
    if config["position"] == "learned":
        shapes["pos_embed.weight"] = [config["max_seq_len"], d]
    for layer in range(config["n_layers"]):
        block = f"blocks.{layer}"
        shapes |= norm_shapes(f"{block}.norm1", d)
        mixer_shapes, _ = MIXERS[mixer_of(config, layer)]
        shapes |= {f"{block}.mixer.{name}": shape for name, shape in mixer_shapes(config | {"layer": layer}).items()}
        if config["mlp"] != "none":
            shapes |= norm_shapes(f"{block}.norm2", d)
        if config["mlp"] in ("gelu", "swiglu"):
            m = mlp_width(config)
            shapes |= linear_shapes(f"{block}.mlp.fc1", 2 * m if config["mlp"] == "swiglu" else m, d)
            shapes |= linear_shapes(f"{block}.mlp.fc2", d, m)
    shapes |= norm_shapes("final_norm", d)
    if not config["tie_embeddings"]:
        shapes["head.weight"] = [vocab, d]
    return shapes


# ---- Layers --------------------------------------------------------------------------------------------------------


class Scope:
    """The parameters under one prefix."""

    def __init__(self, parameters, prefix=""):
        self.parameters, self.prefix = parameters, prefix

    def __getitem__(self, name):
        return self.parameters[self.prefix + name]

    def under(self, name):
        return Scope(self.parameters, f"{self.prefix}{name}.")

    def linear(self, name, x):
        return x @ self[f"{name}.weight"].T + self[f"{name}.bias"]

    def layer_norm(self, name, x):
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred * centred).mean(-1, keepdim=True)
        return centred / torch.sqrt(variance + NORM_EPS) * self[f"{name}.weight"] + self[f"{name}.bias"]


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


def cat_mixer(config, p, x):
    front = filtered_then_projected if config["cat"]["conv_site"] == "input" else projected_then_filtered
    q, k, v = (split_heads(config, front(config, p, letter, x)) for letter in "qkv")
    scale = q.shape[-1] ** -0.5
    if config["cat"]["qk_norm"] == "l2_head":
        q, k = l2_normalise(q), l2_normalise(k)
        scale = p["beta"].reshape(-1, 1, 1)
    if config["position"] == "rope":
        q, k = rotate(config, q), rotate(config, k)
    return p.linear("out_proj", causal_attention(config, q, k, v, scale))


# Mixer -> (shapes of its parameters, forward pass); config["layer"] is the number of its layer.
MIXERS = {"attention": (attention_shapes, attention), "cat": (cat_shapes, cat_mixer)} | reference_long_conv.MIXERS


def mlp(config, p, x):
    hidden = p.linear("fc1", x)
    if config["mlp"] == "swiglu":
        gate, value = hidden.chunk(2, dim=-1)
        return p.linear("fc2", gate * torch.sigmoid(gate) * value)
    return p.linear("fc2", hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))


def forward(config, parameters, ids):
    """Logits [b, L, V] of token ids [b, L], in evaluation mode and in the precision of the parameters."""
    p = Scope(parameters)
    h = p["embed.weight"][ids]
    if config["position"] == "learned":
        h = h + p["pos_embed.weight"][:ids.shape[1]]
    r = torch.zeros_like(h)
    for layer in range(config["n_layers"]):
        block = p.under(f"blocks.{layer}")
        _, mixer = MIXERS[mixer_of(config, layer)]
        r = r + h
        h = mixer(config | {"layer": layer}, block.under("mixer"), block.layer_norm("norm1", r))
        if config["mlp"] != "none":
            r = r + h
            h = block.layer_norm("norm2", r)
            if config["mlp"] != "identity":
                h = mlp(config, block.under("mlp"), h)
    out = p.layer_norm("final_norm", r + h)
    return out @ p["embed.weight" if config["tie_embeddings"] else "head.weight"].T


def loss_of(logits, targets):
    """Mean cross-entropy over all targets that are not -100."""
    labelled = targets != IGNORE
    rows, wanted = logits[labelled], targets[labelled]
    return (rows.logsumexp(-1) - rows.gather(-1, wanted[:, None])[:, 0]).mean()


def backward(config, parameters, ids, targets):
    """The loss and its gradient for every parameter, zeros where there is none."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    loss = loss_of(forward(config, leaves, ids), targets)
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return loss.item(), dict(zip(leaves, gradients))
