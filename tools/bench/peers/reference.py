"""An independent float64 implementation of Margay's models, on PyTorch: the yardstick of check_reference.py.

It shares no code with Margay and is written for reading, not for speed: each formula stands as on paper, and gradients
come from PyTorch. Backbone "zoology" with all MLPs is here, the other one and the mixers are in the files beside it.
A model is its configuration (table [model] of config.toml) and a dict of parameters by name.
"""

import json
import math
import struct
import tomllib
from pathlib import Path

import torch

import reference_attention
import reference_landmark
import reference_long_conv
import reference_neox
import reference_recurrent
from reference_layers import Scope, linear_shapes, norm_shapes
from reference_neox import mixer_of

IGNORE = -100

DEFAULTS = {
    "backbone": "zoology", "mixer": "cat", "d_model": 64, "n_layers": 1, "n_heads": 1, "vocab_size": 8192,
    "max_seq_len": 64, "position": "none", "rope_fraction": 1.0, "rope_base": 10000.0, "yarn_scale": 1.0,
    "mlp": "none", "mlp_ratio": 4.0, "tie_embeddings": True, "final_norm": "layer_norm",
    "cat": {"conv_width": 3, "conv_site": "post", "conv_sharing": "depthwise", "conv_on": "qkv", "conv_bias": False,
            "qk_norm": "none"},
    "attention": {"window": 0}, "lincat": {"feature_map": "elu1"}, "based": {"feature_dim": 8},
    "mamba": {"expand": 2, "d_state": 16, "d_conv": 4, "head_dim": 64, "chunk": 256},
} | reference_landmark.DEFAULTS | reference_long_conv.DEFAULTS

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


# ---- Parameters: what a checkpoint must hold -----------------------------------------------------------------------


# Mixer -> (shapes of its parameters, forward pass); config["layer"] is the number of its layer.
MIXERS = (reference_attention.MIXERS | reference_landmark.MIXERS | reference_recurrent.MIXERS |
          reference_long_conv.MIXERS)


def is_mamba(name):
    """Whether a mixer's block has an RMS norm and no second half."""
    return name in ("mamba", "mamba2")


def mlp_width(config):
    return int(config["mlp_ratio"] * config["d_model"])


def parameter_shapes(config):
    """Name -> shape of every parameter of the model."""
    if config["backbone"] == "gpt_neox":
        return reference_neox.parameter_shapes(config)
    d, vocab = config["d_model"], config["vocab_size"]
    shapes = {"embed.weight": [vocab, d]}
    if config["position"] == "learned":
        shapes["pos_embed.weight"] = [config["max_seq_len"], d]
    for layer in range(config["n_layers"]):
        block = f"blocks.{layer}"
        name = mixer_of(config, layer)
        shapes |= {f"{block}.norm1.weight": [d]} if is_mamba(name) else norm_shapes(f"{block}.norm1", d)
        mixer_shapes, _ = MIXERS[name]
        shapes |= {f"{block}.mixer.{key}": shape for key, shape in mixer_shapes(config | {"layer": layer}).items()}
        if is_mamba(name):
            continue
        if config["mlp"] != "none":
            shapes |= norm_shapes(f"{block}.norm2", d)
        if config["mlp"] in ("gelu", "swiglu"):
            m = mlp_width(config)
            shapes |= linear_shapes(f"{block}.mlp.fc1", 2 * m if config["mlp"] == "swiglu" else m, d)
            shapes |= linear_shapes(f"{block}.mlp.fc2", d, m)
    shapes |= {"final_norm.weight": [d]} if config["final_norm"] == "rms_norm" else norm_shapes("final_norm", d)
    if not config["tie_embeddings"]:
        shapes["head.weight"] = [vocab, d]
    return shapes


def mlp(config, p, x):
    hidden = p.linear("fc1", x)
    if config["mlp"] == "swiglu":
        gate, value = hidden.chunk(2, dim=-1)
        return p.linear("fc2", gate * torch.sigmoid(gate) * value)
    return p.linear("fc2", hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))


def forward(config, parameters, ids):
    """Logits [b, L, V] of token ids [b, L], in evaluation mode and in the precision of the parameters."""
    if config["backbone"] == "gpt_neox":
        return reference_neox.forward(config, parameters, ids)
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
        h = mixer(config | {"layer": layer}, block.under("mixer"), norm1("norm1", r))
        if config["mlp"] != "none" and not is_mamba(name):
            r = r + h
            h = block.layer_norm("norm2", r)
            if config["mlp"] != "identity":
                h = mlp(config, block.under("mlp"), h)
    final_norm = p.rms_norm if config["final_norm"] == "rms_norm" else p.layer_norm
    out = final_norm("final_norm", r + h)
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
