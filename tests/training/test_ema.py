"""The moving average of the weights, against a recurrence over the history of the parameters."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny
from cogview_jax.runtime.mesh import MeshConfig, make_mesh, place_batch
from cogview_jax.training.loss_scale import LossScaleConfig
from cogview_jax.training.objective import ModelValues, Objective, StepSums
from cogview_jax.training.state import (
    initial_state,
    make_state,
    restart_average,
    state_shapes,
    with_average,
)
from cogview_jax.training.step import make_step

DECAY, STEPS = 0.4, 6


def recurrence(history):
    """The average after every update of an array, in float64 by numpy."""
    average, averages = np.float64(history[0]), []
    for update, value in enumerate(history[1:], start=1):
        decay = min(DECAY, (1 + update) / (10 + update))
        average = decay * average + (1 - decay) * np.float64(value)
        averages.append(average)
    return averages


def trained(objective, batches, mesh):
    """The state before a run, and after every step of it."""
    optimizer = optax.adam(1e-2, eps=1e-3)
    rate = optax.constant_schedule(1e-2)
    step = jax.jit(make_step(objective, optimizer, rate, seed=0, ema_decay=DECAY))
    with jax.set_mesh(mesh):
        shapes = state_shapes(objective, optimizer, mesh, ema_decay=DECAY)
        states = [make_state(objective, optimizer, shapes, 0, ema_decay=DECAY)]
        for number in range(STEPS):
            states.append(step(states[-1], place_batch(batches(number), mesh))[0])
    same = jax.tree.map(
        lambda leaf, shape: leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim),
        states[-1].ema,
        shapes.ema,
    )
    assert jax.tree.all(same)
    return states


def test_the_average_is_a_slow_recurrence_and_a_mesh_changes_nothing():
    objective = tiny.codec_objective()
    one = trained(objective, tiny.images, make_mesh(MeshConfig(), jax.devices()[:1]))
    eight = trained(objective, tiny.images, make_mesh(MeshConfig(data=2, fsdp=4)))
    for states in (one, eight):
        averages = [jax.tree.leaves(state.ema) for state in states]
        histories = zip(*(jax.tree.leaves(state.params) for state in states), strict=True)
        for place, history in enumerate(histories):
            np.testing.assert_array_equal(averages[0][place], history[0])
            for number, expected in enumerate(recurrence(history), start=1):
                found = averages[number][place]
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
            assert not np.allclose(averages[-1][place], history[-1], rtol=0, atol=1e-4)
    for ours, theirs in zip(
        jax.tree.leaves(one[-1].ema), jax.tree.leaves(eight[-1].ema), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


class Numbers(NamedTuple):
    """A batch of numbers."""

    x: Any


class TwoSlopes(Objective):
    """Loss = mean of slope x; a second slope is trained too, but no bundle holds it."""

    def init(self, key):
        params = {"slope": jnp.float32(1), "judge": jnp.float32(2), "fixed": jnp.float32(1 / 3)}
        return ModelValues(params, jnp.int32(0))

    def normalizer(self, batch):
        return jnp.float32(batch.x.shape[0])

    def sums(self, params, model_state, batch, rows, key):
        loss = jnp.sum((params["slope"] + params["judge"]) * batch.x)
        return StepSums(loss, {}, jnp.int32(1))

    def finish(self, values, aux):
        return values._replace(model_state=values.model_state + aux), {}

    def bundle_values(self, values):
        kept = {name: value for name, value in values.params.items() if name != "judge"}
        return values._replace(params=kept)

    def with_bundle_values(self, values, given):
        judge = {"judge": values.params["judge"]}
        return ModelValues(given.params | judge, given.model_state)


@pytest.fixture(scope="module")
def scaled():
    """A float16 run of two steps, and its step."""
    config = LossScaleConfig(initial=2.0**20, hysteresis=1, window=100)
    descent, rate = optax.sgd(0.1), optax.constant_schedule(0.1)
    step = make_step(TwoSlopes(), descent, rate, seed=0, loss_scale=config, ema_decay=DECAY)
    step = jax.jit(step)
    state = initial_state(TwoSlopes(), descent, 0, config, DECAY)
    for x in (1.0, 2.0):
        state, _ = step(state, Numbers(jnp.full(4, x, jnp.float32)))
    return step, state


def test_the_average_is_of_what_a_bundle_holds(scaled):
    _, state = scaled
    assert set(state.ema) == {"slope", "fixed"}
    # 1, then 0.9 after a gradient of 1, then 0.7 after one of 2.
    assert state.params["slope"] == pytest.approx(0.7)
    assert state.ema["slope"] == pytest.approx(recurrence([1.0, 0.9, 0.7])[-1], rel=1e-6)
    # What never changes is its own average, bit for bit.
    assert state.ema["fixed"] == np.float32(1 / 3)


def test_a_step_that_overflows_leaves_the_average_alone(scaled):
    step, state = scaled
    after, metrics = step(state, Numbers(jnp.full(4, 1e35, jnp.float32)))
    assert metrics["overflow"] == 1
    assert (float(after.ema["slope"]), int(after.position)) == (float(state.ema["slope"]), 3)
    # The decay follows the updates and not the tries.
    later, _ = step(after, Numbers(jnp.full(4, 1.0, jnp.float32)))
    expected = recurrence([1.0, 0.9, 0.7, 0.6])[-1]
    assert later.ema["slope"] == pytest.approx(expected, rel=1e-6)


def test_a_state_shows_its_average_and_keeps_what_no_bundle_holds(scaled):
    _, state = scaled
    shown = with_average(TwoSlopes(), state)
    assert shown.params == state.ema | {"judge": state.params["judge"]}
    assert shown.model_state == state.model_state == 2


def test_an_average_starts_anew_from_other_parameters(scaled):
    _, state = scaled
    state = dataclasses.replace(state, params=state.params | {"slope": jnp.float32(5)})
    anew = restart_average(TwoSlopes(), state)
    assert anew.ema == {"slope": 5, "fixed": np.float32(1 / 3)}
    plain = initial_state(TwoSlopes(), optax.sgd(0.1), 0)
    assert plain.ema == ()
    assert restart_average(TwoSlopes(), plain) is plain
