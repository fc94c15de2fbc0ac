#!/usr/bin/env python3
"""PyTorch's side of the rows train/byte_lm-L256 and generate/byte_lm-B*: prints a JSON object.

A language model of bytes: four layers of attention (fused) and MLP, d=256, four heads, learned positions, pre-norm, tied
head. A training step is forward, loss at every position, backward and AdamW (fused) on 16 windows of 256 bytes. A
generation step feeds one byte for each of B texts through caches of keys and values that were allocated beforehand; a
text begins anew, with 128 bytes, where it has reached 640.
"""

import argparse
import json
import resource
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

VOCAB, WIDTH, LAYERS, HEADS, LONGEST, PROMPT = 256, 256, 4, 4, 640, 128


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x, cache=None, position=0):
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        if cache is not None:
            cache[0][:, :, position:position + length] = k
            cache[1][:, :, position:position + length] = v
            k, v = cache[0][:, :, :position + length], cache[1][:, :, :position + length]
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.positions = nn.Embedding(VOCAB, WIDTH), nn.Parameter(torch.randn(LONGEST, WIDTH) * 0.02)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.final_norm = nn.LayerNorm(WIDTH)

    def forward(self, ids, caches=None, position=0):
        h = self.embed(ids) + self.positions[position:position + ids.shape[1]]
        for n, block in enumerate(self.blocks):
            h = block(h, caches[n] if caches else None, position)
        if caches:
            h = h[:, -1]
        return self.final_norm(h) @ self.embed.weight.T


def training_step(options):
    model = Model()
    loss_of = torch.compile(lambda ids, targets: F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())) \
        if options.compile else lambda ids, targets: F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    ids = torch.randint(VOCAB, (16, 257))

    def step():
        loss = loss_of(ids[:, :-1], ids[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return step, 16 * 256


def generation_step(options, batch):
    model = Model().eval()
    caches = [[torch.zeros(batch, HEADS, LONGEST, WIDTH // HEADS) for _ in range(2)] for _ in range(LAYERS)]
    prompt, following = torch.randint(VOCAB, (batch, PROMPT)), torch.randint(VOCAB, (batch, 1))
    logits_of = torch.compile(model, dynamic=True) if options.compile else model
    position = LONGEST

    @torch.inference_mode()
    def step():
        nonlocal position
        if position == LONGEST:
            model(prompt, caches, 0)
            position = PROMPT
        logits_of(following, caches, position)
        position += 1

    return step, batch


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", required=True, choices=["train/byte_lm-L256", "generate/byte_lm-B1",
                                                         "generate/byte_lm-B16"])
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=5, help="steps before the time starts")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, at least")
    parser.add_argument("--seconds", type=float, default=2, help="timed seconds, at least")
    options = parser.parse_args()
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    if options.row.startswith("train/"):
        step, tokens = training_step(options)
    else:
        step, tokens = generation_step(options, int(options.row.rpartition("-B")[2]))
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
