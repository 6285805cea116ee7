#!/usr/bin/env bash
# jax and jaxlib 0.10.2 (XLA's CPU backend), Python 3.11.
#
# Guess, before it was run: the gradient of a convolution's kernel, summed over the images of a batch,
# takes about as long in a `lax.scan` over the images as written out, a little more for the loop.
# Seen: on CPUs the loop takes many times as long, for the same arithmetic and the same result.
# Accumulating gradients over parts of a batch, the usual way to a larger batch, is such a loop: a
# convolutional model that is tried out on a CPU seems to slow down by its accumulation alone, and a
# step that was timed so says nothing of another device.
# What helps: few parts, written out in Python, or matrix products in the place of convolutions.
#
# Output: "same gradient", "loop: at least 4 times as long".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

IMAGES, SIDE, CHANNELS = 8, 64, 32


def gradient(kernel, image):
    def loss(kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(image[None], kernel, (1, 1), "SAME", dimension_numbers=layout)
        return (y**2).sum()

    return jax.grad(loss)(kernel)


@jax.jit
def in_a_loop(kernel, images):
    step = lambda total, image: (total + gradient(kernel, image), None)
    return jax.lax.scan(step, jnp.zeros_like(kernel), images)[0]


@jax.jit
def written_out(kernel, images):
    return sum(gradient(kernel, image) for image in images)


rng = np.random.default_rng(0)
images = jnp.asarray(rng.normal(size=(IMAGES, SIDE, SIDE, CHANNELS)), jnp.float32)
kernel = jnp.asarray(rng.normal(size=(3, 3, CHANNELS, CHANNELS)), jnp.float32)
seconds = {in_a_loop: [], written_out: []}
for _ in range(6):
    for function, times in seconds.items():
        began = time.monotonic()
        jax.block_until_ready(function(kernel, images))
        times.append(time.monotonic() - began)
one, other = in_a_loop(kernel, images), written_out(kernel, images)
same = float(jnp.abs(one - other).max() / jnp.abs(other).max()) < 1e-5
ratio = min(seconds[in_a_loop][1:]) / min(seconds[written_out][1:])
print("same gradient" if same else "another gradient")
print("loop: at least 4 times as long" if ratio > 4 else f"loop: {ratio:.1f} times as long")
print(f"({ratio:.0f} times here)", file=sys.stderr)
sys.exit(not (same and ratio > 4))
PYTHON
