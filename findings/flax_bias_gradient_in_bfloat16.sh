#!/usr/bin/env bash
# flax 0.12.8, jax 0.10.2 (on a CPU), Python 3.11.
#
# Guess, before it was run: with parameters in float32 and `dtype=bfloat16` the gradient of a bias
# is the sum over all positions, rounded once, whatever axes they lie on.
# Seen: over positions alone, or batch and length, yes. Over batch, height and width parts of the
# sum stop where they are 256 times what is added: for 2,048 positions of gradient 1 as 2 x 32 x 32
# it is 256, for 8,192 as 2 x 64 x 64 it is 1,024. Dense and Conv, and any vector that is added to a
# map in bfloat16, have it; float16 is right. What the gradients of all positions have in common,
# from which a bias learns, is cut off, the more the larger the map. The gradient of the parameter
# is float32 and shows nothing.
# What helps: `x.reshape(-1, x.shape[-1])` before a Dense layer, or float32 where a bias is added.
#
# Output: "bfloat16, 8 x 256: 2048 of 2048", "bfloat16, 2 x 32 x 32: 256 of 2048",
# "bfloat16, 2 x 64 x 64: 1024 of 8192", "float16, 2 x 32 x 32: 2048 of 2048".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet flax==0.12.8 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import math
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp

found = []
for dtype, shape in (
    ("bfloat16", (8, 256)),
    ("bfloat16", (2, 32, 32)),
    ("bfloat16", (2, 64, 64)),
    ("float16", (2, 32, 32)),
):
    layer = nn.Dense(8, dtype=dtype)
    inputs = jax.random.normal(jax.random.key(0), (*shape, 8))
    total = lambda params: layer.apply(params, inputs).astype(jnp.float32).sum()
    bias = jax.jit(jax.grad(total))(layer.init(jax.random.key(1), inputs))["params"]["bias"]
    assert bias.dtype == jnp.float32
    name = " x ".join(map(str, shape))
    found.append(f"{dtype}, {name}: {bias[0]:.0f} of {math.prod(shape)}")
print(*found, sep="\n")
wanted = [
    "bfloat16, 8 x 256: 2048 of 2048",
    "bfloat16, 2 x 32 x 32: 256 of 2048",
    "bfloat16, 2 x 64 x 64: 1024 of 8192",
    "float16, 2 x 32 x 32: 2048 of 2048",
]
sys.exit(found != wanted)
PYTHON
