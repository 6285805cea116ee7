"""Batches of a data set, each made by as many threads as its records are best read by."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import jax
import numpy as np


def batched(
    rows: grain.MapDataset,
    size: int,
    readers: int,
    *,
    stack: Callable[[list], Any] | None = None,
    drop_remainder: bool = False,
) -> grain.MapDataset:
    """Batches of `size` rows; the same whatever the number of readers.

    Args:
        rows: pytrees of arrays, or anything if `stack` is given.
        size: of a batch.
        readers: rows that are made at a time, of all batches in the making together. Of 1, each
            batch makes its rows one after another.
        stack: makes a batch of a list of rows; without it arrays get a first axis.
        drop_remainder: leave out the last rows where they are fewer than `size`.
    """
    if readers == 1:
        return rows.batch(size, drop_remainder=drop_remainder, batch_fn=stack)
    pool = ThreadPoolExecutor(readers, "reader")

    def batch(number: int) -> Any:
        places = range(number * size, min(len(rows), (number + 1) * size))
        return (stack or _stacked)(list(pool.map(rows.__getitem__, places)))

    whole, rest = divmod(len(rows), size)
    return grain.MapDataset.range(whole + bool(rest and not drop_remainder)).map(batch)


def _stacked(rows: list) -> Any:
    return jax.tree.map(lambda *arrays: np.stack(arrays), *rows)
