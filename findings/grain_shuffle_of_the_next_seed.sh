#!/usr/bin/env bash
# grain 0.2.18, numpy 2.4.6, Python 3.11.
#
# Guess, before it was run: `MapDataset.shuffle(seed=1)` and `shuffle(seed=2)` have nothing to do
# with each other, in any epoch of `repeat()`.
# Seen: epoch e of a seed is epoch e + 1 of the seed before it, record by record: epochs are
# shuffled by the sum of seed and epoch. Runs with the seeds 0, 1, 2, by which people tell noise
# from effect, read the same orders one epoch apart: of ten epochs nine are shared. Data sets of one
# size that are mixed with seeds s and s + 1 go through the same orders, too.
# `MapDataset.seed(s).shuffle()` is free of it.
# What helps: that, or seeds that are far apart.
#
# Output: "shuffle(seed=...): 9 of 10 epochs shared", "seed(...).shuffle(): 0 of 10 epochs shared".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet grain==0.2.18 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import grain

RECORDS, EPOCHS = 1000, 10


def epochs(shuffled):
    """The orders of the epochs, each a tuple."""
    endless = shuffled.repeat(EPOCHS)
    starts = range(0, RECORDS * EPOCHS, RECORDS)
    return {tuple(int(endless[start + i]) for i in range(RECORDS)) for start in starts}


records = grain.MapDataset.range(RECORDS)
given = len(epochs(records.shuffle(seed=0)) & epochs(records.shuffle(seed=1)))
derived = len(epochs(records.seed(0).shuffle()) & epochs(records.seed(1).shuffle()))
found = [
    f"shuffle(seed=...): {given} of {EPOCHS} epochs shared",
    f"seed(...).shuffle(): {derived} of {EPOCHS} epochs shared",
]
print(*found, sep="\n")
wanted = [
    "shuffle(seed=...): 9 of 10 epochs shared",
    "seed(...).shuffle(): 0 of 10 epochs shared",
]
sys.exit(found != wanted)
PYTHON
