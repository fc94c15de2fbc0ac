#!/usr/bin/env python3
"""Compares logits with the transformers package, in both directions.

It makes small random checkpoints of GPTNeoXForCausalLM, MambaForCausalLM and Mamba2ForCausalLM, imports them with
`margay import` and compares the logits of `margay forward` with the package's own (in float64 for GPT-NeoX; its Mamba
models compute norms in float32 whatever is asked for); exports them again and wants the same tensors bit for bit; and
exports checkpoints that Margay made for the package to load. The package is needed for nothing else.

    build/peer-venv/bin/pip install transformers
    build/peer-venv/bin/python tools/check_transformers.py build/release/margay

Prints one line per configuration; exit 1 if any of them fails.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
import numpy  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import GPTNeoXConfig, Mamba2Config, MambaConfig  # noqa: E402

TOLERANCE = 1e-4  # of the largest logit
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def neox(rotary_pct=0.25, base=10000.0, **sizes):
    sizes = {"vocab_size": 131, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
             "intermediate_size": 256, "max_position_embeddings": 96} | sizes
    return GPTNeoXConfig(rope_parameters={"rope_type": "default", "rope_theta": base,
                                          "partial_rotary_factor": rotary_pct}, **sizes)


def mamba(**sizes):
    return MambaConfig(**({"vocab_size": 131, "hidden_size": 48, "num_hidden_layers": 3} | sizes))


def mamba2(**sizes):
    return Mamba2Config(**({"vocab_size": 131, "hidden_size": 64, "num_hidden_layers": 3, "num_heads": 8, "head_dim": 16,
                            "n_groups": 1, "state_size": 24} | sizes))


# Name, configuration, dtype of the file, largest shard, tokens.
IMPORTS = [
    ("GPT-NeoX", neox(), "f32", None, 70),
    ("GPT-NeoX, f16", neox(), "f16", None, 33),
    ("GPT-NeoX, bf16", neox(), "bf16", None, 33),
    ("GPT-NeoX, shards", neox(num_hidden_layers=4), "f32", "200KB", 33),
    ("GPT-NeoX, all of a head rotated, base 500", neox(rotary_pct=1.0, base=500.0), "f32", None, 96),
    ("GPT-NeoX, one head, other sizes", neox(num_attention_heads=1, intermediate_size=100, vocab_size=17), "f32", None, 1),
    ("Pythia-14m's shape", neox(hidden_size=128, num_hidden_layers=6, intermediate_size=512, vocab_size=512), "f16", None,
     96),
    ("Mamba", mamba(), "f32", None, 70),
    ("Mamba, bf16", mamba(), "bf16", None, 33),
    ("Mamba, f16, shards, untied", mamba(tie_word_embeddings=False), "f16", "50KB", 33),
    ("Mamba, other sizes", mamba(hidden_size=40, state_size=7, conv_kernel=3, expand=3), "f32", None, 33),
    ("Mamba-2", mamba2(), "f32", None, 70),
    ("Mamba-2, f16", mamba2(), "f16", None, 33),
    ("Mamba-2, tied, small chunks", mamba2(tie_word_embeddings=True, chunk_size=8), "f32", None, 33),
    ("Mamba-2, other sizes", mamba2(expand=3, num_heads=6, head_dim=32, conv_kernel=3, state_size=5), "bf16", "60KB", 33),
]

# Name, overrides of [model] for `margay init`, tokens.
SMALL = ["model.d_model=48", "model.n_layers=3", "model.vocab_size=59", "model.max_seq_len=64"]
NEOX = ["model.backbone=gpt_neox", "model.mixer=attention", "model.n_heads=4", "model.mlp=gelu"]
EXPORTS = [
    ("gpt_neox, RoPE", [*NEOX, "model.position=rope", "model.rope_fraction=0.25"], 50),
    ("gpt_neox, a share that is rounded", [*NEOX, "model.position=rope", "model.rope_fraction=0.45"], 50),
    ("gpt_neox, NoPE", [*NEOX, "model.position=none", "model.mlp_ratio=1.7"], 50),
    ("mamba", ["model.mixer=mamba", "model.final_norm=rms_norm"], 50),
    ("mamba, untied", ["model.mixer=mamba", "model.final_norm=rms_norm", "model.tie_embeddings=false"], 50),
    ("mamba2", ["model.mixer=mamba2", "model.final_norm=rms_norm", "model.mamba.head_dim=16", "model.mamba.d_state=20"],
     50),
]


class Mismatch(Exception):
    pass


def run(binary, *arguments):
    done = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise Mismatch(f"margay {arguments[0]}: exit {done.returncode}: {done.stderr.strip()}")


def forward(binary, checkpoint, ids, folder):
    numpy.save(folder / "inputs.npy", ids.numpy().astype(numpy.int32))
    run(binary, "forward", checkpoint, "--inputs", folder / "inputs.npy", "--out", folder / "logits.npy")
    return torch.from_numpy(numpy.load(folder / "logits.npy")).double()


def package_logits(folder, ids):
    """What the package computes of the weights in a folder, in float64 from the values as stored."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    dtype = torch.float64 if "GPTNeoX" in type(model).__name__ else torch.float32
    with torch.no_grad():
        return model.to(dtype).eval()(ids, use_cache=False).logits.double()


