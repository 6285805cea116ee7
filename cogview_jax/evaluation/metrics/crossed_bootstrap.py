"""Confidence intervals of means over ratings whose raters and captions are both random.

Legend: r raters, c captions, d draws; `...` what is measured of each rating.
"""

import numpy as np
from jaxtyping import Float

#: Draws that are computed together, so that memory does not grow with their number.
_TOGETHER = 100


def crossed_interval(
    values: Float[np.ndarray, "r c ..."], *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[Float[np.ndarray, " ..."], Float[np.ndarray, " ..."]]:
    """The lower and upper ends of the intervals of the means over raters and captions.

    Ratings of one rater resemble each other, and so do those of one caption, so that ratings are
    not independent. Each draw of this bootstrap takes as many raters as there are, with
    replacement, and likewise captions, independently; a rating counts as often as its rater and
    its caption were drawn together (the pigeonhole bootstrap of Owen 2007, which is slightly too
    wide rather than too narrow). The interval reaches from one percentile of the draws to another.
    A side with one rater, or one caption, adds no width: nothing is known of others.

    Args:
        values: NaN where a rater has not rated a caption.
        draws: how many.
        level: the share of the draws between the ends.
        seed: of the draws.
    """
    raters, captions, *rest = values.shape
    rated = ~np.isnan(values)
    flat = np.where(rated, values, 0.0).reshape(raters, -1)
    present = rated.reshape(raters, -1).astype(np.float64)
    rng = np.random.default_rng(seed)
    means = []
    for start in range(0, draws, _TOGETHER):
        some = min(_TOGETHER, draws - start)
        of_raters = rng.multinomial(raters, np.full(raters, 1 / raters), some).astype(np.float64)
        of_captions = rng.multinomial(captions, np.full(captions, 1 / captions), some)
        total, number = (
            np.einsum("dc,dck->dk", of_captions, (of_raters @ each).reshape(some, captions, -1))
            for each in (flat, present)
        )
        # A draw may hold no rating where few raters have rated few captions.
        means.append(np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0))
    tail = (1 - level) / 2
    low, high = np.nanquantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return low.reshape(rest), high.reshape(rest)
