"""Ends a run whose measurements of held-out records get no better."""

import math
from collections.abc import Mapping
from typing import Any

from cogview_jax.tasks.validation import HIGHER_IS_BETTER


class EarlyStopping:
    """Counts the measurements in a row that are not better than all before them.

    It counts whether or not a run is to be stopped by it, so that `patience` may be given later.
    What it knows is in the notes of checkpoints: a resumed run counts as the unbroken one.
    """

    def __init__(self, metric: str, patience: int, noted: Mapping[str, Any] | None = None) -> None:
        """Starts at what a checkpoint has noted, if that is of the same metric.

        Args:
            metric: the name of what is measured.
            patience: after how many such measurements `reached` is True; 0 for never.
            noted: `notes` of the run that is continued.
        """
        self.metric, self.patience = metric, patience
        self._count, self._best, self._step = 0, math.nan, 0
        if noted and noted["metric"] == metric and noted["best"] is not None:
            self._count, self._best, self._step = noted["count"], noted["best"], noted["step"]

    @property
    def notes(self) -> dict[str, Any]:
        """The metric, its best value, the step of that, and the count since, for JSON."""
        best = None if math.isnan(self._best) else self._best
        return {"metric": self.metric, "best": best, "step": self._step, "count": self._count}

    def see(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of a measurement; nothing happens where `metric` is none of them."""
        if self.metric not in metrics:
            return
        value = metrics[self.metric]
        better = value > self._best if self.metric in HIGHER_IS_BETTER else value < self._best
        if better or math.isnan(self._best):
            self._count, self._best, self._step = 0, value, step
        else:
            self._count += 1

    def reached(self) -> bool:
        """Whether the run is to end."""
        return 0 < self.patience <= self._count

    def __str__(self) -> str:
        """What was counted, in words."""
        return (
            f"{self.metric} was not better in {self._count} measurements in a row (train.stop_after"
            f" = {self.patience}) than at step {self._step}, where it was {self._best:.6g}"
        )
