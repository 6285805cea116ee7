"""Runs that keep a moving average of the weights: what is shown, written, resumed and refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.checkpointer import Checkpointer
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.sampling.options import SamplingSettings
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tasks.run_setup import make_task
from cogview_jax.tasks.train_config import TrainConfig
from cogview_jax.tasks.training import run
from cogview_jax.tasks.workdir import Workdir
from cogview_jax.training.optimizer import make_optimizer
from cogview_jax.training.state import state_shapes

DECAY, STEPS = 0.25, 4


def with_train(experiment, **changes):
    return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, **changes))


@pytest.fixture(scope="module")
def experiments(chain):
    """One of each stage: it starts from a bundle, and keeps the checkpoint of every step."""
    codec, transformer = (
        read_experiment(json.loads((path / "config.json").read_text()))
        for path in (chain.codec, chain.run)
    )
    data = dataclasses.replace(transformer.data, store=str(chain.store))
    stages = {
        "codec": dataclasses.replace(codec, init_from=f"{chain.codec}/bundle"),
        "transformer": dataclasses.replace(transformer, init_from=f"{chain.run}/bundle", data=data),
    }
    changes = {"ema_decay": DECAY, "steps": STEPS, "checkpoint_every": 1, "keep": STEPS}
    return {
        stage: with_train(experiment, **changes, sample_every=STEPS if stage == "codec" else 0)
        for stage, experiment in stages.items()
    }


@pytest.fixture(scope="module")
def finished(experiments, tmp_path_factory):
    """Workdirs of finished runs that keep an average."""
    folder = tmp_path_factory.mktemp("ema")
    for stage, experiment in experiments.items():
        assert run(experiment, str(folder / stage)) == 0
    return folder


def shapes_of(experiment, workdir):
    task, train = make_task(experiment, Workdir(workdir)), experiment.train
    optimizer, mesh = make_optimizer(experiment.optimizer, train.steps), make_mesh(MeshConfig())
    return task, state_shapes(task.objective, optimizer, mesh, ema_decay=train.ema_decay)


def state_at(step, experiment, workdir, tmp_path):
    """The state in the checkpoint of a step."""
    place = tmp_path / f"{workdir.name}_{step}" / "checkpoints"
    shutil.copytree(workdir / "checkpoints" / str(step), place / str(step))
    _, shapes = shapes_of(experiment, workdir)
    with Checkpointer(place) as checkpointer:
        return checkpointer.restore(shapes)


def part_of(workdir, stage):
    return getattr(Bundle(workdir / "bundle"), stage)()


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))


@pytest.mark.parametrize("stage", ["codec", "transformer"])
def test_a_bundle_holds_the_average_of_the_checkpoints(finished, experiments, stage, tmp_path):
    """Computed here from the bundle that the run started at, and what it saved after every step."""
    average = jax.device_get(getattr(Bundle(experiments[stage].init_from), stage)().params)
    for step in range(1, STEPS + 1):
        state = state_at(step, experiments[stage], finished / stage, tmp_path)
        decay = min(DECAY, (1 + step) / (10 + step))
        average = jax.tree.map(
            lambda mean, leaf, d=decay: d * mean + (1 - d) * np.asarray(leaf), average, state.params
        )
    part = part_of(finished / stage, stage)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6),
        part.params,
        average,
    )
    assert_same(part.params, state.ema)
    held, last = jax.device_get((part.params, state.params))
    largest = jax.tree.map(lambda one, other: np.abs(one - other).max(), held, last)
    assert max(jax.tree.leaves(largest)) > 1e-4
    assert part.weights == "ema"
    if stage == "codec":  # the codebook is a moving average of its own
        assert_same(part.codebook, state.model_state)


def test_a_preview_shows_the_average(finished, experiments):
    """The same image is made from the bundle, which holds the average."""
    experiment, workdir = experiments["codec"], finished / "codec"
    task, shapes = shapes_of(experiment, workdir)
    state = task.initial(Bundle(workdir / "bundle"), shapes)
    sample = Image.open(workdir / "samples" / f"step_{STEPS:08d}.png")
    np.testing.assert_array_equal(task.preview(state, task.source()), np.asarray(sample))


@pytest.mark.parametrize("stage", ["codec", "transformer"])
def test_a_finished_run_writes_its_bundle_anew_with_other_weights(
    finished, experiments, stage, tmp_path, capfd
):
    workdir = shutil.copytree(finished / stage, tmp_path / stage)
    before = json.loads((workdir / "bundle" / "bundle.json").read_text())
    run(experiments[stage], str(workdir))
    assert f"all {STEPS} steps were done before" in capfd.readouterr().err
    run(with_train(experiments[stage], bundle_weights="last"), str(workdir))
    assert "bundle written" in capfd.readouterr().err
    part = part_of(workdir, stage)
    last = state_at(STEPS, experiments[stage], workdir, tmp_path)
    assert_same(part.params, last.params)
    described = json.loads((workdir / "bundle" / "bundle.json").read_text())
    assert described["parts"][stage]["weights"] == part.weights == "last"
    assert before["parts"][stage]["weights"] == "ema"
    assert described["parts"][stage]["sha256"] != before["parts"][stage]["sha256"]


def test_a_finished_run_writes_its_bundle_anew_with_another_sampling(
    finished, experiments, tmp_path, capfd
):
    workdir = shutil.copytree(finished / "transformer", tmp_path / "transformer")
    cooler = dataclasses.replace(experiments["transformer"], sampling=SamplingSettings(0.5))
    run(cooler, str(workdir))
    assert "bundle written" in capfd.readouterr().err
    part = part_of(workdir, "transformer")
    assert part.sampling == SamplingSettings(0.5)
    assert_same(part.params, part_of(finished / "transformer", "transformer").params)
    run(cooler, str(workdir))
    assert f"all {STEPS} steps were done before" in capfd.readouterr().err


def test_a_finished_run_writes_its_bundle_anew_from_another_step(
    finished, experiments, tmp_path, capfd
):
    workdir = shutil.copytree(finished / "codec", tmp_path / "codec")
    earlier = with_train(experiments["codec"], bundle_step=2)
    run(earlier, str(workdir))
    assert "bundle written (step 2, the average of its weights)" in capfd.readouterr().err
    assert Bundle(workdir / "bundle").step == 2
    there = state_at(2, experiments["codec"], workdir, tmp_path)
    assert_same(part_of(workdir, "codec").params, there.ema)
    assert_same(part_of(workdir, "codec").codebook, there.model_state)
    run(earlier, str(workdir))
    assert f"all {STEPS} steps were done before" in capfd.readouterr().err
    shutil.rmtree(workdir / "checkpoints" / "3")
    with pytest.raises(InputError, match="bundle_step = 3 has no checkpoint that can be read, and"):
        run(with_train(experiments["codec"], bundle_step=3), str(workdir))
    assert Bundle(workdir / "bundle").step == 2


def test_the_step_of_the_bundle_is_kept_and_one_without_a_checkpoint_is_refused(
    experiments, tmp_path, capfd
):
    every = {"steps": 4, "checkpoint_every": 2, "keep": 1, "sample_every": 0}
    experiment = with_train(experiments["codec"], **every)
    with pytest.raises(InputError, match=r"bundle_step = 3 will have no checkpoint: .* every 2 "):
        run(with_train(experiment, bundle_step=3), str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    run(with_train(experiment, bundle_step=2), str(tmp_path / "run"))
    assert "bundle written (step 2, the average" in capfd.readouterr().err
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["2", "4"]


def test_steps_that_no_bundle_can_be_of_are_refused():
    with pytest.raises(InputError, match="bundle_step = 9: expected 1 to 4"):
        TrainConfig(steps=4, global_batch=1, bundle_step=9)
    with pytest.raises(InputError, match="bundle_step = 'best': no best checkpoint is kept"):
        TrainConfig(steps=4, global_batch=1, bundle_step="best")


def test_a_resumed_average_equals_the_unbroken_one(finished, experiments, tmp_path):
    broken = shutil.copytree(finished / "codec", tmp_path / "codec")
    shutil.rmtree(broken / "bundle")
    for step in (STEPS - 1, STEPS):
        shutil.rmtree(broken / "checkpoints" / str(step))
    run(experiments["codec"], str(broken))
    assert_same(part_of(broken, "codec").params, part_of(finished / "codec", "codec").params)


def test_runs_without_an_average_are_as_they_were(chain, tmp_path):
    """Their checkpoints hold no average and their bundles no record; older configs are theirs."""
    config = json.loads((chain.codec / "config.json").read_text())
    experiment = read_experiment(config)
    for name in ("ema_decay", "bundle_weights", "bundle_step"):
        config["train"].pop(name)
    (tmp_path / "config.json").write_text(json.dumps(config))
    Workdir(tmp_path).check(experiment)
    assert not list(chain.codec.glob("checkpoints/*/ema"))
    _, shapes = shapes_of(experiment, chain.codec)
    with Checkpointer(chain.codec / "checkpoints") as checkpointer:
        state = checkpointer.restore(shapes)
    assert_same(state.params, part_of(chain.codec, "codec").params)
    assert state.ema == ()
    assert Bundle(chain.codec / "bundle").weights is None
    assert "weights" not in (chain.codec / "bundle" / "bundle.json").read_text()


def test_an_average_is_neither_begun_nor_ended_on_the_way(finished, experiments):
    without = with_train(experiments["codec"], ema_decay=0.0)
    with pytest.raises(InputError, match=r"train.ema_decay = 0.25, but the config says 0.0"):
        run(without, str(finished / "codec"))


def test_an_average_that_is_not_there_is_not_asked_for():
    with pytest.raises(InputError, match=r"bundle_weights = 'ema': there is no moving average"):
        TrainConfig(steps=1, global_batch=1, bundle_weights="ema")
    with pytest.raises(InputError, match=r"ema_decay = 1.0: expected"):
        TrainConfig(steps=1, global_batch=1, ema_decay=1.0)
