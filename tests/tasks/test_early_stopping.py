"""Runs that end when what they measure gets no better; resumed ones, too."""

import dataclasses
import json
import re
import shutil
import sys

import jax
import numpy as np
import pytest

import cogview_jax
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.checkpointer import Checkpointer
from cogview_jax.evaluation import benchmarks
from cogview_jax.evaluation.benchmark import Options, load_benchmark, measure
from cogview_jax.runtime.errors import InputError
from cogview_jax.tasks.best_metric import BestMetric
from cogview_jax.tasks.bundle_choice import bundle_steps
from cogview_jax.tasks.early_stopping import EarlyStopping
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tasks.train_config import TrainConfig
from cogview_jax.tasks.training import run
from run_files import logged, steps

LOSS = BestMetric("loss")
#: A benchmark of somebody's own: it says nothing of quality, but it changes with every step.
ENTROPY = '''"""How uncertain a model is of the second token."""

import numpy as np


def run(model, options):
    logits = model.logits(np.zeros((1, 2), np.int32)).astype(np.float64)[0, -1]
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    return {"of": {"entropy": float(-np.sum(shares * np.log(shares + 1e-30)))}}


def higher_is_better(task):
    return {"of/entropy": task == "text_to_image", "of/surprise": False}
'''


def counted(stopping, values, start=0):
    """Whether the run was to end after each of the values."""
    found = []
    for step, value in enumerate(values, start + 1):
        stopping.see(step, {stopping.metric.name: value, "other": 0.0})
        found.append(stopping.reached())
    return found


def test_measurements_that_are_not_better_than_the_best_are_counted():
    assert counted(EarlyStopping(LOSS, 2), [3, 2, 2, 1, 1.5, 1.2]) == [False] * 5 + [True]
    values = [1, 2, 3, 2.5, 3]
    assert counted(EarlyStopping(BestMetric("psnr", highest=True), 2), values) == [False] * 4 + [
        True
    ]
    assert counted(EarlyStopping(LOSS, 0), [1, 2, 3, 4]) == [False] * 4
    stopping = EarlyStopping(LOSS, 1)
    stopping.see(1, {"loss": 1.0})
    stopping.see(2, {"other": 2.0})
    assert not stopping.reached()


def test_a_count_goes_on_where_it_was_noted():
    values = [3, 1, 2, 0.5, 4, 5, 6, 7]
    for cut in range(len(values)):
        first = EarlyStopping(LOSS, 0)
        counted(first, values[:cut])
        noted = json.loads(json.dumps(first.notes))
        ends = counted(EarlyStopping(LOSS, 3, noted), values[cut:], cut)
        assert ends == [step >= 7 for step in range(cut + 1, 9)]
    other = EarlyStopping(BestMetric("image_loss"), 1, noted)
    assert counted(other, [9]) == [False]
    assert str(EarlyStopping(LOSS, 3, first.notes)) == (
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
        **{"benchmark": "entropy", "benchmark_every": 3, "benchmark_prompts": 2},
    }
    return read_experiment(config | {"init_from": f"{chain.run}/bundle"})


