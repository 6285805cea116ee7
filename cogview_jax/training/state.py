"""Everything a step reads and writes, as one value."""

from typing import Any

import flax
import jax
import optax

from cogview_jax.runtime.sharding import sharded_shapes, unbox
from cogview_jax.training.objective import Objective


@flax.struct.dataclass
class TrainState:
    """One pytree: a step is a pure function of it and a batch.

    step: how many steps are done, int32, which is also the place in the data (step k reads batch k)
    and the clock of every random key. extras: state that is no parameter, such as a codebook.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    extras: Any


def initial_state(
    objective: Objective, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """The state before step 0, its parameters boxed with their logical axis names."""
    params, extras = objective.init(jax.random.key(seed))
    return TrainState(jax.numpy.zeros((), jax.numpy.int32), params, optimizer.init(params), extras)


def state_shapes(
    objective: Objective, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> TrainState:
    """The shapes, types and shardings of a state on `mesh`, without making one.

    The optimizer's moments are split like the parameters they belong to.
    """
    boxed = jax.eval_shape(lambda: initial_state(objective, optimizer, seed=0))
    return sharded_shapes(boxed, mesh)


def make_state(
    objective: Objective, optimizer: optax.GradientTransformation, shapes: TrainState, seed: int
) -> TrainState:
    """The state before step 0, made where it belongs: no device ever holds all of a split array.

    The values depend on the seed alone, not on the mesh.
    """
    make = jax.jit(
        lambda: unbox(initial_state(objective, optimizer, seed)),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, shapes),
    )
    return make()
