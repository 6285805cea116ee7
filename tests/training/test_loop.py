"""When hooks and reports are due, what a loss that is not finite does, and what counts as time."""

import contextlib
import json
import threading
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogview_jax.data.prefetch import Prefetched
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.watchdog import Watchdog
from cogview_jax.training import loop
from cogview_jax.training.goodput import Goodput
from cogview_jax.training.loop import Hook, Measurement, train
from cogview_jax.training.metric_means import MetricMeans
from cogview_jax.training.profiler import ProfileConfig, ProfilerWindow
from cogview_jax.training.state import TrainState

BATCHES = (3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0, 5.0, 3.0)


@jax.jit
def step(state, batch):
    """Adds the batch to the one parameter; the loss is the batch."""
    total = state.params + batch["x"]
    metrics = {"loss": batch["x"], "total": total, "grad_norm": batch["slope"]}
    return TrainState(state.step + 1, total, (), ()), metrics


class Run:
    """Ten steps: the log points, what the hook of each interval saw, and where the time went."""

    prefetched = Prefetched

    def __init__(self, batches=BATCHES, *, start=0, hooks=(), slopes=(1.0,) * 10, step=step):
        self.batches = (
            {"x": jnp.float32(x), "slope": jnp.float32(slope)}
            for x, slope in zip(batches[start:], slopes[start:], strict=False)
        )
        self.state = TrainState(jnp.int32(start), jnp.float32(sum(BATCHES[:start])), (), ())
        self.step, self.reports, self.seen = step, [], {every: [] for every in hooks}
        self.goodput = Goodput(Path("nowhere"), writes=False)

    def train(self, log_every=4, hooks=(), means=None, **stops):
        """Returns the parameter after the last step."""
        hooks += tuple(
            Hook(
                "checkpoint",
                every,
                lambda number, state, metrics, seen=seen: seen.append(
                    (number, float(state.params))
                ),
            )
            for every, seen in self.seen.items()
        )
        with contextlib.closing(self.prefetched(self.batches)) as batches:
            state = train(
                self.state,
                self.step,
                batches,
                steps=10,
                log_every=log_every,
                report=self.reports.append,
                hooks=hooks,
                goodput=self.goodput,
                watchdog=Watchdog(0, "this test"),
                profiler=ProfilerWindow(ProfileConfig(), Path("nowhere")),
                means=means,
                **stops,
            )
        return float(state.params)

    def logged(self):
        return [report.step for report in self.reports]


def test_every_step_is_told_when_it_is_started():
    losses = []
    Run(start=2).train(started=lambda number, metrics: losses.append((number, metrics["loss"])))
    assert losses == list(enumerate(BATCHES, 1))[2:]


def test_reports_and_hooks_come_when_due_and_after_the_last_step():
    run = Run(hooks=(3, 5, 0, 100))
    assert run.train() == sum(BATCHES)
    assert run.logged() == [4, 8, 10]
    # Means over steps 5 to 8.
    assert run.reports[1].metrics == {"loss": 5.5, "total": 23.25, "grad_norm": 1.0}
    assert run.reports[2].metrics == {"loss": 4.0, "total": 37.5, "grad_norm": 1.0}
    assert run.seen[3] == [(3, 8.0), (6, 23.0), (9, 36.0), (10, 39.0)]
    assert run.seen[5] == [(5, 14.0), (10, 39.0)]
    assert run.seen[0] == []
    assert run.seen[100] == [(10, 39.0)]


def test_a_restored_state_goes_on_at_its_step():
    run = Run(start=6, hooks=(3,))
    assert run.train() == sum(BATCHES)
    assert run.logged() == [8, 10]
    assert run.seen[3] == [(9, 36.0), (10, 39.0)]

    finished = Run(start=10, hooks=(3,))
    assert finished.train() == sum(BATCHES)
    assert (finished.reports, finished.seen) == ([], {3: []})


def test_a_run_that_is_asked_to_stop_stops_there():
    asked = []

    def stop(done):
        asked.append(done)
        return done == 6

    run = Run(hooks=(3, 5))
    assert run.train(stop=stop) == sum(BATCHES[:6])
    # Step 6 is a checkpoint's too, but saving is up to who asked.
    assert (asked, run.logged()) == ([1, 2, 3, 4, 5, 6], [4])
    assert run.seen == {3: [(3, 8.0)], 5: [(5, 14.0)]}
    # After the last step there is nothing to stop.
    assert Run().train(stop=lambda done: done == 10) == sum(BATCHES)


