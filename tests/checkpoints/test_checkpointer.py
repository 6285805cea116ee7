"""What was saved comes back bit for bit, on any mesh, whatever happened while it was written."""

import dataclasses
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpoints.small import assert_equal, names, restored, saved, shapes_of, small

import tiny
from cogview_jax.checkpoints.checkpointer import Checkpointer
from cogview_jax.checkpoints.retention import Retention
from cogview_jax.checkpoints.stored_step import read_meta
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
    with Checkpointer(tmp_path / "c", Retention(2)) as checkpointer:
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


def test_metrics_and_notes_may_change_while_a_checkpoint_is_written(tmp_path):
    metrics, notes = {"loss": 1.0}, {"seen": {"records": 64}}
    with Checkpointer(tmp_path / "c") as checkpointer:
        checkpointer.save(1, small(1), metrics, notes)
        metrics["loss"], notes["seen"]["records"] = 2.0, 128
    assert read_meta(tmp_path / "c" / "1")["metrics"] == {"loss": 1.0}
    with Checkpointer(tmp_path / "c") as checkpointer:
        checkpointer.restore(shapes_of(small(0)))
        assert checkpointer.notes == {"seen": {"records": 64}}


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


def files(folder):
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_a_flipped_bit_in_any_file_is_found_and_named(tmp_path, capfd):
    """And the newest good checkpoint is used; the bad one is kept for whoever wants to look."""
    directory = saved(tmp_path / "c", 3, 6)
    newest, aside = directory / "6", tmp_path / "damaged" / "6"
    assert len(files(newest)) > 20
    assert {name.split("/")[0] for name in files(newest)} == {
        *("params", "opt_state", "extras", "meta", "manifest.json")
    }
    for name in files(newest):
        flip(newest / name)
        capfd.readouterr()
        assert_equal(restored(directory), small(3))
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith(f"checkpoint {newest} is damaged ({name}: "), line
        assert f"moved to {aside}; checkpoint 3 is used instead" in line
        assert names(directory) == ["3"]
        flip(aside / name)
        aside.rename(newest)
    assert_equal(restored(directory), small(6))


def test_truncated_and_missing_files_are_found_and_named(tmp_path, capfd):
    directory = saved(tmp_path / "c", 1, 2, 3, 4)
    data = sorted((directory / "4" / "params" / "d").iterdir())[0]
    data.write_bytes(data.read_bytes()[:-1])
    (directory / "3" / "meta" / "metadata").unlink()
    (directory / "2" / "manifest.json").unlink()
    assert_equal(restored(directory), small(1))
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3
    assert re.search(rf"c/4 is damaged \(params/d/{data.name}: has \d+ bytes, expected", lines[0])
    assert "c/3 is damaged (meta/metadata: is missing): moved to" in lines[1]
    assert "c/2 is damaged (manifest.json: is missing): moved to" in lines[2]
    # The step is free to be saved again, and to be damaged again.
    saved(directory, 4)
    assert_equal(restored(directory), small(4))
    flip(directory / "4" / "manifest.json")
    assert_equal(restored(directory), small(1))
    assert names(tmp_path / "damaged") == ["2", "3", "4", "4-2"]


def test_when_all_are_damaged_nothing_starts_anew(tmp_path):
    directory = saved(tmp_path / "c", 3, 6)
    (directory / "6" / "meta" / "metadata").unlink()
    flip(directory / "3" / "params" / "_METADATA")
    for _ in range(2):  # a supervisor that tries again learns the same
        with pytest.raises(InputError) as error:
            restored(directory)
        line = one_line(error)
        assert f"every checkpoint in {directory} is damaged (6: meta/metadata: is missing; " in line
        assert "3: params/_METADATA: has sha256" in line
    assert names(directory) == ["3", "6"]


def test_a_damaged_checkpoint_that_cannot_be_moved_is_replaced(tmp_path, capfd):
    directory = saved(tmp_path / "c", 3, 6)
    flip(directory / "6" / "params" / "_METADATA")
    (tmp_path / "damaged").write_text("a file where the folder should be")
    with Checkpointer(directory, Retention(2)) as checkpointer:
        assert_equal(checkpointer.restore(shapes_of(small(0))), small(3))
        assert "not moved to" in capfd.readouterr().err
        checkpointer.save(5, small(5))
        checkpointer.wait()
        assert names(directory) == ["3", "5", "6"]  # 6 is not counted on
        checkpointer.save(6, small(6))
        checkpointer.wait()
        assert names(directory) == ["5", "6"]
    assert_equal(restored(directory), small(6))


