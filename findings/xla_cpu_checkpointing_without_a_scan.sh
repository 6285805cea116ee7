#!/usr/bin/env bash
# jax and jaxlib 0.10.2 (XLA's CPU backend), Python 3.11.
#
# Guess, before it was run: layers under `jax.checkpoint` take less memory in the backward pass, one
# after the other in Python as well as in a `lax.scan`.
# Seen: on CPUs only in the scan. Of eight layers written one after the other the compiled gradient
# has exactly as many matrix products, and needs as much temporary memory, as without checkpointing,
# although the program that jax hands over has its optimization barriers: none is left in the
# compiled one, and what was to be computed again is merged with what was computed before. Unrolling
# the scan whole undoes it too. A dry run on CPU devices, to see whether a model fits, finds that
# checkpointing an unrolled model saves nothing; who trains on CPUs runs out of memory.
# What helps: scan over the layers, with an `unroll` below their number.
#
# Output: "one after the other: as without", "scan: recomputes, below a half of the memory",
# "scan unrolled whole: as without".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp

LAYERS, WIDTH, ROWS = 8, 64, 4096


def layer(x, kernel):
    for _ in range(4):
        x = jnp.sin(x @ kernel)
    return x


def compiled(checkpointed, unroll):
    """The products and the temporary bytes of a gradient; unroll None: no scan."""
    one = jax.checkpoint(layer) if checkpointed else layer

    def loss(kernels, x):
        if unroll is not None:
            body = lambda x, kernel: (one(x, kernel), None)
            return jax.lax.scan(body, x, kernels, unroll=unroll)[0].sum()
        for kernel in kernels:
            x = one(x, kernel)
        return x.sum()

    lowered = jax.jit(jax.grad(loss)).lower(
        jnp.ones((LAYERS, WIDTH, WIDTH)), jnp.ones((ROWS, WIDTH))
    )
    assert ("optimization_barrier" in lowered.as_text()) == checkpointed
    program = lowered.compile()
    products = program.as_text().count(" dot(")
    return products, program.memory_analysis().temp_size_in_bytes


found = []
ways = {"one after the other": None, "scan": 1, "scan unrolled whole": LAYERS}
for way, unroll in ways.items():
    plain, checkpointed = compiled(False, unroll), compiled(True, unroll)
    if plain[0] == checkpointed[0] and checkpointed[1] > 0.99 * plain[1]:
        found.append(f"{way}: as without")
    elif plain[0] < checkpointed[0] and checkpointed[1] < 0.5 * plain[1]:
        found.append(f"{way}: recomputes, below a half of the memory")
    else:
        found.append(f"{way}: products and bytes {plain}, checkpointed {checkpointed}")
print(*found, sep="\n")
wanted = [
    "one after the other: as without",
    "scan: recomputes, below a half of the memory",
    "scan unrolled whole: as without",
]
sys.exit(found != wanted)
PYTHON
