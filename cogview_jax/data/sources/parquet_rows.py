"""Reads images out of Parquet files that store them compressed, or by a dictionary.

Such an image is decoded with its whole row group, of which the last ones are kept. This file needs
pyarrow.
"""

import bisect
import itertools
import threading
from collections import OrderedDict

import pyarrow as pa
import pyarrow.parquet as pq

from cogview_jax.data.record_index import IndexedRecord, RecordIndex
from cogview_jax.data.records import BadRecord
from cogview_jax.data.sources.parquet_footer import read_chunks
from cogview_jax.data.sources.parquet_scan import KIND, open_parquet
from cogview_jax.data.sources.table_columns import arrow_errors, find_columns
from cogview_jax.data.windowed_file import WindowedFile
from cogview_jax.runtime.faults import system_error

#: Bytes of decoded row groups that are kept, and files that are open.
_KEPT, _OPEN = 256 << 20, 8


class PackedRows:
    """The images of an index that have no place of their own. Threads read one after the other."""

    def __init__(self, index: RecordIndex, image_key: str):
        """Opens no file yet; `image_key` names the column of images, if it is not empty."""
        self._index, self._image_key = index, image_key
        self._files: OrderedDict[int, _Table] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, record: IndexedRecord) -> bytes:
        """The encoded image of a record.

        Raises:
            BadRecord: it is null, or its row group is damaged.
            InputError: its file was changed since the index was opened.
            SystemFault: the machine cannot read it.
        """
        path = self._index.path(record.file)
        with self._lock, arrow_errors(path, KIND):
            table = self._table(record.file)
            group = bisect.bisect_right(table.begins, record.offset) - 1
            try:
                values = self._group(table, record.file, group)
                value = values[record.offset - table.begins[group]].as_py()
            except (pa.ArrowException, OSError) as error:
                if system_error(error) is not None:
                    raise
                raise BadRecord(record.key, f"damaged row group {group}: {error}") from None
        image = value.get("bytes") if isinstance(value, dict) else value
        if not image:
            raise BadRecord(record.key, f"no image: its bytes are {'null' if image is None else 0}")
        return image

    def _table(self, number: int) -> "_Table":
        if number not in self._files:
            self._files[number] = _Table(self._index, number, self._image_key)
            if len(self._files) > _OPEN:
                self._files.popitem(last=False)[1].table.close()
        self._files.move_to_end(number)
        return self._files[number]

    def _group(self, table: "_Table", number: int, group: int) -> pa.ChunkedArray:
        name = number, group
        if name not in self._groups:
            self._groups[name] = table.images(group)
            while len(self._groups) > 1 and sum(g.nbytes for g in self._groups.values()) > _KEPT:
                self._groups.popitem(last=False)
        self._groups.move_to_end(name)
        return self._groups[name]


class _Table:
    """An open file, and the numbers of the first rows of its row groups."""

    def __init__(self, index: RecordIndex, number: int, image_key: str):
        self.table: pq.ParquetFile = open_parquet(index.open(number))
        columns = find_columns(index.path(number), self.table.schema_arrow, image_key, ())
        self._leaf = columns.leaf
        with WindowedFile(index.path(number)) as file:
            rows = [chunk.rows for chunk in read_chunks(file, self._leaf)]
        self.begins = list(itertools.accumulate(rows, initial=0))[:-1]

    def images(self, group: int) -> pa.ChunkedArray:
        """The decoded column of images of a row group."""
        columns = [self._leaf]
        return self.table.read_row_group(group, columns=columns, use_threads=False).column(0)
