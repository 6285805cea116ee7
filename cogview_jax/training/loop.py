"""The training loop, the same for all tasks: steps, log points, and actions that are due."""

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

#: The number of steps that may be started and not finished. With two, the devices always have the
#: next step, and a run that is asked to stop waits for few steps, however slow they are.
IN_FLIGHT = 2


@dataclass(frozen=True)
class _Periodic:
    name: str
    every: int

    def due(self, step: int, steps: int) -> bool:
        """Whether it is due once `step` of `steps` steps are done."""
        return is_due(self.every, step, steps)


@dataclass(frozen=True)
class Measurement(_Periodic):
    """What is measured every so many steps, and after the last step.

    Attributes:
        name: the phase that its time belongs to; see `Goodput`.
        every: steps between two calls; 0 for no call at all.
        measure: called with the number of steps done and the state; returns further metrics of the
            step, by name.
    """

    measure: Callable[[int, TrainState], dict[str, float]]


@dataclass(frozen=True)
class Hook(_Periodic):
    """An action that is due every so many steps, and after the last step.

    Attributes:
        name: the phase that its time belongs to; see `Goodput`.
        every: steps between two calls; 0 for no call at all.
        action: called with the number of steps done, the state, and the means of the metrics since
            the last log point.
    """

    action: Callable[[int, TrainState, dict[str, float]], None]


def is_due(every: int, step: int, steps: int) -> bool:
    """Whether what is done every so many steps (0: never) is due after `step` of `steps` steps."""
    return every > 0 and (step % every == 0 or step == steps)


@dataclass(frozen=True)
class Measured:
    """A log point.

    Attributes:
        step: the number of steps done.
        metrics: their means over the steps since the last log point, and those of the measurements
            at this step.
        seconds_per_step: the mean over the same steps. The first log point of a run includes the
            seconds of compiling.
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
    measurements: tuple[Measurement, ...] = (),
    enough: Callable[[], bool] = lambda: False,
    goodput: Goodput,
    watchdog: Watchdog,
    profiler: ProfilerWindow,
    means: MetricMeans | None = None,
    stop: Callable[[int], bool] = lambda done: False,
    stop_waiting: Callable[[], bool] = lambda: False,
    started: Callable[[int, Metrics], None] = lambda step, metrics: None,
) -> TrainState:
    """Trains until `steps` steps are done, or `enough` or `stop` says so; returns the last state.

    Metrics stay on the device until a log point or a due hook; in between, at most `IN_FLIGHT`
    steps wait for the device. Losses and gradients that are not finite are found at these points,
    before any hook sees the state. Steps that a loss scale has skipped are not errors.

    Args:
        state: where to start; `batches` begins with the batch of its position. It is donated.
        step: jitted, donating its first argument.
        batches: global arrays, one batch a step.
        steps: how many steps a whole run has.
        log_every: `report` is called every so many steps, and after the last one.
        report: takes a log point.
        hooks: see `Hook`; called in order.
        measurements: see `Measurement`; made in order. Their metrics belong to those of the step,
            for `report` and the hooks, and their steps are log points too. They are made at a step
            where the loop stops, too, so that the metrics of a run that resumes are those of the
            unbroken run.
        enough: called after every measurement; True makes this step the last one of the run.
        goodput: keeps the ledger of wall time.
        watchdog: gets a beat for every step that is started or finished.
        profiler: is called before and after every step.
        means: sums of the metrics since the last log point, of a run that resumes between two log
            points. It is updated in place: after a hook or at the end it belongs to that state.
        stop: called after every step; True ends the loop there. The state is checked, but no hook
            is called.
        stop_waiting: called repeatedly while there is no next batch; True ends the loop as `stop`
            does, without that batch.
        started: called with the number of every step that is started, and its future metrics.

    Raises:
        InputError: a loss or gradient was not finite, or the loss scale sits at its floor; the
            message names the step.
    """
    means = MetricMeans() if means is None else means
    start = done = int(state.position)
    pending: list[tuple[int, Any]] = []
    since, logged = time.monotonic(), done

    def waiting() -> None:
        # Time in which the devices still compute is not lost.
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
        measuring = any(each.due(done, steps) for each in measurements)
        log = done % log_every == 0 or done == steps or measuring
        if not (log or stopping or any(hook.due(done, steps) for hook in hooks)):
            continue
        for number, metrics in pending:
            watchdog.beat(f"waiting for the devices to finish step {number}")
            jax.block_until_ready(metrics)
        for numbers in check_finite(pending):
            means.add(numbers)
        pending, measured = [], means.means()
        reached = time.monotonic()
        watchdog.rest()
        for each in measurements:
            if each.due(done, steps):
                with goodput.phase(each.name):
                    measured |= each.measure(done, state)
                if enough():
                    steps, stopping = done, False
        if log:
            with goodput.phase("report"):
                report(Measured(done, measured, (reached - since) / (done - logged)))
            since, logged = reached, done
            means.clear()
        if stopping:
            break
        for hook in hooks:
            if hook.due(done, steps):
                with goodput.phase(hook.name):
                    hook.action(done, state, measured)
        # What hooks and reports cost does not count as training.
        since += time.monotonic() - reached
    return state


class _StopWaiting(Exception):
    """The run is to stop while it waits for a batch."""


def check_finite(pending: list[tuple[int, Any]]) -> list[dict[str, float]]:
    """The metrics of (step, metrics) pairs as numbers.

    Raises:
        InputError: the loss or gradient of a step that was not skipped is not finite, or the loss
            scale sits at its floor for too long; the message names the first such step.
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
