"""Sources of numbers, and the global batches that the loader makes of them."""

import itertools
from typing import Any, NamedTuple

import numpy as np

from cogview_jax.data.loader import batches
from cogview_jax.data.records import BadRecord
from cogview_jax.data.skipped import SkippedLog

COUNT, BATCH = 13, 8


class Numbers:
    """Record i is i; some cannot be read."""

    def __init__(self, count=COUNT, broken=()):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def key(self, i):
        return f"number/{i}"

    def __getitem__(self, i):
        if i in self.broken:
            raise BadRecord(self.key(i), "broken")
        return i


class Row(NamedTuple):
    """A typed row, as the tasks have them."""

    item: Any
    drawn: Any


def augment(item, generator):
    """The record and, in place of an augmentation, what was sampled for it."""
    return Row(np.int32(item), generator.integers(2**62, size=2))


def read(folder, steps, source=None, hosts=1, seed=3, start=0, **limits):
    """Global batches of steps start..start+steps-1: dict of arrays [steps, BATCH, ...]."""
    shares = []
    for host in range(hosts):
        iterator = batches(
            source or Numbers(),
            global_batch=BATCH,
            seed=seed,
            transform=augment,
            skipped=SkippedLog(folder / str(host), **limits),
            start=start,
            parts=(host,),
            ways=hosts,
        )
        shares.append(list(itertools.islice(iterator, steps)))
        iterator.close()
    return {
        name: np.array(
            [
                np.concatenate([getattr(rows, name) for rows in step])
                for step in zip(*shares, strict=True)
            ]
        )
        for name in ("item", "drawn")
    }


def assert_equal(one, two):
    for name in ("item", "drawn"):
        np.testing.assert_array_equal(one[name], two[name])
