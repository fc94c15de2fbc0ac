#!/usr/bin/env python3
"""PyTorch's side of the rows train/byte_lm-*, large/gpt-* and generate/byte_lm-B*: prints a JSON object.

A language model of bytes: four layers of attention (fused) and MLP, d=256, four heads, learned positions, pre-norm, tied
head; and one of the shape of GPT-2 small. A training step is forward, loss at every position, backward and AdamW (fused)
on 16 windows of 256 bytes, or 8 of 1024 words; in rows that end in -bf16 under autocast. A generation step feeds one byte
for each of B texts through caches of keys and values that were allocated beforehand; a text begins anew, with 128 bytes,
where it has reached 640.
"""

import argparse
import json
import resource
import statistics
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

PROMPT = 128


@dataclass
class Shape:
    vocab: int
    width: int
    layers: int
    heads: int
    longest: int
    batch: int = 0  # of a training step
    length: int = 0


BYTES = Shape(vocab=256, width=256, layers=4, heads=4, longest=640, batch=16, length=256)
GPT = Shape(vocab=50304, width=768, layers=12, heads=12, longest=1024, batch=8, length=1024)
TRAINING = {"train/byte_lm-L256": BYTES, "large/gpt-L1024": GPT}


class Block(nn.Module):
    def __init__(self, shape):
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, cache=None, position=0):
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if cache is not None:
            cache[0][:, :, position:position + length] = k
            cache[1][:, :, position:position + length] = v
            k, v = cache[0][:, :, :position + length], cache[1][:, :, :position + length]
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.embed = nn.Embedding(shape.vocab, shape.width)
        self.positions = nn.Parameter(torch.randn(shape.longest, shape.width) * 0.02)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.final_norm = nn.LayerNorm(shape.width)

    def forward(self, ids, caches=None, position=0):
        h = self.embed(ids) + self.positions[position:position + ids.shape[1]]
        for n, block in enumerate(self.blocks):
            h = block(h, caches[n] if caches else None, position)
        if caches:
            h = h[:, -1]
        return self.final_norm(h) @ self.embed.weight.T


def training_step(options):
    shape = TRAINING[options.row.removesuffix("-bf16")]
    model = Model(shape).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    ids = torch.randint(shape.vocab, (shape.batch, shape.length + 1)).to(options.device)
    rounds = options.row.endswith("-bf16")

    def loss_of(ids, targets):
        with torch.autocast(options.device, torch.bfloat16, enabled=rounds):
            return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())

    if options.compile:
        loss_of = torch.compile(loss_of, **({"mode": "reduce-overhead"} if options.device == "cuda" else {}))

    def step():
        loss = loss_of(ids[:, :-1], ids[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return step, shape.batch * shape.length


def generation_step(options, batch):
    shape = BYTES
    model = Model(shape).eval().to(options.device)
    caches = [[torch.zeros(batch, shape.heads, shape.longest, shape.width // shape.heads, device=options.device)
               for _ in range(2)] for _ in range(shape.layers)]
    prompt = torch.randint(shape.vocab, (batch, PROMPT)).to(options.device)
    following = torch.randint(shape.vocab, (batch, 1)).to(options.device)
    logits_of = torch.compile(model, dynamic=True) if options.compile else model
    position = shape.longest

    @torch.inference_mode()
    def step():
        nonlocal position
        if position == shape.longest:
            model(prompt, caches, 0)
            position = PROMPT
        logits_of(following, caches, position)
        position += 1
        if options.device == "cuda":
            torch.cuda.synchronize()

    return step, batch


def main():
    rows = [row + form for row in TRAINING for form in ("", "-bf16")] + ["generate/byte_lm-B1", "generate/byte_lm-B16"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", required=True, choices=rows)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=5, help="steps before the time starts")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, at least")
    parser.add_argument("--seconds", type=float, default=2, help="timed seconds, at least")
    options = parser.parse_args()
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    if options.row.startswith("generate/"):
        step, tokens = generation_step(options, int(options.row.rpartition("-B")[2]))
    else:
        step, tokens = training_step(options)
    for _ in range(options.warmup):
        step()
    times = []
    while len(times) < options.steps or sum(times) < options.seconds:
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    print(json.dumps({
        "name": options.row, "form": "full", "compiled": options.compile, "median_ms": 1000 * statistics.median(times),
        "min_ms": 1000 * min(times), "steps": len(times), "tokens_per_second": tokens / statistics.median(times),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "import_rss_bytes": imported,
        "torch": torch.__version__, "threads": options.threads}))


if __name__ == "__main__":
    main()
