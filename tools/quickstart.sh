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
rounded() { awk -v value="$1" 'BEGIN { printf "%.2f", value }'; }

show_results() {
  local cat_accuracy attention_accuracy
  cat_accuracy=$(of_summary mqar-64-cat accuracy)
  attention_accuracy=$(of_summary mqar-64-attention accuracy)
  say 'Results'
  cat <<END
  Associative recall, 64 tokens, one layer, test accuracy
    CAT        $(percent "$cat_accuracy") after $(of_summary mqar-64-cat steps) steps, $(rounded "$(of_summary mqar-64-cat seconds)") s
    attention  $(percent "$attention_accuracy") after $(of_summary mqar-64-attention steps) steps, $(rounded "$(of_summary mqar-64-attention seconds)") s
  Byte language model on the King James text
    CAT        $(rounded "$(of_summary lm-kjv-cat loss)") nats a byte after $(of_summary lm-kjv-cat steps) steps, $(rounded "$(of_summary lm-kjv-cat seconds)") s

  Curves of both recall runs   runs/quickstart.svg
  Report of each run           runs/*/report.svg
  More text                    $MARGAY sample runs/lm-kjv-cat/checkpoint --prompt 'And it came to pass'
  Train again from scratch     rm -r runs/mqar-64-cat, then this script
END
  awk -v got="$cat_accuracy" -v goal="$RECALL_GOAL" 'BEGIN { exit !(got >= goal) }' ||
    die "CAT reached $(percent "$cat_accuracy") instead of $(percent "$RECALL_GOAL") on mqar-64-cat"
}

set_up
train mqar-64-cat
train mqar-64-attention
train lm-kjv-cat
"$MARGAY" plot runs/mqar-64-cat runs/mqar-64-attention --out runs/quickstart.svg
say "The language model goes on from '$PROMPT'"
"$MARGAY" sample runs/lm-kjv-cat/checkpoint --prompt "$PROMPT" --tokens 400 --temperature 0.7 --seed 1
echo
show_results
