#!/usr/bin/env bash
# orbax-checkpoint 0.12.8, jax 0.10.2, numpy 2.4.6, Python 3.11.
#
# Guess, before it was run: a target of another shape is refused, whatever kind of array it is.
# Seen: StandardCheckpointer.restore refuses a target that is a jax array, or a ShapeDtypeStruct
# with a sharding, of shape (4, 1) for stored numbers of shape (8, 1). A numpy target of that shape
# is ignored: the stored (8, 1) comes back, without a word, and so does float32 where the target is
# float32 of any shape. Who restores to the host (to convert, evaluate, or average checkpoints)
# and relies on the target to notice a model of other sizes gets the other model.
# What helps: compare the shapes in `metadata(path)` with the target before restoring.
#
# Output: "jax target: ValueError" and "numpy target: (8, 1) float32".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - "$folder/checkpoint" <<'PYTHON'
import sys

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

path, found = sys.argv[1], []
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, {"kernel": jnp.arange(8.0).reshape(8, 1)})
for name, target in (("jax", jnp.zeros((4, 1))), ("numpy", np.zeros((4, 1), np.float32))):
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            kernel = checkpointer.restore(path, {"kernel": target})["kernel"]
        found.append(f"{name} target: {kernel.shape} {kernel.dtype}")
    except ValueError:
        found.append(f"{name} target: ValueError")
print(*found, sep="\n")
sys.exit(found != ["jax target: ValueError", "numpy target: (8, 1) float32"])
PYTHON
