#!/usr/bin/env bash
# Trains every mixer's recall preset for 500 steps at a learning rate of 1e-2, constant, with gradients clipped to norm 1,
# and says which runs ended in NaN or infinity.
#
#   tools/bench/check_stability.sh [MARGAY [OPTION...]]       default: build/release/margay; options as --threads 1
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
margay=${1:-build/release/margay}
(($#)) && shift
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failures=0
for preset in $("$margay" list presets | grep -o '^ *mqar-64-[a-z0-9_]*'); do
  "$margay" train "$preset" train.lr=1e-2 train.schedule=constant train.warmup_steps=0 train.grad_clip=1 \
    train.steps=500 train.eval_every=500 train.stop_accuracy=0 task.test_examples=256 --quiet --out "$folder/$preset" \
    "$@" 2>"$folder/error"
  status=$?
  if ((status == 0)); then
    printf '%-24s finite, loss %s\n' "$preset" "$(grep -o '"loss": [-0-9.e]*' "$folder/$preset/summary.json" | cut -d' ' -f2)"
  else
    printf '%-24s exit %d: %s\n' "$preset" "$status" "$(tail -n 1 "$folder/error")"
    failures=$((failures + 1))
  fi
done
exit $((failures > 0))
