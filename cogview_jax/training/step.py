"""One training step, for every task: (state, batch) -> (state, metrics)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cogview_jax.runtime.random_key import random_key
from cogview_jax.training.loss_scale import LossScaleConfig, overflows, update
from cogview_jax.training.objective import Objective, Terms
from cogview_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]

#: Names the random stream of training steps, apart from initialisation's.
STEP_STREAM = 1


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    *,
    seed: int,
    accumulate: int = 1,
    loss_scale: LossScaleConfig | None = None,
) -> Step:
    """The step function, to be jitted with its first argument donated.

    accumulate: into how many parts a batch is cut; their summed gradient is the whole batch's. The
    random key of a step is folded from (seed, stream, step), never carried. loss_scale: for states
    that have one. A step that overflows then leaves everything but the scale as it was; metrics
    tell it by `overflow` 1, and `skipped_steps` counts them.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(random_key(seed), STEP_STREAM)
        key = jax.random.fold_in(key, state.step)
        weight = objective.weight(batch)
        scale = state.loss_scale.scale if loss_scale else jnp.float32(1)

        def gradient(part: Batch) -> tuple[Any, Terms]:
            def loss(params: Any) -> tuple[jax.Array, Terms]:
                terms = objective.terms(params, state.extras, part, key)
                return terms.loss / weight * scale, terms

            return jax.grad(loss, has_aux=True)(state.params)

        rows = jax.tree.leaves(batch)[0].shape[0]
        scaled, terms = sum_over_parts(gradient, {**batch, "row": jnp.arange(rows)}, accumulate)
        gradients = jax.tree.map(lambda leaf: leaf / scale, scaled) if loss_scale else scaled
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        extras, metrics = objective.finish(state.extras, terms.carry, key)
        metrics |= {
            "loss": terms.loss / weight,
            "lr": rate(state.step),
            "grad_norm": optax.tree.norm(gradients),
            "loss_scale": scale,
            **{name: total / of for name, (total, of) in terms.metrics.items()},
        }
        new = TrainState(
            state.step + 1, optax.apply_updates(state.params, updates), opt_state, extras
        )
        if loss_scale is None:
            return new, metrics
        overflow = overflows(scaled) | ~jnp.isfinite(terms.loss)
        tried = update(loss_scale, state.loss_scale, overflow)
        new = jax.tree.map(
            lambda before, after: jnp.where(overflow, before, after),
            state,
            new.replace(loss_scale=state.loss_scale),
        ).replace(loss_scale=tried)
        return new, metrics | {
            "overflow": overflow.astype(jnp.float32),
            "skipped_steps": tried.steps - new.step,
            "stuck": tried.at_floor >= loss_scale.patience,
        }

    return step


def sum_over_parts(function: Callable[[Batch], Any], batch: Batch, parts: int) -> Any:
    """The sum of `function` (a pytree) over a batch cut into `parts`, one after the other.

    Part i holds rows i, i + parts, ...: every device keeps its own rows, so nothing moves between
    devices.
    """
    if parts == 1:
        return function(batch)

    def cut(array: jax.Array) -> jax.Array:
        return jnp.moveaxis(array.reshape(-1, parts, *array.shape[1:]), 1, 0)

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(part)), None

    pieces = jax.tree.map(cut, batch)
    first = jax.tree.map(lambda array: array[0], pieces)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, first)
    )
    return jax.lax.scan(add, zeros, pieces)[0]
