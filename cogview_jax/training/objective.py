"""The interface between what is trained and the loop, which knows no task."""

from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int, Key

BatchT = TypeVar("BatchT")
BatchT_contra = TypeVar("BatchT_contra", contravariant=True)

#: Name -> a scalar of a step.
Metrics = dict[str, Array]


class StepSums(NamedTuple):
    """What the rows of a batch, or of a part of it, add up to.

    Sums over the parts of an accumulated batch are the sums over the whole batch.

    loss: the sum that is minimised, a scalar. metrics: name -> (sum, weight); their quotient is
    reported. aux: a pytree of sums from which `Objective.finish` makes the new model state.
    """

    loss: Array
    metrics: dict[str, tuple[Array, Array]]
    aux: Any


class ModelValues(NamedTuple):
    """The values of a model.

    params: a pytree of parameters. model_state: a pytree of state that no gradient reaches, such as
    a codebook; () where there is none.
    """

    params: Any
    model_state: Any


@runtime_checkable
class Objective(Protocol[BatchT_contra]):
    """A model with a loss over batches of one type.

    A batch is a NamedTuple of arrays whose first axis is rows, such as `layout.Example`.

    The loss is a sum over rows, so that a batch that is split into accumulated parts has the loss
    of the whole batch.
    """

    #: Tokens of a sequence, or codes of an image.
    tokens_per_row: int
    #: FLOPs of a forward and backward pass over a row, for the model FLOPs utilisation.
    flops_per_row: float

    def init(self, key: Key[Array, ""]) -> ModelValues:
        """The values before step 0; parameters are boxed with their logical axis names."""

    def normalizer(self, batch: BatchT_contra) -> Float[Array, ""]:
        """What the summed loss of a whole batch is divided by."""

    def sums(
        self,
        params: Any,
        model_state: Any,
        batch: BatchT_contra,
        rows: Int[Array | np.ndarray, " b"],
        key: Key[Array, ""],
    ) -> StepSums:
        """The sums over a batch, or over a part of it.

        Args:
            params: the parameters, which the loss is differentiated by.
            model_state: the model state before the step.
            batch: b rows.
            rows: the numbers of these rows within the whole batch.
            key: the key of the step, the same for all parts of a batch.
        """

    def finish(self, values: ModelValues, aux: Any) -> tuple[ModelValues, dict[str, Array]]:
        """The values after a step, and further metrics.

        Args:
            values: the parameters after the update, and the model state before the step.
            aux: `StepSums.aux`, summed over the whole batch.
        """

    def bundle_values(self, values: ModelValues) -> ModelValues:
        """What a bundle holds of all values.

        An objective that trains a part which only training needs, such as a discriminator, leaves
        it out here.
        """

    def with_bundle_values(self, values: ModelValues, given: ModelValues) -> ModelValues:
        """`values` with what a bundle holds of them (see `bundle_values`) replaced by `given`."""


@runtime_checkable
class BatchObjective(Objective[BatchT_contra], Protocol[BatchT_contra]):
    """An objective in which the loss of a row also depends on sums over the whole batch.

    The parts of an accumulated batch are then gone through twice: first for `batch_sums`, without a
    backward pass, and then for `sums`, which are told what they added up to.
    """

    def batch_sums(
        self,
        params: Any,
        model_state: Any,
        batch: BatchT_contra,
        rows: Int[Array | np.ndarray, " b"],
        key: Key[Array, ""],
    ) -> Any:
        """What `sums` has to know of the rest of the batch, as a pytree of sums over the rows.

        One without arrays, such as (), spares the parts being gone through twice. The arguments are
        those of `sums`.
        """

    def sums(
        self,
        params: Any,
        model_state: Any,
        batch: BatchT_contra,
        rows: Int[Array | np.ndarray, " b"],
        key: Key[Array, ""],
        whole: Any = None,
    ) -> StepSums:
        """The sums over a batch, or over a part of it.

        Args:
            params, model_state, batch, rows, key: see `Objective.sums`.
            whole: `batch_sums` of the whole batch, or None where `batch` is the whole batch. It is
                a constant: what `sums` returns must have the gradient of the whole batch's loss for
                what the rows of the part contribute to these sums.
        """
