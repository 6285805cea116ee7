"""Ends a run whose measurements get no better."""

import math
from collections.abc import Mapping
from typing import Any

from cogview_jax.tasks.best_metric import BestMetric


class EarlyStopping:
    """Counts the measurements in a row that are not better than all before them.

    It counts whether or not a run is to be stopped by it, so that `patience` may be given later.
    What it knows is in the notes of checkpoints: a resumed run counts as the unbroken one.
    """

    def __init__(
        self, metric: BestMetric, patience: int, noted: Mapping[str, Any] | None = None
    ) -> None:
        """Starts at what a checkpoint has noted, if that is of the same metric.

        Args:
            metric: what is measured.
            patience: after how many such measurements `reached` is True; 0 for never.
            noted: `notes` of the run that is continued.
        """
        self.metric, self.patience = metric, patience
        self._count, self._best, self._step = 0, math.nan, 0
        if noted and noted["metric"] == metric.name and noted["best"] is not None:
            self._count, self._best, self._step = noted["count"], noted["best"], noted["step"]

    @property
    def notes(self) -> dict[str, Any]:
        """The metric, its best value, the step of that, and the count since, for JSON."""
        best = None if math.isnan(self._best) else self._best
        return {"metric": self.metric.name, "best": best, "step": self._step, "count": self._count}

    def see(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of a measurement; nothing happens where `metric` is none of them."""
        if self.metric.name not in metrics:
            return
        value = metrics[self.metric.name]
        better = value > self._best if self.metric.highest else value < self._best
        if better or math.isnan(self._best):
            self._count, self._best, self._step = 0, value, step
        else:
            self._count += 1

    def standing(self, metrics: Mapping[str, float]) -> str:
        """What `see` made of these metrics, to put behind them; empty where it has no say."""
        if self.metric.name not in metrics or not self._step:
            return ""
        if not self._count:
            return " (the best so far)"
        return f" (the best so far: {self._best:.4g} at step {self._step})"

    def reached(self) -> bool:
        """Whether the run is to end."""
        return 0 < self.patience <= self._count

    def __str__(self) -> str:
        """What was counted, in words."""
        return (
            f"{self.metric.name} was not better in {self._count} measurements in a row"
            f" (train.stop_after = {self.patience}) than at step {self._step}, where it was"
            f" {self._best:.6g}"
        )
