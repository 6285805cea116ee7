"""Batches of a data set: the same by one reader and by many."""

import threading

import grain
import numpy as np
import pytest

from cogview_jax.data.batching import batched


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("count", [12, 13])
def test_many_readers_make_the_batches_of_one(count, drop):
    rows = grain.MapDataset.range(count).map(lambda i: {"number": np.int32(i)})
    one, many = (batched(rows, 4, readers, drop_remainder=drop) for readers in (1, 3))
    assert len(one) == len(many) == (3 if drop or count == 12 else 4)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a["number"], b["number"])


def test_lists_stay_lists():
    rows = grain.MapDataset.range(5).map(str)
    found = [list(batched(rows, 2, readers, stack=list)) for readers in (1, 2)]
    assert found == [[["0", "1"], ["2", "3"], ["4"]]] * 2


def test_the_rows_of_a_batch_are_made_at_the_same_time():
    together = threading.Barrier(4)

    def meet(i):
        together.wait(timeout=300)  # for all four, or it fails
        return np.int32(i)

    rows = grain.MapDataset.range(4).map(meet)
    np.testing.assert_array_equal(batched(rows, 4, 4)[0], [0, 1, 2, 3])
