"""Splits and random rows against the release's, and small splits by hand."""

import json

import numpy as np
import pytest

from cogview_jax.data.official_order import random_row, split_ranges, split_shares
from cogview_jax.runtime.errors import InputError


def test_splits_are_those_of_the_release(fixtures):
    cases = json.loads((fixtures / "tokens.json").read_text("utf-8"))["dataset_splits"]
    for case in cases:
        shares = split_shares(case["split"], given=(1,) if case["has_valid"] else ())
        assert shares == case["fractions"]
        (field,) = (name for name in case if name.startswith("ranges_of_"))
        ranges = split_ranges(int(field.removeprefix("ranges_of_")), shares)
        ends = [[part.start, part.stop] if part else None for part in ranges]
        assert ends == case[field], case["split"]


def test_small_splits_by_hand():
    """2.5, 1.25 and 1.25 rows; the halves and quarters add up to the last one."""
    assert split_ranges(5, [0.5, 0.25, 0.25]) == [range(0, 2), range(2, 3), range(3, 5)]
    assert split_ranges(4, [0.5, 0.0, 0.5]) == [range(0, 2), None, range(2, 4)]
    assert split_ranges(2, [0.25, 0.75, 0.0]) == [range(0, 1), range(0, 2), None]
    assert split_shares("1,1,2,4") == [0.25, 0.25, 0.5]
    assert split_shares("3/1", given=(2,)) == [0.75, 0.25, 0.0]


@pytest.mark.parametrize("text", ["a,b", "", "-1,2", "0,0,0"])
def test_splits_without_meaning_are_refused(text):
    with pytest.raises(InputError, match=r"split .*: expected"):
        split_shares(text, given=(1,))


def test_random_rows_are_those_of_the_release(fixtures):
    table = np.load(fixtures / "datasets.npz")
    names = [name for name in table if name.startswith("random_mapping_")]
    assert names
    for name in names:
        rows = int(name.removeprefix("random_mapping_"))
        assert [random_row(i, rows) for i in range(len(table[name]))] == table[name].tolist()
