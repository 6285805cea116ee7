#!/usr/bin/env bash
# jax 0.10.2 (on a CPU), Python 3.11.
#
# Guess, before it was run: `jnp.histogram` counts in integers, or in float32, whatever the type of
# the values; bfloat16 values change bins where they are rounded across an edge.
# Seen: it counts in the type of the values, by ones, so in bfloat16 no bin ever holds more than
# 256, in float16 more than 2,048. Of 100,000 normal numbers in eight bins six hold that: the bell
# becomes flat, and 2% of the numbers are counted. `density=True` divides by that and looks healthy.
# (`jnp.histogram2d` counts right.) Histograms of weights and activations of a model in bfloat16, as
# one logs them to see it drift or saturate, show neither.
# What helps: `x.astype(jnp.float32)` first.
#
# Output: "float32: 116 2203 13669 34126 34000 13640 2094 145",
# "bfloat16: 113 256 256 256 256 256 256 152", "float16: 116 2048 2048 2048 2048 2048 2048 147",
# "bfloat16, density=True: 0.06 0.14 0.14 0.14 0.14 0.14 0.14 0.08".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp

values = jax.random.normal(jax.random.key(0), (100_000,))
found = []
for dtype in ("float32", "bfloat16", "float16"):
    counts, _ = jnp.histogram(values.astype(dtype), bins=8, range=(-4, 4))
    found.append(f"{dtype}: {' '.join(f'{float(count):.0f}' for count in counts)}")
shares, _ = jnp.histogram(values.astype(jnp.bfloat16), bins=8, range=(-4, 4), density=True)
found.append(f"bfloat16, density=True: {' '.join(f'{float(share):.2f}' for share in shares)}")
print(*found, sep="\n")
wanted = [
    "float32: 116 2203 13669 34126 34000 13640 2094 145",
    "bfloat16: 113 256 256 256 256 256 256 152",
    "float16: 116 2048 2048 2048 2048 2048 2048 147",
    "bfloat16, density=True: 0.06 0.14 0.14 0.14 0.14 0.14 0.14 0.08",
]
sys.exit(found != wanted)
PYTHON
