#!/usr/bin/env python3
"""PyTorch's side of the training-step rows: one process times one model in one form and prints a JSON object.

The models are those of Margay's rows train/MODEL-L*: V=8192, d=64, tied head, no MLP; two layers
of attention with learned positions, one layer of CAT with a depthwise filter of width 4 on q, k and v, or two layers of
Hyena, S4D or Mamba. A step is forward, loss, backward and AdamW on a batch of multi-query associative recall in float32. The batches are made
beforehand, outside of the time, and the positions of the labels with them: both favour this side.

Forms: "full" computes logits at every position, the usual code; "gather" only at labelled ones.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
import long_conv_peers  # noqa: E402
import mamba_peer  # noqa: E402

MIXERS = long_conv_peers.MIXERS | {"mamba": mamba_peer.Mamba}
MODELS = ["attention", "cat", *MIXERS]
VOCAB, WIDTH, FILTER_WIDTH = 8192, 64, 4
PAIRS = {64: 4, 128: 8, 256: 16, 512: 64}
DIFFERENT_BATCHES = 8


class SelfAttention(nn.Module):
    """Causal attention of one head; q, k and v come from one product."""

    def __init__(self, d, filter_width=0):
        super().__init__()
        self.qkv = nn.Linear(d, 3 * d)
        self.out_proj = nn.Linear(d, d)
        self.conv = None
        if filter_width:  # torch stores the tap of the current token last
            self.conv = nn.Conv1d(3 * d, 3 * d, filter_width, groups=3 * d, padding=filter_width - 1, bias=False)

    def forward(self, x):
        s = self.qkv(x)
        if self.conv is not None:
            s = self.conv(s.transpose(1, 2))[..., :x.shape[1]].transpose(1, 2)
        q, k, v = s.unsqueeze(1).chunk(3, dim=-1)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1))


def make_mixer(kind, d, length):
    if kind in MIXERS:
        return MIXERS[kind](d, length)
    return SelfAttention(d, FILTER_WIDTH if kind == "cat" else 0)


class Block(nn.Module):
    def __init__(self, kind, d, length):
        super().__init__()
        self.norm = nn.RMSNorm(d, eps=1e-5) if kind == "mamba" else nn.LayerNorm(d)
        self.mixer = make_mixer(kind, d, length)

    def forward(self, r):
        return r + self.mixer(self.norm(r))


class Model(nn.Module):
    def __init__(self, kind, length, vocab=VOCAB, d=WIDTH):
        super().__init__()
        self.embed = nn.Embedding(vocab, d)
        self.positions = nn.Parameter(torch.empty(length, d)) if kind == "attention" else None
        self.blocks = nn.Sequential(*(Block(kind, d, length) for _ in range(1 if kind == "cat" else 2)))
        self.final_norm = nn.LayerNorm(d)
        for parameter in (self.embed.weight, self.positions, *(m.weight for m in self.modules()
                                                               if isinstance(m, nn.Linear))):
            if parameter is not None:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids, labels, rows=None):
        """Mean cross-entropy; `rows` are the flat positions of the labels in the gather form."""
        h = self.embed(ids)
        if self.positions is not None:
            h = h + self.positions
        h = self.final_norm(self.blocks(h)).flatten(0, 1)
        labels = labels.flatten()
        if rows is not None:
            h, labels = h[rows], labels[rows]
        return F.cross_entropy(h @ self.embed.weight.T, labels)


def checkpoint(mixer):
    """The mixer's parameters by name, as in a checkpoint: torch stores the tap of the current token last."""
    return {name: value[:, 0].flip(-1) if name in ("short_conv.weight", "conv1d.weight") else value
            for name, value in mixer.named_parameters()}


def mqar_batch(batch, length, generator, vocab=VOCAB, pairs=None):
    """Key-value pairs, then each key again at a power-law distance; the label there is its value."""
    pairs = pairs or PAIRS[length]
    half = vocab // 2

    def distinct(low, high):
        noise = torch.rand(batch, high - low, generator=generator)
        return low + noise.topk(pairs).indices

    keys, values = distinct(1, half), distinct(half, vocab)
    ids = torch.zeros(batch, length, dtype=torch.int64)
    ids[:, 0:2 * pairs:2], ids[:, 1:2 * pairs:2] = keys, values
    slots = (length - 2 * pairs) // 2
    law = 0.01 * torch.arange(1, slots + 1, dtype=torch.float64) ** -0.99
    chosen = torch.multinomial(law.expand(batch, -1), pairs, generator=generator)
    where = 2 * pairs + 2 * chosen
    ids.scatter_(1, where, keys)
    labels = torch.full((batch, length), -100)
    labels.scatter_(1, where, values)
    return ids, labels, (labels.flatten() >= 0).nonzero().squeeze(1)


