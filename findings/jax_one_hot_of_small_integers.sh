#!/usr/bin/env bash
# jax 0.10.2, Python 3.11.
#
# Guess, before it was run: `jax.nn.one_hot(label, classes)` has at most a single 1, whatever the
# integer type that holds the label.
# Seen: the classes are counted in the type of the label, and wrap. Label 5 as uint8 or int8 of 300
# classes has a 1 at 5 and at 261; as uint16 of 70,000 it has one at 5 and at 65,541. As int32 it is
# right. Labels are often kept in the smallest type that holds them (image codes of a codebook of
# 256 in uint8, tokens of a store in uint16) and made one-hot over the larger vocabulary that they
# share with text: then they are trained towards two classes, with a loss that still falls.
# What helps: `labels.astype(jnp.int32)` first.
#
# Output: "uint8 5 of 300: 5 261", "int8 5 of 300: 5 261", "uint16 5 of 70000: 5 65541",
# "int32 5 of 70000: 5".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp

found = []
for dtype, classes in (("uint8", 300), ("int8", 300), ("uint16", 70_000), ("int32", 70_000)):
    row = jax.nn.one_hot(jnp.array(5, dtype), classes)
    found.append(f"{dtype} 5 of {classes}: {' '.join(map(str, jnp.flatnonzero(row)))}")
print(*found, sep="\n")
wanted = [
    "uint8 5 of 300: 5 261",
    "int8 5 of 300: 5 261",
    "uint16 5 of 70000: 5 65541",
    "int32 5 of 70000: 5",
]
sys.exit(found != wanted)
PYTHON
