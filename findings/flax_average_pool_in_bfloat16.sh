#!/usr/bin/env bash
# flax 0.12.8, jax 0.10.2 (on a CPU), Python 3.11.
#
# Guess, before it was run: `nn.avg_pool` in bfloat16 gives the mean, rounded once, as `x.mean()`
# does, however large the window is.
# Seen: the window is summed in bfloat16, number by number, and a sum that is 256 times what is
# added no longer grows. For features between 0 and 1 windows of 16 x 16 are right, 24 x 24 give .45
# in place of .50, 32 x 32 give .25. Then the result says nothing of the features: a map of all .8
# and one of noise around .5 have one average. float16 is right, and so are gradients, so a model
# still trains. Pooling a large map to one vector, or images from 512 pixels to 16, is this.
# What helps: `x.mean(axis=(1, 2))`, or float32 before pooling.
#
# Output: "16 x 16: bfloat16 0.50, float16 0.50, float32 0.50, mean 0.50", for 24 x 24 and 32 x 32
# bfloat16 0.45 and 0.25, and "32 x 32 of 0.8: bfloat16 0.25, float32 0.80".
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


def pooled(features, dtype):
    """The average of one window over all the features, in float32."""
    average = nn.avg_pool(features.astype(dtype), features.shape[1:3])
    return f"{average.astype(jnp.float32).mean():.2f}"


found = []
for side in (16, 24, 32):
    noise = jax.random.uniform(jax.random.key(0), (4, side, side, 8))
    line = [f"{dtype} {pooled(noise, dtype)}" for dtype in ("bfloat16", "float16", "float32")]
    mean = noise.astype("bfloat16").mean(axis=(1, 2)).astype("float32").mean()
    found.append(f"{side} x {side}: {', '.join(line)}, mean {mean:.2f}")
flat = jnp.full((1, 32, 32, 1), 0.8)
found.append(
    f"32 x 32 of 0.8: bfloat16 {pooled(flat, 'bfloat16')}, float32 {pooled(flat, 'float32')}"
)
print(*found, sep="\n")
wanted = [
    "16 x 16: bfloat16 0.50, float16 0.50, float32 0.50, mean 0.50",
    "24 x 24: bfloat16 0.45, float16 0.50, float32 0.50, mean 0.50",
    "32 x 32: bfloat16 0.25, float16 0.50, float32 0.50, mean 0.50",
    "32 x 32 of 0.8: bfloat16 0.25, float32 0.80",
]
sys.exit(found != wanted)
PYTHON
