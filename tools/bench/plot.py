#!/usr/bin/env python3
"""Draws what `compare.py --json ROWS` measured: for every row, how many times longer each form of PyTorch takes.

    build/peer-venv/bin/python tools/bench/plot.py ROWS.json OUT.svg
"""

import json
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams |= {"svg.hashsalt": "margay", "svg.fonttype": "none", "font.family": "sans-serif"}
from matplotlib import pyplot  # noqa: E402  (the backend comes first)

FORMS = {"full": "full: logits everywhere", "gather": "gather: logits where there is a label",
         "compiled": "the faster of both under torch.compile"}


def ratios(by_name):
    """Form -> median over the rounds of PyTorch's time by Margay's."""
    margay = by_name.pop("margay")
    times = {name: rounds for name, rounds in by_name.items() if "compiled" not in name}
    compiled = [rounds for name, rounds in by_name.items() if "compiled" in name]
    if compiled:
        times["compiled"] = min(compiled, key=statistics.median)
    return {form: statistics.median(theirs / ours for ours, theirs in zip(margay, rounds))
            for form, rounds in times.items()}


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    rows = {row: ratios(by_name) for row, by_name in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")).items()}
    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.42 * len(rows)), layout="constrained")
    for index, (form, label) in enumerate(FORMS.items()):
        places = [(place, of_row[form]) for place, of_row in enumerate(rows.values()) if form in of_row]
        if places:
            axes.barh([place + 0.27 * (index - 1) for place, _ in places], [value - 1 for _, value in places], 0.25,
                      left=1, label=label)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axes.set_xlabel("PyTorch's time by Margay's: right of 1 Margay is faster")
    figure.legend(loc="outside upper center", ncols=len(FORMS), frameon=False)
    figure.savefig(sys.argv[2], metadata={"Date": None})


if __name__ == "__main__":
    main()
