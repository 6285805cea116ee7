"""What float16 could not hold first."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from bench.stability.recording import Record
from cogview_jax.models.config import TransformerConfig

#: float16's largest number, and the largest one whose square it holds.
LIMIT = float(np.finfo(np.float16).max)
SQUARE_LIMIT = LIMIT**0.5


@dataclasses.dataclass(frozen=True)
class Failure:
    """The first place at which a quantity left its range.

    quantity: "squares" (of a LayerNorm's input, which makes its variance infinite and its output
    its bias), "scores" (of attention), "main" (the main branch) or "branch" (the input of a
    LayerNorm that closes a branch). step, layer: from 0. before: the largest value in any layer and
    any earlier step, of the LayerNorm's input for "squares".
    """

    quantity: str
    step: int
    layer: int
    before: float


def failures(record: Record, config: TransformerConfig) -> list[Failure]:
    """What failed in a run of a model with `config`, the first first; empty if nothing did.

    At most one failure of squares and one of the values themselves: what is not a number spreads
    to everything after it, so only its first place says something.
    """
    found = [_values(record, config)]
    if not config.pb_relax_norm:
        # The largest value stands for the largest distance from the mean, which is small beside it.
        over = record.norm_inputs > SQUARE_LIMIT
        found.append(_first({"squares": over}, {"squares": record.norm_inputs}))
    return sorted(filter(None, found), key=lambda failure: failure.step)


def _values(record: Record, config: TransformerConfig) -> Failure | None:
    # In the order of computation within a layer. Without Sandwich-LN every LayerNorm reads the main
    # branch.
    inputs = "branch" if config.sandwich_ln else "main"
    values = {"scores": record.scores, inputs: np.maximum(record.norm_inputs, record.main)}
    return _first({name: ~np.isfinite(value) for name, value in values.items()}, values)


def _first(over: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]) -> Failure | None:
    """The first True of some [S, L]: by step, then layer, then the order of the mapping."""
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
