"""The plan of super-resolution against the release's, and a small one drawn by hand."""

import json

import numpy as np
import pytest

from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.windows import ORDER, WindowPlan, released_head
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
    return WindowPlan(grid, int(row_end - row_start), int(stride), order)


def test_the_default_is_the_plan_of_the_release(plan):
    assert plan == WindowPlan()
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
        generated = (~window.known).sum()
        assert generated == table["counts"][i]
        assert window.leading == table["leading_given"][i]
        # Of 8 pixels a code of the source, and so 4 of the target.
        parts = np.zeros((4 * side, 4 * side), bool)
        parts[window.pixels(8)] = True
        filled = cells((side, side), window.target)
        np.testing.assert_array_equal(parts, np.kron(filled, np.ones((4, 4), bool)))
        fill_window[new] = i
        fill_order[new] = count + np.arange(generated)
        count += generated
    np.testing.assert_array_equal(fill_window, table["fill_window"])
    np.testing.assert_array_equal(fill_order, table["fill_order"])
    assert count == side**2


def test_sequences_are_those_handed_to_the_official_sampler(fixtures, plan, table):
    prompt = table["prefix_text"].tolist()
    vocabulary = vocabulary_of(fixtures)
    source = np.arange(plan.grid**2).reshape(plan.grid, plan.grid)
    for i, window in enumerate(plan.windows):
        row = released_head(prompt, source[window.source].ravel(), "BASE", vocabulary)
        assert row.dtype == np.int32
        assert len(row) + window.known.size == table["sequence_lengths"][i]
        start = len(prompt) + len(table["source_cells"][i])
        assert row[: len(prompt)].tolist() == prompt
        np.testing.assert_array_equal(row[len(prompt) : start], table["source_cells"][i])
        assert row[start:].tolist() == table["midfix"].tolist()


def vocabulary_of(fixtures):
    """The vocabulary of the fixtures' small models."""
    sizes = json.loads((fixtures / "config.json").read_text())["config"]
    return Vocabulary(sizes["n_img"], sizes["n_txt"])


def test_a_small_plan_by_hand():
    """2x2 windows over 3x3 codes; letters tell which window fills a cell of the 6x6 target."""
    plan = WindowPlan(3, 2, 1, ((0, 0, 3), (0, 1, 4), (1, 0, 4), (1, 1, 4)))
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
    assert ((~second.known).sum(), second.leading) == (10, 2)

    vocabulary = Vocabulary(40, 5)  # [BOI2] 47, [EOI1] 49, [ROI2] 53, [TINY] 59, [POS0] 63
    row = released_head([7], np.arange(9).reshape(3, 3)[second.source].ravel(), "TINY", vocabulary)
    assert row.tolist() == [7, 1, 2, 4, 5, 49, 53, 63, 59, 47]


def test_an_image_of_one_window_and_the_nine_of_one_twice_as_large():
    (whole,) = WindowPlan.of(6, 6).windows
    assert whole.source == (slice(0, 6), slice(0, 6))
    assert whole.target == (slice(0, 12), slice(0, 12))
    assert ((~whole.known).sum(), whole.leading) == (144, 0)
    assert WindowPlan.of(32, 16) == WindowPlan()


def test_nine_windows_of_four_codes_by_hand():
    """8x8 codes to 16x16; a letter for each window, in order."""
    drawing = [
        "aaaaaaaabbbbcccc",
        "aaaaaaaabbbbcccc",
        "aaaaaaaabbbbcccc",
        "aaaaaaaabbbbcccc",
        "aaaaaaaabbbbcccc",
        "aaaaaaaabbbbcccc",
        "eeeeddddddddffff",
        "eeeeddddddddffff",
        "eeeeddddddddffff",
        "eeeeddddddddffff",
        *["gggggggghhhhiiii"] * 6,
    ]
    filled = np.full((16, 16), ".")
    for letter, window in zip("abcdefghi", WindowPlan.of(8, 4).windows, strict=True):
        before = filled[window.target] != "."
        np.testing.assert_array_equal(window.known, before)
        filled[window.target] = np.where(before, filled[window.target], letter)
    assert ["".join(row) for row in filled] == drawing


@pytest.mark.parametrize(
    ("grid", "window", "message"),
    [
        (
            8,
            16,
            "images of 8 x 8 codes cannot be upsampled in windows of 16 x 16: expected 16 or",
        ),
        (64, 16, "expected 16 or 32 a side"),
        (10, 5, "images of 10 x 10 codes .* windows of 5 x 5: expected 5 a side"),
        (4, 2, "expected 2 a side"),
    ],
)
def test_images_of_other_sizes_have_no_plan(grid, window, message):
    with pytest.raises(InputError, match=message):
        WindowPlan.of(grid, window)


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
        WindowPlan(3, 2, 1, order)
