"""Bars are as high as their values, and their intervals are where they end."""

import numpy as np

from cogview_jax.evaluation.bars import Bar, bars
from cogview_jax.evaluation.page import COLOURS

LEGEND, TOP, HEIGHT, LEFT = 18, 40, 260, 48


def test_bars_are_drawn_where_their_values_are():
    one = {"a": Bar(3, 2, 4), "b": Bar(1.5)}
    image = bars({"first": one, "second": {"a": Bar(5), "b": Bar(1)}}, (1, 5), range(1, 6))
    pixels = np.asarray(image).astype(int)
    colours = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLOURS[:2]]
    top = TOP + 2 * LEGEND

    def heights(left):
        """The rows of a column that have the colour of either name, as values of the axis."""
        column = pixels[top:, left]
        rows = [np.flatnonzero(np.abs(column - c).sum(axis=1) < 30) for c in colours]
        return [None if not len(r) else round(5 - r[0] / HEIGHT * 4, 1) for r in rows]

    # A bar is 26 wide, and a group has 24 around it.
    first, second = LEFT + 12 + 5, LEFT + 12 + 2 * 26 + 24 + 5
    assert heights(first) == [3.0, None]
    assert heights(first + 26) == [None, 1.5]
    assert heights(second) == [5.0, None]
    middle = pixels[top:, LEFT + 12 + 13].sum(axis=1)
    dark = np.flatnonzero(middle < 200)
    assert [round(5 - dark[0] / HEIGHT * 4, 1), round(5 - dark[-1] / HEIGHT * 4, 1)] == [4.0, 2.0]
