"""Everything a step reads and writes, as one value."""

from typing import Any

import flax
import jax
import optax

from cogview_jax.runtime.random_key import random_key
from cogview_jax.runtime.sharding import sharded_shapes, unbox
from cogview_jax.training.loss_scale import LossScaleConfig, initial_loss_scale
from cogview_jax.training.objective import Objective


@flax.struct.dataclass
class TrainState:
    """One pytree: a step is a pure function of it and a batch.

    step: how many steps changed the parameters, int32: the clock of the schedule and of every
    random key. extras: state that is no parameter, such as a codebook. loss_scale: a `LossScale`,
    or () in a precision that needs none.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    extras: Any
    loss_scale: Any = ()

    @property
    def position(self) -> jax.Array:
        """How many steps were tried, int32: the place in the data (step k reads batch k).

        It differs from `step` by the steps that overflowed and were undone.
        """
        return self.loss_scale.steps if self.loss_scale else self.step


def initial_state(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    seed: int,
    loss_scale: LossScaleConfig | None = None,
) -> TrainState:
    """The state before step 0, its parameters boxed with their logical axis names."""
    params, extras = objective.init(random_key(seed))
    scale = initial_loss_scale(loss_scale) if loss_scale else ()
    step = jax.numpy.zeros((), jax.numpy.int32)
    return TrainState(step, params, optimizer.init(params), extras, scale)


def state_shapes(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    loss_scale: LossScaleConfig | None = None,
) -> TrainState:
    """The shapes, types and shardings of a state on `mesh`, without making one.

    The optimizer's moments are split like the parameters they belong to.
    """
    boxed = jax.eval_shape(lambda: initial_state(objective, optimizer, 0, loss_scale))
    return sharded_shapes(boxed, mesh)


def make_state(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    shapes: TrainState,
    seed: int,
    loss_scale: LossScaleConfig | None = None,
) -> TrainState:
    """The state before step 0, made where it belongs: no device ever holds all of a split array.

    The values depend on the seed alone, not on the mesh.
    """
    make = jax.jit(
        lambda: unbox(initial_state(objective, optimizer, seed, loss_scale)),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, shapes),
    )
    return make()
