"""Means of metrics over the steps since the last log point."""

import math
from collections.abc import Mapping

#: What is a setting or a count of the run, and not measured anew by every step: its last value.
LAST = ("lr", "loss_scale", "skipped_steps")


class MetricMeans:
    """Sums of what the steps since the last log point measured.

    A value that is not finite, as of a step that a loss scale has skipped, does not count.
    """

    def __init__(self, sums: Mapping[str, tuple[float, int]] | None = None):
        """Starts with nothing, or with the `sums` of a run that stopped between two log points."""
        self._sums = {name: (total, count) for name, (total, count) in (sums or {}).items()}

    @property
    def sums(self) -> dict[str, tuple[float, int]]:
        """The sum and the number of values of each metric, as JSON can keep them."""
        return dict(self._sums)

    def add(self, metrics: Mapping[str, float]) -> None:
        """Counts one step."""
        for name, value in metrics.items():
            total, count = self._sums.get(name, (0.0, 0))
            if name in LAST:
                total, count = value, 1
            elif math.isfinite(value):
                total, count = total + value, count + 1
            self._sums[name] = (total, count)

    def means(self) -> dict[str, float]:
        """The mean of each metric; nan where no step has a value."""
        return {
            name: total / count if count else math.nan
            for name, (total, count) in self._sums.items()
        }

    def clear(self) -> None:
        """Begins the next log point."""
        self._sums = {}