def randomised(config, dtype):
    """A model whose biases, norms and time constants are not at their initial values."""
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            spread = 0.1 if "A_log" in name or "dt" in name else 0.3 if value.ndim == 1 else 0.05
            value += spread * torch.randn_like(value)
    return model.to(dtype)


def relative_error(got, wanted):
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


def tensors_of(folder):
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def check_import(binary, config, dtype, shard, length, folder):
    model = randomised(config, DTYPES[dtype])
    model.save_pretrained(folder / "hf", **({"max_shard_size": shard} if shard else {}))
    files = len(list((folder / "hf").glob("*.safetensors")))
    if shard and files < 2:
        raise Mismatch("there is only one shard")
    ids = torch.randint(0, config.vocab_size, (2, length))
    wanted = package_logits(folder / "hf", ids)
    run(binary, "import", folder / "hf", "--out", folder / "checkpoint")
    got = forward(binary, folder / "checkpoint", ids, folder)
    errors = [relative_error(got, wanted)]
    if config.model_type == "gpt_neox":
        run(binary, "import", folder / "hf", "--add-conv", 21, "--out", folder / "cat")
        if not torch.equal(forward(binary, folder / "cat", ids, folder), got):
            raise Mismatch("added filters change the logits")
    run(binary, "export", folder / "checkpoint", "--out", folder / "back")
    before, after = tensors_of(folder / "hf"), tensors_of(folder / "back")
    same = before.keys() == after.keys() and all(
        before[name].dtype == after[name].dtype and torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8))
        for name in before)
    if not same:
        raise Mismatch("export gives other tensors than import took")
    errors.append(relative_error(package_logits(folder / "back", ids), wanted))
    return max(errors)


def check_export(binary, overrides, length, folder):
    (folder / "model.toml").write_text("[model]\n", encoding="utf-8")
    run(binary, "init", folder / "model.toml", *SMALL, *overrides, "--out", folder / "checkpoint")
    ids = torch.randint(0, 59, (2, length))
    got = forward(binary, folder / "checkpoint", ids, folder)
    run(binary, "export", folder / "checkpoint", "--out", folder / "hf")
    return relative_error(got, package_logits(folder / "hf", ids))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("margay", help="the margay command")
    binary = parser.parse_args().margay
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(7)
    print(f"transformers {transformers.__version__}, PyTorch {torch.__version__}")
    checks = [(f"import {name}", check_import, (config, dtype, shard, length))
              for name, config, dtype, shard, length in IMPORTS]
    checks += [(f"export {name}", check_export, (overrides, length)) for name, overrides, length in EXPORTS]
    failures = 0
    for name, check, arguments in checks:
        with tempfile.TemporaryDirectory() as folder:
            try:
                error = check(binary, *arguments, Path(folder))
                good = error <= TOLERANCE
                print(f"{name:50} {error:8.1e}{'' if good else '  FAILED'}", flush=True)
            except Mismatch as mismatch:
                good = False
                print(f"{name:50}  FAILED: {mismatch}", flush=True)
        failures += not good
    print(f"{len(checks) - failures} of {len(checks)} agree: logits to {TOLERANCE:g} of the largest, tensors that were "
          "imported and exported to the bit")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
