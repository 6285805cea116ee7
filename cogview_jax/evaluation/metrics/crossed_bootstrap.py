"""Confidence intervals of means over ratings whose raters and captions are both random.

Legend: r raters, c captions, s systems, d draws; `...` what is measured of each rating.
"""

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

#: Draws that are computed together, so that memory does not grow with their number.
_TOGETHER = 100


def crossed_interval(
    values: Float[np.ndarray, "r c ..."], *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[Float[np.ndarray, " ..."], Float[np.ndarray, " ..."]]:
    """The lower and upper ends of the intervals of means: percentiles of `crossed_means`.

    Args:
        values: NaN where a rater has not rated a caption.
        draws, seed: of `crossed_means`.
        level: the share of the draws between the ends.
    """
    tail = (1 - level) / 2
    means = crossed_means(values, draws=draws, seed=seed)
    low, high = np.nanquantile(means, [tail, 1 - tail], axis=0)
    return low, high


def share_interval(
    votes: Float[np.ndarray, "r c s"], *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " s"]]:
    """The lower and upper ends of the intervals of shares of votes.

    Percentiles would give a system without a vote the interval [0, 0]. So these are Wilson's (1927)
    intervals, of as many independent votes as have the variance of the draws, taken together for
    all systems: n = sum p (1 - p) / sum var. Where all votes are for one system, which shows no
    variance, n is the number of raters or that of captions, the smaller of the two.

    Args:
        votes: 1 for the chosen system, 0 for the others; NaN where a rater has not rated a caption.
        draws, seed: of `crossed_means`.
        level: of the intervals.
    """
    rated = ~np.isnan(votes[..., 0])
    share = np.nanmean(votes, axis=(0, 1))
    variance = np.nansum(np.nanvar(crossed_means(votes, draws=draws, seed=seed), axis=0))
    spread = (share * (1 - share)).sum()
    if variance > 0:
        n = min(spread / variance, rated.sum())
    else:
        n = min(rated.any(axis=1).sum(), rated.any(axis=0).sum())
    z2 = ndtri((1 + level) / 2) ** 2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def crossed_means(
    values: Float[np.ndarray, "r c ..."], *, draws: int = 2000, seed: int = 0
) -> Float[np.ndarray, "d ..."]:
    """Means over raters and captions that were drawn again: how far other ones would differ.

    Ratings of one rater resemble each other, and so do those of one caption, so that ratings are
    not independent. Each draw of this bootstrap takes as many raters as there are, with
    replacement, and likewise captions, independently; a rating counts as often as its rater and
    its caption were drawn together (the pigeonhole bootstrap of Owen 2007, whose variance is
    rather too large than too small). A side with one rater, or one caption, adds nothing: nothing
    is known of others.

    Args:
        values: NaN where a rater has not rated a caption.
        draws: how many.
        seed: of the draws.

    Returns:
        A mean for each draw; NaN where it holds no rating.
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
        means.append(np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0))
    return np.concatenate(means).reshape(draws, *rest)
