"""Finds the first values that float16 could not hold."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from bench.stability.recording import Record
from cogview_jax.models.config import TransformerConfig

#: The largest number of float16, and the largest one whose square is not infinite.
LIMIT = float(np.finfo(np.float16).max)
SQUARE_LIMIT = LIMIT**0.5


@dataclasses.dataclass(frozen=True)
class Failure:
    """The first place at which a quantity left its range.

    Attributes:
        quantity: "squares" (of the input of a LayerNorm; its variance is then infinite and its
            output is its bias), "scores" (of attention), "main" (the main branch) or "branch" (the
            input of a LayerNorm that closes a branch).
        step: the step, from 0.
        layer: the layer, from 0.
        before: the largest value in any layer and earlier step; for "squares", that of the input.
    """

    quantity: str
    step: int
    layer: int
    before: float


def failures(record: Record, config: TransformerConfig) -> list[Failure]:
    """Returns what failed in a run of a model with `config`, in order; empty if nothing did.

    There is at most one failure of squares and one of the values themselves. A value that is not a
    number spreads to everything after it, so only its first place is of interest.
    """
    found = [_values(record, config)]
    if not config.pb_relax_norm:
        # The largest value stands for the largest distance from the mean, which is much smaller.
        over = record.norm_inputs > SQUARE_LIMIT
        found.append(_first({"squares": over}, {"squares": record.norm_inputs}))
    return sorted(filter(None, found), key=lambda failure: failure.step)


def _values(record: Record, config: TransformerConfig) -> Failure | None:
    # They are in the order of computation within a layer. Without it every LayerNorm reads
    # the main branch.
    inputs = "branch" if config.sandwich_ln else "main"
    values = {"scores": record.scores, inputs: np.maximum(record.norm_inputs, record.main)}
    return _first({name: ~np.isfinite(value) for name, value in values.items()}, values)


def _first(over: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]) -> Failure | None:
    """Returns the first True of some [S, L], by step, then layer, then order of the mapping."""
    places = [
        (*np.argwhere(where)[0].tolist(), order)
        for order, where in enumerate(over.values())
        if where.any()
    ]
    if not places:
        return None
    step, layer, order = min(places)
    quantity = list(over)[order]
    return Failure(quantity, step, layer, float(values[quantity][:step].max(initial=0)))
