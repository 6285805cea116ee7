"""Finds the rows of Parquet files: their captions, and where the bytes of their images lie.

This file needs pyarrow, which reads the captions and the description at the end of a file.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.parquet as pq

from cogview_jax.data.record_index import NO_PLACE
from cogview_jax.data.record_index_writer import IndexPart
from cogview_jax.data.remote.addresses import is_address
from cogview_jax.data.sources.parquet_footer import Chunk, read_chunks
from cogview_jax.data.sources.parquet_pages import value_places
from cogview_jax.data.sources.table_columns import (
    TableColumns,
    add_row,
    arrow_errors,
    find_columns,
    note_columns,
)
from cogview_jax.data.windowed_file import FileStream, WindowedFile
from cogview_jax.runtime.errors import InputError

KIND = "a Parquet file"
#: Rows whose captions are in memory at once, and bytes that pyarrow reads at a time.
_BATCH, _BUFFER = 1024, 64 << 10
#: A row group that has to be decoded as a whole may have so many bytes.
GROUP_LIMIT = 1 << 30
#: Counts of an index: rows whose images are packed, and files that hold such.
PACKED, PACKED_FILES = "packed", "packed files"


@dataclass(frozen=True)
class ParquetScan:
    """Adds the rows of a file to the part of an index; see `Parquet` for its settings."""

    image_key: str = ""
    caption_keys: tuple[str, ...] = ()

    def __call__(self, path: str, part: IndexPart) -> None:
        """Scans the file at `path`.

        Raises:
            InputError: it is no Parquet file, is damaged, or lacks a column.
            SystemFault: the machine cannot read it.
        """
        with WindowedFile(path) as file, arrow_errors(path, KIND), open_parquet(path) as table:
            columns = find_columns(path, table.schema_arrow, self.image_key, self.caption_keys)
            note_columns(part, table.schema_arrow, columns)
            leaf = columns.leaf
            chunks = read_chunks(file, leaf)
            paths = [table.schema.column(i).path for i in range(len(table.schema))]
            level = table.schema.column(paths.index(leaf)).max_definition_level
            packed = any(_is_packed(path, chunk) for chunk in chunks)
            row = 0
            for group, chunk in enumerate(chunks):
                places = (
                    ((number, NO_PLACE) for number in range(row, row + chunk.rows))
                    if packed
                    else value_places(file, chunk.begin, chunk.size, chunk.rows, level)
                )
                texts = _texts(table, group, chunk.rows, columns)
                for place, found in zip(places, texts, strict=True):
                    add_row(part, row, place, found)
                    row += 1
            if packed:
                part.findings.counts.update({PACKED: part.records, PACKED_FILES: 1})


def open_parquet(file) -> pq.ParquetFile:
    """Opens a file so that little of it is in memory; it is given by path or address, or is open.

    With `memory_map` pyarrow would allocate whole columns, and with `pre_buffer` read them ahead.
    """
    if isinstance(file, str) and is_address(file):
        file = FileStream(WindowedFile(file))
    return pq.ParquetFile(file, memory_map=False, pre_buffer=False, buffer_size=_BUFFER)


def _is_packed(path: str, chunk: Chunk) -> bool:
    """Whether images of a chunk are compressed, or stored by a dictionary."""
    if chunk.packed and chunk.decoded > GROUP_LIMIT:
        raise InputError(
            f"{path}: a row group of {chunk.decoded >> 20} MB of packed images ({chunk.packed}):"
            f" expected at most {GROUP_LIMIT >> 20} MB; write it with smaller ones, or uncompressed"
        )
    return bool(chunk.packed)


def _texts(
    table: pq.ParquetFile, group: int, rows: int, columns: TableColumns
) -> Iterator[list[str] | str | None]:
    """Yields the captions of a row group, a batch in memory at a time."""
    if not columns.texts:
        yield from ([] for _ in range(rows))
        return
    options = {"row_groups": [group], "columns": columns.texts, "use_threads": False}
    for batch in table.iter_batches(_BATCH, **options):
        yield from columns.texts_of(batch)
