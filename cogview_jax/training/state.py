"""Everything a step reads and writes, as one value."""

import dataclasses
from typing import Any

import flax
import jax
import optax

from cogview_jax.runtime.random_key import random_key
from cogview_jax.runtime.sharding import sharded_shapes, unbox
from cogview_jax.training.ema import initial_average
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
        ema: the moving average of the parameters that a bundle holds, float32; () in a run that
            keeps none.
    """

    step: Any
    params: Any
    opt_state: Any
    model_state: Any
    loss_scale: Any = ()
    ema: Any = ()

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
    ema_decay: float = 0.0,
) -> TrainState:
    """The state before step 0, its parameters boxed with their logical axis names.

    It has an average of the parameters if `ema_decay` is above 0.
    """
    params, model_state = values = objective.init(random_key(seed))
    scale = initial_loss_scale(loss_scale) if loss_scale else ()
    step = jax.numpy.zeros((), jax.numpy.int32)
    ema = initial_average(objective.bundle_values(values).params) if ema_decay else ()
    return TrainState(step, params, optimizer.init(params), model_state, scale, ema)


def state_shapes(
    objective: Objective[Any],
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
    loss_scale: LossScaleConfig | None = None,
    ema_decay: float = 0.0,
) -> TrainState:
    """The shapes, types and shardings of a state on `mesh`; no array is made.

    The moments of the optimizer and the average of the parameters are split like the parameters.
    """
    boxed = jax.eval_shape(lambda: initial_state(objective, optimizer, 0, loss_scale, ema_decay))
    return sharded_shapes(boxed, mesh)


def make_state(
    objective: Objective[Any],
    optimizer: optax.GradientTransformation,
    shapes: TrainState,
    seed: int,
    loss_scale: LossScaleConfig | None = None,
    ema_decay: float = 0.0,
) -> TrainState:
    """The state before step 0, made sharded: no device ever holds all of a split array.

    The values depend on the seed alone, not on the mesh.
    """
    make = jax.jit(
        lambda: unbox(initial_state(objective, optimizer, seed, loss_scale, ema_decay)),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, shapes),
    )
    return make()


def restart_average(objective: Objective[Any], state: TrainState) -> TrainState:
    """`state`, whose average (if it has one) starts anew from its parameters.

    It is needed where the parameters of a state were replaced, as by those of another bundle.
    """
    if not jax.tree.leaves(state.ema):
        return state
    copy = jax.jit(
        initial_average, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, state.ema)
    )
    return dataclasses.replace(state, ema=copy(objective.bundle_values(state.values).params))


def with_average(objective: Objective[Any], state: TrainState) -> TrainState:
    """`state` with its average in the place of the parameters that a bundle holds.

    It is for looking at and for the bundle, not for training on. The model state, such as a
    codebook that is itself a moving average, and what a bundle leaves out stay as they are.
    """
    held = objective.bundle_values(state.values)
    return state.with_values(
        objective.with_bundle_values(state.values, held._replace(params=state.ema))
    )
