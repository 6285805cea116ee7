"""Which rows of a data set the release trains on, and in which order it draws them.

For repeating what a released run has read; our own order is that of `data/pipeline.py`.
"""

import random
from collections.abc import Sequence

import numpy as np

from cogview_jax.runtime.errors import InputError


def split_shares(text: str, *, given: Sequence[int] = ()) -> list[float]:
    """The shares of training, validation and test rows that a text like "949,50,1" means.

    Args:
        text: numbers separated by commas or slashes. What a total below 1 leaves over is the next
            part, so "0.9" means 0.9 and 0.1.
        given: the parts (1: validation, 2: test) that have data sets of their own and so take no
            share.

    Returns:
        Three shares that add up to 1.
    """
    separator = "," if "," in text else "/"
    try:
        weights = [float(number) for number in text.split(separator)]
    except ValueError:
        raise InputError(f"split {text!r}: expected numbers, such as 949,50,1") from None
    if sum(weights) < 1:
        weights.append(1 - sum(weights))
    weights = [*weights, 0.0, 0.0][:3]
    for part in given:
        weights[part] = 0.0
    if min(weights) < 0 or not sum(weights):
        raise InputError(f"split {text!r}: expected shares of at least 0, and one above")
    return [weight / sum(weights) for weight in weights]


def split_ranges(rows: int, shares: Sequence[float]) -> list[range | None]:
    """The rows of each part, one part after the other; None where its share is 0.

    Fractions of a row are carried over to the next part, and the last may be lost to rounding. A
    part has at least one row, which is then the next part's too.
    """
    parts: list[range | None] = []
    start, carried = 0, 0.0
    for share in shares:
        if not share:
            parts.append(None)
            continue
        whole, fraction = divmod(rows * share, 1)
        carried += fraction
        count = int(whole + carried)
        parts.append(range(start, start + max(count, 1)))
        start += count
        carried %= 1
    return parts


def random_row(index: int, rows: int) -> int:
    """The row that the release draws as its sample number `index`, of `rows`, with replacement.

    The draw of each sample is its own: Python's generator, seeded with the index, gives the 16
    words that seed numpy's.
    """
    words = random.Random(index)
    seed = [words.randint(0, 2**32 - 1) for _ in range(16)]
    return int(np.random.RandomState(seed).randint(rows))
