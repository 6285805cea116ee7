"""Measures the loss of a transformer on held-out records."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cogview_jax.data.held_out import Subset
from cogview_jax.data.held_out_batches import HeldOutBatches
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
    """

    def __init__(
        self,
        config: TransformerTrainConfig,
        objective: SequenceObjective,
        held_out: Subset[TokenRecord],
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
        self._batches = HeldOutBatches(
            held_out,
            config.validation_records,
            rows=config.global_batch // config.accumulate,
            row=lambda i, record: row(record, np.random.default_rng(held_out.number(i))),
            shapes=shapes,
        )
        self._sums = jax.jit(objective.row_sums)

    def describe(self) -> str:
        """What is measured, in one line."""
        count, available = self._batches.count, self._batches.available
        return f"the loss of {count:,} of {available:,} held-out records every {self.every:,} steps"

    def measure(self, state: TrainState) -> dict[str, float]:
        """The metrics of a state; every process of the run calls it, and all get the same.

        Raises:
            InputError: no record can be read any more.
        """
        params = self._objective.model_params(state.values)
        totals: dict[str, np.ndarray] = {}
        for batch, _, here in self._batches(state.mesh):
            for name, pair in self._sums(params, batch).items():
                sums = [to_host(array)[here].astype(np.float64).sum() for array in pair]
                totals[name] = totals.get(name, 0.0) + np.array(sums)
        means = {n: float(total / of) if of else math.nan for n, (total, of) in totals.items()}
        return {name: means[name.removeprefix("validation_")] for name in HELD_OUT_LOSSES}
