"""One training step, for every task: (state, batch) -> (state, metrics)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from cogview_jax.runtime.random_key import random_key
from cogview_jax.training.ema import update_average
from cogview_jax.training.loss_scale import LossScaleConfig, overflows, update
from cogview_jax.training.objective import (
    BatchObjective,
    BatchT,
    Metrics,
    ModelValues,
    Objective,
    StepSums,
)
from cogview_jax.training.state import TrainState

Step = Callable[[TrainState, BatchT], tuple[TrainState, Metrics]]
Part = TypeVar("Part")
Sum = TypeVar("Sum")

#: Names the random stream of training steps, apart from initialisation's.
STEP_STREAM = 1


def make_step(
    objective: Objective[BatchT],
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    *,
    seed: int,
    accumulate: int = 1,
    loss_scale: LossScaleConfig | None = None,
    ema_decay: float = 0.0,
    muon_rate: optax.Schedule | None = None,
) -> Step[BatchT]:
    """The step function, to be jitted with its first argument donated.

    The random key of a step is folded from (seed, stream, step), never carried.

    Args:
        objective: what is minimised.
        optimizer: makes updates of gradients.
        rate: the learning rate by step, for the metrics.
        seed: of the random keys.
        accumulate: the number of parts that a batch is split into. Their gradients are summed,
            which gives the gradient of the whole batch. See `BatchObjective` for losses that are
            no sums over rows.
        loss_scale: for states that have one. A step that overflows then leaves everything but the
            scale as it was; its metric `overflow` is 1, and `skipped_steps` counts such steps.
        ema_decay: for states that have an average of the parameters: see `ema.update_average`.
        muon_rate: that of Muon, for the metrics, where it is another: see `muon_schedule`.
    """

    def step(state: TrainState, batch: BatchT) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(random_key(seed), STEP_STREAM)
        key = jax.random.fold_in(key, state.step)
        normalizer = objective.normalizer(batch)
        scale = state.loss_scale.scale if loss_scale else jnp.float32(1)

        rows = jnp.arange(jax.tree.leaves(batch)[0].shape[0])
        sums_of = objective.sums
        if accumulate > 1 and isinstance(objective, BatchObjective):
            sums_of = knowing_the_batch(objective, state.values, (batch, rows), key, accumulate)

        def gradient(part: tuple[BatchT, Array]) -> tuple[Any, StepSums]:
            def loss(params: Any) -> tuple[Array, StepSums]:
                sums = sums_of(params, state.model_state, *part, key)
                return sums.loss / normalizer * scale, sums

            return jax.grad(loss, has_aux=True)(state.params)

        scaled, sums = sum_over_parts(gradient, (batch, rows), accumulate)
        gradients = jax.tree.map(lambda leaf: leaf / scale, scaled) if loss_scale else scaled
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        values, metrics = objective.finish(ModelValues(params, state.model_state), sums.aux)
        metrics |= {
            "loss": sums.loss / normalizer,
            "lr": rate(state.step),
            **({"muon_lr": muon_rate(state.step)} if muon_rate else {}),
            "grad_norm": optax.tree.norm(gradients),
            "loss_scale": scale,
            **{name: total / of for name, (total, of) in sums.metrics.items()},
        }
        new = TrainState(state.step + 1, values.params, opt_state, values.model_state)
        if ema_decay:
            held = objective.bundle_values(values).params
            ema = update_average(state.ema, held, new.step, ema_decay)
            new = dataclasses.replace(new, ema=ema)
        if loss_scale is None:
            return new, metrics
        overflow = overflows(scaled) | ~jnp.isfinite(sums.loss)
        tried = update(loss_scale, state.loss_scale, overflow)
        new = jax.tree.map(
            lambda before, after: jnp.where(overflow, before, after),
            state,
            dataclasses.replace(new, loss_scale=state.loss_scale),
        )
        new = dataclasses.replace(new, loss_scale=tried)
        return new, metrics | {
            "overflow": overflow.astype(jnp.float32),
            "skipped_steps": tried.steps - new.step,
            "stuck": tried.at_floor >= loss_scale.patience,
        }

    return step


def knowing_the_batch(
    objective: BatchObjective[BatchT],
    values: ModelValues,
    batch: tuple[BatchT, Array],
    key: Key[Array, ""],
    parts: int,
) -> Callable[..., StepSums]:
    """`objective.sums` for the parts of a batch, with `whole` given where it is needed.

    Args:
        objective: says what has to be known of the whole batch.
        values: the parameters and the model state.
        batch: the whole batch and the numbers of its rows.
        key: of the step.
        parts: how many there are.
    """

    def known(part: tuple[BatchT, Array]) -> Any:
        return objective.batch_sums(*values, *part, key)

    if not jax.tree.leaves(jax.eval_shape(known, batch)):
        return objective.sums
    return functools.partial(objective.sums, whole=sum_over_parts(known, batch, parts))


def sum_over_parts(function: Callable[[Part], Sum], batch: Part, parts: int) -> Sum:
    """The sum of `function` over the parts of a batch, which are computed one after the other.

    `batch` and what `function` returns are pytrees of arrays; the first axis of a batch's is rows.

    Part i holds rows i, i + parts, ...: every device keeps its own rows, so nothing moves between
    devices.
    """
    if parts == 1:
        return function(batch)

    def split(array: Array) -> Array:
        return jnp.moveaxis(array.reshape(-1, parts, *array.shape[1:]), 1, 0)

    def add(total: Sum, part: Part) -> tuple[Sum, None]:
        return jax.tree.map(jnp.add, total, function(part)), None

    pieces = jax.tree.map(split, batch)
    first = jax.tree.map(lambda array: array[0], pieces)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, first)
    )
    return jax.lax.scan(add, zeros, pieces)[0]
