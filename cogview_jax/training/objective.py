"""What is trained: the one interface between a task and the loop that knows no task."""

from typing import Any, NamedTuple, Protocol

import jax


class Terms(NamedTuple):
    """A (micro-)batch's part of everything a step sums up.

    loss: its part of the sum to be minimised, a scalar. metrics: name -> (sum, weight), to be
    reported as their quotient. carry: a pytree of sums that `finish` turns into the new extras.
    """

    loss: jax.Array
    metrics: dict[str, tuple[jax.Array, jax.Array]]
    carry: Any


class Objective(Protocol):
    """A model with a loss.

    Everything per row is given as sums, so that a batch cut into accumulated parts gives what the
    whole batch gives.
    """

    #: Tokens of a sequence, or codes of a picture.
    tokens_per_row: int
    #: Of a forward and backward pass, for the model FLOPs utilisation.
    flops_per_row: float

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Parameters, boxed with logical axis names, and extras."""

    def weight(self, batch: dict[str, jax.Array]) -> jax.Array:
        """What the summed loss of a whole batch is divided by."""

    def terms(self, params: Any, extras: Any, batch: dict[str, jax.Array], key: jax.Array) -> Terms:
        """The sums over a (part of a) batch.

        batch["row"] numbers the rows within the whole batch; `key` is the step's.
        """

    def finish(self, extras: Any, carry: Any, key: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        """The extras after a step whose terms carried `carry`, and further metrics."""
