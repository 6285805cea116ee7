"""The training loop: knows steps, batches and when things are due, and nothing of any task."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from cogview_jax.data.prefetch import Prefetched
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.watchdog import Watchdog
from cogview_jax.training.goodput import STEP, Goodput
from cogview_jax.training.metric_means import MetricMeans
from cogview_jax.training.objective import BatchT, Metrics
from cogview_jax.training.profiler import ProfilerWindow
from cogview_jax.training.state import TrainState
from cogview_jax.training.step import Step

#: Steps that may be started and not finished: the devices always have the next one, and a run that
#: is asked to stop waits for few, however slow they are.
IN_FLIGHT = 2


@dataclass(frozen=True)
class Hook:
    """Something done every so many steps (0: never), and once more after the last one.

    name: what its time counts as, see `Goodput`. action: is given how many steps are done, the
    state, and the means of the metrics over the steps since the log point before.
    """

    name: str
    every: int
    action: Callable[[int, TrainState, dict[str, float]], None]

    def due(self, step: int, steps: int) -> bool:
        """Whether the action is due once `step` of `steps` steps are done."""
        return self.every > 0 and (step % self.every == 0 or step == steps)


@dataclass(frozen=True)
class Measured:
    """A log point: means of the metrics, and of the seconds a step, over the steps since the last.

    The first of a run counts the seconds of compiling too.
    """

    step: int
    metrics: dict[str, float]
    seconds_per_step: float


def train(
    state: TrainState,
    step: Step[BatchT],
    batches: Prefetched[BatchT],
    *,
    steps: int,
    log_every: int,
    report: Callable[[Measured], None],
    hooks: tuple[Hook, ...] = (),
    goodput: Goodput,
    watchdog: Watchdog,
    profiler: ProfilerWindow,
    means: MetricMeans | None = None,
    stop: Callable[[int], bool] = lambda done: False,
    stop_waiting: Callable[[], bool] = lambda: False,
    started: Callable[[int, Metrics], None] = lambda step, metrics: None,
) -> TrainState:
    """Trains until `steps` steps are done, or until it is to stop, and returns the last state.

    Metrics stay on the device until a log point or a due hook; in between, at most `IN_FLIGHT`
    steps wait for the device. A loss or gradient that is not finite is found there, before any hook
    sees the state; one that a loss scale has skipped is no harm.

    Args:
        state: where to start; `batches` begins with the batch of its position. It is donated.
        step: jitted, donating its first argument.
        batches: global arrays, one batch a step.
        steps: how many steps a whole run has.
        log_every: `report` is called every so many steps, and after the last one.
        report: takes a log point.
        hooks: see `Hook`; called in order.
        goodput: is told what the time is spent on.
        watchdog: is told of every step that is started or finished.
        profiler: sees every step.
        means: what the steps since the last log point measured, where a run goes on between two.
            It is kept up to date: what it holds after a hook or at the end belongs to that state.
        stop: asked after every step; True ends the loop there. The state is checked, but no hook
            is called.
        stop_waiting: asked again and again while the next batch is not there; True ends the loop
            as `stop` does, without that batch.
        started: called with every step once it is started, and the metrics that it will have.

    Raises:
        InputError: a loss or gradient was not finite, or the loss scale sits at its floor; the
            message names the step.
    """
    means = MetricMeans() if means is None else means
    start = done = int(state.position)
    pending: list[tuple[int, Any]] = []
    since, logged = time.monotonic(), done

    def waiting() -> None:
        # What runs on the devices meanwhile is no loss.
        idle = not pending or pending[-1][1]["loss"].is_ready()
        goodput.enter("data" if idle else STEP)
        if stop_waiting():
            raise _StopWaiting

    while done < steps:
        watchdog.beat(f"waiting for the batch of step {done + 1}")
        try:
            batch = batches.get(waiting)
        except _StopWaiting:
            for numbers in check_finite(pending):
                means.add(numbers)
            break
        profiler.before(done)
        if done == start:
            watchdog.rest()  # compiles
        goodput.enter("compile" if done == start else STEP)
        with jax.profiler.StepTraceAnnotation("train", step_num=done + 1):
            state, metrics = step(state, batch)
        goodput.enter(STEP)
        done += 1
        profiler.after(done, metrics)
        started(done, metrics)
        pending.append((done, metrics))
        if len(pending) >= IN_FLIGHT:
            number, metrics = pending[-IN_FLIGHT]
            watchdog.beat(f"waiting for the devices to finish step {number}")
            jax.block_until_ready(metrics)
        stopping = stop(done) and done < steps
        due = [hook for hook in hooks if hook.due(done, steps) and not stopping]
        log = done % log_every == 0 or done == steps
        if not (due or log or stopping):
            continue
        for number, metrics in pending:
            watchdog.beat(f"waiting for the devices to finish step {number}")
            jax.block_until_ready(metrics)
        for numbers in check_finite(pending):
            means.add(numbers)
        pending, measured = [], means.means()
        reached = time.monotonic()
        watchdog.rest()
        if log:
            with goodput.phase("report"):
                report(Measured(done, measured, (reached - since) / (done - logged)))
            since, logged = reached, done
            means.clear()
        for hook in due:
            with goodput.phase(hook.name):
                hook.action(done, state, measured)
        if stopping:
            break
        # What hooks and reports cost does not count as training.
        since += time.monotonic() - reached
    return state


class _StopWaiting(Exception):
    """The batch that is waited for is not wanted any more."""


def check_finite(pending: list[tuple[int, Any]]) -> list[dict[str, float]]:
    """The metrics of some (step, metrics), as numbers, once no loss or gradient is infinite or nan.

    Raises:
        InputError: some loss or gradient is not, in a step that was not skipped, or the loss scale
            has sat at its floor for too long; it names the first such step.
    """
    fetched = jax.device_get(pending)
    for number, metrics in fetched:
        if metrics.get("stuck"):
            raise InputError(
                f"step {number}: the loss scale sits at its floor of"
                f" {float(metrics['loss_scale'])}, and loss_scale.patience steps have overflowed"
                " there: activations or weights have outgrown float16, and no scale helps; lower"
                " optimizer.lr, switch on model.sandwich_ln and model.pb_relax_*, or train in"
                " bfloat16"
            )
        for name in ("loss", "grad_norm"):
            if not (metrics.get("overflow") or math.isfinite(metrics[name])):
                raise InputError(
                    f"the {name} of step {number} is {float(metrics[name])}: training stopped, and"
                    " no state since the last check was saved; lower optimizer.lr, or look at the"
                    " data"
                )
    return [
        {name: float(value) for name, value in metrics.items() if name != "stuck"}
        for _, metrics in fetched
    ]
