#!/usr/bin/env bash
# flax 0.12.8, jax 0.10.2 (on a CPU), Python 3.11.
#
# Guess, before it was run: with parameters in float32 and `dtype=bfloat16` gradients of parameters
# are sums of bfloat16 numbers in float32, of an embedding as of a bias.
# Seen: of a bias, yes: 4,096 positions of gradient 1 give 4,096. The embedding of a token that
# occurs 4,096 times gets 256, since `nn.Embed` rounds its table first and the gradients are added
# one by one to a bfloat16 number, which at 256 no longer changes; with float16 it stops at 2,048.
# So frequent tokens (separators, a command that opens every sequence) get a gradient that is cut
# off, the larger the batch the more, and the optimizer is given float32 and sees nothing of it.
# What helps: `nn.Embed(..., dtype=jnp.float32)`, and round what it returns.
#
# Output: "bias, bfloat16: 4096", "embedding, bfloat16: 256", "embedding, float16: 2048",
# "embedding in float32, rounded after: 4096".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet flax==0.12.8 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp

POSITIONS = 4096


def gradient(module, inputs, dtype):
    """The gradient of every parameter where every output has gradient 1."""
    params = module.init(jax.random.key(0), inputs)
    total = lambda params: module.apply(params, inputs).astype(dtype).astype(jnp.float32).sum()
    return jax.jit(jax.grad(total))(params)["params"]


tokens = jnp.zeros(POSITIONS, jnp.int32)
found = []
bias = gradient(nn.Dense(1, dtype=jnp.bfloat16), jnp.zeros((POSITIONS, 1)), jnp.bfloat16)["bias"]
found.append(f"bias, bfloat16: {bias[0]:.0f}")
for name, inside, after in (
    ("bfloat16", jnp.bfloat16, jnp.bfloat16),
    ("float16", jnp.float16, jnp.float16),
    ("in float32, rounded after", jnp.float32, jnp.bfloat16),
):
    table = gradient(nn.Embed(2, 1, dtype=inside), tokens, after)["embedding"]
    assert table.dtype == jnp.float32
    comma = "" if name.startswith("in") else ","
    found.append(f"embedding{comma} {name}: {table[0, 0]:.0f}")
print(*found, sep="\n")
wanted = [
    "bias, bfloat16: 4096",
    "embedding, bfloat16: 256",
    "embedding, float16: 2048",
    "embedding in float32, rounded after: 4096",
]
sys.exit(found != wanted)
PYTHON
