"""One step is the same however it is split: over devices, and over the parts of a batch."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny
from cogview_jax.runtime.mesh import MeshConfig, make_mesh, place_batch
from cogview_jax.training.objective import ModelValues, Objective, StepSums
from cogview_jax.training.optimizer import make_optimizer, schedule
from cogview_jax.training.state import TrainState, state_shapes
from cogview_jax.training.step import make_step, sum_over_parts

STEPS = 4
TASKS = {
    "transformer": (tiny.transformer_objective(), tiny.sequences),
    "codec": (tiny.codec_objective(), tiny.images),
}
MESHES = {
    "data 8": MeshConfig(data=8),
    "fsdp 8": MeshConfig(data=1, fsdp=8),
    "data 2, fsdp 2, tensor 2": MeshConfig(data=2, fsdp=2, tensor=2),
    "data 2, tensor 4": MeshConfig(data=2, tensor=4),
}
#: Partitioning is the same, and compiling takes half as long.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Trained:
    """Some steps of a task: the program, where it left the state, the metrics of every step."""

    def __init__(self, task, start, mesh=None, accumulate=1):
        objective, batches = TASKS[task]
        optimizer, rate = (make(tiny.OPTIMIZER, STEPS) for make in (make_optimizer, schedule))
        mesh = mesh or make_mesh(MeshConfig(), jax.devices()[:1])
        step = make_step(objective, optimizer, rate, seed=3, accumulate=accumulate)
        self.shapes = state_shapes(objective, optimizer, mesh)
        place = jax.tree.map(lambda leaf: leaf.sharding, self.shapes)
        state = start.replace(opt_state=optimizer.init(start.params))
        self.metrics = []
        with jax.set_mesh(mesh):
            state = jax.device_put(state, place)
            lowered = jax.jit(step).lower(state, place_batch(batches(0), mesh))
            compiled = lowered.compile(QUICK)
            for number in range(STEPS):
                batch = place_batch(batches(number), mesh)
                self.state, metrics = compiled(state, batch)
                state = jax.device_put(self.state, place)
                self.metrics.append(jax.device_get(metrics))
        self.lowered, self.compiled = lowered.as_text(), compiled.as_text()


def assert_same(split, whole):
    """To a few roundings of the largest value of each array."""
    for ours, theirs in zip(split.metrics, whole.metrics, strict=True):
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-6, err_msg=name)
    for (path, ours), theirs in zip(
        jax.tree.leaves_with_path(split.state), jax.tree.leaves(whole.state), strict=True
    ):
        name, atol = jax.tree_util.keystr(path), 2e-6 * np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def starts():
    """The state before step 0 of each task."""
    return {task: tiny.start(objective) for task, (objective, _) in TASKS.items()}


@pytest.fixture(scope="module")
def whole(starts):
    """Each task on one device."""
    return {task: Trained(task, start) for task, start in starts.items()}


@pytest.fixture(scope="module", params=MESHES)
def transformer(request, starts):
    return Trained("transformer", starts["transformer"], make_mesh(MESHES[request.param]))


# Nothing in a codec is split over `tensor`.
@pytest.fixture(scope="module", params=["fsdp 8", "data 2, fsdp 2, tensor 2"])
def codec(request, starts):
    return Trained("codec", starts["codec"], make_mesh(MESHES[request.param]))


def test_a_mesh_changes_nothing_for_the_transformer(transformer, whole):
    assert_same(transformer, whole["transformer"])
    losses = [metrics["loss"] for metrics in transformer.metrics]
    assert losses == sorted(losses, reverse=True)


def test_a_mesh_changes_nothing_for_the_codec(codec, whole):
    assert_same(codec, whole["codec"])
    assert sum(metrics["revived"] for metrics in codec.metrics) > 0


def test_activations_are_constrained_and_the_batch_stays_split(transformer):
    # The embedding's output, four activations of the scanned block, and all of them backwards.
    assert transformer.lowered.count("sharding_constraint") >= 2 * 5
    # Weights are gathered and gradients summed. An exchange would mean that rows of the batch are
    # not where the constraints put them.
    assert not re.findall(r" all-to-all\(", transformer.compiled)


def test_a_step_leaves_every_array_split_as_it_was(transformer):
    kept = jax.tree.map(
        lambda leaf, shape: leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim),
        transformer.state,
        transformer.shapes,
    )
    assert all(jax.tree.leaves(kept))


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_parts_are_interleaved_rows(parts):
    batch = {"x": jnp.arange(8), "y": jnp.arange(16).reshape(8, 2)}
    seen = sum_over_parts(lambda part: part["x"] ** 2 + part["y"][:, 1], batch, parts)
    every = np.arange(8) ** 2 + np.arange(1, 16, 2)
    np.testing.assert_array_equal(seen, every.reshape(-1, parts).sum(axis=1))


@pytest.mark.parametrize("task", TASKS)
def test_accumulated_is_the_whole_batch(task, starts, whole):
    accumulated = Trained(task, starts[task], accumulate=4)
    assert_same(accumulated, whole[task])


def test_parts_of_the_batch_weigh_differently():
    """So the mean of the parts' mean losses, a common mistake, would be another number."""
    batch = tiny.sequences(0)
    rows = (3 * batch.text_weights + batch.image_weights).sum(axis=1)
    parts = rows.reshape(-1, 4).sum(axis=0)
    assert parts.max() > 1.05 * parts.min()


class Numbers(NamedTuple):
    """A batch of numbers."""

    x: Any


class Dice(Objective):
    """loss = mean of slope x; every part of a step reports a draw from its key."""

    def init(self, key):
        return ModelValues({"slope": jnp.float32(1)}, jnp.float32(0))

    def normalizer(self, batch):
        return jnp.float32(len(batch.x))

    def sums(self, params, model_state, batch, rows, key):
        draws = {"draw": (jax.random.uniform(key), jnp.float32(1))}
        return StepSums(params["slope"] * batch.x.sum(), draws, rows.sum())

    def finish(self, values, aux):
        after = values._replace(model_state=values.model_state + aux)
        return after, {}


def test_keys_follow_from_seed_and_step_alone():
    descent, batch = optax.sgd(0.5), Numbers(jnp.arange(4.0))

    def draw(seed, step, accumulate=1):
        run = make_step(Dice(), descent, lambda count: count, seed=seed, accumulate=accumulate)
        params, model_state = Dice().init(None)
        state = TrainState(jnp.int32(step), params, descent.init(params), model_state)
        return jax.jit(run)(state, batch)

    state, metrics = draw(0, 0)
    assert metrics["draw"] == draw(0, 0)[1]["draw"]
    assert len({float(draw(*at)[1]["draw"]) for at in ((0, 0), (0, 1), (1, 0), (1, 1))}) == 4
    # Parts share the key of the step; whoever wants a part's own folds in its rows.
    assert draw(0, 0, accumulate=2)[1]["draw"] == metrics["draw"]

    assert (metrics["loss"], metrics["grad_norm"], metrics["lr"]) == (1.5, 1.5, 0)
    assert (state.step, state.params["slope"], state.model_state) == (
        1,
        1 - 0.5 * 1.5,
        0 + 1 + 2 + 3,
    )
    assert draw(0, 5)[1]["lr"] == 5
