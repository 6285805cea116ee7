#!/usr/bin/env bash
# jax 0.10.2 (on a CPU), numpy 2.4.6, Python 3.11.
#
# Guess, before it was run: `jax.random.choice(key, n, shape, p=weights)` can draw every row whose
# weight is not 0; rounding makes frequencies a little wrong.
# Seen: of 16,777,216 equal weights, all exact in float32, no row with an even index is ever drawn;
# of 8,388,608 all are. The draw is a float32 uniform number, one of 8,388,608, looked up among the
# summed weights, so there are no more rows than that to be had, and the key does not change which.
# With random weights, too, half of 16,777,216 rows never came in 134 million draws, where 6% were
# to be expected. Without `p` all rows come. Who samples a large data set or a replay buffer by
# weights trains on half of it, with no sign.
# What helps: `with jax.enable_x64(True)`, or a block of rows first and then a row in it.
#
# Output: "8388608 rows: even 50%", "16777216 rows: even 0%", "16777216 rows without p: even 50%",
# "16777216 rows in float64: even 50%".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np


def even(rows, weighted=True):
    """The percentage of even indices among 100,000 draws of equal probability."""
    weights = jnp.full(rows, 1 / rows) if weighted else None
    drawn = np.asarray(jax.random.choice(jax.random.key(0), rows, (100_000,), p=weights))
    return f"even {100 * (drawn % 2 == 0).mean():.0f}%"


found = [
    f"8388608 rows: {even(2**23)}",
    f"16777216 rows: {even(2**24)}",
    f"16777216 rows without p: {even(2**24, weighted=False)}",
]
with jax.enable_x64(True):
    found.append(f"16777216 rows in float64: {even(2**24)}")
print(*found, sep="\n")
wanted = [
    "8388608 rows: even 50%",
    "16777216 rows: even 0%",
    "16777216 rows without p: even 50%",
    "16777216 rows in float64: even 50%",
]
sys.exit(found != wanted)
PYTHON
