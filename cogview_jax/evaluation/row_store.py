"""Rows of numbers on disk that a long evaluation computes: it goes on where it was interrupted.

The memory that an evaluation takes does not grow with the rows, since they are read back in blocks;
and several processes share the work, which is divided into shards (`runtime.shared_shards`).

DIR/job.json                      all that the rows depend on
DIR/rows-00000.rows               rows 0 to S-1, one number behind the other
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from cogview_jax.evaluation.job import as_json, begin_job
from cogview_jax.runtime.errors import SystemFault
from cogview_jax.runtime.files import write_file
from cogview_jax.runtime.leftovers import remove_leftovers
from cogview_jax.runtime.progress import Progress
from cogview_jax.runtime.shared_shards import SharedShards, write_together

#: Bytes of rows that are read at a time.
_BLOCK = 16 << 20
#: Of a store there should be so many shards, for as many processes; and the most batches of one.
_SHARDS, _MOST_BATCHES = 16, 16

#: Numbers of rows -> the rows, some at a time and in order. Only the numbers matter: whoever
#: computes a shard computes the same.
Compute = Callable[[range], Iterator[Shaped[np.ndarray, "n width"]]]


class RowStore(SharedShards):
    """`count` rows of `width` numbers each, in the folder `directory`."""

    def __init__(
        self,
        directory: Path,
        job: Mapping[str, Any],
        *,
        count: int,
        width: int,
        batch: int,
        dtype: type[np.generic] = np.float32,
    ):
        """Makes the folder where there is none; processes that share the work make the same.

        Args:
            directory: the folder, on a file system that all processes share.
            job: all that the rows depend on, as JSON has it.
            count: rows.
            width: numbers of a row.
            batch: rows that are computed together. Shards are of whole batches, of those that the
                first process had.
            dtype: of the numbers.

        Raises:
            InputError: the folder holds rows of another job, or is of something else.
        """
        self.directory, self.count, self.width = directory, count, width
        self._dtype = np.dtype(dtype)
        size = batch * min(max(1, count // (_SHARDS * batch)), _MOST_BATCHES)
        layout = {"count": count, "width": width, "dtype": self._dtype.name}
        self.job = as_json({**job, **layout})
        self._shard_size = begin_job(directory, self.job, shard_size=size)["shard_size"]

    def path(self, shard: int) -> Path:
        """The file of `shard`."""
        return self.directory / f"rows-{shard:05}.rows"

    def is_whole(self, shard: int) -> bool:
        """Whether `shard` is written."""
        try:
            return self.path(shard).stat().st_size == len(self._span(shard)) * self._row_bytes
        except FileNotFoundError:
            return False

    def fill(self, compute: Compute, label: str, *, per_minute: bool = False) -> None:
        """Computes the rows that are missing, together with all processes that do so at the time.

        Args:
            compute: the rows of some numbers, a shard's.
            label: of the progress line.
            per_minute: gives the rate by the minute.
        """
        remove_leftovers(self.directory)
        missing = self._missing(range(-(-self.count // self._shard_size)))
        done = self.count - self._rows(missing)
        with Progress(
            self.count, label, unit="image", start=done, per_minute=per_minute
        ) as progress:

            def look() -> list[int]:
                nonlocal missing
                missing = self._missing(missing)
                progress.reach(self.count - self._rows(missing))
                return missing

            def write(shard: int) -> None:
                self._write(shard, compute, progress)

            write_together(self, look, write)

    def read(self, numbers: Sequence[int] | np.ndarray) -> Shaped[np.ndarray, "n width"]:
        """Rows by their numbers, [n, width]."""
        rows = np.empty((len(numbers), self.width), self._dtype)
        shards, places = np.divmod(np.asarray(numbers, np.int64), self._shard_size)
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            table = np.memmap(self.path(shard), self._dtype, "r").reshape(-1, self.width)
            rows[here] = table[places[here]]
        return rows

    def blocks(self) -> Iterator[Shaped[np.ndarray, "n width"]]:
        """All rows in order, some at a time."""
        each = max(1, _BLOCK // self._row_bytes)
        for start in range(0, self.count, each):
            yield self.read(range(start, min(start + each, self.count)))

    def _write(self, shard: int, compute: Compute, progress: Progress) -> None:
        span = self._span(shard)
        rows, at = np.empty((len(span), self.width), self._dtype), 0
        for some in compute(span):
            rows[at : at + len(some)] = some
            at += len(some)
            progress.update(len(some))
        assert at == len(span), (at, span)
        write_file(self.path(shard), lambda file: file.write_bytes(rows.tobytes()))
        if not self.is_whole(shard):
            raise SystemFault(f"{self.path(shard)}: not there after it was written")

    def _missing(self, among: Sequence[int]) -> list[int]:
        names = set(os.listdir(self.directory))
        return [
            shard for shard in among if self.name(shard) not in names or not self.is_whole(shard)
        ]

    def _span(self, shard: int) -> range:
        start = shard * self._shard_size
        return range(start, min(start + self._shard_size, self.count))

    def _rows(self, shards: Sequence[int]) -> int:
        return sum(len(self._span(shard)) for shard in shards)

    @property
    def _row_bytes(self) -> int:
        return self.width * self._dtype.itemsize
