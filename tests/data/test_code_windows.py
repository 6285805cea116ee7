"""Windows out of grids whose cells say where they are."""

import numpy as np
import pytest

from cogview_jax.data.code_windows import code_grids, random_window


def numbered(side):
    """A cell's row and column in one number."""
    return 100 * np.arange(side)[:, None] + np.arange(side)


def test_grids_are_taken_apart_in_order():
    small, large = numbered(2), numbered(4)
    first, second = code_grids(np.concatenate([small.ravel(), large.ravel()]), [2, 4])
    np.testing.assert_array_equal(first, small)
    np.testing.assert_array_equal(second, large)


@pytest.mark.parametrize("order", [1, -1])
def test_a_window_is_the_same_place_in_every_size(order):
    grids, sides = [numbered(4), numbered(8)][::order], [2, 4][::order]
    generator, places = np.random.default_rng(0), set()
    for _ in range(200):
        small, large = random_window(grids, sides, generator)[::order]
        top, left = divmod(int(small[0, 0]), 100)
        np.testing.assert_array_equal(small, numbered(4)[top : top + 2, left : left + 2])
        whole = numbered(8)[2 * top : 2 * top + 4, 2 * left : 2 * left + 4]
        np.testing.assert_array_equal(large, whole)
        places.add((top, left))
    assert places == {(row, column) for row in range(3) for column in range(3)}


def test_whole_pictures_draw_nothing():
    """So a run without windows reads the same rows as before there were any."""
    generator = np.random.default_rng(3)
    (window,) = random_window([numbered(4)], [4], generator)
    np.testing.assert_array_equal(window, numbered(4))
    assert generator.random() == np.random.default_rng(3).random()
