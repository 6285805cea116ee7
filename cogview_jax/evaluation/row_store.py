"""Rows of numbers on disk that a long evaluation computes: it goes on where it was interrupted.

The memory that an evaluation takes does not grow with the rows, since they are read back in blocks;
and several processes share the work, each of which writes the rows of its share.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import atomic_path, read_json, sync, write_json
from cogview_jax.runtime.kv_store_sync import KVStoreSync

#: Seconds that processes wait for the slowest one: the shares are equal, the machines may not be.
PATIENCE = 24 * 3600
#: Bytes of rows that are read at a time.
_BLOCK = 16 << 20
_JOB = "job.json"


class RowStore:
    """`count` rows of `width` numbers each, in the folder PATH.

    Process p of P computes rows p, p + P, p + 2P and so on, in this order, and appends them to its
    own file. Every process of the run makes the same stores in the same order.
    """

    def __init__(
        self,
        path: Path,
        job: Mapping[str, Any],
        *,
        count: int,
        width: int,
        dtype: type[np.generic] = np.float32,
    ):
        """Opens the rows that are there, or makes an empty folder.

        Args:
            path: the folder, on a file system that all processes share.
            job: all that the rows depend on, as JSON has it.
            count: rows.
            width: numbers of a row.
            dtype: of the numbers.

        Raises:
            InputError: the folder holds rows of another job, or is of something else.
        """
        self.path, self.count, self.width = path, count, width
        self._dtype = np.dtype(dtype)
        self._part, self._parts = jax.process_index(), jax.process_count()
        self._sync = KVStoreSync(PATIENCE)
        layout = {"count": count, "width": width, "dtype": self._dtype.name, "parts": self._parts}
        self.job = json.loads(json.dumps({**job, **layout}))
        problem = self._sync.broadcast("open", self._open)
        if problem:
            raise InputError(problem)
        file = self._file(self._part)
        whole = file.stat().st_size // self._row_bytes if file.exists() else 0
        self._done = min(whole, self._share(self._part))
        if file.exists():
            os.truncate(file, self._done * self._row_bytes)  # a row that was cut off

    @property
    def mine(self) -> range:
        """The numbers of the rows that this process has still to append, in this order."""
        return range(self._part + self._done * self._parts, self.count, self._parts)

    @property
    def done(self) -> int:
        """How many rows of this process are there."""
        return self._done

    def append(self, rows: Shaped[np.ndarray, "n width"]) -> None:
        """Writes the next rows of this process, [n, width]."""
        assert rows.shape[1:] == (self.width,), (rows.shape, self.width)
        assert len(rows) <= len(self.mine), (len(rows), len(self.mine))
        with open(self._file(self._part), "ab") as file:
            file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
        self._done += len(rows)

    def finish(self) -> None:
        """Waits until every process has all of its rows on disk."""
        assert not self.mine, f"{len(self.mine)} rows are missing"
        file = self._file(self._part)
        if file.exists():
            sync(file)
        self._sync.all_gather("finish", True)

    def read(self, numbers: Sequence[int] | np.ndarray) -> Shaped[np.ndarray, "n width"]:
        """Rows by their numbers, [n, width]."""
        rows = np.empty((len(numbers), self.width), self._dtype)
        numbers = np.asarray(numbers, np.int64)
        for part in range(self._parts):
            here = np.flatnonzero(numbers % self._parts == part)
            if len(here):
                table = np.memmap(self._file(part), self._dtype, "r").reshape(-1, self.width)
                rows[here] = table[numbers[here] // self._parts]
        return rows

    def blocks(self) -> Iterator[Shaped[np.ndarray, "n width"]]:
        """All rows in order, some at a time."""
        each = max(1, _BLOCK // self._row_bytes)
        for start in range(0, self.count, each):
            yield self.read(range(start, min(start + each, self.count)))

    def _open(self) -> str:
        """Makes the folder where there is none. By one process; returns what is wrong with it."""
        file = self.path / _JOB
        if self.path.exists():
            if not file.exists():
                where = f"{self.path} is no unfinished evaluation"
                return f"{where}: move it away, or choose another --out"
            try:
                found = read_json(file)
                keys = sorted(key for key in self.job if found.get(key) != self.job[key])
            except (InputError, AttributeError):
                keys = [f"{_JOB}, which cannot be read"]
            if not keys:
                return ""
            return (
                f"{self.path} has what another evaluation had measured (of another"
                f" {', '.join(keys)}): give its command again to finish it, delete that folder, or"
                " choose another --out"
            )
        with atomic_path(self.path) as temporary:
            temporary.mkdir()
            write_json(temporary / _JOB, self.job)
        return ""

    def _file(self, part: int) -> Path:
        return self.path / f"{part}of{self._parts}.rows"

    def _share(self, part: int) -> int:
        return len(range(part, self.count, self._parts))

    @property
    def _row_bytes(self) -> int:
        return self.width * self._dtype.itemsize