def test_what_is_measured_on_held_out_data_belongs_to_its_step():
    """For the report and the hooks of that step, also where the run stops there."""
    given = []

    def validate(number, state):
        assert number == int(state.step)
        return {"validation_total": float(state.params)}

    validation = Measurement("validation", 6, validate)

    def hook(number, state, metrics):
        given.append((number, metrics.get("validation_total")))

    run = Run()
    run.train(hooks=(Hook("checkpoint", 3, hook),), measurements=(validation,))
    totals = [(r.step, r.metrics.get("validation_total")) for r in run.reports]
    assert totals == [(4, None), (6, 23.0), (8, None), (10, 39.0)]
    # The means start anew after every log point, and step 6 is one.
    assert [r.metrics["loss"] for r in run.reports] == [2.25, 7.0, 4.0, 4.0]
    assert given == [(3, None), (6, 23.0), (9, None), (10, 39.0)]

    stopped = Run()
    stopped.train(measurements=(validation,), stop=lambda done: done == 6)
    assert [r.metrics for r in stopped.reports] == [r.metrics for r in run.reports[:2]]


def test_a_measurement_that_is_enough_makes_its_step_the_last():
    """Whatever is due after the last step is done there, also where the run is to stop."""
    measured = []

    def validate(number, state):
        measured.append(number)
        return {"validation_total": float(state.params)}

    for stop in (0, 6):
        measured.clear()
        run = Run(hooks=(4, 5))
        seldom = Measurement("benchmark", 100, lambda number, state: {"benchmark": number})
        total = run.train(
            measurements=(Measurement("validation", 3, validate), seldom),
            enough=lambda: measured[-1] == 6,
            stop=lambda done, stop=stop: done == stop,
        )
        assert total == sum(BATCHES[:6])
        assert (measured, run.logged()) == ([3, 6], [3, 4, 6])
        assert [report.metrics.get("benchmark") for report in run.reports] == [None, None, 6]
        assert run.seen == {4: [(4, 9.0), (6, 23.0)], 5: [(5, 14.0), (6, 23.0)]}


class Stuck:
    """The batches of a loader that waits for ever after them, until somebody has asked."""

    def __init__(self, batches):
        self.batches, self.asks = batches, 0
        self.waits, self.asked = threading.Event(), threading.Event()

    def __iter__(self):
        yield from self.batches
        self.waits.set()
        self.asked.wait(300)

    def stop(self):
        """Whether it waits by now, and the last batch has been taken: so at the second asking."""
        self.asks += self.waits.is_set()
        if self.asks < 2:
            return False
        self.asked.set()
        return True


def test_a_run_that_is_asked_to_stop_while_it_waits_stops_too():
    for count in (0, 3):
        run, means = Run(BATCHES[:count], hooks=(2,)), MetricMeans()
        loader = Stuck(run.batches)
        run.batches = iter(loader)
        assert run.train(stop_waiting=loader.stop, means=means) == sum(BATCHES[:count])
        assert run.seen == {2: [(2, sum(BATCHES[:2]))] if count else []}
        # The run that goes on from here logs the mean of all steps since the last log point.
        assert means.sums.get("loss", (0, 0)) == (sum(BATCHES[:count]), count)
    run = Run((1.0, float("nan")))
    loader = Stuck(run.batches)
    run.batches = iter(loader)
    with pytest.raises(InputError, match="the loss of step 2 is nan"):
        run.train(stop_waiting=loader.stop)


def test_few_steps_are_started_before_the_devices_have_finished_them():
    @jax.jit
    def slow_step(state, batch):
        square = jax.lax.fori_loop(0, 200, lambda _, x: jnp.tanh(x @ x), jnp.ones((200, 200)))
        loss = batch["x"] + square.sum() * state.params
        metrics = {"loss": loss, "grad_norm": batch["slope"]}
        return TrainState(state.step + 1, loss * 0 + 1, (), ()), metrics

    losses, unfinished = [], []

    def started(number, metrics):
        losses.append(metrics["loss"])
        unfinished.append(sum(not loss.is_ready() for loss in losses))

    Run(step=slow_step).train(log_every=10, started=started)
    assert len(losses) == 10
    assert max(unfinished) <= 2


def test_a_state_that_is_not_finite_is_not_left_behind_by_stopping():
    run = Run((1.0, float("nan"), *BATCHES[2:]))
    with pytest.raises(InputError, match="the loss of step 2 is nan"):
        run.train(stop=lambda done: done == 3)


def test_hooks_are_given_the_means_since_the_log_point_before():
    given = []
    run = Run()
    run.train(hooks=(Hook("preview", 3, lambda *arguments: given.append(arguments[2])),))
    expected = [BATCHES[:3], BATCHES[4:6], BATCHES[8:9], BATCHES[8:]]
    assert [metrics["loss"] for metrics in given] == [sum(x) / len(x) for x in expected]


