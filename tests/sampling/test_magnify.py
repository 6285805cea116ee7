"""The plan of super-resolution against the release's, and a small one drawn by hand."""

import json

import numpy as np
import pytest

from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.magnify import ORDER, MagnifyPlan, window_sequence
from cogview_jax.tokenizers.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def table(fixtures):
    return np.load(fixtures / "magnify_plan.npz")


@pytest.fixture(scope="module")
def plan(table):
    """The plan that the recorded numbers describe."""
    row_start, row_end = table["source_rect"][0, :2]
    grid = len(table["fill_window"]) // 2
    second = next(
        i for i, (row, column, _) in enumerate(table["windows"]) if (row, column) == (0, 1)
    )
    stride = table["source_rect"][second, 2]
    order = tuple(tuple(map(int, window)) for window in table["windows"])
    return MagnifyPlan(grid, int(row_end - row_start), int(stride), order)


def test_the_default_is_the_plan_of_the_release(plan):
    assert plan == MagnifyPlan()
    assert plan.order == ORDER


def cells(shape, rectangle, chosen=True):
    """A grid that is True in `rectangle` where `chosen`."""
    grid = np.zeros(shape, bool)
    grid[rectangle] = chosen
    return grid


def test_every_cell_is_read_given_and_filled_as_in_the_release(plan, table):
    side = 2 * plan.grid
    raster = np.arange(plan.grid**2).reshape(plan.grid, plan.grid)
    fill_window = np.full((side, side), -1)
    fill_order = np.full((side, side), -1)
    count = 0
    for i, window in enumerate(plan.windows):
        for rectangle, name in ((window.source, "source_rect"), (window.target, "target_rect")):
            ends = [end for part in rectangle for end in (part.start, part.stop)]
            assert ends == table[name][i].tolist()
        np.testing.assert_array_equal(raster[window.source].ravel(), table["source_cells"][i])
        given = cells((side, side), window.target, window.known)
        new = cells((side, side), window.target, ~window.known)
        np.testing.assert_array_equal(given, table["context_cells"][i])
        np.testing.assert_array_equal(new, table["generated_cells"][i])
        assert window.generated == table["counts"][i]
        assert window.leading == table["leading_given"][i]
        fill_window[new] = i
        fill_order[new] = count + np.arange(window.generated)
        count += window.generated
    np.testing.assert_array_equal(fill_window, table["fill_window"])
    np.testing.assert_array_equal(fill_order, table["fill_order"])
    assert count == side**2


def test_sequences_are_those_handed_to_the_official_sampler(fixtures, plan, table):
    prompt = table["prefix_text"].tolist()
    vocabulary = vocabulary_of(fixtures)
    source = np.arange(plan.grid**2).reshape(plan.grid, plan.grid)
    target = np.arange(4 * plan.grid**2).reshape(2 * plan.grid, 2 * plan.grid)
    for i, window in enumerate(plan.windows):
        row = window_sequence(window, prompt, source, target, vocabulary)
        assert row.dtype == np.int32
        assert len(row) == table["sequence_lengths"][i]
        start = len(prompt) + len(table["source_cells"][i])
        assert row[: len(prompt)].tolist() == prompt
        np.testing.assert_array_equal(row[len(prompt) : start], table["source_cells"][i])
        middle, tail = np.split(row[start:], [len(table["midfix"])])
        assert middle.tolist() == table["midfix"].tolist()
        np.testing.assert_array_equal(tail[tail >= 0], target[table["context_cells"][i]])
        assert (tail < 0).argmax() == table["leading_given"][i]


def vocabulary_of(fixtures):
    """The vocabulary of the fixtures' small models."""
    sizes = json.loads((fixtures / "config.json").read_text())["config"]
    return Vocabulary(sizes["n_img"], sizes["n_txt"])


def test_a_small_plan_by_hand():
    """2x2 windows over 3x3 codes; letters tell which window fills a cell of the 6x6 target."""
    plan = MagnifyPlan(3, 2, 1, ((0, 0, 3), (0, 1, 4), (1, 0, 4), (1, 1, 4)))
    drawing = [
        "aaaabb",
        "aaaabb",
        "aaaabb",
        "ccbbbb",
        "ccccdd",
        "ccccdd",
    ]
    filled = np.full((6, 6), ".")
    for letter, window in zip("abcd", plan.windows, strict=True):
        before = filled[window.target] != "."
        np.testing.assert_array_equal(window.known, before)
        filled[window.target] = np.where(before, filled[window.target], letter)
    assert ["".join(row) for row in filled] == drawing
    second = plan.windows[1]
    assert second.source == (slice(0, 2), slice(1, 3))
    assert (second.generated, second.leading) == (10, 2)

    vocabulary = Vocabulary(40, 5)  # [BOI2] 47, [EOI1] 49, [ROI2] 53, [TINY] 59, [POS0] 63
    row = window_sequence(
        second, [7], np.arange(9).reshape(3, 3), np.arange(36).reshape(6, 6), vocabulary
    )
    given = [7, 1, 2, 4, 5, 49, 53, 63, 59, 47]
    cells = [2, 3, -1, -1, 8, 9, -1, -1, 14, 15, -1, -1, -1, -1, -1, -1]
    assert row.tolist() == given + cells


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (((0, 0, 4), (0, 1, 4), (1, 0, 4)), "the plan leaves 4 target cells open"),
        (((0, 2, 4),), r"window \(0, 2, 4\): expected windows of 2 within a grid of 3 at stride 1"),
        (((-1, 0, 4),), r"window \(-1, 0, 4\)"),
        (((0, 0, 5),), "and 1 to 4 rows"),
    ],
)
def test_plans_that_leave_the_grid_or_cells_are_refused(order, message):
    with pytest.raises(InputError, match=message):
        MagnifyPlan(3, 2, 1, order)
