"""Measures the loss of a transformer on held-out records."""

import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import numpy as np

from cogview_jax.data.held_out import Subset
from cogview_jax.data.held_out_batches import HeldOutBatches, batches_of_parts
from cogview_jax.data.sources.mixture import Part
from cogview_jax.data.sources.source import Source
from cogview_jax.data.token_records import TokenRecord
from cogview_jax.runtime.mesh import to_host
from cogview_jax.tasks.train_config import TransformerTrainConfig
from cogview_jax.tokenizers.layout import Example
from cogview_jax.training.sequence_objective import SequenceObjective
from cogview_jax.training.state import TrainState

#: The names of what `HeldOutLoss` measures.
HELD_OUT_LOSSES = ("validation_loss", "validation_text_loss", "validation_image_loss")


class HeldOutLoss:
    """The losses of training over the first readable held-out records, as over one large batch.

    validation_loss, validation_text_loss and validation_image_loss are what the metrics of a step
    without this prefix would be if these records were its batch and nothing were random: there is
    no dropout, no caption is left out, and the number of a record decides which of its captions is
    taken, and which window of its codes. Sums are of float64.

    Of a mixture the records are as many of each part as its share of the rows asks for, as far as
    it has as many, and validation_loss/PART is the loss of those of a part.
    """

    def __init__(
        self,
        config: TransformerTrainConfig,
        objective: SequenceObjective,
        held_out: Source[TokenRecord],
        row: Callable[[TokenRecord, np.random.Generator], Example],
        shapes: Any,
    ) -> None:
        """Reads records until one can be used.

        Args:
            config: how many records are measured, how often, and in batches of what size.
            objective: what is measured.
            held_out: the held-out records.
            row: makes the row of a record.
            shapes: the shapes of a row.

        Raises:
            InputError: no record can be read.
        """
        self._objective, self.every = objective, config.validate_every

        def batches(part: Part[TokenRecord], count: int, of: str) -> HeldOutBatches[TokenRecord]:
            subset = part.source
            assert isinstance(subset, Subset), "a record has a number among all of its source"
            return HeldOutBatches(
                subset,
                count,
                rows=config.global_batch // config.accumulate,
                row=lambda i, record: row(record, np.random.default_rng(subset.number(i))),
                shapes=shapes,
                of=f"records{of}",
            )

        self._batches = batches_of_parts(held_out, config.validation_records, batches)
        self._sums = jax.jit(objective.row_sums)

    def describe(self) -> str:
        """What is measured, in one line."""
        counts = ", ".join(batches.described for batches in self._batches.values())
        return f"the loss of {counts} every {self.every:,} steps"

    def measure(self, state: TrainState) -> dict[str, float]:
        """The metrics of a state; every process of the run calls it, and all get the same.

        Raises:
            InputError: no record can be read any more.
        """
        params = self._objective.model_params(state.values)
        totals: dict[str, dict[str, np.ndarray]] = {}
        for part, batches in self._batches.items():
            totals[part] = self._totals(params, batches(state.mesh))
        whole = _added(totals.values())
        found = _losses(whole)
        for part in filter(None, totals):
            found |= {f"{name}/{part}": value for name, value in _losses(totals[part]).items()}
        return found

    def _totals(self, params: Any, batches: Iterator[Any]) -> dict[str, np.ndarray]:
        """The sum of each loss, and of its weights: [2]."""
        totals: dict[str, np.ndarray] = {}
        for batch, _, here in batches:
            for name, pair in self._sums(params, batch).items():
                sums = [to_host(array)[here].astype(np.float64).sum() for array in pair]
                totals[name] = totals.get(name, 0.0) + np.array(sums)
        return totals


def _added(totals: Collection[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The totals of all parts."""
    names = dict.fromkeys(name for each in totals for name in each)
    return {name: np.sum([each[name] for each in totals], axis=0) for name in names}


def _losses(totals: dict[str, np.ndarray]) -> dict[str, float]:
    """The means, under the names of `HELD_OUT_LOSSES`."""
    means = {n: float(total / of) if of else math.nan for n, (total, of) in totals.items()}
    return {name: means[name.removeprefix("validation_")] for name in HELD_OUT_LOSSES}