def test_a_run_that_goes_on_between_two_log_points_logs_what_the_unbroken_one_does():
    """Losses whose sums depend on their order, and sums that went through JSON."""
    losses = tuple(np.random.default_rng(0).standard_normal(10).astype(np.float32).tolist())
    whole = Run(losses)
    whole.train(log_every=7)
    for stop in range(1, 10):
        means = MetricMeans()
        first = Run(losses)
        first.train(log_every=7, means=means, stop=lambda done, stop=stop: done == stop)
        rest = Run(losses, start=stop)
        rest.state = rest.state.replace(params=jnp.float32(sum(np.float32(losses[:stop]))))
        rest.train(log_every=7, means=MetricMeans(json.loads(json.dumps(means.sums))))
        logged = [*first.reports, *rest.reports]
        assert [report.step for report in logged] == [7, 10]
        for ours, theirs in zip(logged, whole.reports, strict=True):
            assert ours.metrics["loss"] == theirs.metrics["loss"]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 0.0

    def pass_by(self, seconds):
        self.now += seconds


def test_the_time_is_spent_where_it_is_said_to_be():
    """Batches that take 100 ms, steps that take 50, and a hook of 200 ms."""
    clock = Clock()

    class Slow(Prefetched):
        def __init__(self, items):  # and no thread
            self.items = items

        def get(self, waiting):
            waiting()
            clock.pass_by(0.1)
            return next(self.items)

        def close(self):
            pass

    def slow_step(state, batch):
        clock.pass_by(0.05)
        return jax.block_until_ready(step(state, batch))

    run = Run(step=slow_step)
    run.prefetched = Slow
    run.goodput = Goodput(Path("nowhere"), writes=False, clock=lambda: clock.now)
    run.train(hooks=(Hook("preview", 5, lambda *arguments: clock.pass_by(0.2)),))
    spent = {phase: seconds for phase, seconds in run.goodput.seconds.items() if seconds}
    # The first step counts as compilation.
    assert spent == pytest.approx({"data": 1.0, "compile": 0.05, "step": 0.45, "preview": 0.4})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_any_hook_sees_it(bad):
    run = Run((*BATCHES[:5], bad, bad, *BATCHES[7:]), hooks=(3, 5))
    with pytest.raises(InputError, match=f"the loss of step 6 is {bad}"):
        run.train(log_every=4)
    # Step 6 is no log point, but a hook is due there.
    assert run.seen == {3: [(3, 8.0)], 5: [(5, 14.0)]}
    assert run.logged() == [4]


def test_the_first_bad_step_is_named_however_late_it_is_found():
    run = Run((1.0, float("nan"), 1.0, float("nan"), *BATCHES[4:]), hooks=(7,))
    with pytest.raises(InputError, match="the loss of step 2 is nan"):
        run.train(log_every=100)
    assert run.seen == {7: []}


def test_a_gradient_that_is_not_finite_stops_like_a_loss():
    run = Run(slopes=(1.0, 1.0, float("inf"), *[1.0] * 7), hooks=(3,))
    with pytest.raises(InputError, match="the grad_norm of step 3 is inf"):
        run.train()
    assert run.seen == {3: []}


def test_what_hooks_cost_is_no_training_time(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: clock.now))

    def slow_step(state, batch):
        clock.pass_by(0.1)
        return step(state, batch)

    run = Run(step=slow_step)
    run.train(log_every=5, hooks=(Hook("preview", 1, lambda *arguments: clock.pass_by(0.3)),))
    assert [report.seconds_per_step for report in run.reports] == pytest.approx([0.1, 0.1])


def skipping(overflows, stuck):
    """A step with a loss scale's metrics, by step number."""

    def step(state, batch):
        number = int(state.step)
        loss = float("nan") if number in overflows else 1.0
        metrics = {"loss": loss, "grad_norm": loss, "loss_scale": 2.0, "stuck": number in stuck}
        metrics["overflow"] = float(number in overflows)
        return state.replace(step=state.step + 1), {n: jnp.float32(v) for n, v in metrics.items()}

    return step


def test_a_skipped_step_is_no_harm_and_a_scale_at_its_floor_is():
    def run(overflows, stuck):
        one = Run(step=skipping(overflows, stuck))
        one.state = TrainState(0, 0.0, (), ())
        one.train(log_every=5)
        return one.reports

    reports = run(overflows={2, 4}, stuck=set())
    # The share of skipped steps, whose loss is none.
    assert [(r.step, r.metrics["overflow"]) for r in reports] == [(5, 0.4), (10, 0.0)]
    assert [r.metrics["loss"] for r in reports] == [1.0, 1.0]
    assert [r.metrics["loss_scale"] for r in reports] == [2.0, 2.0]
    assert "stuck" not in reports[0].metrics
    with pytest.raises(InputError, match=r"step 8: the loss scale sits at its floor of 2\.0, and"):
        run(overflows={7}, stuck={7})
