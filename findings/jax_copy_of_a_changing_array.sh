#!/usr/bin/env bash
# jax 0.10.2 (on a CPU), numpy 2.4.6, Python 3.11.
#
# Guess, before it was run: once `jnp.array(batch)` has returned (copy=True is its default), and
# once a jitted function has, the NumPy array that was given may be changed; at most `device_put`
# shares.
# Seen: they return before the array is read. What is written into it right afterwards is what the
# copy holds, and what the function computes with: of 20 batches of 50 MB nearly all. Small batches
# are mostly right, so it passes a test; of 256 kB some are wrong, others each time. `jnp.asarray`,
# `jnp.copy` and `device_put(..., may_alias=False)` are no better. Who reads batch after batch into
# one buffer trains on the batch after, or on a mixture of two, with a loss that looks well.
# What helps: `batch.copy()` before it is given, or a new array for each batch.
#
# Output, batches that hold what was written later: "jnp.array: some of 20", "jitted function: some
# of 20", "jnp.asarray: some of 20", "device_put(may_alias=False): some of 20", "of batch.copy(): 0
# of 20".
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

BATCHES, SHAPE = 20, (1024, 64, 64, 3)
square = jax.jit(lambda batch: batch * batch)
ways = {
    "jnp.array": jnp.array,
    "jitted function": square,
    "jnp.asarray": jnp.asarray,
    "device_put(may_alias=False)": lambda batch: jax.device_put(batch, may_alias=False),
    "of batch.copy()": lambda batch: square(batch.copy()),
}
square(np.ones(SHAPE, np.float32)).block_until_ready()  # compiled before anything is counted
found = []
for name, give in ways.items():
    later = 0
    for _ in range(BATCHES):
        batch = np.ones(SHAPE, np.float32)
        given = give(batch)
        batch[:] = 2
        later += not (np.asarray(given) == 1).all()
    print(f"{name}: {later} of {BATCHES}")
    found.append(f"{name}: {'some' if later else 0} of {BATCHES}")
wanted = [
    "jnp.array: some of 20",
    "jitted function: some of 20",
    "jnp.asarray: some of 20",
    "device_put(may_alias=False): some of 20",
    "of batch.copy(): 0 of 20",
]
sys.exit(found != wanted)
PYTHON
