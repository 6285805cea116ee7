#!/usr/bin/env bash
# jax 0.10.2 (on a CPU), numpy 2.4.6, Python 3.11.
#
# Guess, before it was run: `jnp.repeat(x, lengths)` and `jnp.cumsum(lengths)` do not depend on the
# integer type of the lengths, as in NumPy.
# Seen: both sum in the type of the lengths, and wrap. Five captions of 77, 150, 60, 20 and 3 tokens
# with lengths in uint8 come out as 31, 20, 26, 150 and 83: the number of elements is the right one,
# so shapes fit and nothing is said. Lengths in a NumPy array go the same way. uint16 does it from
# 65,536 elements in all. Who widens one value a caption to one a token (segment numbers of packed
# sequences, weights, masks) attends to or weighs the tokens of the neighbours.
# What helps: `lengths.astype(jnp.int32)` first.
#
# Output: "numpy, uint8: 77 150 60 20 3, ends 77 227 287 307 310", the same for "jax, int32", and
# "jax, uint8: 31 20 26 150 83, ends 77 227 31 51 54".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax.numpy as jnp
import numpy as np

LENGTHS = [77, 150, 60, 20, 3]
found = []
for name, library, dtype in (
    ("numpy, uint8", np, np.uint8),
    ("jax, int32", jnp, np.int32),
    ("jax, uint8", jnp, np.uint8),
):
    lengths = library.array(LENGTHS, dtype)
    captions = library.repeat(library.arange(len(LENGTHS)), lengths)
    assert len(captions) == sum(LENGTHS)
    tokens = " ".join(map(str, np.bincount(np.asarray(captions))))
    ends = " ".join(map(str, library.cumsum(lengths)))
    found.append(f"{name}: {tokens}, ends {ends}")
print(*found, sep="\n")
wanted = [
    "numpy, uint8: 77 150 60 20 3, ends 77 227 287 307 310",
    "jax, int32: 77 150 60 20 3, ends 77 227 287 307 310",
    "jax, uint8: 31 20 26 150 83, ends 77 227 31 51 54",
]
sys.exit(found != wanted)
PYTHON