def peak_rss_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(options):
    imported = peak_rss_bytes()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(1)
    batches = [mqar_batch(options.batch, options.length, generator) for _ in range(DIFFERENT_BATCHES)]
    batches = [[part.to(options.device) for part in batch] for batch in batches]
    model = Model(options.model, options.length).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    graphs = {"mode": "reduce-overhead"} if options.device == "cuda" else {}  # there compiled means CUDA graphs as well
    loss_of = torch.compile(model, **graphs) if options.compile else model

    def step(n):
        ids, labels, rows = batches[n % DIFFERENT_BATCHES]
        loss = loss_of(ids, labels, rows if options.form == "gather" else None)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    for n in range(options.warmup):
        step(n)
    times = []
    while len(times) < options.steps or sum(times) < options.seconds:
        started = time.perf_counter()
        loss = step(len(times))
        times.append(time.perf_counter() - started)
    return {
        "name": f"train/{options.model}-L{options.length}", "form": options.form, "compiled": options.compile,
        "median_ms": 1000 * statistics.median(times), "min_ms": 1000 * min(times), "steps": len(times),
        "tokens_per_second": options.batch * options.length / statistics.median(times), "loss": loss,
        "peak_rss_bytes": peak_rss_bytes(), "import_rss_bytes": imported, "torch": torch.__version__,
        "threads": options.threads,
    }


def self_test():
    """The loss of all models, in both forms, equals that of reference.py."""
    import reference
    for kind in MODELS:
        length, vocab, d = 24, 50, 16
        torch.manual_seed(3)
        torch.set_default_dtype(torch.float64)
        model = Model(kind, length, vocab, d)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        config = reference.DEFAULTS | {"mixer": kind, "d_model": d, "vocab_size": vocab, "max_seq_len": length,
                                       "n_layers": len(model.blocks),
                                       "position": "learned" if kind == "attention" else "none"}
        weights = {"embed.weight": model.embed.weight, "pos_embed.weight": model.positions,
                   "final_norm.weight": model.final_norm.weight, "final_norm.bias": model.final_norm.bias}
        for n, block in enumerate(model.blocks):
            prefix = f"blocks.{n}"
            weights |= {f"{prefix}.norm1.{part}": value for part, value in block.norm.named_parameters()}
            if kind in MIXERS:
                parameters = checkpoint(block.mixer)
                weights |= {f"{prefix}.mixer.{name}": value for name, value in parameters.items()}
                continue
            for part in ("weight", "bias"):
                weights[f"{prefix}.mixer.out_proj.{part}"] = getattr(block.mixer.out_proj, part)
                for letter, third in zip("qkv", getattr(block.mixer.qkv, part).chunk(3)):
                    weights[f"{prefix}.mixer.{letter}_proj.{part}"] = third
            if block.mixer.conv is not None:
                for letter, third in zip("qkv", block.mixer.conv.weight[:, 0].flip(-1).chunk(3)):
                    weights[f"{prefix}.mixer.conv_{letter}.weight"] = third
        config["cat"] = config["cat"] | {"conv_width": FILTER_WIDTH}
        ids, labels, rows = mqar_batch(3, length, torch.Generator().manual_seed(1), vocab, pairs=3)
        wanted = reference.loss_of(reference.forward(config, weights, ids), labels)
        for got in (model(ids, labels), model(ids, labels, rows)):
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=0)
    print("all models agree with reference.py")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="cat")
    parser.add_argument("--length", type=int, choices=sorted(PAIRS), default=64)
    parser.add_argument("--form", choices=["full", "gather"], default="full")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=5, help="steps before the time starts")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, at least")
    parser.add_argument("--seconds", type=float, default=2, help="timed seconds, at least")
    parser.add_argument("--self-test", action="store_true", help="compare the models with reference.py and exit")
    options = parser.parse_args()
    if options.self_test:
        self_test()
    else:
        print(json.dumps(measure(options)))


if __name__ == "__main__":
    main()
