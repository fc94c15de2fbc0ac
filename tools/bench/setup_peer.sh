#!/usr/bin/env bash
# Puts PyTorch from PyPI into build/peer-venv, and matplotlib for plots, for tools/bench only: Margay never needs them to
# build, run or test. PyPI's Linux wheel carries its CUDA libraries along, about 5 GB on disk. Nothing is done where it already works.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
readonly VENV=build/peer-venv

if [[ ! -x $VENV/bin/python ]]; then
  python3 -m venv "$VENV" || {
    rm -rf "$VENV"
    printf 'setup_peer.sh: no Python environment could be made; on Debian: apt-get install python3-venv\n' >&2
    exit 1
  }
fi
if ! "$VENV/bin/python" -c 'import matplotlib, numpy, torch' 2>/dev/null; then
  "$VENV/bin/python" -m pip install --disable-pip-version-check --upgrade matplotlib numpy 'torch>=2.4'
fi
"$VENV/bin/python" -c 'import torch; print("PyTorch", torch.__version__, "in build/peer-venv")'
if ! ldconfig -p | grep -q libjemalloc.so.2; then
  printf 'note: compare.py also tries jemalloc, often the fastest for PyTorch; Debian: apt-get install libjemalloc2\n'
fi
