#!/usr/bin/env bash
# optax 0.2.8, jax 0.10.2, Python 3.11.
#
# Guess, before it was run: `clip_by_global_norm(1)` on bfloat16 gradients leaves a norm of about 1,
# off by no more than bfloat16 rounds, whatever the number of parameters.
# Seen: the squares of a leaf are summed in float32, but the sums of the leaves are added one by one
# in bfloat16: when the total is 256 times a leaf, no further leaf counts. 1,000 equal leaves have
# norm 16 instead of 31.6, and after clipping to 1 their norm is 2. A model whose layers are not
# stacked has so many (48 layers of 16 arrays are 768), and the deeper it is the less it is clipped;
# the norm in the log is as wrong, so nothing shows.
# What helps: widen the gradients to float32 before they are clipped or measured.
#
# Output: "100 leaves: norm 10.0, clipped 1.00", "1000 leaves: norm 16.0, clipped 1.98",
# "1000 leaves in float32: norm 31.6, clipped 1.00".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax.numpy as jnp
import numpy as np
import optax

clip = optax.clip_by_global_norm(1.0)


def measured(gradients):
    return optax.global_norm(gradients), clip.update(gradients, clip.init(gradients))[0]


found = []
for name, leaves, dtype in (
    ("100 leaves", 100, jnp.bfloat16),
    ("1000 leaves", 1000, jnp.bfloat16),
    ("1000 leaves in float32", 1000, jnp.float32),
):
    norm, clipped = measured([jnp.full((4, 4), 0.25, dtype)] * leaves)  # each of norm 1
    left = np.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in clipped))
    found.append(f"{name}: norm {float(norm):.1f}, clipped {left:.2f}")
print(*found, sep="\n")
wanted = [
    "100 leaves: norm 10.0, clipped 1.00",
    "1000 leaves: norm 16.0, clipped 1.98",
    "1000 leaves in float32: norm 31.6, clipped 1.00",
]
sys.exit(found != wanted)
PYTHON
