#!/usr/bin/env python3
"""Times Margay's training steps against PyTorch's, interleaved, and prints a Markdown table of ratios.

Every measurement is a fresh process that warms up and times its own steps; round after round runs Margay and then each
form of the peer (peers/), so that a drift of the machine meets all sides. A form's allocator is the one
that was fastest in a trial before the rounds. Ratios are taken within a round; medians over the rounds are printed,
with the spread in brackets. Margay's steps include making the examples, the peer's do not. Peak RSS is what the kernel
reports for the whole process; for the peer, what importing PyTorch alone takes is printed beside.

Start is the wall-clock time of a whole process that takes one step and ends, PyTorch's import included.

    tools/bench/setup_peer.sh && tools/bench/compare.py
    tools/bench/compare.py train/cat-L64 --rounds 7 --no-compile
    tools/bench/compare.py --json rows.json && build/peer-venv/bin/python tools/bench/plot.py rows.json docs/images/benchmarks.svg
"""

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
RECALL_PEER, LANGUAGE_PEER = "tools/bench/peers/mqar_step.py", "tools/bench/peers/language_model.py"
LARGE_PEER = "tools/bench/peers/large_ops.py"
LANGUAGE_ROWS = ["train/byte_lm-L256", "generate/byte_lm-B1", "generate/byte_lm-B16"]
GPT_ROWS = ["large/gpt-L1024", "large/gpt-L1024-bf16"]
ROWS = [f"train/{model}-L{length}" for model in ("attention", "cat", "hyena", "s4d", "mamba") for length in (64, 256, 512)] + LANGUAGE_ROWS
LARGE_ROWS = [*GPT_ROWS, "large/copy", "large/adamw_step"] + [
    f"large/{op}/forward+backward"
    for op in ("layer_norm", "rms_norm", "swiglu", "conv1d_causal-W4", "fft_conv-L4096", "cross_entropy-32k")] + [
    f"large/{op}{form}/{passes}" for op in ("matmul-4096", "causal_attention-L4096-dh64", "causal_attention-L4096-dh128")
    for form in ("", "-bf16") for passes in ("forward", "forward+backward")]


class Failed(Exception):
    pass


def run(command, environment):
    """The JSON that the command prints, with the peak resident bytes of its process."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                   env=os.environ | environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        printed, complaints = out.read().decode(errors="replace"), err.read().decode(errors="replace").strip()
    if process.returncode != 0:
        raise Failed(f"exit {process.returncode}: {complaints.splitlines()[-1] if complaints else 'no message'}")
    result = json.loads(printed)
    if isinstance(result, list):
        if len(result) != 1:
            raise Failed(f"{shlex.join(command)} printed {len(result)} rows instead of one")
        result = result[0]
    return result | {"peak": usage.ru_maxrss * 1024, "wall": wall}


# ---- Contenders ----------------------------------------------------------------------------------------------------


@dataclass
class Contender:
    name: str  # "margay", or the peer's form: "full", "gather", each also with ", compiled"
    command: list
    environment: dict = field(default_factory=dict)
    results: list = field(default_factory=list)  # one a round
    start: float = None  # seconds

    def measure(self):
        self.results.append(run(self.command, self.environment))

    def measure_start(self):
        one_step = ["--warmup", "0", "--steps", "1", "--seconds", "0"]
        self.start = min(run([*self.command, *one_step], self.environment)["wall"] for _ in range(2))

    def medians(self):
        return [result["median_ms"] for result in self.results]


def allocators():
    """Name -> environment. PyTorch's time depends much on whether freed memory goes back to the system."""
    keep = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "1099511627776"}
    found = {"glibc": {}, "glibc keeping memory": keep,
             "glibc keeping memory, huge pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} | keep}
    libraries = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    jemalloc = re.search(r"=> (\S*/libjemalloc\.so\.2)$", libraries, re.MULTILINE)
    if jemalloc:
        found["jemalloc"] = {"LD_PRELOAD": jemalloc[1],
                             "MALLOC_CONF": "thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0"}
    return found


def forms(row):
    """Where every position has a label, or none, there is nothing to gather."""
    return ["full"] if row in LANGUAGE_ROWS + LARGE_ROWS else ["full", "gather"]


def peer_command(options, row, form):
    general = ["--device", options.device, "--threads", str(options.cpus)]
    if row in LANGUAGE_ROWS + GPT_ROWS:
        return [options.python, LANGUAGE_PEER, "--row", row, *general]
    if row in LARGE_ROWS:
        return [options.python, LARGE_PEER, "--row", row, *general]
    model, length = re.fullmatch(r"train/(\w+)-L(\d+)", row).groups()
    return [options.python, RECALL_PEER, "--model", model, "--length", length, "--form", form, *general]


def fastest_allocator(command):
    trials = {name: run([*command, "--warmup", "2", "--steps", "3", "--seconds", "1"], environment)["min_ms"]
              for name, environment in allocators().items()}
    best = min(trials, key=trials.get)
    note("  allocators: " + ", ".join(f"{name} {ms:.0f} ms" for name, ms in trials.items()) + f"; {best} it is")
    return allocators()[best]


def has_peer(options):
    return (ROOT / options.python).exists() or shutil.which(options.python) is not None


def contenders(options, row, skipped):
    """Margay first, then the forms of the peer that run here."""
    found = [Contender("margay", [options.margay, "bench", row, "--json", "--device", options.device])]
    if not has_peer(options):
        return found
    for form in forms(row):
        command = peer_command(options, row, form)
        try:
            environment = fastest_allocator(command) if options.device == "cpu" else {}
        except Failed as failure:
            skipped.append(f"{row}, {form}: {failure}")
            continue
        command += ["--seconds", str(options.seconds)]
        found.append(Contender(form, command, environment))
        if options.compile and LARGE_PEER not in command:
            found.append(Contender(f"{form}, compiled", [*command, "--compile"],
                                   environment | {"TORCHINDUCTOR_CACHE_DIR": str(ROOT / "build/peer-cache")}))
    return found


def measure_row(options, row, skipped):
    """All contenders of a row, interleaved; one that fails is left out and named."""
    note(row)
    running = contenders(options, row, skipped)
    for number in range(options.rounds):
        for contender in list(running):
            try:
                contender.measure()
            except (Failed, json.JSONDecodeError) as failure:
                skipped.append(f"{row}, {contender.name}: {failure}")
                running.remove(contender)
        if number == 0:
            for contender in running:
                if contender.name in ("margay", "full"):
                    contender.measure_start()
        note(f"  round {number + 1}: " + ", ".join(f"{c.name} {c.medians()[-1]:.1f} ms" for c in running))
    return {contender.name: contender for contender in running}


def busy_seconds():
    """Processor seconds that the whole machine has worked, and those of this process and its children."""
    ticks = [int(n) for n in Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]]
    everyone = sum(ticks[:3]) + sum(ticks[5:7])  # user, nice, system, irq, softirq
    own = sum(os.times()[:4])
    return everyone / os.sysconf("SC_CLK_TCK"), own