@pytest.fixture(autouse=True)
def entropy(tmp_path, monkeypatch):
    """A benchmark is one more file; it is loaded anew by every test."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "entropy.py").write_text(ENTROPY)
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(folder)])
    yield folder / "entropy.py"
    sys.modules.pop(f"{benchmarks.__name__}.entropy", None)


def with_train(experiment, **changes):
    return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, **changes))


def measured(lines, name):
    return {line["step"]: line[name] for line in lines if name in line}


def test_a_run_ends_when_what_it_measures_gets_worse(experiment, tmp_path, capfd):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(experiment, str(whole)) == 0
    lines = logged(whole)
    losses = measured(lines, "validation_loss")
    end = list(losses)[-1]
    assert list(losses) == list(range(2, end + 1, 2))
    best = min(losses, key=losses.get)
    assert end == best + 4 < 24, losses
    why = "validation_loss was not better in 2 measurements in a row (train.stop_after = 2) than"
    said = capfd.readouterr().err
    assert f"{whole}: ended at step {end} of 24, since {why} at step {best}" in said
    assert "whole: validation: the loss of 6 of 6 held-out records every 2 steps" in said
    assert "; 6 of them are held out" in said
    for step, loss in losses.items():
        stands = rf"the best so far: {losses[best]:.4g} at step {best}" if step > best else "the b"
        assert f"\nstep {step}: validation_loss {loss:.4g}, validation_text_loss " in said
        assert re.search(rf"\nstep {step}: validation_loss .* \({stands}", said)
    assert steps(whole) == [best, end - 2, end]
    bundle = Bundle(whole / "bundle")
    assert bundle.step == end
    # The last step is measured by the benchmark, too, as evaluate measures the bundle.
    entropies = measured(lines, "benchmark/of/entropy")
    assert list(entropies) == sorted({*range(3, end, 3), end})
    model = cogview_jax.load(whole / "bundle")
    report = measure(load_benchmark("entropy"), model, Options()).report
    assert entropies[end] == pytest.approx(report["of"]["entropy"], rel=1e-5)

    # Killed with one measurement to go: the resumed run ends at the same step.
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "bundle")
    shutil.rmtree(broken / "checkpoints" / str(end))
    assert run(experiment, str(broken)) == 0
    assert logged(broken) == lines
    jax.tree.map(
        np.testing.assert_array_equal,
        Bundle(broken / "bundle").transformer().params,
        bundle.transformer().params,
    )

    # It is finished: the same command does nothing, another bundle_step writes that bundle.
    capfd.readouterr()
    assert run(experiment, str(broken)) == 0
    assert f"{broken}: the run ended at step {end} before: {why}" in capfd.readouterr().err
    assert run(with_train(experiment, bundle_step="best"), str(broken)) == 0
    assert f"bundle written (step {best})" in capfd.readouterr().err
    assert Bundle(broken / "bundle").step == best
    assert logged(broken) == lines

    # With more patience the run goes on.
    run(with_train(experiment, stop_after=3), str(broken))
    assert logged(broken)[: len(lines)] == lines
    (further,) = logged(broken)[len(lines) :]
    assert further["step"] == end + 2
    assert not list(broken.glob("benchmark*"))


def test_a_bundle_step_that_was_not_reached_is_the_last(tmp_path, capfd):
    config = TrainConfig(steps=24, global_batch=1, bundle_step=24)
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        assert bundle_steps(config, checkpointer, 8) == [8]
        assert "train.bundle_step = 24 was not reached: the last step" in capfd.readouterr().err
        assert bundle_steps(config, checkpointer, 24) == [24]
    assert capfd.readouterr().err == ""


def test_a_benchmark_ends_a_run_and_chooses_its_best_checkpoint(experiment, tmp_path, capfd):
    """Entropy falls as the model learns; more counts as better, so that the first is the best."""
    name, workdir = "benchmark/of/entropy", tmp_path / "run"
    by_entropy = {"best_metric": name, "stop_after": 1, "bundle_step": "best"}
    often = {"validate_every": 0, "benchmark_every": 2, "checkpoint_every": 2, "keep": 1}
    assert run(with_train(experiment, **by_entropy, **often), str(workdir)) == 0
    found = measured(logged(workdir), name)
    assert list(found) == list(range(2, max(found) + 1, 2))
    end = max(found)
    winner = max(found, key=found.get)
    assert steps(workdir) == sorted({winner, end})
    assert Bundle(workdir / "bundle").step == winner != end
    assert f"ended at step {end} of 24, since {name} was not better in 1" in capfd.readouterr().err


def test_settings_that_do_not_fit_are_refused(experiment, entropy, tmp_path):
    workdir = tmp_path / "run"
    for changes, message in (
        ({"best_metric": "loss"}, r"train\.best_metric = 'loss' is none of them: choices: bench"),
        ({"benchmark": "shape"}, r"train\.benchmark = 'shape': did you mean shapes"),
        ({"best_metric": "validation_los"}, r"is none of them: did you mean validation_loss"),
    ):
        with pytest.raises(InputError, match=message):
            run(with_train(experiment, **changes), str(workdir))
    for changes, message in (
        (
            {"validate_every": 0, "benchmark": "", "benchmark_every": 0},
            "stop_after = 2: there are no measurements to count",
        ),
        ({"benchmark": ""}, "benchmark = '' with benchmark_every = 3: expected a name and"),
        ({"benchmark_every": 0}, "benchmark = 'entropy' with benchmark_every = 0: expected a name"),
    ):
        with pytest.raises(InputError, match=message):
            with_train(experiment, **changes)
    assert not workdir.exists()
    # What a benchmark only says it measures is found by its first measurement, and nothing is lost.
    wrong = {"best_metric": "benchmark/of/surprise", "checkpoint_every": 1}
    with pytest.raises(
        InputError,
        match=r"surprise': the benchmark entropy did not measure it at"
        r" step 3; did you mean benchmark/of/entropy",
    ):
        run(with_train(experiment, **wrong), str(workdir))
    assert steps(workdir) == [1, 2]
