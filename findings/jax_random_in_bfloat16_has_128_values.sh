#!/usr/bin/env bash
# jax 0.10.2 (on a CPU), flax 0.12.8, numpy 2.4.6, Python 3.11.
#
# Guess, before it was run: weights that Flax initialises with `param_dtype=jnp.bfloat16`, and
# random numbers of that type, are those of float32, rounded: thousands of values, mean 0.
# Seen: the normal numbers come from uniform ones of 7 random bits. So 16,777,216 weights of a Dense
# layer have 128 values, and their mean is -.018 deviations in place of 0 (the uniform numbers
# include the lower end and not the upper one). In wide layers that adds up: for positive inputs, as
# behind a ReLU, 16,384 inputs shift every output by 1.8 deviations, so that 96% of 1,024 outputs
# are negative (of float32 weights 48 to 54%), with the key that is used as with any other.
# For the same reason `jax.random.bernoulli` with a `p` of bfloat16 is true no more rarely than one
# time in 128: of p = .001, as of a small rate of dropout that was computed in bfloat16, 7.8 times
# too often. float16 has 1,024 values. Nothing warns.
# What helps: draw in float32, then `astype(jnp.bfloat16)`.
#
# Output: "float32: mean +0.03, negative 48%", "bfloat16: 128 values, mean -1.8, negative 96%",
# "drawn in float32, then rounded: negative 48%", "p = .001 is true for .0078".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

positive = jnp.abs(jax.random.normal(jax.random.key(1), (1, 16384)))


def weights(dtype):
    layer = nn.Dense(1024, param_dtype=dtype, use_bias=False)
    return layer.init(jax.random.key(1), positive)["params"]["kernel"]


def outputs(kernel):
    return np.asarray(positive @ kernel.astype(jnp.float32), np.float64)


exact, short = outputs(weights(jnp.float32)), outputs(weights(jnp.bfloat16))
rounded = outputs(weights(jnp.float32).astype(jnp.bfloat16))
values = len(np.unique(np.asarray(weights(jnp.bfloat16), np.float32)))
drawn = jax.random.bernoulli(jax.random.key(0), jnp.bfloat16(0.001), (2**22,)).mean()
found = [
    f"float32: mean {exact.mean():+.2f}, negative {100 * (exact < 0).mean():.0f}%",
    f"bfloat16: {values} values, mean {short.mean():.1f}, negative {100 * (short < 0).mean():.0f}%",
    f"drawn in float32, then rounded: negative {100 * (rounded < 0).mean():.0f}%",
    f"p = .001 is true for {drawn:.4f}".replace("0.", ".", 1),
]
print(*found, sep="\n")
wanted = [
    "float32: mean +0.03, negative 48%",
    "bfloat16: 128 values, mean -1.8, negative 96%",
    "drawn in float32, then rounded: negative 48%",
    "p = .001 is true for .0078",
]
sys.exit(found != wanted)
PYTHON