def saved_before_manifests(directory, *steps):
    """As earlier versions wrote them, with Orbax's own manager."""
    items = {"params": "params", "opt_state": "opt_state", "extras": "model_state"}
    handlers = {name: ocp.StandardCheckpointHandler() for name in items}
    handlers["meta"] = ocp.JsonCheckpointHandler()
    options = ocp.CheckpointManagerOptions(create=True)
    with ocp.CheckpointManager(directory, item_handlers=handlers, options=options) as manager:
        for step in steps:
            state = small(step)
            args = {
                name: ocp.args.StandardSave(getattr(state, field)) for name, field in items.items()
            }
            meta = ocp.args.JsonSave({"step": step, "updates": step - 1})
            manager.save(step, args=ocp.args.Composite(**args, meta=meta))


def test_checkpoints_of_earlier_versions_are_read_and_said_not_to_be_verified(tmp_path, capfd):
    directory = tmp_path / "c"
    saved_before_manifests(directory, 3, 6)
    capfd.readouterr()
    assert_equal(restored(directory), small(6).replace(step=jnp.int32(5)))
    (line,) = capfd.readouterr().err.splitlines()
    assert "c/6 is of an earlier version, without manifest.json" in line
    # Newer ones come first; when they are damaged, an old one is better than nothing.
    saved(directory, 9)
    assert_equal(restored(directory), small(9))
    flip(directory / "9" / "meta" / "metadata")
    assert_equal(restored(directory), small(6).replace(step=jnp.int32(5)))


def test_what_orbax_cannot_read_of_them_is_one_line(tmp_path):
    directory = tmp_path / "c"
    saved_before_manifests(directory, 3)
    shutil.rmtree(directory / "3" / "extras" / "d")
    with pytest.raises(InputError) as error:
        restored(directory)
    assert "c/3 cannot be restored: " in one_line(error)


def test_orbax_alone_reads_what_is_written(tmp_path):
    directory = saved(tmp_path / "c", 3)
    with ocp.CheckpointManager(directory) as manager:
        assert manager.latest_step() == 3
        found = manager.restore(3, args=ocp.args.Composite(params=ocp.args.StandardRestore()))
        assert_equal(found["params"], small(3).params)
    with ocp.StandardCheckpointer() as checkpointer:
        assert_equal(checkpointer.restore(directory / "3" / "extras"), small(3).model_state)


def test_a_step_that_is_asked_for_is_restored_or_refused(tmp_path):
    directory, shapes = saved(tmp_path / "c", 3, 6, 9), shapes_of(small(0))
    flip(directory / "6" / "manifest.json")
    with Checkpointer(directory) as checkpointer:
        assert_equal(checkpointer.restore(shapes, [3]).params, small(3).params)
        with pytest.raises(InputError, match=r"c/6 is damaged \(manifest.json: was changed\)$"):
            checkpointer.restore(shapes, [6])
        with pytest.raises(InputError, match=r"there is no checkpoint .*c/5; steps there: 3, 6, 9"):
            checkpointer.restore(shapes, [5])
    assert names(directory) == ["3", "6", "9"]


def test_the_best_are_remembered_by_the_run_that_goes_on(tmp_path):
    losses = {1: 5.0, 2: 3.0, 3: 4.0, 4: 9.0, 5: 8.0, 6: float("inf")}
    for step, loss in losses.items():
        with Checkpointer(tmp_path / "c", Retention(1, every=4, best=2)) as checkpointer:
            checkpointer.save(step, small(step), {"loss": loss, "lr": 0.1})
    assert names(tmp_path / "c") == ["2", "3", "4", "6"]
    with Checkpointer(tmp_path / "c", Retention(1, best=2)) as checkpointer:
        assert checkpointer.ranked_steps()[0] == 2
    with Checkpointer(tmp_path / "c", Retention(1, metric="other")) as checkpointer:
        assert checkpointer.ranked_steps() == []
    with Checkpointer(tmp_path / "c", Retention(1, best=1, metric="los")) as checkpointer:
        with pytest.raises(InputError, match="by 'los', which is not measured"):
            checkpointer.save(7, small(7), {"loss": 1.0})
        checkpointer.save(7, small(7))  # asked to stop: nothing was measured
    assert names(tmp_path / "c") == ["7"]


def test_moments_that_are_all_zeros_are_no_bomb(tmp_path):
    """They shrink to nothing on disk, as an optimizer's do that has made no step."""
    zeros = jnp.zeros((4096, 8192))
    state = TrainState(jnp.int32(3), {"kernel": jnp.ones(4)}, (zeros,), ())
    with Checkpointer(tmp_path / "c") as checkpointer:
        checkpointer.save(3, state)
        assert checkpointer.wait()
        found = checkpointer.restore(shapes_of(state))
    on_disk = sum(file.stat().st_size for file in (tmp_path / "c").rglob("*") if file.is_file())
    assert on_disk < zeros.nbytes / 1000
    assert found.opt_state[0].shape == zeros.shape
