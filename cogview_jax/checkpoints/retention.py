"""Decides which checkpoints of a run are kept."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cogview_jax.runtime.errors import InputError


@dataclass(frozen=True)
class Retention:
    """Keeps the newest checkpoints, some at regular steps, and the best ones.

    Attributes:
        latest: how many of the newest are kept, at least one.
        every: checkpoints whose step is a multiple of it are kept for good; 0 for none.
        best: how many checkpoints with the best `metric` are kept.
        metric: the name of a metric in metrics.jsonl.
        highest: whether a higher value of the metric is better; otherwise a lower one is.
        optional: whether a checkpoint may lack the metric, since it is not measured at every step.
        pinned: the step of one more checkpoint that is kept; 0 for none.
    """

    latest: int = 2
    every: int = 0
    best: int = 0
    metric: str = "loss"
    highest: bool = False
    optional: bool = False
    pinned: int = 0

    def __post_init__(self):
        for name, least in (("latest", 1), ("every", 0), ("best", 0)):
            if (value := getattr(self, name)) < least:
                raise InputError(f"checkpoints kept: {name} = {value}, expected at least {least}")

    def check(self, metrics: Mapping[str, float]) -> None:
        """Raises InputError if `metric` is needed, not optional, and not among `metrics`."""
        if self.best and not self.optional and self.metric not in metrics:
            raise InputError(
                f"the best checkpoints are to be kept by {self.metric!r}, which is not measured;"
                f" choose from {', '.join(sorted(metrics))}"
            )

    def steps_to_keep(self, metrics: Mapping[int, Mapping[str, float]]) -> set[int]:
        """Returns the steps whose checkpoints are kept.

        Args:
            metrics: the metrics of every checkpoint, by step. A checkpoint without `metric` cannot
                be one of the best. If two are equal, the newer one is better.
        """
        steps = sorted(metrics)
        periodic = [step for step in steps if self.every and step % self.every == 0]
        pinned = [step for step in steps if step == self.pinned]
        return {*steps[-self.latest :], *periodic, *pinned, *self.ranked(metrics)[: self.best]}

    def ranked(self, metrics: Mapping[int, Mapping[str, float]]) -> list[int]:
        """Returns the steps that have `metric`, the best first; the newer of two that are equal.

        A value that is not a number is none: it has no place in an order, and in a sort it would
        leave the others out of theirs.

        Args:
            metrics: the metrics of every checkpoint, by step.
        """
        values = {step: metrics[step].get(self.metric, math.nan) for step in metrics}
        measured = [step for step, value in values.items() if not math.isnan(value)]
        sign = -1 if self.highest else 1
        return sorted(measured, key=lambda step: (sign * values[step], -step))
