#!/usr/bin/env bash
# jax and jaxlib 0.10.2, on a CPU; Python 3.11.
#
# Guess, before it was run: in a scan over layers, weights in bfloat16 take half the memory of
# float32; if the CPU cannot multiply them as they are, the loop widens one layer at a time.
# Seen: XLA moves the conversion out of the loop, since it does not change from turn to turn. The
# whole stack of layers is widened to float32 before the first layer runs. So a model in bfloat16
# takes one and a half times the memory of the same model in float32. float16 is widened layer by
# layer. A memory plan for another device that is compiled on a CPU (`compiled.memory_analysis()`)
# counts the copy, too, which that device does not make.
# What helps: float16 for frozen weights on a CPU; a plan that is compiled for float32 and counts
# the weights by hand.
#
# Output, MiB of weights and of temporaries: "float32: 32 and 1", "bfloat16: 16 and 33",
# "float16: 16 and 1".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cat > "$folder/widen.py" <<'PYTHON'
"""Prints the memory of 32 layers of 512 x 512 weights in a scan."""

import jax
import jax.numpy as jnp

LAYERS, WIDTH, MIB = 32, 512, 1 << 20


def model(weights, x):
    return jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), None), x, weights)[0]


for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
    weights = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), dtype)
    x = jax.ShapeDtypeStruct((8, WIDTH), dtype)
    memory = jax.jit(model).lower(weights, x).compile().memory_analysis()
    size = weights.size * weights.dtype.itemsize
    print(f"{weights.dtype}: {size // MIB} and {memory.temp_size_in_bytes // MIB}")
PYTHON
seen=$(JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/widen.py")
echo "$seen"
[[ "$seen" == $'float32: 32 and 1\nbfloat16: 16 and 33\nfloat16: 16 and 1' ]]
