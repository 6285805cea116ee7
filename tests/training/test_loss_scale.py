"""The scale follows the release's rule, and a step that overflows leaves nothing behind."""

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.precision import policy
from cogview_jax.training.loss_scale import (
    FACTOR,
    LossScaleConfig,
    initial_loss_scale,
    overflows,
    update,
)
from cogview_jax.training.objective import ModelValues, Objective, StepSums
from cogview_jax.training.optimizer import make_optimizer
from cogview_jax.training.state import TrainState, initial_state
from cogview_jax.training.step import make_step

#: The constructor arguments of the release's scaler under our names.
NAMES = {
    "init_scale": "initial",
    "scale_window": "window",
    "min_scale": "minimum",
    "delayed_shift": "hysteresis",
    "consecutive_hysteresis": "consecutive_hysteresis",
}


def test_scales_are_those_of_the_official_rule(fixtures):
    tables = json.loads((fixtures / "loss_scaler.json").read_text("utf-8"))
    step = jax.jit(update, static_argnums=0)
    for case in tables["cases"]:
        arguments = tables["defaults"] | case["args"]
        assert arguments["scale_factor"] == FACTOR
        config = LossScaleConfig(**{NAMES[n]: v for n, v in arguments.items() if n in NAMES})
        state = initial_loss_scale(config)
        for overflow, expected in zip(case["overflow"], case["after_each"], strict=True):
            state = step(config, state, jnp.bool(overflow))
            assert [float(value) for value in state[:4]] == expected


def test_overflow_is_found_as_the_release_finds_it(fixtures):
    tables = json.loads((fixtures / "loss_scaler.json").read_text("utf-8"))
    cases = [case for case in tables["detection"] if case["grad"] is not None]
    assert len(cases) > 3
    for case in cases:
        gradients = {"fine": jnp.ones(3), "case": jnp.array([float(x) for x in case["grad"]])}
        assert bool(overflows(gradients)) == case["overflow"], case["case"]


def test_overflows_at_the_floor_are_counted_by_hand():
    config = LossScaleConfig(initial=4.0, minimum=2.0, hysteresis=1, window=3)
    state, counts = initial_loss_scale(config), []
    for overflow in (True, True, False, False, False, True):
        state = update(config, state, jnp.bool(overflow))
        counts.append((float(state.scale), int(state.at_floor)))
    # 4 falls to 2 and stays, for two overflows; three steps after the last it rises, and then it
    # falls again.
    assert counts == [(2, 1), (2, 2), (2, 2), (2, 2), (4, 0), (2, 1)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"minimum": 0.0}, "minimum = 0.0: expected above 0"),
        ({"initial": 0.5}, "minimum 1.0 and initial 0.5: expected a minimum"),
        ({"window": 0}, "window = 0: expected at least 1"),
        ({"hysteresis": 0}, "hysteresis = 0"),
        ({"patience": 0}, "patience = 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        LossScaleConfig(**settings)


class Numbers(NamedTuple):
    """A batch of numbers."""

    x: Any


class Line(Objective):
    """Loss = mean of slope x; a batch decides the gradient. The model state counts batches."""

    def init(self, key):
        return ModelValues({"slope": jnp.float32(1)}, jnp.int32(0))

    def normalizer(self, batch):
        return jnp.float32(batch.x.shape[0])

    def sums(self, params, model_state, batch, rows, key):
        return StepSums(jnp.sum(params["slope"] * batch.x), {}, jnp.int32(1))

    def finish(self, values, aux):
        return values._replace(model_state=values.model_state + aux), {}


def test_a_step_that_overflows_changes_nothing_but_the_scale():
    config = LossScaleConfig(initial=2.0**20, hysteresis=1, window=100)
    descent = optax.adam(0.1)
    step = make_step(Line(), descent, optax.constant_schedule(0.1), seed=0, loss_scale=config)
    step = jax.jit(step)

    def run(batches):
        state = initial_state(Line(), descent, 0, config)
        for x in batches:
            state, metrics = step(state, Numbers(jnp.full(4, x, jnp.float32)))
        return state, metrics

    state, metrics = run([1.0, 2.0])
    before = jax.device_get(state)
    after, metrics = step(state, Numbers(jnp.full(4, 1e35, jnp.float32)))
    for name in ("step", "params", "opt_state", "model_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(after, name))
    assert (metrics["overflow"], metrics["skipped_steps"], int(after.position)) == (1, 1, 3)
    assert after.loss_scale.scale == before.loss_scale.scale / 2
    # What follows is what would have followed without that batch, but for the place in the data.
    resumed, metrics = step(after, Numbers(jnp.full(4, 3.0, jnp.float32)))
    unbroken, _ = run([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(resumed.params["slope"], unbroken.params["slope"])
    assert (int(resumed.step), int(resumed.position)) == (3, 4)
    assert (metrics["overflow"], metrics["skipped_steps"]) == (0, 1)


def test_a_scaled_step_in_float32_is_the_plain_step():
    """Powers of two round nothing; the two programs may only differ in what is fused."""
    objective, config = tiny.transformer_objective(), LossScaleConfig(initial=2.0**10)
    optimizer = make_optimizer(tiny.OPTIMIZER, 10)
    plain = tiny.start(objective)
    plain = plain.replace(opt_state=optimizer.init(plain.params))
    scaled = plain.replace(loss_scale=initial_loss_scale(config))
    rate = optax.constant_schedule(1e-2)
    results = []
    for state, scale in ((plain, None), (scaled, config)):
        step = make_step(objective, optimizer, rate, seed=0, loss_scale=scale)
        results.append(jax.jit(step)(state, tiny.sequences(0)))
    (plain, expected), (scaled, metrics) = results
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), plain.params, scaled.params
    )
    for name in ("loss", "grad_norm", "text_loss", "image_loss"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-6)
    assert (expected["loss_scale"], metrics["loss_scale"]) == (1, 1024)


@pytest.mark.parametrize("name", ["float16", "float16_pure"])
def test_float16_loses_gradients_that_the_scale_keeps(name):
    """Of a loss so small that float16 rounds its gradients to zero, the scaled ones stay right."""
    objective = tiny.transformer_objective()
    objective.model = objective.model.clone(policy=policy(name))
    params, batch = tiny.start(objective).params, tiny.sequences(0)
    rows, key = jnp.arange(len(batch.tokens)), jax.random.key(0)

    def gradient(model, scale, shrink=2.0**-26):
        objective.model = model

        def loss(params):
            sums = objective.sums(params, (), batch, rows, key)
            return sums.loss / objective.normalizer(batch) * shrink

        grads = jax.jit(jax.grad(lambda p: loss(p) * scale))(params)
        return grads["blocks"]["block"]["mlp"]["up"]["kernel"] / scale / shrink

    half = objective.model
    expected = gradient(half.clone(policy=policy("float32")), 1.0)
    assert np.abs(gradient(half, 1.0)).max() == 0
    error = np.abs(gradient(half, 2.0**26) - expected).max() / np.abs(expected).max()
    assert error < 0.03


def test_the_place_in_the_data_is_the_step_where_nothing_is_scaled():
    state = TrainState(jnp.int32(7), (), (), ())
    assert int(state.position) == 7
