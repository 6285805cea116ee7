"""The interface between what a run trains and the run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.data.sources.source import Source
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.training.objective import ModelValues, Objective
from cogview_jax.training.state import TrainState


class Validation(Protocol):
    """Measures a state on held-out records."""

    #: Steps between two measurements.
    every: int

    def describe(self) -> str:
        """What is measured, in one line."""

    def measure(self, state: TrainState) -> dict[str, float]:
        """The metrics of a state; every process of the run calls it, and all get the same."""


class Task(Protocol):
    """What a run trains: its data, its objective, its previews and its bundle."""

    @property
    def objective(self) -> Objective[Any]:
        """The model and its loss; its batches are rows of `transform`, stacked."""

    def source(self) -> Source[Any]:
        """The records to train on, checked against the config."""

    def validation_metrics(self) -> Sequence[str]:
        """The names of what `validation` measures; all begin with "validation_"."""

    def validation(self) -> Validation | None:
        """What measures held-out records; None for nothing. Called after `source`."""

    def transform(self, record: Any, generator: np.random.Generator) -> Any:
        """One row of a batch, a NamedTuple of arrays such as `layout.Example`."""

    def row_shapes(self) -> Any:
        """The shapes of what `transform` returns for any record."""

    def check(self, bundle: Bundle) -> None:
        """InputError where `initial` cannot take a bundle's weights, as far as is soon known."""

    def initial(self, bundle: Bundle | None, state: TrainState) -> TrainState:
        """`state` with the weights of another bundle, or as a run without one starts."""

    def stored(self, state: TrainState) -> TrainState:
        """What a checkpoint holds of a state, or of its shapes."""

    def restored(self, state: TrainState, shapes: TrainState) -> TrainState:
        """The state of a checkpoint (see `stored`) with what it does not hold.

        shapes: of the whole state.
        """

    def cogview(self, state: TrainState) -> CogView:
        """The bundle of the parameters of `state`, in memory."""

    def described(self, arrays: ModelValues) -> dict[str, dict[str, Any]]:
        """What a checkpoint says of its bundle (`checkpoints.step_bundle`).

        arrays: what `Objective.bundle_values` gives, with names in the place of the arrays.
        """

    def preview(self, state: TrainState, source: Source[Any]) -> np.ndarray:
        """An image that shows what the model can do, uint8 [h, w, 3]."""

    def write(self, state: TrainState, path: Path) -> None:
        """Writes the bundle of the parameters of `state`, whatever average it holds beside."""
