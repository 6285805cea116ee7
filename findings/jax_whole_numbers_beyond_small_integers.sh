#!/usr/bin/env bash
# jax 0.10.2 (on a CPU), numpy 2.4.6, Python 3.11.
#
# Guess, before it was run: a Python number that an array's integer type cannot hold is refused, as
# by NumPy 2 and by `jnp.array([300], jnp.uint8)`, and comparisons with it are true or false as the
# numbers are.
# Seen: it is wrapped first, without a word, with jit as without. Of 0, 50 ... 250 in uint8 only 0
# is below 300, since that has become 44; `jnp.clip(codes, 0, 300)` cuts all to 44; of all int8
# numbers 184 are at least 200; and codes in uint8 that 1,000 is added to, as where they follow the
# text in a joint vocabulary, come out below 256. What is padded with 300, or set to it, holds 44.
# So a bound, a mask or a padding id that is safe in NumPy drops or merges tokens.
# What helps: `codes.astype(jnp.int32)` first.
#
# Output: "numpy, + 1000: OverflowError", "numpy, < 300: 6 of 6", "jax, + 1000: 232 26 76 126 176
# 226", "jax, < 300: 1 of 6", "jax, clip(0, 300): 0 44 44 44 44 44", "jax, pad with 300: 44", "jax,
# int8 >= 200: 184 of 256".
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

codes = np.arange(0, 256, 50, dtype=np.uint8)
signed = jnp.arange(-128, 128).astype(jnp.int8)
ways = {
    "numpy, + 1000": lambda: codes + 1000,
    "numpy, < 300": lambda: codes < 300,
    "jax, + 1000": lambda: jax.jit(lambda codes: codes + 1000)(codes),
    "jax, < 300": lambda: jnp.asarray(codes) < 300,
    "jax, clip(0, 300)": lambda: jnp.clip(codes, 0, 300),
    "jax, pad with 300": lambda: jnp.pad(codes, (0, 1), constant_values=300)[-1:],
    "jax, int8 >= 200": lambda: signed >= 200,
}
found = []
for name, compute in ways.items():
    try:
        result = np.asarray(compute())
    except OverflowError:
        found.append(f"{name}: OverflowError")
        continue
    counts = result.dtype == bool
    shown = f"{result.sum()} of {result.size}" if counts else " ".join(map(str, result))
    found.append(f"{name}: {shown}")
print(*found, sep="\n")
wanted = [
    "numpy, + 1000: OverflowError",
    "numpy, < 300: 6 of 6",
    "jax, + 1000: 232 26 76 126 176 226",
    "jax, < 300: 1 of 6",
    "jax, clip(0, 300): 0 44 44 44 44 44",
    "jax, pad with 300: 44",
    "jax, int8 >= 200: 184 of 256",
]
sys.exit(found != wanted)
PYTHON
