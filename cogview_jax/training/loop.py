"""The training loop: knows steps, batches and when things are due, and nothing of any task."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax

from cogview_jax.runtime.errors import InputError
from cogview_jax.training.state import TrainState
from cogview_jax.training.step import Step


@dataclass(frozen=True)
class Hook:
    """Something done every so many steps (0: never), and once more after the last one."""

    every: int
    action: Callable[[int, TrainState], None]

    def due(self, step: int, steps: int) -> bool:
        """Whether the action is due once `step` of `steps` steps are done."""
        return self.every > 0 and (step % self.every == 0 or step == steps)


@dataclass(frozen=True)
class Measured:
    """A log point: metrics of the step just done, and the mean seconds a step since the last."""

    step: int
    metrics: dict[str, float]
    seconds_per_step: float


def train(
    state: TrainState,
    step: Step,
    batches: Iterator[dict[str, jax.Array]],
    *,
    steps: int,
    log_every: int,
    report: Callable[[Measured], None],
    hooks: tuple[Hook, ...] = (),
) -> TrainState:
    """Trains until `steps` steps are done and returns the last state.

    Metrics stay on the device until a log point or a due hook, so the device is never waited for
    in between. A loss or gradient that is not finite is found there, before any hook sees the
    state; one that a loss scale has skipped is no harm.

    Args:
        state: where to start; `batches` begins with the batch of its position. It is donated.
        step: jitted, donating its first argument.
        batches: global arrays, one batch a step.
        steps: how many steps a whole run has.
        log_every: `report` is called every so many steps, and after the last one.
        report: takes a log point.
        hooks: see `Hook`; called in order.

    Raises:
        InputError: a loss or gradient was not finite, or the loss scale sits at its floor; the
            message names the step.
    """
    done = int(state.position)
    pending: list[tuple[int, Any]] = []
    since, logged = time.monotonic(), done
    while done < steps:
        state, metrics = step(state, next(batches))
        done += 1
        pending.append((done, metrics))
        due = [hook for hook in hooks if hook.due(done, steps)]
        log = done % log_every == 0 or done == steps
        if not (due or log):
            continue
        last = check_finite(pending)
        pending = []
        reached = time.monotonic()
        if log:
            report(Measured(done, last, (reached - since) / (done - logged)))
            since, logged = reached, done
        for hook in due:
            hook.action(done, state)
        # What hooks and reports cost does not count as training.
        since += time.monotonic() - reached
    return state


def check_finite(pending: list[tuple[int, Any]]) -> dict[str, float]:
    """The metrics of the last of some (step, metrics), as numbers, once all are finite.

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
    last = {name: float(value) for name, value in fetched[-1][1].items()}
    last.pop("stuck", None)
    return last
