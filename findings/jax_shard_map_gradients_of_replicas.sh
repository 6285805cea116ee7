#!/usr/bin/env bash
# jax 0.10.2, on four devices of a CPU; Python 3.11.
#
# Guess, before it was run: data parallelism as written for `pmap` (`jax.grad` of the loss of a
# device's part of the batch, then `lax.pmean` of the gradient) is right under `jax.shard_map`, too,
# or is refused, since that checks which values vary between devices.
# Seen: the gradient is four times too large, as many times as there are devices, and nothing is
# said. There `jax.grad` by parameters that all devices share gives the sum over the devices, and
# the mean of what is a sum already is that sum. `psum` and a division by four do the same. With
# check_vma=False, as under `pmap`, the same lines are right. The form that is right here, the
# gradient of `pmean(loss)`, gives with check_vma=False the gradient of one device's part, called
# that of all. So a step that is moved, or one keyword, multiplies the learning rate by the number
# of devices, and what is clipped; Adam hides it.
# What helps: `lax.pcast(params, "data", to="varying")` before `jax.grad`; then both are right.
#
# Output: "gradient: 10.5", "pmean of the gradient: checked 42.0, unchecked 10.5, pmap 10.5",
# "gradient of the pmean: checked 10.5, unchecked 1.5", "pcast before: checked 10.5, unchecked 10.5".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

MESH = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
weights, batch = jnp.ones(3), jnp.arange(24.0).reshape(8, 3)


def loss(weights, batch):
    return jnp.mean(batch @ weights)


def mean_of_gradients(weights, batch):
    return jax.lax.pmean(jax.grad(loss)(weights, batch), "data")


def gradient_of_the_mean(weights, batch):
    return jax.grad(lambda weights: jax.lax.pmean(loss(weights, batch), "data"))(weights)


def varying_first(weights, batch):
    return mean_of_gradients(jax.lax.pcast(weights, "data", to="varying"), batch)


def mapped(step, check):
    """The first entry of the gradient."""
    specs = {"in_specs": (P(), P("data")), "out_specs": P()}
    return float(jax.shard_map(step, mesh=MESH, check_vma=check, **specs)(weights, batch)[0])


def over_devices(step):
    parts = batch.reshape(4, 2, 3)
    return float(jax.pmap(step, in_axes=(None, 0), axis_name="data")(weights, parts)[0, 0])


found = [
    f"gradient: {float(jax.grad(loss)(weights, batch)[0])}",
    f"pmean of the gradient: checked {mapped(mean_of_gradients, True)}, unchecked"
    f" {mapped(mean_of_gradients, False)}, pmap {over_devices(mean_of_gradients)}",
    f"gradient of the pmean: checked {mapped(gradient_of_the_mean, True)}, unchecked"
    f" {mapped(gradient_of_the_mean, False)}",
    f"pcast before: checked {mapped(varying_first, True)}, unchecked"
    f" {mapped(varying_first, False)}",
]
print(*found, sep="\n")
wanted = [
    "gradient: 10.5",
    "pmean of the gradient: checked 42.0, unchecked 10.5, pmap 10.5",
    "gradient of the pmean: checked 10.5, unchecked 1.5",
    "pcast before: checked 10.5, unchecked 10.5",
]
sys.exit(found != wanted)
PYTHON
