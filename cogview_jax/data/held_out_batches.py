"""Batches of held-out records, each read by the process that has its part of the mesh."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import jax
import numpy as np

from cogview_jax.data.records import BadRecord
from cogview_jax.data.sources.mixture import Part, counts, parts_of
from cogview_jax.data.sources.source import Source, readable, readers_of
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import local_parts, place_batch, to_host
from cogview_jax.runtime.processes import log

Item = TypeVar("Item")
_THREADS = 4


class HeldOutBatches(Generic[Item]):
    """The first readable held-out records, over and over again.

    As many further records are taken as are unreadable, while there are any. Which these are
    depends neither on the size of a batch nor on the mesh.

    Attributes:
        count: how many records there are to be.
        available: how many are held out.
    """

    def __init__(
        self,
        held_out: Source[Item],
        count: int,
        *,
        rows: int,
        row: Callable[[int, Item], Any],
        shapes: Any,
        of: str = "records",
    ) -> None:
        """Reads records until one can be used.

        Args:
            held_out: all held-out records.
            count: how many of them are read at most.
            rows: of a batch, over all devices; at least one a device is taken.
            row: makes a row, a pytree of arrays, of the number of a held-out record and the record.
            shapes: the shapes of a row.
            of: what messages call the records.

        Raises:
            InputError: no record can be read.
        """
        self.available, self.count = len(held_out), min(count, len(held_out))
        self._held_out, self._rows, self._make, self._of = held_out, rows, row, of
        self._blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        self._said = False
        self._require(next(readable(held_out), None) is not None)

    def __call__(self, mesh: jax.sharding.Mesh) -> Iterator[tuple[Any, jax.Array, np.ndarray]]:
        """Yields global batches; every process of the run takes all of them.

        Each is a batch, its float32 mask [b] on the devices, and the mask as a bool array here. The
        mask is 0 for rows that hold no record, whose arrays are all zeros.

        Raises:
            InputError: no record can be read any more.
        """
        parts, ways = local_parts(mesh)
        each = max(1, self._rows // ways)
        start, stop, used = 0, self.count, 0
        with ThreadPoolExecutor(max(_THREADS, readers_of(self._held_out))) as pool:
            while start < stop:
                numbers = [start + part * each + i for part in parts for i in range(each)]
                rows, mask = zip(*pool.map(self._row, numbers, itertools.repeat(stop)), strict=True)
                stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
                batch, there = place_batch((stacked, np.asarray(mask, np.float32)), mesh)
                here = to_host(there) > 0
                used += int(here.sum())
                yield batch, there, here
                start = min(start + ways * each, stop)
                if start == stop:
                    stop = min(stop + self.count - used, self.available)
        self._require(used > 0)
        if used < stop and not self._said:
            log(f"validation: {stop - used} of {stop} held-out {self._of} cannot be used")
            self._said = True

    @property
    def described(self) -> str:
        """How many of the held-out records are measured, in words."""
        return f"{self.count:,} of {self.available:,} held-out {self._of}"

    def _row(self, number: int, stop: int) -> tuple[Any, float]:
        """A row and 1; a blank one and 0 from `stop` on and where the record is unreadable."""
        if number < stop:
            try:
                return self._make(number, self._held_out[number]), 1.0
            except BadRecord:
                pass
        return self._blank, 0.0

    def _require(self, any_readable: bool) -> None:
        if not any_readable:
            raise InputError(f"none of the {self.available} held-out {self._of} can be read")


def batches_of_parts(
    held_out: Source[Item], count: int, make: Callable[[Part[Item], int, str], HeldOutBatches[Item]]
) -> dict[str, HeldOutBatches[Item]]:
    """The batches of each part of a mixture by its name; of any other source, all under "".

    Args:
        held_out: all held-out records.
        count: how many of them are read at most. Of a mixture each part has its share of the rows
            of training, and at least one.
        make: gives the batches of a part, of so many records, which messages call so.
    """
    parts = parts_of(held_out)
    shares = counts(parts, count)
    of = {part.name: f" of part {part.name}" * bool(part.name) for part in parts}
    return {part.name: make(part, shares[part.name], of[part.name]) for part in parts}


def with_parts(names: Sequence[str], parts: Iterable[str]) -> list[str]:
    """The names of metrics: `names` of all records, then those of each part, as "NAME/PART"."""
    return [*names, *(f"{name}/{part}" for part in parts for name in names)]
