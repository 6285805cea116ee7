#!/usr/bin/env bash
# orbax-checkpoint 0.12.8, jax 0.10.2, Python 3.11.
#
# Guess, before it was run: a tree with the array {"a": {"b": ...}} and the array {"a.b": ...} is
# saved as two arrays, or refused.
# Seen: Orbax names an array by its keys joined with dots, so both are "a.b". Where their shapes
# agree, saving and restoring succeed without a word, and both come back as the same array: one of
# the two, not always the same one, is lost. (The same tree with "a/b" comes back right.) Who keeps
# values by a parameter's dotted name beside the tree of parameters, such as averages, masks or
# scales of quantised kernels under names from PyTorch, has lost them when they are needed.
# What helps: put such a dictionary under a key of its own, or use another separator in its names.
#
# Output: "a/b: 2 arrays come back of 2" and "a.b: 1 array comes back of 2".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

found = []
for number, name in enumerate(("a/b", "a.b")):
    tree = {"a": {"b": jnp.full(4, 1.0)}, name: jnp.full(4, 2.0)}
    path = f"{sys.argv[1]}/{number}"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(path, tree)
    different = {float(leaf[0]) for leaf in jax.tree.leaves(restored)}
    what = "1 array comes" if len(different) == 1 else f"{len(different)} arrays come"
    found.append(f"{name}: {what} back of 2")
print(*found, sep="\n")
sys.exit(found != ["a/b: 2 arrays come back of 2", "a.b: 1 array comes back of 2"])
PYTHON
