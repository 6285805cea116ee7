"""What was saved comes back bit for bit, on any mesh, whatever happened while it was written."""

import dataclasses
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from cogview_jax.checkpoints.checkpointer import Checkpointer
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.training.loss_scale import LossScaleConfig, initial_loss_scale
from cogview_jax.training.optimizer import make_optimizer
from cogview_jax.training.state import TrainState, state_shapes

OPTIMIZER = make_optimizer(tiny.OPTIMIZER, 10)
TASKS = {"transformer": tiny.transformer_objective(), "codec": tiny.codec_objective()}


def shapes_on(config, objective, devices=None):
    return state_shapes(objective, OPTIMIZER, make_mesh(config, devices))


def random_state(objective, shapes, step=0, seed=0):
    """A state as training leaves it: no array is zero or equal to another."""
    rng = np.random.default_rng(seed)
    state = tiny.start(objective)
    state = state.replace(opt_state=OPTIMIZER.init(state.params))

    def fill(leaf, shape):
        if leaf.dtype == np.int32:
            return np.asarray(step, np.int32)
        return rng.standard_normal(leaf.shape).astype(np.float32)

    filled = jax.tree.map(fill, state, shapes)
    return jax.device_put(filled, jax.tree.map(lambda leaf: leaf.sharding, shapes))


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(expected))


@pytest.mark.parametrize("task", TASKS)
def test_a_state_comes_back_bit_for_bit_on_any_mesh(task, tmp_path):
    objective = TASKS[task]
    shapes = shapes_on(MeshConfig(data=2, fsdp=2, tensor=2), objective)
    state = random_state(objective, shapes, step=7)
    with Checkpointer(tmp_path / "c") as checkpointer:
        checkpointer.save(7, state)
    for config, devices in ((MeshConfig(data=1, fsdp=8), None), (MeshConfig(), jax.devices()[:1])):
        others = shapes_on(config, objective, devices)
        with Checkpointer(tmp_path / "c") as checkpointer:
            found = checkpointer.restore(others)
        assert_equal(found, state)
        placed = jax.tree.map(lambda leaf, shape: leaf.sharding == shape.sharding, found, others)
        assert all(jax.tree.leaves(placed))


@pytest.fixture
def shapes():
    return shapes_on(MeshConfig(), TASKS["codec"])


def test_nothing_saved_is_nothing_restored(shapes, tmp_path):
    with Checkpointer(tmp_path / "c") as checkpointer:
        assert checkpointer.restore(shapes) is None


def test_the_newest_stay_and_the_newest_comes_back(shapes, tmp_path):
    states = {step: random_state(TASKS["codec"], shapes, step, seed=step) for step in (3, 6, 9, 10)}
    with Checkpointer(tmp_path / "c", keep=2) as checkpointer:
        for step, state in states.items():
            checkpointer.save(step, state)
        # The last step of a run is due twice when it is also a multiple.
        checkpointer.save(10, states[3])
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["10", "9"]
    with Checkpointer(tmp_path / "c") as checkpointer:
        assert_equal(checkpointer.restore(shapes), states[10])


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path):
    """Writing is asynchronous, and the step that follows reuses the memory of the saved state."""
    size = 2**22
    state = TrainState(jnp.int32(1), {"kernel": jnp.arange(size, dtype=jnp.float32)}, (), ())
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: -x, state), donate_argnums=0)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    with Checkpointer(tmp_path / "c") as checkpointer:
        checkpointer.save(1, state)
        for _ in range(5):
            state = overwrite(state)
    with Checkpointer(tmp_path / "c") as checkpointer:
        found = checkpointer.restore(shapes)
    np.testing.assert_array_equal(found.params["kernel"], np.arange(size, dtype=np.float32))


def test_a_half_written_checkpoint_is_ignored_and_removed(shapes, tmp_path):
    state = random_state(TASKS["codec"], shapes, 3)
    with Checkpointer(tmp_path / "c") as checkpointer:
        checkpointer.save(3, state)
    # What a process that is killed while saving step 6 leaves.
    shutil.copytree(tmp_path / "c" / "3", tmp_path / "c" / "6.orbax-checkpoint-tmp")
    (tmp_path / "c" / "6.orbax-checkpoint-tmp" / "params" / "_METADATA").unlink()
    with Checkpointer(tmp_path / "c") as checkpointer:
        assert [path.name for path in (tmp_path / "c").iterdir()] == ["3"]
        assert_equal(checkpointer.restore(shapes), state)
        again = random_state(TASKS["codec"], shapes, 6, seed=6)
        checkpointer.save(6, again)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["3", "6"]
    with Checkpointer(tmp_path / "c") as checkpointer:
        assert_equal(checkpointer.restore(shapes), again)


def one_line(error):
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    return str(error.value)


def smaller(**changes):
    return tiny.transformer_objective(dataclasses.replace(tiny.TRANSFORMER, **changes))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (smaller(width=16), r"blocks.* shape \(2, 32\) there, .* has \(2, 16\)"),
        (smaller(layers=1), r"blocks.* shape \(2, 32\) there, .* has \(1, 32\)"),
        (smaller(sandwich_ln=False), r"attention_out.* shape \(2, 32\) there, .* has none"),
        (TASKS["codec"], r"blocks.* shape \(2, 32\) there, .* has none"),
    ],
    ids=["narrower", "shallower", "without Sandwich-LN", "codec"],
)
def test_a_checkpoint_of_another_model_is_refused(other, message, tmp_path):
    objective = TASKS["transformer"]
    with Checkpointer(tmp_path / "c") as checkpointer:
        checkpointer.save(3, random_state(objective, shapes_on(MeshConfig(), objective), 3))
    with Checkpointer(tmp_path / "c") as checkpointer:
        with pytest.raises(InputError) as error:
            checkpointer.restore(shapes_on(MeshConfig(), other))
        assert re.search(rf"{tmp_path}/c/3 is of another model: .*{message}", one_line(error))


def test_a_damaged_checkpoint_is_refused(shapes, tmp_path):
    with Checkpointer(tmp_path / "c") as checkpointer:
        checkpointer.save(3, random_state(TASKS["codec"], shapes, 3))
    (tmp_path / "c" / "3" / "params" / "_METADATA").write_text("{")
    with Checkpointer(tmp_path / "c") as checkpointer:
        with pytest.raises(InputError) as error:
            checkpointer.restore(shapes)
        assert "cannot be restored" in one_line(error)


def test_a_loss_scale_and_the_skipped_steps_come_back(tmp_path):
    objective, config = TASKS["transformer"], LossScaleConfig(initial=8.0)
    mesh = make_mesh(MeshConfig())
    shapes = state_shapes(objective, OPTIMIZER, mesh, config)
    state = tiny.start(objective)
    scale = initial_loss_scale(config)._replace(scale=jnp.float32(4), steps=jnp.int32(9))
    state = state.replace(
        step=np.int32(6), opt_state=OPTIMIZER.init(state.params), loss_scale=scale
    )
    state = jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, shapes))
    with Checkpointer(tmp_path / "c") as checkpointer:
        checkpointer.save(9, state)
    with Checkpointer(tmp_path / "c") as checkpointer:
        found = checkpointer.restore(shapes)
    assert_equal(found, state)
    assert (int(found.step), int(found.position)) == (6, 9)