# ---- The report ----------------------------------------------------------------------------------------------------


def note(text):
    print(text, file=sys.stderr, flush=True)


def spread(values, digits):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def milliseconds(contender):
    return spread(contender.medians(), 1) if contender else "-"


def ratio(margay, peer):
    if not (margay and peer):
        return "-"
    return spread([theirs / ours for ours, theirs in zip(margay.medians(), peer.medians())], 2)


def start(contender):
    return f"{1000 * contender.start:.0f}" if contender else "-"


def megabytes(contender):
    if not contender:
        return "-"
    peak = statistics.median(result["peak"] for result in contender.results) / 1e6
    imported = contender.results[0].get("import_rss_bytes")
    return f"{peak:.0f}" + (f" (import {imported / 1e6:.0f})" if imported else "")


def table(measured):
    head = ["row", "Margay ms", "full ms", "gather ms", "compiled ms", "full / Margay", "gather / Margay",
            "compiled / Margay", "RSS Margay MB", "RSS full MB", "RSS gather MB", "start Margay ms", "start PyTorch ms"]
    lines = [head, ["---"] * len(head)]
    for row, by_name in measured.items():
        margay, full, gather = (by_name.get(name) for name in ("margay", "full", "gather"))
        compiled = min((c for name, c in by_name.items() if "compiled" in name),
                       key=lambda c: statistics.median(c.medians()), default=None)
        lines.append([row, *map(milliseconds, (margay, full, gather, compiled)),
                      *(ratio(margay, peer) for peer in (full, gather, compiled)),
                      *map(megabytes, (margay, full, gather)), *map(start, (margay, full))])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def first_line(command):
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip().splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def machine(options, others):
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    versions = "import platform, torch; print('PyTorch', torch.__version__, 'Python', platform.python_version())"
    return "\n".join([
        f"Command: `{shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}`",
        f"Machine: {cpu[1] if cpu else platform.machine()}, {options.cpus} of {os.cpu_count()} cores, "
        f"Linux {platform.release()}, {100 * others:.0f} % of its processor time taken by others meanwhile",
        *([f"GPU: {first_line(['nvidia-smi', '-L'])}"] if options.device == "cuda" else []),
        f"Versions: {first_line([options.margay, '--version'])}; {first_line([options.python, '-c', versions])}",
        f"Medians (smallest-largest) over {options.rounds} interleaved rounds; compiled = the faster of full and "
        "gather under torch.compile.",
    ])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of: {' '.join(ROWS)} (default: these, and on a GPU also: {' '.join(LARGE_ROWS)})")
    parser.add_argument("--margay", default="build/release/margay", help="the command (default: %(default)s)")
    parser.add_argument("--python", default="build/peer-venv/bin/python", help="a Python with PyTorch")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpus", type=int, default=2, help="cores, and threads of each side (default: 2)")
    parser.add_argument("--seconds", type=float, default=3, help="timed seconds of each peer process, at least")
    parser.add_argument("--json", type=Path, help="also write the medians of every round here, for plot.py")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS + LARGE_ROWS):
        parser.error(f"unknown rows: {' '.join(sorted(unknown))}")
    rows = options.rows or (ROWS if options.device == "cpu" else ROWS + LARGE_ROWS)
    usable = sorted(os.sched_getaffinity(0))
    options.cpus = min(options.cpus, len(usable))
    if options.device == "cpu":
        os.sched_setaffinity(0, usable[:options.cpus])  # inherited: both sides count their cores

    skipped = []
    if not has_peer(options):
        skipped.append(f"PyTorch: there is no {options.python}; tools/bench/setup_peer.sh makes it")
    started, (busy_before, own_before) = time.monotonic(), busy_seconds()
    measured = {row: measure_row(options, row, skipped) for row in rows}
    elapsed, (busy_after, own_after) = time.monotonic() - started, busy_seconds()
    others = max(0.0, (busy_after - busy_before) - (own_after - own_before)) / (elapsed * os.cpu_count())
    if others > 0.05:
        note("warning: other work ran meanwhile; PyTorch's spinning threads suffer most from that, so repeat it alone")
    print(machine(options, others), table(measured), sep="\n\n")
    if options.json:
        rows = {row: {name: c.medians() for name, c in by_name.items()} for row, by_name in measured.items()}
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print("\nSkipped:" if skipped else "\nNothing was skipped.")
    for line in skipped:
        print(f"- {line}")
    return 0 if all("margay" in by_name for by_name in measured.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
