#!/usr/bin/env python3
"""Starts a new op: its header, its .cpp and its CPU kernel, in the form of rms_norm.

    tools/new_op.py NAME [ROOT]       e.g. tools/new_op.py log_cosh
    tools/new_op.py --self-test       makes one aside, checks its format and includes, and compiles it

What comes out compiles and passes the table test as the identity y = x over rows. Then: say in the header what the op
computes, write samples (odd sizes, axes of size 1 and 0, extremes), derive the gradient in the kernel's comment, and
write both kernels. No list has to be edited; CMake finds the files. The CUDA kernel, ops/cuda/NAME.cu, comes last.
"""

import keyword
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HEADER = """\
#pragma once
#include "engine/launch.h"

namespace margay {

/// One sentence that says what it is: y = x.
/// x [..., C] -> y [..., C], contiguous. Say in which dtype sums run, what throws OpError, and the paper's equation.
Tensor @op@(const Tensor& x);

namespace kernels {

template <class T>
struct @Op@Fwd {
  const T* x;
  T* y;
  int64_t rows, C;
};
template <class T>
struct @Op@Bwd {
  const T *x, *dy;
  T* dx;
  int64_t rows, C;
};
template <class T>
void run(Cpu, const @Op@Fwd<T>&);
template <class T>
void run(Cpu, const @Op@Bwd<T>&);

}  // namespace kernels
}  // namespace margay
"""

SOURCE = """\
#include "ops/@op@.h"

namespace margay {
namespace {

const Op op{"@op@", [] {
              const auto call = [](const Tensors& in) { return Tensors{@op@(in[0])}; };
              return Samples{{.inputs = {real({2, 3, 37})}, .call = call},
                             {.inputs = {real({4, 1})}, .call = call, .name = "width 1"},
                             {.inputs = {real({0, 4})}, .call = call, .name = "no rows"}};
            }};

}  // namespace

Tensor @op@(const Tensor& x) {
  op.require_float("x", x);
  op.require(x.ndim() >= 1, "x", x, "at least 1-D");
  const int64_t C = x.dim(-1), rows = C ? x.numel() / C : 0;
  const Tensor input = x.contiguous(), y = empty_like(x);
  op.launch<kernels::@Op@Fwd>(x, [&]<class T>(kernels::@Op@Fwd<T>& a) {
    a = {input.data<T>(), y.data<T>(), rows, C};
  });
  return op.record(y, {x}, [x = Saved(input), rows, C](const Tensor& dy) {
    const Tensor dx = empty_like(x);
    op.launch<kernels::@Op@Bwd>(x, [&]<class T>(kernels::@Op@Bwd<T>& a) {
      a = {x->data<T>(), dy.data<T>(), dx.data<T>(), rows, C};
    });
    return Tensors{dx};
  });
}

}  // namespace margay
"""

CPU_KERNEL = """\
#include "ops/@op@.h"

#include "ops/cpu/simd.h"

namespace margay::kernels {

template <class T>
void run(Cpu cpu, const @Op@Fwd<T>& a) {
  using Vec = simd::Vec<T>;
  parallel_ranges(cpu, a.rows, 256, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T* x = a.x + r * a.C;
      T* y = a.y + r * a.C;
      for (int64_t c = 0; c < a.C; c += Vec::size) Vec::load(x + c, a.C - c).store(y + c, a.C - c);
    }
  });
}

// y = x: dx = dy.
template <class T>
void run(Cpu cpu, const @Op@Bwd<T>& a) {
  using Vec = simd::Vec<T>;
  parallel_ranges(cpu, a.rows, 256, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T* dy = a.dy + r * a.C;
      T* dx = a.dx + r * a.C;
      for (int64_t c = 0; c < a.C; c += Vec::size) Vec::load(dy + c, a.C - c).store(dx + c, a.C - c);
    }
  });
}

template void run(Cpu, const @Op@Fwd<float>&);
template void run(Cpu, const @Op@Fwd<double>&);
template void run(Cpu, const @Op@Bwd<float>&);
template void run(Cpu, const @Op@Bwd<double>&);

}  // namespace margay::kernels
"""

FILES = {"ops/{}.h": HEADER, "ops/{}.cpp": SOURCE, "ops/cpu/{}.cpp": CPU_KERNEL}
TAKEN = {"run", "op", "kernels", "margay", "int", "float", "double", "bool", "auto", "switch", "template", "union"}


class Refused(Exception):
    pass


def make_op(name, root):
    """Writes the files of op `name`; returns their paths. Overwrites nothing."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name) or name in TAKEN:
        raise Refused(f"an op is named like rms_norm, not {name!r}")
    if not (root / "ops" / "cpu").is_dir():
        raise Refused(f"{root} has no ops/cpu: is it the root of the repository?")
    camel = "".join(part.capitalize() for part in name.split("_"))
    texts = {root / path.format(name): text.replace("@op@", name).replace("@Op@", camel)
             for path, text in FILES.items()}
    for path in texts:
        if path.exists():
            raise Refused(f"{path} already exists")
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    if shutil.which("clang-format"):  # how lines break depends on the length of the name
        style = Path(__file__).resolve().parent.parent / ".clang-format"
        subprocess.run(["clang-format", "-i", f"--style=file:{style}", *texts], check=False)
    return list(texts)


def self_test():
    repository = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(repository / "engine", root / "engine")
        (root / "ops/cpu").mkdir(parents=True)
        shutil.copy(repository / "ops/cpu/simd.h", root / "ops/cpu")
        name = "made_up_op_of_the_self_test"
        made = make_op(name, root)
        for refused in (name, "RmsNorm", "rms-norm", "9lives", "", "class", "../x"):
            try:
                make_op(refused, root)
            except Refused:
                continue
            print(f"self-test: {refused!r} was accepted", file=sys.stderr)
            return 1
        checks = [[sys.executable, repository / "tools/check_includes.py", root]]
        if any("@" in path.read_text(encoding="utf-8") for path in made):
            print("self-test: a placeholder was left over", file=sys.stderr)
            return 1
        compiler = shutil.which("c++")
        if compiler:
            checks.append([compiler, "-std=c++20", "-fsyntax-only", "-w", f"-I{root}",
                           "-DMARGAY_OP_SAMPLES=1", *(path for path in made if path.suffix == ".cpp")])
        for command in checks:
            if subprocess.run(command, check=False).returncode != 0:
                print("self-test failed:", *command, file=sys.stderr)
                return 1
    print(f"self-test: {len(made)} files made{' and compiled' if compiler else ''}, their includes as they should be")
    return 0


def main(arguments):
    if arguments == ["--self-test"]:
        return self_test()
    if len(arguments) not in (1, 2) or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        root = Path(arguments[1]) if len(arguments) == 2 else Path(__file__).resolve().parent.parent
        print(*make_op(arguments[0], root), sep="\n")
    except Refused as refused:
        print(f"new_op.py: {refused}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
