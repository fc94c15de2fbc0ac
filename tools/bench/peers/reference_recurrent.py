"""Mixers with a state for reference.py: token by token, or as one masked matrix of weights."""

import math
from functools import partial

import torch
import torch.nn.functional as F

from reference_layers import causal_filter, l2_normalise, linear_shapes, split_heads


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


MIXERS = {
    "delta_net": (delta_net_shapes, delta_net),
    "gated_delta_net": (partial(delta_net_shapes, gated=True), partial(delta_net, gated=True)),
    "retnet": (retention_shapes, retention),
    "gla": (partial(retention_shapes, gated=True), partial(retention, gated=True)),
    "mamba": (mamba_shapes, mamba),
    "mamba2": (mamba2_shapes, mamba2),
    "rwkv": (rwkv_shapes, rwkv),
}
