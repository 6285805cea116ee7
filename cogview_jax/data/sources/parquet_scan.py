"""Finds the rows of Parquet files: their captions, and where the bytes of their images lie.

This file needs pyarrow, which reads the captions and the description at the end of a file.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.parquet as pq

from cogview_jax.data.record_index import NO_PLACE
from cogview_jax.data.record_index_writer import IndexPart
from cogview_jax.data.sources.parquet_pages import value_places
from cogview_jax.data.sources.table_columns import (
    TableColumns,
    add_row,
    arrow_errors,
    find_columns,
    note_columns,
)
from cogview_jax.data.sources.windowed_file import WindowedFile
from cogview_jax.runtime.errors import InputError

KIND = "a Parquet file"
#: Rows whose captions are in memory at once, and bytes that pyarrow reads at a time.
_BATCH, _BUFFER = 1024, 64 << 10
#: Encodings of a chunk whose values stand in the file as they are. The others are of levels.
_AS_THEY_ARE = {"PLAIN", "RLE"}
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
            chunks = _Chunks(file, table, columns)
            packed = chunks.packed()
            row = 0
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                places = _numbered(row, rows) if packed else chunks.places(group, rows)
                for place, texts in zip(places, chunks.texts(group, rows), strict=True):
                    add_row(part, row, place, texts)
                    row += 1
            if packed:
                part.findings.counts.update({PACKED: part.records, PACKED_FILES: 1})


def open_parquet(file) -> pq.ParquetFile:
    """Opens a file, given by its path or opened already, so that little of it is in memory.

    With `memory_map` pyarrow would allocate whole columns, and with `pre_buffer` read them ahead.
    """
    return pq.ParquetFile(file, memory_map=False, pre_buffer=False, buffer_size=_BUFFER)


class _Chunks:
    """The column chunks of a file that are read."""

    def __init__(self, file: WindowedFile, table: pq.ParquetFile, columns: TableColumns):
        self._file, self._table, self._columns = file, table, columns
        leaf = f"{columns.image}.bytes" if columns.nested else columns.image
        paths = [table.schema.column(i).path for i in range(len(table.schema))]
        self._leaf = paths.index(leaf)
        self._level = table.schema.column(self._leaf).max_definition_level

    def packed(self) -> bool:
        """Whether the images of some rows are compressed, or stored by a dictionary."""
        found = False
        for group in range(self._table.num_row_groups):
            chunk = self._table.metadata.row_group(group).column(self._leaf)
            if chunk.file_path:
                raise InputError(f"{self._file.path}: its data lie elsewhere, in {chunk.file_path}")
            if chunk.compression == "UNCOMPRESSED" and {*chunk.encodings} <= _AS_THEY_ARE:
                continue
            found = True
            if chunk.total_uncompressed_size > GROUP_LIMIT:
                raise InputError(
                    f"{self._file.path}: a row group of {chunk.total_uncompressed_size >> 20} MB of"
                    f" packed images ({chunk.compression}, {', '.join(chunk.encodings)}): expected"
                    f" at most {GROUP_LIMIT >> 20} MB; write it with smaller ones, or uncompressed"
                )
        return found

    def places(self, group: int, rows: int) -> Iterator[tuple[int, int] | None]:
        """Yields where the images of a row group lie."""
        chunk = self._table.metadata.row_group(group).column(self._leaf)
        begin, size = chunk.data_page_offset, chunk.total_compressed_size
        return value_places(self._file, begin, size, rows, self._level)

    def texts(self, group: int, rows: int) -> Iterator[list[str] | str | None]:
        """Yields the captions of a row group, a batch in memory at a time."""
        if not self._columns.texts:
            yield from ([] for _ in range(rows))
            return
        batches = self._table.iter_batches(
            _BATCH, row_groups=[group], columns=self._columns.texts, use_threads=False
        )
        for batch in batches:
            yield from self._columns.texts_of(batch)


def _numbered(first: int, rows: int) -> Iterator[tuple[int, int]]:
    """Yields the places of rows that are found by their numbers."""
    return ((row, NO_PLACE) for row in range(first, first + rows))
