"""Everything a step reads and writes, as one value."""

import dataclasses
from typing import Any

import flax
import jax
import optax

from cogview_jax.runtime.random_key import random_key
from cogview_jax.runtime.sharding import sharded_shapes, unbox
from cogview_jax.training.loss_scale import LossScaleConfig, initial_loss_scale
from cogview_jax.training.objective import ModelValues, Objective


@flax.struct.dataclass
class TrainState:
    """One pytree: a step is a pure function of it and a batch.

    Attributes:
        step: the number of updates, an int32 scalar. The schedule and every random key depend on
            it.
        params: the parameters.
        opt_state: the state of the optimizer.
        model_state: state that no gradient reaches, such as a codebook.
        loss_scale: a `LossScale`, or () in a precision that needs none.
    """

    step: Any
    params: Any
    opt_state: Any
    model_state: Any
    loss_scale: Any = ()

    @property
    def position(self) -> Any:
        """How many steps were tried, an int32 scalar: the position in the data.

        It differs from `step` by the steps that overflowed and were undone.
        """
        return self.loss_scale.steps if self.loss_scale else self.step

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The mesh that the state is sharded over."""
        sharding = self.step.sharding
        assert isinstance(sharding, jax.sharding.NamedSharding)
        assert isinstance(sharding.mesh, jax.sharding.Mesh)
        return sharding.mesh

    @property
    def values(self) -> ModelValues:
        """The parameters and the model state."""
        return ModelValues(self.params, self.model_state)

    def with_values(self, values: ModelValues) -> "TrainState":
        """This state with other parameters and another model state."""
        return dataclasses.replace(self, params=values.params, model_state=values.model_state)


def initial_state(
    objective: Objective[Any],
    optimizer: optax.GradientTransformation,
    seed: int,
    loss_scale: LossScaleConfig | None = None,
) -> TrainState:
    """The state before step 0, its parameters boxed with their logical axis names."""
    params, model_state = objective.init(random_key(seed))
    scale = initial_loss_scale(loss_scale) if loss_scale else ()
    step = jax.numpy.zeros((), jax.numpy.int32)
    return TrainState(step, params, optimizer.init(params), model_state, scale)


def state_shapes(
    objective: Objective[Any],
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
    loss_scale: LossScaleConfig | None = None,
) -> TrainState:
    """The shapes, types and shardings of a state on `mesh`; no array is made.

    The moments of the optimizer are split like their parameters.
    """
    boxed = jax.eval_shape(lambda: initial_state(objective, optimizer, 0, loss_scale))
    return sharded_shapes(boxed, mesh)


def make_state(
    objective: Objective[Any],
    optimizer: optax.GradientTransformation,
    shapes: TrainState,
    seed: int,
    loss_scale: LossScaleConfig | None = None,
) -> TrainState:
    """The state before step 0, made sharded: no device ever holds all of a split array.

    The values depend on the seed alone, not on the mesh.
    """
    make = jax.jit(
        lambda: unbox(initial_state(objective, optimizer, seed, loss_scale)),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, shapes),
    )
    return make()
