#!/usr/bin/env bash
# optax 0.2.8, jax 0.10.2 (on a CPU), numpy 2.4.6, Python 3.11.
#
# Guess, before it was run: for parameters in bfloat16 `optax.adam` keeps its moments in bfloat16
# (`mu_dtype` is for the first alone), and they follow the gradient with some rounding.
# Seen: the second moment only ever grows. Its decay b2 = .999 is 1 in bfloat16, so what it has
# gathered it never forgets, and what is added stops where it is half a unit of the last place, at
# half of the squared gradient. 3,000 steps of gradient 1 and then 10,000 of gradient .01: updates
# are .014 of the rate at the end, and stay so for ever; in float32 .836, on the way back to 1. A
# warm-up with large gradients, or one outlier, so slows a run down for good, with no sign. b1 = .9
# is fine, and b2 = .99 is .988, which forgets.
# What helps: parameters in float32 that are cast in the step, or b2 of .99.
#
# Output: "float32: 0.836 of the rate, second moment 0.0001", "bfloat16: 0.014 of the rate, second
# moment 0.5", "bfloat16 with b2 = .99: 0.9 of the rate".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import functools
import sys

import jax
import jax.numpy as jnp
import optax

RATE = 1e-3


def trained(dtype, b2):
    """The share of the rate that the last update has, and the second moment."""
    optimizer = optax.adam(RATE, b2=b2)

    @functools.partial(jax.jit, static_argnames="count")
    def steps(state, gradient, count):
        def step(state, _):
            update, state = optimizer.update(jnp.full(4, gradient, dtype), state)
            return state, update[0]

        state, updates = jax.lax.scan(step, state, length=count)
        return state, updates[-1]

    state = optimizer.init(jnp.zeros(4, dtype))
    state, _ = steps(state, 1.0, 3000)
    state, update = steps(state, 0.01, 10_000)
    return -float(update) / RATE, float(state[0].nu[0])


share, moment = trained(jnp.float32, 0.999)
short, stuck = trained(jnp.bfloat16, 0.999)
quick, _ = trained(jnp.bfloat16, 0.99)
found = [
    f"float32: {share:.3f} of the rate, second moment {moment:.4f}",
    f"bfloat16: {short:.3f} of the rate, second moment {stuck:.1f}",
    f"bfloat16 with b2 = .99: {quick:.1f} of the rate",
]
print(*found, sep="\n")
wanted = [
    "float32: 0.836 of the rate, second moment 0.0001",
    "bfloat16: 0.014 of the rate, second moment 0.5",
    "bfloat16 with b2 = .99: 0.9 of the rate",
]
sys.exit(found != wanted)
PYTHON
