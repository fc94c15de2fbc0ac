#!/usr/bin/env bash
# Sets the machine up, builds, and trains to the end on the CPU: a one-layer CAT beside one-layer attention on
# multi-query associative recall, then a small byte language model on the King James text. Results lie in runs/.
# Running it again goes on with what was stopped and keeps what is done.
# shellcheck source-path=SCRIPTDIR source=setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

readonly MARGAY=build/release/margay
readonly RECALL_GOAL=0.99
readonly PROMPT='In the beginning'

# train PRESET: to the end, or on from the last checkpoint; a finished run is left as it is.
train() {
  say "Training $1"
  "$MARGAY" train "$1" --out "runs/$1" --resume
}

# of_summary PRESET KEY: one number of a run's summary.json.
of_summary() {
  python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "runs/$1/summary.json" "$2"
}

percent() { awk -v share="$1" 'BEGIN { printf "%.1f %%", 100 * share }'; }

# result PRESET LABEL VALUE: one line of the closing table.
result() {
  printf '    %-10s %-18s %6d steps, %6.1f s\n' "$2" "$3" "$(of_summary "$1" steps)" "$(of_summary "$1" seconds)"
}

show_results() {
  local cat_accuracy attention_accuracy
  cat_accuracy=$(of_summary mqar-64-cat accuracy)
  attention_accuracy=$(of_summary mqar-64-attention accuracy)
  say 'Results'
  printf '  Multi-query associative recall, 64 tokens, one layer: test accuracy\n'
  result mqar-64-cat CAT "$(percent "$cat_accuracy")"
  result mqar-64-attention attention "$(percent "$attention_accuracy")"
  printf '  Bytes of the King James text: loss\n'
  result lm-kjv-cat CAT "$(printf '%.3f nats a byte' "$(of_summary lm-kjv-cat loss)")"
  cat <<END

  Curves of both recall runs   runs/quickstart.svg
  Report of each run           runs/*/report.svg
  More text                    $MARGAY sample runs/lm-kjv-cat/checkpoint --prompt 'And it came to pass'
  Train again from scratch     delete its folder in runs/, then run this script again
END
  awk -v got="$cat_accuracy" -v goal="$RECALL_GOAL" 'BEGIN { exit !(got >= goal) }' ||
    die "CAT reached $(percent "$cat_accuracy") instead of $(percent "$RECALL_GOAL") on mqar-64-cat"
}

set_up margay_cli
train mqar-64-cat
train mqar-64-attention
train lm-kjv-cat
"$MARGAY" plot runs/mqar-64-cat runs/mqar-64-attention --out runs/quickstart.svg
say "The language model goes on from '$PROMPT'"
"$MARGAY" sample runs/lm-kjv-cat/checkpoint --prompt "$PROMPT" --tokens 400 --temperature 0.7 --seed 1
echo
show_results
