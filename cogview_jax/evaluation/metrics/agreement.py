"""Krippendorff's alpha: how far raters agree beyond chance (Krippendorff 2011).

Legend: r raters, u units (what is rated), v different values.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float


def krippendorff_alpha(
    values: Float[np.ndarray, "r u"], level: Literal["nominal", "ordinal"]
) -> float | None:
    """1 where raters agree, 0 where they agree as often as chance would have it, or below.

    alpha = 1 - D_o / D_e: the mean difference between two raters' values of one unit, over the mean
    difference between any two of those values, whatever they are of. Units that fewer than two
    raters have rated do not count.

    Args:
        values: NaN where a rater has not rated a unit.
        level: "nominal" counts whether two values differ; "ordinal" counts how many of all values
            lie between them, so that only the order of values matters.

    Returns:
        None where alpha is not defined: nothing was rated twice, or all values are the same.
    """
    rated = ~np.isnan(values)
    values = np.where(rated & (rated.sum(axis=0) >= 2), values, np.nan)
    kinds = np.unique(values[~np.isnan(values)])
    if len(kinds) < 2:
        return None
    # How often each value was given to each unit.
    counts = (values[None] == kinds[:, None, None]).sum(axis=1).astype(np.float64)  # [v, u]
    raters = counts.sum(axis=0)
    weights = np.divide(1.0, raters - 1, out=np.zeros_like(raters), where=raters > 1)
    # Pairs of values within units; a value makes no pair with itself.
    observed = (counts * weights) @ counts.T - np.diag(counts @ weights)
    total = counts.sum(axis=1)
    n = total.sum()
    expected = (np.outer(total, total) - np.diag(total)) / (n - 1)
    difference = _differences(total, level)
    return float(1 - (observed * difference).sum() / (expected * difference).sum())


def _differences(total: Float[np.ndarray, " v"], level: str) -> Float[np.ndarray, "v v"]:
    """The squared difference of each pair of values, which were given `total` times."""
    if level == "nominal":
        return 1.0 - np.eye(len(total))
    # The rank of a value in the middle of those that equal it.
    rank = np.cumsum(total) - total / 2
    return (rank[:, None] - rank) ** 2
