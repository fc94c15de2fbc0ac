#!/usr/bin/env python3
"""Compares `margay forward` and `margay backward` with the float64 models of peers/reference.py.

Over a grid of configurations it asks the command for fresh weights, checks their names and shapes, replaces them by
larger random ones (so that every bias, norm and filter counts), and compares logits and every gradient. It also checks
that outputs before t keep every bit when token t changes (up to rounding where Fourier transforms may be used), and
that the number of threads changes no bit.

    build/peer-venv/bin/python tools/bench/check_reference.py build/release/margay [--only TEXT] [--device cuda]

Prints one line per configuration; exit 1 if any of them fails.
"""

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import numpy
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
import reference  # noqa: E402

LOGITS_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3
# A gradient that is zero on paper (a key bias under softmax) is rounding noise in float32: errors count relative to
# its own largest entry, or to this share of the largest entry of all gradients.
NOISE_FLOOR = 1e-3
# How much outputs before a changed token may differ, as a share of the largest logit, where transforms may be used.
TRANSFORM_TOLERANCE = 1e-5
TRANSFORM_MIXERS = {"base_conv", "hyena", "s4d", "h3"}
BATCH = 3


# ---- The grid ------------------------------------------------------------------------------------------------------


def grid():
    """(name, overrides of [model] by dotted key, sequence length), the same list every time."""
    pick = random.Random(5)
    lengths = [1, 2, 7, 13, 33]
    cases = []

    def add(name, length, **overrides):
        model = {"d_model": 16, "n_heads": 2, "vocab_size": 29, "max_seq_len": 40} | overrides
        cases.append((name, {key.replace("__", "."): value for key, value in model.items()}, length))

    for n, (position, mlp) in enumerate(product(["none", "learned", "rope"], ["none", "identity", "gelu", "swiglu"])):
        add(f"attention {position} {mlp}", lengths[n % 5], mixer="attention", position=position, mlp=mlp,
            n_layers=1 + n % 3, n_heads=[1, 2, 4][n // 3 % 3], tie_embeddings=n % 2 == 0,
            attention__window=[0, 3][n // 2 % 2])
    for fraction in (0.25, 0.4, 0.5):
        add(f"attention rope_fraction={fraction}", 13, mixer="attention", position="rope", rope_fraction=fraction,
            rope_base=100.0)
    add("attention window=1", 9, mixer="attention", attention__window=1)
    add("attention one dimension a head", 7, mixer="attention", n_heads=16, position="rope")

    letters = ["qkv", "q", "k", "v", "qk", "kv", "qv"]
    options = product(["post", "input"], ["depthwise", "per_head", "shared"], ["none", "l2_input", "l2_head"],
                      [False, True])
    for n, (site, sharing, norm, bias) in enumerate(options):
        # Drawn first, so that a change of the list above leaves the other configurations as they are.
        on, width, length = letters[n % 7], pick.choice([1, 2, 3, 3, 4, 5, 21]), pick.choice([2, 7, 13, 33, 33])
        add(f"cat {site} {sharing} {norm} {on} W={width}{' bias' if bias else ''}", length, mixer="cat",
            n_layers=pick.choice([1, 1, 2, 3]), n_heads=pick.choice([1, 2, 4]), tie_embeddings=pick.random() < 0.7,
            mlp=pick.choice(["none", "none", "identity", "gelu", "swiglu"]),
            position=pick.choice(["none", "none", "rope", "learned"]), cat__conv_site=site, cat__conv_sharing=sharing,
            cat__qk_norm=norm, cat__conv_bias=bias, cat__conv_on=on, cat__conv_width=width)
    for site, norm in product(["post", "input"], ["l2_input", "l2_head"]):
        add(f"cat {site} {norm} zero first key", 7, mixer="cat", cat__conv_site=site, cat__qk_norm=norm)

    add("cat on top of attention", 13, mixer=["attention", "cat"], n_layers=3, position="rope")
    add("mlp_ratio 1.7", 13, mixer="cat", mlp="swiglu", mlp_ratio=1.7)
    add("attention longer than a tile", 131, mixer="attention", d_model=40, position="rope", n_layers=2)
    add("attention window longer than a tile", 201, mixer="attention", d_model=32, attention__window=70)
    add("cat longer than a tile", 131, mixer="cat", d_model=40, n_layers=2, mlp="gelu")
    add("attention of the benchmark", 64, mixer="attention", d_model=64, n_heads=1, n_layers=2, vocab_size=8192,
        max_seq_len=64, position="learned")
    add("cat of the benchmark", 64, mixer="cat", d_model=64, n_heads=1, vocab_size=8192, cat__conv_width=4)
    for scale, position in product([2.0, 8.0], ["rope", "none"]):
        add(f"cat {position} yarn_scale={scale}", 33, mixer="cat", d_model=64, position=position, yarn_scale=scale,
            max_seq_len=16)

    add_linear(add, letters)
    add_landmark(add, letters)
    add_recurrent(add, lengths)
    add_long_conv(add)
    add_neox(add, letters)
    for mixer in ("mamba", "mamba2"):
        add(f"{mixer} final rms_norm", 33, mixer=mixer, n_layers=2, final_norm="rms_norm", mamba__head_dim=16)
    return cases


def add_linear(add, letters):
    maps = ["elu1", "taylor2", "softmax", "identity"]
    for n, feature_map in enumerate(maps):
        add(f"linear_attention {feature_map}", [13, 33, 7, 131][n], mixer="linear_attention", n_layers=2,
            lincat__feature_map=feature_map, position=["none", "rope"][n % 2], mlp=["none", "gelu"][n // 2])
        add(f"linear_attention {feature_map} several chunks", 201, mixer="linear_attention", d_model=24, n_heads=2,
            lincat__feature_map=feature_map)
    pick = random.Random(6)
    for n, (site, sharing, norm) in enumerate(product(["post", "input"], ["depthwise", "per_head", "shared"],
                                                      ["none", "l2_input", "l2_head"])):
        on, width, length = letters[n % 7], pick.choice([1, 2, 3, 4, 21]), pick.choice([1, 7, 13, 33])
        add(f"lincat {site} {sharing} {norm} {maps[n % 4]}", length, mixer="lincat", n_layers=pick.choice([1, 2]),
            n_heads=pick.choice([1, 2, 4]), position=pick.choice(["none", "rope", "learned"]), cat__conv_site=site,
            cat__conv_sharing=sharing, cat__qk_norm=norm, cat__conv_bias=n % 3 == 0, cat__conv_on=on,
            cat__conv_width=width, lincat__feature_map=maps[n % 4])
    add("lincat of the benchmark", 64, mixer="lincat", d_model=64, n_heads=1, vocab_size=8192, cat__conv_width=4)
    add("lincat of the benchmark, several chunks", 257, mixer="lincat", d_model=64, n_heads=1, cat__conv_width=4)
    for n, length in enumerate([1, 7, 33, 64, 201]):
        add(f"based length {length}", length, mixer="based", n_layers=1 + n % 2, n_heads=[1, 2, 4][n % 3],
            based__feature_dim=[8, 3, 5][n % 3], position=["none", "rope"][n % 2])
    add("based of the benchmark", 256, mixer="based", d_model=64, n_heads=1, n_layers=2)
    add("based after windowed attention", 33, mixer=["attention", "based"], n_layers=3, attention__window=5)


def add_landmark(add, letters):
    gates, counts, sizes = ["grouped", "additive", "none"], [0, 1, 2, 5], [1, 3, 4, 8, 16]
    pick = random.Random(7)
    for n, (gate, count, sharing) in enumerate(product(gates, counts, ["shared", "per_head"])):
        length, size = pick.choice([1, 2, 7, 13, 33, 40]), pick.choice(sizes)
        add(f"lcat {gate} top_k={count} {sharing} block_size={size}", length, mixer="lcat",
            n_layers=pick.choice([1, 1, 2]), n_heads=pick.choice([1, 2, 4]), lcat__gate=gate, lcat__top_k=count,
            lcat__landmark_sharing=sharing, lcat__block_size=size, lcat__landmark_query=pick.random() < 0.5,
            lcat__landmark_key=pick.random() < 0.5, position=pick.choice(["none", "rope", "learned"]))
    for n, (site, sharing, norm) in enumerate(product(["post", "input"], ["depthwise", "per_head", "shared"],
                                                      ["none", "l2_input", "l2_head"])):
        add(f"lcat {site} {sharing} {norm} {gates[n % 3]}", 33, mixer="lcat", lcat__block_size=[4, 5][n % 2],
            lcat__gate=gates[n % 3], lcat__top_k=n % 4, cat__conv_site=site, cat__conv_sharing=sharing,
            cat__qk_norm=norm, cat__conv_bias=n % 3 == 0, cat__conv_on=letters[n % 7], cat__conv_width=2 + n % 3)
    for n, scale in enumerate([2.0, 8.0]):
        add(f"lcat yarn_scale={scale}", 33, mixer="lcat", d_model=64, yarn_scale=scale, max_seq_len=16,
            position=["rope", "none"][n], cat__qk_norm=["none", "l2_head"][n], lcat__block_size=4, lcat__top_k=2)
    for gate, count in product(gates, [0, 3]):
        add(f"lcat {gate} top_k={count} several tiles", 201, mixer="lcat", d_model=32, lcat__gate=gate,
            lcat__top_k=count, lcat__landmark_query=True, lcat__landmark_key=True)
    add("lcat of the benchmark", 64, mixer="lcat", d_model=64, n_heads=1, vocab_size=8192, cat__conv_width=4)
    add("lcat with attention", 33, mixer=["attention", "lcat"], n_layers=3, mlp="gelu", lcat__block_size=4)


def add_recurrent(add, lengths):
    for n, mixer in enumerate(["delta_net", "gated_delta_net", "retnet", "gla"]):
        for i, length in enumerate([1, 7, 33, 70]):
            add(f"{mixer} length {length}", length, mixer=mixer, n_layers=1 + (i + n) % 2, n_heads=[1, 2, 4][(i + n) % 3],
                mlp=["none", "gelu"][i % 2], position=["none", "rope"][i // 2])
        add(f"{mixer} of the benchmark", 64, mixer=mixer, d_model=64, n_heads=4, n_layers=2)
    for n, (expand, states, width) in enumerate(product([1, 2, 3], [1, 16], [1, 4])):
        add(f"mamba expand={expand} N={states} W={width}", lengths[n % 5], mixer="mamba", n_layers=1 + n % 2,
            mamba__expand=expand, mamba__d_state=states, mamba__d_conv=width, d_model=[16, 20][n % 2])
    add("mamba over several chunks", 201, mixer="mamba", d_model=40)
    add("mamba between attention", 13, mixer=["attention", "mamba"], n_layers=3, mlp="gelu", position="learned")
    for n, (expand, states, head_dim) in enumerate(product([1, 2, 3], [1, 16], [4, 16])):
        add(f"mamba2 expand={expand} N={states} P={head_dim}", lengths[n % 5], mixer="mamba2", n_layers=1 + n % 2,
            mamba__expand=expand, mamba__d_state=states, mamba__head_dim=head_dim, mamba__chunk=[256, 1, 8][n % 3])
    add("mamba2 over several chunks", 201, mixer="mamba2", d_model=32, mamba__chunk=70)
    add("mamba2 of the benchmark", 64, mixer="mamba2", d_model=64, n_layers=2, vocab_size=8192)
    for n, mlp in enumerate(["none", "identity", "gelu", "swiglu", "none"]):
        add(f"rwkv {mlp} {lengths[n]}", lengths[n], mixer="rwkv", mlp=mlp, n_layers=1 + n % 3, d_model=[16, 20][n % 2])
    add("rwkv over several chunks", 201, mixer="rwkv", d_model=40)
    add("rwkv between attention", 13, mixer=["attention", "rwkv"], n_layers=3, position="rope")
    add("rwkv of the benchmark", 64, mixer="rwkv", d_model=64, n_layers=2, vocab_size=8192)
    add("mamba of the benchmark", 64, mixer="mamba", d_model=64, n_layers=2, vocab_size=8192)


def add_long_conv(add):
    """Mixers of long convolutions; lengths from 100 on go through transforms."""
    for sizes, length in product(([3, -1], [-1], [1, 4], [60, -1, 2]), (1, 13, 203)):
        add(f"base_conv {sizes} L={length}", length, mixer="base_conv", n_layers=3, base_conv__kernel_size=sizes,
            max_seq_len=210)
    for length, longest in ((1, 40), (2, 40), (13, 40), (203, 203), (150, 300), (203, 90)):
        add(f"hyena L={length} of {longest}", length, mixer="hyena", n_layers=2, max_seq_len=longest,
            hyena__filter_width=[64, 24][length % 2])
    add("hyena filter_embed=9", 33, mixer="hyena", hyena__filter_embed=9)
    add("hyena with gelu", 33, mixer="hyena", mlp="gelu", n_layers=2)
    for n, (init, discretization) in enumerate(product(["lin", "inv", "real"], ["zoh", "bilinear"])):
        for length in ([1, 2, 7, 13, 33, 40][n], 203):
            add(f"s4d {init} {discretization} L={length}", length, mixer="s4d", n_layers=2, s4d__init=init,
                s4d__discretization=discretization, s4d__d_state=[64, 6, 2][n % 3])
    for head_dim, length in product((1, 2, 4), (1, 13, 203)):
        add(f"h3 head_dim={head_dim} L={length}", length, mixer="h3", n_layers=2, h3__head_dim=head_dim,
            h3__d_state=[64, 6][length % 2])
    add("hybrid of long convolutions", 140, mixer=["base_conv", "hyena", "s4d", "h3", "cat"], n_layers=6,
        max_seq_len=140)


def add_neox(add, letters):
    """Backbone gpt_neox; mlp and tie_embeddings must not matter to it."""
    lengths = [1, 7, 13, 33]
    for n, (mixer, position, scale) in enumerate(product(["attention", "cat"], ["none", "learned", "rope"], [1.0, 4.0])):
        add(f"gpt_neox {mixer} {position} yarn={scale}", lengths[n % 4], backbone="gpt_neox", mixer=mixer,
            position=position, yarn_scale=scale, n_layers=1 + n % 3, n_heads=[1, 2, 4][n % 3], mlp=["none", "gelu"][n % 2],
            tie_embeddings=n % 2 == 0, max_seq_len=[40, 24][position != "learned"])
    for fraction in (0.0, 0.25, 0.4, 1.0):
        add(f"gpt_neox rope_fraction={fraction}", 33, backbone="gpt_neox", mixer="attention", position="rope",
            rope_fraction=fraction, rope_base=100.0, mlp_ratio=1.7, attention__window=[0, 3][fraction == 0.4])
    options = product(["post", "input"], ["depthwise", "per_head", "shared"], ["none", "l2_input", "l2_head"])
    for n, (site, sharing, norm) in enumerate(options):
        on = "qkv" if n % 2 == 0 else letters[n % 7]
        add(f"gpt_neox cat {site} {sharing} {norm} {on}", lengths[n % 4], backbone="gpt_neox", mixer="cat",
            n_layers=1 + n % 2, n_heads=[2, 4, 1][n % 3], position=["rope", "none"][n // 3 % 2], cat__conv_site=site,
            cat__conv_sharing=sharing, cat__qk_norm=norm, cat__conv_bias=n % 4 == 0, cat__conv_on=on,
            cat__conv_width=[21, 3, 1][n // 2 % 3])
    add("gpt_neox cat on top of attention", 33, backbone="gpt_neox", mixer=["attention", "cat"], n_layers=3)
    for mixer in ("attention", "cat"):
        add(f"gpt_neox {mixer} of pythia-14m's shape", 70, backbone="gpt_neox", mixer=mixer, d_model=128, n_layers=6,
            n_heads=4, position="rope", rope_fraction=0.25, vocab_size=512, cat__conv_width=21)


def random_weights(shapes, generator, zero_first_key):
    """Weights of ordinary size for every kind of parameter, in shuffled order."""
    weights = {}
    for name in sorted(shapes, key=lambda name: torch.rand(1, generator=generator).item()):
        normal = torch.randn(shapes[name], generator=generator, dtype=torch.float64)
        if name.endswith("beta"):
            weights[name] = 3 + 0.3 * normal
        elif name.endswith((".D", "A_log")):
            weights[name] = 0.5 + 0.5 * normal
        elif name.endswith("dt_bias"):
            weights[name] = normal
        elif "norm" in name and name.endswith("weight"):
            weights[name] = 1 + 0.3 * normal
        elif name.endswith("log_dt"):
            weights[name] = -3 + normal
        elif name.endswith("log_A_real"):
            weights[name] = -0.7 + 0.5 * normal
        elif name.endswith("A_imag"):
            weights[name] = 10 * normal
        elif name.endswith("freq"):
            weights[name] = 1 + 0.3 * normal
        elif name.endswith("bias"):
            weights[name] = 0.3 * normal
        elif "embed" in name:
            weights[name] = normal
        elif "conv_" in name:
            weights[name] = 0.6 * normal
            if zero_first_key and "conv_k" in name:
                weights[name][..., 0] = 0  # a delay: the first filtered key is a zero row
        else:
            weights[name] = normal / math.sqrt(shapes[name][-1])
    return {name: value.to(torch.float32).to(torch.float64) for name, value in weights.items()}


# ---- One configuration ---------------------------------------------------------------------------------------------


class Mismatch(Exception):
    pass


class Command:
    def __init__(self, binary, device):
        self.binary, self.device = binary, device

    def __call__(self, verb, *arguments, threads=2):
        command = [self.binary, verb, *map(str, arguments), "--device", self.device, "--threads", str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise Mismatch(f"margay {verb}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout


def toml_value(value):
    return json.dumps(value)  # strings, numbers, booleans and lists of them are written alike


def initialise(margay, folder, overrides):
    """A checkpoint with fresh weights; half of the keys go through the file, half through the command line."""
    keys = list(overrides)
    in_file = keys[::2]
    tables = {}
    for key in in_file:
        table, _, name = f"model.{key}".rpartition(".")
        tables.setdefault(table, []).append(f"{name} = {toml_value(overrides[key])}\n")
    text = "".join(f"[{table}]\n{''.join(lines)}" for table, lines in sorted(tables.items()))
    (folder / "config.toml").write_text(text, encoding="utf-8")
    arguments = [f"model.{key}={toml_value(overrides[key])}" for key in keys if key not in in_file]
    margay("init", folder / "config.toml", *arguments, "--out", folder / "checkpoint")
    return folder / "checkpoint"


def check_names(tensors, shapes):
    found = {name: list(value.shape) for name, value in tensors.items()}
    if found != shapes:
        missing, extra = sorted(shapes.keys() - found.keys()), sorted(found.keys() - shapes.keys())
        wrong = [f"{name} {found[name]} instead of {shapes[name]}" for name in sorted(shapes.keys() & found.keys())
                 if found[name] != shapes[name]]
        raise Mismatch(f"parameters: missing {missing}, extra {extra}, wrong shape {wrong}")


def relative_error(got, wanted, floor=0.0):
    if not torch.isfinite(got).all():
        return math.inf
    scale = max(wanted.abs().max().item(), floor, 1e-300)
    return (got.to(torch.float64) - wanted).abs().max().item() / scale


def compare_logits(margay, checkpoint, folder, ids, config, weights):
    numpy.save(folder / "inputs.npy", ids.numpy().astype(numpy.int32))
    margay("forward", checkpoint, "--inputs", folder / "inputs.npy", "--out", folder / "logits.npy")
    logits = numpy.load(folder / "logits.npy")
    wanted = reference.forward(config, weights, ids)
    if logits.dtype != numpy.float32 or logits.shape != tuple(wanted.shape):
        raise Mismatch(f"logits are {logits.dtype}{list(logits.shape)}, not float32{list(wanted.shape)}")

    t = ids.shape[1] // 2
    changed = ids.clone()
    changed[:, t] = (changed[:, t] + 1) % config["vocab_size"]
    numpy.save(folder / "changed.npy", changed.numpy().astype(numpy.int32))
    margay("forward", checkpoint, "--inputs", folder / "changed.npy", "--out", folder / "changed_logits.npy")
    after = numpy.load(folder / "changed_logits.npy")
    mixers = {reference.mixer_of(config, layer) for layer in range(config["n_layers"])}
    if mixers & TRANSFORM_MIXERS:
        same = numpy.abs(after[:, :t] - logits[:, :t]).max(initial=0) <= TRANSFORM_TOLERANCE * numpy.abs(logits).max()
    else:
        same = after[:, :t].tobytes() == logits[:, :t].tobytes()
    if not same:
        raise Mismatch(f"logits before token {t} change with it")
    return relative_error(torch.from_numpy(logits), wanted)


def compare_gradients(margay, checkpoint, folder, ids, targets, config, weights):
    """The largest relative error over all gradients and the name of its parameter."""
    numpy.save(folder / "targets.npy", targets.numpy().astype(numpy.int32))
    arguments = [checkpoint, "--inputs", folder / "inputs.npy", "--targets", folder / "targets.npy", "--out"]
    printed = margay("backward", *arguments, folder / "grads.safetensors")
    margay("backward", *arguments, folder / "grads3.safetensors", threads=3)
    if (folder / "grads.safetensors").read_bytes() != (folder / "grads3.safetensors").read_bytes():
        raise Mismatch("gradients differ between 2 and 3 threads")

    wanted_loss, wanted = reference.backward(config, weights, ids, targets)
    words = printed.replace("=", " ").replace(":", " ").split()
    loss = float(words[words.index("loss") + 1])
    if abs(loss - wanted_loss) > 1e-5 * abs(wanted_loss) + 1e-6:
        raise Mismatch(f"loss is {loss}, not {wanted_loss:.8g}")
    gradients = reference.load_safetensors(folder / "grads.safetensors")
    check_names(gradients, {name: list(value.shape) for name, value in wanted.items()})
    floor = NOISE_FLOOR * max(value.abs().max().item() for value in wanted.values())
    return max((relative_error(gradients[name], wanted[name], floor), name) for name in wanted)


def check(margay, name, overrides, length, folder, seed):
    generator = torch.Generator().manual_seed(seed)
    checkpoint = initialise(margay, folder, overrides)
    config = reference.load_config(checkpoint)
    shapes = reference.parameter_shapes(config)
    fresh = reference.load_safetensors(checkpoint / "model.safetensors")
    check_names(fresh, shapes)

    ids = torch.randint(0, config["vocab_size"], (BATCH, length), generator=generator)
    targets = torch.randint(0, config["vocab_size"], (BATCH, length), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < 0.5] = reference.IGNORE
    # At least one label, and one that a tied head does not find by itself: where the model is almost sure, gradients are
    # differences of a probability and 1, which float32 rounds.
    targets[0, -1] = (ids[0, -1] + 1) % config["vocab_size"]
    fresh = {parameter: value.to(torch.float64) for parameter, value in fresh.items()}
    fresh_error = compare_logits(margay, checkpoint, folder, ids, config, fresh)
    if fresh_error > LOGITS_TOLERANCE:
        raise Mismatch(f"logits with the initial weights: relative error {fresh_error:.1e}")

    weights = random_weights(shapes, generator, zero_first_key="zero first key" in name)
    reference.save_safetensors(checkpoint / "model.safetensors", weights)
    logits_error = compare_logits(margay, checkpoint, folder, ids, config, weights)
    gradient_error, worst = compare_gradients(margay, checkpoint, folder, ids, targets, config, weights)
    return logits_error, gradient_error, worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("margay", help="the margay command")
    parser.add_argument("--only", default="", metavar="TEXT", help="configurations whose name contains TEXT")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    margay = Command(arguments.margay, arguments.device)

    failures, count = 0, 0
    print(f"{'configuration':44} {'layers':>6} {'length':>6} {'logits':>8} {'gradient':>8}  largest at")
    for seed, (name, overrides, length) in enumerate(grid()):
        if arguments.only not in name:
            continue
        count += 1
        row = f"{name:44} {overrides.get('n_layers', 1):6} {length:6}"
        try:
            with tempfile.TemporaryDirectory() as folder:
                logits, gradient, worst = check(margay, name, overrides, length, Path(folder), seed)
            good = logits <= LOGITS_TOLERANCE and gradient <= GRADIENT_TOLERANCE
            print(f"{row} {logits:8.1e} {gradient:8.1e}  {worst}{'' if good else '  FAILED'}", flush=True)
        except Mismatch as mismatch:
            good = False
            print(f"{row}  FAILED: {mismatch}", flush=True)
        failures += not good
    print(f"{count - failures} of {count} configurations agree (logits to {LOGITS_TOLERANCE:g}, gradients to "
          f"{GRADIENT_TOLERANCE:g})")
    return 1 if failures or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
