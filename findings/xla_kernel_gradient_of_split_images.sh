#!/usr/bin/env bash
# jax and jaxlib 0.10.2 (0.12.0.1 does the same), on eight devices of a CPU; Python 3.11.
#
# Guess, before it was run: `jax.jit` computes the same whatever the sharding of its arguments, up
# to rounding, in the backward pass of a convolution as everywhere.
# Seen: images that are split along height or width over one axis of a mesh, and lie whole along
# another, give a gradient of the kernel that is multiplied by the size of that other axis: 2 on a
# mesh of 4 x 2, 4 where it is the axis of 4. The gradient of the bias is right, and so are the
# values and the loss, so a run trains on with a learning rate of kernels that depends on the mesh;
# Adam hides most of it, clipping by the norm spreads it to all others. Depthwise convolutions have
# it also where the images are split by the batch alone, as on any mesh for data and tensor
# parallelism. Where one axis splits the height and the outputs of the kernel, the values are
# multiplied as well.
# What helps: a mesh whose every axis splits the images; `jax.shard_map` over the batch.
#
# Output, the gradient as a multiple of that on one device: "height over 4 of 4 x 2: kernel 2.0,
# bias 1.0", "height over 2 of 4 x 2: kernel 4.0, bias 1.0", "batch over 4 of 4 x 2: kernel 1.0,
# bias 1.0", "height over 4, width over 2: kernel 1.0, bias 1.0", "depthwise, batch over 4 of 4 x 2:
# kernel 2.0, bias 1.0", "height and outputs over 2 of 4 x 2: values 4.0".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=8 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
images = jax.random.normal(jax.random.key(0), (8, 16, 16, 4))


kernel = jax.random.normal(jax.random.key(1), (3, 3, 4, 8))
bias = jax.random.normal(jax.random.key(2), (8,))


@jax.jit
def convolve(images, kernel):
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=4 // kernel.shape[2],
    )


@jax.jit
@jax.grad
def gradients(params, images):
    y = convolve(images, params["kernel"]) + params["bias"]
    return jnp.mean(y**2)


def split(array, *partition):
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*partition)))


def times(many, one):
    return f"{np.vdot(many, one) / np.vdot(one, one):.1f}"


found = []
for name, taps, partition in (
    ("height over 4 of 4 x 2", kernel, (None, "a")),
    ("height over 2 of 4 x 2", kernel, (None, "b")),
    ("batch over 4 of 4 x 2", kernel, ("a",)),
    ("height over 4, width over 2", kernel, (None, "a", "b")),
    ("depthwise, batch over 4 of 4 x 2", kernel[:, :, :1], ("a",)),
):
    params = {"kernel": taps, "bias": bias}
    one = gradients(params, images)
    many = gradients(split(params), split(images, *partition))
    kinds = ", ".join(f"{kind} {times(many[kind], one[kind])}" for kind in params)
    found.append(f"{name}: {kinds}")
many = convolve(split(images, None, "b"), split(kernel, None, None, None, "b"))
values = times(many, convolve(images, kernel))
found.append(f"height and outputs over 2 of 4 x 2: values {values}")
print(*found, sep="\n")
wanted = [
    "height over 4 of 4 x 2: kernel 2.0, bias 1.0",
    "height over 2 of 4 x 2: kernel 4.0, bias 1.0",
    "batch over 4 of 4 x 2: kernel 1.0, bias 1.0",
    "height over 4, width over 2: kernel 1.0, bias 1.0",
    "depthwise, batch over 4 of 4 x 2: kernel 2.0, bias 1.0",
    "height and outputs over 2 of 4 x 2: values 4.0",
]
sys.exit(found != wanted)
PYTHON
