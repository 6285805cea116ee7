"""When hooks and reports are due, what a loss that is not finite does, and what counts as time."""

import time

import jax
import jax.numpy as jnp
import pytest

from cogview_jax.runtime.errors import InputError
from cogview_jax.training.loop import Hook, train
from cogview_jax.training.state import TrainState

BATCHES = (3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0, 5.0, 3.0)


@jax.jit
def step(state, batch):
    """Adds the batch to the one parameter; the loss is the batch."""
    total = state.params + batch["x"]
    metrics = {"loss": batch["x"], "total": total, "grad_norm": batch["slope"]}
    return TrainState(state.step + 1, total, (), ()), metrics


class Run:
    """Ten steps: the batches left, the log points, and what the hook of each interval saw."""

    def __init__(self, batches=BATCHES, *, start=0, hooks=(), slopes=(1.0,) * 10):
        self.batches = (
            {"x": jnp.float32(x), "slope": jnp.float32(slope)}
            for x, slope in zip(batches[start:], slopes[start:], strict=False)
        )
        self.state = TrainState(jnp.int32(start), jnp.float32(sum(BATCHES[:start])), (), ())
        self.reports, self.seen = [], {every: [] for every in hooks}

    def train(self, log_every=4):
        """Returns the parameter after the last step."""
        hooks = tuple(
            Hook(every, lambda number, state, seen=seen: seen.append((number, float(state.params))))
            for every, seen in self.seen.items()
        )
        state = train(
            self.state,
            step,
            self.batches,
            steps=10,
            log_every=log_every,
            report=self.reports.append,
            hooks=hooks,
        )
        return float(state.params)

    def logged(self):
        return [report.step for report in self.reports]


def test_reports_and_hooks_come_when_due_and_after_the_last_step():
    run = Run(hooks=(3, 5, 0, 100))
    assert run.train() == sum(BATCHES)
    assert run.logged() == [4, 8, 10]
    assert run.reports[1].metrics == {"loss": 6.0, "total": 31.0, "grad_norm": 1.0}
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


def test_no_batch_is_drawn_beyond_the_last_step():
    run = Run((*BATCHES, 77.0), slopes=(1.0,) * 11)
    run.train()
    assert float(next(run.batches)["x"]) == 77.0


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


def test_what_hooks_cost_is_no_training_time():
    run = Run()
    hooks = (Hook(1, lambda number, state: time.sleep(0.05)),)
    train(
        run.state,
        step,
        run.batches,
        steps=10,
        log_every=5,
        report=run.reports.append,
        hooks=hooks,
    )
    assert run.reports[-1].seconds_per_step < 0.04


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
    reports = []

    def run(overflows, stuck):
        state = TrainState(0, (), (), ())
        batches = iter([{}] * 10)
        arguments = {"steps": 10, "log_every": 5, "report": reports.append}
        return train(state, skipping(overflows, stuck), batches, **arguments)

    run(overflows={2, 4}, stuck=set())
    assert [(r.step, r.metrics["overflow"]) for r in reports] == [(5, 1.0), (10, 0.0)]
    assert "stuck" not in reports[0].metrics
    with pytest.raises(InputError, match=r"step 8: the loss scale sits at its floor of 2\.0, and"):
        run(overflows={7}, stuck={7})
