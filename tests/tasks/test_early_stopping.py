"""Runs that end when measurements of held-out records get no better; resumed ones, too."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import cogview_jax
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.evaluation.benchmark import Options, load_benchmark, measure
from cogview_jax.runtime.errors import InputError
from cogview_jax.tasks.early_stopping import EarlyStopping
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tasks.training import run
from run_files import logged, steps


def counted(stopping, values, start=0):
    """Whether the run was to end after each of the values."""
    found = []
    for step, value in enumerate(values, start + 1):
        stopping.see(step, {stopping.metric: value, "other": 0.0})
        found.append(stopping.reached())
    return found


def test_measurements_that_are_not_better_than_the_best_are_counted():
    assert counted(EarlyStopping("loss", 2), [3, 2, 2, 1, 1.5, 1.2]) == [False] * 5 + [True]
    # Of PSNR a higher value is better.
    values = [1, 2, 3, 2.5, 3]
    assert counted(EarlyStopping("validation_psnr", 2), values) == [False] * 4 + [True]
    assert counted(EarlyStopping("loss", 0), [1, 2, 3, 4]) == [False] * 4
    stopping = EarlyStopping("loss", 1)
    stopping.see(1, {"loss": 1.0})
    stopping.see(2, {"other": 2.0})
    assert not stopping.reached()


def test_a_count_goes_on_where_it_was_noted():
    values = [3, 1, 2, 0.5, 4, 5, 6, 7]
    for cut in range(len(values)):
        first = EarlyStopping("loss", 0)
        counted(first, values[:cut])
        noted = json.loads(json.dumps(first.notes))
        ends = counted(EarlyStopping("loss", 3, noted), values[cut:], cut)
        assert ends == [step >= 7 for step in range(cut + 1, 9)]
    other = EarlyStopping("image_loss", 1, noted)
    assert counted(other, [9]) == [False]
    assert str(EarlyStopping("loss", 3, first.notes)) == (
        "loss was not better in 3 measurements in a row (train.stop_after = 3) than at step 4,"
        " where it was 0.5"
    )


@pytest.fixture
def experiment(chain):
    """The rate rises until a trained transformer is spoilt."""
    config = json.loads((chain.run / "config.json").read_text())
    config["data"] |= {"validation_share": 0.25, "store": str(chain.store)}
    config["optimizer"] |= {"lr": 2.0, "warmup": 0.99}
    config["train"] |= {
        **{"steps": 24, "log_every": 4, "checkpoint_every": 2, "sample_every": 0, "keep": 2},
        **{"keep_best": 1, "best_metric": "validation_loss", "validate_every": 2, "stop_after": 2},
    }
    return read_experiment(config | {"init_from": f"{chain.run}/bundle"})


def with_train(experiment, **changes):
    return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, **changes))


def test_a_run_ends_when_the_held_out_loss_rises_also_after_a_resume(experiment, tmp_path, capfd):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(experiment, str(whole)) == 0
    lines = logged(whole)
    losses = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    end = list(losses)[-1]
    assert list(losses) == list(range(2, end + 1, 2))
    best = min(losses, key=losses.get)
    assert end == best + 4 < 24, losses
    why = "validation_loss was not better in 2 measurements in a row (train.stop_after = 2) than"
    said = capfd.readouterr().err
    assert f"{whole}: ended at step {end} of 24, since {why} at step {best}" in said
    assert "whole: validation: the loss of 6 of 6 held-out records every 2 steps" in said
    assert "; 6 of them are held out" in said
    assert steps(whole) == [best, end - 2, end]
    assert Bundle(whole / "bundle").step == end

    # Killed with one measurement to go: the resumed run ends at the same step.
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "bundle")
    shutil.rmtree(broken / "checkpoints" / str(end))
    assert run(experiment, str(broken)) == 0
    assert logged(broken) == lines
    ours, theirs = (Bundle(path / "bundle").transformer().params for path in (broken, whole))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)

    # It is finished: the same command does nothing, another bundle_step writes that bundle.
    capfd.readouterr()
    assert run(experiment, str(broken)) == 0
    assert f"{broken}: the run ended at step {end} before: {why}" in capfd.readouterr().err
    assert run(with_train(experiment, bundle_step="best"), str(broken)) == 0
    assert f"bundle written (step {best})" in capfd.readouterr().err
    assert Bundle(broken / "bundle").step == best
    run(with_train(experiment, bundle_step=24), str(broken))
    assert "train.bundle_step = 24 was not reached: the last step" in capfd.readouterr().err
    assert logged(broken) == lines

    # With more patience, the run goes on; a benchmark measures the bundle of its last step.
    benchmark = {"benchmark": "tokenizer", "benchmark_every": 100, "benchmark_prompts": 8}
    run(with_train(experiment, stop_after=3, **benchmark), str(broken))
    assert logged(broken)[: len(lines)] == lines
    further = logged(broken)[len(lines) :]
    assert further[-1]["step"] == end + 2
    assert not any(name.startswith("benchmark/") for line in further[:-1] for name in line)
    model = cogview_jax.load(broken / "bundle")
    options = Options(count=8, bundle="x", unfinished=str(tmp_path / "unfinished"))
    report = measure(load_benchmark("tokenizer"), model, options).report
    assert further[-1]["benchmark/n"] == report["n"] == 8
    for name in ("psnr", "ssim", "l2"):
        for key in ("mean", "standard_error"):
            found = further[-1][f"benchmark/{name}/{key}"]
            assert found == pytest.approx(report[name][key], rel=1e-5)
            assert found > 0
    assert not list(broken.glob("benchmark*"))


def test_settings_that_do_not_fit_are_refused(experiment, tmp_path):
    for changes, message in (
        (
            {"best_metric": "loss"},
            r"train\.best_metric = 'loss' is none of them: choose from valid",
        ),
        (
            {"benchmark": "shape", "benchmark_every": 1},
            r"train\.benchmark = 'shape': did you mean shapes",
        ),
    ):
        with pytest.raises(InputError, match=message):
            run(with_train(experiment, **changes), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    for changes, message in (
        ({"validate_every": 0}, "stop_after = 2: there are no measurements to count"),
        ({"benchmark_every": 5}, "benchmark = '' with benchmark_every = 5: expected a name and"),
        ({"benchmark": "shapes"}, "benchmark = 'shapes' with benchmark_every = 0: expected a name"),
    ):
        with pytest.raises(InputError, match=message):
            with_train(experiment, **changes)
