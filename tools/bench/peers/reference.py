"""An independent float64 implementation of Margay's models, on PyTorch: the yardstick of check_reference.py.

It shares no code with Margay and is written for reading, not for speed: each formula stands as on paper, and gradients
come from PyTorch. Supported: backbone "zoology", the mixers of MIXERS with every option, all MLPs.
A model is its configuration (table [model] of config.toml) and a dict of parameters by name.
"""

import json
import math
import struct
import tomllib
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

IGNORE = -100
NORM_EPS = 1e-5  # of every layer norm and RMS norm
L2_EPS = 1e-12

DEFAULTS = {
    "backbone": "zoology", "mixer": "cat", "d_model": 64, "n_layers": 1, "n_heads": 1, "vocab_size": 8192,
    "max_seq_len": 64, "position": "none", "rope_fraction": 1.0, "rope_base": 10000.0, "yarn_scale": 1.0,
    "mlp": "none", "mlp_ratio": 4.0, "tie_embeddings": True,
    "cat": {"conv_width": 3, "conv_site": "post", "conv_sharing": "depthwise", "conv_on": "qkv", "conv_bias": False,
            "qk_norm": "none"},
    "attention": {"window": 0}, "lincat": {"feature_map": "elu1"}, "based": {"feature_dim": 8},
    "mamba": {"expand": 2, "d_state": 16, "d_conv": 4, "head_dim": 64, "chunk": 256},
}

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
    for name in (key for key, value in DEFAULTS.items() if isinstance(value, dict)):
        config[name] = DEFAULTS[name] | table.get(name, {})
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


def based_shapes(config):
    d, features = config["d_model"], config["n_heads"] * config["based"]["feature_dim"]
    return {"q_proj.weight": [features, d], "k_proj.weight": [features, d], "v_proj.weight": [d, d],
            "out_proj.weight": [d, d]}


