#!/usr/bin/env bash
# Builds for the GPU of this machine, and says in a short table whether Margay is right and fast on it: the whole test
# suite, training on both devices, compute-sanitizer, and the benchmarks.
#
#   tools/gpu_check.sh [--prefix DIR] [--quick] [--emulated]
#
#   --prefix DIR   where packages are unpacked that are not installed: each .deb by `dpkg -x FILE DIR`
#   --quick        without compute-sanitizer and benchmarks
#   --emulated     on the emulated GPU, which tries out this script and not the kernels
#
# Needs the CUDA Toolkit, CMake, Ninja or make, and the packages that tools/setup.sh installs. Logs are kept in
# build/gpu_check. The exit status is 0 only if every check passed.
# shellcheck disable=SC2317  # functions are called by check()
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
export PATH=$PATH:/usr/local/cuda/bin LC_ALL=C.UTF-8

prefix='' quick=0 emulated=0
while (($#)); do
  case $1 in
    --prefix) prefix=${2:?--prefix needs a folder} && shift ;;
    --quick) quick=1 ;;
    --emulated) emulated=1 ;;
    -h | --help) sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit ;;
    *) echo "gpu_check.sh: unknown argument $1; see --help" >&2 && exit 2 ;;
  esac
  shift
done

readonly BUILD=build/gpu LOGS=build/gpu_check
readonly MARGAY=$BUILD/margay TESTS=$BUILD/tests/margay_tests
mkdir -p "$LOGS"
summary=() failures=0

# note NAME RESULT DETAIL: a line of the closing table.
note() {
  summary+=("$(printf '%-28s %-8s %s' "$1" "$2" "$3")")
  printf '%s\n' "${summary[-1]}"
}

# check NAME COMMAND...: runs it, keeps its output in a log, and notes whether it passed.
check() {
  local name=$1 log="$LOGS/${1// /-}.log" started=$SECONDS
  shift
  if "$@" >"$log" 2>&1 </dev/null; then
    note "$name" passed "$((SECONDS - started)) s"
  else
    note "$name" FAILED "$((SECONDS - started)) s; see $log"
    failures=$((failures + 1))
    return 1
  fi
}

finish() {
  printf '\n--- Summary\n'
  printf '%s\n' "${summary[@]}"
  exit $((failures > 0))
}

# The architecture of the first GPU, as CMake names it: 90 for compute capability 9.0.
architecture() { nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .; }

build() {
  local options=(-S . -B "$BUILD" -DCMAKE_BUILD_TYPE=Release)
  command -v ninja >/dev/null && options+=(-G Ninja)
  if [[ $prefix ]]; then
    options+=("-DCMAKE_PREFIX_PATH=$prefix/usr" "-DCMAKE_LIBRARY_PATH=$prefix/usr/lib/x86_64-linux-gnu")
    options+=("-DCMAKE_INCLUDE_PATH=$prefix/usr/include/x86_64-linux-gnu")
  fi
  if ((emulated)); then
    options+=(-DMARGAY_CUDA=emulated)
  else
    options+=(-DMARGAY_CUDA=on "-DCMAKE_CUDA_ARCHITECTURES=$(architecture)")
  fi
  cmake "${options[@]}" && cmake --build "$BUILD" --parallel "$(nproc)"
}

train() { "$MARGAY" train "$1" --out "$LOGS/runs/$2" --quiet "${@:3}"; }

# The same 50 steps on both devices: the losses of every step differ by less than a thousandth.
same_training() {
  local preset=$1
  rm -rf "$LOGS/runs"
  for device in cpu cuda; do
    train "$preset" "$device" --device "$device" train.steps="$steps" train.eval_every=1000000 \
      task.test_examples=64 train.batch_size=16 || return 1
  done
  python3 - "$LOGS/runs" <<'END'
import json, sys
losses = {device: [json.loads(line)["loss"] for line in open(f"{sys.argv[1]}/{device}/metrics.jsonl")]
          for device in ("cpu", "cuda")}
assert len(losses["cpu"]) == len(losses["cuda"]) > 0
worst = max(abs(a - b) / abs(a) for a, b in zip(losses["cpu"], losses["cuda"]))
print(f"largest relative difference of {len(losses['cpu'])} losses: {worst:.2e}")
sys.exit(worst > 1e-3)
END
}

learns() {
  rm -rf "$LOGS/learns"
  "$MARGAY" train mqar-64-cat --device cuda --out "$LOGS/learns" --quiet &&
    python3 -c 'import json, sys; sys.exit(json.load(open(sys.argv[1]))["accuracy"] < 0.99)' "$LOGS/learns/summary.json"
}

sanitize() { compute-sanitizer --tool "$1" --error-exitcode 1 "$TESTS" --test-case='ops: the GPU agrees*,cuda:*'; }

bench() { "$MARGAY" bench train generate mixer decode op large --device cuda --seconds 1; }

# Beside PyTorch, where a Python on the path has it for this GPU.
has_torch() { python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; }
compare() { tools/bench/compare.py --device cuda --margay "$MARGAY" --python python3 --rounds 2 --seconds 1; }

steps=50
if ((emulated)); then
  steps=3
else
  command -v nvcc >/dev/null || { echo 'gpu_check.sh: there is no nvcc: install the CUDA Toolkit' >&2 && exit 1; }
  nvidia-smi -L >"$LOGS/gpu.log" 2>&1 || { echo 'gpu_check.sh: nvidia-smi finds no GPU' >&2 && exit 1; }
  note GPU found "$(head -n 1 "$LOGS/gpu.log")"
fi
[[ $prefix ]] && export LD_LIBRARY_PATH=$prefix/usr/lib/x86_64-linux-gnu:$prefix/usr/lib/x86_64-linux-gnu/openblas-pthread
check build build || finish
if ((emulated)); then
  check 'tests of the GPU' "$TESTS" --test-case='cuda:*'
else
  check 'test suite' ctest --test-dir "$BUILD" --output-on-failure --parallel "$(($(nproc) < 4 ? $(nproc) : 4))"
fi
for preset in mqar-64-cat mqar-64-mamba; do
  check "$preset as on the CPU" same_training "$preset"
done
if ((!emulated)); then
  check 'mqar-64-cat learns' learns
fi
if ((quick || emulated)); then
  finish
fi
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    check "compute-sanitizer $tool" sanitize "$tool"
  done
else
  note compute-sanitizer skipped 'not installed'
fi
check benchmarks bench && cat "$LOGS/benchmarks.log"
if has_torch; then
  check 'beside PyTorch' compare && cat "$LOGS/beside-PyTorch.log"
else
  note 'beside PyTorch' skipped 'python3 has no PyTorch for this GPU'
fi
finish
