#!/usr/bin/env bash
# flax 0.12.8, optax 0.2.8, jax 0.10.2, Python 3.11.
#
# Guess, before it was run: `nnx.state(model)` and `nnx.split(model)` give the values of that
# moment, as jax arrays never change, and `nnx.merge` of them makes a second model.
# Seen: what they give are the variables of the model themselves, so they follow it. A state that is
# kept at the best step is, at the end of the training, that of the last step, and putting it back
# by `nnx.update(model, best)` does nothing; a teacher or an average that starts as `nnx.merge(
# *nnx.split(model))` is the model, at any step. Shapes, types and names all are right, and the loss
# of a teacher against itself is 0. Also where the step is `nnx.jit`.
# What helps: `nnx.clone(model)`, or `jax.tree.map(jnp.copy, nnx.state(model))`.
#
# Output, the state after a step: "nnx.state: after", "nnx.split: after", "merge of split: after",
# "nnx.update with the state kept: after", "nnx.clone: before", "tree.map(jnp.copy): before".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet flax==0.12.8 optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

model = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)


@nnx.jit
def step(model, optimizer, x):
    gradients = nnx.grad(lambda model: (model(x) ** 2).sum())(model)
    optimizer.update(model, gradients)


def values(state):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(nnx.to_pure_dict(state))])


kept = {
    "nnx.state": nnx.state(model),
    "nnx.split": nnx.split(model)[1],
    "merge of split": nnx.state(nnx.merge(*nnx.split(model))),
    "nnx.clone": nnx.state(nnx.clone(model)),
    "tree.map(jnp.copy)": jax.tree.map(jnp.copy, nnx.state(model)),
}
moments = {"before": values(nnx.state(model))}
step(model, optimizer, jnp.ones((2, 3)))
moments["after"] = values(nnx.state(model))
assert not np.array_equal(*moments.values())


def moment(state):
    return next(name for name, then in moments.items() if np.array_equal(values(state), then))


found = [f"{name}: {moment(state)}" for name, state in kept.items()]
nnx.update(model, kept["nnx.state"])
found.insert(3, f"nnx.update with the state kept: {moment(nnx.state(model))}")
print(*found, sep="\n")
wanted = [
    "nnx.state: after",
    "nnx.split: after",
    "merge of split: after",
    "nnx.update with the state kept: after",
    "nnx.clone: before",
    "tree.map(jnp.copy): before",
]
sys.exit(found != wanted)
PYTHON