def delta_net_shapes(config, gated=False):
    d, heads = config["d_model"], config["n_heads"]
    values = 2 * d if gated else d
    shapes = {"q_proj.weight": [d, d], "k_proj.weight": [d, d], "v_proj.weight": [values, d],
              "beta_proj.weight": [heads, d], "conv_q.weight": [d, 4], "conv_k.weight": [d, 4],
              "conv_v.weight": [values, 4], "norm.weight": [values // heads], "out_proj.weight": [d, values]}
    if gated:
        shapes |= {"a_proj.weight": [heads, d], "A_log": [heads], "dt_bias": [heads], "gate.weight": [values, d]}
    return shapes


def retention_shapes(config, gated=False):
    d = config["d_model"]
    features = d // 2 if gated else d
    shapes = {"q_proj.weight": [features, d], "k_proj.weight": [features, d], "v_proj.weight": [d, d],
              "norm.weight": [d // config["n_heads"]], "out_proj.weight": [d, d]}
    if gated:
        shapes |= {"gate.fc1.weight": [16, d]} | linear_shapes("gate.fc2", features, 16)
    return shapes
def mamba_shapes(config):
    d, mamba = config["d_model"], config["mamba"]
    inner, states, rank = mamba["expand"] * d, mamba["d_state"], math.ceil(d / 16)
    return {
        "in_proj.weight": [2 * inner, d], "conv1d.weight": [inner, mamba["d_conv"]], "conv1d.bias": [inner],
        "x_proj.weight": [rank + 2 * states, inner], "dt_proj.weight": [inner, rank], "dt_proj.bias": [inner],
        "A_log": [inner, states], "D": [inner], "out_proj.weight": [d, inner],
    }


def mamba2_shapes(config):
    d, mamba = config["d_model"], config["mamba"]
    inner, states = mamba["expand"] * d, mamba["d_state"]
    heads, filtered = inner // mamba["head_dim"], inner + 2 * states
    return {
        "in_proj.weight": [inner + filtered + heads, d], "conv1d.weight": [filtered, mamba["d_conv"]],
        "conv1d.bias": [filtered], "dt_bias": [heads], "A_log": [heads], "D": [heads], "norm.weight": [inner],
        "out_proj.weight": [d, inner],
    }


def rwkv_shapes(config):
    d = config["d_model"]
    shapes = {name: [d] for name in ("time_decay", "time_first", "time_mix_k", "time_mix_v", "time_mix_r")}
    return shapes | {f"{name}.weight": [d, d] for name in ("key", "value", "receptance", "output")}


def is_mamba(name):
    """Whether a mixer's block has an RMS norm and no second half."""
    return name in ("mamba", "mamba2")


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
        mixer = mixer_of(config, layer)
        shapes |= {f"{block}.norm1.weight": [d]} if is_mamba(mixer) else norm_shapes(f"{block}.norm1", d)
        mixer_shapes, _ = MIXERS[mixer]
        shapes |= {f"{block}.mixer.{name}": shape for name, shape in mixer_shapes(config).items()}
        if is_mamba(mixer):
            continue
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


def delta_rule(q, k, v, decay, beta=None):
    """S_t = S_{t-1} diag(a_t) (I - b_t k_t k_t^T) + b_t v_t k_t^T, o_t = S_t q_t; without beta, + v_t k_t^T only.

    q, k [b, H, L, f], v [b, H, L, dv], decay [b, H, L, f] or [..., 1], beta [b, H, L, 1] -> [b, L, H, dv].
    """
    state = torch.zeros(*v.shape[:2], v.shape[-1], k.shape[-1], dtype=v.dtype)
    outputs = []
    for t in range(q.shape[2]):
        state = state * decay[:, :, t, None, :]
        change = v[:, :, t]
        if beta is not None:
            change = beta[:, :, t] * (change - torch.einsum("bhij,bhj->bhi", state, k[:, :, t]))
        state = state + change[..., None] * k[:, :, t, None, :]
        outputs.append(torch.einsum("bhij,bhj->bhi", state, q[:, :, t]))
    return torch.stack(outputs, dim=1)


def delta_net(config, p, x, gated=False):
    def letter(name):
        y = causal_filter(x @ p[f"{name}_proj.weight"].T, p[f"conv_{name}.weight"])
        return split_heads(config, F.silu(y))

    q, k, v = l2_normalise(letter("q")), l2_normalise(letter("k")), letter("v")
    beta = torch.sigmoid(x @ p["beta_proj.weight"].T).transpose(1, 2)[..., None]
    decay = torch.ones_like(beta)
    if gated:
        rate = -p["A_log"].exp() * F.softplus(x @ p["a_proj.weight"].T + p["dt_bias"])
        decay = rate.exp().transpose(1, 2)[..., None]
    o = p.rms_norm("norm", delta_rule(q, k, v, decay, beta)).flatten(2)
    if gated:
        o = o * F.silu(x @ p["gate.weight"].T)
    return o @ p["out_proj.weight"].T


def retention(config, p, x, gated=False):
    q, k, v = (split_heads(config, x @ p[f"{letter}_proj.weight"].T) for letter in "qkv")
    if gated:
        logits = p.linear("gate.fc2", x @ p["gate.fc1.weight"].T)
        decay = split_heads(config, torch.exp(F.logsigmoid(logits) / 16))
    else:
        heads = torch.arange(config["n_heads"], dtype=x.dtype)
        decay = (1 - 2 ** (-5 - heads)).reshape(1, -1, 1, 1).expand(x.shape[0], -1, x.shape[1], 1)
    return p.rms_norm("norm", delta_rule(q, k, v, decay)).flatten(2) @ p["out_proj.weight"].T
def mamba(config, p, x):
    states, rank = config["mamba"]["d_state"], math.ceil(config["d_model"] / 16)
    x, z = p.linear("in_proj", x).chunk(2, dim=-1)
    x = F.silu(causal_filter(x, p["conv1d.weight"]) + p["conv1d.bias"])
    delta, b, c = p.linear("x_proj", x).split([rank, states, states], dim=-1)
    step = F.softplus(p.linear("dt_proj", delta))
    rates = -torch.exp(p["A_log"])
    state = torch.zeros(x.shape[0], *rates.shape, dtype=x.dtype)
    rows = []
    for t in range(x.shape[1]):
        entering = (step[:, t] * x[:, t])[..., None] * b[:, t, None]
        state = torch.exp(step[:, t, :, None] * rates) * state + entering
        rows.append((state * c[:, t, None]).sum(-1))
    y = (torch.stack(rows, dim=1) + p["D"] * x) * F.silu(z)
    return p.linear("out_proj", y)


def mamba2(config, p, x):
    states, head_dim = config["mamba"]["d_state"], config["mamba"]["head_dim"]
    inner = config["mamba"]["expand"] * config["d_model"]
    heads = inner // head_dim
    z, filtered, step = p.linear("in_proj", x).split([inner, inner + 2 * states, heads], dim=-1)
    filtered = F.silu(causal_filter(filtered, p["conv1d.weight"]) + p["conv1d.bias"])
    x, b, c = filtered.split([inner, states, states], dim=-1)
    step = F.softplus(step + p["dt_bias"])
    # y_t = sum over s <= t of (c_t . b_s) e^(sum of step A over s+1..t) step_s x_s, as one masked matrix for each head.
    total = (-torch.exp(p["A_log"]) * step).cumsum(1)
    exponent = (total[:, :, None] - total[:, None]).permute(0, 3, 1, 2)
    exponent = exponent.masked_fill(torch.ones(exponent.shape[-2:]).triu(1).bool(), -math.inf)
    weights = (c @ b.transpose(1, 2))[:, None] * torch.exp(exponent) * step.transpose(1, 2)[:, :, None]
    by_head = x.reshape(*x.shape[:2], heads, head_dim).transpose(1, 2)
    y = weights @ by_head + p["D"].reshape(-1, 1, 1) * by_head
    y = y.transpose(1, 2).reshape(x.shape)
    return p.linear("out_proj", p.rms_norm("norm", y * F.silu(z)))


def rwkv(config, p, x):
    before = F.pad(x, (0, 0, 1, 0))[:, :-1]

    def mixed(letter, name):
        mix = p[f"time_mix_{letter}"]
        return p.linear(name, mix * x + (1 - mix) * before)

    k, v, r = mixed("k", "key"), mixed("v", "value"), mixed("r", "receptance")
    # Weights of token i in the mean at token t, for every channel: [b, t, i, d].
    length = x.shape[1]
    distance = torch.arange(length)[:, None] - torch.arange(length)
    decay = -torch.exp(p["time_decay"]) * (distance - 1)[..., None]
    exponent = torch.where((distance == 0)[..., None], p["time_first"], decay) + k[:, None]
    weights = exponent.masked_fill((distance < 0)[..., None], -math.inf).softmax(2)
    return p.linear("output", torch.sigmoid(r) * (weights * v[:, None]).sum(2))


# Mixer -> (shapes of its parameters, forward pass).
MIXERS = {
    "attention": (attention_shapes, attention),
    "cat": (cat_shapes, cat_mixer),
    "linear_attention": (attention_shapes, linear_attention_mixer),
    "lincat": (cat_shapes, lincat_mixer),
    "based": (based_shapes, based_mixer),
    "delta_net": (delta_net_shapes, delta_net),
    "gated_delta_net": (partial(delta_net_shapes, gated=True), partial(delta_net, gated=True)),
    "retnet": (retention_shapes, retention),
    "gla": (partial(retention_shapes, gated=True), partial(retention, gated=True)),
    "mamba": (mamba_shapes, mamba),
    "mamba2": (mamba2_shapes, mamba2),
    "rwkv": (rwkv_shapes, rwkv),
}


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
        name = mixer_of(config, layer)
        _, mixer = MIXERS[name]
        r = r + h
        norm1 = block.rms_norm if is_mamba(name) else block.layer_norm
        h = mixer(config, block.under("mixer"), norm1("norm1", r))
        if config["mlp"] != "none" and not is_mamba(name):
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
