"""Finds the rows of Arrow files: their captions, and where the bytes of their images lie.

A file is a stream of batches (Apache Arrow, "IPC Streaming Format"), or such a stream with an index
behind it. pyarrow, which this file needs, finds the batches in the mapped file, and the images of a
batch stand one behind the other in it: none of them is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cogview_jax.data.record_index_writer import IndexPart
from cogview_jax.data.sources.table_columns import (
    TableColumns,
    add_row,
    arrow_errors,
    find_columns,
    note_columns,
)
from cogview_jax.data.windowed_file import WindowedFile
from cogview_jax.runtime.errors import InputError

_KIND = "an Arrow file"
#: How a file with an index begins.
_INDEXED = b"ARROW1"


@dataclass(frozen=True)
class ArrowScan:
    """Adds the rows of a file to the part of an index; see `Arrow` for its settings."""

    image_key: str = ""
    caption_keys: tuple[str, ...] = ()

    def __call__(self, path: str, part: IndexPart) -> None:
        """Scans the file at `path`.

        Raises:
            InputError: it is no Arrow file, is damaged, or lacks a column.
            SystemFault: the machine cannot read it.
        """
        with WindowedFile(path) as file, arrow_errors(path, _KIND):
            indexed = file.read(0, len(_INDEXED)) == _INDEXED
            if not file.size:
                raise InputError(f"{path}: expected {_KIND}, this file is empty")
            with pa.memory_map(path) as source:
                begin = source.read_buffer().address
                source.seek(0)
                table = (pa.ipc.open_file if indexed else pa.ipc.open_stream)(source)
                columns = find_columns(path, table.schema, self.image_key, self.caption_keys)
                note_columns(part, table.schema, columns)
                row = 0
                for batch in _batches(table, indexed):
                    places = _places(path, batch, columns, begin, file.size)
                    for place, texts in zip(places, _texts(batch, columns), strict=True):
                        add_row(part, row, place, texts)
                        row += 1


def _batches(table, indexed: bool) -> Iterator[pa.RecordBatch]:
    """Yields the batches of an open file."""
    if not indexed:
        yield from table
        return
    for number in range(table.num_record_batches):
        yield table.get_batch(number)


def _texts(batch: pa.RecordBatch, columns: TableColumns) -> Iterator[list[str] | str | None]:
    if columns.texts:
        batch.select(columns.texts).validate(full=True)  # or a wrong length would end the process
        return columns.texts_of(batch)
    return ([] for _ in range(batch.num_rows))


def _places(
    path: str, batch: pa.RecordBatch, columns: TableColumns, begin: int, size: int
) -> Iterator[tuple[int, int] | None]:
    """Yields the place of the image of each row of a batch, None where it is null.

    Args:
        path: the file.
        batch: of its rows.
        columns: those that are read.
        begin: where in memory the mapped file begins.
        size: its bytes.
    """
    images = batch.column(columns.image)
    images.validate()
    valid = images.is_valid().to_numpy(zero_copy_only=False)
    if columns.nested:
        images = images.field("bytes")
        valid &= images.is_valid().to_numpy(zero_copy_only=False)
    _, offsets, data = images.buffers()
    kind = np.int64 if pa.types.is_large_binary(images.type) else np.int32
    if not valid.any() or offsets is None or data is None:
        yield from (None for _ in range(batch.num_rows))
        return
    first = data.address - begin
    if not 0 <= first <= size - data.size:
        raise InputError(
            f"{path}: its batches are compressed: save them anew with save_to_disk of datasets,"
            " which leaves them as they are"
        )
    ends = np.frombuffer(offsets, kind)[images.offset :][: len(images) + 1].astype(np.int64)
    if (
        len(ends) != len(images) + 1
        or ends[0] < 0
        or ends[-1] > data.size
        or np.any(np.diff(ends) < 0)
    ):
        raise InputError(f"{path}: damaged: images reach beyond their batch")
    for there, start, end in zip(
        valid.tolist(), ends[:-1].tolist(), ends[1:].tolist(), strict=True
    ):
        yield (first + start, end - start) if there else None
