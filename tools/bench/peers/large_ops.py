#!/usr/bin/env python3
"""PyTorch's side of the rows large/OP/forward and /forward+backward: prints a JSON object.

The same shapes as Margay's. Rows that end in -bf16 have tensors of bf16 here, PyTorch's fastest form; attention is
scaled_dot_product_attention with the backend that it picks. TF32 is off. Each timed call ends in a synchronisation.
"""

import argparse
import json
import resource
import statistics
import time

import torch
import torch.nn.functional as F

BATCH, LENGTH, WIDTH, WORDS = 8, 4096, 1024, 32768


def normal(options, *shape, gradient=True):
    dtype = torch.bfloat16 if options.rounds else torch.float32
    return torch.randn(shape, device=options.device, dtype=dtype).requires_grad_(gradient)


def attention(options, dh):
    inputs = [normal(options, 4, 16, LENGTH, dh) for _ in range(3)]
    return inputs, lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)


def cross_entropy(options):
    logits = normal(options, BATCH * LENGTH * WIDTH // WORDS, WORDS)
    targets = torch.randint(WORDS, (logits.shape[0],), device=options.device)
    return [logits], lambda x: F.cross_entropy(x, targets)


def conv(options):
    """Channels last, as Margay has them, hence the transposed views."""
    return [normal(options, BATCH, LENGTH, WIDTH), normal(options, WIDTH, 1, 4)], lambda x, w: F.conv1d(
        x.transpose(1, 2), w, padding=3, groups=WIDTH)[..., :LENGTH].transpose(1, 2)


def layer_norm(options):
    inputs = [normal(options, BATCH, LENGTH, WIDTH), normal(options, WIDTH), normal(options, WIDTH)]
    return inputs, lambda x, w, b: F.layer_norm(x, (WIDTH,), w, b)


def rms_norm(options):
    return [normal(options, BATCH, LENGTH, WIDTH), normal(options, WIDTH)], lambda x, w: F.rms_norm(x, (WIDTH,), w, 1e-5)


def swiglu(options):
    def call(x):
        a, b = x.chunk(2, -1)
        return F.silu(a) * b

    return [normal(options, BATCH, LENGTH, WIDTH)], call


def fft_conv(options):
    """Over twice the length, so that nothing comes round; channels last, as Margay has them."""
    def call(u, kernel, skip):
        spectrum = torch.fft.rfft(u, 2 * LENGTH, dim=1) * torch.fft.rfft(kernel, 2 * LENGTH, dim=1).T
        return torch.fft.irfft(spectrum, 2 * LENGTH, dim=1)[:, :LENGTH] + u * skip

    return [normal(options, BATCH, LENGTH, WIDTH), normal(options, WIDTH, LENGTH), normal(options, WIDTH)], call


OPS = {
    "matmul-4096": lambda o: ([normal(o, 4096, 4096), normal(o, 4096, 4096)], torch.matmul),
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "swiglu": swiglu,
    "fft_conv-L4096": fft_conv,
    "conv1d_causal-W4": conv,
    "cross_entropy-32k": cross_entropy,
    "causal_attention-L4096-dh64": lambda o: attention(o, 64),
    "causal_attention-L4096-dh128": lambda o: attention(o, 128),
}
ROWS = ["copy", "adamw_step"] + [f"{op}{form}/{passes}" for op in OPS for form in ("", "-bf16")
                                 for passes in ("forward", "forward+backward")]


def step_of(options):
    """What is timed."""
    name = options.row.removeprefix("large/")
    if name == "copy":
        source = normal(options, BATCH * LENGTH * WIDTH, gradient=False)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)
    if name == "adamw_step":
        parameter = normal(options, BATCH * LENGTH * WIDTH)
        parameter.grad = torch.randn_like(parameter)
        return torch.optim.AdamW([parameter], lr=1e-3, weight_decay=0.1, fused=True).step
    op, passes = name.split("/")
    inputs, call = OPS[op.removesuffix("-bf16")](options)
    if passes == "forward":
        return torch.no_grad()(lambda: call(*inputs))
    with torch.no_grad():
        seed = torch.ones_like(call(*inputs))

    def both():
        torch.autograd.grad(call(*inputs), inputs, seed)

    return both


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", required=True, choices=[f"large/{row}" for row in ROWS])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=5, help="calls before the time starts")
    parser.add_argument("--steps", type=int, default=5, help="timed calls, at least")
    parser.add_argument("--seconds", type=float, default=2, help="timed seconds, at least")
    options = parser.parse_args()
    options.rounds = "-bf16" in options.row
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    step = step_of(options)
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    times = []
    for _ in range(options.warmup):
        step()
    wait()
    while len(times) < options.steps or sum(times) < options.seconds:
        started = time.perf_counter()
        step()
        wait()
        times.append(time.perf_counter() - started)
    print(json.dumps({
        "name": options.row, "form": "full", "compiled": False, "median_ms": 1000 * statistics.median(times),
        "min_ms": 1000 * min(times), "steps": len(times),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "import_rss_bytes": imported,
        "torch": torch.__version__, "threads": options.threads}))


if __name__ == "__main__":
    main()
