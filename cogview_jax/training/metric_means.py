"""Means of metrics over the steps since the last log point."""

import math
from collections.abc import Mapping, Sequence

#: Metrics whose last value is reported and not their mean: settings and counts of the run.
LAST = ("lr", "muon_lr", "loss_scale", "skipped_steps")


class MetricMeans:
    """Sums of metrics over the steps since the last log point.

    Values that are not finite are left out; steps that a loss scale has skipped have them.
    """

    def __init__(self, sums: Mapping[str, Sequence[float]] | None = None):
        """Starts with nothing, or with the `sums` of a run that stopped between two log points."""
        self._sums = {name: (total, int(count)) for name, (total, count) in (sums or {}).items()}

    @property
    def sums(self) -> dict[str, tuple[float, int]]:
        """The sum and the number of values of each metric, for JSON."""
        return dict(self._sums)

    def add(self, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of one step."""
        for name, value in metrics.items():
            total, count = self._sums.get(name, (0.0, 0))
            if name in LAST:
                total, count = value, 1
            elif math.isfinite(value):
                total, count = total + value, count + 1
            self._sums[name] = (total, count)

    def means(self) -> dict[str, float]:
        """The mean of each metric; nan if no step has a finite value."""
        return {
            name: total / count if count else math.nan
            for name, (total, count) in self._sums.items()
        }

    def clear(self) -> None:
        """Forgets all values, for the next log point."""
        self._sums = {}
