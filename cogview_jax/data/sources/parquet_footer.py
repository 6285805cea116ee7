"""What the end of a Parquet file says about a column: where its chunks lie and how they are stored.

See `FileMetaData` in Apache Parquet's parquet.thrift. pyarrow reads the same, but a damaged
description of a chunk can end the process where it is asked for one.
"""

from dataclasses import dataclass
from typing import Any

from cogview_jax.data.sources.parquet_pages import damaged
from cogview_jax.data.sources.thrift_compact import read_struct
from cogview_jax.data.windowed_file import WindowedFile
from cogview_jax.runtime.errors import InputError

_MAGIC = b"PAR1"
#: Names of codecs and encodings by their numbers in parquet.thrift.
_CODECS = ("none", "snappy", "gzip", "lzo", "brotli", "lz4", "zstd", "lz4_raw")
_UNCOMPRESSED, _PLAIN, _RLE = 0, 0, 3


@dataclass(frozen=True)
class Chunk:
    """The chunk of a column in a row group.

    Attributes:
        rows: of its row group.
        begin: where its first page of values begins.
        size: the bytes of all pages, their headers included.
        decoded: the bytes of all pages once they are decompressed.
        packed: how values are packed; empty if they stand in the file as they are.
    """

    rows: int
    begin: int
    size: int
    decoded: int
    packed: str


def read_chunks(file: WindowedFile, column: str) -> list[Chunk]:
    """The chunks of a column, called as in "image.bytes", of all row groups.

    Raises:
        InputError: the end of the file is damaged, or its data lie in another file.
        SystemFault: the machine cannot read it.
    """
    end = file.size - 8
    tail = file.read(end, 8) if end >= 0 else b""
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or length > end:
        raise InputError(f"{file.path}: damaged, or not a Parquet file (its end is missing)")
    try:
        groups = read_struct(file.read(end - length, length))[0].get(4, [])
        return [_chunk(file, group, column) for group in groups]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise damaged(file, end - length, "the description of its columns") from None


def _chunk(file: WindowedFile, group: dict[int, Any], column: str) -> Chunk:
    for each in group[1]:
        about = each[3]
        if b".".join(about[3]) != column.encode():
            continue
        if each.get(1):
            raise InputError(f"{file.path}: its data lie elsewhere, in {each[1].decode()}")
        packed = []
        if about[4] != _UNCOMPRESSED:
            packed.append(_CODECS[about[4]])
        if {*about[2]} - {_PLAIN, _RLE}:
            packed.append("encoded, as by a dictionary")
        return Chunk(group[3], about[9], about[7], about[6], ", ".join(packed))
    raise KeyError(column)
