#!/usr/bin/env bash
# jax and jaxlib 0.10.2 (XLA's CPU backend), Python 3.11.
#
# Guess, before it was run: what of the result of `lax.top_k` is used changes nothing of how it is
# computed; used in part, it is at most cheaper.
# Seen: values used whole are found by a partial selection. The threshold of a top-k filter, the
# last of them (`top_k(logits, k)[0][..., -1:]`), sorts all logits. For 4 x 58,240 logits and
# k = 200 that took 64 ms instead of 1 ms on two cores: for every token that is sampled, more than a
# small model takes for all the rest.
# What helps: the same number as `top_k(logits, k)[0].min(-1, keepdims=True)`.
#
# Output: "all values: selects", "last value by index: sorts", "last value by min: selects",
# "same thresholds: True".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp

ways = {
    "all values": lambda logits: jax.lax.top_k(logits, 200)[0],
    "last value by index": lambda logits: jax.lax.top_k(logits, 200)[0][..., -1:],
    "last value by min": lambda logits: jax.lax.top_k(logits, 200)[0].min(-1, keepdims=True),
}
logits = jax.random.normal(jax.random.key(0), (4, 58_240))
found, results = [], []
for name, way in ways.items():
    program = jax.jit(way).lower(logits).compile()
    text = program.as_text()
    kind = "sorts" if " sort(" in text else "selects" if "TopK" in text else "neither"
    found.append(f"{name}: {kind}")
    results.append(program(logits))
found.append(f"same thresholds: {jnp.array_equal(results[1], results[2])}")
print(*found, sep="\n")
wanted = [
    "all values: selects",
    "last value by index: sorts",
    "last value by min: selects",
    "same thresholds: True",
]
sys.exit(found != wanted)
PYTHON
