#!/usr/bin/env bash
# jax and jaxlib 0.10.2 (XLA's CPU backend), optax 0.2.8, numpy 2.4.6, Python 3.11.
#
# Guess, before it was run: a division in float32 is rounded correctly, as in NumPy, with jit as
# without, so of whole numbers that float32 holds the floor of a quotient is exact.
# Seen: an array that is divided by one number, a constant or an argument, is multiplied by its
# reciprocal, which has been rounded before. `jnp.floor(index / 41)` puts index 41 into row 0. Of
# the divisors 1 to 256 it is wrong somewhere below 65,536 for 38, 55 and 110 among them, and
# `jnp.ceil` for others, 7, 28, 112 and 224 among them: 21 things in groups of 7 take 4. float64 has
# it too (49). One number by one number, outside jit, is right, and so is an array by an array, so a
# check by hand passes. The rate of `optax.exponential_decay` in steps of 41 falls a step later in
# the compiled training step than in the log beside it. Rows and columns of a grid, buckets of
# lengths and numbers of patches are off by one, all of them in range.
# What helps: `index // width`, which is right for integers and for floats; `-(-n // size)`.
#
# Output: "floor(41 / 41): 1 of numbers, 0 in an array", "floor(index / width): wrong for 38
# widths", "ceil(21 / 7) in an array: 4", "ceil(n / size): wrong for 41 sizes", "index // width:
# wrong for 0 widths", "rate after 41 steps: 0.5, compiled 1.0".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

index = np.arange(65536)


def wrong(compute, expected):
    """How many divisors give a wrong quotient for some index."""
    compute = jax.jit(compute)
    return sum(bool((np.asarray(compute(index, n)) != expected(n)).any()) for n in range(1, 257))


one = int(jnp.floor(jnp.float32(41) / 41))
several = int(jnp.floor(jnp.arange(100) / 41)[41])
groups = int(jnp.ceil(jnp.arange(100) / 7)[21])
floors = wrong(lambda i, n: jnp.floor(i / n), lambda n: index // n)
ceilings = wrong(lambda i, n: jnp.ceil(i / n), lambda n: -(-index // n))
integers = wrong(lambda i, n: i // n, lambda n: index // n)
rate = optax.exponential_decay(1.0, transition_steps=41, decay_rate=0.5, staircase=True)
found = [
    f"floor(41 / 41): {one} of numbers, {several} in an array",
    f"floor(index / width): wrong for {floors} widths",
    f"ceil(21 / 7) in an array: {groups}",
    f"ceil(n / size): wrong for {ceilings} sizes",
    f"index // width: wrong for {integers} widths",
    f"rate after 41 steps: {float(rate(41))}, compiled {float(jax.jit(rate)(41))}",
]
print(*found, sep="\n")
wanted = [
    "floor(41 / 41): 1 of numbers, 0 in an array",
    "floor(index / width): wrong for 38 widths",
    "ceil(21 / 7) in an array: 4",
    "ceil(n / size): wrong for 41 sizes",
    "index // width: wrong for 0 widths",
    "rate after 41 steps: 0.5, compiled 1.0",
]
sys.exit(found != wanted)
PYTHON
