"""The rules that keep a checkpoint, drawn by hand and against Orbax's policies."""

import dataclasses
import datetime
import math

import numpy as np
import pytest
from orbax.checkpoint import checkpoint_managers as policies

from cogview_jax.checkpoints.retention import Retention
from cogview_jax.runtime.errors import InputError

LOSSES = {10: 3.0, 20: 1.0, 30: 2.0, 40: 1.0, 50: 9.0}


def kept(retention, losses=LOSSES):
    return sorted(retention.steps_to_keep({step: {"loss": loss} for step, loss in losses.items()}))


def test_the_newest_stay_whatever_they_are_worth():
    assert kept(Retention(1)) == [50]
    assert kept(Retention(2)) == [40, 50]
    assert kept(Retention(9)) == [10, 20, 30, 40, 50]
    assert kept(Retention(1, best=1)) == [40, 50]  # of two equals the newer
    assert kept(Retention(1, best=3)) == [20, 30, 40, 50]
    assert kept(Retention(1, every=20)) == [20, 40, 50]
    assert kept(Retention(1), {}) == []


def test_what_was_not_measured_is_not_the_best():
    metrics = {1: {"loss": 2.0}, 2: {}, 3: {"other": 0.0}, 4: {}}
    assert Retention(1, best=2).steps_to_keep(metrics) == {1, 4}


@pytest.mark.parametrize("highest", [False, True])
def test_what_is_not_a_number_takes_no_place_of_the_others(highest):
    sign = -1 if highest else 1
    for place in range(5):
        values = [sign * value for value in (1.0, 2.0, 3.0, 4.0)]
        values.insert(place, math.nan)
        best = {step for step, value in enumerate(values, 1) if sign * value <= 2}
        found = kept(Retention(1, best=2, highest=highest), dict(enumerate(values, 1)))
        assert found == sorted(best | {5}), place


def test_the_best_may_be_the_highest():
    assert kept(Retention(1, best=1, highest=True)) == [50]
    assert kept(Retention(1, best=3, highest=True)) == [10, 30, 50]


def test_a_metric_that_is_not_measured_at_every_step_may_be_missing():
    Retention(best=1, metric="psnr", optional=True).check({"loss": 1.0})


@dataclasses.dataclass
class Checkpoint:
    step: int
    metrics: dict | None
    time: datetime.datetime = datetime.datetime.min


@pytest.mark.parametrize("seed", range(20))
def test_orbax_would_keep_the_same(seed):
    rng = np.random.default_rng(seed)
    steps = sorted(rng.choice(60, size=rng.integers(1, 12), replace=False).tolist())
    metrics = {step: {"fid": float(rng.integers(4))} for step in steps}
    ours = Retention(*rng.integers(1, 5, size=3).tolist(), metric="fid")
    theirs = policies.AnyPreservationPolicy(
        [
            policies.LatestN(ours.latest),
            policies.EveryNSteps(ours.every),
            policies.BestN(n=ours.best, get_metric_fn=lambda m: m["fid"], reverse=True),
        ]
    )
    stays = theirs.should_preserve(
        [Checkpoint(step, metrics[step]) for step in steps],
        context=policies.PreservationContext(),
    )
    expected = {step for step, stay in zip(steps, stays, strict=True) if stay}
    assert ours.steps_to_keep(metrics) == expected


def test_senseless_numbers_and_unknown_metrics_are_refused():
    for wrong in ({"latest": 0}, {"every": -1}, {"best": -1}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} = .*expected at least"):
            Retention(**wrong)
    with pytest.raises(InputError, match="'los', which is not measured; choose from loss, lr"):
        Retention(best=1, metric="los").check({"lr": 1.0, "loss": 2.0})
    Retention(best=0, metric="los").check({"loss": 1.0})
